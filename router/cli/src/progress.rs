//! How far something is, on one line of the terminal.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use wormholes_proto::control::PluginProgress;

use crate::format::clean;

/// How often the sign of life moves.
const TICK: Duration = Duration::from_millis(120);

/// A line of standard error that goes when this is dropped; nothing where no person looks at it.
#[derive(Debug)]
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    /// Nothing, if the answer is for a program, or standard error is no terminal.
    pub(crate) fn new(json: bool) -> Self {
        let is_shown = !json && io::stderr().is_terminal();
        Self(is_shown.then(|| ProgressBar::new(100)))
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn show(&mut self, progress: &PluginProgress) {
        let Some(bar) = &self.0 else {
            return;
        };
        let template = match progress.percent {
            Some(_) => "{bar:30} {percent:>3}% {wide_msg}",
            None => "{spinner} {wide_msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        bar.set_position(progress.percent.unwrap_or_default().into());
        bar.set_message(clean(&progress.text));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
