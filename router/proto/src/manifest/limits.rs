//! `[limits]` of a manifest: how much of everything a plugin may use.

use std::time::Duration;

use serde::Deserialize;

use super::{ManifestError, value};

const MIB: u64 = 1 << 20;

/// How much a plugin may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory of one instance; default 32, at most 1,024.
    pub memory_mib: u64,
    /// Processor time of one event; default 50, at most 10,000.
    pub event_ms: u64,
    /// What one event may write, keys and values; default 1,024 KiB, at most 16,384.
    pub write_kib: u64,
    /// What all principals write a second beside other plugins that write, after 16 MiB at once;
    /// default 512 KiB, at most 65,536. Overflow: the next event waits.
    pub pace_kib: u32,
    /// What all principals keep together; default 64.
    pub state_mib: u64,
    /// What one user keeps of that; default 16.
    pub user_state_mib: u64,
    /// What one principal keeps in `scratch`; default 4.
    pub scratch_mib: u64,
    /// Open timers of one principal; default 1,000.
    pub timers: u32,
    /// Log lines of one event, all together; default 16 KiB.
    pub log_kib: u64,
    /// What all principals log a second, after four times as much at once; default 64 KiB, at most
    /// 65,536. Overflow: the next event waits, and questions go without their lines.
    pub log_kib_per_second: u32,
    /// Events that wait for one principal; default 1,024. Overflow: a request is refused.
    pub waiting: u32,
    /// Requests of one principal that were answered `later`, and questions that it asked; default
    /// 1,024 of each.
    pub requests: u32,
    /// Operations of one principal that go on, and with them those whose results are kept; default
    /// 256.
    pub operations: u32,
    /// Messages of one event; default 256.
    pub messages: u32,
    /// Messages of all principals a second, after what goes in four seconds at once; questions, datagrams, HTTP
    /// requests and connections that are opened count as well; default 10,000, at most 1,000,000.
    /// Overflow: the next event waits.
    pub messages_per_second: u32,
    /// What these have to carry a second, by the same rule; default 16,384 KiB, at most 1,048,576.
    pub message_kib_per_second: u32,
    /// Durable messages of one principal that wait for their receivers; default 16 MiB.
    pub outbox_mib: u64,
    /// Channels that one principal sends on, and channels that it receives; default 4,096 of each.
    pub channels: u32,
    /// Facts that are published at once; default 4,096.
    pub facts: u32,
    /// Keys that one principal created; default 1,024.
    pub keys: u32,
    /// Rows in `secret` of one principal, whose names lie in memory; default 10,000.
    pub secrets: u32,
    /// Blobs that all principals hold together, with those that they fetch and write; each counts for
    /// whole blocks of 4 KiB; default 256.
    pub blob_mib: u64,
    /// What one user holds of that; default 64.
    pub user_blob_mib: u64,
    /// The longest blob; default 16, at most 1,024.
    pub one_blob_mib: u64,
    /// Blobs that one principal fetches and writes at once; default 64 of each.
    pub blob_fetches: u32,
    /// HTTP requests to all principals that come or are answered at once; default 64. Overflow: a
    /// request is refused.
    pub http: u32,
    /// Sockets that one principal has open; default 64.
    pub sockets: u32,
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let within = [
            ("limits.memory_mib", self.memory_mib, 1, 1024),
            ("limits.event_ms", self.event_ms, 1, 10_000),
            ("limits.write_kib", self.write_kib, 1, 16 << 10),
            ("limits.pace_kib", self.pace_kib.into(), 1, 64 << 10),
            ("limits.state_mib", self.state_mib, 1, 1 << 20),
            ("limits.user_state_mib", self.user_state_mib, 1, 1 << 20),
            ("limits.scratch_mib", self.scratch_mib, 1, 1024),
            ("limits.timers", self.timers.into(), 1, 100_000),
            ("limits.log_kib", self.log_kib, 1, 1024),
            (
                "limits.log_kib_per_second",
                self.log_kib_per_second.into(),
                1,
                64 << 10,
            ),
            ("limits.waiting", self.waiting.into(), 1, 65_536),
            ("limits.requests", self.requests.into(), 1, 65_536),
            ("limits.operations", self.operations.into(), 1, 65_536),
            ("limits.messages", self.messages.into(), 1, 65_536),
            (
                "limits.messages_per_second",
                self.messages_per_second.into(),
                1,
                1_000_000,
            ),
            (
                "limits.message_kib_per_second",
                self.message_kib_per_second.into(),
                1,
                1 << 20,
            ),
            ("limits.outbox_mib", self.outbox_mib, 1, 1 << 20),
            ("limits.channels", self.channels.into(), 1, 65_536),
            ("limits.facts", self.facts.into(), 1, 65_536),
            ("limits.keys", self.keys.into(), 1, 65_536),
            ("limits.secrets", self.secrets.into(), 1, 1_000_000),
            ("limits.blob_mib", self.blob_mib, 1, 1 << 20),
            ("limits.user_blob_mib", self.user_blob_mib, 1, 1 << 20),
            ("limits.one_blob_mib", self.one_blob_mib, 1, 1024),
            ("limits.blob_fetches", self.blob_fetches.into(), 1, 4096),
            ("limits.http", self.http.into(), 1, 1024),
            ("limits.sockets", self.sockets.into(), 1, 1024),
        ];
        for (key, given, least, most) in within {
            if !(least..=most).contains(&given) {
                let rule = "is out of range; sdk/README.md lists the ranges";
                return Err(value(key, rule));
            }
        }
        Ok(())
    }

    /// Memory of one instance.
    pub fn memory_bytes(&self) -> usize {
        bytes(self.memory_mib * MIB)
    }

    /// What one event may write.
    pub fn write_bytes(&self) -> usize {
        bytes(self.write_kib << 10)
    }

    /// What all principals write a second beside other plugins.
    pub fn pace_bytes_per_s(&self) -> u32 {
        self.pace_kib << 10
    }

    /// What messages of all principals carry a second.
    pub fn message_bytes_per_s(&self) -> u32 {
        self.message_kib_per_second << 10
    }

    /// What all principals log a second.
    pub fn log_bytes_per_s(&self) -> u32 {
        self.log_kib_per_second << 10
    }

    /// What all principals keep together.
    pub fn state_bytes(&self) -> u64 {
        self.state_mib * MIB
    }

    /// What one user keeps.
    pub fn user_state_bytes(&self) -> u64 {
        self.user_state_mib * MIB
    }

    /// What one principal keeps in `scratch`.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_mib * MIB
    }

    /// Durable messages of one principal that wait for their receivers.
    pub fn outbox_bytes(&self) -> u64 {
        self.outbox_mib * MIB
    }

    /// Blobs that all principals hold together.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_mib * MIB
    }

    /// What one user holds of them.
    pub fn user_blob_bytes(&self) -> u64 {
        self.user_blob_mib * MIB
    }

    /// The longest blob.
    pub fn one_blob_bytes(&self) -> u64 {
        self.one_blob_mib * MIB
    }

    /// Log lines of one event.
    pub fn log_bytes(&self) -> usize {
        bytes(self.log_kib << 10)
    }

    /// Processor time of one event.
    pub fn event_time(&self) -> Duration {
        Duration::from_millis(self.event_ms)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_mib: 32,
            event_ms: 50,
            write_kib: 1024,
            pace_kib: 512,
            state_mib: 64,
            user_state_mib: 16,
            scratch_mib: 4,
            timers: 1000,
            log_kib: 16,
            log_kib_per_second: 64,
            waiting: 1024,
            requests: 1024,
            operations: 256,
            messages: 256,
            messages_per_second: 10_000,
            message_kib_per_second: 16 << 10,
            outbox_mib: 16,
            channels: 4096,
            facts: 4096,
            keys: 1024,
            secrets: 10_000,
            blob_mib: 256,
            user_blob_mib: 64,
            one_blob_mib: 16,
            blob_fetches: 64,
            http: 64,
            sockets: 64,
        }
    }
}

/// As the machine counts.
pub(super) fn bytes(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
