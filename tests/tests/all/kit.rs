//! The kit is true to the node: the same scenarios in its world, and with the component in the host.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use wormholes_clerk::Clerk;
use wormholes_echo::Echo;
use wormholes_plugin::{ErrorCode, Principal, Result, Ruling, Service, Usage};
use wormholes_plugin_kit::{Drive, World, check, every_fault};
use wormholes_tests::{Hosted, workspace};
use wormholes_wicked::Wicked;

fn manifest(folder: &str) -> String {
    fs::read_to_string(workspace::root().join(folder).join("plugin.toml")).unwrap()
}

fn user(name: &str) -> Principal {
    Principal::User(name.into())
}

/// Counts go on over a restart, each principal has its own, and what is refused counts nothing.
fn echo_counts(node: &mut impl Drive) {
    let ask = |node: &mut _, of: &Principal, command: &str, count: u64| {
        let said = Drive::request(node, of, command, json!({ "text": "hello" }));
        assert_eq!(said, Ok(json!({ "text": "hello", "count": count })));
    };
    let ann = user("ann");
    let nobody = node
        .request(&ann, "say", json!({ "text": "" }))
        .unwrap_err();
    assert_eq!(nobody.code, ErrorCode::NotFound);
    assert_eq!(node.query(&ann, "count", json!({})), Err(nobody));
    for name in ["ann", "bob"] {
        node.add_user(name);
    }
    ask(node, &Principal::Node, "say", 1);
    ask(node, &Principal::Node, "later", 2);
    ask(node, &ann, "say", 1);
    let refused = node.request(&ann, "say", json!({})).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Invalid);
    assert!(
        refused.message.starts_with("argument `text`: "),
        "{refused}"
    );
    let unknown = node.request(&ann, "shout", json!({ "text": "" }));
    assert_eq!(unknown.unwrap_err().code, ErrorCode::NotFound);
    node.restart();
    ask(node, &Principal::Node, "later", 3);
    ask(node, &ann, "say", 2);
    assert_eq!(node.query(&ann, "count", json!({})), Ok(json!(2)));
    assert_eq!(node.query(&user("bob"), "count", json!({})), Ok(json!(0)));
}

#[test]
fn one_scenario_runs_in_the_kit_and_in_the_host() {
    echo_counts(&mut World::<Echo>::new(1, &manifest("plugins/echo")).at(0));
    echo_counts(&mut Hosted::new("plugins/echo").unwrap());
}

/// An operation goes on over restarts, and what it came to is told once.
fn echo_goes_on(node: &mut impl Drive) {
    node.add_user("ann");
    for of in [Principal::Node, user("ann")] {
        let text = json!({ "text": "abcdef" });
        let operation = node.begin(&of, "slowly", text).unwrap();
        node.restart();
        let mut told = None;
        node.until("the end of the operation", |node| {
            told = node.outcome(&of, operation);
            told.is_some()
        });
        assert_eq!(told, Some(Ok(json!({ "text": "abcdef", "count": 1 }))));
        assert_eq!(node.outcome(&of, operation), None, "it is collected");
        assert_eq!(node.query(&of, "count", json!({})), Ok(json!(1)));
    }
}

#[test]
fn operations_go_on_in_the_kit_and_in_the_host() {
    echo_goes_on(&mut World::<Echo>::new(1, &manifest("plugins/echo")).at(0));
    echo_goes_on(&mut Hosted::new("plugins/echo").unwrap());
}

/// Whoever knows its id gets its one result, whatever crashes.
#[test]
fn no_fault_has_an_operation_end_twice_or_never() {
    every_fault::<Echo>(&manifest("plugins/echo"), |world| {
        let begun = world
            .at(0)
            .begin(&Principal::Node, "slowly", json!({ "text": "abc" }));
        let Ok(operation) = begun else {
            return;
        };
        world.pass(std::time::Duration::from_secs(9));
        let told = world.at(0).outcome(&Principal::Node, operation);
        let count = world.at(0).query(&Principal::Node, "count", json!({}));
        match told {
            Some(Ok(said)) => assert_eq!((&said["count"], count), (&json!(1), Ok(json!(1)))),
            // It never began: the node crashed before that was durable, or the plugin broke.
            Some(Err(_)) | None => assert_eq!(count, Ok(json!(0))),
        }
    });
}

/// All that the wicked plugin does and that a native test can bear, and what it is told.
fn wickedness(node: &mut impl Drive) -> Vec<Result<Value>> {
    let mut told = Vec::new();
    let with = |n: u64| json!({ "with": n });
    let steps = [
        ("mark", with(1)),
        ("refuse", with(2)),
        ("break", with(3)),
        ("drizzle", json!({})),
        ("scratch-drizzle", json!({})),
        ("write", json!({})),
        ("scratch", json!({})),
        ("timers", json!({})),
        ("facts", json!({})),
        ("foreign-fact", json!({})),
        ("foreign-hook", json!({})),
        ("deep-question", json!({})),
        ("wild-question", json!({})),
        ("sockets", json!({})),
        ("room", json!({})),
        ("credit", json!({})),
        ("fetches", json!({})),
        ("foreign-port", json!({})),
        ("foreign-socket", json!({})),
        ("foreign-answer", json!({})),
        ("split", json!({})),
        ("tunnel", json!({})),
        ("file", json!({})),
        ("misuse-keys", json!({})),
        ("signatures", json!({})),
        ("keys", json!({})),
        ("misuse-keys", json!({})),
        ("secrets", json!({})),
        ("hide", json!({ "name": "n", "text": "t" })),
        ("spill", json!({})),
        ("later", json!({})),
        ("nothing", json!({})),
    ];
    for name in ["ann", "bob"] {
        node.add_user(name);
    }
    for of in [Principal::Node, user("ann")] {
        for (command, arguments) in &steps {
            told.push(node.request(&of, command, arguments.clone()));
            // The third is how long its memory has lasted: statics outlive an instance natively.
            let marks = node.request(&of, "marks", json!({})).unwrap();
            told.push(Ok(json!([marks[0], marks[1]])));
            told.push(node.query(&of, "sneak", json!({})));
            told.push(node.query(&of, "hidden", json!({})));
        }
    }
    told.extend((0..6).map(|n| node.request(&user("ann"), "fill", with(n))));
    let bob = user("bob");
    node.request(&bob, "alarm", with(77)).unwrap();
    node.restart();
    let mut last = Value::Null;
    node.until("the alarm", |node| {
        last = node.request(&bob, "marks", json!({})).unwrap();
        last[0] == 77
    });
    told.push(Ok(last[1].clone()));
    told
}

#[test]
fn limits_and_refusals_of_the_kit_are_those_of_the_host() {
    let kit = wickedness(&mut World::<Wicked>::new(1, &manifest("tests/wicked")).at(0));
    let host = wickedness(&mut Hosted::new("tests/wicked").unwrap());
    assert_eq!(kit.len(), host.len());
    for (number, (kit, host)) in kit.iter().zip(&host).enumerate() {
        assert_eq!(kit, host, "answer {number}");
    }
}

const HALTING: &str = "\n[instance]\nmode = \"fresh\"\npoison = \"halt\"\n";

/// Who broke three times over a request answers nobody until it is started; others go on.
fn halts(node: &mut impl Drive) {
    let (ann, bob) = (user("ann"), user("bob"));
    for name in ["ann", "bob"] {
        node.add_user(name);
    }
    let with = |n: u64| json!({ "with": n });
    assert_eq!(node.request(&ann, "mark", with(1)), Ok(json!("marked")));
    let broken = node.request(&ann, "break", with(2)).unwrap_err();
    assert_eq!(broken.code, ErrorCode::Failed);
    assert_eq!(broken.message, "the plugin failed; see its log");
    for refused in [
        node.request(&ann, "marks", json!({})),
        node.query(&ann, "sneak", json!({})),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(
            refused.message.starts_with("the plugin is parked: "),
            "{refused}"
        );
    }
    assert_eq!(node.request(&bob, "mark", with(3)), Ok(json!("marked")));
    node.restart();
    let marks = node.request(&ann, "marks", json!({})).unwrap();
    assert_eq!([&marks[0], &marks[1]], [&json!(1), &Value::Null]);
}

#[test]
fn what_halts_in_the_host_halts_in_the_kit() {
    let manifest = manifest("tests/wicked") + HALTING;
    halts(&mut World::<Wicked>::new(1, &manifest).at(0));
    halts(&mut Hosted::with_more("tests/wicked", HALTING).unwrap());
}

/// As `rows_of_an_older_schema_are_migrated_once_or_not_touched` shows it of the daemon.
#[test]
fn rows_of_an_older_schema_are_migrated_in_the_kit() {
    let manifest = manifest("tests/wicked");
    let schema = |number: u32| format!("{manifest}\n[state]\nschema = {number}\n");
    let node = Principal::Node;
    let mut world = World::<Wicked>::new(1, &manifest);
    let mut at = world.at(0);
    let marks = |at: &mut wormholes_plugin_kit::At<'_, Wicked>| {
        let marks = at.request(&node, "marks", json!({}));
        marks.map(|marks| marks[0].clone())
    };
    at.request(&node, "mark", json!({ "with": 5 })).unwrap();
    let sheets = json!({ "with": 1000 });
    at.request(&node, "sheets", sheets).unwrap();
    for _ in 0..2 {
        at.update(&schema(1));
        assert_eq!(marks(&mut at), Ok(json!(1005)));
        let seen = at.request(&node, "seen", json!({}));
        assert_eq!(seen, Ok(json!([[1, 1000]])), "in many steps");
    }
    at.request(&node, "mark", json!({ "with": 13 })).unwrap();
    at.update(&schema(2));
    assert_eq!(at.parked(&node).as_deref(), Some("13 cannot be migrated"));
    assert_eq!(marks(&mut at).unwrap_err().code, ErrorCode::Unavailable);
    at.start();
    assert!(at.parked(&node).is_some(), "it is tried again, in vain");
    at.update(&schema(1));
    assert_eq!(marks(&mut at), Ok(json!(13)));
}

/// As `what_is_sealed_changes_in_init_and_in_no_step_of_a_migration` shows it of the daemon.
#[test]
fn what_is_sealed_changes_in_no_step_in_the_kit() {
    let manifest = manifest("tests/wicked");
    let schema = format!("{manifest}\n[state]\nschema = 1\n");
    let node = Principal::Node;
    for (marked, refused) in [(16, true), (17, true), (18, false)] {
        let mut world = World::<Wicked>::new(1, &manifest);
        let mut at = world.at(0);
        let hidden = json!({ "name": "kept", "text": "a secret" });
        at.request(&node, "hide", hidden).unwrap();
        at.request(&node, "mark", json!({ "with": marked }))
            .unwrap();
        at.update(&schema);
        let parked = at.parked(&node);
        let words = "secret rows, keys and blobs have one side only: change them in `init`, which \
                     follows `migrate`";
        assert_eq!(parked.as_deref(), refused.then_some(words));
        if !refused {
            let kept = at.request(&node, "peek", json!({ "name": "kept" }));
            assert_eq!(kept, Ok(json!(8)));
            let moved = at.request(&node, "peek", json!({ "name": "moved" }));
            assert_eq!(moved, Ok(json!(7)));
        }
    }
}

/// Whoever is told nothing asks again; nobody is told a number twice.
#[test]
fn no_fault_has_echo_forget_what_it_told() {
    every_fault::<Echo>(&manifest("plugins/echo"), |world| {
        let mut node = world.at(0);
        let mut last = 0;
        for command in ["say", "later", "say"] {
            let said = loop {
                match node.request(&Principal::Node, command, json!({ "text": "" })) {
                    Err(error) if error.code == ErrorCode::Unavailable => {}
                    said => break said.unwrap(),
                }
            };
            let count = said["count"].as_u64().unwrap();
            assert!(count > last, "{count} after {last}");
            last = count;
        }
        assert_eq!(
            node.query(&Principal::Node, "count", json!({})),
            Ok(json!(last))
        );
    });
}

#[derive(Debug, Clone)]
enum Step {
    Say(u8),
    Restart,
    Crash(u64),
}

#[test]
fn echo_counts_each_user_whatever_crashes() {
    let manifest = manifest("plugins/echo");
    let draw = |random: &mut wormholes_plugin_kit::Random| {
        let step = |random: &mut wormholes_plugin_kit::Random| match random.of(0..6) {
            0 => Step::Restart,
            1 => Step::Crash(random.of(0..3)),
            n => Step::Say(u8::try_from(n % 3).unwrap()),
        };
        (0..30).map(|_| step(random)).collect()
    };
    check(100, draw, |seed, steps| {
        let mut world = World::<Echo>::new(seed, &manifest);
        for name in ["0", "1", "2"] {
            world.at(0).add_user(name);
        }
        let mut told = [0; 3];
        for step in steps {
            match step {
                Step::Restart => world.at(0).restart(),
                Step::Crash(commit) => world.crash_before_commit(*commit),
                Step::Say(name) => {
                    let of = user(&name.to_string());
                    let said = world.at(0).request(&of, "say", json!({ "text": "" }));
                    let count = &mut told[usize::from(*name)];
                    match said {
                        Ok(said) => {
                            *count += 1;
                            assert_eq!(said["count"], json!(*count), "{of:?}");
                        }
                        Err(error) => assert_eq!(error.code, ErrorCode::Unavailable),
                    }
                }
            }
        }
    });
}

/// What has to do with the rules, as the daemon does it in `facts.rs`.
#[test]
fn facts_are_there_in_the_kit() {
    let manifest = manifest("tests/clerk");
    let (node, bob) = (Principal::Node, [7; 32]);
    let peer = "07".repeat(32);
    let mut world = World::<Clerk>::new(1, &manifest);
    let vouch = |more: Value| {
        let mut arguments = json!({ "peer": peer, "credit": 5 });
        let given = more.as_object().unwrap().clone();
        arguments.as_object_mut().unwrap().extend(given);
        arguments
    };
    let mut at = world.at(0);
    at.request(&node, "vouch", vouch(json!({}))).unwrap();
    let undone = vouch(json!({ "credit": 9, "and-refuse": true }));
    at.request(&node, "vouch", undone).unwrap_err();
    assert_eq!(at.fact("credit", &bob), Some(5));
    let users = at.request(&user("ann"), "vouch", vouch(json!({})));
    assert_eq!(users.unwrap_err().code, ErrorCode::Denied);
    let long = at.request(&node, "vouch", vouch(json!({ "ms": 86_400_001 })));
    assert_eq!(long.unwrap_err().code, ErrorCode::Invalid);
    let soon = vouch(json!({ "ms": 50 }));
    at.request(&node, "vouch", soon).unwrap();
    world.pass(Duration::from_millis(50));
    let mut at = world.at(0);
    assert_eq!(at.fact("credit", &bob), None);
    at.request(&node, "vouch", vouch(json!({}))).unwrap();
    at.restart();
    assert_eq!(at.fact("credit", &bob), None, "in memory alone");
}

#[test]
fn rulings_peers_and_bills_are_there_in_the_kit() {
    let manifest = manifest("tests/clerk");
    let (node, bob) = (Principal::Node, [7; 32]);
    let peer = "07".repeat(32);
    let mut world = World::<Clerk>::new(1, &manifest);
    let mut at = world.at(0);
    let ask = json!({ "peer": peer, "size": 3 });
    assert_eq!(at.request(&node, "ask", ask.clone()), Ok(json!("none")));
    at.rule("clerk_write", |question| match question["size"].as_u64() {
        Some(3) => Ruling::Deny("three is too much".to_owned()),
        _ => Ruling::None,
    });
    let denied = Ok(json!({ "deny": "three is too much" }));
    assert_eq!(at.request(&node, "ask", ask), denied);

    at.presence(bob, true, 2);
    at.presence([8; 32], true, 1);
    at.presence([8; 32], false, 1);
    assert_eq!(
        at.query(&node, "present", json!({})),
        Ok(json!({ peer.as_str(): 2 }))
    );
    let used = Usage {
        peer: bob,
        service: Service::Exit,
        bytes_in: 3,
        bytes_out: 4,
        since_ms: 1,
        until_ms: 2,
    };
    at.usage(vec![used, used]);
    let bill = json!({ format!("exit {peer}"): [6, 8, 2] });
    assert_eq!(at.query(&node, "used", json!({})), Ok(bill));

    every_fault::<Clerk>(&manifest, |world| {
        let mut at = world.at(0);
        while at.fact("credit", &bob).is_none() {
            let vouched = at.request(&node, "vouch", json!({ "peer": peer, "credit": 5 }));
            assert!(vouched.is_ok_and(|said| said == "vouched"));
        }
        at.presence(bob, true, 2);
        let present = at.query(&node, "present", json!({}));
        assert_eq!(present, Ok(json!({ peer.as_str(): 2 })));
    });
}

/// Whoever is told nothing hides it again.
#[test]
fn no_fault_has_a_secret_or_a_key_by_halves() {
    every_fault::<Wicked>(&manifest("tests/wicked"), |world| {
        let mut node = world.at(0);
        let mut ask = |command: &str, arguments: Value| {
            loop {
                match node.request(&Principal::Node, command, arguments.clone()) {
                    Err(error) if error.code == ErrorCode::Unavailable => {}
                    told => break told,
                }
            }
        };
        ask("hide", json!({ "name": "n", "text": "t" })).unwrap();
        let key = ask("derived", json!({})).unwrap();
        let made = ask("make-key", json!({ "name": "k" })).unwrap();
        // A crash behind the commit had it made before: then it is there, and not again.
        let again = ask("make-key", json!({ "name": "k" })).unwrap();
        assert_eq!(made, again);
        assert_eq!(ask("derived", json!({})), Ok(key));
        assert_eq!(
            node.query(&Principal::Node, "hidden", json!({})),
            Ok(json!([["n", "t"]]))
        );
    });
}
