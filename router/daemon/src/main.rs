//! wormholed: the daemon. Reads the config, runs one node until a signal ends it.

mod plugin_replay;
mod service_manager;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, Parser};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tikv_jemallocator::Jemalloc;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use wormholed::{Config, Node, NodeOptions};

use service_manager::ServiceManager;

/// A flow allocates on several threads, and what a crowd took shall go back to the system: the C
/// library's allocator is slower at the first, and does the second only when it is asked.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Where packages put the config.
const DEFAULT_CONFIG: &str = "/etc/wormholes/config.toml";

/// The Wormholes router.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The config file; without it /etc/wormholes/config.toml, and the defaults if there is none.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the config, the scripts and the plugins, say what is wrong, and end.
    #[arg(long)]
    check: bool,
    /// Print the manual page; for who makes packages.
    #[arg(long, hide = true)]
    manual: bool,
    /// Run a plugin's recording again, an event a line of JSON; `wormholes plugin replay` shows it.
    #[arg(long, hide = true, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// The component to run it by.
    #[arg(long, hide = true, value_name = "FILE", requires = "replay")]
    wasm: Option<PathBuf>,
    /// Stop when standard input ends, and let the time of plugins be moved: for a node that is
    /// thrown away.
    #[arg(long, hide = true)]
    throw_away: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments {
        Arguments { manual: true, .. } => manual(),
        Arguments {
            replay: Some(file), ..
        } => plugin_replay::run(file, arguments.wasm.as_deref()),
        Arguments { check: true, .. } => check(&arguments),
        Arguments { .. } => run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("wormholed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn manual() -> anyhow::Result<()> {
    let page = clap_mangen::Man::new(Arguments::command()).section("8");
    page.render(&mut std::io::stdout())
        .context("cannot print the manual page")
}

fn check(arguments: &Arguments) -> anyhow::Result<()> {
    let config = load(arguments)?;
    for warning in wormholed::check(&config)? {
        say(&format!("wormholed: warning: {warning}"));
    }
    wormholed::check_plugins(&config)?;
    say("wormholed: the config, the scripts and the plugins are good");
    Ok(())
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = load(arguments)?;
    let _log = wormholed::init_log(&config.log)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(serve(config, arguments.throw_away))
}

async fn serve(config: Config, throw_away: bool) -> anyhow::Result<()> {
    let manager = ServiceManager::of_process();
    let mut stop = Stop::listen(throw_away)?;
    if throw_away {
        wormholed::let_time_move();
    }
    let hangup = signal(SignalKind::hangup()).context("cannot listen to signals")?;
    let drain = config.limits.drain;
    let options = NodeOptions {
        owns_process: true,
        watch_rules: true,
        control: true,
        ..NodeOptions::default()
    };
    let node = Node::start_with(config, options).await?;
    tracing::info!(
        id = %node.id(),
        listen = ?node.listen_addresses(),
        entrances = ?node.entrance_addresses(),
        "node started"
    );
    manager.ready();
    tokio::select! {
        () = stop.wanted() => {}
        () = reload_on(hangup, &node, &manager) => {}
        () = show_life(&manager) => {}
    }
    tracing::info!("node stops; flows may finish");
    manager.stopping(drain, node.core().flows.open());
    tokio::select! {
        () = node.drain() => {}
        () = stop.wanted() => tracing::warn!("flows are cut off, by a second signal"),
        () = show_life(&manager) => {}
    }
    tokio::select! {
        () = node.close() => {}
        () = stop.wanted() => tracing::warn!("stopped at once, by a further signal"),
    }
    Ok(())
}

/// Never ends.
async fn reload_on(mut hangup: Signal, node: &Node, manager: &ServiceManager) {
    while hangup.recv().await.is_some() {
        manager.reloading();
        // Said by the node itself, success and failure.
        manager.reloaded(node.reload().await.is_ok());
    }
    std::future::pending().await
}

/// Tells the service manager in time that this process lives. Never ends.
async fn show_life(manager: &ServiceManager) {
    let Some(period) = manager.watchdog_period() else {
        return std::future::pending().await;
    };
    let mut living = tokio::time::interval(period);
    loop {
        living.tick().await;
        manager.alive();
    }
}

/// SIGTERM or SIGINT; or the end of standard input, where somebody holds it open for that.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    eof: Option<watch::Receiver<bool>>,
}

impl Stop {
    fn listen(until_eof: bool) -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            eof: until_eof.then(eof),
        })
    }

    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            // Ctrl-C on a terminal is for who holds standard input.
            _ = self.interrupt.recv(), if self.eof.is_none() => {}
            () = ended(&mut self.eof) => {}
        }
    }
}

/// Hears of the end of standard input. On a thread of its own, for which no end of the runtime waits.
fn eof() -> watch::Receiver<bool> {
    let (told, heard) = watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        told.send_replace(true);
    });
    heard
}

/// Waits for the end of standard input, which is told once; for ever, where nobody asked for that.
async fn ended(eof: &mut Option<watch::Receiver<bool>>) {
    let Some(open) = eof else {
        return std::future::pending().await;
    };
    drop(open.wait_for(|is_over| *is_over).await);
    *eof = None;
}

fn load(arguments: &Arguments) -> anyhow::Result<Config> {
    let path = match &arguments.config {
        Some(path) => path.as_path(),
        None if Path::new(DEFAULT_CONFIG).exists() => Path::new(DEFAULT_CONFIG),
        None => return Ok(Config::default()),
    };
    Ok(Config::load(path)?)
}

/// A flow takes two descriptors, and the usual limit is 1024.
fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if current != maximum && setrlimit(Resource::Nofile, raised).is_err() {
        tracing::warn!(?current, "the limit of open files stays low");
    }
}

/// Standard error may be closed: then there is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
