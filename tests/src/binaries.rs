//! The programs under test: found where cargo built them, and run to their end.

use std::{
    env,
    fs::DirBuilder,
    os::unix::fs::{DirBuilderExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

use crate::workspace;

static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// The path of a program of this workspace, up to date.
///
/// # Errors
/// When it cannot be built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = FOLDER
        .get_or_init(|| folder().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let path = folder.join(name);
    if !path.exists() {
        bail!("{} is not built", path.display());
    }
    Ok(path)
}

/// Plugins that are run by tests: their packages.
const PLUGINS: [&str; 7] = [
    "wormholes-clerk",
    "wormholes-courier",
    "wormholes-echo",
    "wormholes-ledger",
    "wormholes-meter",
    "wormholes-porter",
    "wormholes-wicked",
];

/// The path of a plugin's component, up to date: `wormholes_echo`.
///
/// # Errors
/// When it cannot be built.
pub fn component(name: &str) -> Result<PathBuf> {
    // Benches have optimised ones.
    if let Some(folder) = env::var_os("WORMHOLES_COMPONENTS") {
        return Ok(PathBuf::from(folder).join(format!("{name}.wasm")));
    }
    static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| match env::var_os("WORMHOLES_BIN_DIR") {
        Some(_) => Ok(()),
        None => build_components().map_err(|error| format!("{error:#}")),
    });
    built.clone().map_err(|error| anyhow::anyhow!("{error}"))?;
    // What is built for this machine lies in `target/debug`.
    let folder = binary("wormholed")?.with_file_name("../wasm32-wasip2/debug");
    let path = folder.join(format!("{name}.wasm"));
    if !path.exists() {
        bail!("{} is not built", path.display());
    }
    Ok(path)
}

/// Has the host in `folder` keep what it compiles where all hosts of tests do: a component takes a
/// second or more.
///
/// # Errors
/// When the link cannot be made.
pub(crate) fn share_compiled(folder: &Path) -> Result<()> {
    let shared = binary("wormholed")?.with_file_name("../tmp/compiled");
    let link = folder.join("compiled");
    if link.exists() {
        return Ok(());
    }
    for folder in [folder, &shared] {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(0o700).create(folder)?;
    }
    symlink(shared.canonicalize()?, link).context("cannot link to what is compiled")
}

fn build_components() -> Result<()> {
    let packages = PLUGINS.iter().flat_map(|package| ["--package", *package]);
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--target", "wasm32-wasip2"])
        .args(packages);
    run(&mut build).map(drop)
}

/// `cargo xtask` says where it built them; a plain `cargo test` builds them here.
fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("WORMHOLES_BIN_DIR") {
        return Ok(folder.into());
    }
    run(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    let this = env::current_exe().context("cannot find this program")?;
    let in_target = |folder: &&std::path::Path| folder.ends_with("debug");
    let folder = this.ancestors().find(in_target);
    Ok(folder
        .context("this program is in no target folder")?
        .into())
}

/// The cargo that runs this, in the workspace. What it said of this package is taken out of its
/// environment: build scripts that look at it would run again, and all that hangs on them.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.current_dir(workspace::root());
    command
}

/// Runs a program and returns its standard output.
///
/// # Errors
/// When it cannot start or ends with another status than 0; its standard error is in the text.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program and returns all that it said.
///
/// # Errors
/// When it cannot start.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))
}
