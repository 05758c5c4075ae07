//! Where the daemon's program is, for what needs its engine and no daemon that runs.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::error::CliError;

const NAME: &str = "wormholed";
/// Where packages put it, which few have in their PATH.
const USUAL: &str = "/usr/sbin/wormholed";

/// The daemon's program: beside this one, beside its folder, in the PATH, or where packages put it.
pub(crate) fn command() -> Command {
    let here = env::current_exe().ok();
    let here = here.as_deref().and_then(Path::parent);
    let beside = here.map(|folder| folder.join(NAME));
    let system = here.and_then(Path::parent);
    let system = system.map(|folder| folder.join("sbin").join(NAME));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(NAME));
    let usual = [PathBuf::from(USUAL)];
    let mut all = beside.into_iter().chain(system).chain(on_path).chain(usual);
    Command::new(
        all.find(|path| path.is_file())
            .unwrap_or_else(|| NAME.into()),
    )
}

/// It cannot be started.
pub(crate) fn missing(error: &io::Error) -> CliError {
    CliError::Failed(format!(
        "cannot start wormholed, which runs plugins: {error}; install it beside wormholes"
    ))
}
