//! Replies that are whole in memory, and clients that take them too slowly.
//!
//! What streams is read as its client takes it, and may take any time. A document is there until its last bytes are in the buffer of the
//! connection, and keeps room from others: its client has [`ServerLimits::write_idle`](super::ServerLimits) and the time for its length at a
//! minimum rate.
//!
//! Must stay true: all long documents together take [`ServerLimits::document_bytes_max`](super::ServerLimits) at most, or twice as much while
//! all their clients take them. When there are more, the connection whose client has taken nothing of its own for the longest time is cut;
//! nobody waits for the client of another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use garage_types::StallBudget;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::document::Document;
use crate::reply::ReplyBody;

/// Documents up to this length are not watched.
const UNWATCHED_BYTES: usize = 8 << 10;
/// A document is sent in pieces of this length: the next one is asked for when the client has taken those before.
const PIECE_BYTES: usize = 8 << 10;
/// How fast a client must take a document, on the average after a while.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;
/// Whoever has taken nothing for so long makes way for others' documents.
const STALL_MIN: Duration = Duration::from_millis(250);

/// The documents that a connection is sending, for who gives replies.
#[derive(Clone)]
pub(super) struct Documents {
    sent: mpsc::UnboundedSender<Sending>,
    patience: Duration,
    budget: StallBudget,
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

/// `patience`: beside the time for a document's length.
pub(super) fn documents(patience: Duration, budget: StallBudget) -> (Documents, Watch) {
    let (sent, sending) = mpsc::unbounded_channel();
    (Documents { sent, patience, budget }, Watch { sending })
}

impl Documents {
    /// The body, watched and in pieces if it is a long document.
    pub(super) fn watch(&self, mut body: ReplyBody) -> ReplyBody {
        let Some(document) = body.document().filter(|document| document.len() > UNWATCHED_BYTES) else { return body };
        let (length, now) = (document.len(), Instant::now());
        let stalled_before = now.checked_sub(STALL_MIN).unwrap_or(now);
        let due = now + self.patience + Duration::from_secs(length as u64 / BYTES_PER_SECOND_MIN);
        let ((guard, taken), cut) = (oneshot::channel::<()>(), Arc::new(Notify::new()));
        if self.sent.send(Sending { taken, cut: cut.clone(), due }).is_err() {
            return body;
        }
        let document = Arc::new(Mutex::new(std::mem::take(document)));
        let left = document.clone();
        let held = self.budget.hold(length, now.into_std(), stalled_before.into_std(), move || {
            // At once, whenever its connection notices.
            drop(std::mem::take(&mut *lock(&left)));
            cut.notify_one();
        });
        // The time is watched until every piece has been taken. The room is given back with the last piece: it is in the buffer of its
        // connection then, which is small where there are many.
        let untaken = Arc::new(guard);
        let pieces = std::iter::from_fn(move || {
            held.note_progress(Instant::now().into_std());
            let piece = lock(&document).take(PIECE_BYTES)?;
            Some(Ok(holding(piece, untaken.clone())))
        });
        ReplyBody::sized(length as u64, stream::iter(pieces))
    }
}

/// The same bytes, which keep something until nobody has them any more.
pub(super) fn holding(bytes: Bytes, kept: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Holding { bytes, _kept: kept })
}

struct Holding<K> {
    bytes: Bytes,
    _kept: K,
}

impl<K> AsRef<[u8]> for Holding<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Every change under this lock is whole before anything can panic.
fn lock(document: &Mutex<Document>) -> MutexGuard<'_, Document> {
    document.lock().unwrap_or_else(PoisonError::into_inner)
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
