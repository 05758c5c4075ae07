//! Logging: where it goes, and what it must not say.
//!
//! Targets and addresses in events of level info and above go through [`masked`]; events of level
//! debug and trace, which somebody turned on to look at one machine, show them.

pub(crate) mod harmless;
#[cfg(test)]
pub(crate) mod kept;
mod recent;
mod writer;

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use thiserror::Error;
use tracing_subscriber::EnvFilter;

use crate::config::LogConfig;

pub(crate) use recent::lines as recent_lines;
pub use writer::LogGuard;

use recent::Recent;

/// `tor_netdir` finds few relays in every small network, and says so again and again.
const QUIET_TOR: &str = "arti=warn,arti_client=warn,tor_=warn,tor_netdir=error";

/// Set once by [`init`]; a process has one log, however many nodes it embeds.
static SHOW: AtomicBool = AtomicBool::new(false);

/// Logging cannot start.
#[derive(Debug, Error)]
pub enum LogError {
    /// `[log] level` is no tracing filter.
    #[error("the log level is not a filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The process has a log.
    #[error("logging is set up already")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
    /// The system has no thread for it.
    #[error("the log has no thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Sends events to standard error as the config says. For binaries: a program that embeds a node
/// has its own subscriber. The guard is to be held until nothing more is logged.
///
/// # Errors
/// [`LogError`].
pub fn init(config: &LogConfig) -> Result<LogGuard, LogError> {
    use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

    let (writer, guard) = writer::start(std::io::stderr())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.level)?)
        .with_writer(writer)
        // A terminal that was closed takes no lines, and a complaint about that would panic.
        .log_internal_errors(false);
    if config.json {
        builder.json().finish().with(Recent).try_init()?;
    } else {
        let builder = builder.with_ansi(false);
        builder.finish().with(Recent).try_init()?;
    }
    SHOW.store(!config.mask, Ordering::Relaxed);
    Ok(guard)
}

/// The filter of the config. Of Tor's own words, which are many and name relays, only those that
/// matter, unless the config asks for them by name.
fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let directives = || level.split(',').map(str::trim);
    let is_for_tor = |target: &str| target.starts_with("arti") || target.starts_with("tor_");
    // Where less than warnings is said of all, there is nothing to leave out.
    let is_chatty = |directive: &str| {
        let levels = ["warn", "info", "debug", "trace"];
        levels
            .iter()
            .any(|chatty| chatty.eq_ignore_ascii_case(directive))
    };
    match directives().any(is_chatty) && !directives().any(is_for_tor) {
        true => EnvFilter::try_new(format!("{level},{QUIET_TOR}")),
        false => EnvFilter::try_new(level),
    }
}

/// Shows `value` only where `[log] mask` is off.
pub(crate) fn masked<T: fmt::Display>(value: T) -> Masked<T> {
    Masked(value)
}

/// See [`masked`].
pub(crate) struct Masked<T>(T);

impl<T: fmt::Display> fmt::Display for Masked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if SHOW.load(Ordering::Relaxed) {
            self.0.fmt(f)
        } else {
            f.write_str("[masked]")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tor_is_quiet_unless_it_is_asked_for() {
        let text = |level: &str| filter(level).unwrap().to_string();
        for level in ["info", "warn,wormholed=debug"] {
            assert!(text(level).contains("tor_netdir=error"), "{level}");
        }
        assert!(!text("info,tor_circmgr=debug").contains("tor_netdir"));
        for level in ["off", "error", "wormholed=debug"] {
            assert!(!text(level).contains("tor_"), "{level}");
        }
    }

    #[test]
    fn values_are_masked_unless_the_config_shows_them() {
        assert_eq!(masked("bob.example:80").to_string(), "[masked]");
    }
}
