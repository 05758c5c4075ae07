//! Questions that are being answered, found by the node that asked.

use std::collections::BTreeSet;

use super::Asker;

/// As many as `limits.requests` of those that are asked.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// The node that asked, and its boot then; the node that answers, and the request's id there.
    all: BTreeSet<(usize, u64, usize, u64)>,
}

impl Asked {
    pub(crate) fn put(&mut self, asker: &Asker, (at, request): (usize, u64)) {
        self.all.insert((asker.node, asker.boot, at, request));
    }

    pub(crate) fn remove(&mut self, asker: &Asker, (at, request): (usize, u64)) {
        self.all.remove(&(asker.node, asker.boot, at, request));
    }

    /// In which boot a node asked the oldest of its questions.
    pub(crate) fn oldest_boot(&self, node: usize) -> Option<u64> {
        let (of, boot, _, _) = self.all.range((node, 0, 0, 0)..).next()?;
        (*of == node).then_some(*boot)
    }

    /// Who is asked what a node asked in a boot.
    pub(crate) fn at(&self, node: usize, boot: u64) -> BTreeSet<usize> {
        let its = self
            .all
            .range((node, boot, 0, 0)..=(node, boot, usize::MAX, u64::MAX));
        its.map(|(_, _, at, _)| *at).collect()
    }
}
