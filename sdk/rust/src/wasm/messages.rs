//! Messages: the imports that send them, and the exports that hear of them.

use super::{
    Exports, Held,
    bindings::{
        exports::wormholes::plugin::on_message,
        wormholes::plugin::{messages, types},
    },
    told,
};
use crate::{
    Error, Principal, Result, Way,
    message::{Address, Halt, Identity, Incoming, Letter, Outcome, Place},
};

pub(super) fn send(letter: Letter) -> Result<u64> {
    let keeping = messages::Keeping {
        expires_ms: letter.expires_ms,
        report: letter.report,
    };
    let (to, way) = (letter.to.into(), letter.way.into());
    let sent = messages::send(&to, &letter.protocol, &letter.body, &way, keeping);
    sent.map_err(Error::from)
}

pub(super) fn post(letter: Letter) -> Result<()> {
    let (to, way) = (letter.to.into(), letter.way.into());
    messages::post(&to, &letter.protocol, &letter.body, &way).map_err(Error::from)
}

pub(super) fn ask(letter: Letter, deadline_ms: u64) -> Result<u64> {
    let (to, way) = (letter.to.into(), letter.way.into());
    let asked = messages::ask(&to, &letter.protocol, &letter.body, &way, deadline_ms);
    asked.map_err(Error::from)
}

pub(super) fn waiting(to: &Address, protocol: &str, sender: &Identity) -> u64 {
    messages::waiting(&to.clone().into(), protocol, &sender.clone().into())
}

pub(super) fn reopen(peer: &Address, protocol: &str, sender: &Identity) -> Result<()> {
    let reopened = messages::reopen(&peer.clone().into(), protocol, &sender.clone().into());
    reopened.map_err(Error::from)
}

pub(super) fn alias_key(name: &str) -> [u8; 32] {
    messages::alias_key(name).try_into().unwrap_or_default()
}

impl<P: Held> on_message::Guest for Exports<P> {
    fn message(
        event: types::Event,
        message: on_message::Incoming,
    ) -> std::result::Result<(), types::Error> {
        let message = Incoming {
            from: message.from.into(),
            own: message.own.into(),
            protocol: message.protocol,
            durable: message.durable,
            body: message.body,
        };
        told(P::with(|plugin| plugin.message(&mut event.into(), message)))
    }

    fn gap(
        event: types::Event,
        from: types::Address,
        own: types::Identity,
        protocol: String,
        messages: u64,
    ) -> std::result::Result<(), types::Error> {
        told(P::with(|plugin| {
            let (from, own) = (from.into(), own.into());
            plugin.gap(&mut event.into(), &from, &own, &protocol, messages)
        }))
    }

    fn report(
        event: types::Event,
        id: u64,
        outcome: on_message::Outcome,
    ) -> std::result::Result<(), types::Error> {
        let outcome = match outcome {
            on_message::Outcome::Delivered => Outcome::Delivered,
            on_message::Outcome::Refused(error) => Outcome::Refused(error.into()),
            on_message::Outcome::Expired => Outcome::Expired,
        };
        told(P::with(|plugin| {
            plugin.report(&mut event.into(), id, outcome)
        }))
    }

    fn answer(
        event: types::Event,
        id: u64,
        answer: std::result::Result<Vec<u8>, types::Error>,
    ) -> std::result::Result<(), types::Error> {
        let answer = answer.map_err(Error::from);
        told(P::with(|plugin| {
            plugin.answer(&mut event.into(), id, answer)
        }))
    }

    fn halted(
        event: types::Event,
        peer: types::Address,
        own: types::Identity,
        protocol: String,
        reason: on_message::Halt,
    ) -> std::result::Result<(), types::Error> {
        let reason = match reason {
            on_message::Halt::WeWentBack => Halt::WeWentBack,
            on_message::Halt::TheyWentBack => Halt::TheyWentBack,
            on_message::Halt::Poison => Halt::Poison,
            on_message::Halt::Reopened => Halt::Reopened,
            on_message::Halt::Other => Halt::Other,
        };
        told(P::with(|plugin| {
            let (peer, own) = (peer.into(), own.into());
            plugin.halted(&mut event.into(), &peer, &own, &protocol, reason)
        }))
    }
}

impl From<types::Address> for Address {
    fn from(address: types::Address) -> Self {
        let key = |key: Vec<u8>| key.try_into().unwrap_or_default();
        Self {
            place: match address.place {
                types::Place::Here => Place::Here,
                types::Place::Node(id) => Place::Node(key(id)),
                types::Place::Alias(id) => Place::Alias(key(id)),
            },
            plugin: address.plugin.into(),
            principal: address.principal.into(),
        }
    }
}

impl From<Address> for types::Address {
    fn from(address: Address) -> Self {
        Self {
            place: match address.place {
                Place::Here => types::Place::Here,
                Place::Node(id) => types::Place::Node(id.to_vec()),
                Place::Alias(id) => types::Place::Alias(id.to_vec()),
            },
            plugin: address.plugin.to_string(),
            principal: match address.principal {
                Principal::Node => types::Principal::Node,
                Principal::User(name) => types::Principal::User(name.to_string()),
            },
        }
    }
}

impl From<Way> for messages::Way {
    fn from(way: Way) -> Self {
        Self {
            sender: way.sender.into(),
            role: way.role,
            label: way.label,
            isolation: way.isolation,
        }
    }
}

impl From<Identity> for types::Identity {
    fn from(own: Identity) -> Self {
        match own {
            Identity::Node => Self::Node,
            Identity::Alias(name) => Self::Alias(name.to_string()),
        }
    }
}

impl From<types::Identity> for Identity {
    fn from(own: types::Identity) -> Self {
        match own {
            types::Identity::Node => Self::Node,
            types::Identity::Alias(name) => Self::Alias(name.into()),
        }
    }
}
