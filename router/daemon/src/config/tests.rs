//! What config.toml at the top of the repository promises, and what a user is told about mistakes.

use std::{collections::BTreeSet, path::Path};

use super::{
    Config, HttpConfig, Problem,
    keys::{Effect, SECTIONS},
};

const SHIPPED: &str = include_str!("../../../../config.toml");
const ID: &str = "ybndrfg8ejkmcpqxot1uwisza345h769ybndrfg8ejkmcpqxot1y";

/// Options are commented out without a space after `#`; prose has one.
fn uncommented() -> String {
    let lines = SHIPPED.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_config_says_nothing() {
    let config = Config::parse(SHIPPED, Path::new("/")).unwrap();
    assert_eq!(config, Config::default());
}

#[test]
fn the_shipped_config_shows_each_default() {
    let mut config = Config::parse(&uncommented(), Path::new("/etc/wormholes")).unwrap();
    assert_eq!(config.peers.len(), 1);
    assert_eq!(config.entrances.len(), 1);
    assert_eq!(config.services.len(), 1);
    // These have no default; the file shows examples.
    config.peers.clear();
    config.entrances.clear();
    config.services.clear();
    config.rules.scripts.clear();
    config.rules.sets.clear();
    config.plugins.clear();
    config.node.family = None;
    config.control.socket = None;
    config.metrics.listen = None;
    config.i2p.sam = None;
    config.http = HttpConfig::default();
    config.tor.state_dir = None;
    config.tor.network = None;
    assert_eq!(config, Config::default());
}

#[test]
fn the_shipped_config_has_every_key_with_its_mark() {
    let mut section = "";
    let mut comment = String::new();
    let mut seen = BTreeSet::new();
    for line in SHIPPED.lines() {
        if let Some(prose) = line.strip_prefix("# ") {
            comment.push_str(prose);
            continue;
        }
        if let Some(name) = line.strip_prefix("#[") {
            section = name.trim_matches(['[', ']']);
            // Of `[plugin.NAME]` the name is the operator's.
            if !SECTIONS.iter().any(|known| known.name == section) {
                section = section.split('.').next().unwrap_or(section);
            }
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ") {
            seen.insert((section.to_owned(), key.to_owned()));
            check_mark(section, key, &comment);
        }
        comment.clear();
    }
    let known = SECTIONS.iter().flat_map(|section| {
        let keys = section.keys();
        keys.map(|(key, _)| (section.name.to_owned(), key.to_owned()))
    });
    assert_eq!(seen, known.collect::<BTreeSet<_>>());
}

fn check_mark(section: &str, key: &str, comment: &str) {
    let known = SECTIONS.iter().find(|s| s.name == section);
    let known = known.and_then(|s| s.keys().find(|(name, _)| *name == key));
    let (_, effect) = known.unwrap_or_else(|| panic!("[{section}] {key} is unknown"));
    let mark = match effect {
        Effect::Reloadable => "(reloadable)",
        Effect::Restart => "(restart)",
    };
    assert!(comment.ends_with(mark), "[{section}] {key}: {comment:?}");
}

fn problems(text: &str) -> Vec<(usize, String)> {
    let problems = Config::parse(text, Path::new("/")).unwrap_err();
    let pairs = problems
        .into_iter()
        .map(|Problem { line, message }| (line, message));
    pairs.collect()
}

fn check(text: &str, line: usize, message: &str) {
    let found = problems(text);
    let hit = found
        .iter()
        .any(|(at, said)| *at == line && said.contains(message));
    assert!(
        hit,
        "expected {line}: {message} for {text:?}, got {found:?}"
    );
}

#[test]
fn unknown_keys_are_named_with_the_nearest_known_one() {
    check(
        "[node]\nlisten_on = []",
        2,
        "unknown key `listen_on` in [node]; did you mean `listen`?",
    );
    check(
        "\n\n[entrence]\n",
        3,
        "unknown section or key `entrence`; did you mean `entrance`?",
    );
    check(
        "[[peer]]\nname = 'a'\nadresses = []",
        3,
        "did you mean `addresses`?",
    );
    check("[log]\nqqq = 1", 2, "unknown key `qqq` in [log]");
    check(
        "flows = 1",
        1,
        "unknown section or key `flows`; it belongs under [limits]",
    );
    check("name = 'x'", 1, "unknown section or key `name`");
    check("[tor]\nenable = true", 2, "did you mean `enabled`?");
    check(
        "[tor.network]\nauthorites = []",
        2,
        "unknown key `authorites` in [tor.network]; did you mean `authorities`?",
    );
    check(
        "fallbacks = []",
        1,
        "unknown section or key `fallbacks`; it belongs under [tor.network]",
    );
    check("[relay]\nidle = 3", 2, "did you mean `idle_seconds`?");
}

#[test]
fn what_a_later_build_has_is_named_as_such() {
    for (text, line, what) in [
        (
            "[limits]\nflows = 1\nmemory_mib = 1",
            3,
            "`memory_mib` in [limits]",
        ),
        ("[[entrance]]\nkind = 'dns'", 2, "entrance of kind \"dns\""),
        (
            "[node]\nnetworks = ['ours']",
            2,
            "networks beside \"public\"",
        ),
    ] {
        check(text, line, &format!("this build has no {what} yet"));
    }
}

#[test]
fn wrong_values_are_named_with_key_and_line() {
    check(
        "[node]\nlisten = ['x:1']",
        2,
        "`listen` in [node]: expected an address",
    );
    check("[node]\nfamily = 'two words'", 2, "without spaces");
    check("[node]\npunch_trust = 4", 2, "4 is outside 0 to 3");
    for address in ["0.0.0.0:1", "224.0.0.1:1", "[::ffff:192.0.2.1]:1"] {
        let text = format!("[node]\nadvertise = ['{address}']");
        check(&text, 2, "nobody can dial");
    }
    check("[node]\nlisten = '[::]:1'", 2, "expected a list");
    check("[node]\nname = 3", 2, "expected a text, found integer");
    check(
        "[limits]\nflows = 0",
        2,
        "`flows` in [limits]: 0 is outside 1 to",
    );
    check("[limits]\nflows = -1", 2, "-1 is outside");
    check(
        "[limits]\ndrain_seconds = 1.5",
        2,
        "expected an integer, found float",
    );
    check(
        "[relay]\nenabled = 'yes'",
        2,
        "expected true or false, found string",
    );
    check(
        "[state]\nbackend = 'sqlite'",
        2,
        "`backend` in [state]: what plugins keep is kept by \"redb\" alone",
    );
    check("[http]\nlisten = '0.0.0.0:1'", 2, "beyond loopback");
    check("[http]\ncertificate = 'c.pem'", 2, "needs `key`");
    check("[http]\ndomain = 'Example.org'", 2, "small letters");
    check("[metrics]\nlisten = '0.0.0.0:1'", 2, "loopback only");
    let shown = problems("[[entrance]]\nusers = { ann = 'secret");
    assert!(!shown[0].1.contains("secret"), "{shown:?}");
}

#[test]
fn wrong_sections_are_named_with_their_line() {
    check("[relay]\nenabled = true", 2, "set `listen` in [node]");
    let by_onion = "[tor]\nenabled = true\npeers = true\n[relay]\nenabled = true\n";
    let hop = format!("{by_onion}[hop]\nenabled = true");
    check(&hop, 7, "as a hop: set `listen` in [node]");
    assert!(Config::parse(by_onion, Path::new("/")).is_ok());
    check("[exit]\nenabled = true", 2, "without `allow`");
    check("[exit]\nallow = ['all']", 2, "expected block:ports");
    let unreadable =
        problems("[node]\nlisten = ['127.0.0.1:1']\n[exit]\nenabled = true\nallow = ['all']");
    assert_eq!(unreadable.len(), 1, "{unreadable:?}");
    check("[control]\nmode = '9'", 2, "octal");
    check("[log]\nformat = 'xml'", 2, "expected \"text\" or \"json\"");
    check(
        "[log]\nlevel = 'inof'",
        2,
        "`level` in [log]: `inof` is no level",
    );
    check(
        "[rules]\ndefault = 'tor'",
        2,
        "expected \"block\" or \"direct\"",
    );
    check("[rules]\nsets = ['ads.txt']", 2, "expected { name");
    check("[node]\nname = ", 2, "`name`: ");
    check("[node]\nname = 'a'\nname = 'b'", 3, "`name`: duplicate key");
    check("[node\n", 1, "unclosed table");
    check("node = 3", 1, "expected a section [node]");
    check("[peer]\nname = 'a'", 1, "expected [[peer]]");
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    check("[[peer]]\nname = 'a'", 1, "`id` in [peer]: missing");
    check(
        "[[peer]]\nname = 'A b'\nid = 'x'",
        2,
        "expected 1 to 63 characters",
    );
    check(
        &format!("[[peer]]\nname = '{ID}'\nid = '{ID}'"),
        2,
        "may not look like a node id",
    );
    let peer = |name: &str, more: &str| format!("[[peer]]\nname = '{name}'\nid = '{ID}'\n{more}\n");
    check(
        &(peer("a", "") + peer("a", "").as_str()),
        6,
        "a second peer \"a\"",
    );
    check(
        &(peer("a", "") + peer("b", "").as_str()),
        7,
        "a second peer with this id",
    );
    check(&peer("a", "via = ['r']"), 4, "no [[peer]] is named \"r\"");
    check(&peer("a", "trust = 4"), 4, "4 is outside 0 to 3");
    check(
        &peer("a", "register = true"),
        4,
        "a relay needs `addresses`",
    );
    check(
        "[[service]]\nname = 'a'\ntarget = '127.0.0.1:0'",
        3,
        "port 0",
    );
    check(
        "[[service]]\nname = 'wormholes-trunk'\ntarget = '127.0.0.1:1'",
        2,
        "is kept for plugins",
    );
    check(
        "[[service]]\nname = 'a'\ntarget = '127.0.0.1:1'\nnetwork = 'sctp'",
        4,
        "expected \"tcp\" or \"udp\"",
    );
}

#[test]
fn a_service_that_cannot_be_published_over_i2p_is_refused() {
    let service = |more: &str, router: &str| {
        format!("[[service]]\nname = 'a'\ntarget = '127.0.0.1:1'\ni2p = true\n{more}\n{router}")
    };
    let router = "[i2p]\nsam = '127.0.0.1:7656'";
    check(&service("min_trust = 0", ""), 4, "set `sam` in [i2p]");
    check(&service("", router), 4, "set `min_trust = 0`");
    check(
        &service("min_trust = 0\nnetwork = 'udp'", router),
        4,
        "I2P carries streams",
    );
    let good = Config::parse(&service("min_trust = 0", router), Path::new("/")).unwrap();
    assert!(good.services[0].i2p);
    let lacks = |config: &Config, tunnel: &str| config.lacking_tunnels().contains_key(tunnel);
    assert!(!lacks(&good, "i2p") && lacks(&good, "tor"));
    assert!(lacks(&Config::default(), "i2p"));
    check("[i2p]\nlength = 8", 2, "8 is outside 0 to 7");
    check("[i2p]\nquantity = 0", 2, "0 is outside 1 to 16");
}

#[test]
fn spares_leave_sessions_for_flows() {
    let none_left = "2 spares among 2 sessions leave none for flows";
    check("[i2p]\nsessions = 2\nspares = 2", 3, none_left);
    check("[i2p]\nsessions = 2", 2, none_left);
    for good in ["sessions = 3", "sessions = 1\nspares = 0"] {
        Config::parse(&format!("[i2p]\n{good}"), Path::new("/")).unwrap();
    }
}

#[test]
fn entrances_that_strangers_could_use_are_refused() {
    let entrance = |kind: &str, listen: &str, more: &str| {
        format!("[[entrance]]\nkind = '{kind}'\nlisten = '{listen}'\n{more}\n")
    };
    check(
        &entrance("socks5", "0.0.0.0:1080", ""),
        3,
        "beyond loopback needs `users`",
    );
    check(
        &entrance("http", "[::]:1", ""),
        3,
        "beyond loopback needs `users`",
    );
    check(
        &entrance("tcp", "10.0.0.1:1", "target = 'a.example:1'"),
        3,
        "loopback only",
    );
    check(
        &entrance("udp", "10.0.0.1:1", "target = 'a.example:1'"),
        3,
        "loopback only",
    );
    check(
        &entrance("tcp", "127.0.0.1:1", ""),
        1,
        "missing: a tcp entrance",
    );
    check(
        &entrance("socks5", "127.0.0.1:1", "target = 'a.example:1'"),
        4,
        "only a tcp or udp",
    );
    check(
        &entrance("socks5", "127.0.0.1:1", "users = { a = '' }"),
        4,
        "1 to 255 bytes",
    );
    check(
        &entrance("udp", "127.0.0.1:1", ""),
        1,
        "missing: a udp entrance",
    );
    let open = entrance("socks5", "0.0.0.0:1080", "users = { alice = 'pw' }");
    let config = Config::parse(&open, Path::new("/")).unwrap();
    assert!(config.entrances[0].users["alice"].matches(b"pw"));
    assert!(!format!("{config:?}").contains("pw"));
}

#[test]
fn paths_start_at_the_config_files_folder() {
    let text = "[rules]\nscripts = ['a.rhai', '/b.rhai']\nsets = { ads = 'ads.txt' }";
    let config = Config::parse(text, Path::new("/etc/wormholes")).unwrap();
    assert_eq!(config.rules.scripts[0], Path::new("/etc/wormholes/a.rhai"));
    assert_eq!(config.rules.scripts[1], Path::new("/b.rhai"));
    assert_eq!(
        config.rules.sets["ads"],
        Path::new("/etc/wormholes/ads.txt")
    );
}

#[test]
fn a_file_with_secrets_must_be_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let set_mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&path, mode).unwrap();
    };
    let (service, key) = ("a".repeat(56), "A".repeat(52));
    for text in [
        "[[entrance]]\nkind='http'\nlisten='127.0.0.1:0'\nusers={a='b'}\n".to_owned(),
        format!("[tor]\nauthorizations = ['{service}:descriptor:x25519:{key}']\n"),
        format!("[tor]\nbridges = ['9.70.0.9:5200 {}']\n", "0A".repeat(20)),
    ] {
        std::fs::write(&path, &text).unwrap();
        set_mode(0o644);
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{text}: {error}");
        set_mode(0o600);
        assert_eq!(Config::load(&path).unwrap().file.as_ref(), Some(&path));
    }
    std::fs::write(&path, "[tor]\nauthorizations = []\nbridges = []\n").unwrap();
    set_mode(0o644);
    assert!(Config::load(&path).is_ok(), "nothing is secret in it");
}

#[test]
fn a_file_error_shows_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "[node]\nnme = ''\n[log]\nmask = 1\n").unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    let expected = format!("{}:2: unknown key `nme` in [node]", path.display());
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains(":4: `mask` in [log]"), "{error}");
}

/// An onion address of the right shape.
const ONION: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaad.onion";

/// A `[tor]` that is on, in a build that has it.
const TOR: &str = "[tor]\nenabled = true\n";

#[test]
fn onion_addresses_stand_among_those_of_a_peer() {
    let text = format!(
        "{TOR}[[peer]]\nname = 'bob'\nid = '{ID}'\naddresses = ['192.0.2.1:1', '{ONION}:4433']"
    );
    if wormholes_tor::IS_HERE {
        let config = Config::parse(&text, Path::new("/")).unwrap();
        let bob = &config.peers[0];
        assert_eq!(bob.addresses, ["192.0.2.1:1".parse().unwrap()]);
        assert_eq!(bob.onions[0].to_string(), format!("{ONION}:4433"));
        assert_eq!(bob.ways().count(), 2);
    }
    check(
        &text.replace("enabled = true", ""),
        6,
        "an onion address needs Tor",
    );
    let quic = format!("[node]\ncarriers = ['quic']\n{text}");
    check(&quic, 8, "needs \"tcp\" among `carriers` in [node]");
    check(
        &text.replace(":4433", ""),
        6,
        "expected 56 letters and digits",
    );
}

#[test]
fn an_onion_service_is_for_everybody_and_says_so() {
    let service = "[[service]]\nname = 'web'\ntarget = '127.0.0.1:8080'\nonion = true\n";
    let key = "descriptor:x25519:ZPRRMIV6DV6SJFL7SFBSVLJ5VUNPGCDFEVZ7M23LTLVTCCXJQBKA";
    let whole = format!(
        "{TOR}{service}min_trust = 0\nonion_port = 80\nonion_clients = {{ ann = '{key}' }}\n"
    );
    if wormholes_tor::IS_HERE {
        let config = Config::parse(&whole, Path::new("/")).unwrap();
        let onion = config.services[0].onion.as_ref().unwrap();
        assert_eq!((onion.port, onion.clients.len()), (80, 1));
        let default = Config::parse(&whole.replace("onion_port = 80", ""), Path::new("/"));
        let default = default.unwrap().services[0]
            .onion
            .as_ref()
            .map(|it| it.port);
        assert_eq!(default, Some(8080), "that of its target");
    }
    check(&format!("{TOR}{service}"), 6, "set `min_trust = 0`");
    check(
        &whole.replace("enabled = true", ""),
        6,
        "needs Tor: set `enabled = true`",
    );
    check(&format!("{whole}network = 'udp'"), 6, "Tor carries streams");
    check(
        &whole.replace("onion = true", ""),
        8,
        "needs `onion = true` beside it",
    );
    check(&whole.replace(key, "x"), 9, "authorized_clients/*.auth");
    check(&whole.replace("ann", "Ann"), 9, "the name of a client");
    let own = whole.replace("enabled = true", "enabled = true\npeers = true");
    check(
        &own.replace("'web'", "'peers'"),
        5,
        "is the node's own address",
    );
}

#[test]
fn tor_is_told_of_its_network_by_lines_of_a_torrc() {
    let id = "0123456789ABCDEF0123456789ABCDEF01234567";
    let network = format!(
        "[tor.network]\nauthorities = ['a orport=1 v3ident={id} 9.70.0.1:7100 {id}']\n\
         fallbacks = ['9.70.0.1:5100 id={id} ed25519={}']\nallow_private = true",
        "A".repeat(43)
    );
    let config = Config::parse(&network, Path::new("/")).unwrap();
    let parsed = config.tor.network.unwrap();
    assert!(parsed.allow_private && parsed.authorities.len() == 1 && parsed.fallbacks.len() == 1);
    check(
        "[tor.network]\nallow_private = true",
        1,
        "`authorities` in [tor.network]: missing",
    );
    let empty = "[tor.network]\nauthorities = []\nfallbacks = []";
    check(empty, 2, "`authorities` in [tor.network]: missing");
    check(empty, 3, "`fallbacks` in [tor.network]: missing");
    check(
        &network.replace("v3ident=", "v="),
        2,
        "the rest of a torrc's DirAuthority line",
    );
    check(&network.replace("ed25519=", ""), 3, "id=<40 hex>");
    check("[tor]\nnetwork = 3", 2, "expected a section [tor.network]");
    let obfs4 = format!("[tor]\nbridges = ['obfs4 9.70.0.9:5200 {id} cert=AAAA iat-mode=0']");
    check(&obfs4, 2, "add it to `transports`");
    let spoken = format!("{obfs4}\ntransports = {{ obfs4 = '/usr/bin/obfs4proxy' }}");
    let config = Config::parse(&spoken, Path::new("/")).unwrap();
    assert_eq!(config.tor.bridges.len(), 1);
    let key = format!("[tor]\nauthorizations = ['{}:secret']", "a".repeat(56));
    let shown = problems(&key);
    assert!(!shown[0].1.contains("secret"), "{shown:?}");
}
