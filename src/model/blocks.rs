//! Blocks across the cluster: bytes and their references travel together, each owner stores both before it answers.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_block::{BlockError, Compression, Encoding, LocalStore, StoredBlock};
use garage_rpc::cluster::Cluster;
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request, Role};
use garage_rpc::error::{ErrorCode, RpcError};
use garage_table::wire::{Mode, Verdict, Write};
use garage_table::{Schema, TableError, TableStore};
use garage_types::{BlockHash, NodeId, Offload, Placement, VersionId, offload};
use serde::{Deserialize, Serialize};

use crate::block_ref::{BlockRefRow, BlockRefTable};
use crate::error::ModelError;

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
}

impl Request for ReferBlock {
    const ENDPOINT: &'static str = "block.refer/1";
    const CLASS: Class = Class::Metadata;
    type Reply = BlockStored;
}

/// Send a block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetBlock {
    #[serde(rename = "h")]
    hash: BlockHash,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockHeader {
    #[serde(rename = "e")]
    encoding: Encoding,
    #[serde(rename = "z")]
    plain_len: u32,
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
    pub offload: Arc<dyn Offload>,
}

impl BlockService {
    async fn put(&self, request: PutBlock, block: StoredBlock) -> Result<BlockStored, RpcError> {
        // Its reference would take of what deletions need.
        if self.tables.db().room().is_metadata_scarce() {
            return Err(TableError::NoRoom.into());
        }
        // Held until the reference is durable: nobody decides to delete the block in between.
        let locked = self.blocks.lock(request.hash).await;
        locked.write(block).await.map_err(block_error)?;
        let stored = self.refer_locked(request.layout, request.hash, request.version).await;
        drop(locked);
        stored
    }

    async fn refer(&self, request: ReferBlock) -> Result<BlockStored, RpcError> {
        // Held until the reference is durable: nobody decides to delete the block in between.
        let locked = self.blocks.lock(request.hash).await;
        if !locked.contains().await.map_err(block_error)? {
            return Err(block_error(BlockError::Missing { hash: request.hash }));
        }
        let stored = self.refer_locked(request.layout, request.hash, request.version).await;
        drop(locked);
        stored
    }

    async fn refer_locked(&self, layout: u64, hash: BlockHash, version: VersionId) -> Result<BlockStored, RpcError> {
        let reference = BlockRefTable::entry(&BlockRefRow::live(hash, version), Mode::Replicate);
        match self.tables.write(Write { layout, entries: vec![reference] }).await? {
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
        _ => ErrorCode::Internal,
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
            Ok(service.put(body, block).await?.into())
        }
        .boxed()
    }
}

impl Handler<ReferBlock> for BlockService {
    fn handle(
        &self,
        _caller: Caller,
        request: Message<ReferBlock>,
    ) -> BoxFuture<'static, Result<Message<BlockStored>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.refer(request.body).await?.into()) }.boxed()
    }
}

impl Handler<GetBlock> for BlockService {
    fn handle(&self, _caller: Caller, request: Message<GetBlock>) -> BoxFuture<'static, Result<Message<BlockHeader>, RpcError>> {
        let service = self.clone();
        async move {
            let block = service.blocks.read_stored(request.body.hash).await.map_err(block_error)?;
            let header = BlockHeader { encoding: block.encoding(), plain_len: block.plain_len() };
            Ok(Message { body: header, data: block.bytes().clone() })
        }
        .boxed()
    }
}

/// The coordinator's side: where blocks go and come from. Cheap to clone.
#[derive(Clone)]
pub struct Blocks {
    cluster: Cluster,
    local: LocalStore,
    offload: Arc<dyn Offload>,
    compression: Compression,
}

/// A block ready to be sent to its owners.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub hash: BlockHash,
    pub plain_len: u64,
    stored: StoredBlock,
}

impl Blocks {
    pub fn new(cluster: Cluster, local: LocalStore, offload: Arc<dyn Offload>, compression: Compression) -> Self {
        Blocks { cluster, local, offload, compression }
    }

    /// Hashes and compresses, off the async threads.
    pub fn encode(&self, plain: Bytes) -> impl Future<Output = Result<Encoded, ModelError>> + Send + 'static {
        let compression = self.compression;
        let work = offload::offload(&*self.offload, move || {
            let plain_len = plain.len() as u64;
            let hash = BlockHash::of(&plain);
            StoredBlock::compress(plain, compression).map(|stored| Encoded { hash, plain_len, stored })
        });
        async move {
            let encoded = work.await.map_err(|_lost| ModelError::ShuttingDown)?;
            encoded.map_err(|error| ModelError::Damaged(error.to_string()))
        }
    }

    /// Stores a block and a version's reference to it at a write quorum of its owners.
    ///
    /// # Errors
    /// [`ModelError::BlockNotStored`].
    pub async fn put(&self, block: Encoded, version: VersionId) -> Result<(), ModelError> {
        let permit = self.cluster.begin_write();
        let sets = permit.layout().write_sets(Placement::from(block.hash));
        let quorum = self.cluster.quorums().write;
        let request = PutBlock {
            layout: permit.layout().version(),
            hash: block.hash,
            version,
            encoding: block.stored.encoding(),
            plain_len: block.stored.plain_len(),
        };
        let call = |node: NodeId| {
            let message = Message { body: request.clone(), data: block.stored.bytes().clone() };
            let cluster = self.cluster.clone();
            async move { cluster.mesh().call(node, message, cluster.timeouts().bulk).await.map(drop) }
        };
        let stored = self.cluster.write(&permit, &sets, quorum, call).await;
        stored.map(drop).map_err(|source| ModelError::BlockNotStored { hash: block.hash, source: Box::new(source) })
    }

    /// Registers a version's reference to a block that a write quorum of its owners has already.
    ///
    /// # Errors
    /// [`ModelError::BlockNotStored`]: too few have it; the reference may then be stored at some of them.
    pub async fn refer(&self, hash: BlockHash, version: VersionId) -> Result<(), ModelError> {
        let permit = self.cluster.begin_write();
        let sets = permit.layout().write_sets(Placement::from(hash));
        let quorum = self.cluster.quorums().write;
        let request = ReferBlock { layout: permit.layout().version(), hash, version };
        let call = |node: NodeId| {
            let (cluster, request) = (self.cluster.clone(), request.clone());
            async move { cluster.call(node, request).await.map(drop) }
        };
        let stored = self.cluster.write(&permit, &sets, quorum, call).await;
        stored.map(drop).map_err(|source| ModelError::BlockNotStored { hash, source: Box::new(source) })
    }

    /// The plain content of a block, from this node if it can, else from the nearest owner that has it.
    ///
    /// # Errors
    /// [`ModelError::BlockUnavailable`] with the last owner's error.
    pub async fn get(&self, hash: BlockHash) -> Result<Bytes, ModelError> {
        let layout = self.cluster.layout();
        let owners = self.cluster.nearest_first(layout.read_nodes(Placement::from(hash)).to_vec());
        let mut last = RpcError { code: ErrorCode::Unavailable, message: "no node owns it".to_owned() };
        for node in owners {
            let got = if node == self.cluster.node_id() {
                self.local.read(hash).await.map_err(block_error)
            } else {
                self.get_from(node, hash).await
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

    async fn get_from(&self, node: NodeId, hash: BlockHash) -> Result<Bytes, RpcError> {
        let message = Message::from(GetBlock { hash });
        let reply = self.cluster.mesh().call(node, message, self.cluster.timeouts().bulk).await?;
        let corrupt = |error: garage_block::ContentError| RpcError { code: ErrorCode::Corrupt, message: error.to_string() };
        let block = StoredBlock::new(reply.body.encoding, reply.body.plain_len, reply.data).map_err(corrupt)?;
        let verified = offload::offload(&*self.offload, move || block.verify(hash)).await;
        verified.map_err(|lost| RpcError::new(ErrorCode::Internal, lost.to_string()))?.map_err(corrupt)
    }
}
