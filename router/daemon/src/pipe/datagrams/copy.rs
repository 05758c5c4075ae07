//! Copies datagrams between the two ends of a UDP flow until one ends, breaks, or falls silent.

use bytes::Bytes;

use super::{
    super::{
        CopyEnd, CopyLimits, CopyStop, FlowBytes,
        copy::{Shared, Way, ways},
        watch,
    },
    DatagramPipe, DatagramReader, DatagramWriter, PipeError,
};

/// Copies `near` (the asker's side) and `far` (the target's) into each other. There is no half of a
/// UDP flow: the end of one direction is that of both, and silence is a good end.
pub(in super::super) async fn copy(
    near: DatagramPipe,
    far: DatagramPipe,
    limits: &CopyLimits,
    bytes: &FlowBytes,
) -> CopyEnd {
    let (mut near, mut far) = (near, far);
    if let Some(pad_bytes) = limits.pad_bytes {
        far.writer.set_padding(pad_bytes);
    }
    let shared = Shared::new(limits, bytes);
    let [up, down] = ways(
        (&mut near.reader, &mut near.writer),
        (&mut far.reader, &mut far.writer),
        limits,
    );
    let ended = tokio::select! {
        ended = shared.run_datagrams(up) => ended,
        ended = shared.run_datagrams(down) => ended,
        stop = watch(limits, bytes) => Err(stop),
    };
    let stop = ended.err().filter(|stop| *stop != CopyStop::Idle);
    if stop.is_none() {
        // An end that is gone already misses nothing.
        let _ = near.writer.finish().await;
        let _ = far.writer.finish().await;
    }
    CopyEnd::of(bytes, stop)
}

impl Shared<'_> {
    async fn run_datagrams(
        &self,
        mut way: Way<'_, DatagramReader, DatagramWriter>,
    ) -> Result<(), CopyStop> {
        loop {
            let mut datagrams = way.next_datagrams().await?;
            if datagrams.is_empty() {
                return Ok(());
            }
            let n_read = datagrams.len();
            let fits = |datagram: &&Bytes| {
                let bytes = datagram.len() as u64;
                self.allowance.take(bytes) == bytes
            };
            let n_fitting = datagrams.iter().take_while(fits).count();
            datagrams.truncate(n_fitting);
            let bytes = datagrams.iter().map(|datagram| datagram.len() as u64).sum();
            let held = self.hold_back(bytes, way.jitter);
            match way.into.under() {
                Some(under) => under.go_over_during(held).await.map_err(way.write_failed)?,
                None => held.await,
            }
            self.write(way.into, &datagrams, way.write_failed).await?;
            (way.moved)(self.bytes, bytes);
            if n_fitting < n_read {
                return Err(CopyStop::MaxBytes);
            }
        }
    }

    /// Only streams between nodes can be slow for long; meanwhile what comes behind is dropped.
    async fn write(
        &self,
        into: &mut DatagramWriter,
        datagrams: &[Bytes],
        write_failed: fn(PipeError) -> CopyStop,
    ) -> Result<(), CopyStop> {
        let written = into.write_datagrams(datagrams);
        tokio::time::timeout(self.limits.unread, written)
            .await
            .map_err(|_| CopyStop::Unread)?
            .map_err(write_failed)
    }
}

impl Way<'_, DatagramReader, DatagramWriter> {
    /// What comes next. Meanwhile the stream that it goes into may be told to go on by another one.
    async fn next_datagrams(&mut self) -> Result<Vec<Bytes>, CopyStop> {
        loop {
            let under = self.into.under().filter(|under| under.may_go_over());
            let Some(under) = under else {
                return self.from.read_datagrams().await.map_err(self.read_failed);
            };
            tokio::select! {
                biased;
                () = under.called_over() => {}
                read = self.from.read_datagrams() => return read.map_err(self.read_failed),
            }
            under.go_over().await.map_err(self.write_failed)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;

    /// Two sockets that are connected to each other.
    async fn pair() -> (UdpSocket, UdpSocket) {
        let bind = || UdpSocket::bind("127.0.0.1:0");
        let (one, other) = (bind().await.unwrap(), bind().await.unwrap());
        one.connect(other.local_addr().unwrap()).await.unwrap();
        other.connect(one.local_addr().unwrap()).await.unwrap();
        (one, other)
    }

    #[tokio::test]
    async fn datagrams_move_whole_as_long_as_the_limit_allows() {
        let ((near, program), (far, target)) = (pair().await, pair().await);
        let pipe = |socket| DatagramPipe::socket(socket, &std::sync::Arc::default());
        let (near, far) = (pipe(near), pipe(far));
        let limits = CopyLimits {
            max_bytes: Some(10),
            ..CopyLimits::default()
        };
        for datagram in [b"abcd", b"efgh", b"ijkl", b"mnop"] {
            program.send(datagram).await.unwrap();
        }
        let end = copy(near, far, &limits, &FlowBytes::default()).await;
        let stop = Some(CopyStop::MaxBytes);
        assert_eq!((end.up_bytes, end.down_bytes, end.stop), (8, 0, stop));
        let mut read = [0; 100];
        for expected in [b"abcd", b"efgh"] {
            let n_bytes = target.recv(&mut read).await.unwrap();
            assert_eq!(&read[..n_bytes], expected);
        }
        target.try_recv(&mut read).unwrap_err();
    }
}
