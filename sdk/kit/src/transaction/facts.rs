//! Facts that an event publishes, and questions to the rules.

use std::{collections::BTreeMap, fmt, rc::Rc};

use serde_json::Value;
use wormholes_plugin::{Error, Principal, Result, Ruling};

use super::{ROW_BYTES, Transaction, quota};

const MAX_TTL_MS: u64 = 86_400_000;
const KEY_BYTES: usize = 32;
const MAX_QUESTION_BYTES: usize = 16 << 10;
const MAX_DEPTH: usize = 8;
const MAX_TEXT_BYTES: usize = 4 << 10;
const MAX_ITEMS: usize = 1024;
const MAX_ENTRIES: usize = 256;

/// What a hook answers to a question.
type Rule = Rc<dyn Fn(&Value) -> Ruling>;

/// What the rules of a node answer, by hook; a hook that is not here, none has.
#[derive(Clone, Default)]
pub(crate) struct Rules(pub(crate) Rc<BTreeMap<String, Rule>>);

impl Transaction {
    pub(super) fn set_fact(
        &mut self,
        kind: &str,
        peer: &[u8; 32],
        value: i64,
        ttl_ms: u64,
    ) -> Result<()> {
        self.check_fact(kind)?;
        if !(1..=MAX_TTL_MS).contains(&ttl_ms) {
            let rule = "a fact lasts 1 ms to a day; publish it again before it ends";
            return Err(Error::invalid(rule));
        }
        let now_ms = self.ground.now_ms;
        let place = (kind.to_owned(), *peer);
        let (facts, most) = (&mut self.memory.facts, self.ground.manifest.limits.facts);
        // Those whose time is over make room.
        if facts.len() >= most {
            facts.retain(|_, (_, until_ms)| *until_ms > now_ms);
        }
        if !facts.contains_key(&place) && facts.len() >= most {
            return Err(quota("too many facts; raise limits.facts or clear some"));
        }
        self.charge(kind.len() + KEY_BYTES + ROW_BYTES)?;
        self.memory.facts.insert(place, (value, now_ms + ttl_ms));
        Ok(())
    }

    pub(super) fn clear_fact(&mut self, kind: &str, peer: &[u8; 32]) -> Result<()> {
        self.check_fact(kind)?;
        self.charge(kind.len() + KEY_BYTES + ROW_BYTES)?;
        self.memory.facts.remove(&(kind.to_owned(), *peer));
        Ok(())
    }

    fn check_fact(&self, kind: &str) -> Result<()> {
        self.check_writable()?;
        if self.ground.principal != Principal::Node {
            let node = "facts are the node's: send what you know to its principal";
            return Err(Error::denied(node));
        }
        if !self.ground.manifest.capabilities.facts.contains(kind) {
            return Err(not_granted("facts", kind));
        }
        Ok(())
    }

    pub(super) fn ask_rules(&self, hook: &str, question: &str) -> Result<Ruling> {
        if !self.ground.manifest.capabilities.rules.contains(hook) {
            return Err(not_granted("rules", hook));
        }
        if question.len() > MAX_QUESTION_BYTES {
            return Err(Error::invalid("a question to the rules has at most 16 KiB"));
        }
        let question: Value = serde_json::from_str(question)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| Error::invalid("a question to the rules is a JSON object"))?;
        check(&question, MAX_DEPTH).map_err(Error::invalid)?;
        let rule = self.ground.rules.0.get(hook);
        Ok(rule.map_or(Ruling::None, |rule| rule(&question)))
    }
}

/// As a node bounds what scripts are handed.
fn check(value: &Value, depth: usize) -> std::result::Result<(), &'static str> {
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

fn not_granted(capability: &str, name: &str) -> Error {
    Error::denied(format!(
        "`{name}` is not among the `{capability}` that the manifest asks for and config.toml grants"
    ))
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
