//! Replies that are whole in memory, and clients that take them too slowly.
//!
//! What streams is read as its client takes it, and may take any time. A document is there until its last byte has been taken, and keeps
//! room from others: its client has [`ServerLimits::write_idle`](super::ServerLimits) and the time for its length at a minimum rate.
//!
//! Must stay true: all long documents together take [`ServerLimits::document_bytes_max`](super::ServerLimits) at most. When there are more,
//! the connection that has been sent one for the longest time is cut; nobody waits for the client of another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::reply::ReplyBody;

/// Documents up to this length are not watched.
const UNWATCHED_BYTES: usize = 8 << 10;
/// How fast a client must take a document, on the average after a while.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;

/// The long documents that one server is sending. Clones are the same.
#[derive(Clone)]
pub(super) struct Shelf {
    held: Arc<Mutex<Held>>,
    bytes_max: usize,
}

#[derive(Default)]
struct Held {
    /// Counts documents, in place of a clock.
    next: u64,
    bytes: usize,
    by_age: BTreeMap<u64, Taken>,
}

struct Taken {
    bytes: usize,
    cut: Arc<Notify>,
}

/// A document on the shelf, until it is dropped.
struct OnShelf {
    shelf: Shelf,
    number: u64,
}

impl Shelf {
    /// `bytes_max`: of all documents that clients have not taken.
    pub(super) fn new(bytes_max: usize) -> Self {
        Shelf { held: Arc::default(), bytes_max }
    }

    /// Puts a document there. `cut`: told when it has to make way.
    fn put(&self, bytes: usize, cut: Arc<Notify>) -> OnShelf {
        let mut held = self.held();
        let number = held.next;
        held.next += 1;
        held.bytes += bytes;
        held.by_age.insert(number, Taken { bytes, cut });
        while held.bytes > self.bytes_max && held.by_age.len() > 1 {
            if let Some((_number, oldest)) = held.by_age.pop_first() {
                held.bytes -= oldest.bytes;
                oldest.cut.notify_one();
            }
        }
        OnShelf { shelf: self.clone(), number }
    }

    /// Every change under this lock is whole before anything can panic.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OnShelf {
    fn drop(&mut self) {
        let mut held = self.shelf.held();
        if let Some(taken) = held.by_age.remove(&self.number) {
            held.bytes -= taken.bytes;
        }
    }
}

/// The documents that a connection is sending, for who gives replies.
#[derive(Clone)]
pub(super) struct Documents {
    sent: mpsc::UnboundedSender<Sending>,
    patience: Duration,
    shelf: Shelf,
}

/// The same, for who ends the connection.
pub(super) struct Watch {
    sending: mpsc::UnboundedReceiver<Sending>,
}

struct Sending {
    /// Ends when the last of it has been taken.
    taken: oneshot::Receiver<()>,
    /// Told when it has to make way.
    cut: Arc<Notify>,
    due: Instant,
}

/// A document that tells when it is dropped.
struct Watched {
    document: Bytes,
    _taken: oneshot::Sender<()>,
    _on_shelf: OnShelf,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.document
    }
}

/// `patience`: beside the time for a document's length.
pub(super) fn documents(patience: Duration, shelf: Shelf) -> (Documents, Watch) {
    let (sent, sending) = mpsc::unbounded_channel();
    (Documents { sent, patience, shelf }, Watch { sending })
}

impl Documents {
    /// The body, watched if it is a long document.
    pub(super) fn watch(&self, mut body: ReplyBody) -> ReplyBody {
        if let Some(document) = body.document().filter(|document| document.len() > UNWATCHED_BYTES) {
            let due = Instant::now() + self.patience + Duration::from_secs(document.len() as u64 / BYTES_PER_SECOND_MIN);
            let ((guard, taken), cut) = (oneshot::channel(), Arc::new(Notify::new()));
            if self.sent.send(Sending { taken, cut: cut.clone(), due }).is_ok() {
                let on_shelf = self.shelf.put(document.len(), cut);
                *document = Bytes::from_owner(Watched { document: std::mem::take(document), _taken: guard, _on_shelf: on_shelf });
            }
        }
        body
    }
}

impl Watch {
    /// Returns when a document was not taken in its time, or has to make way for others'.
    pub(super) async fn overdue(mut self) {
        while let Some(Sending { taken, cut, due }) = self.sending.recv().await {
            tokio::select! {
                biased;
                // Nothing is sent: its other side is gone.
                _gone = taken => {}
                () = cut.notified() => return,
                () = sleep_until(due) => return,
            }
        }
        // No more replies come; that the connection ends is seen elsewhere.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;
    use tokio::sync::Notify;

    use super::Shelf;

    const BYTES_MAX: usize = 3 << 20;

    #[tokio::test]
    async fn the_oldest_document_makes_way_and_who_has_taken_its_own_keeps_its_connection() {
        let shelf = Shelf::new(BYTES_MAX);
        let cuts: Vec<Arc<Notify>> = (0..4).map(|_| Arc::default()).collect();
        let third = BYTES_MAX / 3;
        let mut on_shelf: Vec<_> = cuts[..3].iter().map(|cut| shelf.put(third, cut.clone())).collect();
        drop(on_shelf.remove(0));
        on_shelf.push(shelf.put(third, cuts[0].clone()));
        on_shelf.push(shelf.put(third, cuts[3].clone()));
        let is_cut: Vec<bool> = cuts.iter().map(|cut| cut.notified().now_or_never().is_some()).collect();
        assert_eq!(is_cut, [false, true, false, false]);
        drop(on_shelf);
        let held = shelf.held();
        assert_eq!((held.bytes, held.by_age.len()), (0, 0));
    }

    #[test]
    fn a_document_longer_than_all_room_is_sent_alone() {
        let shelf = Shelf::new(BYTES_MAX);
        let cut = Arc::new(Notify::new());
        let _only = shelf.put(2 * BYTES_MAX, cut.clone());
        assert!(cut.notified().now_or_never().is_none());
    }
}
