//! A plugin from nothing: the commands of the README, as they stand, and what they made.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::json;
use tempfile::TempDir;
use wormholes_tests::{binary, call, cargo, output, run, until, workspace};

use crate::{
    package,
    readme::{blocks, readme},
};

#[tokio::test]
async fn the_commands_of_the_readme_make_a_plugin_that_runs() {
    let home = Home::new();
    let plugin = home.path().join("reminders");
    let blocks = blocks(&readme());
    let mut commands = blocks.iter().filter(|block| block.machine == "plugin");
    let (make, ask) = (commands.next().unwrap(), commands.next().unwrap());
    assert!(commands.next().is_none());
    let lines = [make, ask].map(|block| block.commands.lines().count());
    assert_eq!(lines, [4, 1], "five commands");

    // Standard output goes to files: the daemon in the background would keep a pipe open.
    let _daemon = Daemon(home.path().join("daemon"));
    let script = format!("set -eu\n{}echo $! > ~/daemon\n", make.commands);
    home.shell(&workspace::root(), &script);
    let socket = plugin.join("data/control.sock");
    until("the daemon to answer", async || {
        call(&socket, "status", json!({})).await.ok()
    })
    .await
    .unwrap();
    let number = home.shell(&plugin, &ask.commands);
    assert_eq!(number, "1\n");
    let list = home.shell(
        &plugin,
        "wormholes --socket data/control.sock reminders list",
    );
    assert_eq!(list, "1: water the plants\n");

    home.shell(&plugin, "cargo fmt --check");
    home.shell(&plugin, "cargo test --quiet");
    home.shell(&plugin, "cargo clippy --quiet --all-targets -- -D warnings");
}

/// As who installed the package and has no checkout makes one: nothing but it and what registries have.
#[test]
fn a_plugin_is_made_of_the_package_alone() {
    let home = Home::with_package();
    let sdk = home.path().join("system/usr/share/wormholes/sdk");
    for folder in ["rust", "kit"] {
        let manifest = fs::read_to_string(sdk.join(folder).join("Cargo.toml")).unwrap();
        assert!(!manifest.contains("workspace"), "{manifest}");
    }
    home.shell(home.path(), "wormholes plugin new reminders");
    let plugin = home.path().join("reminders");
    let manifest = fs::read_to_string(plugin.join("Cargo.toml")).unwrap();
    assert!(manifest.contains(sdk.to_str().unwrap()), "{manifest}");
    home.shell(&plugin, "cargo build --quiet --target wasm32-wasip2");
    let told = home.shell(
        &plugin,
        "printf 'add \"water the plants\"\nlist\n' | wormholes plugin run .",
    );
    assert_eq!(told, "1\n1: water the plants\n");
    home.shell(&plugin, "cargo test --quiet");
}

#[test]
fn a_plugin_is_made_in_a_new_folder_that_can_name_it() {
    let home = Home::new();
    let new = |path: &str, more: &[&str]| {
        let mut command = Command::new(binary("wormholes").unwrap());
        command
            .current_dir(home.path())
            .args(["plugin", "new", path]);
        let output = output(command.args(more)).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    for name in ["status", "Upper", "1st", "."] {
        let (status, said) = new(name, &[]);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains("cannot name a plugin"), "{said}");
    }
    let (status, said) = new("mine", &["--sdk", "/usr"]);
    assert!(
        status == Some(2) && said.contains("is not the SDK"),
        "{said}"
    );
    assert!(!home.path().join("mine").exists());
    // Neither a checkout is around nor a package installed: nothing is made that nobody can build.
    let (status, said) = new("mine", &[]);
    let mend = "install the Debian package";
    assert!(status == Some(2) && said.contains(mend), "{said}");
    assert!(!home.path().join("mine").exists());
    let sdk = workspace::root().join("sdk");
    let from = ["--sdk", sdk.to_str().unwrap()];
    let (status, said) = new("mine", &[from[0], from[1], "--json"]);
    assert!(
        status == Some(0) && said.contains("\"plugin\":\"mine\""),
        "{said}"
    );
    let (status, said) = new("mine", &from);
    assert!(status == Some(1) && said.contains("is not empty"), "{said}");
}

/// A person's home, from which cargo uses what is downloaded and built already.
struct Home {
    folder: TempDir,
    /// Where the person's programs of Wormholes are.
    programs: Vec<PathBuf>,
}

impl Home {
    fn new() -> Self {
        let home = TempDir::with_prefix("wormholes-new-").unwrap();
        let target = binary("wormholed").unwrap();
        let target = target.ancestors().nth(2).unwrap();
        // As the workspace has it: what the SDK stands on is built there already.
        let config = format!(
            "[build]\nbuild-dir = {target:?}\n[net]\noffline = true\n\
             [profile.dev]\ndebug = false\nopt-level = 2\nlto = \"off\"\n\
             [profile.dev.build-override]\nopt-level = 0\n"
        );
        fs::create_dir(home.path().join(".cargo")).unwrap();
        fs::write(home.path().join(".cargo/config.toml"), config).unwrap();
        let programs = binary("wormholes").unwrap();
        Self {
            folder: home,
            programs: vec![programs.parent().unwrap().to_owned()],
        }
    }

    /// With what is in the Debian package, and no other program of Wormholes.
    fn with_package() -> Self {
        let mut home = Self::new();
        let system = home.path().join("system");
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(package::deb()).arg(&system);
        run(&mut unpack).unwrap();
        home.programs = ["usr/bin", "usr/sbin"].map(|it| system.join(it)).into();
        home
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs the lines in a folder; gives what they printed.
    fn shell(&self, folder: &Path, script: &str) -> String {
        let said = self.path().join("said");
        let path = env::var_os("PATH").unwrap_or_default();
        let programs = self.programs.iter().cloned();
        let path = env::join_paths(programs.chain(env::split_paths(&path)));
        let tools = |name: &str, folder: &str| {
            let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
            env::var_os(name).map_or_else(|| home.join(folder), PathBuf::from)
        };
        let mut shell = Command::new("bash");
        shell
            .args(["--noprofile", "--norc", "-c", script])
            .env("PATH", path.unwrap())
            .env("CARGO_HOME", tools("CARGO_HOME", ".cargo"))
            .env("RUSTUP_HOME", tools("RUSTUP_HOME", ".rustup"))
            .env("HOME", self.path())
            .env_remove("CARGO_TARGET_DIR")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(File::create(&said).unwrap())
            .stderr(File::create(self.path().join("errors")).unwrap());
        for (name, value) in cargo().get_envs() {
            if value.is_none() {
                shell.env_remove(name);
            }
        }
        let status = shell.status().unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        let (said, errors) = (read(said), read(self.path().join("errors")));
        assert!(status.success(), "{script}\n{said}\n{errors}");
        said
    }
}

/// The file that has the process id of what was left in the background.
struct Daemon(PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).unwrap_or_default();
        let _never_started = run(Command::new("kill").arg(pid.trim()));
    }
}
