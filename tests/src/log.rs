//! What a process says on its standard error, line by line.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::wait::{LIMIT, until_within};

/// Lines that are kept; older ones go first.
const MAX_LINES: usize = 20_000;

/// The log of a process; clones share it.
#[derive(Debug, Clone, Default)]
pub struct LogLines {
    lines: Arc<Mutex<std::collections::VecDeque<String>>>,
}

impl LogLines {
    /// Collects the lines of `source` in a thread that ends with it.
    pub fn collect(source: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let kept = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                let mut lines = kept.lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == MAX_LINES {
                    lines.pop_front();
                }
                lines.push_back(String::from_utf8_lossy(&line).into_owned());
            }
        });
        log
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect()
    }

    /// The last lines so far, as one text.
    pub fn last(&self, n_lines: usize) -> String {
        let lines = self.lines();
        let from = lines.len().saturating_sub(n_lines);
        lines.get(from..).unwrap_or_default().join("\n")
    }

    /// The lines so far that contain `text`.
    pub fn matching(&self, text: &str) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(text));
        lines
    }

    /// Waits for a line that contains `text`.
    ///
    /// # Errors
    /// When none comes.
    pub async fn wait(&self, text: &str) -> Result<String> {
        self.wait_within(LIMIT, text).await
    }

    /// As [`Self::wait`], for what may take longer.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub async fn wait_within(&self, limit: Duration, text: &str) -> Result<String> {
        let what = format!("a log line with {text:?}");
        until_within(limit, &what, async || self.matching(text).pop()).await
    }
}
