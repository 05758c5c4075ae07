//! Copies datagrams between the two ends of a UDP flow until one ends, breaks, or falls silent.

use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use wormholes_rules::Jitter;

use super::{
    super::{CopyEnd, CopyLimits, CopyStop, FlowBytes, Pace, watch},
    DatagramPipe, DatagramReader, DatagramWriter, PipeError,
};

/// What both directions look at.
struct Shared<'a> {
    limits: &'a CopyLimits,
    own_pace: Option<Pace>,
    bytes: &'a FlowBytes,
}

/// One of the two directions.
struct Way<'a> {
    from: &'a mut DatagramReader,
    into: &'a mut DatagramWriter,
    moved: fn(&FlowBytes, u64),
    jitter: Option<Jitter>,
    read_failed: fn(PipeError) -> CopyStop,
    write_failed: fn(PipeError) -> CopyStop,
}

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
    let shared = Shared {
        limits,
        own_pace: limits.bandwidth_bytes_per_s.map(Pace::new),
        bytes,
    };
    let up = Way {
        from: &mut near.reader,
        into: &mut far.writer,
        moved: FlowBytes::moved_up,
        jitter: limits.jitter,
        read_failed: CopyStop::Near,
        write_failed: CopyStop::Far,
    };
    let down = Way {
        from: &mut far.reader,
        into: &mut near.writer,
        moved: FlowBytes::moved_down,
        jitter: None,
        read_failed: CopyStop::Far,
        write_failed: CopyStop::Near,
    };
    let ended = tokio::select! {
        ended = shared.run(up) => ended,
        ended = shared.run(down) => ended,
        stop = watch(limits, bytes) => Err(stop),
    };
    let stop = ended.err().filter(|stop| *stop != CopyStop::Idle);
    if stop.is_none() {
        // An end that is gone already misses nothing.
        let _ = near.writer.finish().await;
        let _ = far.writer.finish().await;
    }
    CopyEnd {
        up_bytes: bytes.up.load(Relaxed),
        down_bytes: bytes.down.load(Relaxed),
        stop,
    }
}

impl Shared<'_> {
    async fn run(&self, way: Way<'_>) -> Result<(), CopyStop> {
        loop {
            let datagrams = way.from.read_datagrams().await.map_err(way.read_failed)?;
            if datagrams.is_empty() {
                return Ok(());
            }
            let bytes = datagrams.iter().map(|datagram| datagram.len() as u64).sum();
            self.limits.admit(self.bytes, bytes).await?;
            if let Some(pace) = &self.own_pace {
                pace.pass(bytes).await;
            }
            if let Some(jitter) = way.jitter {
                tokio::time::sleep(jitter.wait(rand::random())).await;
            }
            self.write(way.into, &datagrams, way.write_failed).await?;
            (way.moved)(self.bytes, bytes);
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
