//! Rule scripts, and decisions that were recorded.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use wormholes_rules::{
    Conn, Diagnostic, LoadEnv, NotRecorded, Policy, Recording, ScriptSource, SetRegistry, World,
};

/// A script, which is checked, and asked once when it may be asked.
pub fn script(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match load(&text) {
        Ok(policy) => {
            check(&text, policy.warnings());
            let conn = Arc::new(Conn::to("a.example", 443));
            let world = Arc::new(World::default());
            policy.route(&conn, &world, SystemTime::UNIX_EPOCH);
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            check(&text, &errors);
        }
    }
}

/// What is said stands somewhere in the text; 0 is the text as a whole.
fn check(text: &str, said: &[Diagnostic]) {
    let n_lines = text.split('\n').count();
    for diagnostic in said {
        assert!(diagnostic.line <= n_lines, "{diagnostic:?}");
        assert!(!diagnostic.message.is_empty());
    }
}

fn load(text: &str) -> Result<Policy, Vec<Diagnostic>> {
    let source = ScriptSource {
        name: "fuzz.rhai".to_owned(),
        text: text.to_owned(),
    };
    let env = LoadEnv {
        known_peers: Some(BTreeSet::from(["bob".to_owned()])),
        ..LoadEnv::default()
    };
    Policy::load(&[source], &env)
}

/// A recording as JSON, which is asked again.
pub fn recording(input: &[u8]) {
    let Ok(recording) = serde_json::from_slice::<Recording>(input) else {
        return;
    };
    let text = serde_json::to_string(&recording).unwrap();
    let again: Recording = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
    assert!(!recording.text(&recording.answer).is_empty());
    recording.question.about();
    let asked = [&recording, &again].map(|recording| READER.replay(recording));
    let [first, second] = asked;
    let in_time = |answer: &Result<String, NotRecorded>| *answer != Err(NotRecorded::OutOfTime);
    if in_time(&first) && in_time(&second) {
        assert_eq!(first, second, "one record, two answers");
    }
}

/// Scripts that read all that a decision may have read.
struct Reader(OnceLock<Policy>);

static READER: Reader = Reader(OnceLock::new());

impl Reader {
    /// The answer, as it is shown.
    fn replay(&self, recording: &Recording) -> Result<String, NotRecorded> {
        let policy = self.0.get_or_init(|| load(READS).unwrap());
        let replayed = policy.replay(recording, &Arc::<SetRegistry>::default())?;
        Ok(recording.text(&replayed.answer))
    }
}

const READS: &str = r#"
fn seen(p) {
    if p == () { return "nobody"; }
    `${p.name} ${p.trust} ${p.online} ${p.rtt} ${p.loss} ${p.load} ${p.relays.len()} ${p.credit}`
}
fn route(c) {
    tag("c", `${c.id} ${c.host} ${c.domain} ${c.ip} ${c.port} ${c.app} ${c.uid} ${c.user} ${c.src}`);
    tag("nodes", seen(c.node) + seen(peer("bob")) + peers().len() + relays(|r| r.rtt < 25.0).len());
    if rate("r", 2, "1m") && quota("q", 40, 100, "1h") { kv_set("n", kv_get("n") ?? 0); }
    peer("carol").best().or(onion(3).isolate(c.user)).closed()
}
fn accept(p) { if p.trust > 0 { allow() } else { deny(seen(p)) } }
fn relay(q) { tag("to", seen(q.to)); allow().bytes(1000 + q.bytes_today) }
fn exit(x) { if x.ip == () { deny("no") } else { allow().bw("1MB/s") } }
"#;
