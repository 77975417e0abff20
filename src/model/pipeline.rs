//! The one write pipeline: a body is cut into blocks, digested, hashed, compressed and stored, with a bounded number of blocks in
//! flight. PutObject, UploadPart and the copies differ only in where the body comes from and what is committed at the end.
//!
//! Must stay true: nothing becomes visible here; on success every block, its reference and the rows that list it are durable at a
//! write quorum; on failure the rows list all that was stored, so that giving up the version releases it; whatever a body waits for,
//! its blocks on their way go on meanwhile and give back their room, for which others wait.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use garage_types::{BlockHash, VersionId, offload};
use tokio::sync::Notify;

use crate::blocks::Encoded;
use crate::digest::{ChecksumAlgorithm, Digested, Digests, Expected};
use crate::error::{ModelError, SourceError};
use crate::fresh_refs::Origin;
use crate::garage::Garage;
use crate::senders::{RoomToSend, Sender, SenderRoom, SmallBlock, WriteRoom};
use crate::version::{Piece, SEGMENT_PIECES_MAX, Segment, VersionContent, VersionRow};

/// Blocks of one body that may be on their way at once: 80 MiB/s over a round trip of 100 ms. Each takes the longer on a slow link
/// the more there are.
const BLOCKS_IN_FLIGHT: usize = 8;
/// After how many new blocks the list of them is written.
const PIECES_PER_WRITE: usize = 8;

/// Where a body comes from.
pub trait Source: Send + 'static {
    /// The next bytes; `None` at the end, which must be the true end: a cut-off body is an error.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, SourceError>>>;

    /// How many bytes will come in all, if that is known.
    fn announced(&self) -> Option<u64> {
        None
    }

    /// Whether a client sends it. A client that stands still makes way where others need the memory for its bytes.
    fn is_clients(&self) -> bool {
        true
    }

    /// What must be true of the whole body; called once, after its end.
    fn expected(&mut self) -> Result<Expected, SourceError>;
}

/// The start of a body: all of it when it is small.
pub(crate) enum Opening {
    Whole(Bytes),
    /// The body is more than fits inline; reading goes on after these bytes.
    Start(Bytes),
}

/// Reads until it is clear whether the body has more than `inline_max` bytes: to its end, or to more than these; of one that announces more,
/// what comes first.
pub(crate) async fn open(source: &mut dyn Source, inline_max: usize) -> Result<Opening, ModelError> {
    if source.announced().is_some_and(|announced| announced > inline_max as u64) {
        let first = source.next().await.transpose().map_err(ModelError::Source)?;
        return Ok(first.map_or_else(|| Opening::Whole(Bytes::new()), Opening::Start));
    }
    let mut start = BytesMut::new();
    while start.len() <= inline_max {
        match source.next().await {
            Some(bytes) => start.extend_from_slice(&bytes.map_err(ModelError::Source)?),
            None => return Ok(Opening::Whole(start.freeze())),
        }
    }
    Ok(Opening::Start(start.freeze()))
}

/// What was stored of a body.
#[derive(Clone, Debug)]
pub(crate) struct StoredBody {
    pub digested: Digested,
    /// None of an empty body.
    pub first: Option<FirstBlock>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FirstBlock {
    pub hash: BlockHash,
    pub length: u64,
}

/// How a body is to be stored.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub version: VersionId,
    pub origin: Origin,
    pub checksum: ChecksumAlgorithm,
    pub size_max: u64,
}

type Step = BoxFuture<'static, Result<Done, ModelError>>;

/// What a block keeps from others until it is stored.
struct Room {
    _room: WriteRoom,
    small: Option<SmallBlock>,
}

enum Done {
    Encoded { index: usize, block: Encoded, room: Room },
    Stored { room: Room },
    Listed,
}

/// One body on its way into blocks.
struct Pipeline {
    garage: Garage,
    plan: Plan,
    digests: Option<Digests>,
    /// The start of the next block.
    reading: BytesMut,
    /// How long that block will be, unless the body ends before.
    block_length: usize,
    /// Room that there was for it when its first bytes came.
    room: Option<SenderRoom>,
    /// What it has instead, if there was none.
    small: Option<SmallBlock>,
    sender: Sender,
    /// Whether more blocks may come.
    is_reading: bool,
    /// What each block is, once encoded; in the order of the body.
    pieces: VecDeque<Option<Piece>>,
    /// Blocks before `pieces[0]`, whose rows are complete.
    pieces_before: usize,
    listed: usize,
    steps: FuturesUnordered<Step>,
    encoding: usize,
    storing: usize,
    first: Option<Piece>,
    failure: Option<ModelError>,
}

/// Stores a body in blocks.
///
/// # Errors
/// [`ModelError`]: the source's, a mismatch with what was announced, or a block that could not be stored.
pub(crate) async fn store(
    garage: Garage,
    plan: Plan,
    start: Bytes,
    mut source: Box<dyn Source>,
) -> Result<StoredBody, ModelError> {
    let mut pipeline = Pipeline {
        digests: Some(Digests::new(plan.checksum)),
        garage,
        plan,
        reading: BytesMut::new(),
        block_length: 0,
        room: None,
        small: None,
        sender: if source.is_clients() { Sender::Client } else { Sender::Store },
        is_reading: true,
        pieces: VecDeque::new(),
        pieces_before: 0,
        listed: 0,
        steps: FuturesUnordered::new(),
        encoding: 0,
        storing: 0,
        first: None,
        failure: None,
    };
    let read = pipeline.read_all(start, &mut *source).await;
    // After a failure there may be bytes left that nobody sends on.
    (pipeline.reading, pipeline.room, pipeline.small, pipeline.is_reading) = (BytesMut::new(), None, None, false);
    if let Err(error) = read {
        pipeline.failure.get_or_insert(error);
    }
    pipeline.finish(&mut *source).await
}

impl Pipeline {
    async fn read_all(&mut self, start: Bytes, source: &mut dyn Source) -> Result<(), ModelError> {
        let announced = source.announced();
        let mut total = 0;
        let mut next = Some(start);
        while let Some(bytes) = next {
            total += bytes.len() as u64;
            if total > self.plan.size_max {
                return Err(ModelError::TooLarge { limit: self.plan.size_max });
            }
            let expected = announced.map(|announced| announced.saturating_sub(total));
            self.cut(bytes, expected).await?;
            next = self.next_bytes(source).await?;
        }
        let last = std::mem::take(&mut self.reading);
        if !last.is_empty() {
            self.push(last.freeze()).await?;
        }
        Ok(())
    }

    /// The next bytes of the body. The steps go on while they are waited for.
    async fn next_bytes(&mut self, source: &mut dyn Source) -> Result<Option<Bytes>, ModelError> {
        let make_way = self.make_way();
        let next = async {
            tokio::select! {
                biased;
                next = source.next() => Ok(next),
                () = make_way.notified() => Err(ModelError::StalledUpload),
            }
        };
        let next = self.beside_steps(next).await??;
        if let Some(Ok(bytes)) = &next {
            self.room.iter_mut().for_each(|room| room.note_bytes(bytes.len()));
            self.small.iter_mut().for_each(|small| small.note_bytes(bytes.len()));
        }
        next.transpose().map_err(ModelError::Source)
    }

    /// Told when others need the memory of the bytes that are there of the next block. Where there are none, the body need not make way,
    /// even if it has to give back its room.
    fn make_way(&self) -> Arc<Notify> {
        let small = || self.small.as_ref().and_then(SmallBlock::make_way);
        let make_way = self.room.as_ref().map(SenderRoom::make_way).or_else(small);
        make_way.filter(|_| !self.reading.is_empty()).unwrap_or_default()
    }

    /// Adds bytes to the block being read, and sends on what became whole. `expected`: how many bytes will come after these.
    ///
    /// A block gets memory for itself and no more: the rest of what came with its last bytes would keep all of it from being freed.
    async fn cut(&mut self, mut bytes: Bytes, expected: Option<u64>) -> Result<(), ModelError> {
        while !bytes.is_empty() {
            if self.reading.is_empty() {
                let left = expected.map(|expected| expected.saturating_add(bytes.len() as u64));
                self.begin_block(left).await?;
            }
            let missing = self.block_length - self.reading.len();
            self.reading.extend_from_slice(&bytes.split_to(missing.min(bytes.len())));
            if self.reading.len() == self.block_length {
                let block = std::mem::take(&mut self.reading).freeze();
                self.push(block).await?;
            }
        }
        Ok(())
    }

    /// Settles how long the next block will be: as configured when there is room for it, short otherwise. `left`: bytes still to come, if
    /// that is known.
    ///
    /// Whoever has blocks on their way waits for them to give back room. A body that has none goes on with small blocks: those who hold
    /// the room may be clients who send slowly, or not at all.
    async fn begin_block(&mut self, left: Option<u64>) -> Result<(), ModelError> {
        let block_size = self.garage.0.settings.block_size;
        let length = left.and_then(|left| usize::try_from(left).ok()).unwrap_or(block_size).min(block_size);
        self.block_length = block_size;
        let buffer = self.garage.0.block_buffer.clone();
        loop {
            self.room = buffer.for_sender(length, self.sender);
            if self.room.is_some() {
                self.small = None;
                break;
            }
            if self.encoding + self.storing == 0 {
                self.small = self.small.take().filter(SmallBlock::begin_next);
                if self.small.is_some() {
                    buffer.evict_senders(length);
                } else {
                    match self.beside_steps(buffer.room_to_send(length, self.sender)).await? {
                        RoomToSend::Whole(room) => self.room = Some(room),
                        RoomToSend::Small(small) => self.small = Some(small),
                    }
                }
                self.block_length = self.small.as_ref().map_or(block_size, |small| small.length);
                break;
            }
            let done = self.steps.next().await.expect("what is in flight is a step");
            self.advance(done?)?;
        }
        self.reading = BytesMut::with_capacity(length.min(self.block_length));
        Ok(())
    }

    /// Waits for something while the steps go on, without which they would give nothing back: bodies that wait for each other's room
    /// would wait for ever.
    async fn beside_steps<T>(&mut self, wait: impl Future<Output = T>) -> Result<T, ModelError> {
        let mut wait = pin!(wait);
        loop {
            if self.steps.is_empty() {
                return Ok(wait.await);
            }
            tokio::select! {
                biased;
                Some(done) = self.steps.next() => self.advance(done?)?,
                outcome = &mut wait => return Ok(outcome),
            }
        }
    }

    /// Room in memory for a whole block to be on its way. One block of each body waits for its turn; more are sent only while room
    /// is spare. `had`: what the block had while it came.
    async fn room(&mut self, length: usize, mut had: Option<WriteRoom>) -> Result<WriteRoom, ModelError> {
        loop {
            let in_flight = self.encoding + self.storing;
            // A block that has room goes at once where it is the only one, or others find room all the same.
            let may_have_more = in_flight == 0 || self.garage.0.block_buffer.has_spare();
            if in_flight < BLOCKS_IN_FLIGHT
                && may_have_more
                && let Some(room) = had.take().or_else(|| self.garage.0.block_buffer.spare(length))
            {
                return Ok(room);
            }
            if in_flight == 0 {
                let turn = self.garage.0.block_buffer.turn(length);
                return self.beside_steps(turn).await?;
            }
            let done = self.steps.next().await.expect("what is in flight is a step");
            self.advance(done?)?;
        }
    }

    /// Sends a block on its way, after waiting for room.
    async fn push(&mut self, block: Bytes) -> Result<(), ModelError> {
        let small = self.small.take();
        if let Some(small) = &small {
            small.note_whole();
        }
        let had = self.room.take().map(SenderRoom::into_whole);
        let room = Room { _room: self.room(block.len(), had).await?, small };
        let index = self.pieces_before + self.pieces.len();
        self.pieces.push_back(None);
        self.encoding += 1;
        let (garage, plain) = (self.garage.clone(), block.clone());
        self.steps.push(async move { Ok(Done::Encoded { index, block: garage.0.blocks.encode(plain).await?, room }) }.boxed());
        self.digest(block).await
    }

    /// Digests follow the order of the body: one at a time, beside the encoding of the same block.
    async fn digest(&mut self, block: Bytes) -> Result<(), ModelError> {
        let mut digests = self.digests.take().ok_or(ModelError::ShuttingDown)?;
        let work = offload::offload(&*self.garage.0.offload, move || {
            digests.update(&block);
            digests
        });
        self.digests = Some(self.beside_steps(work).await?.map_err(|_lost| ModelError::ShuttingDown)?);
        Ok(())
    }

    fn advance(&mut self, done: Done) -> Result<(), ModelError> {
        match done {
            Done::Encoded { index, block, room } => {
                self.encoding -= 1;
                self.storing += 1;
                let piece = Piece::Block { hash: block.hash, length: block.plain_len };
                if index == 0 {
                    self.first = Some(piece.clone());
                }
                self.pieces[index - self.pieces_before] = Some(piece);
                let (garage, version, origin) = (self.garage.clone(), self.plan.version, self.plan.origin.clone());
                self.steps.push(
                    async move {
                        let stored = garage.0.blocks.put(block, version, &origin).await;
                        stored.map(|()| Done::Stored { room })
                    }
                    .boxed(),
                );
                self.list_when_due();
            }
            Done::Stored { room } => {
                self.storing -= 1;
                if let (Some(mut small), None, None, true) = (room.small, &self.small, &self.room, self.is_reading) {
                    // Kept for the next block.
                    small.note_stored();
                    self.small = Some(small);
                }
            }
            Done::Listed => {}
        }
        Ok(())
    }

    /// How many blocks from the start are known without a gap.
    fn known(&self) -> usize {
        self.pieces_before + self.pieces.iter().take_while(|piece| piece.is_some()).count()
    }

    fn list_when_due(&mut self) {
        let known = self.known();
        if known >= self.listed + PIECES_PER_WRITE || known == self.pieces_before + SEGMENT_PIECES_MAX {
            self.list();
        }
    }

    /// Writes the rows that list the known blocks.
    fn list(&mut self) {
        let known = self.known();
        while self.listed < known {
            let segment_start = self.listed - self.listed % SEGMENT_PIECES_MAX;
            let segment_end = known.min(segment_start + SEGMENT_PIECES_MAX);
            let range = segment_start - self.pieces_before..segment_end - self.pieces_before;
            let pieces: Vec<Piece> = self.pieces.range(range).flatten().cloned().collect();
            let row = segment_row(&self.plan, (segment_start / SEGMENT_PIECES_MAX) as u32, pieces);
            let garage = self.garage.clone();
            self.steps.push(async move { Ok(garage.0.versions.merge(&row).await.map(|()| Done::Listed)?) }.boxed());
            self.listed = segment_end;
            if segment_end == segment_start + SEGMENT_PIECES_MAX {
                self.pieces.drain(..segment_end - self.pieces_before);
                self.pieces_before = segment_end;
            }
        }
    }

    /// Waits for everything on its way, lists what was stored, and judges the whole.
    async fn finish(mut self, source: &mut dyn Source) -> Result<StoredBody, ModelError> {
        loop {
            // After a failure nobody knows what is still being encoded: whatever is known is listed as it comes.
            if (self.encoding == 0 || self.failure.is_some()) && self.listed < self.known() {
                self.list();
            }
            let Some(done) = self.steps.next().await else { break };
            if let Err(error) = done.and_then(|done| self.advance(done)) {
                self.failure.get_or_insert(error);
            }
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let digested = self.digests.ok_or(ModelError::ShuttingDown)?.finish();
        source.expected().map_err(ModelError::Source)?.check(&digested)?;
        let first = self.first.and_then(|piece| piece.block()).map(|(hash, length)| FirstBlock { hash, length });
        Ok(StoredBody { digested, first })
    }
}

fn segment_row(plan: &Plan, index: u32, pieces: Vec<Piece>) -> VersionRow {
    let segment = Segment::listing(index, plan.origin.backlink.clone(), pieces);
    VersionRow { version: plan.version, content: VersionContent::Segment(segment) }
}

/// A body that is in memory already.
pub struct InMemory {
    bytes: Option<Bytes>,
    expected: Expected,
}

impl InMemory {
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        InMemory { bytes: Some(bytes.into()), expected: Expected::default() }
    }

    #[must_use]
    pub fn expecting(self, expected: Expected) -> Self {
        InMemory { expected, ..self }
    }
}

impl Source for InMemory {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, SourceError>>> {
        let bytes = self.bytes.take();
        async move { bytes.map(Ok) }.boxed()
    }

    fn is_clients(&self) -> bool {
        false
    }

    fn expected(&mut self) -> Result<Expected, SourceError> {
        Ok(std::mem::take(&mut self.expected))
    }
}
