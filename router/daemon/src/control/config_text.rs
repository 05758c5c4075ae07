//! The config in force as the text of a config.toml. Passwords are left out.

use std::{fmt::Display, net::SocketAddr, time::Duration};

use toml::Value;

use crate::config::{
    Config, DefaultRule, EntranceConfig, ExitConfig, I2pConfig, PeerConfig, PluginConfig,
    RoleConfig, ServiceConfig, TorConfig,
};

/// What stands for a password.
const HIDDEN: &str = "…";

/// The text.
pub(crate) fn config_text(config: &Config) -> String {
    let mut text = Text::default();
    node(&mut text, config);
    config.peers.iter().for_each(|p| peer(&mut text, p));
    config.entrances.iter().for_each(|e| entrance(&mut text, e));
    config.services.iter().for_each(|s| service(&mut text, s));
    config.plugins.iter().for_each(|p| plugin(&mut text, p));
    rules(&mut text, config);
    role(text.section("[relay]"), &config.relay);
    role(text.section("[hop]"), &config.hop.role).key("allow_private", config.hop.allow_private);
    exit(text.section("[exit]"), &config.exit);
    tor(&mut text, &config.tor);
    i2p(text.section("[i2p]"), &config.i2p);
    rest(&mut text, config);
    text.0
}

/// Sections of keys with their values.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn section(&mut self, head: &str) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(head);
        self.0.push('\n');
        self
    }

    fn key(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.0.push_str(&format!("{key} = {}\n", value.into()));
        self
    }

    fn optional(&mut self, key: &str, value: Option<impl Into<Value>>) -> &mut Self {
        match value {
            Some(value) => self.key(key, value),
            None => self,
        }
    }

    fn count(&mut self, key: &str, value: impl TryInto<i64>) -> &mut Self {
        self.key(key, value.try_into().unwrap_or(i64::MAX))
    }

    fn seconds(&mut self, key: &str, value: Duration) -> &mut Self {
        self.count(key, value.as_secs())
    }
}

fn node(text: &mut Text, config: &Config) {
    let node = &config.node;
    text.section("[node]")
        .key("name", node.name.clone())
        .key("data_dir", path(&node.data_dir))
        .key("listen", list(&node.listen))
        .key("carriers", list(&node.carriers))
        .key("advertise", list(&node.advertise))
        .key("networks", list(&node.networks))
        .optional("family", node.family.clone())
        .key("punch", node.punch)
        .count("punch_trust", node.punch_trust);
}

fn peer(text: &mut Text, peer: &PeerConfig) {
    let sockets = peer.addresses.iter().map(ToString::to_string);
    let onions = peer.onions.iter().map(ToString::to_string);
    let addresses: Vec<String> = sockets.chain(onions).collect();
    text.section("[[peer]]")
        .key("name", peer.name.clone())
        .key("id", peer.id.to_string())
        .key("addresses", addresses)
        .count("trust", peer.trust)
        .key("via", list(&peer.via))
        .key("register", peer.register);
}

fn entrance(text: &mut Text, entrance: &EntranceConfig) {
    let users = entrance.users.keys();
    let users: toml::Table = users.map(|user| (user.clone(), HIDDEN.into())).collect();
    text.section("[[entrance]]")
        .key("kind", entrance.kind.as_str())
        .key("listen", entrance.listen.to_string())
        .optional("target", entrance.target.as_ref().map(ToString::to_string))
        .key("users", users)
        .optional("label", entrance.label.clone());
}

fn service(text: &mut Text, service: &ServiceConfig) {
    text.section("[[service]]")
        .key("name", service.name.to_string())
        .key("target", service.target.to_string())
        .key("network", service.transport.as_str())
        .count("min_trust", service.min_trust)
        .key("onion", service.onion.is_some())
        .key("i2p", service.i2p);
    if let Some(onion) = &service.onion {
        let clients = onion.clients.iter();
        let clients: toml::Table = clients
            .map(|(name, key)| (name.clone(), key.clone().into()))
            .collect();
        text.count("onion_port", onion.port)
            .key("onion_clients", clients);
    }
}

/// Of bridges, which are told to nobody, and of keys only how many there are.
fn tor(text: &mut Text, tor: &TorConfig) {
    let hidden = |count: usize| vec![HIDDEN; count];
    let transports = tor.transports.iter();
    let transports: toml::Table = transports
        .map(|(name, program)| (name.clone(), path(program).into()))
        .collect();
    text.section("[tor]")
        .key("enabled", tor.enabled)
        .optional("state_dir", tor.state_dir.as_deref().map(path))
        .key("peers", tor.peers)
        .count("peers_port", tor.peers_port)
        .key("bridges", hidden(tor.bridges.len()))
        .key("transports", transports)
        .key("authorizations", hidden(tor.authorizations.len()));
    if let Some(network) = &tor.network {
        text.section("[tor.network]")
            .key("authorities", hidden(network.authorities.len()))
            .key("fallbacks", hidden(network.fallbacks.len()))
            .key("allow_private", network.allow_private);
    }
}

fn rules(text: &mut Text, config: &Config) {
    let rules = &config.rules;
    let default = match rules.default {
        DefaultRule::Block => "block",
        DefaultRule::Direct => "direct",
    };
    let sets = rules.sets.iter();
    let sets: toml::Table = sets
        .map(|(name, file)| (name.clone(), path(file).into()))
        .collect();
    let scripts: Vec<String> = rules.scripts.iter().map(|script| path(script)).collect();
    text.section("[rules]")
        .key("scripts", scripts)
        .key("default", default)
        .key("sets", sets)
        .count("record_decisions", rules.record_decisions);
}

fn role<'a>(text: &'a mut Text, role: &RoleConfig) -> &'a mut Text {
    text.key("enabled", role.enabled)
        .count("max_circuits", role.max_circuits)
        .count("max_circuits_per_peer", role.max_circuits_per_peer)
        .count("bytes_per_second_per_peer", role.bytes_per_second_per_peer)
        .count("max_bytes_per_circuit", role.max_bytes_per_circuit)
        .seconds("idle_seconds", role.idle)
}

fn exit(text: &mut Text, exit: &ExitConfig) {
    role(text, &exit.role)
        .key("allow", list(&exit.allow))
        .key("allow_private", exit.allow_private);
}

fn i2p(text: &mut Text, i2p: &I2pConfig) {
    text.optional("sam", i2p.sam.as_ref().map(SocketAddr::to_string))
        .count("length", i2p.tunnels.length)
        .count("quantity", i2p.tunnels.quantity)
        .count("spares", i2p.spares)
        .count("sessions", i2p.sessions)
        .count("max_streams", i2p.max_streams);
}

fn rest(text: &mut Text, config: &Config) {
    let limits = &config.limits;
    text.section("[limits]")
        .count("flows", limits.flows)
        .count("bytes_per_second", limits.bytes_per_second)
        .count("opening_per_target", limits.opening_per_target)
        .count("pending_connections", limits.pending_connections)
        .seconds("handshake_seconds", limits.handshake)
        .seconds("udp_idle_seconds", limits.udp_idle)
        .count("peers", limits.peers)
        .seconds("drain_seconds", limits.drain);
    let http = &config.http;
    let file = |file: &Option<std::path::PathBuf>| file.as_deref().map(path);
    text.section("[http]")
        .optional("listen", http.listen.as_ref().map(SocketAddr::to_string))
        .optional("domain", http.domain.clone())
        .optional("certificate", file(&http.certificate))
        .optional("key", file(&http.key))
        .optional("roots", file(&http.roots));
    let control = &config.control;
    let operators: Vec<i64> = control.operators.iter().copied().map(i64::from).collect();
    text.section("[control]")
        .optional("socket", control.socket.as_ref().map(|socket| path(socket)))
        .key("mode", format!("{:04o}", control.mode))
        .key("operators", operators);
    let listen = config.metrics.listen.as_ref().map(SocketAddr::to_string);
    text.section("[metrics]").optional("listen", listen);
    let log = &config.log;
    text.section("[log]")
        .key("level", log.level.clone())
        .key("format", if log.json { "json" } else { "text" })
        .key("mask", log.mask);
}

/// What a plugin reads may hold secrets: their names are shown.
fn plugin(text: &mut Text, plugin: &PluginConfig) {
    let grants = plugin.grants.names();
    let grants = grants.map(|name| (name.to_owned(), Value::Boolean(true)));
    let words = plugin.grants.words();
    let words = words.into_iter().filter(|(_, words)| !words.is_empty());
    let words = words.map(|(name, words)| {
        let words = words.iter().cloned().map(Value::String);
        (name.to_owned(), Value::Array(words.collect()))
    });
    let grants = grants.chain(words);
    let hidden = |key: &String| (key.clone(), Value::String(HIDDEN.to_owned()));
    let sha256 = plugin
        .sha256
        .map(|hash| data_encoding::HEXLOWER.encode(&hash));
    text.section(&format!("[plugin.{}]", plugin.name))
        .key("wasm", path(&plugin.wasm))
        .optional("sha256", sha256)
        .key("grants", grants.collect::<toml::Table>())
        .key(
            "config",
            plugin.config.keys().map(hidden).collect::<toml::Table>(),
        )
        .key("strangers", plugin.strangers)
        .key("listen", plugin.listen.to_string());
}

fn path(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn list<T: Display>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Secret;

    /// A config in which no key has its default; a key that `config_text` forgets comes back
    /// different.
    const FULL: &str = r#"
[node]
name = "ada"
data_dir = "/data"
listen = ["[::]:1"]
carriers = ["tcp"]
advertise = ["192.0.2.1:2"]
family = "ours"
punch = false
punch_trust = 3
[[peer]]
name = "bob"
id = "yryonyebyryonyebyryonyebyryonyebyryonyebyryonyebyryo"
addresses = ["192.0.2.2:3", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaad.onion:4"]
trust = 3
via = ["bob"]
register = true
[[entrance]]
kind = "http"
listen = "127.0.0.1:4"
users = { ada = "…" }
label = "l"
[[entrance]]
kind = "tcp"
listen = "127.0.0.1:5"
target = "bob.wh:22"
[[entrance]]
kind = "udp"
listen = "127.0.0.1:5"
target = "bob.wh:53"
[[service]]
name = "web"
target = "127.0.0.1:6"
network = "udp"
min_trust = 1
[[service]]
name = "shop"
target = "127.0.0.1:7"
min_trust = 0
onion = true
onion_port = 80
onion_clients = { ann = "descriptor:x25519:ZPRRMIV6DV6SJFL7SFBSVLJ5VUNPGCDFEVZ7M23LTLVTCCXJQBKA" }
[[service]]
name = "blog"
target = "127.0.0.1:8"
min_trust = 0
i2p = true
[plugin.echo]
wasm = "/echo.wasm"
sha256 = "0101010101010101010101010101010101010101010101010101010101010101"
grants = { state = true, timers = true }
config = { greeting = "…" }
[rules]
scripts = ["/a.rhai"]
default = "direct"
sets = { ads = "/ads.txt" }
record_decisions = 7
[relay]
enabled = true
max_circuits = 8
max_circuits_per_peer = 9
bytes_per_second_per_peer = 10
max_bytes_per_circuit = 11
idle_seconds = 12
[hop]
enabled = true
allow_private = true
idle_seconds = 13
[exit]
enabled = true
allow = ["0.0.0.0/0:80,443-444"]
allow_private = true
idle_seconds = 14
[tor]
enabled = true
state_dir = "/tor"
peers = true
peers_port = 23
transports = { obfs4 = "/obfs4proxy" }
[i2p]
sam = "127.0.0.1:7656"
length = 1
quantity = 2
spares = 3
sessions = 4
max_streams = 5
[limits]
flows = 15
bytes_per_second = 20
opening_per_target = 14
pending_connections = 16
handshake_seconds = 17
udp_idle_seconds = 16
peers = 18
drain_seconds = 19
[http]
listen = "0.0.0.0:22"
domain = "example.org"
certificate = "/cert.pem"
key = "/key.pem"
roots = "/roots.pem"
[control]
socket = "/c.sock"
mode = "0660"
operators = [20]
[metrics]
listen = "127.0.0.1:21"
[log]
level = "debug"
format = "json"
mask = false
"#;

    #[test]
    fn the_text_reads_back_as_the_same_config() {
        let config = Config::parse(FULL, Path::new("/")).unwrap();
        let text = config_text(&config);
        assert_eq!(
            Config::parse(&text, Path::new("/")).unwrap(),
            config,
            "{text}"
        );
        let default = Config::default();
        let text = config_text(&default);
        assert_eq!(
            Config::parse(&text, Path::new("/")).unwrap(),
            default,
            "{text}"
        );
    }

    #[test]
    fn passwords_are_left_out() {
        let mut config = Config::parse(FULL, Path::new("/")).unwrap();
        for entrance in &mut config.entrances {
            entrance
                .users
                .insert("eve".to_owned(), Secret::new("hunter2"));
        }
        let text = config_text(&config);
        assert!(text.contains("eve") && !text.contains("hunter2"), "{text}");
    }
}
