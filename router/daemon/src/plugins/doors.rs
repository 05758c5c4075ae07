//! Ports that plugins listen at: bound when a plugin is loaded, as long as it is granted them. What comes
//! is the plugin's; TLS is done before.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use wormholes_host::{Datagram, Host, Pipe, Refusal, SocketKind};

use super::datagrams::{Outlet, Port};
use crate::{
    config::PluginConfig,
    gateway::{Certificates, GatewayError},
    node::NodeCore,
    sources::{SourcePlace, Sources},
};

/// Connections to one port at once, those in TLS's handshake among them. Overflow: the newcomer is closed.
/// How many of them the plugin keeps, `limits.sockets` says.
const MAX_CONNECTIONS: usize = 1024;
/// From one place of the network.
const MAX_OF_ONE: usize = 16;
/// For TLS.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the system that is out of descriptors leaves the next connection waiting.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A plugin that does not listen where it is to.
#[derive(Debug, Error)]
pub enum DoorError {
    /// The address is taken or not this machine's.
    #[error("cannot listen on {address} for a plugin: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is no certificate to show.
    #[error("port {0} speaks TLS: it needs `certificate` and `key` in [http]")]
    NoCertificate(u16),
    /// It cannot be used.
    #[error(transparent)]
    Certificate(#[from] GatewayError),
    /// The plugin is gone.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The ports of all plugins.
#[derive(Default)]
pub(super) struct Doors(Mutex<BTreeMap<Door, Open>>);

/// Open for as long as it is kept.
struct Open {
    task: AbortOnDropHandle<()>,
    /// Of a port for datagrams.
    outlet: Option<Outlet>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Door {
    instance: String,
    address: SocketAddr,
    kind: Kind,
}

/// What comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Tcp,
    Tls,
    Udp,
}

/// A connection, and its place among those from one source: as long as it lives.
struct Seated {
    stream: TcpStream,
    _place: SourcePlace,
}

/// What comes to it, and who takes it.
struct Porter {
    door: Door,
    kind: SocketKind,
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    tls: Option<TlsAcceptor>,
    host: Weak<Host>,
    sources: Arc<Sources>,
}

impl Doors {
    /// Opens the ports that a plugin listens at by now, and closes the others that it had. One that does
    /// not open keeps no other closed.
    pub(super) async fn follow(
        &self,
        core: &Arc<NodeCore>,
        host: &Arc<Host>,
        plugin: &PluginConfig,
    ) -> Result<(), DoorError> {
        let streams = host.doors(&plugin.name)?.into_iter();
        let streams = streams.map(|(kind, port)| match kind {
            SocketKind::Tcp => (Kind::Tcp, port),
            SocketKind::Tls => (Kind::Tls, port),
        });
        let datagrams = host.datagram_ports(&plugin.name)?.into_iter();
        let datagrams = datagrams.map(|port| (Kind::Udp, port));
        let doors = streams.chain(datagrams).map(|(kind, port)| Door {
            instance: plugin.name.clone(),
            address: SocketAddr::new(plugin.listen, port),
            kind,
        });
        let doors: Vec<_> = doors.collect();
        self.keep(&plugin.name, &doors).await;
        let mut followed = Ok(());
        for door in doors {
            if !self.has(&door) {
                let opened = self.open(core, host, door).await;
                followed = followed.and(opened);
            }
        }
        followed
    }

    async fn open(
        &self,
        core: &Arc<NodeCore>,
        host: &Arc<Host>,
        door: Door,
    ) -> Result<(), DoorError> {
        let (task, outlet) = if door.kind == Kind::Udp {
            let (port, outlet) = udp(host, &door).await?;
            let run = port.run(Arc::clone(core));
            (core.spawn_until_stop(run), Some(outlet))
        } else {
            let porter = Porter::open(core, host, door.clone()).await?;
            let run = porter.run(Arc::clone(core));
            (core.spawn_until_stop(run), None)
        };
        let task = AbortOnDropHandle::new(task);
        self.lock().insert(door, Open { task, outlet });
        Ok(())
    }

    /// Sends a datagram from a port; false: there is no room, or no such port.
    pub(super) fn send(&self, datagram: Datagram) -> bool {
        let open = self.lock();
        let mut ports = open.iter().filter(|(door, _)| {
            door.kind == Kind::Udp
                && *door.instance == *datagram.plugin
                && door.address.port() == datagram.port
        });
        let outlet = ports.next().and_then(|(_, open)| open.outlet.as_ref());
        outlet.is_some_and(|outlet| outlet.try_send(datagram).is_ok())
    }

    /// Closes the ports of a plugin that is gone.
    pub(super) async fn close(&self, instance: &str) {
        self.keep(instance, &[]).await;
    }

    async fn keep(&self, instance: &str, doors: &[Door]) {
        let closed: Vec<_> = self
            .lock()
            .extract_if(.., |door, _| {
                door.instance == instance && !doors.contains(door)
            })
            .collect();
        for (_, open) in closed {
            open.task.abort();
            // Until then the port is taken.
            let _ = open.task.await;
        }
    }

    fn has(&self, door: &Door) -> bool {
        self.lock().contains_key(door)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Door, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn udp(host: &Arc<Host>, door: &Door) -> Result<(Port, Outlet), DoorError> {
    let address = door.address;
    let bound = Port::bind(address, &door.instance, Arc::downgrade(host)).await;
    bound.map_err(|source| DoorError::Listen { address, source })
}

impl Porter {
    async fn open(core: &Arc<NodeCore>, host: &Arc<Host>, door: Door) -> Result<Self, DoorError> {
        let address = door.address;
        let mut certificates = None;
        if door.kind == Kind::Tls {
            certificates = Certificates::load(&core.config.http)?;
            if certificates.is_none() {
                return Err(DoorError::NoCertificate(address.port()));
            }
        }
        let tls = certificates.as_ref().map(|it| it.acceptor());
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| DoorError::Listen { address, source })?;
        Ok(Self {
            kind: match door.kind {
                Kind::Tls => SocketKind::Tls,
                Kind::Tcp | Kind::Udp => SocketKind::Tcp,
            },
            door,
            listener,
            certificates,
            tls,
            host: Arc::downgrade(host),
            sources: Sources::new(MAX_CONNECTIONS, MAX_OF_ONE),
        })
    }

    async fn run(mut self, core: Arc<NodeCore>) {
        let renewed = self.certificates.take();
        let renew = async {
            match renewed {
                Some(certificates) => certificates.renew().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = Arc::new(self).take(core) => {}
            () = renew => {}
        }
    }

    async fn take(self: Arc<Self>, core: Arc<NodeCore>) {
        let this = self;
        loop {
            match this.listener.accept().await {
                Ok((stream, from)) => this.visit(stream, from.ip().to_canonical(), &core),
                Err(error) => {
                    tracing::warn!(%error, "a plugin's port cannot take a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn visit(self: &Arc<Self>, stream: TcpStream, from: IpAddr, core: &Arc<NodeCore>) {
        let Some(place) = self.sources.enter(from) else {
            return;
        };
        let this = Arc::clone(self);
        let stream = Seated {
            stream,
            _place: place,
        };
        core.spawn_until_stop(async move {
            if let Some(pipe) = this.secure(stream).await {
                this.hand_over(from, pipe);
            }
        });
    }

    async fn secure(&self, stream: Seated) -> Option<Box<dyn Pipe>> {
        // Small messages go at once; without it they only go later.
        let _ = stream.stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return Some(Box::new(stream));
        };
        match timeout(PATIENCE, tls.accept(stream)).await.ok()? {
            Ok(stream) => Some(Box::new(stream)),
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake at a plugin's port failed");
                None
            }
        }
    }

    fn hand_over(&self, from: IpAddr, pipe: Box<dyn Pipe>) {
        let Some(host) = self.host.upgrade() else {
            return;
        };
        let port = self.door.address.port();
        if let Err(refusal) = host.visit(&self.door.instance, (self.kind, port), from, pipe) {
            tracing::debug!(%refusal, "a plugin takes no connection");
        }
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl fmt::Debug for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().keys()).finish()
    }
}
