//! Questions to the rules, and the exports that hear of peers and of what was billed.

use std::time::Duration;

use super::{
    Exports, Held,
    bindings::{
        exports::wormholes::plugin::{on_presence, on_usage},
        wormholes::plugin::{rules, types},
    },
    told,
};
use crate::{Allowance, Error, Result, Ruling, Service, Usage};

pub(super) fn ask(hook: &str, question: &str) -> Result<Ruling> {
    Ok(match rules::ask(hook, question).map_err(Error::from)? {
        rules::Ruling::None => Ruling::None,
        rules::Ruling::Allow(allowance) => Ruling::Allow(Allowance {
            bytes_per_second: allowance.bytes_per_second,
            max_bytes: allowance.max_bytes,
            max_time: allowance.max_time_ms.map(Duration::from_millis),
            idle: allowance.idle_ms.map(Duration::from_millis),
        }),
        rules::Ruling::Deny(why) => Ruling::Deny(why),
    })
}

impl<P: Held> on_presence::Guest for Exports<P> {
    fn presence(
        event: types::Event,
        peer: types::PublicKey,
        online: bool,
        trust: u8,
    ) -> std::result::Result<(), types::Error> {
        told(P::with(|plugin| {
            let peer = peer.try_into().unwrap_or_default();
            plugin.presence(&mut event.into(), peer, online, trust)
        }))
    }
}

impl<P: Held> on_usage::Guest for Exports<P> {
    fn usage(
        event: types::Event,
        usage: Vec<on_usage::Used>,
    ) -> std::result::Result<(), types::Error> {
        let usage = usage.into_iter().map(|used| Usage {
            peer: used.peer.try_into().unwrap_or_default(),
            service: match used.service {
                on_usage::Service::Relay => Service::Relay,
                on_usage::Service::Exit => Service::Exit,
            },
            bytes_in: used.bytes_in,
            bytes_out: used.bytes_out,
            since_ms: used.since_ms,
            until_ms: used.until_ms,
        });
        let usage = usage.collect();
        told(P::with(|plugin| plugin.usage(&mut event.into(), usage)))
    }
}
