//! The life of Tor on this node: it is started, gets into the network, and is stopped.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use rustls::crypto::CryptoProvider;
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wormholes_tor::{Client, Progress, Settings};

use super::{Phase, Standing, Tor, TorFailure, not_there};
use crate::network::Network;

/// The pauses between tries to get into the network; arti itself tries many times in each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// What is said of the way into the network, in percent.
const SAID_STEPS: u8 = 5;

/// What runs between a start and a stop.
#[derive(Debug)]
pub(super) struct Run {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Tor {
    /// Starts it with the node, where config.toml has it on: no flow comes before.
    pub(crate) fn begin(self: &Arc<Self>, network: &Arc<Network>) {
        if let (Some(settings), Ok(mut run)) = (self.settings.clone(), self.run.try_lock()) {
            *run = Some(self.launch(network, settings));
        }
    }

    /// Starts it; nothing happens where it runs. Done when a client is there, which finds its way into
    /// the network in the background.
    ///
    /// # Errors
    /// [`TorFailure`] where config.toml does not have it on, or none can be made.
    pub(crate) async fn start(self: &Arc<Self>, network: &Arc<Network>) -> Result<(), TorFailure> {
        let settings = self.settings.clone().ok_or(TorFailure::Disabled)?;
        let mut run = self.run.lock().await;
        if matches!(self.standing().phase, Phase::Starting | Phase::Ready) {
            return Ok(());
        }
        if let Some(before) = run.take() {
            before.end().await;
        }
        *run = Some(self.launch(network, settings));
        // It may be stopped meanwhile.
        drop(run);
        let mut standing = self.standing.subscribe();
        let is_made = |it: &Standing| it.client.is_some() || it.phase != Phase::Starting;
        let made = standing.wait_for(is_made).await;
        // Its sender is this one's own.
        let made = made.map_err(|_| TorFailure::Stopped)?.clone();
        match made.phase {
            Phase::Starting | Phase::Ready => Ok(()),
            Phase::Disabled | Phase::Stopped | Phase::Failed => Err(not_there(&made)),
        }
    }

    fn launch(self: &Arc<Self>, network: &Arc<Network>, settings: Settings) -> Run {
        provide_tls();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        self.standing.send_replace(Standing {
            phase: Phase::Starting,
            progress: Progress::default(),
            error: None,
            client: None,
            cut: stop.clone(),
        });
        tracing::info!("Tor starts");
        let life = Arc::clone(self).live(Arc::clone(network), settings, stop.clone());
        tasks.spawn(Box::pin(life));
        Run { stop, tasks }
    }

    /// Stops it, and cuts all streams through it. The client stays and rests: arti lets go of its folder
    /// with the process alone, and a second client would find it taken. Its connections to relays, on
    /// which nothing moves, end within minutes.
    ///
    /// # Errors
    /// [`TorFailure::Disabled`].
    pub(crate) async fn stop(&self) -> Result<(), TorFailure> {
        if !self.is_enabled() {
            return Err(TorFailure::Disabled);
        }
        let mut run = self.run.lock().await;
        if let Some(running) = run.take() {
            running.end().await;
            tracing::info!("Tor has stopped");
        }
        self.standing.send_modify(|standing| {
            standing.phase = Phase::Stopped;
            standing.progress = Progress::default();
        });
        Ok(())
    }

    async fn live(
        self: Arc<Self>,
        network: Arc<Network>,
        settings: Settings,
        stop: CancellationToken,
    ) {
        let making = self.client.get_or_try_init(async || {
            let client = Client::create(&settings).await;
            client.map(Arc::new)
        });
        let client = match stop.run_until_cancelled(making).await {
            None => return,
            Some(Ok(client)) => Arc::clone(client),
            Some(Err(error)) => {
                tracing::error!(%error, "Tor did not start");
                self.standing.send_modify(|standing| {
                    standing.phase = Phase::Failed;
                    standing.error = Some(error.to_string());
                });
                return;
            }
        };
        client.wake();
        self.standing
            .send_modify(|standing| standing.client = Some(Arc::clone(&client)));
        let hosting = TaskTracker::new();
        let follow = self.follow(&network, &client, (&stop, &hosting));
        stop.run_until_cancelled(follow).await;
        self.standing.send_modify(|standing| {
            standing.phase = Phase::Stopped;
            standing.client = None;
        });
        hosting.close();
        hosting.wait().await;
        // Nobody says any more how they are.
        self.services.end();
        client.rest();
    }

    /// Follows how far the client is, for as long as it lives.
    async fn follow(
        self: &Arc<Self>,
        network: &Arc<Network>,
        client: &Arc<Client>,
        (stop, hosting): (&CancellationToken, &TaskTracker),
    ) {
        let mut changes = client.watch();
        let (mut getting_in, mut is_in) = (pin!(self.get_in(client)), false);
        loop {
            tokio::select! {
                () = &mut getting_in, if !is_in => {
                    is_in = true;
                    // The last step may not have been told yet.
                    self.progressed(client.progress());
                    self.standing.send_modify(|standing| {
                        standing.phase = Phase::Ready;
                        standing.error = None;
                    });
                    tracing::info!("Tor is ready");
                    self.services.publish(self, network, client, (stop, hosting));
                }
                Some(progress) = changes.next() => self.progressed(progress),
                else => std::future::pending::<()>().await,
            }
        }
    }

    async fn get_in(&self, client: &Client) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = client.bootstrap().await {
            tracing::warn!(%error, "Tor does not get on");
            self.standing
                .send_modify(|standing| standing.error = Some(error.to_string()));
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn progressed(&self, progress: Progress) {
        let before = self.standing().progress;
        if before.percent() / SAID_STEPS != progress.percent() / SAID_STEPS {
            tracing::info!(percent = progress.percent(), "Tor bootstrap");
        }
        if let Some(why) = progress
            .blocked
            .as_ref()
            .filter(|_| before.blocked.is_none())
        {
            tracing::warn!(why, "Tor does not get on");
        }
        self.standing
            .send_modify(|standing| standing.progress = progress);
    }
}

impl Run {
    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Arti takes the provider of the process for its TLS. It is the one that this node uses itself,
/// unless the program that embeds the node chose before.
fn provide_tls() {
    if CryptoProvider::get_default().is_none() {
        // Somebody else may have been faster.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}
