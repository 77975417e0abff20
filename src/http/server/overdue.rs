//! Replies that are whole in memory, and clients that take them too slowly.
//!
//! What streams is read as its client takes it, and may take any time. A document is there until its last byte has been taken, and keeps
//! room from others: its client has [`ServerLimits::write_idle`](super::ServerLimits) and the time for its length at a minimum rate.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::reply::ReplyBody;

/// Documents up to this length are not watched.
const UNWATCHED_BYTES: usize = 64 << 10;
/// How fast a client must take a document, on the average after a while.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;

/// The documents that a connection is sending, for who gives replies.
#[derive(Clone)]
pub(super) struct Documents {
    sent: mpsc::UnboundedSender<Sending>,
    patience: Duration,
}

/// The same, for who ends the connection.
pub(super) struct Watch(mpsc::UnboundedReceiver<Sending>);

struct Sending {
    /// Ends when the last of it has been taken.
    taken: oneshot::Receiver<()>,
    due: Instant,
}

/// A document that tells when it is dropped.
struct Watched {
    document: Bytes,
    _taken: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.document
    }
}

/// `patience`: beside the time for a document's length.
pub(super) fn documents(patience: Duration) -> (Documents, Watch) {
    let (sent, sending) = mpsc::unbounded_channel();
    (Documents { sent, patience }, Watch(sending))
}

impl Documents {
    /// The body, watched if it is a long document.
    pub(super) fn watch(&self, mut body: ReplyBody) -> ReplyBody {
        if let Some(document) = body.document().filter(|document| document.len() > UNWATCHED_BYTES) {
            let due = Instant::now() + self.patience + Duration::from_secs(document.len() as u64 / BYTES_PER_SECOND_MIN);
            let (guard, taken) = oneshot::channel();
            if self.sent.send(Sending { taken, due }).is_ok() {
                *document = Bytes::from_owner(Watched { document: std::mem::take(document), _taken: guard });
            }
        }
        body
    }
}

impl Watch {
    /// Returns when a document was not taken in its time.
    pub(super) async fn overdue(mut self) {
        while let Some(Sending { taken, due }) = self.0.recv().await {
            tokio::select! {
                biased;
                // Nothing is sent: its other side is gone.
                _gone = taken => {}
                () = sleep_until(due) => return,
            }
        }
        // No more replies come; that the connection ends is seen elsewhere.
        std::future::pending().await
    }
}
