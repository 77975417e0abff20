//! The room for the block that a body is sending: what keeps it, and when its client has to make way for others.

use std::sync::Arc;

use garage_types::stall_budget::Stall;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

/// A client that has sent fewer bytes has made no progress. A few would keep a block from others for ever.
pub(crate) const PROGRESS_BYTES: usize = 4 << 10;

/// Who sends a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A client, which may stand still.
    Client,
    /// The store itself, which copies: if it has to wait, no client is to blame.
    Store,
}

/// Room for a block that is being written, until it is dropped.
pub(crate) struct WriteRoom {
    units: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl WriteRoom {
    /// `freed`: told when the room is there for others.
    pub(crate) fn new(units: OwnedSemaphorePermit, freed: Arc<Notify>) -> Self {
        WriteRoom { units: Some(units), freed }
    }
}

impl Drop for WriteRoom {
    fn drop(&mut self) {
        drop(self.units.take());
        self.freed.notify_one();
    }
}

/// When its sender has sent something last.
pub(crate) struct Sending {
    stall: Stall,
    sender: Sender,
    /// Told when others need the room.
    make_way: Arc<Notify>,
    /// Bytes that have come since progress was noted.
    unnoted: usize,
}

impl Sending {
    /// `make_way`: told when the bytes of `stall` are needed, see [`telling`].
    pub(crate) fn new(stall: Stall, sender: Sender, make_way: Arc<Notify>) -> Self {
        if sender == Sender::Store {
            stall.note_busy();
        }
        Sending { stall, sender, make_way, unnoted: 0 }
    }

    fn note_bytes(&mut self, bytes: usize) {
        self.unnoted += bytes;
        if self.unnoted >= PROGRESS_BYTES {
            self.stall.note_progress(Instant::now().into_std());
            self.unnoted = 0;
        }
    }
}

/// What tells whoever waits for `make_way`.
pub(crate) fn telling(make_way: &Arc<Notify>) -> impl FnOnce() + Send + 'static {
    let make_way = make_way.clone();
    move || make_way.notify_one()
}

/// Room for the whole block that a body is sending.
pub(crate) struct SenderRoom {
    pub(crate) room: WriteRoom,
    pub(crate) sending: Sending,
}

impl SenderRoom {
    /// So many bytes of the block have come.
    pub(crate) fn note_bytes(&mut self, bytes: usize) {
        self.sending.note_bytes(bytes);
    }

    /// Told when the body has to make way.
    pub(crate) fn make_way(&self) -> Arc<Notify> {
        self.sending.make_way.clone()
    }

    /// All of it has come: nobody waits for the sender any more.
    pub(crate) fn into_whole(self) -> WriteRoom {
        self.room
    }
}

/// Room for a small block of one body, and then for the next one.
pub(crate) struct SmallBlock {
    /// Once so many bytes have come, it is whole.
    pub length: usize,
    sending: Option<Sending>,
    freed: Arc<Notify>,
}

impl SmallBlock {
    /// `freed`: told when the room is there for others.
    pub(crate) fn new(length: usize, sending: Sending, freed: Arc<Notify>) -> Self {
        SmallBlock { length, sending: Some(sending), freed }
    }

    /// So many bytes of it have come.
    pub(crate) fn note_bytes(&mut self, bytes: usize) {
        self.sending.iter_mut().for_each(|sending| sending.note_bytes(bytes));
    }

    /// All of it has come: nobody waits for the sender any more.
    pub(crate) fn note_whole(&self) {
        self.sending.iter().for_each(|sending| sending.stall.note_busy());
    }

    /// It is stored, and the next one may come.
    pub(crate) fn note_stored(&mut self) {
        if let Some(sending) = self.sending.as_mut().filter(|sending| sending.sender == Sender::Client) {
            sending.unnoted = 0;
            sending.stall.note_waiting(Instant::now().into_std());
        }
    }

    /// Whether the next block may have its room: not if it had to make way meanwhile.
    pub(crate) fn begin_next(&self) -> bool {
        self.sending.as_ref().is_some_and(|sending| sending.stall.note_progress(Instant::now().into_std()))
    }

    /// Told when the body has to make way.
    pub(crate) fn make_way(&self) -> Option<Arc<Notify>> {
        self.sending.as_ref().map(|sending| sending.make_way.clone())
    }
}

impl Drop for SmallBlock {
    fn drop(&mut self) {
        drop(self.sending.take());
        self.freed.notify_one();
    }
}

/// Room for the block that a body is sending.
pub(crate) enum RoomToSend {
    Whole(SenderRoom),
    Small(SmallBlock),
}
