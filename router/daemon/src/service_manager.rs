//! Tells the service manager how the daemon does (sd_notify(3)): ready, reloading, stopping, and a
//! sign of life where a watchdog waits for one. Where nobody asked, by `NOTIFY_SOCKET`, nothing
//! is told.

use std::{
    env,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::Duration,
};

use sd_notify::NotifyState;

/// What the rest of a stop takes once the drain is over.
const CLOSING: Duration = Duration::from_secs(10);

/// What it has not taken yet. Overflow: what comes then is not told.
const MAX_WAITING: usize = 8;

/// Who started the daemon and wants to hear of it.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    watchdog: Option<Duration>,
    /// To a thread of its own: one that does not listen keeps nothing else waiting.
    words: Option<SyncSender<String>>,
}

impl ServiceManager {
    pub(crate) fn of_process() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()),
            words: env::var_os("NOTIFY_SOCKET").and_then(|_| mouthpiece()),
        }
    }

    /// How often [`Self::alive`] is due: twice in the time after which a watchdog bites.
    pub(crate) fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// All sockets listen.
    pub(crate) fn ready(&self) {
        self.tell(&[NotifyState::Ready, NotifyState::Status("ready")]);
    }

    /// A reload begins. Ends with [`Self::reloaded`].
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "no clock to tell the service manager of"),
        }
    }

    /// A reload has ended. Every user of the machine may read a status: why it failed is for
    /// those who may read the log.
    pub(crate) fn reloaded(&self, done: bool) {
        let status = if done {
            "ready"
        } else {
            "the reload failed, and what was in force stays: the log says why"
        };
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A stop begins that may take as long as `drain`, and waits for so many `flows`.
    pub(crate) fn stopping(&self, drain: Duration, flows: usize) {
        // The unit's `TimeoutStopSec=` knows nothing of config.toml.
        let longest = drain.saturating_add(CLOSING).as_micros();
        let extend = format!("EXTEND_TIMEOUT_USEC={longest}");
        let status = format!("draining: {flows} flows may finish");
        self.tell(&[
            NotifyState::Stopping,
            NotifyState::Custom(&extend),
            NotifyState::Status(&status),
        ]);
    }

    /// A sign of life.
    pub(crate) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    fn tell(&self, words: &[NotifyState<'_>]) {
        let Some(mouthpiece) = &self.words else {
            return;
        };
        let lines: Vec<_> = words.iter().map(ToString::to_string).collect();
        if mouthpiece.try_send(lines.join("\n")).is_err() {
            tracing::warn!("the service manager takes nothing, and is not told");
        }
    }
}

fn mouthpiece() -> Option<SyncSender<String>> {
    let (words, waiting) = sync_channel::<String>(MAX_WAITING);
    let tell = move || {
        for words in waiting {
            if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&words)]) {
                tracing::warn!(%error, "the service manager is not told");
            }
        }
    };
    let thread = thread::Builder::new().name("service-manager".into());
    match thread.spawn(tell) {
        Ok(_) => Some(words),
        Err(error) => {
            tracing::warn!(%error, "no thread to tell the service manager");
            None
        }
    }
}
