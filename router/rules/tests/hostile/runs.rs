//! Runs them and measures.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use wormholes_proto::{NodeId, Roles};
use wormholes_rules::{
    Conn, LoadEnv, NodeView, Outcome, Policy, ScriptSource, SetRegistry, Tunnel, World,
};

use crate::{
    allocator::{HELD, PEAK},
    bodies::BODIES,
};

const MAX_TIME: Duration = Duration::from_millis(50);
const MAX_BYTES: i64 = 64 << 20;
/// What a worker thread of tokio has; the deepest script must fit.
const STACK_BYTES: usize = 2 << 20;
/// A script passes when one of so many runs is in time.
const RUNS: usize = 5;

struct Cost {
    time: Duration,
    peak: i64,
    left: i64,
}

/// As many nodes as a book of records holds, all of them relays and friends.
fn world() -> Arc<World> {
    let node = |index: u16| {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&index.to_be_bytes());
        Arc::new(NodeView {
            is_peer: true,
            trust: 2,
            online: index.is_multiple_of(2),
            rtt_ms: Some(f64::from(index % 100)),
            has_address: true,
            roles: Roles {
                relay: true,
                ..Roles::default()
            },
            ..NodeView::stranger(NodeId::from_bytes(id), format!("n{index}"))
        })
    };
    Arc::new(World::new((0..4096).map(node).collect()))
}

fn load(text: &str) -> Result<Policy, String> {
    let name = "hostile.rhai".to_owned();
    let text = text.to_owned();
    let mut env = LoadEnv::default();
    let mut sets = SetRegistry::default();
    sets.load("s", "s.txt", "a\nexample\n").unwrap();
    env.surroundings.sets = sets.into();
    Policy::load(&[ScriptSource { name, text }], &env).map_err(|faults| faults[0].to_string())
}

/// Runs the script once; it must block.
fn run(policy: &Policy) -> Cost {
    let (conn, world) = (Arc::new(Conn::to("x.example", 443)), world());
    let before = HELD.get();
    PEAK.set(before);
    let start = time_run();
    let decision = policy.route(&conn, &world, SystemTime::UNIX_EPOCH);
    let time = time_run() - start;
    let peak = PEAK.get() - before;
    let Outcome::Plan(plan) = decision.outcome else {
        panic!("{:?}", decision.outcome);
    };
    let tunnel = &plan.steps[0].tunnels[0];
    assert!(matches!(tunnel, Tunnel::Block { .. }), "{plan:?}");
    drop((decision.trace, plan));
    let left = HELD.get() - before;
    Cost { time, peak, left }
}

/// How long this thread has run, as the kernel says: other work on the machine is no cost of a
/// script's.
fn time_run() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = stat.split(' ').next().unwrap().parse().unwrap();
    Duration::from_nanos(nanos)
}

fn check(name: &str, script: &str) {
    let policy = load(script).unwrap_or_else(|refused| panic!("{name}: {refused}"));
    let mut fastest = MAX_TIME;
    for _ in 0..RUNS {
        let cost = run(&policy);
        assert!(cost.peak < MAX_BYTES, "{name}: {} bytes", cost.peak);
        // What stays: the reason of the block, and what the script keeps, which has its own bounds.
        let may_stay = if script.contains("kv_set") || script.contains("rate(") {
            4 << 20
        } else {
            4096
        };
        assert!(cost.left < may_stay, "{name} leaves {} bytes", cost.left);
        fastest = fastest.min(cost.time);
        if fastest < MAX_TIME {
            return;
        }
    }
    panic!("{name}: no run within {MAX_TIME:?}");
}

/// On a thread with as much stack as the daemon's threads have.
fn on_worker(test: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(test)
        .unwrap()
        .join()
        .unwrap();
}

fn source(body: &str, beside: &str) -> String {
    let items = "1,".repeat(1000);
    let lets: String = (0..40).map(|i| format!("let v{i} = [{items}]; ")).collect();
    let strings: String = (0..40).map(|i| format!("let v{i} = s + {i}; ")).collect();
    let beside = beside.replace("LETS", &lets).replace("STRINGS", &strings);
    format!("fn route(c) {{ {body} }}\n{beside}")
}

#[test]
fn hostile_scripts_end_in_block_within_time_and_memory() {
    on_worker(|| {
        for (name, body, beside) in BODIES {
            check(name, &source(body, beside));
        }
    });
}

#[test]
fn hostile_sources_are_refused_quickly() {
    on_worker(|| {
        let deep = |open: &str, close: &str, n: usize| {
            format!(
                "fn route(c) {{ let x = {}1{}; direct() }}",
                open.repeat(n),
                close.repeat(n)
            )
        };
        let many = |part: &str, n: usize| {
            format!("fn route(c) {{ let x = 1{}; direct() }}", part.repeat(n))
        };
        let elses = "else if c.port == 1 { 1 } ".repeat(5000);
        for (name, text) in [
            ("brackets", deep("[", "]", 50_000)),
            ("parentheses", deep("(", ")", 50_000)),
            ("braces", deep("{", "}", 50_000)),
            ("nots", deep("!", "", 50_000)),
            ("minuses", deep("- ", "", 50_000)),
            ("maps", deep("#{a:", "}", 20_000)),
            ("closures", deep("|x| ", "", 20_000)),
            ("interpolations", deep("`${", "}`", 20_000)),
            ("calls", deep("f(", ")", 20_000)),
            ("a long sum", many(" + 1", 20_000)),
            ("a long chain", many(".a", 20_000)),
            ("a long chain of calls", many(".trim()", 20_000)),
            ("a long index", many("[0]", 20_000)),
            ("long logic", many(" && true", 20_000)),
            ("long coalescing", many(" ?? 1", 20_000)),
            ("long comparisons", many(" == 1", 20_000)),
            (
                "if else",
                format!("fn route(c) {{ if c.port == 0 {{ 1 }} {elses} else {{ direct() }} }}"),
            ),
            (
                "size",
                format!("fn route(c) {{ direct() }} // {}", "x".repeat(300_000)),
            ),
            (
                "an endless comment",
                "fn route(c) { block() } /*".repeat(9_000),
            ),
            (
                "an endless text",
                format!("fn route(c) {{ \"{}", "x".repeat(200_000)),
            ),
            (
                "functions",
                (0..5000).map(|i| format!("fn f{i}() {{ 1 }}\n")).collect(),
            ),
            (
                "variables",
                format!(
                    "fn route(c) {{ {} direct() }}",
                    "let x = 1; ".repeat(10_000)
                ),
            ),
            (
                "parameters",
                format!(
                    "fn f({}) {{ 1 }}",
                    (0..500).map(|i| format!("p{i},")).collect::<String>()
                ),
            ),
            (
                "a huge constant",
                format!(
                    "const A = [{}];\nfn route(c) {{ direct() }}",
                    "1,".repeat(5000)
                ),
            ),
        ] {
            let start = Instant::now();
            let _ = load(&text).map(|policy| {
                policy
                    .route(
                        &Conn::to("x.example", 443).into(),
                        &Arc::default(),
                        SystemTime::UNIX_EPOCH,
                    )
                    .outcome
            });
            assert!(start.elapsed() < Duration::from_secs(5), "{name}");
        }
    });
}

#[test]
fn what_would_be_hostile_is_refused_when_it_is_loaded() {
    for (body, expected) in [
        (
            "let f = |x| c; direct()",
            "a closure that uses outer variables",
        ),
        (
            "let a = []; let b = 1; a.push(|x| b); direct()",
            "a closure that uses outer variables",
        ),
        ("let f = |x| x; f.curry(f); direct()", "`curry`"),
        // Rhai would wait 50 ms for a lock that its own thread holds.
        (
            "let a = [1]; a.filter(|x| a.len > 0); direct()",
            "`a` is used by a closure",
        ),
        (
            "let a = [1]; filter(a, |x| a.len > 0); direct()",
            "`a` is used by a closure",
        ),
        (
            "c.host.split(\".\").filter(|x| x == c.host); direct()",
            "`c` is used by a closure",
        ),
        (
            "let a = [[1]]; a[0].filter(|x| a.len > 0); direct()",
            "`a` is used by a closure",
        ),
        (
            "let a = [[1]]; a.map(|x| a.map(|y| x)); direct()",
            "`a` is used by a closure",
        ),
        ("sleep(5); direct()", "`sleep`"),
        (
            "let s = \"x\"; s.replace(\"x\", \"yy\"); direct()",
            "`replace`",
        ),
        ("let s = \"x\"; s.to_blob(); direct()", "`to_blob`"),
        ("blob(1000000000, 1); direct()", "`blob`"),
        ("parse_json(\"[]\"); direct()", "`parse_json`"),
        ("print(\"x\"); direct()", "print"),
        ("debug(\"x\"); direct()", "debug"),
        ("eval(\"1\"); direct()", "eval"),
        ("timestamp(); direct()", "`timestamp`"),
    ] {
        let refused = load(&source(body, "")).unwrap_err();
        assert!(refused.contains(expected), "{body}: {refused}");
    }
}
