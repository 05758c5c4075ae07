//! What an event did, in the words of its plugin; and where two runs of it part.

use std::{collections::BTreeMap, fmt, sync::Arc};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::{
    Blob,
    scene::{Due, Name},
};
use crate::{
    event::{Principal, Refusal, Reply},
    guest::{Fault, Outcome},
    memory::Timer,
    message::{Address, Identity, OutKey, Way},
    rules::Fact,
    transaction::Progress,
};

/// Of a value, for people; the rest is cut.
const SHOWN_BYTES: usize = 48;

/// How an event ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ended {
    Done,
    Replied(Blob),
    Later,
    Refused(Refusal),
    Trapped(String),
    TimedOut,
}

/// Something that an event did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Effect {
    /// A row; none: deleted.
    Row(Blob, Option<Blob>),
    /// A row in memory; none: deleted.
    Scratch(Blob, Option<Blob>),
    /// So many sealed rows, and keys, were written and deleted.
    Sealed {
        written: u32,
        deleted: u32,
    },
    /// A timer; none: it is gone.
    Timer(Name, Option<Due>),
    Send {
        key: OutKey,
        way: Way,
        /// Of the message on its channel.
        place: u64,
        expires_ms: Option<u64>,
        report: Option<u64>,
        body: Blob,
    },
    Post {
        key: OutKey,
        way: Way,
        body: Blob,
    },
    Ask {
        id: u64,
        key: OutKey,
        way: Way,
        deadline_ms: u64,
        body: Blob,
    },
    Reopen(OutKey),
    Fact(Fact),
    Answer(u64, Result<Blob, Refusal>),
    Progress(Progress),
}

impl Effect {
    pub(crate) fn timer(name: &Arc<str>, timer: Option<&Timer>) -> Self {
        Self::Timer(Name(Arc::clone(name)), timer.map(Due::from))
    }
}

impl Ended {
    /// `None`: it did not run to an end of its own.
    pub(crate) fn of(outcome: &Result<Outcome, Fault>) -> Option<Self> {
        Some(match outcome {
            Ok(Outcome::Done | Outcome::Again) => Self::Done,
            Ok(Outcome::Replied(Reply::Done(body))) => Self::Replied(body[..].into()),
            Ok(Outcome::Replied(Reply::Later)) => Self::Later,
            Err(Fault::Refused(refusal)) => Self::Refused(refusal.clone()),
            Err(Fault::Trapped(why)) => Self::Trapped(why.clone()),
            Err(Fault::TimedOut(_)) => Self::TimedOut,
            Err(Fault::Host(_) | Fault::GivenUp) => return None,
        })
    }

    /// Whether anything of it is real.
    pub(crate) fn is_real(&self) -> bool {
        match self {
            Self::Done | Self::Replied(_) | Self::Later => true,
            Self::Refused(_) | Self::Trapped(_) | Self::TimedOut => false,
        }
    }
}

/// Where two runs of an event part first; `None`: nowhere.
pub(super) fn difference(
    (then, did): (&Ended, &[Effect]),
    (now, does): (&Ended, &[Effect]),
) -> Option<String> {
    if then != now {
        return Some(format!("it ended as: {now}; recorded: {then}"));
    }
    if did == does {
        return None;
    }
    let (before, after) = (by_subject(did), by_subject(does));
    let subjects = before.keys().chain(after.keys());
    let parts = subjects.filter(|subject| before.get(*subject) != after.get(*subject));
    let subject = parts.min()?;
    let said = |effects: Option<&Vec<&Effect>>| match effects {
        None => "nothing".to_owned(),
        Some(effects) => {
            let shown = effects.iter().map(|effect| value(effect));
            shown.collect::<Vec<_>>().join(", ")
        }
    };
    let (now, then) = (said(after.get(subject)), said(before.get(subject)));
    let further = if now == then {
        ", but another one further on"
    } else {
        ""
    };
    Some(format!("{subject}: {now}; recorded: {then}{further}"))
}

/// Effects by what they are on. Order counts among those of one subject alone: rows and timers are sets.
fn by_subject(effects: &[Effect]) -> BTreeMap<String, Vec<&Effect>> {
    let mut subjects: BTreeMap<String, Vec<&Effect>> = BTreeMap::new();
    for effect in effects {
        subjects.entry(subject(effect)).or_default().push(effect);
    }
    subjects
}

fn subject(effect: &Effect) -> String {
    match effect {
        Effect::Row(key, _) => format!("row {}", shown(&key.0)),
        Effect::Scratch(key, _) => format!("scratch row {}", shown(&key.0)),
        Effect::Sealed { .. } => "secret rows and keys".to_owned(),
        Effect::Timer(name, _) => format!("timer {}", shown(name.0.as_bytes())),
        Effect::Send { key, .. } => format!("message {}", channel(key)),
        Effect::Post { key, .. } => format!("volatile message {}", channel(key)),
        Effect::Ask { key, .. } => format!("question {}", channel(key)),
        Effect::Reopen(key) => format!("reopened channel {}", channel(key)),
        Effect::Fact(fact) => format!("fact {} of {}", fact.kind, fact.peer),
        Effect::Answer(request, _) => format!("answer to request {request}"),
        Effect::Progress(step) => format!("progress of request {}", step.request),
    }
}

fn channel(key: &OutKey) -> String {
    let Address {
        place,
        plugin,
        principal,
    } = &key.to;
    let to = match principal {
        Principal::Node => format!("{plugin} at {place}"),
        Principal::User(user) => format!("{user} of {plugin} at {place}"),
    };
    match &key.sender {
        Identity::Node => format!("`{}` to {to}", key.protocol),
        Identity::Alias(name) => format!("`{}` to {to} as {name}", key.protocol),
    }
}

fn value(effect: &Effect) -> String {
    match effect {
        Effect::Row(_, Some(value)) | Effect::Scratch(_, Some(value)) => shown(&value.0),
        Effect::Row(_, None) | Effect::Scratch(_, None) => "deleted".to_owned(),
        Effect::Sealed { written, deleted } => format!("{written} written, {deleted} deleted"),
        Effect::Timer(_, Some(due)) => {
            let durable = if due.durable { "" } else { ", volatile" };
            format!(
                "due {}{durable}, with {}",
                due.due_ms,
                shown(&due.payload.0)
            )
        }
        Effect::Timer(_, None) => "gone".to_owned(),
        Effect::Send {
            body,
            place,
            expires_ms,
            ..
        } => match expires_ms {
            Some(at) => format!("number {place}, until {at}: {}", shown(&body.0)),
            None => format!("number {place}: {}", shown(&body.0)),
        },
        Effect::Post { body, .. } => shown(&body.0),
        Effect::Ask {
            id,
            deadline_ms,
            body,
            ..
        } => format!("{id}, until {deadline_ms}: {}", shown(&body.0)),
        Effect::Reopen(_) => "reopened".to_owned(),
        Effect::Fact(fact) => match fact.value {
            Some((value, until_ms)) => format!("{value} until {until_ms}"),
            None => "taken back".to_owned(),
        },
        Effect::Answer(_, answer) => told(answer),
        Effect::Progress(step) => match step.percent {
            Some(percent) => format!("{percent}% {}", shown(step.text.as_bytes())),
            None => shown(step.text.as_bytes()),
        },
    }
}

fn told(answer: &Result<Blob, Refusal>) -> String {
    match answer {
        Ok(body) => shown(&body.0),
        Err(refusal) => format!("the error {}", shown(refusal.message.as_bytes())),
    }
}

/// Bytes for people: as a text if they are one, and no more than a line holds.
fn shown(bytes: &[u8]) -> String {
    let is_plain = |text: &str| !text.chars().any(char::is_control);
    match std::str::from_utf8(bytes) {
        Ok(text) if is_plain(text) => {
            let end = text.floor_char_boundary(SHOWN_BYTES);
            let (head, rest) = text.split_at_checked(end).unwrap_or((text, ""));
            more(format!("\"{head}\""), rest.len())
        }
        Ok(_) | Err(_) => {
            let end = bytes.len().min(SHOWN_BYTES / 2);
            let (head, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
            // Keys of maps are words with a byte between them.
            let letters = head.iter().filter(|byte| byte.is_ascii_graphic()).count();
            let shown = match 2 * letters >= head.len() {
                true => format!("\"{}\"", head.escape_ascii()),
                false => format!("0x{}", HEXLOWER.encode(head)),
            };
            more(shown, rest.len())
        }
    }
}

fn more(shown: String, rest: usize) -> String {
    match rest {
        0 => shown,
        rest => format!("{shown} and {rest} bytes"),
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Replied(body) => write!(f, "answered {}", shown(&body.0)),
            Self::Later => f.write_str("to be answered later"),
            Self::Refused(refusal) => {
                write!(f, "refused, {}", shown(refusal.message.as_bytes()))
            }
            Self::Trapped(why) => write!(f, "broken, {}", shown(why.as_bytes())),
            Self::TimedOut => f.write_str("longer than it may run"),
        }
    }
}
