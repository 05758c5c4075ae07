//! Cases beside a script: `NAME.test.rhai` says what `NAME.rhai` must decide.
//!
//! ```rhai
//! test("ads are blocked", || {
//!     set("ads", ["ads.example"]);
//!     let d = route(#{ host: "x.ads.example" });
//!     expect(d.blocks);
//!     expect(d.never("direct"));
//! });
//! ```
//! Each case begins with an empty world. Cases run within limits as scripts do; `scripts/README.md`
//! tells all that they may say.

mod answer;
mod bench;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

use self::bench::Bench;
use crate::{
    decision::Diagnostic,
    policy::{LoadEnv, Policy, ScriptSource},
    script::{
        self,
        limits::{Guard, Limits},
        lint::{Dialect, Fault},
    },
    sets::SetRegistry,
};

/// What cases may call beyond what scripts may.
const DIALECT: Dialect = Dialect {
    functions: &[
        "accept", "ask", "event", "exit", "expect", "init", "later", "never", "read", "route",
        "test",
    ],
    top_level: true,
};

/// What the name of a file of cases ends with.
const EXTENSION: &str = "test.rhai";

/// What became of a script's cases.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TestReport {
    /// The script.
    pub script: String,
    /// Every case that ran, in order.
    pub cases: Vec<CaseResult>,
    /// Faults of the script, or of its cases as a text; then nothing ran to the end.
    pub faults: Vec<Diagnostic>,
}

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaseResult {
    /// Its name.
    pub name: String,
    /// What was not as expected, with its place; none when all was.
    pub failure: Option<Diagnostic>,
    /// How long it took.
    pub took_us: u64,
}

impl TestReport {
    /// Whether every case ran and was as expected.
    pub fn passed(&self) -> bool {
        self.faults.is_empty() && self.cases.iter().all(|case| case.failure.is_none())
    }
}

/// Where the cases of a script are: `NAME.test.rhai` beside `NAME.rhai`.
pub fn cases_path(script: &Path) -> PathBuf {
    script.with_extension(EXTENSION)
}

/// Whether `path` names a file of cases.
pub fn is_cases_path(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(EXTENSION)
        .is_some_and(|name| name.ends_with('.'))
}

/// Runs `cases` against `script`, in a world of their own: no set, peer or kept value of the node
/// is seen or changed.
pub fn run_tests(script: &ScriptSource, cases: &ScriptSource) -> TestReport {
    let mut report = TestReport {
        script: script.name.clone(),
        ..TestReport::default()
    };
    let policy = match load(script) {
        Ok(policy) => policy,
        Err(faults) => {
            report.faults = faults;
            return report;
        }
    };
    let bench = Arc::new(Mutex::new(Bench::new(cases.name.clone(), policy)));
    let failed = run(cases, &bench).err();
    let mut bench = bench.lock().unwrap_or_else(PoisonError::into_inner);
    report.cases = std::mem::take(&mut bench.results);
    report.faults = failed.unwrap_or_default();
    if report.cases.is_empty() && report.faults.is_empty() {
        report
            .faults
            .push(cases.fault(Fault::nowhere("there is no test")));
    }
    report
}

/// Loads the script with every set that it names, empty: cases fill those that they need.
fn load(script: &ScriptSource) -> Result<Policy, Vec<Diagnostic>> {
    let mut sets = SetRegistry::default();
    if let Ok((_, found)) = script::Script::compile(&script.name, &script.text) {
        for (name, _) in found.sets.into_iter().chain(found.listed_sets) {
            // A set that cannot be added is told by the load below.
            let _ = sets.load(&name, "", "");
        }
    }
    let mut env = LoadEnv::default();
    env.surroundings.sets = sets.into();
    Policy::load(std::slice::from_ref(script), &env)
}

fn run(cases: &ScriptSource, bench: &Arc<Mutex<Bench>>) -> Result<(), Vec<Diagnostic>> {
    let told = |faults: Vec<Fault>| -> Vec<_> {
        faults.into_iter().map(|fault| cases.fault(fault)).collect()
    };
    let mut engine = script::new_engine(Limits::CASES);
    bench::register(&mut engine, bench);
    answer::register(&mut engine);
    script::check_source(&mut engine, &cases.text, DIALECT).map_err(told)?;
    let ast = engine
        .compile(&cases.text)
        .map_err(|error| vec![cases.fault(script::parse_fault(&error))])?;
    let _guard = Guard::start(Limits::CASES);
    let result = catch_unwind(AssertUnwindSafe(|| engine.run_ast(&ast)));
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(vec![script::run_error(&error).fault_of(&cases.name)]),
        Err(_) => Err(vec![
            cases.fault(Fault::nowhere("a function of the host failed")),
        ]),
    }
}
