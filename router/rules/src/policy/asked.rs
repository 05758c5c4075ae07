//! Hooks that plugins ask: functions of one parameter, by names that config.toml grants.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use rhai::{Array, Dynamic, Map};
use serde_json::Value;

use super::{Policy, ScriptSource};
use crate::{
    decision::{Diagnostic, VerdictDecision},
    script::{
        Script,
        ground::Ground,
        hint::nearest,
        line_of,
        lint::{Fault, Found},
    },
    view::{Asked, World},
};

impl Policy {
    /// Asks a hook for a plugin. None, where no script has it, or all pass: the plugin's own default
    /// holds. A script that fails denies.
    pub fn asked(&self, asked: &Asked, world: &Arc<World>) -> VerdictDecision {
        self.asked_on(&self.ground(world), asked)
    }

    /// The same with a record that is a script's value already.
    pub(crate) fn asked_with(
        &self,
        hook: &str,
        record: Map,
        world: &Arc<World>,
        now: SystemTime,
    ) -> VerdictDecision {
        let ground = self.ground(world);
        self.verdict_with(&ground, hook, |_| record.clone().into(), now)
    }

    /// The same of scripts that stand on `ground`.
    pub(crate) fn asked_on(&self, ground: &Arc<Ground>, asked: &Asked) -> VerdictDecision {
        let record = record(&asked.record);
        self.verdict_with(ground, &asked.name, |_| record.clone(), asked.now)
    }
}

/// Functions that are meant for a plugin's question, and cannot be asked it.
pub(super) fn faults<'a>(
    source: &'a ScriptSource,
    script: &'a Script,
    found: &'a Found,
    asked: &'a BTreeSet<String>,
) -> impl Iterator<Item = Diagnostic> + 'a {
    let is_defined = |hook: &&String| found.functions.contains_key(*hook);
    let wrong = asked.iter().filter(is_defined);
    let wrong = wrong.filter(|hook| !script.has(hook)).map(|hook| {
        let message = format!("the hook `{hook}`, which a plugin asks, takes 1 argument");
        (hook.as_str(), message)
    });
    let uncalled = found.uncalled.iter();
    let uncalled = uncalled.filter(|name| !asked.contains(*name));
    let misspelt = uncalled.filter_map(|name| {
        let hook = nearest(name, asked.iter().map(String::as_str))?;
        let message =
            format!("nothing calls `{name}`; did you mean the hook `{hook}`, which a plugin asks?");
        Some((name.as_str(), message))
    });
    wrong.chain(misspelt).map(|(name, message)| Diagnostic {
        script: source.name.clone(),
        line: line_of(&source.text, name),
        column: 0,
        message,
    })
}

/// Bills that nobody gets.
pub(super) fn unheard<'a>(
    source: &'a ScriptSource,
    found: &'a Found,
    is_billed: bool,
) -> impl Iterator<Item = Diagnostic> + 'a {
    let bills = found.bills.iter().filter(move |_| !is_billed);
    bills.map(|position| {
        let message = "no plugin is told what this bills: grant `usage` to one".to_owned();
        let position = *position;
        source.fault(Fault { position, message })
    })
}

/// What scripts read. Whoever asks has bounded it.
fn record(record: &serde_json::Map<String, Value>) -> Dynamic {
    let entries = record.iter();
    let map: Map = entries
        .map(|(key, value)| (key.as_str().into(), dynamic(value)))
        .collect();
    map.into()
}

fn dynamic(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(is) => (*is).into(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            (None, Some(fraction)) => fraction.into(),
            (None, None) => Dynamic::UNIT,
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(dynamic).collect::<Array>().into(),
        Value::Object(entries) => record(entries),
    }
}
