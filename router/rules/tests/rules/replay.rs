//! Recorded decisions asked again: of the same scripts, which must answer the same whatever the
//! node holds meanwhile; and of others, which must answer from the record or not at all.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use wormholes_proto::ServiceName;
use wormholes_rules::{
    Answer, Conn, ExitRequest, NodeView, NotRecorded, Outcome, Policy, Question, Recording,
    RelayRequest, Replayed, SetRegistry, Sni, Trace, VerdictDecision, World,
};

use crate::common::{conn, id, load, node, policy, relay, world};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

/// Reads everything that a script can read, and puts it into its answer.
const READER: &str = r#"
    fn seen(p) {
        if p == () { return "nobody"; }
        let parts = [p.name, p.id, p.trust, p.online, p.rtt, p.loss, p.load, p.has_address,
                     p.is_relay, p.is_hop, p.is_exit, p.family, p.credit];
        for r in p.relays { parts.push(r.name); parts.push(r.rtt); }
        hash(parts.map(|x| `${x}`).reduce(|all, x| `${all},${x}`, ""))
    }
    fn counted(key) {
        let n = kv_get("n") ?? 0;
        kv_set("n", n + 1);
        kv_set("f", 0.1 + n);
        [n, kv_get("n"), kv_get("f"), kv_get("none"), rate(key, 2, "1m"), rate(key, 2, "1m"),
         quota(key), quota(key, 40, 100, "1h"), quota(key)]
    }
    fn joined(parts) { parts.map(|x| `${x}`).reduce(|all, x| `${all},${x}`, "") }
    fn route(c) {
        tag("state", joined(counted("r:" + c.domain)));
        tag("c", joined([c.id, c.attempt, c.last_error, c.entrance, c.label, c.network, c.host,
            c.domain, c.ip, c.ips, c.port, c.service, c.app, c.app_path, c.uid, c.user, c.plugin, c.role,
            c.src, c.is_lan, c.sni, c.rand, c.now, c.hour, c.weekday, sample("exp 30ms", c.rand)]));
        tag("nodes", joined([seen(c.node), seen(peer("bob")), seen(peer("ghost")),
            joined(peers().map(|p| seen(p))), joined(relays(|r| r.rtt < 25.0).map(|r| seen(r)))]));
        tag("sets", joined([set("ads").has(c.host), set("ads").has("x.ads.example"),
            first_set(c.host), first_set(c.host, ["none", "ads"])]));
        if c.host == "fails.example" { return parse_int(c.host); }
        if c.host == "passes.example" { return pass(); }
        if c.host == "needs.example" && c.ip == () { return need("ip", onion(2)); }
        if c.rand % 3 == 0 { return peer("carol").best().or(onion(3).isolate(c.user)).closed(); }
        direct().delay(sample("uniform 2s", c.rand)).bw("1MB/s").label(kv_get("n"))
    }
    fn accept(p) {
        tag("p", joined([seen(p), joined(counted(p.id))]));
        if rate("a", 3, "1h") { allow() } else { deny("too many") }
    }
    fn relay(q) {
        tag("q", joined([seen(q.from), seen(q.to), q.bytes_today, q.now]));
        if quota("relayed", 60, 200, "1h") { allow().bytes(1000 + q.bytes_today) } else { deny("full") }
    }
    fn exit(x) {
        tag("x", joined([x.from.name, x.host, x.domain, x.ip, x.port, x.bytes_today, x.now,
            set("ads").has(x.ip)]));
        if set("ads").has(x.host) { return deny("listed"); }
        if x.from.trust == 0 && !rate("x", 1, "1h") { return deny("slow down"); }
        allow().bw("1MB/s").idle("2m")
    }
"#;

/// As the node keeps it, written and read once.
fn kept(question: Question, answer: Answer, mut trace: Trace) -> Recording {
    let recording = Recording {
        question,
        reads: *trace.reads.take().expect("it is recorded"),
        answer,
        rule: trace.rule,
    };
    let text = serde_json::to_string(&recording).unwrap();
    let read: Recording = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    read
}

fn routed(policy: &Policy, conn: Conn, world: &Arc<World>) -> (Recording, Trace) {
    let conn = Arc::new(conn);
    let decision = policy.route(&conn, world, conn.now);
    let trace = decision.trace.clone();
    let answer = Answer::Route(decision.outcome);
    (kept(Question::Route(conn), answer, decision.trace), trace)
}

fn judged(question: Question, decision: VerdictDecision) -> (Recording, Trace) {
    let trace = decision.trace.clone();
    let answer = Answer::Verdict(decision.verdict);
    (kept(question, answer, decision.trace), trace)
}

fn replay(policy: &Policy, recording: &Recording) -> Result<Replayed, NotRecorded> {
    policy.replay(recording, &Arc::default())
}

/// A flow with something in every field, the `index`th of many.
fn flow(index: u32) -> Conn {
    let hosts = [
        "web.bob.wh",
        "x.ads.example",
        "shop.co.uk",
        "fails.example",
        "passes.example",
        "needs.example",
        "192.0.2.7",
        "carol.wh",
    ];
    let host = hosts[index as usize % hosts.len()];
    Conn {
        id: index.into(),
        attempt: (index % 3) as u8,
        last_error: index.is_multiple_of(2).then(|| "timed out".to_owned()),
        label: Some("desk".to_owned()),
        ip: host.parse().ok(),
        ips: host.parse().into_iter().collect(),
        service: ServiceName::parse("web").ok(),
        app: Some("git".to_owned()),
        app_path: Some("/usr/bin/git".to_owned()),
        uid: Some(1000),
        user: Some(format!("user{}", index % 2)),
        plugin: (index % 4 == 1).then(|| "chat".to_owned()),
        role: (index % 4 == 1).then(|| "sync".to_owned()),
        src: "127.0.0.1".parse().ok(),
        rand: i64::from(index) * 0x1234_5678_9abd,
        now: NOW + Duration::from_millis(u64::from(index) * 2_345),
        hour: 23,
        ..conn(host)
    }
}

/// A world whose numbers have no short form.
fn odd_world(index: u32) -> Arc<World> {
    let odd = |name: &str, trust| -> Arc<NodeView> {
        let mut view = (*node(name, trust)).clone();
        view.rtt_ms = Some(0.1 + f64::from(index) / 3.0);
        view.loss = 1.0 / 3.0;
        view.load = 0.7_f64.sqrt();
        view.family = Some("f".to_owned());
        view.facts = [("credit".to_owned(), i64::from(index))].into();
        view.into()
    };
    let relays = [
        relay("r1", 30.0 - f64::from(index)),
        relay("r2", 10.0 / 3.0),
    ];
    let nodes = [odd("bob", 2), odd("carol", 1), odd("eve", 0)];
    Arc::new(World::new(nodes.into_iter().chain(relays).collect()))
}

/// Decisions of every hook, in turns, while what the scripts keep goes on.
fn decisions(policy: &Policy) -> Vec<(Recording, Trace)> {
    let mut all = Vec::new();
    for index in 0..48 {
        let world = odd_world(index);
        let now = NOW + Duration::from_secs(index.into());
        // As the daemon gives it: newer than the node of the world.
        let from = Arc::new(NodeView {
            rtt_ms: Some(99.9),
            ..(**world.by_id(&id("bob")).unwrap()).clone()
        });
        all.push(routed(policy, flow(index), &world));
        let accept = policy.accept(&from, &world, now);
        let node = from.clone();
        all.push(judged(Question::Accept { node, now }, accept));
        let request = RelayRequest {
            from: from.clone(),
            to: node_of(&world, "carol"),
            bytes_today: index.into(),
            now,
        };
        let verdict = policy.relay(&request, &world);
        all.push(judged(Question::Relay(request.into()), verdict));
        let request = ExitRequest {
            network: Some("udp"),
            from: (index % 3 > 0).then(|| node_of(&world, ["bob", "eve"][index as usize % 2])),
            host: ["x.ads.example", "ok.example"][index as usize % 2].to_owned(),
            ip: "203.0.113.9".parse().unwrap(),
            port: (index % 4 > 0).then_some(443),
            bytes_today: 7,
            now,
        };
        let verdict = policy.exit(&request, &world);
        all.push(judged(Question::Exit(request.into()), verdict));
    }
    all
}

fn node_of(world: &World, name: &str) -> Arc<NodeView> {
    world.by_id(&id(name)).unwrap().clone()
}

#[test]
fn the_same_scripts_answer_every_recorded_decision_the_same() {
    let scripts = [
        ("first.rhai", READER.replace("\"bob\"", "\"r2\"")),
        ("test.rhai", READER.to_owned()),
    ];
    let scripts: Vec<_> = scripts
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    let recorder = load(&scripts);
    let decisions = decisions(&recorder);
    let distinct: std::collections::BTreeSet<_> = decisions
        .iter()
        .map(|(recording, trace)| format!("{:?} {:?}", recording.answer, trace.tags))
        .collect();
    assert!(
        distinct.len() > 150,
        "the decisions hardly differ: {distinct:#?}"
    );
    // Fresh: it holds no rate, quota or kept value, and knows no node.
    let again = load(&scripts);
    for (recording, trace) in &decisions {
        let replayed = replay(&again, recording).unwrap();
        assert_eq!(replayed.answer, recording.answer, "{recording:#?}");
        let of = |trace: &Trace| {
            let Trace {
                rule,
                because,
                tags,
                log,
                notifications,
                error,
                ..
            } = trace.clone();
            (rule, because, tags, log, notifications, error)
        };
        assert_eq!(of(&replayed.trace), of(trace));
    }
}

/// What `candidate` would do with a decision of `script` on a flow to `host`.
fn candidate(script: &str, candidate: &str, conn: Conn) -> Result<Replayed, NotRecorded> {
    let (recording, _) = routed(&policy(script), conn, &world());
    replay(&policy(candidate), &recording)
}

fn plan(replayed: Result<Replayed, NotRecorded>) -> String {
    match replayed.map(|replayed| replayed.answer) {
        Ok(Answer::Route(Outcome::Plan(plan))) => format!("{:?}", plan.steps[0].tunnels[0].kind()),
        other => format!("{other:?}"),
    }
}

#[test]
fn another_script_answers_from_what_was_read() {
    let check = |script: &str, other: &str, expected: &str| {
        let route = |body: &str| format!("fn route(c) {{ {body} }}");
        let replayed = candidate(&route(script), &route(other), conn("web.bob.wh"));
        assert_eq!(plan(replayed), expected, "{other}");
    };
    // Every field of the argument, and every field of a node that it held.
    check(
        "pass()",
        "if c.port == 443 { block() } else { pass() }",
        "Block",
    );
    check(
        "c.node.direct()",
        "if c.node.rtt == 20.0 { block() } else { pass() }",
        "Block",
    );
    check("pass()", "c.node.relays[0].direct()", "Direct");
    check("c.node.direct()", "peer(\"bob\").best()", "Direct");
    check("c.node.direct()", "relay(\"r1\").to(c.node)", "Relay");
    // Any set, of a value that was looked up in one.
    check(
        "if set(\"ads\").has(c.host) { block() } else { direct() }",
        "if first_set(c.host, [\"ads\"]) == () { onion(1) } else { pass() }",
        "Onion",
    );
    // What it kept itself.
    check(
        "pass()",
        "kv_set(\"a\", 1); if kv_get(\"a\") == 1 { block() } else { pass() }",
        "Block",
    );
    // Fewer questions to a rate than were asked.
    check(
        "if rate(\"k\", 1, \"1m\") { rate(\"k\", 1, \"1m\") } direct()",
        "if rate(\"k\", 1, \"1m\") { block() } else { pass() }",
        "Block",
    );
}

#[test]
fn the_nodes_of_an_argument_are_known_whether_they_were_read_or_not() {
    let hook = |name: &str, nodes: &str| {
        let parts: Vec<_> = nodes
            .split(' ')
            .map(|node| format!("${{seen({node})}}"))
            .collect();
        format!("fn {name}(a) {{ deny(`{}`) }}\n", parts.join(" "))
    };
    let mut reader =
        "fn seen(p) { `${p.name} by ${p.relays.map(|r| `${r.name} ${r.rtt}`)}` }\n".to_owned();
    for (name, nodes) in [
        ("accept", "a"),
        ("relay", "a.from a.to"),
        ("exit", "a.from"),
    ] {
        reader += &hook(name, nodes);
    }
    let reader = policy(&reader);
    let quiet = "fn accept(p) { allow() } fn relay(q) { allow() } fn exit(x) { allow() }";
    for ((asked, _), (recording, _)) in decisions(&reader).iter().zip(decisions(&policy(quiet))) {
        if recording.question.hook() != "route" {
            let replayed = replay(&reader, &recording).unwrap();
            assert_eq!(replayed.answer, asked.answer);
            let text = format!("{:?}", replayed.answer);
            assert!(
                text.contains("by [\\\"r1 ") || text.contains("by []"),
                "{text}"
            );
        }
    }
}

#[test]
fn a_name_in_tls_that_nobody_read_is_not_guessed() {
    let reads = "fn route(c) { if c.sni == () { direct() } else { block() } }";
    let unread = || Conn {
        sni: Sni::Unread,
        ..conn("192.0.2.1")
    };
    let not_read = Err(NotRecorded::Read("c.sni".to_owned()));
    let direct = "fn route(c) { direct() }";
    assert_eq!(candidate(direct, reads, unread()), not_read);
    let asked_for = candidate(reads, reads, unread()).unwrap().answer;
    assert_eq!(asked_for, Answer::Route(Outcome::NeedSni));
    let read = candidate(direct, reads, conn("192.0.2.1"));
    assert_eq!(plan(read), "Direct");
}

#[test]
fn what_was_not_read_is_not_guessed() {
    let check = |script: &str, other: &str, expected: &str| {
        let route = |body: &str| format!("fn route(c) {{ {body} }}");
        let replayed = candidate(&route(script), &route(other), conn("web.bob.wh"));
        let expected = NotRecorded::Read(expected.to_owned());
        assert_eq!(replayed, Err(expected), "{other}");
    };
    check("direct()", "peer(\"carol\").direct()", "peer(\"carol\")");
    check(
        "direct()",
        "if peers().len == 0 { pass() } else { direct() }",
        "peers()",
    );
    check(
        "direct()",
        "try { relays() } catch { return block() } direct()",
        "relays()",
    );
    check(
        "direct()",
        "if set(\"ads\").has(c.host) { block() } else { direct() }",
        "set(\"ads\").has(\"web.bob.wh\")",
    );
    check(
        "direct()",
        "first_set(c.host); direct()",
        "first_set(\"web.bob.wh\")",
    );
    check("direct()", "kv_get(\"k\"); direct()", "kv_get(\"k\")");
    check(
        "direct()",
        "rate(\"k\", 1, \"1m\"); direct()",
        "rate(\"k\", 1, 60s)",
    );
    check(
        "rate(\"k\", 1, \"1m\"); direct()",
        "rate(\"k\", 2, \"1m\"); direct()",
        "rate(\"k\", 2, 60s)",
    );
    check(
        "rate(\"k\", 1, \"1m\"); direct()",
        "rate(\"k\", 1, \"1m\"); rate(\"k\", 1, \"1m\"); direct()",
        "rate(\"k\", 1, 60s)",
    );
    // What a quota says hangs on what was taken before.
    check(
        "quota(\"k\"); quota(\"k\", 1, 9, \"1h\"); direct()",
        "quota(\"k\", 1, 9, \"1h\"); quota(\"k\"); direct()",
        "quota(\"k\", 1, 9)",
    );
    // Looked up only when a script names it.
    check(
        "direct()",
        "if c.app == () { block() } else { pass() }",
        "c.app",
    );
}

#[test]
fn sets_that_are_given_stand_in_for_recorded_ones() {
    let script = "fn route(c) { if set(\"ads\").has(c.host) { block() } else { direct() } }";
    let (recording, _) = routed(&policy(script), conn("a.example"), &world());
    let mut given = SetRegistry::default();
    given.load("ads", "ads.txt", "a.example").unwrap();
    let replayed = policy(script).replay(&recording, &given.into());
    assert_eq!(plan(replayed), "Block");
}

#[test]
fn what_hangs_on_more_than_is_kept_says_so() {
    let check = |body: &str, expected: &str| {
        let script = format!("fn route(c) {{ {body} direct() }}");
        let (recording, _) = routed(&policy(&script), conn("a.example"), &world());
        let error = replay(&policy(&script), &recording).unwrap_err();
        assert_eq!(error, NotRecorded::Lost(expected.to_owned()), "{body}");
    };
    let long = "let k = \"\"; k.pad(240, 'x'); for i in 0..300 { rate(`${i}${k}`, 1, \"1h\"); }";
    check(long, "it read more than 64 KiB");
    let many = "for i in 0..300 { kv_set(`${i}`, 1); }";
    check(many, "it read and kept more values than a script may keep");
}

/// Frozen: files that people saved must be read, or be refused in words, by later versions.
#[test]
fn a_recording_keeps_its_form() {
    let text = include_str!("recording.json");
    let recording: Recording = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&recording).unwrap(), text.trim_end());
    let script = "fn route(c) { if rate(c.user, 1, \"1m\") { c.node.best() } else { block() } }";
    assert_eq!(plan(replay(&policy(script), &recording)), "Direct");
}
