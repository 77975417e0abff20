//! Telling several waiters that something has changed.
//!
//! As a watch channel without a value, with one difference: waiters are woken in the order in which they began to wait, so that a
//! simulated run repeats itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Inner {
    count: AtomicU64,
    notify: Notify,
}

/// The side that tells. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Inner>);

/// The side that waits; each sees every change at least once, several perhaps as one.
#[derive(Clone, Debug)]
pub struct Watch {
    inner: Arc<Inner>,
    seen: u64,
}

impl Changes {
    /// Something has changed.
    pub fn tell(&self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.notify.notify_waiters();
    }

    /// Sees the changes from now on.
    pub fn watch(&self) -> Watch {
        Watch { inner: self.0.clone(), seen: self.0.count.load(Ordering::Acquire) }
    }
}

impl Watch {
    /// Whether there was a change that [`Self::changed`] has not told of yet.
    pub fn has_changed(&self) -> bool {
        self.inner.count.load(Ordering::Acquire) != self.seen
    }

    /// Makes the next [`Self::changed`] return at once.
    pub fn mark_changed(&mut self) {
        self.seen = self.seen.wrapping_sub(1);
    }

    /// Resolves when something has changed since the last time, or since the watch began. May be dropped and asked for again.
    pub async fn changed(&mut self) {
        loop {
            // Made before the look, so that a change in between wakes it.
            let notified = self.inner.notify.notified();
            let now = self.inner.count.load(Ordering::Acquire);
            if now != self.seen {
                self.seen = now;
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::Changes;

    #[test]
    fn a_watch_sees_changes_since_it_began_once() {
        let changes = Changes::default();
        changes.tell();
        let mut watch = changes.watch();
        assert!(watch.changed().now_or_never().is_none());
        changes.tell();
        changes.tell();
        assert!(watch.has_changed());
        assert!(watch.changed().now_or_never().is_some());
        assert!(watch.changed().now_or_never().is_none());
        watch.mark_changed();
        assert!(watch.changed().now_or_never().is_some());
    }
}
