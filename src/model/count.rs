//! How much buckets hold, asked of the owners of their indexes, each of which counts for itself.
//!
//! What must stay true: owners count in the transactions that change the objects, so the greatest count among a read quorum misses
//! no acknowledged write. A node that owns nothing, such as a gateway, gets the same answer as an owner.

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::RpcError;
use garage_table::{TableError, TableStore};
use garage_types::BucketId;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::counters::{BucketCounters, Counts, unseal};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::IndexShard;

/// Buckets whose owners are asked at once.
const BUCKETS_IN_FLIGHT: usize = 16;

/// "What have you counted in this bucket?"
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CountBucket {
    #[serde(rename = "b")]
    bucket: BucketId,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counted {
    /// As [`Counts::encode`] has it.
    #[serde(rename = "c")]
    counts: ByteBuf,
}

impl Request for CountBucket {
    const ENDPOINT: &'static str = "model.count/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Counted;
}

/// The owner's side.
#[derive(Clone)]
pub struct CountService {
    pub counters: BucketCounters,
    pub tables: TableStore,
}

impl CountService {
    async fn count(&self, bucket: BucketId) -> Result<Counted, TableError> {
        self.tables.check_whole()?;
        let tree = self.counters.0;
        let read = move |tx: &garage_db::Snapshot<'_>| tx.get(tree, bucket.as_bytes());
        let stored: Option<Vec<u8>> = self.tables.db().read_at_once(read).await?;
        let damaged = || TableError::DamagedRow { table: "bucket_counters", row: bucket.to_string() };
        let counts = stored.map(|stored| unseal(bucket.as_bytes(), &stored).ok_or_else(damaged)).transpose()?;
        Ok(Counted { counts: counts.unwrap_or_default().encode().into() })
    }
}

impl Handler<CountBucket> for CountService {
    fn handle(&self, _caller: Caller, request: Message<CountBucket>) -> BoxFuture<'static, Result<Message<Counted>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.count(request.body.bucket).await?.into()) }.boxed()
    }
}

/// What this node's block manager has to look after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Blocks that are, or were until lately, referred to from here.
    pub counted: u64,
    /// Blocks that wait to be looked after.
    pub resync_queue: u64,
}

impl Garage {
    /// What this node's block manager has to look after.
    ///
    /// # Errors
    /// [`ModelError::Table`]: the metadata engine's.
    pub async fn block_counts(&self) -> Result<BlockCounts, ModelError> {
        let trees = self.0.local.block_trees;
        let read = move |tx: &garage_db::Snapshot<'_>| {
            Ok(BlockCounts { counted: tx.count(trees.counts)?, resync_queue: tx.count(trees.resync)? })
        };
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    /// What a bucket holds.
    ///
    /// # Errors
    /// [`ModelError::Table`]: too few owners answered.
    pub async fn bucket_counts(&self, bucket: BucketId) -> Result<Counts, ModelError> {
        let cluster = &self.0.cluster;
        let owners = cluster.layout().read_nodes(IndexShard { bucket, shard: 0 }.placement()).to_vec();
        if owners.is_empty() {
            return Err(ModelError::Table(TableError::NoLayout));
        }
        let ask = |node| {
            let cluster = cluster.clone();
            async move { cluster.call(node, CountBucket { bucket }).await }
        };
        let quorum = cluster.quorums().read;
        let replies = cluster.read(owners, quorum, ask).await.map_err(|error| TableError::Quorum(Box::new(error)))?;
        let counts = replies.into_iter().map(|answer| Counts::decode(&answer.reply.counts));
        Ok(counts.reduce(|one, other| one.max(&other)).unwrap_or_default())
    }

    /// What all buckets hold together.
    ///
    /// # Errors
    /// [`ModelError::Table`]: too few owners answered, of the buckets or of an index.
    pub async fn total_counts(&self) -> Result<Counts, ModelError> {
        let buckets = self.buckets().await?;
        let counted = stream::iter(buckets).map(|bucket| self.bucket_counts(bucket.id)).buffer_unordered(BUCKETS_IN_FLIGHT);
        counted.try_fold(Counts::default(), async |total, counts| Ok(total.plus(&counts))).await
    }
}
