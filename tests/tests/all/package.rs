//! What operators install: the Debian package, its manual pages and its life on a machine; and, in
//! a soak, the static programs.
//!
//! The package's machine is a copy of this one that is written to in memory only, with a network of
//! its own; no systemd runs there until a test boots it (`under_systemd`), so the others start the
//! daemon as the unit says.

#[path = "package/static_programs.rs"]
mod static_programs;
#[path = "package/under_systemd.rs"]
mod under_systemd;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use tempfile::TempDir;
use wormholes_tests::{binary, output, run, until};

/// Files of dpkg, adduser and man-db themselves: all that a purge may leave changed.
const OF_THE_SYSTEM: &[&str] = &[
    "etc/group",
    "etc/gshadow",
    "etc/passwd",
    "etc/shadow",
    "etc/subgid",
    "etc/subuid",
    "etc/.pwd.lock",
    "var/backups/",
    "var/cache/debconf/",
    "var/cache/man/",
    "var/lib/dpkg/",
    "var/log/",
];

/// The package of the programs that these tests run, and where its parts are generated.
struct Package {
    folder: TempDir,
    generated: PathBuf,
}

/// What `cargo xtask dist` makes of the programs that these tests run.
fn dist(more: &[&str], folder: &TempDir) -> PathBuf {
    let mut xtask = Command::new(binary("xtask").unwrap());
    xtask.args(["dist", "--debug", "--output"]);
    let made = run(xtask.arg(folder.path()).args(more)).unwrap();
    made.trim().into()
}

fn package() -> &'static Package {
    static PACKAGE: OnceLock<Package> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let folder = TempDir::with_prefix("wormholes-package-").unwrap();
        let deb = dist(&[], &folder);
        fs::rename(deb, folder.path().join("wormholes.deb")).unwrap();
        let generated = binary("xtask").unwrap().with_file_name("dist");
        Package { folder, generated }
    })
}

/// The package itself.
pub(crate) fn deb() -> PathBuf {
    package().folder.path().join("wormholes.deb")
}

#[test]
fn man_has_no_complaint_about_any_page() {
    let folder = package().generated.join("man");
    let mut pages = BTreeSet::new();
    for page in fs::read_dir(folder).unwrap() {
        let path = page.unwrap().path();
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-Tutf8", "-l"])
            .arg(&path);
        let shown = output(man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80")).unwrap();
        let said = String::from_utf8_lossy(&shown.stderr);
        assert!(
            shown.status.success() && said.is_empty(),
            "{}: {said}",
            path.display()
        );
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(
            text.contains("Wormholes") && text.lines().count() > 8,
            "{text}"
        );
        pages.insert(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    // One for each command, as the client lists them.
    let help = run(Command::new(binary("wormholes").unwrap()).arg("--help")).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let is_name = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let commands = commands.lines().filter(is_name);
    let names = commands.filter_map(|line| line.split_whitespace().next());
    let mut n_commands = 0;
    for name in names.filter(|name| *name != "help") {
        assert!(
            pages.contains(&format!("wormholes-{name}.1")),
            "{name}: {pages:?}"
        );
        n_commands += 1;
    }
    assert!(n_commands > 10, "{help}");
    for page in [
        "wormholes.1",
        "wormholed.8",
        "wormholed.toml.5",
        "wormholes-peer-add.1",
    ] {
        assert!(pages.contains(page), "{pages:?}");
    }
}

#[tokio::test]
async fn the_package_is_installed_runs_as_its_own_user_and_leaves_nothing_behind() {
    let machine = Machine::start(&package().folder);
    machine.run("dpkg --install /mnt/wormholes.deb");
    assert_eq!(
        machine.run("stat -c '%U %a' /etc/wormholes/config.toml"),
        "wormholes 600\n"
    );
    let unit = "/usr/lib/systemd/system/wormholed.service";
    // Its programs and manual pages are where it says.
    assert_eq!(
        machine.run(&format!("systemd-analyze verify {unit} 2>&1")),
        ""
    );
    assert_eq!(
        machine.run("bash -n /usr/share/bash-completion/completions/wormholes"),
        ""
    );
    plugins_are_made_of_it(&machine);
    let tested = machine.run("wormholes script test /etc/wormholes/scripts/default.rhai");
    assert!(tested.contains(" passed"), "{tested}");

    let unit = machine.run(&format!("cat {unit}"));
    let mut daemon = machine.start_daemon(&unit);
    let status = until("the daemon to answer", async || {
        let ended = daemon.0.try_wait().unwrap();
        let log = fs::read_to_string(&machine.log).unwrap();
        assert!(ended.is_none(), "{ended:?}: {log}");
        machine.try_run("wormholes status").ok()
    });
    let status = status.await.unwrap();
    assert!(status.contains("operator of this node"), "{status}");
    let user = machine.run("id -u wormholes");
    let running = fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
    let uid = running
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert_eq!(uid.split_whitespace().nth(1), Some(user.trim()));
    let caps = running
        .lines()
        .find(|line| line.starts_with("CapBnd:"))
        .unwrap();
    assert!(caps.ends_with("0000000000000000"), "{caps}");
    let key = machine.run("stat -c '%U %a' /var/lib/wormholes/identity.key");
    assert_eq!(key, "wormholes 600\n");
    drop(daemon);
    reloads_are_checked(&machine, &unit);

    machine.run("dpkg --remove wormholes");
    machine.run("test -e /etc/wormholes/config.toml && test -e /var/lib/wormholes/identity.key");
    machine.run("dpkg --purge wormholes");
    assert!(machine.try_run("id wormholes").is_err());
    let left = machine.run("cd /run/machine/written && find . ! -type d -o -empty");
    let left = left.lines().map(|path| path.trim_start_matches("./"));
    // An empty folder that is here too is one that something was in meanwhile.
    let is_here = |path: &str| Path::new("/").join(path).is_dir();
    let of_the_system = |path: &str| OF_THE_SYSTEM.iter().any(|known| path.starts_with(known));
    let left: Vec<&str> = left
        .filter(|path| !is_here(path) && !of_the_system(path))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn plugins_are_made_of_it(machine: &Machine) {
    let made = machine.run("cd /root && wormholes plugin new mine --json");
    assert!(
        made.contains("\"sdk\":\"/usr/share/wormholes/sdk\""),
        "{made}"
    );
    machine.run("rm -r /root/mine");
}

/// The first command of a reload refuses what the second would have the daemon read.
fn reloads_are_checked(machine: &Machine, unit: &str) {
    let config = "/etc/wormholes/config.toml";
    machine.run(&format!(
        "cp -p {config} /root/kept && echo nonsense >> {config}"
    ));
    let check = format!(
        "setpriv --reuid wormholes --clear-groups -- {}",
        value(unit, "ExecReload=")
    );
    let refused = machine.try_run(&check).unwrap_err().to_string();
    assert!(refused.contains("config.toml:"), "{refused}");
    machine.run(&format!("mv /root/kept {config}"));
    assert!(machine.run(&format!("{check} 2>&1")).contains("are good"));
}

/// A copy of this machine; ends with its value.
struct Machine {
    keeper: Child,
    /// What its daemon says.
    log: PathBuf,
}

/// A daemon, killed by its id when it is dropped.
struct Running(Child);

impl Machine {
    fn start(packages: &TempDir) -> Self {
        // What is written lies below /run, which is memory of this machine's own; what somebody has here
        // of a node is not on it.
        let make = "set -e
            ip link set lo up
            mount -t tmpfs tmpfs /run
            mkdir -p /run/machine/written /run/machine/work /run/machine/root
            cd /run/machine
            mount -t overlay overlay -o lowerdir=/,upperdir=written,workdir=work root
            rm -rf root/etc/wormholes root/var/lib/wormholes
            for folder in dev proc run; do mount --rbind /$folder root/$folder; done
            mount --bind \"$1\" root/mnt
            echo made
            exec cat";
        let mut keeper = Command::new("unshare");
        keeper
            .args(["--mount", "--net", "--", "sh", "-c", make, "sh"])
            .arg(packages.path());
        keeper.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = keeper.spawn().unwrap();
        let mut made = String::new();
        let mut said = BufReader::new(keeper.stdout.take().unwrap());
        said.read_line(&mut made).unwrap();
        assert_eq!(made, "made\n", "needs root");
        let log = packages.path().join("daemon.log");
        Self { keeper, log }
    }

    /// Runs a line of shell on it; what it says.
    fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap()
    }

    fn try_run(&self, line: &str) -> anyhow::Result<String> {
        run(self.command(&["sh", "-c", line]).env("LC_ALL", "C"))
    }

    /// Who will run a program beside its root folder, below /run/machine, and in its network.
    fn beside(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", "--mount", "--net"]);
        command.args(["--target", &self.keeper.id().to_string()]);
        command
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.beside();
        command.args(["chroot", "/run/machine/root"]).args(words);
        for name in ["DEBIAN_FRONTEND", "NO_COLOR"] {
            command.env(name, "noninteractive");
        }
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env_remove("WORMHOLES_SOCKET");
        command
    }

    /// Starts the program of the unit, as its user, with its folder and without any capability.
    fn start_daemon(&self, unit: &str) -> Running {
        let value = |key: &str| {
            let mut values = unit.lines().filter_map(|line| line.strip_prefix(key));
            values
                .next()
                .unwrap_or_else(|| panic!("the unit has no {key}"))
        };
        let (user, group) = (value("User="), value("Group="));
        let state = format!("/var/lib/{}", value("StateDirectory="));
        let mode = value("StateDirectoryMode=");
        let make = format!("install -d -o {user} -g {group} -m {mode} {state}");
        self.run(&make);
        let mut words = vec![
            "setpriv",
            "--reuid",
            user,
            "--regid",
            group,
            "--clear-groups",
        ];
        words.extend(["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]);
        words.extend(["--pdeathsig", "KILL", "--"]);
        assert_eq!(value("CapabilityBoundingSet="), "");
        words.extend(value("ExecStart=").split(' '));
        let log = File::create(&self.log).unwrap();
        Running(self.command(&words).stderr(log).spawn().unwrap())
    }
}

/// The first value of a key.
fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key));
    values
        .next()
        .unwrap_or_else(|| panic!("the unit has no {key}"))
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_before = self.0.kill();
        let _ended = self.0.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It waits for the end of its input; its folders end with it.
        drop(self.keeper.stdin.take());
        let _ended = self.keeper.wait();
    }
}
