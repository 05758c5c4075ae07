//! `cargo xtask dist`: the Debian package, with the manual pages, the completions and the SDK in it; with
//! `--static` an archive of programs that need no library of the system.
//!
//! What is generated lies below `target/PROFILE/dist`, where the package's list of files
//! (router/daemon/Cargo.toml) has it.

mod manual;
mod sdk;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    setup,
    stage::{Stages, cargo, check, program, target_dir, workspace},
};

/// What the completions of each shell are called where the shell looks for them.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "wormholes"),
    ("zsh", "_wormholes"),
    ("fish", "wormholes.fish"),
];

/// What the archive has beside what is built.
const OF_THE_ARCHIVE: [&str; 8] = [
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "config.toml",
    "packaging",
    "scripts",
];

/// How to build.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Take the programs of the development profile, without --static as they are built: for tests.
    #[arg(long)]
    debug: bool,
    /// Make an archive of statically linked programs instead, with musl.
    #[arg(long)]
    r#static: bool,
    /// A folder for the package [default: target/dist]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut stages = Stages::new();
    let target = arguments.r#static.then(musl_target);
    let (profile, folder) = match arguments.debug {
        true => ("dev", "debug"),
        false => ("release", "release"),
    };
    let built = target_dir()
        .join(target.as_deref().unwrap_or_default())
        .join(folder);
    let output = arguments.output.clone();
    let output = output.unwrap_or_else(|| target_dir().join("dist"));
    // What else the workspace has would be built anew: without tests it has other features.
    if !arguments.debug || target.is_some() {
        stages.run("build", || build(profile, target.as_deref()))?;
    }
    stages.run("generate", || generate(&built))?;
    let made = stages.run("package", || match &target {
        Some(target) => archive(&built, target, &output),
        None => package(profile, &output),
    })?;
    stages.print();
    println!("{}", made.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds all programs; for another target, those of the archive.
fn build(profile: &str, target: Option<&str>) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--locked", "--profile", profile]);
    match target {
        None => build.args(["--workspace", "--bins"]),
        Some(target) => {
            setup::packages(setup::STATIC_TOOLS)?;
            check(program("rustup").args(["target", "add", target]))?;
            let compiler = format!("CC_{}", target.replace('-', "_"));
            build.args(["--target", target]).env(compiler, "musl-gcc");
            if profile == "dev" {
                // For one test that starts it once: its hundreds of crates are compiled a second
                // time for it, and fast code would take twice as long to make.
                build.args(["--config", "profile.dev.opt-level=0"]);
            }
            build.args(["--package", "wormholed", "--package", "wormholes-cli"])
        }
    };
    check(&mut build)
}

/// Writes manual pages and completions of the programs in `built`, and the SDK that belongs to them.
fn generate(built: &Path) -> Result<()> {
    let dist = built.join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist).context("cannot clear the folder for what is generated")?;
    }
    let (man, completions) = (dist.join("man"), dist.join("completions"));
    for folder in [&man, &completions] {
        fs::create_dir_all(folder).context("cannot make a folder for what is generated")?;
    }
    let (wormholes, wormholed) = (built.join("wormholes"), built.join("wormholed"));
    for (shell, name) in SHELLS {
        let script = said(program(&wormholes).args(["completions", shell]))?;
        write(&completions.join(name), &script)?;
    }
    check(program(&wormholes).arg("manual").arg(&man))?;
    write(
        &man.join("wormholed.8"),
        &said(program(&wormholed).arg("--manual"))?,
    )?;
    let version = version(&wormholed)?;
    for page in fs::read_dir(&man).context("cannot list the manual pages")? {
        let path = page.context("cannot list the manual pages")?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((name, section)) = file.rsplit_once('.') else {
            bail!("{file} is no manual page");
        };
        let page = fs::read_to_string(&path).with_context(|| format!("cannot read {file}"))?;
        write(&path, &manual::with_head(&page, name, section, &version))?;
    }
    let config = fs::read_to_string(workspace().join("config.toml"));
    let page = manual::config_page(&config.context("cannot read config.toml")?, &version);
    write(&man.join("wormholed.toml.5"), &page)?;
    sdk::pack(&dist.join("sdk"))
}

/// Makes the package of what is built and generated; says where it is.
fn package(profile: &str, output: &Path) -> Result<PathBuf> {
    fs::create_dir_all(output).context("cannot make the folder for the package")?;
    let mut cargo_deb = program(setup::cargo_deb()?);
    cargo_deb
        .args([
            "--no-build",
            "--locked",
            "--offline",
            "--package",
            "wormholed",
        ])
        .args(["--profile", profile, "--no-strip", "--quiet", "--output"])
        .arg(output);
    if profile == "dev" {
        // By gzip: the compressor within is slow in a tool that is not optimised.
        cargo_deb.args(["--fast", "--compress-system", "--compress-type", "gz"]);
    }
    let deb = said(&mut cargo_deb)?;
    Ok(PathBuf::from(deb.lines().last().unwrap_or_default()))
}

/// Makes an archive of what is built and generated; says where it is.
fn archive(built: &Path, target: &str, output: &Path) -> Result<PathBuf> {
    fs::create_dir_all(output).context("cannot make the folder for the archive")?;
    let wormholed = built.join("wormholed");
    let kind = said(program("ldd").arg(&wormholed).env("LC_ALL", "C"))?;
    if !kind.contains("statically linked") {
        bail!("{} needs libraries:\n{kind}", wormholed.display());
    }
    let name = format!("wormholes-{}-{target}", version(&wormholed)?);
    let file = output.join(format!("{name}.tar.gz"));
    let mut tar = program("tar");
    // Where `wormholes` beside it looks.
    tar.arg("--transform=s,^dist/sdk,share/wormholes/sdk,");
    tar.arg(format!("--transform=s,^,{name}/,"));
    tar.args(["--create", "--gzip", "--owner=0", "--group=0", "--file"])
        .arg(&file);
    tar.arg("--directory")
        .arg(built)
        .args(["wormholed", "wormholes", "dist"]);
    tar.arg("--directory").arg(workspace()).args(OF_THE_ARCHIVE);
    check(&mut tar)?;
    Ok(file)
}

/// Rust's name for this machine with musl in the place of its C library.
fn musl_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

fn version(wormholed: &Path) -> Result<String> {
    let version = said(program(wormholed).arg("--version"))?;
    let words = version.split_whitespace().last();
    Ok(words.unwrap_or_default().to_owned())
}

/// What a program writes to standard output.
fn said(command: &mut Command) -> Result<String> {
    let output = command.stderr(std::process::Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} wrote no text"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
