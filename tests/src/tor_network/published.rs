//! When this router says that an onion service of its own can be found.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{daemon::Daemon, wait::until_within};

/// Seconds; where introduction points change at once, a minute more, since arti uploads no oftener.
const WITHIN: Duration = Duration::from_secs(240);
/// What is shown of what arti said, where nothing comes of it.
const LINES: usize = 60;

impl Daemon {
    /// The address of its onion service `name`, another one than `old`, once it can be found.
    ///
    /// # Errors
    /// When it cannot be found within four minutes; with what was said meanwhile.
    pub async fn onion_address(&self, name: &str, old: &str) -> Result<String> {
        let mut last = Value::Null;
        let what = format!("the onion service {name} to be published");
        let published = until_within(WITHIN, &what, async || {
            last = self.call("tor.status", json!({})).await.ok()?;
            let services = last.get("services")?.as_array()?;
            let is_up =
                |service: &&Value| service["name"] == name && service["state"] == "reachable";
            let address = services.iter().find(is_up)?["address"].as_str()?;
            (address != old).then(|| address.to_owned())
        });
        let published = published.await;
        published.with_context(|| {
            let lines = self.log().matching("tor_hsservice");
            let from = lines.len().saturating_sub(LINES);
            let said = lines.get(from..).unwrap_or_default().join("\n");
            format!("{last}\n{said}")
        })
    }
}
