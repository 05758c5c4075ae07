//! The README's tour, run as it stands: each fenced block on its machine.
//!
//! A machine is a network namespace with a home of its own. What a person would paste from one
//! machine to another are the variables that end in `_ID` and `_INVITE`: they are carried over.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;
use tempfile::TempDir;
use wormholes_tests::{Link, Namespace, call, cargo, run, until, workspace};

/// A fenced block: the machine that it names after `sh`, and its lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) machine: String,
    pub(crate) commands: String,
}

struct Machine {
    namespace: Namespace,
    home: TempDir,
    path: String,
}

#[tokio::test]
async fn the_tour_of_the_readme_works_as_it_stands() {
    let blocks = blocks(&readme());
    let path = build(&blocks);
    let machines = machines(&path);
    let mut pasted = BTreeMap::new();
    let mut said = String::new();
    for block in &blocks {
        let Some(machine) = machines.get(block.machine.as_str()) else {
            continue;
        };
        said += &machine.run(&block.commands, &mut pasted);
        if block.commands.contains("wormholed --config config.toml &") {
            machine.wait_for_daemon().await;
        }
        if block.commands.contains("http.server") {
            machine.wait_for_site().await;
        }
    }
    assert!(said.contains("hello from my friend"), "{said}");
    assert!(said.contains("rules.rhai"), "`why` names no script: {said}");
    for name in ["RELAY_ID", "FRIEND_INVITE", "LAPTOP_INVITE"] {
        assert!(pasted.contains_key(name), "{name} was not printed");
    }
}

/// So that no command is in a block which no test runs; those of `plugin` are run by `plugins_new`.
#[test]
fn every_shell_block_of_the_readme_belongs_to_a_machine() {
    let known = ["", "build", "relay", "friend", "laptop", "plugin"];
    let blocks = blocks(&readme());
    assert!(blocks.len() > 8);
    for block in &blocks {
        assert!(known.contains(&block.machine.as_str()), "{block:?}");
    }
    let plain: Vec<_> = blocks.iter().filter(|b| b.machine.is_empty()).collect();
    let [two_commands] = plain.as_slice() else {
        panic!("more than the two commands stand outside the tour");
    };
    let lines = two_commands.commands.lines();
    let commands = lines.map(|line| line.split('#').next().unwrap().trim());
    // The first is run by the demo's test, the second is what runs this one.
    assert_eq!(
        commands.collect::<Vec<_>>(),
        ["cargo xtask demo", "cargo xtask test"]
    );
    let ci = fs::read_to_string(workspace::root().join(".ci/run")).unwrap();
    assert!(ci.contains("cargo xtask test"));
}

/// Runs the block that builds, in the checkout; gives the search path that it leaves.
fn build(blocks: &[Block]) -> String {
    let block = blocks.iter().find(|block| block.machine == "build");
    let script = format!("set -eu\n{}\necho \"$PATH\"", block.unwrap().commands);
    let mut shell = Command::new("bash");
    shell
        .args(["--noprofile", "--norc", "-c", &script])
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(workspace::root());
    for (name, value) in cargo().get_envs() {
        if value.is_none() {
            shell.env_remove(name);
        }
    }
    let printed = run(&mut shell);
    let printed = printed.unwrap();
    printed.lines().last().unwrap().to_owned()
}

pub(crate) fn readme() -> String {
    fs::read_to_string(workspace::root().join("README.md")).unwrap()
}

pub(crate) fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in markdown.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(info), None) if info == "sh" || info.starts_with("sh ") => {
                open = Some(Block {
                    machine: info[2..].trim().to_owned(),
                    commands: String::new(),
                });
            }
            (None, Some(block)) => {
                block.commands += line;
                block.commands.push('\n');
            }
            // Blocks of other kinds are no commands; their end opens nothing.
            (Some(_) | None, None) => {}
        }
    }
    blocks
}

/// The server at 203.0.113.5, and two machines that reach it and not each other.
fn machines(path: &str) -> BTreeMap<&'static str, Machine> {
    let new = || Machine {
        namespace: Namespace::new().unwrap(),
        home: TempDir::with_prefix("wormholes-tour-").unwrap(),
        path: path.to_owned(),
    };
    let (relay, laptop, friend) = (new(), new(), new());
    let server = Ipv4Addr::new(203, 0, 113, 5);
    let on_server = format!("{server}/32");
    relay
        .namespace
        .ip(&["address", "add", &on_server, "dev", "lo"])
        .unwrap();
    for (number, machine) in [(1, &laptop), (2, &friend)] {
        let gateway = Ipv4Addr::new(192, 168, number, 1);
        let link = Link {
            first: Ipv4Addr::new(192, 168, number, 2),
            second: gateway,
        };
        machine.namespace.join(&relay.namespace, link).unwrap();
        let gateway = gateway.to_string();
        let to_server = ["route", "add", &on_server, "via", &gateway];
        machine.namespace.ip(&to_server).unwrap();
    }
    [("relay", relay), ("laptop", laptop), ("friend", friend)].into()
}

impl Machine {
    /// Runs the lines in a shell that remembers its variables and its folder from block to block.
    fn run(&self, commands: &str, pasted: &mut BTreeMap<String, String>) -> String {
        let home = self.home.path();
        // Standard output goes to a file: a daemon in the background would keep a pipe open.
        let script = format!(
            "set -eu\n[ -e ~/.memory ] && . ~/.memory\n{commands}\n\
             {{ export -p; echo \"cd '$PWD'\"; }} > ~/.memory\n\
             set | grep -E '^[A-Z]+_(ID|INVITE)=' > ~/.pasted || true\n"
        );
        let (out, errors) = (home.join(".out"), home.join(".errors"));
        let status = self
            .namespace
            .command("timeout")
            .args(["60", "bash", "--noprofile", "--norc", "-c", &script])
            .env_clear()
            .envs(pasted.iter())
            .env("HOME", home)
            .env("PATH", &self.path)
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(new_file(&out))
            .stderr(new_file(&errors))
            .status()
            .unwrap();
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert!(
            status.success(),
            "{commands}\n{}\n{}",
            read(&out),
            read(&errors)
        );
        for line in read(&home.join(".pasted")).lines() {
            let (name, value) = line.split_once('=').unwrap();
            pasted.insert(name.to_owned(), value.trim_matches('\'').to_owned());
        }
        read(&out)
    }

    async fn wait_for_site(&self) {
        until("the site of the tour", async || {
            let mut look = self.namespace.command("nc");
            run(look.args(["-z", "127.0.0.1", "8080"])).ok()
        })
        .await
        .unwrap();
    }

    async fn wait_for_daemon(&self) {
        let socket = self.home.path().join("wormholes/data/control.sock");
        until("the daemon of the tour", async || {
            call(&socket, "status", json!({})).await.ok()
        })
        .await
        .unwrap();
    }
}

/// A new file, even where a daemon of an earlier block still writes to the old one.
fn new_file(path: &Path) -> fs::File {
    let _absent_at_first = fs::remove_file(path);
    fs::File::create(path).unwrap()
}

impl Drop for Machine {
    /// Ends what the tour left in the background, by process id.
    fn drop(&mut self) {
        let pids = run(Command::new("ip").args(["netns", "pids", self.namespace.name()]));
        for pid in pids.unwrap_or_default().split_whitespace() {
            let _ended_already = run(Command::new("kill").args(["-KILL", pid]));
        }
    }
}
