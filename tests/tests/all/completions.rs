//! Completions, as shells ask for them: the program's own words, and what the plugins of the running
//! node offer.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::net::UnixListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use wormholes_tests::{Setup, binary, output, run, until};

/// Sources the script and completes the last of the words, as bash does at a TAB.
const TAB: &str = r#"
source <(wormholes completions bash)
pattern='-F ([^ ]+)'
[[ $(complete -p wormholes) =~ $pattern ]]
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_TYPE=9
"${BASH_REMATCH[1]}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Beyond what nobody waits for at a TAB, on a busy machine; a command waits longer than this.
const PATIENCE: Duration = Duration::from_secs(15);

/// A flag, and an option of which some values are no words of a shell.
const MORE: &str = r#"
[[command.argument]]
name = "quickly"
kind = "flag"
option = true

[[command.argument]]
name = "tone"
option = true
values = ["loud", "low", "$(reboot)", "two words"]
"#;

fn path() -> OsString {
    let program = binary("wormholes").unwrap();
    let folder = program.parent().unwrap().to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths([folder].into_iter().chain(env::split_paths(&path))).unwrap()
}

/// What a bash offers for the last of the words, sorted; it says nothing else.
fn offered(socket: &Path, words: &[&str]) -> Vec<String> {
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--norc", "-c", TAB, "bash"])
        .args(words)
        .env("PATH", path())
        .env("LC_ALL", "C")
        .env("WORMHOLES_SOCKET", socket);
    let output = output(&mut bash).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && errors.is_empty(),
        "{words:?}: {errors}"
    );
    let said = String::from_utf8(output.stdout).unwrap();
    let lines = said.lines().filter(|line| !line.is_empty());
    let mut words: Vec<String> = lines.map(str::to_owned).collect();
    words.sort();
    words
}

/// What `wormholes` answers the script of another shell.
fn answered(shell: &str, socket: &Path, words: &[&str]) -> Vec<String> {
    let mut asked = Command::new(binary("wormholes").unwrap());
    asked
        .arg("--")
        .args(words)
        .env("WORMHOLES_COMPLETE", shell)
        .env("WORMHOLES_SOCKET", socket)
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .env("_CLAP_IFS", "\n");
    let said = run(&mut asked).unwrap();
    said.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn shells_complete_what_the_manifests_of_plugins_offer() {
    let setup = Setup::new("node").unwrap().plugin("plugins/echo").unwrap();
    let manifest = setup.folder().join("echo/plugin.toml");
    let text = fs::read_to_string(&manifest).unwrap() + MORE;
    fs::write(&manifest, text).unwrap();
    let daemon = setup.start().await.unwrap();
    let socket = daemon.socket();
    // A busy machine may be too slow for one TAB.
    let offers = async |words: &[&str], expected: &[&str]| {
        let mut last = Vec::new();
        let seen = until("completions", async || {
            last = offered(&socket, words);
            (last == expected).then_some(())
        })
        .await;
        assert!(seen.is_ok(), "{words:?}: {last:?}");
    };
    offers(&["wormholes", "ec"], &["echo"]).await;
    let commands = ["--help", "count", "help", "later", "say", "slowly"];
    offers(&["wormholes", "echo", ""], &commands).await;
    offers(&["wormholes", "echo", "s"], &["say", "slowly"]).await;
    offers(&["wormholes", "--json", "echo", "l"], &["later"]).await;
    // Its own arguments, and none of the program's that it does not take.
    let count = ["wormholes", "echo", "count"];
    let more = |words: &[&'static str]| [&count[..], words].concat();
    let options = ["--help", "--json", "--quickly", "--tone", "--user"];
    offers(&more(&["--"]), &options).await;
    offers(&more(&["--tone", ""]), &["loud", "low"]).await;
    offers(&["wormholes", "echo", "slowly", "--d"], &["--detach"]).await;
    for command in ["log", "stop", "update"] {
        offers(&["wormholes", "plugin", command, "e"], &["echo"]).await;
    }
    let named = ["wormholes", "--socket", socket.to_str().unwrap(), "ec"];
    let elsewhere = Path::new("/nowhere");
    let seen = until("a socket that is named", async || {
        (offered(elsewhere, &named) == ["echo"]).then_some(())
    });
    seen.await.unwrap();
    for (shell, line) in [
        ("zsh", "say:answers at once"),
        ("fish", "say\tanswers at once"),
    ] {
        let seen = until("completions of other shells", async || {
            let lines = answered(shell, &socket, &["wormholes", "echo", "sa"]);
            (lines == [line]).then_some(())
        });
        seen.await.unwrap();
    }
}

#[test]
fn without_a_daemon_shells_complete_the_program_and_say_nothing() {
    let folder = TempDir::with_prefix("wormholes-completions-").unwrap();
    let nobody = folder.path().join("nobody.sock");
    assert_eq!(offered(&nobody, &["wormholes", "netc"]), ["netcheck"]);
    let kinds = offered(&nobody, &["wormholes", "events", "--kinds", "peer-d"]);
    assert_eq!(kinds, ["peer-down"]);
    assert!(offered(&nobody, &["wormholes", "echo", ""]).is_empty());
    assert!(
        offered(&nobody, &["wormholes", "plugin", "log", ""])
            .iter()
            .all(|word| word.starts_with('-'))
    );

    let silent = folder.path().join("silent.sock");
    let _listener = UnixListener::bind(&silent).unwrap();
    let started = Instant::now();
    assert!(offered(&silent, &["wormholes", "echo", ""]).is_empty());
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[test]
fn each_shell_has_a_script_that_asks_the_program() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let mut command = Command::new(binary("wormholes").unwrap());
        let script = run(command.args(["completions", shell])).unwrap();
        assert!(script.contains("WORMHOLES_COMPLETE"), "{script}");
    }
}
