//! The room for blocks in memory, shared by all bodies that are being written or read.
//!
//! A quarter is for blocks that wait to be taken by who reads them, however much is being written. The rest is for what is written, and
//! its first half for whoever comes: for blocks that clients are sending, and for several blocks of one body on their way at once. An
//! eighth of it more is for the blocks of clients who are sending their only one. What is left is kept for one block of each body at a
//! time, so that clients who send slowly never keep all of it: what is there is on its way to the owners and leaves by itself. A body
//! that finds no room is cut into small blocks, of which there is an eighth as much at a time, and which have their turn as others have.
//! Of the clients who are sending a block, small or not, whoever stands still for the longest makes way when others find no room.
//!
//! What must stay true: whoever waits for a turn holds no room, or goes on with what gives it back; nobody waits for long for another's
//! client; neither writers nor readers take what is for the others.

use std::sync::Arc;
use std::time::Duration;

use garage_types::StallBudget;
use garage_types::stall_budget::NoRoom;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::ModelError;
use crate::senders::{RoomToSend, Sender, SenderRoom, Sending, SmallBlock, WriteRoom, telling};

/// Bytes of a permit: semaphores do not count far enough to have one for each byte.
const UNIT: usize = 1024;
/// The part of all room that blocks may have which wait for their readers.
const READERS_SHARE: usize = 4;
/// The part of all room that the documents which clients send may have beside it.
const DOCUMENTS_SHARE: usize = 8;
/// The part of all room that small blocks have beside it.
const SMALL_SHARE: usize = 8;
/// The length of a small block: the first where there are few of them, the second where there are many.
const SMALL_BLOCK_BYTES: [usize; 2] = [128 << 10, 32 << 10];
/// Whoever has made no progress for so long makes way for others.
const STALL_MIN: Duration = Duration::from_secs(3);
/// After waiting for so long for a small block, one also takes the place of a client that has made no progress for [`STALL_MIN_WAITED`].
const STALL_WAITED: Duration = Duration::from_secs(30);
/// Whoever sends faster keeps its place: when thousands have waited, each would have it for a moment only, and nobody would end.
const STALL_MIN_WAITED: Duration = Duration::from_millis(500);
/// The shortest time between two looks of one who waits, unless something was given back.
const STALL_CHECK: Duration = Duration::from_millis(50);
/// The length of a piece of a block for a reader, while fewer pieces than these wait for their readers. The first is as much as one checksum
/// of a block's file covers.
const PIECE_BYTES: [(usize, u64); 3] = [(256, 64 << 10), (1024, 32 << 10), (usize::MAX, 16 << 10)];
/// Documents up to this length are not counted; longer ones are in steps of it, as they arrive.
const DOCUMENT_STEP_BYTES: u64 = 64 << 10;
/// Lists of blocks read at once, by the whole node, that no reader needs soon.
const LISTS_IN_TURN: usize = 4;

pub(crate) struct BlockBuffer {
    /// For what is written.
    units: Arc<Semaphore>,
    units_max: usize,
    /// For what is read.
    readers: Arc<Semaphore>,
    readers_max: usize,
    lists: Arc<Semaphore>,
    documents: Arc<Semaphore>,
    pages: Arc<Semaphore>,
    /// Those who have room of `units` for the block that they are sending.
    senders: StallBudget,
    small: StallBudget,
    small_max: usize,
    /// Something of what is written has gone.
    freed: Arc<Notify>,
    /// A clone for each piece of a block that waits for its reader.
    pieces: Arc<()>,
}

/// A piece of a block for a reader for whose blocks there is no room, until it is dropped.
pub(crate) struct ReadersPiece {
    pub bytes_max: u64,
    _one: Arc<()>,
}

/// Room for a document that a client sends, such as a list of keys, until it is dropped. It grows with the document, so that who only
/// announces a long one keeps nobody out.
pub struct DocumentRoom {
    of: Arc<Semaphore>,
    /// All there is.
    units_max: usize,
    taken: Option<OwnedSemaphorePermit>,
}

impl DocumentRoom {
    /// Room for so many bytes in all. Nobody waits for it.
    ///
    /// # Errors
    /// [`ModelError::TooManyDocuments`].
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), ModelError> {
        if bytes <= DOCUMENT_STEP_BYTES {
            return Ok(());
        }
        let wanted = bytes.div_ceil(DOCUMENT_STEP_BYTES).saturating_mul(DOCUMENT_STEP_BYTES / UNIT as u64);
        // A document longer than all the room has it for itself.
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.units_max);
        let more = wanted.saturating_sub(self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let more = self.of.clone().try_acquire_many_owned(more).map_err(|_taken| ModelError::TooManyDocuments)?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }
}

/// The turn to make one page of a listing, until it is dropped.
pub struct PageTurn(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// Room for what waits for its reader.
pub(crate) struct ReadersRoom(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// Ahead of what a reader's next block is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// The reader has no other block.
    OfNothing,
    /// The reader has other blocks to take first.
    OfOthers,
}

impl BlockBuffer {
    /// `pages_at_once`: of listings, for [`BlockBuffer::page_turn`].
    pub(crate) fn new(bytes_max: usize, pages_at_once: usize) -> Self {
        let all = (bytes_max / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let readers_max = all / READERS_SHARE;
        let units_max = all - readers_max;
        let small_max = all / SMALL_SHARE * UNIT;
        BlockBuffer {
            units: Arc::new(Semaphore::new(units_max)),
            units_max,
            readers: Arc::new(Semaphore::new(readers_max)),
            readers_max,
            lists: Arc::new(Semaphore::new(LISTS_IN_TURN)),
            documents: Arc::new(Semaphore::new((all / DOCUMENTS_SHARE).max(1))),
            pages: Arc::new(Semaphore::new(pages_at_once)),
            // How much there is for them is judged by `units`.
            senders: StallBudget::new(usize::MAX),
            small: StallBudget::new(small_max),
            small_max,
            freed: Arc::default(),
            pieces: Arc::default(),
        }
    }

    /// Bytes taken, and bytes there are.
    pub(crate) fn used(&self) -> (usize, usize) {
        let written = self.units_max.saturating_sub(self.units.available_permits());
        let read = self.readers_max.saturating_sub(self.readers.available_permits());
        ((written + read) * UNIT, self.all() * UNIT)
    }

    fn all(&self) -> usize {
        self.units_max + self.readers_max
    }

    /// A block longer than all the room for what is written has it for itself.
    fn units_of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT).min(self.units_max)).unwrap_or(u32::MAX)
    }

    /// Room for so many bytes to be written, if it is left of the first half and nobody waits.
    pub(crate) fn spare(&self, bytes: usize) -> Option<WriteRoom> {
        self.leaving(self.units_max / 2, bytes)
    }

    /// Whether something is left of the first half.
    pub(crate) fn has_spare(&self) -> bool {
        self.units.available_permits() > self.units_max / 2
    }

    /// What senders leave to blocks that are whole.
    fn left_by_senders(&self) -> usize {
        self.units_max / 8 * 3
    }

    /// Room for a block that a body is sending which has no other on its way, if there is any.
    pub(crate) fn for_sender(&self, bytes: usize, sender: Sender) -> Option<SenderRoom> {
        let room = self.leaving(self.left_by_senders(), bytes)?;
        let bytes = self.units_of(bytes) as usize * UNIT;
        let (now, make_way) = (Instant::now().into_std(), Arc::new(Notify::new()));
        let stall = self.senders.hold(bytes, now, now, telling(&make_way));
        Some(SenderRoom { room, sending: Sending::new(stall, sender, make_way) })
    }

    /// Makes those way who stand still with room for the blocks they are sending, if that makes room for a block of so many bytes.
    pub(crate) fn evict_senders(&self, bytes: usize) {
        let wanted = self.left_by_senders() + self.units_of(bytes) as usize;
        let missing = wanted.saturating_sub(self.units.available_permits()) * UNIT;
        if let Some(stalled_before) = Instant::now().checked_sub(STALL_MIN) {
            self.senders.evict(missing, stalled_before.into_std());
        }
    }

    /// Room for a block of at most `length_max` bytes that a body is sending which has no other on its way. It waits for those who have some
    /// until they end, or stand still, or until it has waited for [`STALL_WAITED`].
    pub(crate) async fn room_to_send(&self, length_max: usize, sender: Sender) -> RoomToSend {
        let begun = Instant::now();
        let mut evicts_at = begun;
        loop {
            let freed = self.freed.notified();
            let room = match self.for_sender(length_max, sender) {
                Some(whole) => Ok(RoomToSend::Whole(whole)),
                None => self.try_small_block(length_max, begun, sender).map(RoomToSend::Small),
            };
            let oldest = match room {
                Ok(room) => {
                    // There may be more, for another.
                    self.freed.notify_one();
                    return room;
                }
                Err(NoRoom { oldest }) => oldest,
            };
            let now = Instant::now();
            if now >= evicts_at {
                self.evict_senders(length_max);
                evicts_at = now + STALL_MIN;
            }
            let stalls_at = oldest.map(Instant::from_std).map(|oldest| {
                let stalls_for_patient = (oldest + STALL_MIN_WAITED).max(begun + STALL_WAITED);
                stalls_for_patient.min(oldest + STALL_MIN)
            });
            let again_at = stalls_at.map_or(evicts_at, |stalls_at| stalls_at.min(evicts_at)).max(now + STALL_CHECK);
            let _whichever_is_first = timeout_at(again_at, freed).await;
        }
    }

    fn try_small_block(&self, length_max: usize, begun: Instant, sender: Sender) -> Result<SmallBlock, NoRoom> {
        let now = Instant::now();
        let stall_min = if now >= begun + STALL_WAITED { STALL_MIN_WAITED } else { STALL_MIN };
        let stalled_before = now.checked_sub(stall_min).unwrap_or(begun);
        let are_many = self.small.left() < self.small_max / 2;
        let length = SMALL_BLOCK_BYTES[usize::from(are_many)].min(length_max);
        let make_way = Arc::new(Notify::new());
        let stall = self.small.try_hold(length, now.into_std(), stalled_before.into_std(), telling(&make_way))?;
        Ok(SmallBlock::new(length, Sending::new(stall, sender, make_way), self.freed.clone()))
    }

    /// Room for so many bytes, if as many units are left afterwards.
    fn leaving(&self, left_min: usize, bytes: usize) -> Option<WriteRoom> {
        let units = self.units_of(bytes);
        let left_after = self.units.available_permits().checked_sub(units as usize)?;
        if left_after < left_min {
            return None;
        }
        // Taken by another at this moment: as if it had not been there.
        let units = self.units.clone().try_acquire_many_owned(units).ok()?;
        Some(WriteRoom::new(units, self.freed.clone()))
    }

    /// Room for bytes that a reader will take when it likes. Half of the readers' share is kept for those that have nothing yet.
    pub(crate) fn for_reader(&self, bytes: usize, ahead: Ahead) -> Option<ReadersRoom> {
        let units = bytes.div_ceil(UNIT);
        let left_after = self.readers.available_permits().checked_sub(units)?;
        if ahead == Ahead::OfOthers && left_after < self.readers_max / 2 {
            return None;
        }
        let units = u32::try_from(units).ok()?;
        // Taken by another at this moment: as if it had not been there.
        self.readers.clone().try_acquire_many_owned(units).ok().map(ReadersRoom)
    }

    /// A piece of a block for a reader that finds no room.
    pub(crate) fn piece(&self) -> ReadersPiece {
        let waiting = Arc::strong_count(&self.pieces) - 1;
        let bytes_max = PIECE_BYTES.iter().find_map(|(fewer_than, bytes)| (waiting < *fewer_than).then_some(*bytes));
        ReadersPiece { bytes_max: bytes_max.unwrap_or(1), _one: self.pieces.clone() }
    }

    /// Room for a document, of which nothing is there yet.
    pub(crate) fn for_document(&self) -> DocumentRoom {
        DocumentRoom { of: self.documents.clone(), units_max: (self.all() / DOCUMENTS_SHARE).max(1), taken: None }
    }

    /// The turn to make one page of a listing. Whoever has it must not wait for a client.
    ///
    /// # Errors
    /// [`ModelError::ShuttingDown`].
    pub(crate) async fn page_turn(&self) -> Result<PageTurn, ModelError> {
        self.pages.clone().acquire_owned().await.map(PageTurn).map_err(|_closed| ModelError::ShuttingDown)
    }

    /// The turn to read a list of blocks that is not needed soon. Whoever has it must not wait for a client.
    ///
    /// # Errors
    /// [`ModelError::ShuttingDown`].
    pub(crate) async fn list_turn(&self) -> Result<OwnedSemaphorePermit, ModelError> {
        self.lists.clone().acquire_owned().await.map_err(|_closed| ModelError::ShuttingDown)
    }

    /// Room for so many bytes, after those who asked before.
    ///
    /// # Errors
    /// [`ModelError::ShuttingDown`].
    pub(crate) fn turn(&self, bytes: usize) -> impl Future<Output = Result<WriteRoom, ModelError>> + Send + 'static {
        let (turn, freed) = (self.units.clone().acquire_many_owned(self.units_of(bytes)), self.freed.clone());
        async move { Ok(WriteRoom::new(turn.await.map_err(|_closed| ModelError::ShuttingDown)?, freed)) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::{Ahead, BlockBuffer, STALL_MIN, STALL_MIN_WAITED, STALL_WAITED};
    use crate::senders::{PROGRESS_BYTES, RoomToSend, Sender, SenderRoom, SmallBlock, WriteRoom};

    const KIB: usize = 1024;

    #[test]
    fn of_what_is_for_writers_half_is_spare_and_the_other_half_is_had_in_turn() {
        // Two are for readers.
        let buffer = BlockBuffer::new(10 * KIB, 8);
        let spare: Vec<_> = std::iter::from_fn(|| buffer.spare(KIB)).collect();
        assert_eq!(spare.len(), 4);
        let turns: Vec<_> = std::iter::from_fn(|| buffer.turn(KIB).now_or_never()).map(Result::unwrap).collect();
        assert_eq!(turns.len(), 4);
        drop(spare);
        assert!(buffer.spare(KIB).is_none(), "what was given back is needed for turns first");
        assert!(buffer.turn(KIB).now_or_never().is_some());
    }

    #[test]
    fn readers_have_a_share_half_of_which_is_for_those_that_have_nothing() {
        let buffer = BlockBuffer::new(16 * KIB, 8);
        let mut ahead: Vec<_> = std::iter::from_fn(|| buffer.for_reader(KIB, Ahead::OfOthers)).collect();
        assert_eq!(ahead.len(), 2);
        let first: Vec<_> = std::iter::from_fn(|| buffer.for_reader(KIB, Ahead::OfNothing)).collect();
        assert_eq!((first.len(), buffer.used().0), (2, 4 * KIB));
        assert!(buffer.spare(6 * KIB).is_some(), "the rest is for those who write");
        drop(first);
        ahead.truncate(1);
        assert!(buffer.for_reader(KIB, Ahead::OfOthers).is_some());
    }

    #[test]
    fn many_pieces_that_wait_for_their_readers_are_smaller() {
        let buffer = BlockBuffer::new(16 * KIB, 8);
        let pieces: Vec<_> = std::iter::repeat_with(|| buffer.piece()).take(1025).collect();
        assert_eq!([255, 256, 1023, 1024].map(|number: usize| pieces[number].bytes_max >> 10), [64, 32, 32, 16]);
        drop(pieces);
        assert_eq!(buffer.piece().bytes_max, 64 << 10);
    }

    #[test]
    fn readers_and_writers_take_nothing_from_each_other() {
        let buffer = BlockBuffer::new(16 * KIB, 8);
        let mut written: Vec<_> = std::iter::from_fn(|| buffer.spare(KIB)).collect();
        written.extend(std::iter::from_fn(|| buffer.for_sender(KIB, Sender::Client)).map(SenderRoom::into_whole));
        written.extend(std::iter::from_fn(|| buffer.turn(KIB).now_or_never()).map(Result::unwrap));
        assert_eq!(written.len(), 12, "uploads have all that they can take");
        let read: Vec<_> = std::iter::from_fn(|| buffer.for_reader(KIB, Ahead::OfNothing)).collect();
        assert_eq!((read.len(), buffer.used()), (4, (16 * KIB, 16 * KIB)), "and readers have theirs all the same");
        written.clear();
        assert!(buffer.for_reader(KIB, Ahead::OfNothing).is_none(), "which is all they get");
        assert!(buffer.spare(6 * KIB).is_some());
    }

    #[test]
    fn documents_have_room_of_their_own_and_the_longest_always_fits_alone() {
        let buffer = BlockBuffer::new(1024 * KIB, 8);
        let sent = |bytes: usize| {
            let mut room = buffer.for_document();
            room.grow_to(bytes as u64).map(|()| room).ok()
        };
        let all = sent(2000 * KIB).unwrap();
        assert!(sent(65 * KIB).is_none());
        assert!(sent(64 * KIB).is_some(), "small ones are not counted");
        assert_eq!(buffer.used().0, 0);
        drop(all);
        assert!(sent(65 * KIB).is_some());
    }

    #[test]
    fn a_document_has_room_for_what_has_come_of_it() {
        // 1024 KiB for documents that are sent.
        let buffer = BlockBuffer::new(8192 * KIB, 8);
        let mut slow: Vec<_> = (0..100).map(|_| buffer.for_document()).collect();
        assert!(slow.iter_mut().all(|room| room.grow_to(64 << 10).is_ok()));
        let mut other = buffer.for_document();
        for length in (0..=896).step_by(10) {
            other.grow_to(length << 10).unwrap();
        }
        assert!(slow[0].grow_to(65 << 10).is_ok(), "what the other has not reached is free, to the step");
        assert!(slow[1].grow_to(65 << 10).is_err());
        drop(other);
        assert!(slow[1].grow_to(1024 << 10).is_err() && slow[1].grow_to(896 << 10).is_ok());
    }

    struct Small {
        block: SmallBlock,
        make_way: Arc<Notify>,
    }

    async fn small_of(buffer: &BlockBuffer, length_max: usize, sender: Sender) -> Small {
        match buffer.room_to_send(length_max, sender).await {
            RoomToSend::Small(block) => Small { make_way: block.make_way().expect("it has not been dropped"), block },
            RoomToSend::Whole(_) => panic!("there is room for a whole block"),
        }
    }

    async fn small(buffer: &BlockBuffer, length_max: usize) -> Small {
        small_of(buffer, length_max, Sender::Client).await
    }

    fn is_told(make_way: &Notify) -> bool {
        make_way.notified().now_or_never().is_some()
    }

    fn made_way(blocks: &[Small]) -> Vec<bool> {
        blocks.iter().map(|small| is_told(&small.make_way)).collect()
    }

    /// No room for whole blocks, and 512 KiB for small ones, all of it taken.
    async fn full() -> (BlockBuffer, WriteRoom, Vec<Small>) {
        let buffer = BlockBuffer::new(4096 * KIB, 8);
        let whole = buffer.turn(3072 * KIB).await.unwrap();
        let mut blocks = Vec::new();
        for _ in 0..7 {
            blocks.push(small(&buffer, 1 << 20).await);
        }
        (buffer, whole, blocks)
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_blocks_are_smaller_and_who_stands_still_makes_way() {
        let (buffer, _whole, mut blocks) = full().await;
        let lengths: Vec<usize> = blocks.iter().map(|small| small.block.length / KIB).collect();
        assert_eq!(lengths, [128, 128, 128, 32, 32, 32, 32]);
        tokio::time::sleep(STALL_MIN).await;
        blocks[0].block.note_bytes(64 * KIB);
        blocks[1].block.note_whole();
        blocks[3].block.note_bytes(KIB);
        let began = Instant::now();
        blocks.push(small(&buffer, 1 << 20).await);
        assert!(began.elapsed() < STALL_WAITED);
        assert_eq!(made_way(&blocks), [false, false, true, false, false, false, false, false]);
        blocks[1].block.note_stored();
        tokio::time::sleep(STALL_MIN * 2).await;
        for _ in 0..13 {
            blocks.push(small(&buffer, 128 * KIB).await);
        }
        assert!(made_way(&blocks)[1], "who waits for its client again makes way again");
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_go_on_one_who_waits_gets_what_is_given_back_and_after_a_while_what_another_has() {
        let (buffer, _whole, mut blocks) = full().await;
        let mut waiting = Box::pin(small(&buffer, 32 * KIB));
        assert!((&mut waiting).now_or_never().is_none());
        blocks.truncate(6);
        blocks.push(waiting.now_or_never().expect("what was given back"));

        let began = Instant::now();
        let keep_on = async {
            loop {
                for turn in 0..5 {
                    tokio::time::sleep(STALL_MIN_WAITED / 2).await;
                    // The first goes on well, the others only now and then.
                    let those_who_go_on = if turn == 0 { blocks.len() } else { 1 };
                    blocks[..those_who_go_on].iter_mut().for_each(|small| small.block.note_bytes(PROGRESS_BYTES));
                }
            }
        };
        let more = tokio::select! {
            more = small(&buffer, 64 * KIB) => more,
            () = keep_on => unreachable!("it ends never"),
        };
        assert!(began.elapsed() >= STALL_WAITED && more.block.length == 32 * KIB);
        let made_way = made_way(&blocks);
        assert_eq!(made_way.iter().filter(|made_way| **made_way).count(), 1);
        assert!(!made_way[0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_stands_still_makes_way_for_one_who_finds_no_room() {
        // Five are for senders.
        let buffer = BlockBuffer::new(10 * KIB, 8);
        let senders = [Sender::Client, Sender::Client, Sender::Client, Sender::Client, Sender::Store];
        let mut rooms: Vec<SenderRoom> = senders.map(|sender| buffer.for_sender(KIB, sender).unwrap()).into();
        let make_way: Vec<Arc<Notify>> = rooms.iter().map(SenderRoom::make_way).collect();
        let made_way = || -> Vec<bool> { make_way.iter().map(|make_way| is_told(make_way)).collect() };
        assert!(buffer.for_sender(KIB, Sender::Client).is_none());
        tokio::time::sleep(STALL_MIN / 2).await;
        buffer.evict_senders(KIB);
        assert_eq!(made_way(), [false; 5], "a short rest is none");
        rooms[0].note_bytes(PROGRESS_BYTES);
        rooms[1].note_bytes(PROGRESS_BYTES - 1);
        tokio::time::sleep(STALL_MIN / 2 + Duration::from_millis(1)).await;
        buffer.evict_senders(4 * KIB);
        assert_eq!(made_way(), [false; 5], "those who stand still have too little");
        buffer.evict_senders(KIB);
        assert_eq!(made_way(), [false, true, false, false, false], "as many as it needs");
        (0..9).for_each(|_| buffer.evict_senders(KIB));
        assert_eq!(made_way(), [false, false, true, true, false], "a copy waits for no client");
        rooms.truncate(2);
        assert!(buffer.for_sender(KIB, Sender::Client).is_some());
        buffer.evict_senders(KIB);

        let whole = rooms.remove(0).into_whole();
        tokio::time::sleep(STALL_MIN * 2).await;
        (0..9).for_each(|_| buffer.evict_senders(3 * KIB));
        assert_eq!(made_way(), [false; 5], "what is whole waits for no client");
        drop(whole);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_room_for_a_whole_block_too() {
        let (buffer, whole, blocks) = full().await;
        let wait = async {
            tokio::join!(buffer.room_to_send(1 << 20, Sender::Client), async {
                tokio::task::yield_now().await;
                drop(whole);
            })
        };
        let began = Instant::now();
        let (room, ()) = wait.await;
        assert!(matches!(room, RoomToSend::Whole(_)) && began.elapsed() < STALL_MIN);
        assert_eq!(made_way(&blocks), [false; 7]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_gives_back_is_enough_for_several() {
        let (buffer, _whole, mut blocks) = full().await;
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(small(&buffer, 32 * KIB))).collect();
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        blocks.remove(0);
        let began = Instant::now();
        let got = futures_util::future::join_all(waiting).await;
        assert_eq!((got.len(), began.elapsed()), (4, Duration::ZERO), "128 KiB");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_block_that_made_way_between_two_blocks_is_not_had_again() {
        let (buffer, _whole, mut blocks) = full().await;
        for small in &mut blocks {
            small.block.note_whole();
        }
        let copy = small_of(&buffer, 32 * KIB, Sender::Store);
        drop(blocks.pop());
        let copy = copy.await;
        blocks[0].block.note_stored();
        tokio::time::sleep(STALL_MIN * 2).await;
        let _new = small(&buffer, 32 * KIB).await;
        assert!(!blocks[0].block.begin_next() && blocks[1].block.begin_next());
        assert!(!is_told(&copy.make_way) && copy.block.begin_next());
    }

    #[test]
    fn block_longer_than_all_the_room_waits_until_it_is_alone_and_no_longer() {
        let buffer = BlockBuffer::new(4 * KIB, 8);
        assert!(buffer.for_reader(100 * KIB, Ahead::OfNothing).is_none(), "a reader has it in pieces");
        let other = buffer.spare(1).unwrap();
        assert!(buffer.spare(100 * KIB).is_none());
        let mut turn = Box::pin(buffer.turn(100 * KIB));
        assert!((&mut turn).now_or_never().is_none());
        drop(other);
        assert!(turn.now_or_never().is_some());
    }
}
