//! Replies that are whole in memory, and clients that take them too slowly.
//!
//! What streams is read as its client takes it, and may take any time. A document is there until its last byte has been taken, and keeps
//! room from others: its client has [`ServerLimits::write_idle`](super::ServerLimits) and the time for its length at a minimum rate.
//!
//! Must stay true: all long documents together take [`ServerLimits::document_bytes_max`](super::ServerLimits) at most. When there are more,
//! the connection whose client has taken nothing of its own for the longest time is cut; nobody waits for the client of another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::reply::ReplyBody;

/// Documents up to this length are not watched.
const UNWATCHED_BYTES: usize = 8 << 10;
/// A document is sent in pieces of this length: the next one is asked for when the client has taken most of those before.
const PIECE_BYTES: usize = 32 << 10;
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
    /// Counts events, in place of a clock.
    now: u64,
    bytes: usize,
    /// By when something of it was taken last.
    by_progress: BTreeMap<u64, Waiting>,
}

struct Waiting {
    bytes: usize,
    cut: Arc<Notify>,
}

/// A document on the shelf, until it is dropped.
struct OnShelf {
    shelf: Shelf,
    /// Its key there; changed only under the shelf's lock.
    progress: AtomicU64,
}

impl Shelf {
    /// `bytes_max`: of all documents that clients have not taken.
    pub(super) fn new(bytes_max: usize) -> Self {
        Shelf { held: Arc::default(), bytes_max }
    }

    /// Puts a document there. `cut`: told when it has to make way.
    fn put(&self, bytes: usize, cut: Arc<Notify>) -> OnShelf {
        let mut held = self.held();
        let progress = held.tick();
        held.bytes += bytes;
        held.by_progress.insert(progress, Waiting { bytes, cut });
        while held.bytes > self.bytes_max && held.by_progress.len() > 1 {
            if let Some((_progress, stuck)) = held.by_progress.pop_first() {
                held.bytes -= stuck.bytes;
                stuck.cut.notify_one();
            }
        }
        OnShelf { shelf: self.clone(), progress: AtomicU64::new(progress) }
    }

    /// Every change under this lock is whole before anything can panic.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}

impl OnShelf {
    /// The client has taken something of it.
    fn note_progress(&self) {
        let mut held = self.shelf.held();
        // One that has to make way is not there any more.
        if let Some(waiting) = held.by_progress.remove(&self.progress.load(Ordering::Relaxed)) {
            let now = held.tick();
            held.by_progress.insert(now, waiting);
            self.progress.store(now, Ordering::Relaxed);
        }
    }
}

impl Drop for OnShelf {
    fn drop(&mut self) {
        let mut held = self.shelf.held();
        if let Some(waiting) = held.by_progress.remove(self.progress.get_mut()) {
            held.bytes -= waiting.bytes;
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
    _on_shelf: Arc<OnShelf>,
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
    /// The body, watched and in pieces if it is a long document.
    pub(super) fn watch(&self, mut body: ReplyBody) -> ReplyBody {
        let Some(document) = body.document().filter(|document| document.len() > UNWATCHED_BYTES) else { return body };
        let due = Instant::now() + self.patience + Duration::from_secs(document.len() as u64 / BYTES_PER_SECOND_MIN);
        let ((guard, taken), cut) = (oneshot::channel(), Arc::new(Notify::new()));
        if self.sent.send(Sending { taken, cut: cut.clone(), due }).is_err() {
            return body;
        }
        let on_shelf = Arc::new(self.shelf.put(document.len(), cut));
        let length = document.len() as u64;
        let watched = Watched { document: std::mem::take(document), _taken: guard, _on_shelf: on_shelf.clone() };
        let mut left = Bytes::from_owner(watched);
        let pieces = std::iter::from_fn(move || {
            on_shelf.note_progress();
            (!left.is_empty()).then(|| Ok(left.split_to(left.len().min(PIECE_BYTES))))
        });
        ReplyBody::sized(length, stream::iter(pieces))
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
        assert_eq!((held.bytes, held.by_progress.len()), (0, 0));
    }

    #[test]
    fn a_client_that_takes_its_document_stays_and_one_that_came_later_and_takes_nothing_makes_way() {
        let shelf = Shelf::new(BYTES_MAX);
        let cuts: Vec<Arc<Notify>> = (0..3).map(|_| Arc::default()).collect();
        let half = BYTES_MAX / 2;
        let reading = shelf.put(half, cuts[0].clone());
        let _stuck = shelf.put(half, cuts[1].clone());
        reading.note_progress();
        let _new = shelf.put(half, cuts[2].clone());
        let is_cut: Vec<bool> = cuts.iter().map(|cut| cut.notified().now_or_never().is_some()).collect();
        assert_eq!(is_cut, [false, true, false]);
    }

    #[test]
    fn a_document_longer_than_all_room_is_sent_alone() {
        let shelf = Shelf::new(BYTES_MAX);
        let cut = Arc::new(Notify::new());
        let _only = shelf.put(2 * BYTES_MAX, cut.clone());
        assert!(cut.notified().now_or_never().is_none());
    }
}
