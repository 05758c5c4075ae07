//! Messages between principals: of this plugin at other nodes, and of other plugins here.

use std::{sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Context, Error, Principal, Result, Way, host, way::travels};

/// Where a principal is at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// This node.
    Here,
    /// Another node, by its id.
    Node([u8; 32]),
    /// Whoever holds this key; can be written to while connected to this node.
    Alias([u8; 32]),
}

/// Whom a message is for, or from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Where.
    pub place: Place,
    /// The instance there. At another node only the one of the same name can be written to.
    pub plugin: Arc<str>,
    /// Who of its principals.
    pub principal: Principal,
}

/// As whom a principal is known to another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// As this node.
    #[default]
    Node,
    /// As a key derived for this name, by which nobody learns which node it is.
    Alias(Arc<str>),
}

/// A message on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Whom it is for.
    pub to: Address,
    /// One of those that the manifest names.
    pub protocol: String,
    /// At most 1 MiB.
    pub body: Vec<u8>,
    /// How it travels.
    pub way: Way,
    /// Milliseconds since 1970: given up then, if it is sure that it did not arrive.
    pub expires_ms: Option<u64>,
    /// Whether [`Plugin::report`](crate::Plugin::report) tells what became of it.
    pub report: bool,
}

/// A message that somebody sent here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Who.
    pub from: Address,
    /// As whom this principal was written to: answer as the same.
    pub own: Identity,
    /// One of those that the manifest names.
    pub protocol: String,
    /// Whether it comes exactly once and in order.
    pub durable: bool,
    /// What it says.
    pub body: Vec<u8>,
}

/// What became of a durable message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver handled it.
    Delivered,
    /// The receiver's handler said no, or failed for good.
    Refused(Error),
    /// It was given up, and surely was not handled.
    Expired,
}

/// Why nothing more moves on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Halt {
    /// This node has forgotten what the other one remembers: an older copy of its store runs.
    WeWentBack,
    /// The other node has.
    TheyWentBack,
    /// The receiver's plugin failed on a message, and its manifest says `poison = "halt"`.
    Poison,
    /// The other end began the channel anew, and this one has not yet.
    Reopened,
    /// One that a newer build of the other end names.
    Other,
}

impl Address {
    /// The same plugin's node principal at another node.
    pub fn node(cx: &Context, id: [u8; 32]) -> Self {
        Self {
            place: Place::Node(id),
            plugin: cx.instance().into(),
            principal: Principal::Node,
        }
    }
}

impl Letter {
    /// A message; it travels as the rules say for this plugin.
    pub fn new(to: Address, protocol: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            to,
            protocol: protocol.to_owned(),
            body: body.into(),
            way: Way::default(),
            expires_ms: None,
            report: false,
        }
    }

    /// A message with a value; [`Incoming::read`] gives it back.
    ///
    /// # Errors
    /// [`Failed`](crate::ErrorCode::Failed): the value cannot be written.
    pub fn with<T: Serialize + ?Sized>(to: Address, protocol: &str, value: &T) -> Result<Self> {
        let body = postcard::to_allocvec(value);
        let body = body.map_err(|error| Error::failed(error.to_string()))?;
        Ok(Self::new(to, protocol, body))
    }

    /// The receiver sees this principal so.
    #[must_use]
    pub fn sender(mut self, own: Identity) -> Self {
        self.way.sender = own;
        self
    }

    /// The receiver sees this alias instead of the node.
    #[must_use]
    pub fn alias(mut self, name: &str) -> Self {
        self.way.sender = Identity::Alias(name.into());
        self
    }

    /// It is given up after this, if it is sure that it did not arrive.
    #[must_use]
    pub fn expires(mut self, cx: &Context, after: Duration) -> Self {
        self.expires_ms = Some(cx.later(after));
        self
    }

    /// [`Plugin::report`](crate::Plugin::report) tells what became of it.
    #[must_use]
    pub fn report(mut self) -> Self {
        self.report = true;
        self
    }

    /// Sends it in order and exactly once, over crashes of both nodes; its id, for the report.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): too much waits;
    /// [`Unavailable`](crate::ErrorCode::Unavailable): messages to the receiver wait for another way,
    /// or the channel is halted.
    pub fn send(self, _: &mut Context) -> Result<u64> {
        host::with(|host| host.send(self))
    }

    /// Sends it at most once, and perhaps never.
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): a limit of the event.
    pub fn post(self, _: &mut Context) -> Result<()> {
        host::with(|host| host.post(self))
    }

    /// Asks the receiver's [`Plugin::request`](crate::Plugin::request); the id of the one
    /// [`Plugin::answer`](crate::Plugin::answer).
    ///
    /// # Errors
    /// [`Quota`](crate::ErrorCode::Quota): too many questions are open.
    pub fn ask(self, cx: &mut Context, patience: Duration) -> Result<u64> {
        let deadline = cx.later(patience);
        host::with(|host| host.ask(self, deadline))
    }
}

travels!(Letter, "It shares no flow with messages of another key.");

impl Incoming {
    /// The value that [`Letter::with`] wrote.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorCode::Invalid): it is of another type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        let value = postcard::from_bytes(&self.body);
        value.map_err(|_| Error::invalid("the message is not what its protocol says"))
    }
}
