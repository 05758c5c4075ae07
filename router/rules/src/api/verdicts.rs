//! Verdicts as scripts build them.

use rhai::{Dynamic, Engine, EvalAltResult, NativeCallContext};

use crate::{
    api::objects::{Argument, Nobody, Peer},
    script::call::{ScriptResult, cut, line_of},
    units::{self, put},
    verdict::{Allowance, Verdict},
};

/// Bytes of the reason of a refusal.
const MAX_WHY_BYTES: usize = 256;

/// A verdict, with the line that made it.
#[derive(Debug, Clone)]
pub(crate) struct DraftVerdict {
    pub(crate) verdict: Verdict,
    pub(crate) line: usize,
}

impl DraftVerdict {
    fn limit(
        &mut self,
        limit: impl FnOnce(&mut Allowance) -> Result<(), String>,
    ) -> ScriptResult<Self> {
        let mut draft = self.clone();
        match &mut draft.verdict {
            Verdict::Allow(allowance) => limit(allowance)?,
            Verdict::Deny(_) => return Err("deny() takes no limits".into()),
        }
        Ok(draft)
    }
}

pub(crate) fn register(engine: &mut Engine) {
    engine
        .register_type_with_name::<DraftVerdict>("Verdict")
        .register_fn("allow", |context: NativeCallContext| DraftVerdict {
            verdict: Verdict::Allow(Allowance::default()),
            line: line_of(&context),
        })
        .register_fn("deny", |context: NativeCallContext| deny(&context, ""))
        .register_fn("deny", |context: NativeCallContext, why: &str| {
            deny(&context, why)
        })
        .register_fn("bw", |verdict: &mut DraftVerdict, rate: Dynamic| {
            verdict.limit(|allowed| put(&mut allowed.bandwidth_bytes_per_s, units::rate(&rate)))
        })
        .register_fn("bytes", |verdict: &mut DraftVerdict, size: Dynamic| {
            verdict.limit(|allowed| put(&mut allowed.max_bytes, units::size(&size)))
        })
        .register_fn("for_time", |verdict: &mut DraftVerdict, time: Dynamic| {
            verdict.limit(|allowed| put(&mut allowed.max_time, units::duration(&time)))
        })
        .register_fn("idle", |verdict: &mut DraftVerdict, time: Dynamic| {
            verdict.limit(|allowed| put(&mut allowed.idle, units::duration(&time)))
        })
        .register_fn("bill", |verdict: &mut DraftVerdict, peer: Peer| {
            verdict.limit(|allowed| put(&mut allowed.bill, Ok(peer.view.id)))
        })
        .register_fn("bill", |_: &mut DraftVerdict, _: Argument<Nobody>| {
            let nobody = "who asks through an onion is nobody: no bill reaches it; ask \
                          `x.from.id != ()` first";
            Err::<DraftVerdict, Box<EvalAltResult>>(nobody.into())
        });
}

fn deny(context: &NativeCallContext, why: &str) -> DraftVerdict {
    DraftVerdict {
        verdict: Verdict::Deny(cut(why.to_owned(), MAX_WHY_BYTES)),
        line: line_of(context),
    }
}
