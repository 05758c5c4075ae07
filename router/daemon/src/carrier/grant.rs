//! How many streams the other end of a link over QUIC may have open at once: few at first, and more
//! as it opens more, up to what its standing allows.
//!
//! What is granted is memory in the end, though few streams be open at once. quinn keeps what received
//! a stream that ended, with the room that its bytes took, for the last of the streams that it has
//! granted. So each stream takes new memory until as many have ended as are granted: some 400 bytes,
//! and 100 KiB where much waited to be read.

use std::time::Duration;

use tokio::time::Instant;

/// A browser's page: 50 KiB in the end, and 14 MiB where much waited to be read.
pub(super) const FIRST_STREAMS: u32 = 128;
/// How late an end may acknowledge what came (RFC 9000, section 18.2), with time to spare.
const ACK_DELAY: Duration = Duration::from_millis(50);

/// What the other end is granted.
#[derive(Debug)]
pub(super) struct Grant {
    streams: u32,
    most: u32,
    /// Those that it opened since then.
    opened: u32,
    since: Instant,
}

impl Grant {
    /// The first streams, and at most `most`.
    pub(super) fn new(most: u32, now: Instant) -> Self {
        Self {
            streams: FIRST_STREAMS.min(most),
            most,
            opened: 0,
            since: now,
        }
    }

    /// Grants at most `most`; what was granted stays.
    pub(super) fn set_most(&mut self, most: u32) {
        self.most = most;
    }

    /// Takes note that the other end, `rtt` away, opened a stream and has `open` now: what it is
    /// granted from here on, if that is more than before.
    ///
    /// Half is for those that are open. The other half is for those that have ended while the other
    /// end does not know: that takes a round trip for the acknowledgement, and half of one to tell.
    pub(super) fn handle_opened(
        &mut self,
        now: Instant,
        rtt: Duration,
        open: usize,
    ) -> Option<u32> {
        let known_after = rtt.saturating_mul(2).saturating_add(ACK_DELAY);
        if now.duration_since(self.since) >= known_after {
            (self.opened, self.since) = (0, now);
        }
        self.opened = self.opened.saturating_add(1);
        let used = open.max(self.opened as usize);
        if self.streams >= self.most || used < self.streams as usize / 2 {
            return None;
        }
        // The last step is no smaller than the others: quinn does not tell the other end of less
        // than an eighth.
        self.streams = match self.streams > self.most / 4 {
            true => self.most,
            false => 2 * self.streams,
        };
        Some(self.streams)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 9 * FIRST_STREAMS;
    const RTT: Duration = Duration::from_millis(100);

    #[test]
    fn streams_that_stay_open_bring_more_up_to_the_most() {
        let mut now = Instant::now();
        let mut grant = Grant::new(MOST, now);
        let mut granted = Vec::new();
        for open in 1..=MOST as usize {
            now += 10 * RTT;
            let more = grant.handle_opened(now, RTT, open);
            granted.extend(more.map(|more| (open, more)));
        }
        let first = FIRST_STREAMS as usize;
        let expected = [
            (first / 2, 2 * FIRST_STREAMS),
            (first, 4 * FIRST_STREAMS),
            (2 * first, MOST),
        ];
        assert_eq!(granted, expected);
    }

    #[test]
    fn streams_that_end_bring_more_where_many_come_before_that_is_known() {
        let mut now = Instant::now();
        let mut grant = Grant::new(MOST, now);
        let known_after = 2 * RTT + ACK_DELAY;
        let mut opened = |meanwhile: u32| {
            (0..100 * meanwhile).find_map(|_| {
                now += known_after / meanwhile;
                grant.handle_opened(now, RTT, 1)
            })
        };
        assert_eq!(opened(FIRST_STREAMS / 4), None);
        assert_eq!(opened(FIRST_STREAMS), Some(2 * FIRST_STREAMS));
    }
}
