//! Where text goes, and whether it has colours.

use std::io::{self, BufWriter, IsTerminal, Stderr, Stdout, Write};

use serde_json::Value;

use crate::{error::CliError, format::clean};

/// Standard output and what is known of it.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: BufWriter<Stdout>,
    stderr: Stderr,
    /// One object instead of text.
    pub(crate) json: bool,
    /// How to print.
    pub(crate) style: Style,
}

/// How to print text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    /// Colours and weights.
    pub(crate) color: bool,
    /// Columns of the terminal; none: no terminal, nothing is cut.
    pub(crate) width: Option<usize>,
}

/// What a text means, by colour; the words alone say it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Head,
    Good,
    Bad,
    Faint,
}

impl Output {
    /// This process's own. Colours need a terminal and an empty `NO_COLOR` (no-color.org).
    pub(crate) fn of_process(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| width.0.into());
        Self {
            stdout: BufWriter::new(stdout),
            stderr: io::stderr(),
            json,
            style: Style {
                color: terminal && !no_color && !dumb,
                width,
            },
        }
    }

    /// Prints `report` as JSON, or what `text` makes of it.
    pub(crate) fn report(
        &mut self,
        report: &impl serde::Serialize,
        text: impl FnOnce(Style) -> String,
    ) -> Result<(), CliError> {
        if self.json {
            let value = serde_json::to_value(report).map_err(CliError::Answer)?;
            self.value(&value)
        } else {
            self.text(&text(self.style))
        }
    }

    /// One JSON object on a line.
    pub(crate) fn value(&mut self, value: &Value) -> Result<(), CliError> {
        Ok(writeln!(self.stdout, "{value}")?)
    }

    /// Text as it is.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), CliError> {
        Ok(self.stdout.write_all(text.as_bytes())?)
    }

    /// Says what people should know beside the answer, on standard error; the JSON has it already.
    pub(crate) fn notes(&mut self, notes: &[String]) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        self.stdout.flush()?;
        for note in notes {
            writeln!(self.stderr, "note: {}", clean(note))?;
        }
        Ok(())
    }

    /// Bytes as they are.
    pub(crate) fn bytes(&mut self) -> &mut impl Write {
        &mut self.stdout
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }

    /// Says what went wrong: to people on standard error, to programs on standard output.
    pub(crate) fn error(&mut self, error: &CliError) {
        // When this cannot be written either, the exit status is all there is.
        if error.is_told() || matches!(error, CliError::Print(_)) {
            let _ = self.stdout.flush();
            return;
        }
        if self.json {
            let _ = self.value(&error.to_json());
        } else {
            let _ = self.stdout.flush();
            let _ = writeln!(self.stderr, "wormholes: {error}");
        }
        let _ = self.stdout.flush();
    }
}

impl Style {
    /// `text` in the colour of `tone`.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Head => 1,
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Faint => 2,
        };
        if self.color && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}
