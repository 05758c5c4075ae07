//! Installs what a command needs and this machine lacks: Debian packages and cargo tools.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::stage::{check, target_dir};

/// A program that tests or the demo start, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

/// The clients and servers that nobody here wrote, and the kernel's tools.
pub(crate) const TEST_TOOLS: &[Tool] = &[
    tool("curl", "curl"),
    tool("git", "git"),
    tool("ssh", "openssh-client"),
    tool("sshd", "openssh-server"),
    tool("ip", "iproute2"),
    tool("nft", "nftables"),
    tool("promtool", "prometheus"),
    tool("chromium", "chromium"),
    tool("python3", "python3"),
    tool("nc", "netcat-openbsd"),
];

/// What the demo starts beside the nodes.
pub(crate) const DEMO_TOOLS: &[Tool] = &[tool("curl", "curl")];

/// The first version that reads deny.toml as it is written.
const CARGO_DENY: &str = "0.20.2";

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Installs the packages of those tools that are missing.
///
/// # Errors
/// When a tool is still missing afterwards: a test never passes without what it needs.
pub(crate) fn packages(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    eprintln!("installing {}", names.join(" "));
    // One retry: mirrors fail for moments.
    if install(&names).is_err() {
        install(&names)?;
    }
    let still: Vec<_> = self::missing(tools).iter().map(|t| t.program).collect();
    if !still.is_empty() {
        bail!("still missing after installing: {}", still.join(" "));
    }
    Ok(())
}

/// A cargo-deny, installed below the target folder when PATH has none.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    if let Some(found) = find("cargo-deny") {
        return Ok(found);
    }
    let root = target_dir().join("tools");
    let installed = root.join("bin/cargo-deny");
    if installed.exists() {
        return Ok(installed);
    }
    // Unoptimised: it runs once for seconds, and its build would take minutes.
    check(
        crate::stage::cargo()
            .args(["install", "--locked", "--debug", "--no-track", "--root"])
            .arg(&root)
            .arg("--target-dir")
            .arg(target_dir().join("tools/build"))
            .arg(format!("cargo-deny@{CARGO_DENY}"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0"),
    )?;
    Ok(installed)
}

fn missing(tools: &[Tool]) -> Vec<Tool> {
    let absent = |tool: &Tool| find(tool.program).is_none();
    tools.iter().copied().filter(absent).collect()
}

/// Looks where a root shell would, too: sshd and nft live in sbin.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn install(packages: &[&str]) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("no apt-get here; install by hand: {}", packages.join(" "));
    }
    check(apt_get().args(["update", "-q"]))?;
    check(
        apt_get()
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages),
    )
    .context("packages are installed as root")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}
