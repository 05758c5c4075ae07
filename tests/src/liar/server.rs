//! The liar as the one who is asked: takes calls, and reacts to each stream as it is told to.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::{JoinHandle, JoinSet};
use wormholes_proto::{Answer, Open, Reason, decode_open, encode_answer};

use super::endpoint::Liar;

/// A stream on which the liar was asked for something.
#[derive(Debug)]
pub struct Asked {
    /// What for.
    pub open: Open,
    /// To answer on.
    pub send: SendStream,
    /// What follows the OPEN.
    pub receive: RecvStream,
}

type Reaction = dyn Fn(Asked) -> BoxFuture<'static, Result<()>> + Send + Sync;

/// A liar that takes calls until this is dropped.
pub struct LiarServer {
    liar: Arc<Liar>,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    reaction: Mutex<Option<Arc<Reaction>>>,
    /// Calls that came, the newest last.
    calls: Mutex<Vec<Connection>>,
}

impl LiarServer {
    /// Starts on an address of its own; nobody gets anything so far.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub fn start(ip: Ipv4Addr) -> Result<Self> {
        let liar = Arc::new(Liar::new(ip)?);
        let shared = Arc::<Shared>::default();
        let (taker, taken) = (Arc::clone(&liar), Arc::clone(&shared));
        let listener = tokio::spawn(async move {
            let mut calls = JoinSet::new();
            loop {
                if let Ok(call) = taker.called().await {
                    lock(&taken.calls).push(call.clone());
                    calls.spawn(serve(call, Arc::clone(&taken)));
                }
            }
        });
        Ok(Self {
            liar,
            shared,
            listener,
        })
    }

    /// Who it is.
    pub fn liar(&self) -> &Arc<Liar> {
        &self.liar
    }

    /// Reacts so to every stream from here on.
    pub fn react<F>(&self, reaction: impl Fn(Asked) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let reaction =
            Arc::new(move |asked| -> BoxFuture<'static, _> { Box::pin(reaction(asked)) });
        *lock(&self.shared.reaction) = Some(reaction);
    }

    /// Serves a connection that the liar made as those that were made to it.
    pub fn adopt(&self, connection: Connection) {
        tokio::spawn(serve(connection, Arc::clone(&self.shared)));
    }

    /// Ends all connections that were made to it.
    pub fn hang_up(&self) {
        for call in lock(&self.shared.calls).drain(..) {
            call.close(0_u32.into(), b"");
        }
    }
}

impl Drop for LiarServer {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl std::fmt::Debug for LiarServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiarServer")
            .field("liar", &self.liar)
            .finish_non_exhaustive()
    }
}

impl Asked {
    /// Says this, and ends.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub async fn say(mut self, bytes: &[u8]) -> Result<()> {
        self.send.write_all(bytes).await?;
        self.send.finish()?;
        // To hang up before the other has ended too would be a lie of its own.
        while self.receive.read_chunk(usize::MAX, false).await?.is_some() {}
        Ok(())
    }

    /// Refuses what was asked for.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub async fn refuse(self) -> Result<()> {
        self.say(&encode_answer(&Answer::Refused(Reason::Denied)))
            .await
    }

    /// Grants what was asked for.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub async fn grant(&mut self) -> Result<()> {
        let granted = encode_answer(&Answer::Accepted(Vec::new()));
        Ok(self.send.write_all(&granted).await?)
    }
}

async fn serve(call: Connection, shared: Arc<Shared>) {
    let mut streams = JoinSet::new();
    while let Ok((send, receive)) = call.accept_bi().await {
        let shared = Arc::clone(&shared);
        streams.spawn(async move {
            let asked = read_open(send, receive).await?;
            let reaction = lock(&shared.reaction).clone();
            match reaction {
                Some(react) => react(asked).await,
                None => Ok(()),
            }
        });
    }
}

async fn read_open(send: SendStream, mut receive: RecvStream) -> Result<Asked> {
    let mut length = [0; 2];
    receive.read_exact(&mut length).await?;
    let mut frame = vec![0; usize::from(u16::from_be_bytes(length))];
    receive.read_exact(&mut frame).await?;
    let open = decode_open(&frame).context("an honest node asked badly")?;
    Ok(Asked {
        open,
        send,
        receive,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
