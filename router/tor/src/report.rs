//! What a client says of itself.

/// How far a client is on its way into the Tor network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// 0 is just begun, 1 is ready.
    pub fraction: f32,
    /// Flows may go.
    pub is_ready: bool,
    /// Why it does not get on, in arti's words; none when nothing is known to be in the way.
    pub blocked: Option<String>,
}

/// A circuit that carried a stream of this client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circuit {
    /// Unique in this process.
    pub id: String,
    /// Streams on it that are open.
    pub streams: usize,
    /// Streams that it ever carried.
    pub opened: u64,
    /// Its relays, the nearest first.
    pub relays: Vec<String>,
}

/// Whether others find an onion service that is hosted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    /// Its descriptor was not taken by anybody yet.
    Publishing,
    /// Its descriptor is out.
    Reachable,
    /// Nobody finds it; arti goes on trying.
    Unreachable,
    /// It is over.
    Stopped,
}

/// The state of an onion service, and the problem that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// Whether others find it.
    pub state: HostState,
    /// In arti's words; it may have one and be reachable.
    pub problem: Option<String>,
}

impl Progress {
    /// In whole percent.
    pub fn percent(&self) -> u8 {
        let percent = (self.fraction.clamp(0.0, 1.0) * 100.0).floor();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 100, by the clamp"
        )]
        let percent = percent as u8;
        percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_whole_percent() {
        for (fraction, percent) in [(0.0, 0), (0.159, 15), (1.0, 100), (1.7, 100), (-1.0, 0)] {
            let progress = Progress {
                fraction,
                ..Progress::default()
            };
            assert_eq!(progress.percent(), percent, "{fraction}");
        }
    }
}
