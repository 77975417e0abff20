//! The block reference table: which versions need a block. Placed like the block itself, so that an owner counts its own references.
//!
//! Must stay true: the count of a block is the number of its live references here, changed in the same transaction; when it falls to
//! zero the time is noted, and only a later check with every owner may delete the block.

use garage_db::{DbError, Tree};
use garage_table::error::TableError;
use garage_table::store::RowTransaction;
use garage_table::wire::TableId;
use garage_table::{Replication, Schema};
use garage_types::codec::Format;
use garage_types::crdt::Crdt;
use garage_types::{BlockHash, Placement, Timestamp, VersionId};
use serde::{Deserialize, Serialize};

use crate::table_ids;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRefRow {
    #[serde(rename = "b")]
    pub block: BlockHash,
    #[serde(rename = "v")]
    pub version: VersionId,
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

impl BlockRefRow {
    pub fn live(block: BlockHash, version: VersionId) -> Self {
        BlockRefRow { block, version, deleted: false }
    }

    pub fn released(block: BlockHash, version: VersionId) -> Self {
        BlockRefRow { block, version, deleted: true }
    }
}

impl Format for BlockRefRow {
    const TAG: &'static str = "brf1";
}

impl Crdt for BlockRefRow {
    fn merge(&mut self, other: &Self) {
        self.deleted.merge(&other.deleted);
    }
}

/// How a change of a reference changes the block's count.
pub fn count_change(old: Option<&BlockRefRow>, new: Option<&BlockRefRow>) -> i64 {
    let live = |row: Option<&BlockRefRow>| i64::from(row.is_some_and(|row| !row.deleted));
    live(new) - live(old)
}

/// References to one block on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefCount {
    pub count: u64,
    /// When the count last fell to zero; meaningless while it is not zero.
    pub released_at: Timestamp,
}

impl RefCount {
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.count.to_be_bytes());
        bytes[8..].copy_from_slice(&self.released_at.as_millis().to_be_bytes());
        bytes
    }

    /// `None` when the bytes are not a count.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (count, released_at) = bytes.split_first_chunk::<8>()?;
        let released_at = u64::from_be_bytes(released_at.try_into().ok()?);
        Some(RefCount { count: u64::from_be_bytes(*count), released_at: Timestamp::from_millis(released_at) })
    }
}

/// The trees beside the table: counts by block, and blocks to look at by due time.
#[derive(Clone, Copy, Debug)]
pub struct BlockTrees {
    pub counts: Tree,
    /// Key: due time (8 bytes, big-endian milliseconds), then the block's hash.
    pub resync: Tree,
    /// After how long without references a block may be deleted.
    pub release_delay_ms: u64,
}

impl BlockTrees {
    /// # Errors
    /// The metadata engine's.
    pub fn count(&self, tx: &mut RowTransaction<'_, '_>, block: &BlockHash) -> Result<Option<RefCount>, DbError> {
        Ok(tx.raw().get(self.counts, block.as_bytes())?.and_then(|bytes| RefCount::decode(&bytes)))
    }

    /// Queues a block to be looked at.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn schedule(&self, tx: &mut RowTransaction<'_, '_>, block: &BlockHash, due: Timestamp) -> Result<(), DbError> {
        tx.raw().insert(self.resync, &resync_key(due, block), &[])
    }

    fn change(&self, tx: &mut RowTransaction<'_, '_>, block: &BlockHash, by: i64) -> Result<(), DbError> {
        let present = self.count(tx, block)?;
        let count = present.map_or(0, |present| present.count).saturating_add_signed(by);
        let now = tx.now();
        let released_at = if count == 0 { now } else { Timestamp::ZERO };
        tx.raw().insert(self.counts, block.as_bytes(), &RefCount { count, released_at }.encode())?;
        if count == 0 { self.schedule(tx, block, now.plus_millis(self.release_delay_ms)) } else { Ok(()) }
    }
}

/// The key of a queued block.
pub fn resync_key(due: Timestamp, block: &BlockHash) -> Vec<u8> {
    let mut key = due.as_millis().to_be_bytes().to_vec();
    key.extend_from_slice(block.as_bytes());
    key
}

/// The block reference table.
#[derive(Debug)]
pub struct BlockRefTable {
    pub trees: BlockTrees,
}

impl Schema for BlockRefTable {
    const ID: TableId = table_ids::BLOCK_REF;
    const NAME: &'static str = "block_ref";
    const REPLICATION: Replication = Replication::Sharded;
    type Row = BlockRefRow;

    fn placement(row: &BlockRefRow) -> Placement {
        row.block.into()
    }

    fn sort_key(row: &BlockRefRow) -> Vec<u8> {
        row.version.as_bytes().to_vec()
    }

    fn changed(
        &self,
        tx: &mut RowTransaction<'_, '_>,
        old: Option<&BlockRefRow>,
        new: Option<&BlockRefRow>,
    ) -> Result<(), TableError> {
        let Some(row) = new.or(old) else { return Ok(()) };
        match count_change(old, new) {
            0 => Ok(()),
            by => Ok(self.trees.change(tx, &row.block, by)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_types::{BlockHash, VersionId};

    use super::{BlockRefRow, count_change};

    #[test]
    fn only_live_references_count() {
        let (block, version) = (BlockHash::from_bytes([1; 32]), VersionId::from_bytes([2; 32]));
        let (live, released) = (BlockRefRow::live(block, version), BlockRefRow::released(block, version));
        assert_eq!(count_change(None, Some(&live)), 1);
        assert_eq!(count_change(Some(&live), Some(&released)), -1);
        assert_eq!(count_change(None, Some(&released)), 0, "a release that arrives first takes nothing away");
        assert_eq!(count_change(Some(&released), Some(&released)), 0);
    }
}
