//! The daemon's own program: its words on the command line, and rules that change while it runs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};
use wormholes_tests::{
    Daemon, EchoServer, Setup, binary, call, output, run, socks5_connect, until,
};

const DIRECT: &str = "fn route(c) { direct() }";
const BLOCK: &str = "fn route(c) { block(\"changed\") }";
const UNREACHED: &str = "fn route(c) {\n    return direct();\n    block(\"never\")\n}";
const BROKEN: &str = "fn route(c) {\n    dircet()\n}";

#[test]
fn the_version_is_printed() {
    let version = run(wormholed().arg("--version")).unwrap();
    assert_eq!(
        version,
        concat!("wormholed ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[tokio::test]
async fn a_check_says_what_is_wrong_where_and_starts_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let entrance = format!(
        "[[entrance]]\nkind = \"socks5\"\nlisten = \"{}\"",
        taken.local_addr().unwrap()
    );
    let setup = Setup::new("checked").unwrap().config(&entrance);
    let setup = setup.script("rules.rhai", DIRECT);
    let config = setup.write_config().unwrap();
    let good = check(&config);
    assert!(good.status.success(), "{}", said(&good));
    assert!(said(&good).contains("the config, the scripts and the plugins are good"));
    assert!(!setup.folder().join("data/control.sock").exists());

    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("[exit]\nalow_private = true\n{text}")).unwrap();
    complains(
        &config,
        "config.toml:2: unknown key `alow_private` in [exit]; did you mean `allow_private`?",
    );
    let with_set = text.replace("[rules]\n", "[rules]\nsets = { ads = \"ads.txt\" }\n");
    fs::write(&config, with_set).unwrap();
    complains(
        &config,
        "`sets.ads` in [rules], line 7 of the config: cannot read ",
    );
    fs::write(&config, text).unwrap();
    let cases = setup.folder().join("rules.test.rhai");
    fs::write(&cases, "test(\"x\", || {\n  expect(false);\n});").unwrap();
    complains(&config, "rules.test.rhai:2:3: this does not hold");
    fs::remove_file(&cases).unwrap();
    fs::write(setup.folder().join("rules.rhai"), UNREACHED).unwrap();
    let odd = check(&config);
    assert!(odd.status.success(), "{}", said(&odd));
    let warning = "warning: rules.rhai:3:5: nothing reaches this";
    assert!(said(&odd).contains(warning), "{}", said(&odd));
    fs::write(setup.folder().join("rules.rhai"), BROKEN).unwrap();
    complains(
        &config,
        "rules.rhai:2:5: no function is called `dircet`; did you mean `direct`?",
    );
    fs::remove_file(setup.folder().join("rules.rhai")).unwrap();
    complains(
        &config,
        "rules.rhai: No such file or directory (os error 2)\n",
    );
    complains(
        &config,
        "`scripts` in [rules], line 7 of the config: cannot read ",
    );
    fs::remove_file(&config).unwrap();
    complains(
        &config,
        "config.toml: No such file or directory (os error 2)\n",
    );
}

#[tokio::test]
async fn a_daemon_does_not_start_with_what_a_check_refuses() {
    let setup = Setup::new("refused").unwrap().entrances();
    let started = setup.script("rules.rhai", BROKEN).start().await;
    let refused = format!("{:#}", started.unwrap_err());
    assert!(refused.contains("rules.rhai:2:5"), "{refused}");
}

#[tokio::test]
async fn what_keeps_a_daemon_from_starting_is_said_once() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken_udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (tcp, udp) = (taken.local_addr().unwrap(), taken_udp.local_addr().unwrap());
    let setup = || Setup::new("broken").unwrap().script("rules.rhai", DIRECT);
    let script = Setup::new("broken").unwrap().script("rules.rhai", BROKEN);
    let peers = setup();
    fs::create_dir(peers.folder().join("data/peers.toml")).unwrap();
    let entrance = format!("[[entrance]]\nkind = \"socks5\"\nlisten = \"{tcp}\"");
    let in_use = "Address already in use (os error 98)";
    for (setup, reason) in [
        (script, "no function is called `dircet`"),
        (peers, "Is a directory (os error 21)"),
        (setup().listen(&udp.to_string()), in_use),
        (setup().config(&entrance), in_use),
        (
            setup().config(&format!("[metrics]\nlisten = \"{tcp}\"")),
            in_use,
        ),
        (
            setup().config("[control]\nsocket = \"none/control.sock\""),
            "No such file or directory (os error 2)",
        ),
    ] {
        let config = setup.write_config().unwrap();
        let ended = output(wormholed().arg("--config").arg(config)).unwrap();
        let said = said(&ended);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.starts_with("wormholed: "), "{said}");
        assert_eq!(last.matches(reason).count(), 1, "{said}");
    }
}

/// As when the terminal is closed that it was started from.
#[tokio::test]
async fn a_daemon_whose_log_nobody_takes_serves_and_stops_as_ever() {
    let setup = Setup::new("unheard").unwrap();
    let config = setup.write_config().unwrap();
    let mut daemon = tokio::process::Command::from(wormholed());
    daemon.arg("--config").arg(config).kill_on_drop(true);
    let mut child = daemon.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let socket = setup.folder().join("data/control.sock");
    until("an answer", async || {
        call(&socket, "status", json!({})).await.ok()
    })
    .await
    .unwrap();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}

/// The script has a second name elsewhere: the folder that is watched does not change with it.
#[tokio::test]
async fn a_hangup_puts_a_changed_script_in_force_and_drops_no_flow() {
    let elsewhere = tempfile::tempdir().unwrap();
    let script = elsewhere.path().join("rules.rhai");
    fs::write(&script, DIRECT).unwrap();
    let rules = "[rules]\nscripts = [\"rules.rhai\"]";
    let setup = Setup::new("reloaded").unwrap().entrances().config(rules);
    fs::hard_link(&script, setup.folder().join("rules.rhai")).unwrap();
    let node = setup.start().await.unwrap();
    let flow = LivingFlow::open(&node).await;

    fs::write(&script, BLOCK).unwrap();
    node.signal(Signal::HUP).unwrap();
    comes_into_force(&node, 2, || {}).await;
    assert_eq!(
        flow.refused_beside(&node).await,
        "refused with reply code 2"
    );

    fs::write(&script, BROKEN).unwrap();
    node.signal(Signal::HUP).unwrap();
    stays_with(&node, 2).await;
    assert_eq!(
        flow.refused_beside(&node).await,
        "refused with reply code 2"
    );
    flow.has_lived_on().await;
}

#[tokio::test]
async fn a_changed_file_is_put_in_force_and_a_broken_one_is_not() {
    let setup = Setup::new("watched").unwrap().entrances();
    let node = setup.script("rules.rhai", DIRECT).start().await.unwrap();
    let flow = LivingFlow::open(&node).await;
    // As editors do. The watch may begin after the first write.
    let write = |text: &str| {
        let beside = node.folder().join("rules.new");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, node.folder().join("rules.rhai")).unwrap();
    };
    comes_into_force(&node, 2, || write(BLOCK)).await;
    assert_eq!(
        flow.refused_beside(&node).await,
        "refused with reply code 2"
    );
    write(BROKEN);
    stays_with(&node, 2).await;
    write(DIRECT);
    comes_into_force(&node, 3, || {}).await;
    drop(LivingFlow::open(&node).await);
    flow.has_lived_on().await;
}

/// As configuration managers do: `rules.rhai -> current/rules.rhai`, `current -> v1`.
#[tokio::test]
async fn a_script_behind_links_is_put_in_force_when_it_or_a_link_changes() {
    let rules = "[rules]\nscripts = [\"rules.rhai\"]";
    let setup = Setup::new("linked").unwrap().entrances().config(rules);
    let folder = setup.folder().to_owned();
    for (version, text) in [("v1", DIRECT), ("v2", "fn route(c) { pass() }")] {
        fs::create_dir(folder.join(version)).unwrap();
        fs::write(folder.join(version).join("rules.rhai"), text).unwrap();
    }
    let link = |to: &str, name: &str| {
        let beside = folder.join("link.new");
        symlink(to, &beside).unwrap();
        fs::rename(&beside, folder.join(name)).unwrap();
    };
    link("v1", "current");
    link("current/rules.rhai", "rules.rhai");
    let node = setup.start().await.unwrap();
    // The watch may begin after the first write.
    let write = || fs::write(folder.join("v1/rules.rhai"), BLOCK).unwrap();
    comes_into_force(&node, 2, write).await;
    link("v2", "current");
    comes_into_force(&node, 3, || {}).await;
    link("v1/rules.rhai", "rules.rhai");
    comes_into_force(&node, 4, || {}).await;
}

fn wormholed() -> Command {
    Command::new(binary("wormholed").unwrap())
}

fn check(config: &Path) -> Output {
    output(wormholed().arg("--check").arg("--config").arg(config)).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn complains(config: &Path, complaint: &str) {
    let output = check(config);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(complaint), "{}", said(&output));
}

async fn generation(node: &Daemon) -> u64 {
    let scripts = node.call("script.list", json!({})).await.unwrap();
    scripts["generation"].as_u64().unwrap()
}

/// Waits for the rules of this number, and does `again` as long as they are not there.
async fn comes_into_force(node: &Daemon, number: u64, again: impl Fn()) {
    until(&format!("generation {number}"), async || {
        again();
        (generation(node).await == number).then_some(())
    })
    .await
    .unwrap();
}

/// Waits until the daemon says that it did not load the broken script.
async fn stays_with(node: &Daemon, number: u64) {
    let line = node.log().wait("those before stay in force").await.unwrap();
    assert!(line.contains("rules.rhai:2:5"), "{line}");
    assert!(line.contains("did you mean `direct`?"), "{line}");
    assert_eq!(generation(node).await, number);
}

/// A flow that carries bytes to and fro until it is told to stop.
struct LivingFlow {
    trips: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
    echo: EchoServer,
}

impl LivingFlow {
    async fn open(node: &Daemon) -> Self {
        let echo = EchoServer::start([127, 0, 0, 1].into()).await.unwrap();
        let (entrance, port) = (node.entrance("socks5").unwrap(), echo.address().port());
        let mut stream = socks5_connect(entrance, "127.0.0.1", port).await.unwrap();
        let (trips, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&trips), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut back = [0; 8];
            while !stopped.load(Relaxed) {
                let trip = counted.fetch_add(1, Relaxed).to_be_bytes();
                stream.write_all(&trip).await.unwrap();
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(back, trip);
            }
        });
        Self {
            trips,
            stop,
            task,
            echo,
        }
    }

    /// How another flow to the same target is refused, while this one goes on.
    async fn refused_beside(&self, node: &Daemon) -> String {
        let before = self.trips.load(Relaxed);
        let (entrance, port) = (node.entrance("socks5").unwrap(), self.echo.address().port());
        let refused = socks5_connect(entrance, "127.0.0.1", port).await;
        until("the flow to go on", async || {
            (self.trips.load(Relaxed) > before).then_some(())
        })
        .await
        .unwrap();
        refused.unwrap_err().to_string()
    }

    async fn has_lived_on(self) {
        self.stop.store(true, Relaxed);
        self.task.await.unwrap();
    }
}
