//! Messages that an event sends: the node's checks, limits and words.

use wormholes_plugin::{Address, Error, ErrorCode, Identity, Letter, Place, Principal, Result};

use super::{ROW_BYTES, Transaction, quota};
use crate::{
    mail::{In, Out, OutKey, Row},
    net::Parcel,
};

/// The longest body.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Names of users, aliases, roles, labels and isolation keys.
const MAX_NAME_BYTES: usize = 128;

impl Transaction {
    /// A durable message; its id.
    pub(super) fn send(&mut self, mut letter: Letter) -> Result<u64> {
        let key = self.check_letter(&mut letter)?;
        let mail = &self.memory.mail;
        let channels = mail.outs.len();
        match mail.outs.get(&key) {
            None if channels >= self.ground.manifest.limits.channels => {
                return Err(quota("too many channels; raise limits.channels"));
            }
            Some(out) if out.halted.is_some() => {
                let halted = "the channel is halted; `messages.reopen` begins it anew";
                return Err(Error::new(ErrorCode::Unavailable, halted));
            }
            Some(out) if !out.rows.is_empty() && out.way != letter.way => {
                let other = "messages to this receiver still wait for another way (role, label, \
                             isolation)";
                return Err(Error::new(ErrorCode::Unavailable, other));
            }
            Some(_) | None => {}
        }
        let bytes = letter.body.len() + ROW_BYTES;
        if mail.outbox_bytes() + bytes > self.ground.manifest.limits.outbox_bytes() {
            return Err(quota(
                "too much waits for its receivers; raise limits.outbox_mib or send later",
            ));
        }
        self.charge(bytes)?;
        let id = self.next_message();
        let Letter {
            way,
            body,
            expires_ms,
            report,
            ..
        } = letter;
        let outs = &mut self.memory.mail.outs;
        if !outs.contains_key(&key) {
            outs.insert(key.clone(), Out::new(way.clone()));
        }
        if let Some(out) = outs.get_mut(&key) {
            out.way = way;
            out.push(Row {
                body: Some(body.into()),
                bytes,
                expires_ms,
                report: report.then_some(id),
            });
        }
        self.channels.insert(key);
        self.sent += 1;
        self.writes = true;
        Ok(id)
    }

    /// A message that may be lost.
    pub(super) fn post(&mut self, mut letter: Letter) -> Result<()> {
        self.check_letter(&mut letter)?;
        self.charge(letter.body.len() + ROW_BYTES)?;
        self.leave(letter, None);
        Ok(())
    }

    /// A question; its id.
    pub(super) fn question(&mut self, mut letter: Letter, deadline_ms: u64) -> Result<u64> {
        self.check_letter(&mut letter)?;
        self.check_questions()?;
        self.charge(letter.body.len() + ROW_BYTES)?;
        let id = self.next_message();
        self.memory.mail.questions.insert(id, deadline_ms, ());
        self.leave(letter, Some((id, deadline_ms)));
        Ok(id)
    }

    pub(super) fn check_questions(&self) -> Result<()> {
        if self.memory.mail.questions.len() >= self.ground.manifest.limits.requests {
            return Err(quota(
                "too many questions without an answer; raise limits.requests",
            ));
        }
        Ok(())
    }

    fn leave(&mut self, letter: Letter, ask: Option<(u64, u64)>) {
        self.sent += 1;
        let of = self.ground.principal.clone();
        self.parcels.push(Parcel::Letter { of, letter, ask });
    }

    /// Durable messages to a receiver that it has not confirmed.
    pub(super) fn waiting(&self, mut key: OutKey) -> u64 {
        self.settle(&mut key.to);
        let out = self.memory.mail.outs.get(&key);
        out.map_or(0, |out| u64::try_from(out.rows.len()).unwrap_or(u64::MAX))
    }

    /// Channels to and from a peer begin anew, if they are halted.
    pub(super) fn reopen(&mut self, mut key: OutKey) -> Result<()> {
        self.settle(&mut key.to);
        self.check_writable()?;
        self.check_key(&key)?;
        self.check_count()?;
        let mail = &mut self.memory.mail;
        let sends = mail.outs.get_mut(&key).is_some_and(Out::reopen);
        let receives = mail.ins.get_mut(&key.back()).is_some_and(In::reopen);
        if sends || receives {
            self.writes = true;
            self.sent += 1;
            self.channels.insert(key);
        }
        Ok(())
    }

    /// Questions that something durable may rest on are not forgotten with the node.
    pub(crate) fn keep_questions(&mut self) {
        if self.writes {
            let asked = self.parcels.iter().filter_map(|parcel| match parcel {
                Parcel::Letter { ask, .. } => ask.map(|(id, _)| id),
                Parcel::Handled { .. }
                | Parcel::Answer { .. }
                | Parcel::Fetch { .. }
                | Parcel::Socket { .. }
                | Parcel::Datagram { .. } => None,
            });
            self.memory.mail.kept_questions.extend(asked);
        }
    }

    pub(super) fn next_message(&mut self) -> u64 {
        self.memory.mail.last_message += 1;
        self.memory.mail.last_message
    }

    /// Says which channel it would go by.
    fn check_letter(&self, letter: &mut Letter) -> Result<OutKey> {
        self.check_writable()?;
        self.settle(&mut letter.to);
        let key = OutKey::new(&letter.to, &letter.protocol, &letter.way.sender);
        self.check_key(&key)?;
        let way = &letter.way;
        let texts = [&way.role, &way.label, &way.isolation];
        if texts.iter().any(|text| !is_text(text)) {
            return Err(Error::invalid(
                "role, label and isolation have at most 128 bytes and no control characters",
            ));
        }
        if letter.body.len() > MAX_BODY_BYTES {
            let long = "a message has at most 1 MiB; send a blob's hash instead";
            return Err(Error::invalid(long));
        }
        self.check_count()?;
        Ok(key)
    }

    fn check_count(&self) -> Result<()> {
        if self.sent >= self.ground.manifest.limits.messages {
            return Err(quota(
                "one event sends too much; raise limits.messages or send in parts",
            ));
        }
        Ok(())
    }

    /// This node has one name.
    fn settle(&self, to: &mut Address) {
        if to.place == Place::Node(self.ground.node_id) {
            to.place = Place::Here;
        }
    }

    fn check_key(&self, key: &OutKey) -> Result<()> {
        if !self
            .ground
            .manifest
            .messages
            .protocols
            .contains(&key.protocol)
        {
            return Err(Error::invalid(
                "the plugin does not speak this protocol; name it in `messages.protocols` of its \
                 manifest",
            ));
        }
        let Address {
            place,
            principal,
            plugin,
        } = &key.to;
        let is_user = match principal {
            Principal::Node => true,
            Principal::User(name) => !name.is_empty() && is_text(name),
        };
        if !is_user || plugin.is_empty() || !is_text(plugin) {
            let names = "names have 1 to 128 bytes and no control characters";
            return Err(Error::invalid(names));
        }
        if *place != Place::Here && **plugin != *self.ground.manifest.plugin.name {
            return Err(Error::invalid(
                "at another node only the instance of the same name can be written to",
            ));
        }
        if let Identity::Alias(name) = &key.sender
            && (name.is_empty() || !is_text(name) || !matches!(place, Place::Node(_)))
        {
            return Err(Error::invalid(
                "an alias has 1 to 128 bytes, no control characters, and writes to nodes",
            ));
        }
        Ok(())
    }
}

fn is_text(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control)
}
