//! The ends of a UDP flow: a pipe's verbs for datagrams, each of which arrives whole or not at all.
//!
//! Where there is no room a datagram is dropped and counted; nothing waits but what a flow holds
//! already. Neither end of a UDP flow says that it is done, so that one ends by silence, with what
//! it came through, or at a limit.

mod copy;
mod queue;
mod socket;
mod stream;

use std::{fmt, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::net::UdpSocket;

pub(super) use copy::copy;
pub(crate) use queue::{Queue, Room};
pub(crate) use socket::enlarge_buffer;

use super::{Pipe, PipeError, PipeReader, PipeWriter};
use crate::{carrier::Lane, counters::Counters};

use socket::{ProgramWriter, SocketReader, SocketWriter};
use stream::{StreamReader, StreamWriter};

/// Datagrams that one read may yield: a batch shares one write into a stream.
const BATCH_DATAGRAMS: usize = 32;
/// With so many bytes a batch is full: a slow stream shall be done with it in time.
const BATCH_BYTES: usize = 64 << 10;

/// Both directions of a UDP flow.
#[derive(Debug)]
pub struct DatagramPipe {
    /// What comes in.
    pub(crate) reader: DatagramReader,
    /// What goes out.
    pub(crate) writer: DatagramWriter,
}

/// What one read yields.
#[derive(Debug, Default)]
struct Batch {
    datagrams: Vec<Bytes>,
    bytes: usize,
}

/// The direction that comes in.
pub(crate) enum DatagramReader {
    Socket(SocketReader),
    Stream(Box<StreamReader>),
    Program(Arc<Queue>),
}

/// The direction that goes out.
pub(crate) enum DatagramWriter {
    Socket(SocketWriter),
    Stream(Box<StreamWriter>),
    Program(ProgramWriter),
}

/// A program's end of a flow on a socket that it shares with others.
#[derive(Debug)]
pub(crate) struct ProgramEnd {
    /// What the program sent.
    pub(crate) queue: Arc<Queue>,
    /// Where it hears.
    pub(crate) socket: Arc<UdpSocket>,
    /// Where it is.
    pub(crate) program: SocketAddr,
    /// What stands before each datagram that it gets.
    pub(crate) head: Bytes,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.datagrams.len() >= BATCH_DATAGRAMS || self.bytes >= BATCH_BYTES
    }

    fn push(&mut self, datagram: Bytes) {
        self.bytes += datagram.len();
        self.datagrams.push(datagram);
    }

    fn into_vec(self) -> Vec<Bytes> {
        self.datagrams
    }
}

impl DatagramPipe {
    /// A socket that is connected to the target.
    pub(crate) fn socket(socket: UdpSocket, counters: &Arc<Counters>) -> Self {
        enlarge_buffer(&socket);
        let socket = Arc::new(socket);
        Self {
            reader: DatagramReader::Socket(SocketReader::new(Arc::clone(&socket))),
            writer: DatagramWriter::Socket(SocketWriter::new(socket, Arc::clone(counters))),
        }
    }

    /// A stream between nodes that carries frames, and datagrams beside it where they may go.
    pub(crate) fn between_nodes(pipe: Pipe, counters: &Arc<Counters>) -> Self {
        let Pipe { reader, writer } = pipe;
        let lane = reader.lane().map(Arc::new);
        let reader = StreamReader::new(reader, lane.clone());
        let writer = StreamWriter::new(writer, lane, Arc::clone(counters));
        Self {
            reader: DatagramReader::Stream(Box::new(reader)),
            writer: DatagramWriter::Stream(Box::new(writer)),
        }
    }

    /// A program at an entrance.
    pub(crate) fn program(end: ProgramEnd, counters: &Arc<Counters>) -> Self {
        Self {
            reader: DatagramReader::Program(Arc::clone(&end.queue)),
            writer: DatagramWriter::Program(ProgramWriter::new(end, Arc::clone(counters))),
        }
    }
}

impl DatagramWriter {
    /// The stream between nodes that is under it.
    pub(super) fn under(&mut self) -> Option<&mut PipeWriter> {
        match self {
            Self::Stream(stream) => Some(stream.under()),
            Self::Socket(_) | Self::Program(_) => None,
        }
    }
}

impl DatagramReader {
    /// Takes a batch of what has come; none when it ended well. Cancel-safe.
    pub(crate) async fn read_datagrams(&mut self) -> Result<Vec<Bytes>, PipeError> {
        match self {
            Self::Socket(socket) => socket.read_datagrams().await,
            Self::Stream(stream) => stream.read_datagrams().await,
            Self::Program(queue) => Ok(queue.take().await),
        }
    }
}

impl DatagramWriter {
    /// Sends all of `datagrams`, but for those that cannot be sent.
    pub(crate) async fn write_datagrams(&mut self, datagrams: &[Bytes]) -> Result<(), PipeError> {
        match self {
            Self::Socket(socket) => socket.write_datagrams(datagrams).await,
            Self::Stream(stream) => stream.write_datagrams(datagrams).await,
            Self::Program(program) => program.write_datagrams(datagrams).await,
        }
    }

    /// Pads what is sent from here on, when this kind can.
    fn set_padding(&mut self, pad_bytes: u32) {
        match self {
            Self::Stream(stream) => stream.set_padding(pad_bytes),
            Self::Socket(_) | Self::Program(_) => {}
        }
    }

    /// Tells the other end that the flow ended well, where it can be told.
    async fn finish(&mut self) -> Result<(), PipeError> {
        match self {
            Self::Stream(stream) => stream.finish().await,
            Self::Socket(_) | Self::Program(_) => Ok(()),
        }
    }
}

impl PipeReader {
    /// Where QUIC datagrams may go beside this stream; `None`: they may not.
    fn lane(&self) -> Option<Lane> {
        match &self.source {
            super::Source::Stream(stream) => stream.lane(),
            super::Source::Tcp(_)
            | super::Source::Sealed(_)
            | super::Source::Onion(_)
            | super::Source::Tor(_)
            | super::Source::Hop(_)
            | super::Source::Memory(_) => None,
        }
    }
}

impl fmt::Debug for DatagramReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Socket(_) => "socket",
            Self::Stream(_) => "stream",
            Self::Program(_) => "program",
        };
        f.debug_tuple("DatagramReader").field(&kind).finish()
    }
}

impl fmt::Debug for DatagramWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Socket(_) => "socket",
            Self::Stream(_) => "stream",
            Self::Program(_) => "program",
        };
        f.debug_tuple("DatagramWriter").field(&kind).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::Ordering::Relaxed, time::Duration};

    use tokio::io::AsyncWriteExt;

    use super::{
        super::{CopyEnd, CopyLimits, CopyStop, FlowBytes, MemoryEnd},
        *,
    };

    /// A flow between a socket and a stream between nodes: the program behind the socket, the
    /// other end of the stream, and how it ends.
    async fn flow(limits: CopyLimits) -> (UdpSocket, MemoryEnd, tokio::task::JoinHandle<CopyEnd>) {
        let bind = async || UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) = (bind().await, bind().await);
        ours.connect(theirs.local_addr().unwrap()).await.unwrap();
        theirs.connect(ours.local_addr().unwrap()).await.unwrap();
        let (pipe, far_end) = Pipe::memory();
        let task = tokio::spawn(async move {
            let counters = Arc::default();
            let near = DatagramPipe::socket(ours, &counters);
            let far = DatagramPipe::between_nodes(pipe, &counters);
            copy(near, far, &limits, &FlowBytes::default()).await
        });
        (theirs, far_end, task)
    }

    #[tokio::test]
    async fn the_end_of_one_side_is_that_of_both() {
        let (program, mut far, task) = flow(CopyLimits::default()).await;
        far.write_all(b"\0\x02hi").await.unwrap();
        let mut heard = [0; 9];
        assert_eq!(program.recv(&mut heard).await.unwrap(), 2);
        far.shutdown().await.unwrap();
        let end = task.await.unwrap();
        assert_eq!((end.down_bytes, end.stop), (2, None));
    }

    #[tokio::test]
    async fn silence_is_a_good_end() {
        let limits = CopyLimits {
            idle: Some(Duration::from_millis(40)),
            ..CopyLimits::default()
        };
        let (_program, _far, task) = flow(limits).await;
        assert_eq!(task.await.unwrap().stop, None);
    }

    #[tokio::test]
    async fn a_node_that_breaks_the_format_ends_the_flow() {
        for (bytes, error) in [
            (&b"\xff\xffx"[..], PipeError::Malformed("datagram")),
            (b"\0\x05cut", PipeError::Cut),
            (b"\0", PipeError::Cut),
        ] {
            let (_program, mut far, task) = flow(CopyLimits::default()).await;
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
            assert!(error.is_breach());
            assert_eq!(task.await.unwrap().stop, Some(CopyStop::Far(error)));
        }
    }

    #[tokio::test]
    async fn what_icmp_says_ends_no_flow() {
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let from = socket.local_addr().unwrap();
        socket.connect(address).await.unwrap();
        let counters = Arc::default();
        let mut pipe = DatagramPipe::socket(socket, &counters);
        for _ in 0..3 {
            let datagrams = [Bytes::from("to nobody")];
            pipe.writer.write_datagrams(&datagrams).await.unwrap();
        }
        // Somebody comes to be there.
        let open = UdpSocket::bind(address).await.unwrap();
        open.send_to(b"here", from).await.unwrap();
        assert_eq!(pipe.reader.read_datagrams().await.unwrap(), ["here"]);
        assert_eq!(counters.dropped.unsent.load(Relaxed), 0);
    }
}
