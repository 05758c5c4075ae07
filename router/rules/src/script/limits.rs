//! What bounds a running script.
//!
//! Rhai counts operations, depth and the size of each value, but looks at neither the clock nor
//! the sum of all values. Both are added here: a bound on the time that it runs, and a budget of
//! bytes, charged when a variable that holds an array or a map is read, because a read
//! may copy it. Bytes that no variable holds are bounded by the size of one value.

use std::{
    cell::Cell,
    thread,
    time::{Duration, Instant},
};

use rhai::{Array, Dynamic, Engine, EvalAltResult, EvalContext, Map, Position};

/// How long and how far one call may run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) run_time: Duration,
    pub(crate) copied_bytes: usize,
    pub(crate) operations: u64,
}

impl Limits {
    /// One decision. Rules that people write take 10 to 60 us and some hundred operations.
    pub(crate) const DECISION: Self = Self {
        run_time: Duration::from_millis(20),
        copied_bytes: 8 << 20,
        operations: 50_000,
    };
    /// All cases of one script together.
    pub(crate) const CASES: Self = Self {
        run_time: Duration::from_secs(5),
        copied_bytes: 256 << 20,
        operations: 5_000_000,
    };
}

/// Why a script ended that ran too long.
pub(crate) const OUT_OF_TIME: &str = "took too long";

/// Rhai's own functions are linear in a string at best and quadratic at worst.
const MAX_STRING_BYTES: usize = 4096;
const MAX_ARRAY_ITEMS: usize = 1024;
const MAX_MAP_ENTRIES: usize = 256;
/// With `MAX_VARIABLES`, what a recursion can hold: 16 * 48 values.
const MAX_CALL_DEPTH: usize = 16;
const MAX_VARIABLES: usize = 48;
const MAX_FUNCTIONS: usize = 128;
/// Each level takes about a kilobyte of stack when it is parsed and when it runs.
const MAX_EXPRESSION_DEPTH: usize = 48;
/// The clock is asked once in so many operations: asking costs about half of one.
const OPERATIONS_PER_LOOK: u64 = 4;
/// The longest time between two looks that counts. No four operations take longer; when more has
/// passed, the machine ran something else, and a decent script is not to pay for that.
const MAX_TIME_BETWEEN_LOOKS: Duration = Duration::from_millis(2);
/// A script that runs longer lets other threads of its processor go first, and again after as much
/// more: the system would let it finish its slice, some milliseconds.
const TURN: Duration = Duration::from_micros(100);

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

#[derive(Debug, Clone, Copy)]
struct Running {
    last_look: Instant,
    ran: Duration,
    run_time: Duration,
    bytes_left: usize,
}

/// A call's limits hold on this thread until this is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    before: Option<Running>,
}

impl Guard {
    pub(crate) fn start(limits: Limits) -> Self {
        let running = Running {
            last_look: Instant::now(),
            ran: Duration::ZERO,
            run_time: limits.run_time,
            bytes_left: limits.copied_bytes,
        };
        Self {
            before: RUNNING.replace(Some(running)),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        RUNNING.set(self.before);
    }
}

/// Sets every limit of `engine`.
pub(crate) fn apply(engine: &mut Engine, limits: Limits) {
    engine
        .set_max_operations(limits.operations)
        .set_max_string_size(MAX_STRING_BYTES)
        .set_max_array_size(MAX_ARRAY_ITEMS)
        .set_max_map_size(MAX_MAP_ENTRIES)
        .set_max_call_levels(MAX_CALL_DEPTH)
        .set_max_variables(MAX_VARIABLES)
        .set_max_functions(MAX_FUNCTIONS)
        .set_max_expr_depths(MAX_EXPRESSION_DEPTH, MAX_EXPRESSION_DEPTH)
        .set_max_modules(0)
        .set_max_strings_interned(0)
        .set_strict_variables(true)
        .set_fail_on_invalid_map_property(true);
    engine.on_progress(|operations| {
        (operations % OPERATIONS_PER_LOOK == 0 && is_late()).then(|| OUT_OF_TIME.into())
    });
    #[expect(
        deprecated,
        reason = "marked so because it may change, and Cargo.lock pins it"
    )]
    engine.on_var(|name, _, context| charge_variable(name, &context));
}

/// Looks at the clock, and adds what has passed to the time that the script ran.
fn is_late() -> bool {
    let Some(mut running) = RUNNING.get() else {
        return false;
    };
    let now = Instant::now();
    let passed = now.duration_since(running.last_look);
    let before = running.ran;
    running.last_look = now;
    running.ran += passed.min(MAX_TIME_BETWEEN_LOOKS);
    if turns(running.ran) > turns(before) {
        thread::yield_now();
        running.last_look = Instant::now();
    }
    RUNNING.set(Some(running));
    running.ran > running.run_time
}

fn turns(ran: Duration) -> u128 {
    ran.as_nanos() / TURN.as_nanos()
}

fn charge_variable(
    name: &str,
    context: &EvalContext,
) -> Result<Option<Dynamic>, Box<EvalAltResult>> {
    let Some(value) = context.scope().get(name) else {
        return Ok(None);
    };
    if !value.is_array() && !value.is_map() {
        return Ok(None);
    }
    let Some(mut running) = RUNNING.get() else {
        return Ok(None);
    };
    match running.bytes_left.checked_sub(deep_bytes(value)) {
        Some(left) => {
            running.bytes_left = left;
            RUNNING.set(Some(running));
            Ok(None)
        }
        // Rhai cannot catch this one.
        None => Err(Box::new(EvalAltResult::ErrorTerminated(
            "handled too much data".into(),
            Position::NONE,
        ))),
    }
}

/// About what a copy of `value` takes. Strings are shared, not copied, except as keys.
pub(crate) fn deep_bytes(value: &Dynamic) -> usize {
    /// A value in an array, or a boxed one beside it.
    const SLOT: usize = 16;
    /// A map's entry without its key and value.
    const ENTRY: usize = 48;
    /// An object of this crate: a pointer in a box in a box.
    const OBJECT: usize = 64;
    if let Some(items) = value.read_lock::<Array>() {
        items.iter().map(|item| SLOT + deep_bytes(item)).sum()
    } else if let Some(entries) = value.read_lock::<Map>() {
        entries
            .iter()
            .map(|(key, item)| ENTRY + key.len() + deep_bytes(item))
            .sum()
    } else if value.is_variant() {
        OBJECT
    } else {
        0
    }
}
