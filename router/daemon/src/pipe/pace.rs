//! A speed limit that any number of flows can share.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

/// What may pass at once before the limit is felt, as time: long enough that timers, which wake
/// to the millisecond, do not slow it down.
const BURST: Duration = Duration::from_millis(50);

/// What waits its turn at once. A whole window comes at once where somebody waited for long: at a slow limit
/// it would hold up the other direction, and whoever takes silence for an end, for minutes.
pub(super) const PACED_BYTES: usize = 64 << 10;

/// Takes the first of `chunks`, `most` bytes of them.
pub(super) fn first_piece(chunks: &mut Vec<Bytes>, most: usize) -> Vec<Bytes> {
    let (mut piece, mut left, mut whole) = (Vec::new(), most, 0);
    for chunk in chunks.iter_mut() {
        let taken = chunk.split_to(chunk.len().min(left));
        left -= taken.len();
        piece.push(taken);
        if !chunk.is_empty() {
            break;
        }
        whole += 1;
    }
    chunks.drain(..whole);
    piece
}

/// A limit of bytes a second.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    /// When all that was let through so far will have passed at the limit.
    spent_until: Mutex<Instant>,
}

impl Pace {
    /// Limits to `bytes_per_s`; 0 counts as 1.
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: bytes_per_s.max(1),
            spent_until: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may pass.
    pub async fn pass(&self, bytes: u64) {
        let now = Instant::now();
        let until = self.spend(bytes, now);
        if until > now {
            tokio::time::sleep_until(until).await;
        }
    }

    fn spend(&self, bytes: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut spent_until = self
            .spent_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let start = (*spent_until).max(now);
        // Beyond a century nothing is told apart.
        *spent_until = start.checked_add(cost).unwrap_or(start);
        spent_until.checked_sub(BURST).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_that_came_in_its_order() {
        let text = |chunks: &[Bytes]| chunks.iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
        let all = || {
            vec![
                Bytes::from_static(b"abc"),
                Bytes::new(),
                Bytes::from_static(b"defgh"),
            ]
        };
        let mut chunks = all();
        let pieces = [4, 2, 9].map(|most| first_piece(&mut chunks, most));
        assert_eq!(
            pieces.each_ref().map(|piece| text(piece)),
            [vec![3, 0, 1], vec![2], vec![2]]
        );
        assert_eq!(pieces.concat().concat(), b"abcdefgh");
        assert!(chunks.is_empty());
        assert_eq!(first_piece(&mut all(), usize::MAX), all());
    }

    #[tokio::test]
    async fn two_flows_share_one_limit() {
        let pace = Pace::new(50_000);
        let start = Instant::now();
        tokio::join!(
            async {
                for _ in 0..10 {
                    pace.pass(500).await;
                }
            },
            async {
                for _ in 0..10 {
                    pace.pass(500).await;
                }
            }
        );
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(145), "{took:?}");
    }
}
