//! What plugins and the node's rules have to do with each other: facts that scripts read, questions
//! that scripts answer, and traffic that they billed.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wormholes_proto::NodeId;

use crate::{
    event::{ErrorCode, Refusal},
    message::text,
};

/// The longest question.
const MAX_QUESTION_BYTES: usize = 16 << 10;
/// Objects and lists within each other, the outermost among them.
const MAX_DEPTH: usize = 8;
/// What a script bears of each, too.
const MAX_TEXT_BYTES: usize = 4 << 10;
const MAX_ITEMS: usize = 1024;
const MAX_ENTRIES: usize = 256;

/// What scripts read of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// `credit` of `p.credit`.
    #[serde(with = "text")]
    pub kind: Arc<str>,
    /// Whom it is about.
    pub peer: NodeId,
    /// The value, and until when it holds in milliseconds since 1970; none: it is taken back.
    pub value: Option<(i64, u64)>,
}

/// What a plugin asks the rules.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleQuestion {
    /// The instance.
    pub plugin: Arc<str>,
    /// The hook.
    pub hook: String,
    /// What the hook is handed.
    pub record: Map<String, Value>,
}

/// What the rules say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ruling {
    /// Nothing: the plugin's own default holds.
    None,
    /// Yes, within limits.
    Allow(RuleLimits),
    /// No, and why.
    Deny(String),
}

/// Limits of a yes; none: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleLimits {
    /// Bytes a second.
    pub bytes_per_second: Option<u64>,
    /// Bytes in all.
    pub max_bytes: Option<u64>,
    /// In all.
    pub max_time: Option<Duration>,
    /// Without anything that moves.
    pub idle: Option<Duration>,
}

/// What a node does for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Service {
    /// It carries ciphertext between two nodes.
    Relay,
    /// It dials targets.
    Exit,
}

/// Bytes that a script billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Whom.
    pub peer: NodeId,
    /// What for.
    pub service: Service,
    /// From whoever asked for it.
    pub bytes_in: u64,
    /// To whoever asked for it.
    pub bytes_out: u64,
    /// From when: milliseconds since 1970.
    pub since_ms: u64,
    /// To when.
    pub until_ms: u64,
}

/// Reads what a hook is to be handed.
///
/// # Errors
/// It is no object, or larger or deeper than scripts bear.
pub(crate) fn record(question: &str) -> Result<Map<String, Value>, Refusal> {
    let invalid = |rule: &str| Refusal::new(ErrorCode::Invalid, rule);
    if question.len() > MAX_QUESTION_BYTES {
        return Err(invalid("a question to the rules has at most 16 KiB"));
    }
    let question: Value = serde_json::from_str(question).unwrap_or_default();
    check(&question, MAX_DEPTH).map_err(invalid)?;
    let Value::Object(record) = question else {
        return Err(invalid("a question to the rules is a JSON object"));
    };
    Ok(record)
}

fn check(value: &Value, depth: usize) -> Result<(), &'static str> {
    const TEXT: &str = "a text in a question to the rules has at most 4 KiB";
    let text = |text: &str| (text.len() <= MAX_TEXT_BYTES).then_some(()).ok_or(TEXT);
    if depth == 0 && (value.is_array() || value.is_object()) {
        return Err("a question to the rules is at most eight levels deep");
    }
    match value {
        Value::String(word) => text(word),
        Value::Array(items) if items.len() > MAX_ITEMS => {
            Err("a list in a question to the rules has at most 1024 items")
        }
        Value::Array(items) => items.iter().try_for_each(|item| check(item, depth - 1)),
        Value::Object(entries) if entries.len() > MAX_ENTRIES => {
            Err("an object in a question to the rules has at most 256 entries")
        }
        Value::Object(entries) => entries.iter().try_for_each(|(key, value)| {
            text(key)?;
            check(value, depth - 1)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_an_object_that_scripts_bear() {
        let refused = |question: &str| record(question).unwrap_err().message;
        let told = record(r#"{"key": "k", "size": 9, "hops": [{"n": null}]}"#).unwrap();
        assert_eq!(told.len(), 3);
        assert!(refused("[1]").ends_with("is a JSON object"));
        assert!(refused("{").ends_with("is a JSON object"));
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(8), "]".repeat(8));
        assert!(refused(&deep).contains("eight levels"));
        assert!(record(&deep.replacen("[]", "1", 1)).is_ok(), "seven lists");
        let text = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_TEXT_BYTES + 1));
        assert!(refused(&text).contains("4 KiB"));
        let items = format!("{{\"a\":[{}0]}}", "0,".repeat(MAX_ITEMS));
        assert!(refused(&items).contains("1024 items"));
        let entries: String = (0..=MAX_ENTRIES).map(|n| format!("\"{n}\":0,")).collect();
        assert!(refused(&format!("{{{entries}\"x\":0}}")).contains("256 entries"));
        let long = format!("{{\"a\":[{}]}}", "\"\",".repeat(6000));
        assert!(refused(&long).contains("16 KiB"));
    }
}
