//! What a bucket holds, asked of the nodes that count it.
//!
//! Each owner of a bucket's index counts in its own transactions, so its numbers are exact for the rows it has. One that missed
//! writes has counted less: the greatest answer of a read quorum is given.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::DbError;
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::{ErrorCode, RpcError};
use garage_table::TableError;
use garage_types::BucketId;
use serde::{Deserialize, Serialize};

use crate::counters::Counts;
use crate::error::ModelError;
use crate::garage::{Garage, LocalModel};
use crate::object::IndexShard;

/// What has this node counted in a bucket?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CountBucket {
    #[serde(rename = "b")]
    bucket: BucketId,
}

impl Request for CountBucket {
    const ENDPOINT: &'static str = "bucket.count/1";
    const CLASS: Class = Class::Metadata;
    type Reply = serde_bytes::ByteBuf;
}

impl LocalModel {
    async fn bucket_counts(&self, bucket: BucketId) -> Result<Option<Vec<u8>>, DbError> {
        let tree = self.counters.0;
        self.tables.db().read(move |tx| tx.get(tree, bucket.as_bytes())).await
    }
}

impl Handler<CountBucket> for LocalModel {
    fn handle(
        &self,
        _caller: Caller,
        request: Message<CountBucket>,
    ) -> BoxFuture<'static, Result<Message<serde_bytes::ByteBuf>, RpcError>> {
        let local = self.clone();
        async move {
            let counts = local.bucket_counts(request.body.bucket).await;
            let counts = counts.map_err(|error| RpcError::new(ErrorCode::Internal, error.to_string()))?;
            // As they are stored; nothing was ever counted: no bytes.
            Ok(Message::from(serde_bytes::ByteBuf::from(counts.unwrap_or_default())))
        }
        .boxed()
    }
}

impl Garage {
    /// What a bucket holds, as a read quorum of its owners has counted it.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn bucket_counts(&self, bucket: BucketId) -> Result<Counts, ModelError> {
        let layout = self.0.cluster.layout();
        if layout.is_empty() {
            return Err(TableError::NoLayout.into());
        }
        let owners = layout.read_nodes(IndexShard { bucket, shard: 0 }.placement()).to_vec();
        let call = |node| {
            let cluster = self.0.cluster.clone();
            async move { cluster.call(node, CountBucket { bucket }).await }
        };
        let replies = self.0.cluster.read(owners, self.0.cluster.quorums().read, call).await;
        let replies = replies.map_err(|error| TableError::Quorum(Box::new(error)))?;
        let counts = replies.iter().map(|reply| Counts::decode(&reply.reply));
        Ok(counts.reduce(|most, counts| most.max(&counts)).unwrap_or_default())
    }
}
