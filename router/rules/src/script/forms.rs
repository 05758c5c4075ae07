//! How the host's functions are called: how many arguments each takes, and which texts and numbers
//! it takes where they stand in the script as such. What depends on a flow is checked when it comes.

use rhai::{Dynamic, Expr, Position};

use super::lint::Fault;
use crate::{
    api::{lookups, plans},
    units,
};

/// What this crate registers, and how each is written. Where a form begins with an object, a call
/// may name the object as its first argument, which Rhai takes for the same.
pub(super) const HOST: &[(&str, &[&str])] = &[
    ("after", &["text.after(start)"]),
    ("allow", &["allow()"]),
    ("back_after", &["plan.back_after(times)"]),
    ("before", &["text.before(end)"]),
    ("best", &["peer.best()"]),
    ("bill", &["allow().bill(peer)"]),
    ("block", &["block()", "block(why)"]),
    ("bw", &["plan.bw(rate)"]),
    ("bytes", &["plan.bytes(size)"]),
    ("carrier", &["plan.carrier(carrier)"]),
    ("closed", &["plan.closed()"]),
    ("delay", &["plan.delay(time)"]),
    ("deny", &["deny()", "deny(why)"]),
    ("direct", &["direct()", "peer.direct()"]),
    ("exit", &["plan.exit()"]),
    (
        "first_set",
        &["first_set(value)", "first_set(value, names)"],
    ),
    ("for_time", &["allow().for_time(time)"]),
    ("has", &["set(name).has(value)"]),
    ("hash", &["hash(text)"]),
    ("i2p", &["i2p()", "i2p(settings)"]),
    ("idle", &["allow().idle(time)"]),
    ("isolate", &["plan.isolate(keys)"]),
    ("jitter", &["plan.jitter(shape)"]),
    ("kv_get", &["kv_get(key)"]),
    ("kv_set", &["kv_set(key, value)", "kv_set(key, value, ttl)"]),
    ("label", &["plan.label(text)"]),
    ("log", &["log(level, text)"]),
    ("migrate", &["plan.migrate(what)"]),
    ("need", &["need(\"ip\", plan)"]),
    ("notify", &["notify(level, text)"]),
    (
        "onion",
        &["onion(hops)", "onion(hops, options)", "peer.onion(hops)"],
    ),
    ("or", &["plan.or(plan)"]),
    // Of a text or a list it is Rhai's own.
    ("pad", &["plan.pad(bytes)", "text.pad(length, fill)"]),
    ("pass", &["pass()"]),
    ("peer", &["peer(who)"]),
    ("peers", &["peers()", "peers(|p| p.up)"]),
    ("plan", &["plan()"]),
    ("punch", &["peer.punch()", "peer.punch(how)"]),
    (
        "quota",
        &["quota(key)", "quota(key, amount, limit, window)"],
    ),
    ("race", &["plan.race(plan)"]),
    ("rate", &["rate(key, n, window)"]),
    ("relay", &["relay(who)"]),
    ("relayed", &["peer.relayed()", "peer.relayed(relay)"]),
    ("relays", &["relays()", "relays(|r| r.up)"]),
    ("sample", &["sample(shape, random)"]),
    ("set", &["set(name)"]),
    ("socks", &["socks(server)"]),
    ("step", &["plan.step(plan)"]),
    ("stick", &["plan.stick(time)"]),
    ("tag", &["tag(key, value)"]),
    ("timeout", &["plan.timeout(time)"]),
    ("to", &["plan.to(peer)"]),
    ("tor", &["tor()", "tor(choices)"]),
    ("via", &["plan.via(node)"]),
];

/// Whether the host's function `name` takes so many arguments, its object among them. Other
/// functions are not judged.
pub(super) fn check_count(name: &str, given: usize) -> Result<(), String> {
    let Some((_, forms)) = HOST.iter().find(|(host, _)| *host == name) else {
        return Ok(());
    };
    if forms.iter().any(|form| count(form) == given) {
        return Ok(());
    }
    Err(format!(
        "`{name}` is called with other arguments: {}",
        forms.join(" or ")
    ))
}

/// The arguments of a form, its object among them.
fn count(form: &str) -> usize {
    let (before, arguments) = form.rsplit_once('(').unwrap_or((form, ""));
    let object = usize::from(before.contains('.'));
    match arguments.strip_suffix(')') {
        Some("") | None => object,
        Some(list) => object + list.split(',').count(),
    }
}

/// What is wrong with `expr` as an argument of `name`. `place` is its number and how many there are,
/// both with the object.
pub(super) fn check_argument(name: &str, place: (usize, usize), expr: &Expr) -> Vec<Fault> {
    if let ("onion" | "punch" | "tor", Expr::Map(options, _)) = (name, expr) {
        let checked = options.0.iter().map(|(key, value)| {
            let checked = match (name, value.get_literal_value(None)) {
                ("tor", Some(value)) => plans::check_tor_option(&key.name, &value),
                ("tor", None) => plans::check_tor_option_name(&key.name),
                ("punch", Some(value)) => plans::check_punch_option(&key.name, &value),
                ("punch", None) => plans::check_punch_option_name(&key.name),
                (_, Some(value)) => plans::check_onion_option(&key.name, &value),
                (_, None) => plans::check_onion_option_name(&key.name),
            };
            fault(key.pos, checked.err())
        });
        return checked.flatten().collect();
    }
    if let ("i2p", Expr::Map(settings, position)) = (name, expr) {
        let names = settings.0.iter().map(|(key, _)| key.name.as_str());
        let together = fault(*position, plans::check_i2p_settings(names).err());
        let each = settings.0.iter().map(|(key, value)| {
            let checked = match value.get_literal_value(None) {
                Some(value) => plans::check_i2p_setting(&key.name, &value),
                None => plans::check_i2p_setting_name(&key.name),
            };
            fault(key.pos, checked.err())
        });
        return together.into_iter().chain(each.flatten()).collect();
    }
    if let ("or" | "step" | "race" | "need", Expr::FnCall(call, position)) = (name, expr)
        && matches!(call.name.as_str(), "pass" | "need")
    {
        return vec![Fault {
            position: *position,
            message: plans::NOT_A_STEP.to_owned(),
        }];
    }
    let value = expr.get_literal_value(None);
    let wrong = value.and_then(|value| check_literal(name, place, &value).err());
    fault(expr.start_position(), wrong).into_iter().collect()
}

fn fault(position: Position, message: Option<String>) -> Option<Fault> {
    message.map(|message| Fault { position, message })
}

fn check_literal(name: &str, place: (usize, usize), value: &Dynamic) -> Result<(), String> {
    let text = || value.clone().into_immutable_string().ok();
    match (name, place.0) {
        ("onion", _) => match value.as_int() {
            Ok(hops) => plans::hop_count(hops).map(drop),
            Err(found) => Err(format!("onion() takes a number of hops, not {found}")),
        },
        ("i2p", _) => Err("i2p() takes settings: i2p(#{ length: 2 })".to_owned()),
        ("peers" | "relays", 0) if !value.is_fnptr() => {
            Err(format!("{name}() takes a closure: {name}(|r| r.up)"))
        }
        ("pad", 1) if place.1 == 2 => value
            .as_int()
            .map_or(Ok(()), |bytes| plans::pad_bytes(bytes).map(drop)),
        ("stick", 1) => plans::stick_time(value).map(drop),
        ("back_after", 1) => match value.as_int() {
            Ok(times) => plans::back_after(times).map(drop),
            Err(found) => Err(format!("back_after() takes a number, not {found}")),
        },
        ("migrate", 1) => match text() {
            Some(what) => plans::migrate(&what).map(drop),
            None => Err("migrate() takes \"streams\" or \"none\"".to_owned()),
        },
        ("timeout" | "delay" | "idle" | "for_time", 1) | ("kv_set", 2) => {
            units::duration(value).map(drop)
        }
        ("rate", 2) | ("quota", 3) => units::window(value).map(drop),
        ("bw", 1) => units::rate(value).map(drop),
        ("bytes", 1) => units::size(value).map(drop),
        ("jitter", 1) | ("sample", 0) => {
            text().map_or(Ok(()), |shape| units::distribution(&shape).map(drop))
        }
        ("socks", 0) => text().map_or(Ok(()), |server| plans::socks_server(&server).map(drop)),
        ("log" | "notify", 0) => text().map_or(Ok(()), |level| lookups::level(&level).map(drop)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use super::*;
    use crate::{
        policy::Surroundings,
        script::{Script, call::Call, ground::Ground},
        sets::SetRegistry,
        view::{NodeView, World},
    };

    #[test]
    fn a_form_says_how_many_arguments_there_are() {
        for (form, expected) in [
            ("pass()", 0),
            ("log(level, text)", 2),
            ("plan.closed()", 1),
            ("plan.timeout(time)", 2),
            ("allow().idle(time)", 2),
            ("set(name).has(value)", 2),
            ("relays(|r| r.up)", 1),
        ] {
            assert_eq!(count(form), expected, "{form}");
        }
    }

    /// What the words in forms stand for.
    const WORDS: &str = r#"
        let who = "bob"; let peer = peer(who); let node = peer; let relay = peer;
        let plan = onion(3); let hops = 3; let options = #{ isolate: 1, from: "any" };
        let choices = #{ isolate: [1, ()] };
        let text = "text"; let start = "e"; let end = "e"; let why = "why"; let length = 8;
        let fill = 'x'; let name = "set"; let names = [name]; let value = "x.example";
        let key = "key"; let keys = [key]; let level = "info"; let n = 1; let amount = 1;
        let limit = 2; let time = "1m"; let window = time; let ttl = time; let rate = "1MB/s";
        let size = "1MB"; let bytes = 512; let shape = "exp 30ms"; let random = 7;
        let server = "127.0.0.1:1080"; let carrier = "tcp"; let settings = #{ isolate: 1 };
        let times = 2; let how = #{ via: peer }; let what = "streams";
    "#;

    #[test]
    fn every_form_is_one_that_works() {
        let mut bob = NodeView::stranger(wormholes_proto::NodeId::from_bytes([1; 32]), "bob");
        bob.is_peer = true;
        let world = Arc::new(World::new(vec![bob.into()]));
        let mut sets = SetRegistry::default();
        sets.load("set", "", "").unwrap();
        let surroundings = Surroundings {
            sets: sets.into(),
            ..Surroundings::default()
        };
        for form in HOST.iter().flat_map(|(_, forms)| *forms) {
            let text = format!("fn route(c) {{ {WORDS} let x = {form}; pass() }}");
            let (script, _) = Script::compile("s.rhai", &text).expect(&text);
            let ground = Ground::of_node(surroundings.clone(), world.clone(), None);
            let call = Call::new("s.rhai".into(), ground.into(), SystemTime::UNIX_EPOCH);
            let result = script.run("route", 1_i64.into(), Arc::new(call));
            assert!(result.is_ok(), "{text}: {result:?}");
        }
    }
}
