//! What the text of the source must be and must not contain.

use wormholes_tests::workspace::{self, SourceFile};

/// Longer files hold more than one idea.
const MAX_LINES: usize = 600;

/// The modules that may contain `unsafe`, each for a reason written at its head.
const UNSAFE_MODULES: &[&str] = &[
    "router/host/src/guest/cache.rs",
    "router/host/src/guest/stacks.rs",
    "router/proto/tests/onion_allocations.rs",
    "router/rules/tests/hostile/allocator.rs",
    "router/rules/tests/hostile/main.rs",
];

/// Where tests may wait for the clock: the one bounded wait for a condition, and the link whose
/// delay is what it is for.
const WAITING: &[&str] = &["tests/src/wait.rs", "tests/src/udp_link.rs"];

/// Split in two so that this file passes its own test.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("#[ign", "ore"),
    concat!("#[should_", "panic"),
];

#[test]
fn every_module_says_what_it_is() {
    refuse(&["rs"], |file| {
        let says = file.text.starts_with("//! ");
        (!says).then(|| "has no `//!` at its head".to_owned())
    });
}

#[test]
fn no_file_is_too_long() {
    refuse(&["rs", "rhai"], |file| {
        let n_lines = file.lines().count();
        (n_lines > MAX_LINES).then(|| format!("has {n_lines} lines"))
    });
}

#[test]
fn nothing_is_unfinished_or_switched_off() {
    refuse_lines(&["rs", "rhai", "toml", "md", "sh"], |_, line| {
        let is_word = |at: usize, word: &str| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !joins(before) && (!joins(after) || word.starts_with('#'))
        };
        UNFINISHED
            .iter()
            .find(|word| line.match_indices(**word).any(|(at, _)| is_word(at, word)))
            .map(|word| (*word).to_owned())
    });
}

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    refuse(&["rs"], |file| {
        if WAITING.contains(&file.path.as_str()) || is_tidy(file) {
            return None;
        }
        file.test_code()
            .find(|(_, line)| {
                let imported = line.contains("use tokio::time::") || line.contains("time::{");
                line.contains("thread::sleep")
                    || line.contains("time::sleep")
                    || (imported && line.contains("sleep"))
            })
            .map(|(number, _)| format!("sleeps in line {number}"))
    });
}

#[test]
fn protocol_machines_take_time_and_randomness_as_arguments() {
    const HIDDEN: &[&str] = &[
        "Instant::now",
        "SystemTime::now",
        "OsRng",
        "thread_rng",
        "rand::rng(",
        "from_os_rng",
        "SystemRandom",
        "std::net::Tcp",
        "std::net::Udp",
        "std::fs",
        "std::thread::spawn",
    ];
    refuse(&["rs"], |file| {
        let pure = ["router/proto/src/", "router/rules/src/"];
        // Rules measure how long a script ran: the one clock that they read bounds wall time.
        let clock_is_fine = file.path.starts_with("router/rules/");
        if !pure.iter().any(|folder| file.path.starts_with(folder)) {
            return None;
        }
        let first_test_line = file
            .test_code()
            .next()
            .map_or(usize::MAX, |(number, _)| number);
        file.code().find_map(|(number, line)| {
            let word = HIDDEN.iter().find(|word| line.contains(**word))?;
            // An `Instant` has no other beginning; a test counts on from there by itself.
            let is_start = number > first_test_line;
            let allowed = (clock_is_fine || is_start) && *word == "Instant::now";
            (!allowed).then(|| format!("has {word} in line {number}"))
        })
    });
}

#[test]
fn unsafe_code_stays_in_named_modules() {
    refuse(&["rs"], |file| {
        if UNSAFE_MODULES.contains(&file.path.as_str()) || is_tidy(file) {
            return None;
        }
        file.code()
            .find(|(_, line)| line.contains("unsafe ") || line.contains("allow(unsafe_code"))
            .map(|(number, _)| format!("is unsafe in line {number}"))
    });
}

#[test]
fn the_daemon_is_the_one_place_with_quic_and_sockets() {
    const SOCKETS: &[&str] = &["quinn::", "tokio::net::Tcp", "tokio::net::Udp", "UdpSocket"];
    refuse(&["rs"], |file| {
        let outside = ["router/proto/", "router/rules/", "router/cli/", "xtask/"];
        if !outside.iter().any(|folder| file.path.starts_with(folder)) {
            return None;
        }
        file.code()
            .find(|(_, line)| SOCKETS.iter().any(|word| line.contains(word)))
            .map(|(number, _)| format!("opens sockets in line {number}"))
    });
}

/// ARCHITECTURE.md names the test that keeps each invariant; a test that is renamed must be
/// renamed there.
#[test]
fn every_invariant_is_kept_by_a_test_that_exists() {
    let architecture = workspace::root().join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(architecture).unwrap();
    let sources = workspace::files(&["rs"]).unwrap();
    let (_, invariants) = text.split_once("## Invariants").unwrap();
    let (invariants, _) = invariants.split_once("\n## ").unwrap_or((invariants, ""));
    let rows: Vec<_> = invariants.lines().filter(|l| l.starts_with("| ")).collect();
    assert!(rows.len() > 5, "the table of invariants is gone");
    for row in rows.iter().skip(1) {
        let tests: Vec<_> = row.split('`').skip(1).step_by(2).collect();
        let kept = tests.iter().any(|name| {
            let function = format!("fn {name}(");
            sources.iter().any(|file| file.text.contains(&function))
        });
        assert!(kept, "no test of this row exists: {row}");
    }
}

/// Bug reports tell messages as they are: what a message held of names and targets would be told.
#[test]
fn log_messages_hold_no_values() {
    const MACROS: [&str; 5] = ["trace!(", "debug!(", "info!(", "warn!(", "error!("];
    refuse(&["rs"], |file| {
        if !file.path.starts_with("router/daemon/src/") {
            return None;
        }
        let calls = MACROS.iter().flat_map(|name| file.text.split(name).skip(1));
        let calls = calls.map(|call| call.split(");").next().unwrap_or(call));
        // What scripts say is a value as a whole, and not told.
        let mut calls = calls.filter(|call| !call.starts_with("target: \"script\""));
        let message = |call: &str| {
            call.split('"')
                .skip(1)
                .step_by(2)
                .any(|text| text.contains('{'))
        };
        calls
            .find(|call| message(call))
            .map(|call| format!("logs {call}"))
    });
}

fn is_tidy(file: &SourceFile) -> bool {
    file.path == "tests/tests/all/tidy_text.rs"
}

/// Fails with every file about which `complaint` has one.
fn refuse(extensions: &[&str], complaint: impl Fn(&SourceFile) -> Option<String>) {
    let files = workspace::files(extensions).unwrap();
    assert!(!files.is_empty(), "no files found");
    let complaints: Vec<_> = files
        .iter()
        .filter_map(|file| complaint(file).map(|text| format!("{} {text}", file.path)))
        .collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Fails with every line about which `complaint` has one.
fn refuse_lines(extensions: &[&str], complaint: impl Fn(&SourceFile, &str) -> Option<String>) {
    refuse(extensions, |file| {
        file.lines().find_map(|(number, line)| {
            complaint(file, line).map(|text| format!("has {text} in line {number}"))
        })
    });
}
