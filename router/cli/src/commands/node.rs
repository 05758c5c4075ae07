//! `wormholes key` and `config`.

use wormholes_proto::control::{ConfigReport, KeyInfo};

use super::field;
use crate::{format, output::Style};

pub(super) fn render_key(key: &KeyInfo, style: Style) -> String {
    let mut text = field(style, "node id", &key.node_id.to_string());
    text += &field(style, "noise key", &key.noise_key);
    for onion in &key.onion_keys {
        let expires = format::utc(onion.expires_unix_seconds.saturating_mul(1000));
        let value = format!("{} ({}, until {expires})", onion.key_id, onion.suite);
        text += &field(style, "onion key", &value);
    }
    if let Some(file) = &key.identity_file {
        text += &field(style, "secret in", &file.display().to_string());
    }
    text
}

pub(super) fn render_config(config: &ConfigReport, _: Style) -> String {
    let lines: Vec<String> = config.toml.lines().map(format::clean).collect();
    lines.join("\n") + "\n"
}
