//! What a plugin said last: its log and its standard error, for its operator.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::Level;
use wormholes_proto::manifest::Limits;

use crate::{
    clock::now_ms,
    pace::{Debt, Rate},
};

/// Lines of one instance. Overflow, of either bound: the oldest go.
const MAX_LINES: usize = 1000;
const MAX_BYTES: usize = 256 << 10;
/// Of one line; the rest is cut.
const MAX_LINE_BYTES: usize = 4096;
/// A line costs something, however short it is.
pub(crate) const LINE_BYTES: usize = 16;

/// A line that a plugin said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginLine {
    /// Rises from line to line of an instance, from 1 at the start of the node.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// How grave it is; standard error is a warning.
    pub level: Level,
    /// Whose event said it.
    pub principal: String,
    /// What it said.
    pub text: Arc<str>,
}

/// The last lines of an instance, whatever level the node's own log has.
#[derive(Debug)]
pub struct PluginLines {
    kept: Mutex<Kept>,
    /// The number of the last one.
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<PluginLine>,
    bytes: usize,
    /// What was said, and `limits.log_kib_per_second` has not caught up with.
    debt: Debt,
}

impl PluginLines {
    pub(crate) fn new() -> Self {
        Self {
            kept: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }

    pub(crate) fn push(&self, level: Level, principal: String, text: &str, limits: &Limits) {
        let said = text.len() + LINE_BYTES;
        let text = text.get(..text.floor_char_boundary(MAX_LINE_BYTES));
        let text: Arc<str> = text.unwrap_or_default().into();
        let mut kept = self.kept();
        kept.debt
            .add(Instant::now(), said as u64, Rate::of_log(limits));
        let number = *self.last.borrow() + 1;
        kept.bytes += text.len();
        kept.lines.push_back(PluginLine {
            number,
            at_unix_ms: now_ms(),
            level,
            principal,
            text,
        });
        while kept.lines.len() > MAX_LINES || kept.bytes > MAX_BYTES {
            let Some(oldest) = kept.lines.pop_front() else {
                break;
            };
            kept.bytes -= oldest.text.len();
        }
        // Below the lock: numbers and lines go on together.
        self.last.send_replace(number);
    }

    /// How long nothing more is to be said.
    pub(crate) fn wait(&self, limits: &Limits) -> Option<Duration> {
        let debt = self.kept().debt;
        debt.wait(Instant::now(), Rate::of_log(limits))
    }

    /// Those with higher numbers than this, the oldest first.
    pub fn after(&self, number: u64) -> Vec<PluginLine> {
        let kept = self.kept();
        let later = kept.lines.iter().filter(|line| line.number > number);
        later.cloned().collect()
    }

    /// As [`Self::after`], once there is one, or with none when `patience` is over.
    pub async fn wait_after(&self, number: u64, patience: Duration) -> Vec<PluginLine> {
        let mut last = self.last.subscribe();
        let later = last.wait_for(|last| *last > number);
        // Nobody else ends it: the sender is this.
        let _ = tokio::time::timeout(patience, later).await;
        self.after(number)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_lines_go_and_long_ones_are_cut() {
        let lines = PluginLines::new();
        let limits = &Limits::default();
        let say = |text: &str| lines.push(Level::INFO, "node".to_owned(), text, limits);
        (0..=MAX_LINES).for_each(|_| say("short"));
        let kept = lines.after(0);
        assert_eq!((kept.len(), kept[0].number), (MAX_LINES, 2));
        (0..MAX_LINES).for_each(|_| say(&"ä".repeat(MAX_LINE_BYTES)));
        let kept = lines.after(0);
        assert_eq!(kept.len(), MAX_BYTES / MAX_LINE_BYTES);
        assert!(kept.iter().all(|line| line.text.len() == MAX_LINE_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_next_line_or_none_in_the_end() {
        let lines = PluginLines::new();
        let minute = Duration::from_secs(60);
        let mut waiting = Box::pin(lines.wait_after(0, minute));
        assert!((&mut waiting).now_or_never().is_none());
        let limits = &Limits::default();
        lines.push(Level::WARN, "node".to_owned(), "hello", limits);
        let told = waiting.now_or_never().unwrap();
        assert_eq!(&*told[0].text, "hello");
        assert_eq!(lines.wait_after(1, minute).await, []);
    }
}
