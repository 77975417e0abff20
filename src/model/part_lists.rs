//! The lists of the blocks of an object's parts, read ahead of whoever reads the object.
//!
//! Once an object is overwritten its lists go at once, and its blocks only after their delay. So lists are read ahead of the reader,
//! however slowly it takes the blocks: those that it needs soon a few at a time, those further on one at a time, by turns with the other
//! readers of the node, and only while the room for readers lasts. What must stay true: a reader that has nothing listed waits for no
//! turn and no room; what is listed ahead of a reader is bounded in blocks, whatever its parts are like.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::stream::{FuturesOrdered, Stream};
use futures_util::{FutureExt, StreamExt, stream};
use garage_types::{BlockHash, VersionId};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};

use crate::block_buffer::{Ahead, ReadersRoom};
use crate::detached::detached;
use crate::error::ModelError;
use crate::fetch::Slice;
use crate::garage::Garage;
use crate::get::ObjectPart;

/// Blocks that are listed ahead of a reader at once: 128 MiB of an object.
const NEAR_BLOCKS: u64 = 128;
/// Blocks that are listed ahead of a reader at most, unless a single part has more: 7 GiB of an object, in 280 KiB of memory.
const AHEAD_BLOCKS_MAX: u64 = 7 * 1024;
/// Lists of one reader that are read at once.
const LISTS_AT_ONCE: usize = 8;

/// A part, and which of its bytes are wanted: one at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedPart {
    pub version: VersionId,
    pub length: u64,
    pub bytes: Range<u64>,
}

/// Those of an object's parts that a range of it touches, in order.
#[derive(Clone)]
pub(crate) struct WantedParts {
    /// Shared with other readers.
    parts: Arc<Vec<ObjectPart>>,
    next: usize,
    range: Range<u64>,
    left: usize,
}

impl WantedParts {
    pub(crate) fn of(parts: Arc<Vec<ObjectPart>>, range: Range<u64>) -> Self {
        let mut wanted = WantedParts { parts, next: 0, range, left: 0 };
        wanted.left = wanted.clone().count();
        wanted
    }

    /// How many are left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    fn peek(&self) -> Option<WantedPart> {
        self.clone().next()
    }
}

impl Iterator for WantedParts {
    type Item = WantedPart;

    fn next(&mut self) -> Option<WantedPart> {
        loop {
            let part = self.parts.get(self.next)?;
            self.next += 1;
            let Range { start, end } = part.bytes;
            let (from, to) = (self.range.start.max(start), self.range.end.min(end));
            if from < to {
                self.left = self.left.saturating_sub(1);
                return Some(WantedPart { version: part.version, length: end - start, bytes: from - start..to - start });
            }
        }
    }
}

/// So few blocks are copied from a list of more.
const COPIED_LEN_MAX: u64 = 32;

/// Blocks in their order, with their lengths.
pub(crate) type BlockList = Vec<(BlockHash, u64)>;

/// Those of a list of blocks that a range of their bytes touches, in order. It may wait for long, so what is in it is shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct SliceList {
    blocks: Arc<BlockList>,
    next: usize,
    /// Behind the last one.
    end: usize,
    /// Where the next block begins.
    start: u64,
    bytes: Range<u64>,
}

impl SliceList {
    pub(crate) fn of(blocks: Arc<BlockList>, bytes: &Range<u64>) -> Self {
        let (mut next, mut end, mut start, mut at) = (0, 0, 0, 0);
        for (index, (_hash, length)) in blocks.iter().enumerate() {
            if at <= bytes.start {
                (next, start) = (index, at);
            }
            if at < bytes.end {
                end = index + 1;
            }
            at += length;
        }
        let end = if bytes.is_empty() { next } else { end };
        let mut list = SliceList { blocks, next, end, start, bytes: bytes.clone() };
        if list.len() < COPIED_LEN_MAX && list.len() < list.blocks.len() as u64 {
            // Not worth keeping the whole list for.
            let few = list.blocks.get(next..end).unwrap_or_default().to_vec();
            (list.next, list.end, list.blocks) = (0, few.len(), Arc::new(few));
        }
        list
    }

    fn len(&self) -> u64 {
        self.end.saturating_sub(self.next) as u64
    }
}

impl Iterator for SliceList {
    type Item = Slice;

    fn next(&mut self) -> Option<Slice> {
        let (hash, block_length) = *self.blocks.get(self.next).filter(|_block| self.next < self.end)?;
        let start = self.start;
        self.next += 1;
        self.start += block_length;
        let (from, to) = (self.bytes.start.max(start), self.bytes.end.min(self.start));
        Some(Slice { hash, block_length, bytes: from - start..to - start })
    }
}

/// What is listed ahead of a reader.
#[derive(Debug, Default)]
struct Window {
    /// Blocks that are listed, or are being listed, and that the reader has not come to.
    ahead: u64,
    /// Lists that are being read.
    reading: usize,
}

/// When the list of the next part is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Now,
    /// After others, if the room for it is there.
    InTurn,
    /// Once the reader has gone on, or a list has come.
    Later,
}

impl Window {
    /// `blocks`: of the next part, as far as known.
    fn next(&self, blocks: u64) -> When {
        match self.ahead + blocks {
            _ if self.reading >= LISTS_AT_ONCE => When::Later,
            _ if self.ahead == 0 => When::Now,
            ..=NEAR_BLOCKS => When::Now,
            ..=AHEAD_BLOCKS_MAX if self.reading == 0 => When::InTurn,
            _ => When::Later,
        }
    }

    fn begin(&mut self, blocks: u64) {
        self.ahead += blocks;
        self.reading += 1;
    }

    /// A list has come, of so many blocks instead of those expected.
    fn listed(&mut self, expected: u64, blocks: u64) {
        self.ahead = self.ahead.saturating_sub(expected) + blocks;
        self.reading = self.reading.saturating_sub(1);
    }

    fn taken(&mut self) {
        self.ahead = self.ahead.saturating_sub(1);
    }
}

/// How far a reader has come.
#[derive(Default)]
struct Progress {
    window: Mutex<Window>,
    /// The reader has gone on.
    moved: Notify,
    /// For what is listed in turn, until the reader ends.
    room: OnceLock<ReadersRoom>,
}

impl Progress {
    /// Every change under this lock is whole before anything can panic.
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reader's side.
struct Listed {
    lists: mpsc::Receiver<Result<SliceList, ModelError>>,
    now: SliceList,
    /// Parts whose lists have not come.
    missing: usize,
    progress: Arc<Progress>,
}

impl Listed {
    async fn next(&mut self) -> Option<Result<Slice, ModelError>> {
        loop {
            if let Some(slice) = self.now.next() {
                self.progress.window().taken();
                self.progress.moved.notify_one();
                return Some(Ok(slice));
            }
            match self.lists.recv().await {
                Some(Ok(list)) => {
                    self.missing = self.missing.saturating_sub(1);
                    self.now = list;
                }
                Some(Err(error)) => {
                    self.missing = 0;
                    return Some(Err(error));
                }
                // A body must not end as if it were whole.
                None if self.missing > 0 => {
                    self.missing = 0;
                    return Some(Err(ModelError::ShuttingDown));
                }
                None => return None,
            }
        }
    }
}

impl Garage {
    /// Which bytes of which blocks some parts consist of, in order.
    pub(crate) fn slices_of_parts(&self, parts: WantedParts) -> impl Stream<Item = Result<Slice, ModelError>> + Send + 'static {
        let progress = Arc::new(Progress::default());
        // Each list has a block at least, so that there is always room for one more.
        let (sender, lists) = mpsc::channel(AHEAD_BLOCKS_MAX as usize + LISTS_AT_ONCE);
        let listed = Listed { lists, now: SliceList::default(), missing: parts.left(), progress: progress.clone() };
        let look_up = self.clone().read_lists(parts, progress, sender);
        self.0.cluster.spawn().spawn("lists of parts", look_up.boxed());
        stream::unfold(listed, |mut listed| async move { Some((listed.next().await?, listed)) })
    }

    async fn read_lists(
        self,
        mut parts: WantedParts,
        progress: Arc<Progress>,
        lists: mpsc::Sender<Result<SliceList, ModelError>>,
    ) {
        let mut reading = FuturesOrdered::new();
        loop {
            let (when, blocks) = match parts.peek() {
                Some(part) => {
                    let blocks = self.blocks_expected(&part);
                    (progress.window().next(blocks), blocks)
                }
                None if reading.is_empty() => return,
                None => (When::Later, 0),
            };
            let mut turn = None;
            if when == When::InTurn && self.has_room_ahead(&parts, &progress) {
                tokio::select! {
                    biased;
                    () = lists.closed() => return,
                    // It may have come so near that no turn is needed.
                    () = progress.moved.notified() => continue,
                    waited = self.0.block_buffer.list_turn() => turn = waited.ok(),
                }
            }
            if when == When::Now || turn.is_some() {
                let Some(part) = parts.next() else { continue };
                progress.window().begin(blocks);
                reading.push_back(self.begin_list(part, turn).map(move |list| (blocks, list)));
                continue;
            }
            tokio::select! {
                biased;
                () = lists.closed() => return,
                () = progress.moved.notified() => {}
                Some((expected, list)) = reading.next() => {
                    progress.window().listed(expected, list.as_ref().map_or(0, SliceList::len));
                    let failed = list.is_err();
                    // The reader has gone, or is told and goes.
                    if lists.send(list).await.is_err() || failed {
                        return;
                    }
                }
            }
        }
    }

    fn blocks_expected(&self, part: &WantedPart) -> u64 {
        let wanted = part.bytes.end.saturating_sub(part.bytes.start);
        wanted.div_ceil(self.0.settings.block_size.max(1) as u64).max(1)
    }

    /// Whether the reader has room for what is listed far ahead of it, or finds it now.
    fn has_room_ahead(&self, parts: &WantedParts, progress: &Progress) -> bool {
        if progress.room.get().is_some() {
            return true;
        }
        let blocks = parts.clone().map(|part| self.blocks_expected(&part)).fold(0, u64::saturating_add).min(AHEAD_BLOCKS_MAX);
        let bytes = blocks as usize * size_of::<(BlockHash, u64)>();
        self.0.block_buffer.for_reader(bytes, Ahead::OfOthers).is_some_and(|room| progress.room.set(room).is_ok())
    }

    /// Polled by nobody while the reader takes nothing and all that may be listed is.
    fn begin_list(
        &self,
        part: WantedPart,
        turn: Option<OwnedSemaphorePermit>,
    ) -> impl Future<Output = Result<SliceList, ModelError>> + Send + use<> {
        let garage = self.clone();
        let work = async move {
            let list = garage.list_of_part(part).await;
            drop(turn);
            list
        };
        detached(&**self.0.cluster.spawn(), "list of a part", work)
    }

    async fn list_of_part(&self, part: WantedPart) -> Result<SliceList, ModelError> {
        let blocks = self.blocks_of_length(part.version, part.length).await?;
        let total: u64 = blocks.iter().map(|(_hash, length)| length).sum();
        if total != part.length {
            return Err(ModelError::Damaged(format!("part {} lists {total} of {} bytes", part.version, part.length)));
        }
        Ok(SliceList::of(blocks, &part.bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garage_types::random::SeededRandom;
    use garage_types::{BlockHash, Random};

    use super::{AHEAD_BLOCKS_MAX, LISTS_AT_ONCE, NEAR_BLOCKS, SliceList, When, Window};
    use crate::fetch::Slice;

    #[test]
    fn a_list_has_those_blocks_of_a_part_that_are_wanted() {
        let hash = |n: u8| BlockHash::from_bytes([n; 32]);
        let blocks = Arc::new(vec![(hash(0), 10), (hash(1), 10), (hash(2), 5)]);
        let cut = |range| {
            let list = SliceList::of(blocks.clone(), &range);
            let (len, found) =
                (list.len(), list.map(|Slice { hash, block_length, bytes }| (hash, block_length, bytes)).collect::<Vec<_>>());
            assert_eq!(len, found.len() as u64);
            found
        };
        assert_eq!(cut(0..25), [(hash(0), 10, 0..10), (hash(1), 10, 0..10), (hash(2), 5, 0..5)]);
        assert_eq!(cut(9..11), [(hash(0), 10, 9..10), (hash(1), 10, 0..1)]);
        assert_eq!(cut(10..20), [(hash(1), 10, 0..10)]);
        assert_eq!(cut(24..25), [(hash(2), 5, 4..5)]);
        assert_eq!(cut(3..3), []);
        assert!(SliceList::default().next().is_none());
    }

    #[test]
    fn lists_that_are_needed_soon_are_read_at_once_and_the_others_in_turn() {
        let mut window = Window::default();
        for _part in 0..LISTS_AT_ONCE {
            assert_eq!(window.next(5), When::Now);
            window.begin(5);
        }
        assert_eq!(window.next(5), When::Later, "as many are being read as may be");
        for _part in 0..LISTS_AT_ONCE {
            window.listed(5, 5);
        }
        while window.next(5) == When::Now {
            window.begin(5);
            window.listed(5, 5);
        }
        assert!((NEAR_BLOCKS - 5..=NEAR_BLOCKS).contains(&window.ahead));
        assert_eq!(window.next(5), When::InTurn);
        window.begin(5);
        assert_eq!(window.next(5), When::Later, "one at a time");
        (0..10).for_each(|_block| window.taken());
        assert_eq!(window.next(5), When::Now, "the reader has come near");
    }

    #[test]
    fn no_more_is_listed_ahead_than_is_allowed_however_long_the_parts_are() {
        for seed in 0..200 {
            let random = SeededRandom::new(seed);
            let longest = 1 << random.below(15);
            let (mut window, mut read, mut part) = (Window::default(), Vec::new(), 0);
            for _step in 0..5_000 {
                if part == 0 {
                    part = 1 + random.below(longest);
                }
                match window.next(part) {
                    When::Now | When::InTurn if random.below(3) > 0 => {
                        let is_alone = window.ahead == 0;
                        window.begin(part);
                        assert!(window.ahead <= AHEAD_BLOCKS_MAX || is_alone, "seed {seed}: {window:?}");
                        read.push(std::mem::take(&mut part));
                    }
                    _ => match read.pop() {
                        Some(blocks) => window.listed(blocks, blocks),
                        None => (0..1 + random.below(longest)).for_each(|_block| window.taken()),
                    },
                }
                assert!(window.reading <= LISTS_AT_ONCE && window.reading == read.len(), "seed {seed}: {window:?}");
            }
        }
    }
}
