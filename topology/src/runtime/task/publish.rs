//! What others see of a task: as of its last commit.

use std::sync::atomic::Ordering;

use super::Task;

impl Task {
    /// Publishes positions, digests and counters.
    pub(super) fn publish(&self) {
        let inputs = self.inputs.iter().map(|input| (&input.feed, input.processed));
        let tables = self.broadcasts.iter().map(|broadcast| (&broadcast.feed, broadcast.processed));
        let mut committed = self.shared.committed.lock();
        committed.0.clear();
        for ((feed, processed), counters) in inputs.chain(tables).zip(&self.shared.feeds) {
            committed.0.push(feed.next);
            counters.processed.store(processed, Ordering::Relaxed);
            counters.dropped.store(feed.gate.dropped, Ordering::Relaxed);
        }
        committed.1.clear();
        committed.1.extend(self.tables.table_digests());
        drop(committed);
        for (node, counters) in self.nodes.iter().zip(&self.shared.operators) {
            counters.processed.store(node.processed, Ordering::Relaxed);
            counters.emitted.store(node.emitted, Ordering::Relaxed);
            counters.busy_ns.store(node.busy_ns, Ordering::Relaxed);
        }
        self.shared.appended.store(self.outbox.appended, Ordering::Relaxed);
        self.shared.letters.store(self.letters.as_ref().map_or(0, |letters| letters.written), Ordering::Relaxed);
        self.shared.batches.fetch_add(1, Ordering::Relaxed);
    }
}
