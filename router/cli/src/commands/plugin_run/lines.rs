//! Lines that are typed, with the names of commands completed; or read from a pipe, as they are.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use rustyline::{
    Context, Editor, Helper, completion::Completer, error::ReadlineError, highlight::Highlighter,
    hint::Hinter, history::MemHistory, validate::Validator,
};

use crate::error::CliError;

/// The longest line of a pipe.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Where they come from.
pub(super) enum Lines {
    Terminal {
        editor: Box<Editor<Names, MemHistory>>,
        prompt: String,
    },
    Pipe,
}

/// Names to complete.
pub(super) struct Names(Vec<String>);

impl Lines {
    pub(super) fn open(plugin: &str, names: Vec<String>) -> Result<Self, CliError> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let history = MemHistory::new();
        let editor = Editor::with_history(rustyline::Config::default(), history);
        let mut editor = editor.map_err(terminal)?;
        editor.set_helper(Some(Names(names)));
        Ok(Self::Terminal {
            editor: Box::new(editor),
            prompt: format!("{plugin}> "),
        })
    }

    /// The next one; none: that was all.
    pub(super) fn next(&mut self) -> Result<Option<String>, CliError> {
        match self {
            Self::Pipe => {
                let mut line = Vec::new();
                let mut input = io::stdin().lock().take(MAX_LINE_BYTES);
                let read = input.read_until(b'\n', &mut line)?;
                if read as u64 == MAX_LINE_BYTES {
                    return Err(CliError::Failed("a line is longer than 1 MiB".to_owned()));
                }
                let text = String::from_utf8_lossy(&line).into_owned();
                Ok((read > 0).then_some(text))
            }
            Self::Terminal { editor, prompt } => match editor.readline(prompt) {
                Ok(line) => {
                    // What does not fit into the history is typed again.
                    let _ = editor.add_history_entry(line.as_str());
                    Ok(Some(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Some(String::new())),
                Err(ReadlineError::Eof) => Ok(None),
                Err(error) => Err(terminal(error)),
            },
        }
    }
}

impl Completer for Names {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..at).unwrap_or(line);
        let begin = typed.rfind(' ').map_or(0, |space| space + 1);
        let word = typed.get(begin..).unwrap_or_default();
        let names = self.0.iter().filter(|name| name.starts_with(word));
        // Behind the first word stand arguments, but for `help` and the name of a user.
        let before = typed.get(..begin).unwrap_or_default().trim_end();
        let user = before.strip_prefix("--user ").map(str::trim);
        let takes_name = before.is_empty()
            || before == "help"
            || user.is_some_and(|user| !user.is_empty() && !user.contains(' '));
        let names = names.filter(|_| takes_name);
        Ok((begin, names.cloned().collect()))
    }
}

impl Helper for Names {}
impl Highlighter for Names {}
impl Validator for Names {}

impl Hinter for Names {
    type Hint = String;
}

fn terminal(error: ReadlineError) -> CliError {
    CliError::Failed(format!("cannot read from the terminal: {error}"))
}
