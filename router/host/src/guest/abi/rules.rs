//! What plugins and rules have to do with each other: facts, questions, and what was billed.

use std::{sync::Arc, time::Duration};

use wasmtime::Store;

use super::{
    Answer, State, handlers,
    messages::public_key,
    told, types,
    wormholes::plugin::{facts, rules},
};
use crate::rules::{RuleLimits, RuleQuestion, Ruling, Service, Usage, record};

impl facts::Host for State {
    fn set(&mut self, kind: String, peer: Vec<u8>, value: i64, ttl_ms: u64) -> Answer<()> {
        let event = self.event()?;
        let set = public_key(peer).and_then(|peer| event.fact_set(&kind, peer, value, ttl_ms));
        Ok(told(set))
    }

    fn clear(&mut self, kind: String, peer: Vec<u8>) -> Answer<()> {
        let event = self.event()?;
        let cleared = public_key(peer).and_then(|peer| event.fact_clear(&kind, peer));
        Ok(told(cleared))
    }
}

impl rules::Host for State {
    fn ask(&mut self, hook: String, question: String) -> Answer<rules::Ruling> {
        let checked = self.event()?.check_ask(&hook);
        let record = match checked.and_then(|()| record(&question)) {
            Ok(record) => record,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        let plugin = Arc::clone(&self.plugin);
        let network = plugin.around.network.as_ref();
        let network = network.ok_or_else(|| wasmtime::Error::msg("there is no node"))?;
        let ask = || {
            network.ask_rules(RuleQuestion {
                plugin: Arc::clone(&plugin.name),
                hook: hook.clone(),
                record,
            })
        };
        let ruling = self.event()?.ruling(&hook, &question, ask);
        Ok(Ok(ruling.into()))
    }
}

/// Tells what was billed.
pub(in crate::guest) async fn call_usage(
    handler: &handlers::on_usage::Guest,
    store: &mut Store<State>,
    usage: &[Usage],
    stamp: &types::Event,
) -> wasmtime::Result<Result<(), types::Error>> {
    let used: Vec<_> = usage.iter().map(handlers::on_usage::Used::from).collect();
    handler.call_usage(store, stamp, &used).await
}

impl From<Ruling> for rules::Ruling {
    fn from(ruling: Ruling) -> Self {
        match ruling {
            Ruling::None => Self::None,
            Ruling::Allow(limits) => Self::Allow(limits.into()),
            Ruling::Deny(why) => Self::Deny(why),
        }
    }
}

impl From<RuleLimits> for rules::Allowance {
    fn from(limits: RuleLimits) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            bytes_per_second: limits.bytes_per_second,
            max_bytes: limits.max_bytes,
            max_time_ms: limits.max_time.map(ms),
            idle_ms: limits.idle.map(ms),
        }
    }
}

impl From<&Usage> for handlers::on_usage::Used {
    fn from(usage: &Usage) -> Self {
        Self {
            peer: usage.peer.as_bytes().to_vec(),
            service: match usage.service {
                Service::Relay => handlers::on_usage::Service::Relay,
                Service::Exit => handlers::on_usage::Service::Exit,
            },
            bytes_in: usage.bytes_in,
            bytes_out: usage.bytes_out,
            since_ms: usage.since_ms,
            until_ms: usage.until_ms,
        }
    }
}
