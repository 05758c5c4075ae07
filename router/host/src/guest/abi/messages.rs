//! Messages: the imports that send them, and the handlers that hear of them.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::Store;
use wormholes_proto::NodeId;

use super::{
    Answer, State, handlers, told, types,
    wormholes::plugin::messages::{Host, Keeping, Way as GivenWay},
};
use crate::{
    event::{Content, ErrorCode, Event, Principal, Refusal},
    mail::{alias, public},
    message::{Address, Fate, HaltReason, Identity, Letter, Note, OutKey, Place, Way},
    transaction,
};

impl Host for State {
    fn send(
        &mut self,
        to: types::Address,
        protocol: String,
        body: Vec<u8>,
        way: GivenWay,
        keeping: Keeping,
    ) -> Answer<u64> {
        let keeping = transaction::Keeping {
            expires_ms: keeping.expires_ms,
            report: keeping.report,
        };
        match letter(to, protocol, body, way) {
            Ok(letter) => Ok(told(self.event()?.send(letter, keeping)?)),
            Err(refusal) => Ok(told(Err(refusal))),
        }
    }

    fn post(
        &mut self,
        to: types::Address,
        protocol: String,
        body: Vec<u8>,
        way: GivenWay,
    ) -> Answer<()> {
        let event = self.event()?;
        let posted = letter(to, protocol, body, way).and_then(|letter| event.post(letter));
        Ok(told(posted))
    }

    fn ask(
        &mut self,
        to: types::Address,
        protocol: String,
        body: Vec<u8>,
        way: GivenWay,
        deadline_ms: u64,
    ) -> Answer<u64> {
        let event = self.event()?;
        let letter = letter(to, protocol, body, way);
        Ok(told(
            letter.and_then(|letter| event.question(letter, deadline_ms)),
        ))
    }

    fn waiting(
        &mut self,
        to: types::Address,
        protocol: String,
        sender: types::Identity,
    ) -> wasmtime::Result<u64> {
        let event = self.event()?;
        match key(to, &protocol, sender) {
            Ok(key) => Ok(event.waiting(key)?),
            Err(_) => Ok(0),
        }
    }

    fn reopen(
        &mut self,
        peer: types::Address,
        protocol: String,
        sender: types::Identity,
    ) -> Answer<()> {
        match key(peer, &protocol, sender) {
            Ok(key) => Ok(told(self.event()?.reopen(key)?)),
            Err(refusal) => Ok(told(Err(refusal))),
        }
    }

    fn alias_key(&mut self, name: String) -> wasmtime::Result<Vec<u8>> {
        let plugin = Arc::clone(&self.plugin);
        let network = plugin.around.network.as_deref();
        let network = network.ok_or_else(|| wasmtime::Error::msg("there is no node"))?;
        let key = self.event()?.public_call(|event| {
            let pair = alias(network, &plugin.name, &event.stamp().principal, &name);
            Ok(Ok(public(&pair).as_bytes().to_vec()))
        });
        Ok(key?.unwrap_or_default())
    }
}

/// Hands an event about messages to its handler.
pub(in crate::guest) async fn call_message(
    handler: &handlers::on_message::Guest,
    store: &mut Store<State>,
    event: &Event,
    stamp: &types::Event,
) -> wasmtime::Result<Result<(), types::Error>> {
    match event {
        Event::Message(incoming) => {
            let (from, own) = ((&incoming.from).into(), (&incoming.own).into());
            let protocol = &incoming.protocol;
            match &incoming.content {
                Content::Message(body) => {
                    let message = handlers::on_message::Incoming {
                        from,
                        own,
                        protocol: protocol.to_string(),
                        durable: incoming.delivery.is_some(),
                        body: body.to_vec(),
                    };
                    handler.call_message(store, stamp, &message).await
                }
                Content::Gap(messages) => {
                    let messages = (*messages).into();
                    handler
                        .call_gap(store, stamp, &from, &own, protocol, messages)
                        .await
                }
            }
        }
        Event::Note { note, .. } => match &**note {
            Note::Report { id, fate } => handler.call_report(store, stamp, *id, &fate.into()).await,
            Note::Halted {
                peer,
                own,
                protocol,
                reason,
            } => {
                let (peer, own, reason) = (peer.into(), own.into(), (*reason).into());
                handler
                    .call_halted(store, stamp, &peer, &own, protocol, reason)
                    .await
            }
        },
        Event::Answer { id, answer } => {
            let answer = answer.clone().map(Vec::from).map_err(types::Error::from);
            let answer = answer.as_ref().map(Vec::as_slice).map_err(Clone::clone);
            let answer = answer.map(<[u8]>::to_vec);
            handler
                .call_answer(store, stamp, *id, answer.as_deref())
                .await
        }
        Event::Migrate { .. }
        | Event::Init(_)
        | Event::Timer { .. }
        | Event::Request(_)
        | Event::Canceled { .. }
        | Event::Fetched { .. }
        | Event::Socket { .. }
        | Event::Datagram(_)
        | Event::Presence { .. }
        | Event::BlobFetched { .. }
        | Event::Usage(_) => Ok(Ok(())),
    }
}

fn letter(
    to: types::Address,
    protocol: String,
    body: Vec<u8>,
    way: GivenWay,
) -> Result<Letter, Refusal> {
    Ok(Letter {
        key: key(to, &protocol, way.sender)?,
        way: Way {
            role: shared(way.role),
            label: shared(way.label),
            isolation: shared(way.isolation),
        },
        body: Bytes::from(body),
    })
}

/// Most ways have no words, which need no memory.
fn shared(text: String) -> Arc<str> {
    match text.is_empty() {
        true => Arc::default(),
        false => text.into(),
    }
}

fn key(to: types::Address, protocol: &str, sender: types::Identity) -> Result<OutKey, Refusal> {
    Ok(OutKey {
        to: address(to)?,
        protocol: protocol.into(),
        sender: match sender {
            types::Identity::Node => Identity::Node,
            types::Identity::Alias(name) => Identity::Alias(name.into()),
        },
    })
}

/// # Errors
/// It is none.
pub(super) fn public_key(key: Vec<u8>) -> Result<NodeId, Refusal> {
    let key = key
        .try_into()
        .map_err(|_| Refusal::new(ErrorCode::Invalid, "a public key has 32 bytes"))?;
    Ok(NodeId::from_bytes(key))
}

pub(super) fn address(given: types::Address) -> Result<Address, Refusal> {
    Ok(Address {
        place: match given.place {
            types::Place::Here => Place::Here,
            types::Place::Node(id) => Place::Node(public_key(id)?),
            types::Place::Alias(id) => Place::Alias(public_key(id)?),
        },
        plugin: given.plugin.into(),
        principal: match given.principal {
            types::Principal::Node => Principal::Node,
            types::Principal::User(name) => Principal::User(Arc::from(name)),
        },
    })
}

impl From<&Address> for types::Address {
    fn from(address: &Address) -> Self {
        Self {
            place: match &address.place {
                Place::Here => types::Place::Here,
                Place::Node(id) => types::Place::Node(id.as_bytes().to_vec()),
                Place::Alias(id) => types::Place::Alias(id.as_bytes().to_vec()),
            },
            plugin: address.plugin.to_string(),
            principal: (&address.principal).into(),
        }
    }
}

impl From<&Identity> for types::Identity {
    fn from(own: &Identity) -> Self {
        match own {
            Identity::Node => Self::Node,
            Identity::Alias(name) => Self::Alias(name.to_string()),
        }
    }
}

impl From<&Fate> for handlers::on_message::Outcome {
    fn from(fate: &Fate) -> Self {
        match fate {
            Fate::Delivered => Self::Delivered,
            Fate::Refused(refusal) => Self::Refused(refusal.clone().into()),
            Fate::Expired => Self::Expired,
        }
    }
}

impl From<HaltReason> for handlers::on_message::Halt {
    fn from(reason: HaltReason) -> Self {
        match reason {
            HaltReason::WeWentBack => Self::WeWentBack,
            HaltReason::TheyWentBack => Self::TheyWentBack,
            HaltReason::Poison => Self::Poison,
            HaltReason::Reopened => Self::Reopened,
            HaltReason::Other => Self::Other,
        }
    }
}
