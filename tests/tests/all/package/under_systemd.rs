//! The unit as systemd itself runs it: nodes that compile WebAssembly, speak QUIC and are reloaded
//! within its walls, and what these keep out.
//!
//! systemd is the first process of the package's machine and finds no units there but those that a
//! test gives it: the targets that any unit hangs on are empty, so that nothing else of this machine
//! is started or set. The unit is the packaged one; since no journal runs, only where its words go
//! is added.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use wormholes_proto::NodeId;
use wormholes_tests::{Identity, component, run, until, workspace};

use super::{Machine, package};

/// Makes a cgroup of its own for what it runs, since systemd takes the one that it finds itself in.
const BOOT: &str = r#"set -e
    cd /run/machine
    mkdir cgroup
    mount -t cgroup2 cgroup2 cgroup
    mkdir "cgroup/$1"
    echo 0 > "cgroup/$1/cgroup.procs"
    exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh -c "$2""#;

/// What is set of the kernel stays as it is: it is everybody's.
const INIT: &str = r#"set -e
    cd /run/machine/root
    mount -t tmpfs tmpfs run
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount --bind proc/sys proc/sys
    mount -o remount,ro,bind proc/sys
    mkdir run/units run/before
    for target in sysinit basic shutdown; do
        printf '[Unit]\nDefaultDependencies=no\n' > "run/units/$target.target"
    done
    pivot_root . run/before
    umount -l run/before
    exec env -i container=wormholes PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        SYSTEMD_UNIT_PATH=/run/units SYSTEMD_GENERATOR_PATH=/run/none \
        /lib/systemd/systemd --system --unit=basic.target --log-target=null --show-status=no"#;

/// What was written for the machine is root's alone where it lies.
const FURNISH: &str = "set -e
    cd /mnt/unit
    for node in wormholes friend; do
        install -d -o wormholes -g wormholes -m 700 /var/lib/$node
        install -o wormholes -g wormholes -m 600 $node/identity.key /var/lib/$node/
    done
    install -o wormholes -g wormholes -m 600 config.toml friend.toml /etc/wormholes/
    install -D -m 644 -t /etc/wormholes/echo plugin.toml wormholes_echo.wasm
    install -m 644 rules.rhai probe.py /etc/wormholes/";

const RULES: &str = r#"fn route(c) {
    if c.node == () { direct() } else { c.node.direct().carrier("quic").closed() }
}"#;

const CLIENT: &str = r#"
[node]
data_dir = "/var/lib/wormholes"
[control]
socket = "/run/wormholes/control.sock"
[rules]
scripts = ["rules.rhai"]
[[entrance]]
kind = "socks5"
listen = "127.0.0.1:1080"
[plugin.echo]
wasm = "echo/wormholes_echo.wasm"
grants = { state = true, scratch = true, timers = true, users = true }
[[peer]]
name = "friend"
addresses = ["127.0.0.1:4433"]
"#;

const FRIEND: &str = r#"
[node]
data_dir = "/var/lib/friend"
listen = ["127.0.0.1:4433"]
carriers = ["quic"]
[[service]]
name = "site"
target = "127.0.0.1:8000"
[[peer]]
name = "client"
"#;

/// What both nodes lead to; it has no walls.
const SITE: &str = "[Service]
ExecStart=/usr/bin/python3 -m http.server --bind 127.0.0.1 --directory /mnt/unit/site 8000
StandardOutput=null
StandardError=null
";

/// Tries what the unit forbids, each thing by the key that forbids it, and what a compiler needs.
const PROBE: &str = r#"import ctypes, errno, mmap, os, socket

libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

def set_user_bit():
    with open("/tmp/wormholes-probe", "w") as file:
        os.fchmod(file.fileno(), 0o4755)

for name, attempt in [
    ("SystemCallFilter", lambda: call("ptrace", 0, 0, 0, 0)),
    ("LockPersonality", lambda: call("personality", 0x40000)),
    ("RestrictAddressFamilies", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    ("RestrictSUIDSGID", set_user_bit),
    ("ProtectSystem", lambda: open("/etc/wormholes/config.toml", "a")),
    ("ProtectHome", lambda: os.listdir("/home")),
    ("ProcSubset", lambda: open("/proc/meminfo")),
    ("ProtectProc", lambda: os.stat("/proc/1")),
    ("PrivateDevices", lambda: os.stat("/dev/kmsg")),
    ("code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)),
]:
    try:
        attempt()
        print(name, "done")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
"#;

/// What the probe finds within the unit's walls, and as the same user without them.
const FOUND: [(&str, &str, &str); 10] = [
    ("SystemCallFilter", "EPERM", "done"),
    ("LockPersonality", "EPERM", "done"),
    ("RestrictAddressFamilies", "EAFNOSUPPORT", "EPERM"),
    ("RestrictSUIDSGID", "EPERM", "done"),
    ("ProtectSystem", "EROFS", "done"),
    ("ProtectHome", "EACCES", "done"),
    ("ProcSubset", "ENOENT", "done"),
    ("ProtectProc", "ENOENT", "done"),
    ("PrivateDevices", "ENOENT", "done"),
    ("code", "done", "done"),
];

#[tokio::test]
async fn nodes_with_plugins_live_within_the_walls_that_systemd_builds_of_the_unit() {
    let machine = Machine::start(&package().folder);
    machine.run("dpkg --install /mnt/wormholes.deb");
    let folder = package().folder.path().join("unit");
    let packaged = machine.run("cat /usr/lib/systemd/system/wormholed.service");
    let page = furnish(&folder, &packaged);
    machine.run(FURNISH);
    let booted = Booted::start(machine).await;
    booted.run("cp /mnt/unit/*.service /run/units/ && systemctl daemon-reload");
    // Each returns when the daemon has said that it is ready: a plugin is compiled by then.
    booted.run("systemctl start site friend wormholed");
    let status = booted.run("cat /proc/$(systemctl show -P MainPID wormholed)/status");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "{line}: {status}");
    }

    let fetched = async || booted.fetch("site.friend.wh").ok();
    let fetched = until("a page of the friend's", fetched).await.unwrap();
    assert!(fetched == page, "another page came by QUIC");
    let direct = booted.fetch("127.0.0.1:8000").unwrap();
    assert!(direct == page, "another page came straight");
    let said = booted.run("wormholes echo say hello");
    assert_eq!(said, "count      1\ntext       hello\n");

    let compiled = || booted.run("stat -c '%n %i %Y' /var/lib/wormholes/plugins/compiled/*.cwasm");
    let before = compiled();
    booted.run("systemctl restart wormholed");
    let said = booted.run("wormholes echo say again");
    assert_eq!(said, "count      2\ntext       again\n");
    assert_eq!(compiled(), before, "compiled anew");

    walls_hold(&booted);
    reloads(&booted).await;
    booted.run("systemctl stop wormholed");
    let ended = booted.run("systemctl show -p Result -p ExecMainStatus wormholed");
    assert!(ended.contains("Result=success\n"), "{ended}");
    assert!(ended.contains("ExecMainStatus=0\n"), "{ended}");
}

/// The probe runs where the daemon does, then as the daemon's user does elsewhere.
fn walls_hold(booted: &Booted) {
    booted.run("systemctl start probe");
    let inside = booted.run("cat /run/probe.said");
    let user = "setpriv --reuid wormholes --regid wormholes --clear-groups";
    let outside = booted.run(&format!("{user} /usr/bin/python3 /etc/wormholes/probe.py"));
    let (mut inside, mut outside) = (inside.lines(), outside.lines());
    for (name, within, without) in FOUND {
        assert_eq!(inside.next(), Some(format!("{name} {within}").as_str()));
        assert_eq!(outside.next(), Some(format!("{name} {without}").as_str()));
    }
}

/// The first command of a reload runs within the walls too, and refuses; then the second is heard.
async fn reloads(booted: &Booted) {
    let generation = || {
        let status = booted.run("wormholes status --json");
        let status: Value = serde_json::from_str(&status).unwrap();
        status["scripts"]["generation"].as_u64().unwrap()
    };
    let before = generation();
    let script = |text: &str| {
        booted.run(&format!("echo '{text}' > /etc/wormholes/rules.rhai"));
        booted.try_run("systemctl reload wormholed")
    };
    assert!(script("fn route(c) { dircet() }").is_err());
    assert_eq!(generation(), before);
    script("fn route(c) { block() }").unwrap();
    let reloaded = async || (generation() > before).then_some(());
    until("the script to be in force", reloaded).await.unwrap();
    assert!(booted.fetch("127.0.0.1:8000").is_err());
}

/// Writes what the machine is given; the page that its site has.
fn furnish(folder: &Path, packaged: &str) -> String {
    fs::create_dir_all(folder).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let [client, friend] = [(); 2].map(|()| Identity::generate().unwrap());
    client.write(&folder.join("wormholes")).unwrap();
    friend.write(&folder.join("friend")).unwrap();
    let knows = |config: &str, id: NodeId| format!("{config}id = \"{id}\"\ntrust = 2\n");
    write("config.toml", &knows(CLIENT, friend.id()));
    write("friend.toml", &knows(FRIEND, client.id()));
    write("rules.rhai", RULES);
    let echo = workspace::root().join("plugins/echo/plugin.toml");
    fs::copy(echo, folder.join("plugin.toml")).unwrap();
    let wasm = "wormholes_echo";
    let to = folder.join(wasm).with_extension("wasm");
    fs::copy(component(wasm).unwrap(), to).unwrap();
    write("wormholed.service", &said_to(packaged, "wormholed"));
    let start = "ExecStart=/usr/sbin/wormholed";
    let other = packaged
        .replace("Directory=wormholes\n", "Directory=friend\n")
        .replace(
            start,
            &format!("{start} --config /etc/wormholes/friend.toml"),
        );
    write("friend.service", &said_to(&other, "friend"));
    write("probe.service", &probe_unit(packaged));
    write("probe.py", PROBE);
    write("site.service", SITE);
    let page = "all the way\n".repeat(100_000);
    fs::create_dir_all(folder.join("site")).unwrap();
    write("site/page", &page);
    page
}

/// A program that tries things where the daemon would be.
fn probe_unit(packaged: &str) -> String {
    let of_the_daemon = [
        "Type=",
        "Exec",
        "Restart",
        "WatchdogSec=",
        "StateDirectory",
        "RuntimeDirectory=",
    ];
    let is_wall = |line: &&str| !of_the_daemon.iter().any(|key| line.starts_with(key));
    let walls: Vec<&str> = packaged.lines().filter(is_wall).collect();
    let start = "[Service]\nType=oneshot\nExecStart=/usr/bin/python3 /etc/wormholes/probe.py\n";
    said_to(&(walls.join("\n") + "\n"), "probe").replace("[Service]\n", start)
}

fn said_to(unit: &str, name: &str) -> String {
    let to = format!("append:/run/{name}.said");
    unit.replace(
        "[Service]\n",
        &format!("[Service]\nStandardOutput={to}\nStandardError={to}\n"),
    )
}

/// A machine with systemd as its first process; ends with its value.
struct Booted {
    machine: Machine,
    /// Waits for its child, which is systemd.
    waiter: Child,
    systemd: Option<Pid>,
    cgroup: String,
}

impl Booted {
    async fn start(machine: Machine) -> Self {
        let cgroup = format!("wormholes-{}", machine.keeper.id());
        let mut waiter = machine.beside();
        waiter.args(["sh", "-c", BOOT, "sh", &cgroup, INIT]);
        let waiter = waiter.stdin(Stdio::null()).spawn().unwrap();
        let mut booted = Self {
            machine,
            waiter,
            systemd: None,
            cgroup,
        };
        let id = booted.waiter.id();
        let child = async || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            let child: u32 = children.trim().parse().ok()?;
            // Until then it is the shell that makes its surroundings.
            let program = fs::read_link(format!("/proc/{child}/exe")).ok()?;
            program.ends_with("systemd").then_some(child)
        };
        let child = until("systemd to start", child).await.unwrap();
        booted.systemd = Pid::from_raw(i32::try_from(child).unwrap());
        let is_up = async || booted.try_run("systemctl is-active basic.target").ok();
        until("systemd to be up", is_up).await.unwrap();
        booted
    }

    fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|error| {
            let said = self.try_run("tail -n 40 /run/*.said");
            panic!("{error:#}\n{}", said.unwrap_or_default())
        })
    }

    /// Runs a line of shell on it; what it says.
    fn try_run(&self, line: &str) -> Result<String> {
        let target = self.systemd.unwrap().as_raw_nonzero().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target]);
        command.args(["--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"]);
        command.args(["sh", "-c", line]).env("LC_ALL", "C");
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("WORMHOLES_SOCKET", "/run/wormholes/control.sock")
            .env("NO_COLOR", "1");
        run(&mut command)
    }

    /// The site's page, by the daemon's entrance.
    fn fetch(&self, host: &str) -> Result<String> {
        let curl =
            "curl --silent --show-error --fail --max-time 20 --socks5-hostname 127.0.0.1:1080";
        self.try_run(&format!("{curl} http://{host}/page"))
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // With the first process of a namespace all others there end, and its waiter after them.
        let _ended_before = match self.systemd {
            Some(systemd) => kill_process(systemd, Signal::KILL).is_ok(),
            None => self.waiter.kill().is_ok(),
        };
        let _ended = self.waiter.wait();
        let folder = format!("/run/machine/cgroup/{}", self.cgroup);
        let mut remove = self.machine.beside();
        remove.args(["find", &folder, "-depth", "-type", "d"]);
        let _gone = run(remove.args(["-exec", "rmdir", "{}", "+"]));
    }
}
