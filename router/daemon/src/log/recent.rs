//! The last lines of the log, as a stranger may read them: for bug reports.
//!
//! A message is told as it is where this program wrote it, since its messages hold no values; of
//! other crates, and of scripts, only where it came from is told.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    sync::{Mutex, PoisonError},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::harmless::{self, HIDDEN};

/// Some minutes of a node with trouble; the oldest goes first.
const MAX_LINES: usize = 200;
/// Room for most lines: a longer one takes more.
const USUAL_LINE_BYTES: usize = 256;

/// A process has one log, however many nodes it embeds.
static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Keeps lines of level info and above.
#[derive(Debug)]
pub(super) struct Recent;

/// The lines that are kept, the oldest first.
pub(crate) fn lines() -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().cloned().collect()
}

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return;
        }
        let is_own = metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
        let mut line = Line {
            text: String::with_capacity(USUAL_LINE_BYTES),
            is_own,
        };
        let (now, level, target) = (jiff::Timestamp::now(), metadata.level(), metadata.target());
        // A string takes everything.
        let _ = write!(line.text, "{now} {level} {target}:");
        event.record(&mut line);
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line.text);
    }
}

/// A line as it is written, one field after the other.
struct Line {
    text: String,
    is_own: bool,
}

impl Line {
    fn write(&mut self, field: &Field, value: impl fmt::Display) {
        let _ = write!(self.text, " {}={value}", field.name());
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match (field.name(), self.is_own) {
            ("message", true) => write!(self.text, " {value:?}"),
            ("message", false) => write!(self.text, " {HIDDEN}"),
            _ => {
                let said = format!("{value:?}");
                write!(self.text, " {}={}", field.name(), harmless::text(&said))
            }
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, harmless::text(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.write(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, value);
    }
}
