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
use garage_types::stall_budget::{NoRoom, Stall};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::ModelError;

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
/// A client that has sent fewer bytes has made no progress. A few would keep a block from others for ever.
const PROGRESS_BYTES: usize = 4 << 10;
/// Whoever has made no progress for so long makes way for others.
const STALL_MIN: Duration = Duration::from_secs(3);
/// After waiting for so long for a small block, one takes the place of whoever stands still longest, however short that is.
const STALL_WAITED: Duration = Duration::from_secs(30);
/// How often one who waits looks again at most.
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
    /// A small block has gone.
    small_freed: Arc<Notify>,
    /// A clone for each piece of a block that waits for its reader.
    pieces: Arc<()>,
}

/// A piece of a block for a reader for whose blocks there is no room, until it is dropped.
pub(crate) struct ReadersPiece {
    pub bytes_max: u64,
    _one: Arc<()>,
}

/// When a client has sent something last.
struct Sending {
    stall: Stall,
    /// Bytes that have come since progress was noted.
    unnoted: usize,
}

impl Sending {
    fn new(stall: Stall) -> Self {
        Sending { stall, unnoted: 0 }
    }

    fn note_bytes(&mut self, bytes: usize) {
        self.unnoted += bytes;
        if self.unnoted >= PROGRESS_BYTES {
            self.stall.note_progress(Instant::now().into_std());
            self.unnoted = 0;
        }
    }
}

/// Room for the block that a client is sending.
pub(crate) struct SenderRoom {
    units: OwnedSemaphorePermit,
    sending: Sending,
}

impl SenderRoom {
    /// So many bytes of the block have come.
    pub(crate) fn note_bytes(&mut self, bytes: usize) {
        self.sending.note_bytes(bytes);
    }

    /// All of it has come: nobody waits for the client any more.
    pub(crate) fn into_units(self) -> OwnedSemaphorePermit {
        self.units
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
    /// So many bytes of it have come.
    pub(crate) fn note_bytes(&mut self, bytes: usize) {
        if let Some(sending) = &mut self.sending {
            sending.note_bytes(bytes);
        }
    }

    /// All of it has come: nobody waits for the client any more.
    pub(crate) fn note_whole(&self) {
        if let Some(sending) = &self.sending {
            sending.stall.note_busy();
        }
    }

    /// It is stored, and the next one may come.
    pub(crate) fn note_stored(&mut self) {
        if let Some(sending) = &mut self.sending {
            sending.unnoted = 0;
            sending.stall.note_waiting(Instant::now().into_std());
        }
    }
}

impl Drop for SmallBlock {
    fn drop(&mut self) {
        drop(self.sending.take());
        self.freed.notify_one();
    }
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
            small_freed: Arc::default(),
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
    pub(crate) fn spare(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.leaving(self.units_max / 2, bytes)
    }

    /// Whether something is left of the first half.
    pub(crate) fn has_spare(&self) -> bool {
        self.units.available_permits() > self.units_max / 2
    }

    /// Room for a block that a client is sending, which has no other on its way. `make_way`: told when others need it.
    pub(crate) fn for_sender(&self, bytes: usize, make_way: &Arc<Notify>) -> Option<SenderRoom> {
        let units = self.leaving(self.units_max / 8 * 3, bytes)?;
        let (now, told) = (Instant::now().into_std(), make_way.clone());
        let stall = self.senders.hold(units.num_permits() * UNIT, now, now, move || told.notify_one());
        Some(SenderRoom { units, sending: Sending::new(stall) })
    }

    /// Takes from one client who stands still the room for the block that it is sending, if there is any such client.
    pub(crate) fn evict_sender(&self) {
        if let Some(stalled_before) = Instant::now().checked_sub(STALL_MIN) {
            self.senders.evict(stalled_before.into_std());
        }
    }

    /// Room for blocks of at most `length_max` bytes of a body for which there is no other. It waits for bodies that have some until they end,
    /// or stand still. `make_way`: told when others need it.
    pub(crate) async fn small_block(&self, length_max: usize, make_way: &Arc<Notify>) -> SmallBlock {
        let begun = Instant::now();
        loop {
            let freed = self.small_freed.notified();
            let now = Instant::now();
            let stalled_before = if now >= begun + STALL_WAITED { now } else { now.checked_sub(STALL_MIN).unwrap_or(begun) };
            match self.try_small_block(length_max, (now, stalled_before), make_way) {
                Ok(block) => return block,
                Err(NoRoom { oldest }) => {
                    let stalls_at = oldest.map_or(now, Instant::from_std) + STALL_MIN;
                    // Whoever is whole tells us when it has gone.
                    let again_at = (begun + STALL_WAITED).min(stalls_at).max(now + STALL_CHECK);
                    let _whichever_is_first = timeout_at(again_at, freed).await;
                }
            }
        }
    }

    fn try_small_block(
        &self,
        length_max: usize,
        (now, stalled_before): (Instant, Instant),
        make_way: &Arc<Notify>,
    ) -> Result<SmallBlock, NoRoom> {
        let are_many = self.small.left() < self.small_max / 2;
        let length = SMALL_BLOCK_BYTES[usize::from(are_many)].min(length_max);
        let told = make_way.clone();
        let stall = self.small.try_hold(length, now.into_std(), stalled_before.into_std(), move || told.notify_one())?;
        Ok(SmallBlock { length, sending: Some(Sending::new(stall)), freed: self.small_freed.clone() })
    }

    /// Room for so many bytes, if as many units are left afterwards.
    fn leaving(&self, left_min: usize, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = self.units_of(bytes);
        let left_after = self.units.available_permits().checked_sub(units as usize)?;
        if left_after < left_min {
            return None;
        }
        // Taken by another at this moment: as if it had not been there.
        self.units.clone().try_acquire_many_owned(units).ok()
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
    pub(crate) fn turn(&self, bytes: usize) -> impl Future<Output = Result<OwnedSemaphorePermit, ModelError>> + Send + 'static {
        let turn = self.units.clone().acquire_many_owned(self.units_of(bytes));
        async move { turn.await.map_err(|_closed| ModelError::ShuttingDown) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::{Ahead, BlockBuffer, PROGRESS_BYTES, STALL_MIN, STALL_WAITED, SenderRoom, SmallBlock};

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
        written.extend(std::iter::from_fn(|| buffer.for_sender(KIB, &Arc::default())).map(SenderRoom::into_units));
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

    async fn small(buffer: &BlockBuffer, length_max: usize) -> Small {
        let make_way = Arc::default();
        Small { block: buffer.small_block(length_max, &make_way).await, make_way }
    }

    fn made_way(blocks: &[Small]) -> Vec<bool> {
        blocks.iter().map(|small| small.make_way.notified().now_or_never().is_some()).collect()
    }

    /// 512 KiB for small blocks, all of it taken.
    async fn full() -> (BlockBuffer, Vec<Small>) {
        let buffer = BlockBuffer::new(4096 * KIB, 8);
        let mut blocks = Vec::new();
        for _ in 0..7 {
            blocks.push(small(&buffer, 1 << 20).await);
        }
        (buffer, blocks)
    }

    #[tokio::test(start_paused = true)]
    async fn many_small_blocks_are_smaller_and_who_stands_still_makes_way() {
        let (buffer, mut blocks) = full().await;
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
        let (buffer, mut blocks) = full().await;
        let mut waiting = Box::pin(small(&buffer, 32 * KIB));
        assert!((&mut waiting).now_or_never().is_none());
        blocks.truncate(6);
        blocks.push(waiting.now_or_never().expect("what was given back"));

        let began = Instant::now();
        let keep_on = async {
            loop {
                tokio::time::sleep(STALL_MIN / 10).await;
                blocks.iter_mut().for_each(|small| small.block.note_bytes(32 * KIB));
            }
        };
        let more = tokio::select! {
            more = small(&buffer, 32 * KIB) => more,
            () = keep_on => unreachable!("it ends never"),
        };
        assert!(began.elapsed() >= STALL_WAITED && more.block.length == 32 * KIB);
        assert_eq!(made_way(&blocks).iter().filter(|made_way| **made_way).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_stands_still_makes_way_for_one_who_finds_no_room() {
        // Five are for senders.
        let buffer = BlockBuffer::new(10 * KIB, 8);
        let made_way: Vec<Arc<Notify>> = std::iter::repeat_with(Arc::default).take(5).collect();
        let mut rooms: Vec<SenderRoom> = made_way.iter().map(|made_way| buffer.for_sender(KIB, made_way).unwrap()).collect();
        let have_made_way =
            || -> Vec<bool> { made_way.iter().map(|made_way| made_way.notified().now_or_never().is_some()).collect() };
        assert!(buffer.for_sender(KIB, &Arc::default()).is_none());
        tokio::time::sleep(STALL_MIN / 2).await;
        buffer.evict_sender();
        assert_eq!(have_made_way(), [false; 5], "a short rest is none");
        rooms[0].note_bytes(PROGRESS_BYTES);
        rooms[1].note_bytes(PROGRESS_BYTES - 1);
        tokio::time::sleep(STALL_MIN / 2 + Duration::from_millis(1)).await;
        (0..9).for_each(|_| buffer.evict_sender());
        assert_eq!(have_made_way(), [false, true, true, true, true]);
        rooms.truncate(2);
        assert!(buffer.for_sender(KIB, &Arc::default()).is_some());

        let whole = rooms.remove(0).into_units();
        tokio::time::sleep(STALL_MIN * 2).await;
        buffer.evict_sender();
        assert_eq!(have_made_way(), [false; 5], "what is whole waits for no client");
        drop(whole);
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
