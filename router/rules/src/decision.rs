//! What a run of the scripts yields: the answer, the rule that gave it, and what it read.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use wormholes_proto::control::{RuleName, ScriptDiagnostic};

use crate::{plan::Plan, recording::Reads, verdict::Verdict};

/// The answer to one flow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// What to do.
    pub outcome: Outcome,
    /// How it came about.
    pub trace: Trace,
}

/// What to do with a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "plan", rename_all = "lowercase")]
pub enum Outcome {
    /// Travel by this plan.
    Plan(Plan),
    /// Resolve the name through this plan, then ask again with `ip` filled.
    NeedIp(Plan),
    /// Read the flow's TLS ClientHello, then ask again with `sni` filled.
    NeedSni,
    /// No script answered: the default of config.toml holds.
    Pass,
}

/// The answer of `accept`, `relay` or `exit`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerdictDecision {
    /// The verdict; none when no script answered: config.toml alone decides.
    pub verdict: Option<Verdict>,
    /// How it came about.
    pub trace: Trace,
}

/// How an answer came about.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Trace {
    /// The rule that answered; none when no script did.
    pub rule: Option<RuleRef>,
    /// What the scripts read, in order, each once: name and value.
    pub because: Vec<(String, String)>,
    /// What `tag(key, value)` set.
    pub tags: Vec<(String, String)>,
    /// What `log(level, message)` wrote.
    pub log: Vec<Message>,
    /// What `notify(level, message)` wants a person to see.
    pub notifications: Vec<Message>,
    /// Why a script failed; the answer is then block or deny.
    pub error: Option<String>,
    /// All that the scripts read, for a replay; none when nobody keeps it.
    #[serde(skip)]
    pub reads: Option<Box<Reads>>,
    /// How long the scripts ran.
    pub took: Duration,
}

/// A place in a script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleRef {
    /// The script's name.
    pub script: String,
    /// The line of the call that made the plan or the verdict; 0 when it is not known.
    pub line: usize,
}

/// A line of a script's log, or a notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// How grave.
    pub level: Level,
    /// The text, at most 512 bytes.
    pub text: String,
}

/// How grave a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For the script's writer.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is off.
    Warn,
    /// Somebody must act.
    Error,
}

/// A fault of a script, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The script's name.
    pub script: String,
    /// From 1; 0 when the fault has no place.
    pub line: usize,
    /// From 1; 0 when the fault has no place.
    pub column: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ScriptDiagnostic::from(self).fmt(f)
    }
}

impl From<&Diagnostic> for ScriptDiagnostic {
    fn from(fault: &Diagnostic) -> Self {
        Self {
            script: fault.script.clone(),
            line: number(fault.line),
            column: number(fault.column),
            message: fault.message.clone(),
        }
    }
}

impl From<&RuleRef> for RuleName {
    fn from(rule: &RuleRef) -> Self {
        Self {
            script: rule.script.clone(),
            line: number(rule.line),
        }
    }
}

/// Of a line or a column; what is larger than any script is no place.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.script, self.line)
    }
}
