//! What happens at a node, as subscribers are told.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::{RuleName, ScriptDiagnostic};
use crate::id::NodeId;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counts up by one from the daemon's start; a gap means that events were missed.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EventBody {
    /// A flow found a tunnel.
    FlowOpened {
        /// Its number.
        flow: u64,
        /// The kind of entrance.
        entrance: String,
        /// The target as asked for; none for observers.
        target: Option<String>,
        /// The kind of tunnel.
        tunnel: String,
        /// What decided; none is the default.
        rule: Option<RuleName>,
        /// From the request to the open tunnel.
        open_ms: u64,
    },
    /// An open flow went over to another tunnel.
    FlowMoved {
        /// Its number.
        flow: u64,
        /// The kind of tunnel before.
        from: String,
        /// The kind of tunnel.
        tunnel: String,
    },
    /// An open flow ended.
    FlowEnded {
        /// Its number.
        flow: u64,
        /// The kind of tunnel.
        tunnel: String,
        /// From the program to the target.
        bytes_sent: u64,
        /// From the target to the program.
        bytes_received: u64,
        /// How long it was open.
        duration_ms: u64,
        /// Why, when it was cut.
        error: Option<String>,
    },
    /// A flow did not open.
    FlowRefused {
        /// Its number.
        flow: u64,
        /// The kind of entrance.
        entrance: String,
        /// The target as asked for; none for observers.
        target: Option<String>,
        /// What decided; none is the default.
        rule: Option<RuleName>,
        /// Why; none for observers.
        why: Option<String>,
    },
    /// A connection with a peer stands.
    PeerUp {
        /// Its petname, or the beginning of its id.
        peer: String,
        /// Its id.
        #[schemars(with = "String")]
        id: NodeId,
    },
    /// The last connection with a peer ended.
    PeerDown {
        /// Its petname, or the beginning of its id.
        peer: String,
        /// Its id.
        #[schemars(with = "String")]
        id: NodeId,
        /// Why.
        reason: String,
    },
    /// New scripts are in force.
    ScriptLoaded {
        /// Their number.
        generation: u64,
        /// Their names, in order.
        scripts: Vec<String>,
    },
    /// Scripts could not be loaded; those before stay in force.
    ScriptFailed {
        /// What is wrong with them.
        diagnostics: Vec<ScriptDiagnostic>,
    },
    /// A script said `notify`.
    Notify {
        /// `info`, `warn` or `error`.
        level: String,
        /// Its words; none for observers.
        message: Option<String>,
    },
    /// The subscriber was too slow: so many events before this one were not sent to it.
    Missed {
        /// How many.
        count: u64,
    },
}

/// The kinds of events, to choose by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// See [`EventBody::FlowOpened`].
    FlowOpened,
    /// See [`EventBody::FlowMoved`].
    FlowMoved,
    /// See [`EventBody::FlowEnded`].
    FlowEnded,
    /// See [`EventBody::FlowRefused`].
    FlowRefused,
    /// See [`EventBody::PeerUp`].
    PeerUp,
    /// See [`EventBody::PeerDown`].
    PeerDown,
    /// See [`EventBody::ScriptLoaded`].
    ScriptLoaded,
    /// See [`EventBody::ScriptFailed`].
    ScriptFailed,
    /// See [`EventBody::Notify`].
    Notify,
}

/// Text that names no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such kind of event; there are: {}", EventKind::ALL.map(EventKind::as_str).join(", "))]
pub struct ParseEventKindError;

impl EventBody {
    /// Its kind; none is [`EventBody::Missed`], which no subscriber can leave out.
    pub fn kind(&self) -> Option<EventKind> {
        Some(match self {
            Self::FlowOpened { .. } => EventKind::FlowOpened,
            Self::FlowMoved { .. } => EventKind::FlowMoved,
            Self::FlowEnded { .. } => EventKind::FlowEnded,
            Self::FlowRefused { .. } => EventKind::FlowRefused,
            Self::PeerUp { .. } => EventKind::PeerUp,
            Self::PeerDown { .. } => EventKind::PeerDown,
            Self::ScriptLoaded { .. } => EventKind::ScriptLoaded,
            Self::ScriptFailed { .. } => EventKind::ScriptFailed,
            Self::Notify { .. } => EventKind::Notify,
            Self::Missed { .. } => return None,
        })
    }
}

impl Event {
    /// The event as an observer may see it: without what tells where flows go.
    pub fn for_observer(mut self) -> Self {
        match &mut self.body {
            EventBody::FlowOpened { target, .. } => *target = None,
            EventBody::FlowRefused { target, why, .. } => (*target, *why) = (None, None),
            EventBody::Notify { message, .. } => *message = None,
            EventBody::FlowEnded { error, .. } => {
                if error.is_some() {
                    *error = Some("cut".to_owned());
                }
            }
            EventBody::FlowMoved { .. }
            | EventBody::PeerUp { .. }
            | EventBody::PeerDown { .. }
            | EventBody::ScriptLoaded { .. }
            | EventBody::ScriptFailed { .. }
            | EventBody::Missed { .. } => {}
        }
        self
    }
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::FlowOpened,
        Self::FlowMoved,
        Self::FlowEnded,
        Self::FlowRefused,
        Self::PeerUp,
        Self::PeerDown,
        Self::ScriptLoaded,
        Self::ScriptFailed,
        Self::Notify,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FlowOpened => "flow-opened",
            Self::FlowMoved => "flow-moved",
            Self::FlowEnded => "flow-ended",
            Self::FlowRefused => "flow-refused",
            Self::PeerUp => "peer-up",
            Self::PeerDown => "peer-down",
            Self::ScriptLoaded => "script-loaded",
            Self::ScriptFailed => "script-failed",
            Self::Notify => "notify",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = ParseEventKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(ParseEventKindError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Event {
        Event {
            seq: 4,
            at_unix_ms: 1000,
            body: EventBody::FlowOpened {
                flow: 7,
                entrance: "socks5".to_owned(),
                target: Some("a.example:80".to_owned()),
                tunnel: "onion".to_owned(),
                rule: Some(RuleName {
                    script: "default.rhai".to_owned(),
                    line: 3,
                }),
                open_ms: 12,
            },
        }
    }

    /// Frozen: other builds and people's programs read these lines.
    #[test]
    fn events_keep_their_shape() {
        let text = r#"{"seq":4,"at_unix_ms":1000,"kind":"flow-opened","flow":7,"entrance":"socks5","target":"a.example:80","tunnel":"onion","rule":{"script":"default.rhai","line":3},"open_ms":12}"#;
        assert_eq!(serde_json::to_string(&opened()).unwrap(), text);
        assert_eq!(serde_json::from_str::<Event>(text).unwrap(), opened());
    }

    #[test]
    fn observers_do_not_see_where_flows_go() {
        let text = || "a.example".to_owned();
        let refused = EventBody::FlowRefused {
            flow: 7,
            entrance: "socks5".to_owned(),
            target: Some(text()),
            rule: None,
            why: Some(text()),
        };
        let ended = EventBody::FlowEnded {
            flow: 7,
            tunnel: "onion".to_owned(),
            bytes_sent: 1,
            bytes_received: 2,
            duration_ms: 3,
            error: Some(text()),
        };
        let notify = EventBody::Notify {
            level: "info".to_owned(),
            message: Some(text()),
        };
        for body in [opened().body, refused, ended, notify] {
            let event = Event { body, ..opened() };
            let shown = serde_json::to_string(&event.for_observer()).unwrap();
            assert!(!shown.contains("a.example"), "{shown}");
        }
    }

    #[test]
    fn kinds_have_one_spelling() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::json!(kind), kind.as_str());
        }
        assert!("flow".parse::<EventKind>().is_err());
    }
}
