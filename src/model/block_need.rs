//! How nodes settle where a block should be: asking its owners whether they need it, and giving it to those who do.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_block::resync::Answer;
use garage_block::{BlockError, Encoding, StoredBlock, Written};
use garage_db::{DbError, Snapshot};
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::{ErrorCode, RpcError};
use garage_table::TableError;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BlockHash, NodeId, Placement, Timestamp, chain, offload};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::block_ref::RefCount;
use crate::blocks::{BlockService, block_error};

/// Blocks asked about in one call.
pub const ASKED_MAX: usize = 256;
/// For how long blocks are read to answer one call, whose sender waits; of the others nothing is said, and they are asked about again.
const READING_MAX: Duration = Duration::from_secs(3);
/// Who is told that a block is needed gives it within this time, or not at all.
const GIVEN_WITHIN_MS: u64 = 2 * 60_000;

/// "Do you need these blocks?"
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskNeeds {
    /// The caller's layout version: who goes by another one may not know what it owns.
    #[serde(rename = "l")]
    pub layout: u64,
    /// At most [`ASKED_MAX`].
    #[serde(rename = "b")]
    pub blocks: Vec<BlockHash>,
}

/// One for each block asked about, in that order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Needs {
    #[serde(rename = "n")]
    pub needs: Vec<Need>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Need {
    #[serde(rename = "n")]
    Needed,
    #[serde(rename = "h")]
    HasIt,
    #[serde(rename = "r")]
    Released {
        /// Milliseconds since the last reference went.
        #[serde(rename = "a")]
        for_ms: u64,
    },
    /// Also what a newer node may say that this one does not know.
    #[serde(rename = "?", other)]
    CannotSay,
}

impl From<Need> for Answer {
    fn from(need: Need) -> Self {
        match need {
            Need::Needed => Answer::Needed,
            Need::HasIt => Answer::HasIt,
            Need::Released { for_ms } => Answer::NotNeeded { released_for_ms: for_ms },
            Need::CannotSay => Answer::CannotSay,
        }
    }
}

impl Request for AskNeeds {
    const ENDPOINT: &'static str = "block.needs/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Needs;
}

/// "Here is a block that you needed" (attached).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GiveBlock {
    #[serde(rename = "h")]
    pub hash: BlockHash,
    #[serde(rename = "e")]
    pub encoding: Encoding,
    #[serde(rename = "z")]
    pub plain_len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockGiven {
    #[serde(rename = "s")]
    Stored,
    #[serde(rename = "p")]
    AlreadyPresent,
    /// No reference is left.
    #[serde(rename = "n")]
    NotNeeded,
}

impl Request for GiveBlock {
    const ENDPOINT: &'static str = "block.give/1";
    const CLASS: Class = Class::Bulk;
    type Reply = BlockGiven;
}

/// As far as there being a file says anything.
fn said_of_file(block: BlockHash, is_there: Result<bool, BlockError>) -> Need {
    match is_there {
        Ok(true) => Need::HasIt,
        Ok(false) => Need::Needed,
        Err(error) => {
            tracing::warn!(%block, error = %chain(&error), "another node asks about a block, and the disk does not answer");
            Need::CannotSay
        }
    }
}

/// What a count says at `now`.
pub(crate) fn need_of(count: Option<RefCount>, now: Timestamp) -> Option<Need> {
    match count {
        Some(RefCount { count: 1.., .. }) => None,
        Some(RefCount { released_at, .. }) => {
            Some(Need::Released { for_ms: now.as_millis().saturating_sub(released_at.as_millis()) })
        }
        // Forgotten counts were at zero for long.
        None => Some(Need::Released { for_ms: u64::MAX }),
    }
}

impl BlockService {
    /// References to blocks on this node.
    pub(crate) async fn counts(&self, blocks: &[BlockHash]) -> Result<Vec<Option<RefCount>>, TableError> {
        let (tree, blocks) = (self.trees.counts, blocks.to_vec());
        let read = move |tx: &Snapshot<'_>| {
            let count = |block: &BlockHash| {
                let bytes: Option<Vec<u8>> = tx.get(tree, block.as_bytes())?;
                // A damaged count is taken as a live reference: the block stays.
                let damaged = RefCount { count: 1, released_at: Timestamp::ZERO };
                Ok(bytes.map(|bytes| RefCount::decode(&bytes).unwrap_or(damaged)))
            };
            blocks.iter().map(count).collect::<Result<Vec<_>, DbError>>()
        };
        Ok(self.tables.db().read(read).await?)
    }

    async fn needs(&self, asking: NodeId, request: AskNeeds) -> Result<Needs, RpcError> {
        if request.blocks.len() > ASKED_MAX {
            return Err(RpcError::new(ErrorCode::BadRequest, format!("at most {ASKED_MAX} blocks can be asked about at once")));
        }
        if !self.may_delete.knows_references() || request.layout != self.layout.current().version() {
            return Ok(Needs { needs: vec![Need::CannotSay; request.blocks.len()] });
        }
        let counts = self.counts(&request.blocks).await?;
        let (now, began) = (self.clock.now(), Instant::now());
        let layout = self.layout.current();
        let mut needs = Vec::with_capacity(counts.len());
        for (block, count) in request.blocks.into_iter().zip(counts) {
            needs.push(match need_of(count, now) {
                Some(released) => released,
                // An owner keeps its copy while there are references, whatever is said of the bytes.
                None if layout.is_owner(asking, Placement::from(block)) || is_planted(Bug::HasItUnread) => {
                    said_of_file(block, self.blocks.contains(block).await)
                }
                None if began.elapsed() > READING_MAX => Need::CannotSay,
                None => self.need_of_unread(block).await,
            });
        }
        Ok(Needs { needs })
    }

    /// What to say of a block that is referred to here to a node that deletes its copy once all owners have it. A file is no answer: its
    /// disk may not give it back.
    async fn need_of_unread(&self, block: BlockHash) -> Need {
        match self.blocks.verify(block).await {
            Ok(()) => {
                self.found_good(block).await;
                Need::HasIt
            }
            Err(BlockError::Missing { .. } | BlockError::Corrupt { .. }) => Need::Needed,
            Err(error) => {
                tracing::warn!(%block, error = %chain(&error), "another node is told that a block cannot be read here, so that it keeps its copy");
                // By then it may have been given.
                self.look_after(block, self.clock.now().plus_millis(GIVEN_WITHIN_MS)).await;
                if error.is_of_disk() { Need::Needed } else { Need::CannotSay }
            }
        }
    }

    async fn take(&self, hash: BlockHash, block: StoredBlock) -> Result<BlockGiven, RpcError> {
        // Held until the bytes are durable: the last reference may go meanwhile.
        let locked = self.blocks.lock(hash).await;
        let counts = self.counts(&[hash]).await?;
        if counts.into_iter().all(|count| need_of(count, self.clock.now()).is_some()) {
            return Ok(BlockGiven::NotNeeded);
        }
        let written = locked.write(block).await.map_err(block_error)?;
        drop(locked);
        self.found_good(hash).await;
        Ok(match written {
            Written::New => BlockGiven::Stored,
            Written::AlreadyPresent => BlockGiven::AlreadyPresent,
        })
    }
}

impl Handler<AskNeeds> for BlockService {
    fn handle(&self, caller: Caller, request: Message<AskNeeds>) -> BoxFuture<'static, Result<Message<Needs>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.needs(caller.node, request.body).await?.into()) }.boxed()
    }
}

impl Handler<GiveBlock> for BlockService {
    fn handle(&self, _caller: Caller, request: Message<GiveBlock>) -> BoxFuture<'static, Result<Message<BlockGiven>, RpcError>> {
        let service = self.clone();
        async move {
            let Message { body: GiveBlock { hash, encoding, plain_len }, data } = request;
            let block = StoredBlock::new(encoding, plain_len, data)
                .map_err(|error| RpcError::new(ErrorCode::BadRequest, error.to_string()))?;
            let arrived = block.clone();
            offload::offload(&*service.offload, move || arrived.verify(hash).map(drop))
                .await
                .map_err(|lost| RpcError::new(ErrorCode::Internal, lost.to_string()))?
                .map_err(|error| RpcError::new(ErrorCode::Corrupt, error.to_string()))?;
            Ok(service.take(hash, block).await?.into())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use super::{Need, need_of};
    use crate::block_ref::RefCount;

    #[test]
    fn an_owner_says_for_how_long_it_has_not_needed_a_block() {
        let now = Timestamp::from_millis(1000);
        let count = |count, released| Some(RefCount { count, released_at: Timestamp::from_millis(released) });
        assert_eq!(need_of(count(1, 0), now), None, "it needs it");
        assert_eq!(need_of(count(0, 400), now), Some(Need::Released { for_ms: 600 }));
        assert_eq!(need_of(count(0, 2000), now), Some(Need::Released { for_ms: 0 }), "a clock that went back");
        assert_eq!(need_of(None, now), Some(Need::Released { for_ms: u64::MAX }));
    }
}
