//! `wormholes key` and `config`.

use wormholes_proto::control::{Call, ConfigReport, KeyInfo, NoParams};

use super::{Context, field};
use crate::{error::CliError, format, output::Style};

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

/// Standard output is a config file; what it does not say is beside it.
pub(super) fn config(context: &mut Context<'_>) -> Result<(), CliError> {
    let config: ConfigReport = context.connect()?.report(&Call::Config(NoParams {}))?;
    context.output.report(&config, |_| {
        let lines: Vec<String> = config.toml.lines().map(format::clean).collect();
        lines.join("\n") + "\n"
    })?;
    context.note_waiting(&config.restart_for)
}
