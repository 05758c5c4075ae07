//! A yes of the person at the terminal, before what cannot be undone or is not harmless.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::error::CliError;

/// Asks on the terminal; what stands there first is what it is about.
pub(super) fn consent(about: &str, question: &str) -> Result<(), CliError> {
    let input = io::stdin();
    if !input.is_terminal() {
        return Err(CliError::Usage {
            message: format!("cannot ask: {question}"),
            mend: "there is no terminal; --yes says yes".to_owned(),
        });
    }
    let mut terminal = io::stderr();
    write!(terminal, "{about}{question} [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::Failed("nothing was changed".to_owned())),
    }
}
