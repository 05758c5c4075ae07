//! Rule scripts: Rhai in, plan out. Pure and synchronous; the daemon does what a plan says.

mod api;
mod cases;
mod decision;
mod plan;
mod policy;
mod recording;
mod replay;
mod script;
mod sets;
mod state;
mod units;
mod verdict;
mod view;

pub use cases::{CaseResult, TestReport, cases_path, is_cases_path, run_tests};
pub use decision::{
    Decision, Diagnostic, Level, Message, Outcome, RuleRef, Trace, VerdictDecision,
};
pub use plan::{Jitter, Marks, Migrate, Plan, Step, Stick, Tunnel, TunnelKind};
pub use policy::{
    BUILD_LACKS_TOR, LACKS_I2P, LACKS_TOR, LoadEnv, Needs, Policy, ScriptSource, Surroundings,
    named_sets,
};
pub use recording::{Answer, Question, Reads, Recording};
pub use replay::{NotRecorded, Replayed};
pub use script::{
    hint::nearest,
    names::{HOOKS, check_asked_hook, check_fact},
};
pub use sets::{MAX_SET_ENTRIES, MAX_SETS, SetError, SetRegistry};
pub use state::{KeptValue, MAX_KEY_BYTES, MAX_KEYS, MAX_VALUE_BYTES, RuleState, StateError};
pub use verdict::{Allowance, Verdict};
pub use view::{Asked, Conn, ExitRequest, NodeView, RelayRequest, RuleEvent, Sni, World};
