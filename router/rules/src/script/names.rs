//! The names that a script may use. Whatever is not here is refused when the script is loaded, so
//! that nothing of Rhai's library is reachable that was not looked at.

use super::{forms::HOST, hint::nearest};
use crate::api::objects::is_node_field;

/// The longest name of a fact, or of a hook that plugins ask.
const MAX_WORD_BYTES: usize = 32;

/// Hooks and how many arguments each has.
pub const HOOKS: [(&str, usize); 6] = [
    ("init", 1),
    ("route", 1),
    ("accept", 1),
    ("relay", 1),
    ("exit", 1),
    ("on_event", 1),
];

/// Of Rhai's library: what is linear in its arguments, allocates no more than they hold, and
/// cannot panic. `pad` checks the limits before it allocates.
const LIBRARY: &[&str] = &[
    "abs",
    "all",
    "bits",
    "ceiling",
    "chars",
    "clear",
    "contains",
    "ends_with",
    "filter",
    "find",
    "find_map",
    "floor",
    "get",
    "index_of",
    "insert",
    "int",
    "is_empty",
    "is_even",
    "is_odd",
    "is_zero",
    "keys",
    "len",
    "map",
    "max",
    "min",
    "parse_float",
    "parse_int",
    "pop",
    "push",
    "range",
    "reduce",
    "remove",
    "reverse",
    "round",
    "shift",
    "sign",
    "some",
    "sort",
    "split",
    "starts_with",
    "sub_string",
    "to_float",
    "to_int",
    "to_lower",
    "to_string",
    "to_upper",
    "trim",
    "truncate",
    "type_of",
    "values",
];

/// Of these: what changes its first argument where that lies.
const WRITERS: &[&str] = &[
    "clear", "insert", "pad", "pop", "push", "remove", "reverse", "shift", "sort", "split", "trim",
    "truncate",
];

/// What the language calls operators and parses as calls.
const OPERATORS: &[&str] = &[
    "+", "-", "*", "/", "%", "**", "==", "!=", "<", ">", "<=", ">=", "!", "&", "|", "^", "<<",
    ">>", "&&", "||", "..", "..=", "in", "!in", "??",
];

/// Library functions that take a closure: the only places where one may use outer variables.
const CLOSURE_TAKERS: &[&str] = &[
    "all", "filter", "find", "find_map", "index_of", "map", "peers", "reduce", "relays", "some",
    "sort",
];

/// What people know from other scripts of this kind, and this build lacks.
const NOT_BUILT: &[(&str, &str)] = &[
    (
        "address",
        "; a peer that is let in learns this node's record",
    ),
    ("exits", "; peers(|p| p.is_exit) lists peers that exit"),
    ("relays_best", "; sort relays() instead"),
    ("fetch_decoy", ""),
    ("cover", ""),
    ("geo", ""),
    ("asn", ""),
    ("dns", ""),
    ("dns_fake", ""),
    ("dns_static", ""),
    ("dns_decoy", ""),
    ("nxdomain", ""),
    ("min_ttl", ""),
];

/// Why an allowance of `accept` is refused.
pub(crate) const NO_LIMITS: &str =
    "accept() takes no limits in this build; relay(q) and exit(x) do";

/// Why a hook that a plugin asks bills nobody.
pub(crate) const NO_BILL: &str =
    "nothing is carried here that could be billed: `bill` is for relay(q) and exit(x)";

/// Whether bytes are carried as this hook says.
pub(crate) fn carries(hook: &str) -> bool {
    matches!(hook, "relay" | "exit")
}

/// Limits of an allowance. `accept` has none: who is let in is limited by what each request gets.
pub(crate) const LIMITS: &[&str] = &["bill", "bw", "bytes", "for_time", "idle"];

/// Hooks that people know and this build lacks.
const HOOKS_NOT_BUILT: &[&str] = &["resolve", "decoy", "visit", "admit"];

/// Fields that people know and this build lacks.
const FIELDS_NOT_BUILT: &[(&str, &str)] = &[
    ("alpn", ""),
    ("asn", ""),
    ("country", ""),
    ("net", ""),
    ("caps", "; a node has is_relay, is_hop and is_exit"),
    ("price", ""),
    ("since", ""),
    ("score", ""),
    ("groups", ""),
    ("path", "; a node has online and has_address"),
];

/// What Rhai has and a rule script must not.
const FORBIDDEN: &[&str] = &[
    "eval",
    "sleep",
    "replace",
    "print",
    "debug",
    "timestamp",
    "Fn",
    "call",
    "curry",
    "parse_json",
    "to_json",
    "is_def_fn",
    "is_def_var",
    "is_shared",
    "import",
    "export",
];

/// Whether scripts may call `name`; `extra` is what the script itself defines.
pub(crate) fn check_function(name: &str, extra: &[String]) -> Result<(), String> {
    let known = |list: &[&str]| list.contains(&name);
    if is_host(name) || known(LIBRARY) || is_operator(name) || extra.iter().any(|own| own == name) {
        return Ok(());
    }
    if let Some((_, instead)) = NOT_BUILT.iter().find(|(not_built, _)| *not_built == name) {
        return Err(format!("`{name}` is not in this build{instead}"));
    }
    if known(FORBIDDEN) {
        return Err(format!("`{name}` is not available in rule scripts"));
    }
    let names = HOST.iter().map(|(host, _)| *host);
    let names = names.chain(LIBRARY.iter().copied());
    let all = names.chain(extra.iter().map(String::as_str));
    Err(match nearest(name, all) {
        Some(near) => format!("no function is called `{name}`; did you mean `{near}`?"),
        None => format!("no function is called `{name}`"),
    })
}

/// Whether `name` is a field that only a later build has.
pub(crate) fn check_field(name: &str) -> Result<(), String> {
    match FIELDS_NOT_BUILT.iter().find(|(field, _)| *field == name) {
        Some((_, instead)) => Err(format!("the field `{name}` is not in this build{instead}")),
        None => Ok(()),
    }
}

/// Whether a script may define a function `name` with so many parameters.
pub(crate) fn check_definition(name: &str, parameters: usize) -> Result<(), String> {
    if let Some((_, expected)) = HOOKS.iter().find(|(hook, _)| *hook == name) {
        return if parameters == *expected {
            Ok(())
        } else {
            Err(format!(
                "the hook `{name}` takes {expected} argument, not {parameters}"
            ))
        };
    }
    if HOOKS_NOT_BUILT.contains(&name) {
        return Err(format!("the hook `{name}` is not in this build"));
    }
    let taken = is_host(name) || LIBRARY.contains(&name) || FORBIDDEN.contains(&name);
    if taken || NOT_BUILT.iter().any(|(not_built, _)| *not_built == name) {
        return Err(format!(
            "`{name}` is the host's; give your function another name"
        ));
    }
    Ok(())
}

/// Whether a plugin may ask a hook of this name.
///
/// # Errors
/// What is wrong with it.
pub fn check_asked_hook(name: &str) -> Result<(), String> {
    let taken = HOOKS.iter().any(|(hook, _)| *hook == name);
    if taken || HOOKS_NOT_BUILT.contains(&name) {
        return Err(format!("`{name}` is a hook that the node asks itself"));
    }
    check_word(name)?;
    check_definition(name, 1)?;
    parses(name, &format!("fn {name}(w) {{ pass() }}"))
}

/// Whether a plugin may publish a fact of this name, which scripts read as `p.NAME`.
///
/// # Errors
/// What is wrong with it.
pub fn check_fact(name: &str) -> Result<(), String> {
    check_word(name)?;
    if is_node_field(name) {
        return Err(format!("`{name}` is a field that every node has"));
    }
    check_field(name)?;
    parses(name, &format!("fn accept(p) {{ p.{name} }}"))
}

fn check_word(name: &str) -> Result<(), String> {
    let rest = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if begins && name.len() <= MAX_WORD_BYTES && name.bytes().all(rest) {
        return Ok(());
    }
    let rule = "is a small letter, then small letters, digits and `_`; at most 32";
    Err(format!("`{name}`: a name that scripts use {rule}"))
}

fn parses(name: &str, script: &str) -> Result<(), String> {
    let parsed = rhai::Engine::new_raw().compile(script);
    parsed
        .map(drop)
        .map_err(|_| format!("`{name}` is a word of the language of scripts"))
}

/// The hook that a function which nobody calls was probably meant to be.
pub(crate) fn misspelt_hook(name: &str) -> Option<&'static str> {
    let names = HOOKS.iter().map(|(hook, _)| *hook);
    nearest(name, names.filter(|hook| *hook != name))
}

/// Whether a closure that uses outer variables may be an argument of `name`.
pub(crate) fn takes_closure(name: &str) -> bool {
    CLOSURE_TAKERS.contains(&name)
}

/// Whether a library function changes its first argument.
pub(crate) fn is_writer(name: &str) -> bool {
    WRITERS.contains(&name)
}

/// Whether the node itself asks a function of this name.
pub(crate) fn is_hook(name: &str) -> bool {
    HOOKS.iter().any(|(hook, _)| *hook == name)
}

fn is_host(name: &str) -> bool {
    HOST.iter().any(|(host, _)| *host == name)
}

fn is_operator(name: &str) -> bool {
    let plain = name.strip_suffix('=').unwrap_or(name);
    OPERATORS.contains(&name) || OPERATORS.contains(&plain)
}
