//! Blocks across the cluster: bytes and their references travel together, each owner stores both before it answers.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_block::{BlockError, Compression, Encoding, LocalStore, StoredBlock};
use garage_db::{DbError, Transaction};
use garage_rpc::cluster::Cluster;
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request, Role};
use garage_rpc::error::{ErrorCode, RpcError};
use garage_rpc::layout::LayoutManager;
use garage_table::wire::{EPOCH_OF_OWNER, Entry, Mode, Verdict, Write};
use garage_table::{Schema, TableError, TableStore};
use garage_types::codec;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BlockHash, Clock, NodeId, Offload, Placement, Timestamp, VersionId, chain, offload};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::background::MayDelete;
use crate::block_ref::{Arriving, BlockRefRow, BlockRefTable, BlockTrees, RefCount};
use crate::error::ModelError;
use crate::failed_here::FailedHere;
use crate::fresh_refs::Origin;
use crate::lingering::{Lingering, Reached, answer_in_room};
use crate::resync_queue::{Queued, Reason};
use crate::unreferenced::Uncounted;

/// Store this block (attached) and the reference of a version to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutBlock {
    #[serde(rename = "l")]
    layout: u64,
    #[serde(rename = "h")]
    hash: BlockHash,
    #[serde(rename = "v")]
    version: VersionId,
    #[serde(rename = "e")]
    encoding: Encoding,
    #[serde(rename = "z")]
    plain_len: u32,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockStored {}

impl Request for PutBlock {
    const ENDPOINT: &'static str = "block.put/1";
    const CLASS: Class = Class::Bulk;
    type Reply = BlockStored;
}

/// Store the reference of a version to a block, if this owner has its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReferBlock {
    #[serde(rename = "l")]
    layout: u64,
    #[serde(rename = "h")]
    hash: BlockHash,
    #[serde(rename = "v")]
    version: VersionId,
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

impl Request for ReferBlock {
    const ENDPOINT: &'static str = "block.refer/1";
    const CLASS: Class = Class::Metadata;
    type Reply = BlockStored;
}

/// Send a block, or a part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetBlock {
    #[serde(rename = "h")]
    hash: BlockHash,
    /// Which bytes of the plain content, if not all. An older node sends the whole block all the same.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    wanted: Option<Range<u64>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockHeader {
    #[serde(rename = "e")]
    encoding: Encoding,
    /// Of what is attached.
    #[serde(rename = "z")]
    plain_len: u32,
    /// Only the part that was wanted is attached, checked by the sender against the checksums of its file. It is not compressed.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    is_part: bool,
}

impl Request for GetBlock {
    const ENDPOINT: &'static str = "block.get/1";
    const CLASS: Class = Class::Bulk;
    type Reply = BlockHeader;
}

/// The owner's side.
#[derive(Clone)]
pub struct BlockService {
    pub blocks: LocalStore,
    pub tables: TableStore,
    pub trees: BlockTrees,
    pub arriving: Arriving,
    pub uncounted: Uncounted,
    pub failed: FailedHere,
    pub clock: Arc<dyn Clock>,
    pub offload: Arc<dyn Offload>,
    pub may_delete: Arc<dyn MayDelete>,
    pub layout: Arc<LayoutManager>,
}

impl BlockService {
    async fn put(&self, writer: NodeId, request: PutBlock, block: StoredBlock) -> Result<BlockStored, RpcError> {
        // Its reference would take of what deletions need.
        if self.tables.db().room().is_metadata_scarce() {
            return Err(TableError::NoRoom.into());
        }
        // Held until the reference is durable: nobody decides to delete the block in between.
        let hash = request.hash;
        let locked = self.blocks.lock(hash).await;
        // Also if whoever sent the block hangs up: then this ends anywhere, and what the disk was given is written all the same.
        let writing = self.uncounted.writing(request.hash);
        match locked.write(block).await {
            Ok(_written) => {}
            // Nothing was begun.
            Err(error @ (BlockError::Full { .. } | BlockError::Exchanged(_))) => {
                writing.seen_to();
                return Err(block_error(error));
            }
            Err(error) => return Err(block_error(error)),
        }
        let stored = self.refer_locked(writer, request.layout, request.hash, request.version, request.origin).await;
        if stored.is_ok() {
            writing.seen_to();
        }
        drop(locked);
        self.found_good(hash).await;
        stored
    }

    async fn refer(&self, writer: NodeId, request: ReferBlock) -> Result<BlockStored, RpcError> {
        // Held until the reference is durable: nobody decides to delete the block in between.
        let locked = self.blocks.lock(request.hash).await;
        if !locked.contains().await.map_err(block_error)? {
            return Err(block_error(BlockError::Missing { hash: request.hash }));
        }
        if is_planted(Bug::CopyWithoutReference) {
            return Ok(BlockStored {});
        }
        let stored = self.refer_locked(writer, request.layout, request.hash, request.version, request.origin).await;
        drop(locked);
        stored
    }

    /// The plain content of a block on this node; one that should be here and is not is queued to be fetched.
    pub(crate) async fn read(&self, hash: BlockHash) -> Result<Bytes, RpcError> {
        match self.blocks.read(hash).await {
            Ok(plain) => {
                self.found_good(hash).await;
                Ok(plain)
            }
            Err(error) => Err(self.missed(hash, error).await),
        }
    }

    async fn read_stored(&self, hash: BlockHash) -> Result<StoredBlock, RpcError> {
        match self.blocks.read_stored(hash).await {
            Ok(stored) => {
                self.found_good(hash).await;
                Ok(stored)
            }
            Err(error) => Err(self.missed(hash, error).await),
        }
    }

    /// A part of the plain content; of a block that is not compressed only that part is read from the disk.
    async fn read_range(&self, hash: BlockHash, range: Range<u64>) -> Result<Bytes, RpcError> {
        match self.blocks.read_range(hash, range).await {
            Ok(plain) => Ok(plain),
            Err(error) => Err(self.missed(hash, error).await),
        }
    }

    /// Notes that a block could not be read here, also where that says nothing about its file: resync reads it once more.
    async fn missed(&self, hash: BlockHash, error: BlockError) -> RpcError {
        match &error {
            BlockError::Missing { .. } | BlockError::Corrupt { .. } | BlockError::Io { .. } => {
                self.look_after(hash, self.clock.now()).await;
            }
            // Resync can do nothing before the directory is back, and then there may be nothing to do.
            BlockError::Exchanged(_)
            | BlockError::NewerFormat { .. }
            | BlockError::Full { .. }
            | BlockError::OutOfRange { .. }
            | BlockError::Directory { .. }
            | BlockError::Lost { .. } => {}
        }
        block_error(error)
    }

    /// Has resync look at a block that could not be read here, if anything refers to it.
    pub(crate) async fn look_after(&self, hash: BlockHash, due: Timestamp) {
        if let Err(error) = self.queue_if_referenced(hash, due).await {
            tracing::warn!(block = %hash, error = %chain(&error), "a block that could not be read could not be queued to be looked at");
        }
    }

    async fn queue_if_referenced(&self, hash: BlockHash, due: Timestamp) -> Result<(), TableError> {
        // A block that is read over and over is queued once a minute.
        let due = due.minus_millis(due.as_millis() % 60_000);
        let trees = self.trees;
        let queue = move |tx: &mut Transaction<'_>| {
            let count = tx.get(trees.counts, hash.as_bytes())?.as_deref().and_then(RefCount::decode);
            match count {
                Some(RefCount { count: 1.., .. }) => trees.enqueue(tx, &Queued::new(due, hash, Reason::Fetch)),
                Some(_) | None => Ok::<_, DbError>(()),
            }
        };
        Ok(self.tables.db().write(queue).await?)
    }

    async fn refer_locked(
        &self,
        writer: NodeId,
        layout: u64,
        hash: BlockHash,
        version: VersionId,
        origin: Option<Origin>,
    ) -> Result<BlockStored, RpcError> {
        let reference = BlockRefTable::entry(&BlockRefRow::live(hash, version), Mode::Replicate);
        // However late it comes, it is looked at until its content is settled.
        let origin = origin.map(|origin| codec::encode(&origin).into());
        let reference = Entry { epoch: EPOCH_OF_OWNER, condition: origin, ..reference };
        let _arrival = self.arriving.add(hash);
        match self.tables.write_for(writer, Write { layout, entries: vec![reference] }).await? {
            Verdict::Won => Ok(BlockStored {}),
            verdict => {
                Err(RpcError::new(ErrorCode::Internal, format!("a block reference was not merged but answered {verdict:?}")))
            }
        }
    }
}

/// A block error as other nodes see it.
pub fn block_error(error: BlockError) -> RpcError {
    let code = match &error {
        BlockError::Missing { .. } => ErrorCode::NotFound,
        BlockError::Corrupt { .. } => ErrorCode::Corrupt,
        BlockError::Full { .. } => ErrorCode::Full,
        BlockError::Exchanged(_) => ErrorCode::Unavailable,
        BlockError::NewerFormat { .. }
        | BlockError::OutOfRange { .. }
        | BlockError::Io { .. }
        | BlockError::Directory { .. }
        | BlockError::Lost { .. } => ErrorCode::Internal,
    };
    RpcError { code, message: error.to_string() }
}

impl Handler<PutBlock> for BlockService {
    fn handle(&self, caller: Caller, request: Message<PutBlock>) -> BoxFuture<'static, Result<Message<BlockStored>, RpcError>> {
        let service = self.clone();
        async move {
            let Message { body, data } = request;
            let block = StoredBlock::new(body.encoding, body.plain_len, data)
                .map_err(|error| RpcError { code: ErrorCode::BadRequest, message: error.to_string() })?;
            if caller.role != Role::Local {
                // What comes from another node is believed only once its hash is recomputed.
                let (hash, arrived) = (body.hash, block.clone());
                offload::offload(&*service.offload, move || arrived.verify(hash).map(drop))
                    .await
                    .map_err(|lost| RpcError::new(ErrorCode::Internal, lost.to_string()))?
                    .map_err(|error| RpcError { code: ErrorCode::Corrupt, message: error.to_string() })?;
            }
            Ok(service.put(caller.node, body, block).await?.into())
        }
        .boxed()
    }
}

impl Handler<ReferBlock> for BlockService {
    fn handle(&self, caller: Caller, request: Message<ReferBlock>) -> BoxFuture<'static, Result<Message<BlockStored>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.refer(caller.node, request.body).await?.into()) }.boxed()
    }
}

impl Handler<GetBlock> for BlockService {
    fn handle(&self, _caller: Caller, request: Message<GetBlock>) -> BoxFuture<'static, Result<Message<BlockHeader>, RpcError>> {
        let service = self.clone();
        async move {
            let GetBlock { hash, wanted } = request.body;
            if let Some(wanted) = wanted {
                let part = service.read_range(hash, wanted).await?;
                let too_long = |_| RpcError::new(ErrorCode::BadRequest, "a part of a block longer than a block".to_owned());
                let plain_len = u32::try_from(part.len()).map_err(too_long)?;
                return Ok(Message { body: BlockHeader { encoding: Encoding::Raw, plain_len, is_part: true }, data: part });
            }
            let block = service.read_stored(hash).await?;
            let header = BlockHeader { encoding: block.encoding(), plain_len: block.plain_len(), is_part: false };
            Ok(Message { body: header, data: block.bytes().clone() })
        }
        .boxed()
    }
}

/// Blocks being hashed and compressed at once. Each needs a compressor and room for its output, 2 to 3 MiB in all for a block of 1 MiB;
/// more at once would be of no use to fewer processors.
const ENCODINGS_MAX: usize = 16;
/// Blocks of which a small piece is read at once without room for more: of those on this node, and of those on others. The whole block may
/// have to be read for a piece. Those who wait for another node do not hold up those who need only this one's disk.
const PIECES_AT_ONCE: usize = 16;

/// The coordinator's side: where blocks go and come from. Cheap to clone.
#[derive(Clone)]
pub struct Blocks {
    cluster: Cluster,
    local: BlockService,
    offload: Arc<dyn Offload>,
    compression: Compression,
    encodings: Arc<Semaphore>,
    pieces_here: Arc<Semaphore>,
    pieces_elsewhere: Arc<Semaphore>,
    lingering: Arc<Lingering>,
}

/// Whether a reader has room in memory for what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Held,
    /// It waits for its turn.
    None,
}

/// A block ready to be sent to its owners.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub hash: BlockHash,
    pub plain_len: u64,
    stored: StoredBlock,
}

impl Blocks {
    /// `lingering_max`: bytes of blocks that may be on their way to slow owners when the others have them.
    pub fn new(
        cluster: Cluster,
        local: BlockService,
        offload: Arc<dyn Offload>,
        compression: Compression,
        lingering_max: usize,
    ) -> Self {
        let [encodings, pieces_here, pieces_elsewhere] =
            [ENCODINGS_MAX, PIECES_AT_ONCE, PIECES_AT_ONCE].map(|at_once| Arc::new(Semaphore::new(at_once)));
        let lingering = Lingering::new(lingering_max);
        Blocks { cluster, local, offload, compression, encodings, pieces_here, pieces_elsewhere, lingering }
    }

    /// Bytes of blocks on their way to slow owners, and how many there may be.
    pub(crate) fn lingering(&self) -> (usize, usize) {
        self.lingering.used()
    }

    /// Hashes and compresses, off the async threads; a few blocks at a time.
    ///
    /// # Errors
    /// [`ModelError::ShuttingDown`], [`ModelError::Damaged`].
    pub async fn encode(&self, plain: Bytes) -> Result<Encoded, ModelError> {
        let turn = self.encodings.clone().acquire_owned().await.map_err(|_closed| ModelError::ShuttingDown)?;
        let compression = self.compression;
        let work = offload::offload(&*self.offload, move || {
            let plain_len = plain.len() as u64;
            let hash = BlockHash::of(&plain);
            let encoded = StoredBlock::compress(plain, compression).map(|stored| Encoded { hash, plain_len, stored });
            drop(turn);
            encoded
        });
        let encoded = work.await.map_err(|_lost| ModelError::ShuttingDown)?;
        encoded.map_err(|error| ModelError::Damaged(error.to_string()))
    }

    /// Stores a block and a version's reference to it at a write quorum of its owners. The others go on receiving it while there is
    /// room for that; else they are told of the reference, and fetch it.
    ///
    /// # Errors
    /// [`ModelError::BlockNotStored`].
    pub async fn put(&self, block: Encoded, version: VersionId, origin: &Origin) -> Result<(), ModelError> {
        let permit = self.cluster.begin_write();
        let sets = permit.layout().write_sets(Placement::from(block.hash));
        let quorum = self.cluster.quorums().write;
        let request = PutBlock {
            layout: permit.layout().version(),
            hash: block.hash,
            version,
            encoding: block.stored.encoding(),
            plain_len: block.stored.plain_len(),
            origin: Some(origin.clone()),
        };
        // Known now: what is told late is refused by owners that have forgotten meanwhile that the version was deleted.
        let epoch = self.local.tables.known_epoch(BlockRefTable::ID, &block.hash.into());
        let reference = Entry { epoch, ..BlockRefTable::entry(&BlockRefRow::live(block.hash, version), Mode::Replicate) };
        let reference = Write { layout: permit.layout().version(), entries: vec![reference] };
        let reached = Arc::new(Reached::default());
        let call = |node: NodeId| {
            let message = Message { body: request.clone(), data: block.stored.bytes().clone() };
            let (cluster, reached, lingering) = (self.cluster.clone(), reached.clone(), self.lingering.clone());
            let reference = reference.clone();
            async move {
                let bytes = message.data.len();
                let sent = cluster.mesh().call(node, message, cluster.timeouts().bulk);
                match answer_in_room(sent, &reached, || lingering.room(node, bytes)).await {
                    Some(answer) => answer.map(drop),
                    None => cluster.call(node, reference).await.map(drop),
                }
            }
        };
        let stored = self.cluster.write(&permit, &sets, quorum, call).await;
        reached.tell();
        stored.map(drop).map_err(|source| ModelError::BlockNotStored { hash: block.hash, source: Box::new(source) })
    }

    /// Registers a version's reference to a block that a write quorum of its owners has already.
    ///
    /// # Errors
    /// [`ModelError::BlockNotStored`]: too few have it; the reference may then be stored at some of them.
    pub async fn refer(&self, hash: BlockHash, version: VersionId, origin: &Origin) -> Result<(), ModelError> {
        let permit = self.cluster.begin_write();
        let sets = permit.layout().write_sets(Placement::from(hash));
        let quorum = self.cluster.quorums().write;
        let request = ReferBlock { layout: permit.layout().version(), hash, version, origin: Some(origin.clone()) };
        let call = |node: NodeId| {
            let (cluster, request) = (self.cluster.clone(), request.clone());
            async move { cluster.call(node, request).await.map(drop) }
        };
        let stored = self.cluster.write(&permit, &sets, quorum, call).await;
        stored.map(drop).map_err(|source| ModelError::BlockNotStored { hash, source: Box::new(source) })
    }

    /// The plain content of a block, from this node if it can, else from the nearest node that has it.
    ///
    /// # Errors
    /// [`ModelError::BlockUnavailable`] with the last node's error.
    pub async fn get(&self, hash: BlockHash) -> Result<Bytes, ModelError> {
        self.get_wanted(hash, None, Room::Held).await
    }

    /// A part of the plain content of a block, in memory of its own.
    ///
    /// # Errors
    /// As [`Blocks::get`], also when the block has fewer bytes.
    pub async fn get_range(&self, hash: BlockHash, range: Range<u64>) -> Result<Bytes, ModelError> {
        self.get_wanted(hash, Some(range), Room::Held).await
    }

    /// As [`Blocks::get_range`], for a reader that has no room for the block: a few at a time.
    ///
    /// # Errors
    /// As [`Blocks::get_range`].
    pub(crate) async fn get_piece(&self, hash: BlockHash, range: Range<u64>) -> Result<Bytes, ModelError> {
        self.get_wanted(hash, Some(range), Room::None).await
    }

    /// `wanted`: a part, or the whole.
    async fn get_wanted(&self, hash: BlockHash, wanted: Option<Range<u64>>, room: Room) -> Result<Bytes, ModelError> {
        let mut last = no_owner();
        for node in self.holders(hash) {
            let is_here = node == self.cluster.node_id();
            let turns = if is_here { &self.pieces_here } else { &self.pieces_elsewhere };
            let _turn = match room {
                Room::Held => None,
                Room::None => Some(turns.acquire().await.map_err(|_closed| ModelError::ShuttingDown)?),
            };
            let got = match wanted.clone() {
                Some(range) if is_here => self.local.read_range(hash, range).await,
                None if is_here => self.local.read(hash).await,
                Some(range) => self.get_part_from(node, hash, range).await,
                None => self.get_from(node, hash).await.map(|(_stored, plain)| plain),
            };
            match got {
                Ok(plain) => return Ok(plain),
                Err(error) => {
                    tracing::warn!(%hash, %node, %error, "block not available from this node");
                    last = error;
                }
            }
        }
        Err(ModelError::BlockUnavailable { hash, source: Box::new(last) })
    }

    /// A block as stored, verified, from the nearest other node that has it.
    ///
    /// # Errors
    /// As [`Blocks::get`].
    pub async fn fetch(&self, hash: BlockHash) -> Result<StoredBlock, ModelError> {
        let mut last = no_owner();
        let others = self.holders(hash).into_iter().filter(|node| *node != self.cluster.node_id());
        for node in others {
            match self.get_from(node, hash).await {
                Ok((stored, _plain)) => return Ok(stored),
                Err(error) => {
                    tracing::debug!(%hash, %node, %error, "block not available from this node");
                    last = error;
                }
            }
        }
        Err(ModelError::BlockUnavailable { hash, source: Box::new(last) })
    }

    /// The nodes that may have a block: those to read from first, then the other owners of live layout versions, then those of
    /// versions still remembered, whose blocks may not have moved yet. Of each, the nearest first; whoever is down comes last.
    pub fn holders(&self, hash: BlockHash) -> Vec<NodeId> {
        let (layout, placement) = (self.cluster.layout(), Placement::from(hash));
        let writes = layout.write_sets(placement).into_iter().flatten().collect();
        let mut holders: Vec<NodeId> = Vec::new();
        for nodes in [layout.read_nodes(placement).to_vec(), writes, layout.past_nodes(placement)] {
            for node in self.cluster.nearest_first(nodes) {
                if !holders.contains(&node) {
                    holders.push(node);
                }
            }
        }
        holders.sort_by_key(|node| !self.cluster.mesh().is_up(*node));
        holders
    }

    async fn get_from(&self, node: NodeId, hash: BlockHash) -> Result<(StoredBlock, Bytes), RpcError> {
        let message = Message::from(GetBlock { hash, wanted: None });
        let reply = self.cluster.mesh().call(node, message, self.cluster.timeouts().bulk).await?;
        self.verify(hash, reply).await
    }

    /// Asks a node for a part of a block. Its hash says nothing about a part: the node that reads it has the checksums.
    async fn get_part_from(&self, node: NodeId, hash: BlockHash, wanted: Range<u64>) -> Result<Bytes, RpcError> {
        let message = Message::from(GetBlock { hash, wanted: Some(wanted.clone()) });
        let reply = self.cluster.mesh().call(node, message, self.cluster.timeouts().bulk).await?;
        if !reply.body.is_part {
            let (_stored, plain) = self.verify(hash, reply).await?;
            return cut(plain, wanted);
        }
        let wanted = wanted.end.saturating_sub(wanted.start);
        if reply.data.len() as u64 == wanted {
            Ok(reply.data)
        } else {
            Err(RpcError::new(ErrorCode::Corrupt, format!("a part of a block has {} bytes, not {wanted}", reply.data.len())))
        }
    }

    async fn verify(&self, hash: BlockHash, reply: Message<BlockHeader>) -> Result<(StoredBlock, Bytes), RpcError> {
        let corrupt = |error: garage_block::ContentError| RpcError { code: ErrorCode::Corrupt, message: error.to_string() };
        let block = StoredBlock::new(reply.body.encoding, reply.body.plain_len, reply.data).map_err(corrupt)?;
        let verified = offload::offload(&*self.offload, move || block.verify(hash).map(|plain| (block, plain))).await;
        verified.map_err(|lost| RpcError::new(ErrorCode::Internal, lost.to_string()))?.map_err(corrupt)
    }
}

/// What is wanted of a block, without keeping the rest in memory.
fn cut(plain: Bytes, wanted: Range<u64>) -> Result<Bytes, RpcError> {
    let Range { start, end } = wanted;
    let part = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(start, end)| plain.get(start..end));
    let too_short = || RpcError::new(ErrorCode::Corrupt, format!("a block has {} bytes, not {end}", plain.len()));
    part.map(Bytes::copy_from_slice).ok_or_else(too_short)
}

fn no_owner() -> RpcError {
    RpcError { code: ErrorCode::Unavailable, message: "no other node owns it".to_owned() }
}
