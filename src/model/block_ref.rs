//! The block reference table: which versions need a block. Placed like the block itself, so that an owner counts its own references.
//!
//! Must stay true: the count of a block is the number of its live references here, changed in the same transaction; when it falls to
//! zero the time is noted, and only a later check with every owner may delete the block; when it leaves zero without the bytes, the
//! block is queued to be fetched; when a reference comes with the bytes and has been released before, they are queued to be given back.

use garage_db::{DbError, Tree};
use garage_table::error::TableError;
use garage_table::schema::{Admission, Admit, ReplacedBy};
use garage_table::transaction::RowTransaction;
use garage_table::wire::TableId;
use garage_table::{Replication, Schema};
use garage_types::codec::{self, Format};
use garage_types::crdt::Crdt;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BlockHash, Placement, Timestamp, VersionId};
use serde::{Deserialize, Serialize};

use crate::fresh_refs::{FreshReference, FreshReferences};
use crate::presence::Presence;
use crate::resync_queue::{Queued, Reason};
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

/// The trees beside the table: counts by block, blocks to look at by due time, and those that failed.
#[derive(Clone, Copy, Debug)]
pub struct BlockTrees {
    pub counts: Tree,
    /// See [`crate::resync_queue`].
    pub resync: Tree,
    pub errors: Tree,
    /// References whose contents are not settled yet.
    pub fresh: FreshReferences,
    /// After how long without references a block may be deleted.
    pub release_delay_ms: u64,
}

/// After how long a block whose first reference came without its bytes is looked for.
pub const FETCH_DELAY_MS: u64 = 30_000;

/// Blocks whose bytes are here, or being made durable, while a reference to them is stored: nobody has to look for them.
pub type Arriving = Presence<BlockHash>;

impl BlockTrees {
    /// # Errors
    /// The metadata engine's.
    pub fn count(&self, tx: &mut RowTransaction<'_, '_>, block: &BlockHash) -> Result<Option<RefCount>, DbError> {
        Ok(tx.raw().get(self.counts, block.as_bytes())?.and_then(|bytes| RefCount::decode(&bytes)))
    }

    /// A block came with a reference that was released before. Unless another one holds it, it is queued to be given back.
    fn useless(&self, tx: &mut RowTransaction<'_, '_>, block: &BlockHash) -> Result<(), DbError> {
        if self.count(tx, block)?.is_some_and(|present| present.count > 0) || is_planted(Bug::UncountedFilesForgotten) {
            return Ok(());
        }
        let due = tx.now().plus_millis(self.release_delay_ms);
        self.enqueue(tx.raw(), &Queued::new(due, *block, Reason::Unreferenced))
    }

    /// Counts the references to a block anew, and sets the count right. One that cannot be read counts as live, until it is repaired.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) fn recount(&self, tx: &mut RowTransaction<'_, '_>, block: &BlockHash) -> Result<Recounted, TableError> {
        let mut count = 0;
        tx.each_under::<BlockRefTable>(&(*block).into(), &mut |row| count += u64::from(row.is_none_or(|row| !row.deleted)))?;
        let stored: Option<Vec<u8>> = tx.raw().get(self.counts, block.as_bytes())?;
        let known = stored.as_deref().map(RefCount::decode);
        if matches!(known, Some(Some(known)) if known.count == count) || (known.is_none() && count == 0) {
            return Ok(Recounted::Right);
        }
        let now = tx.now();
        let released_at = if count == 0 { now } else { Timestamp::ZERO };
        tx.raw().insert(self.counts, block.as_bytes(), &RefCount { count, released_at }.encode())?;
        let queued = match count {
            0 => Queued::new(now.plus_millis(self.release_delay_ms), *block, Reason::Released),
            _ => Queued::new(now, *block, Reason::Fetch),
        };
        self.enqueue(tx.raw(), &queued)?;
        Ok(Recounted::Wrong)
    }

    fn change(&self, tx: &mut RowTransaction<'_, '_>, block: &BlockHash, by: i64, bytes: Bytes) -> Result<(), DbError> {
        let before = self.count(tx, block)?.map_or(0, |present| present.count);
        let count = before.saturating_add_signed(by);
        let now = tx.now();
        let released_at = if count == 0 { now } else { Timestamp::ZERO };
        tx.raw().insert(self.counts, block.as_bytes(), &RefCount { count, released_at }.encode())?;
        let queued = match (before, count, bytes) {
            (_, 0, _) => Queued::new(now.plus_millis(self.release_delay_ms), *block, Reason::Released),
            (0, _, Bytes::Unknown) => Queued::new(now.plus_millis(FETCH_DELAY_MS), *block, Reason::Fetch),
            _ => return Ok(()),
        };
        self.enqueue(tx.raw(), &queued)
    }
}

/// What a block's count was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recounted {
    Right,
    /// It has been set right.
    Wrong,
}

/// Whether the bytes of a block are known to be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    Here,
    Unknown,
}

/// The block reference table.
#[derive(Debug)]
pub struct BlockRefTable {
    pub trees: BlockTrees,
    pub arriving: Arriving,
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

    /// A new reference that says whose it is, in the place of a condition, is looked at again after a while.
    fn admit(&self, tx: &mut RowTransaction<'_, '_>, row: &mut BlockRefRow, how: Admit<'_>) -> Result<Admission, TableError> {
        let comes_with_bytes = self.arriving.contains(&row.block);
        if row.deleted || (how.condition.is_none() && !comes_with_bytes) {
            return Ok(Admission::Merge);
        }
        let present = tx.row::<BlockRefTable>(&row.block.into(), row.version.as_bytes())?;
        match (present, how.condition) {
            (None, Some(origin)) => {
                let origin = codec::decode(origin).map_err(|source| TableError::Row { table: Self::NAME, source })?;
                let arrived = tx.now();
                self.trees.fresh.add(tx.raw(), &FreshReference { block: row.block, version: row.version, arrived, origin })?;
            }
            (Some(present), _) if present.deleted && comes_with_bytes => self.trees.useless(tx, &row.block)?,
            (None | Some(_), _) => {}
        }
        Ok(Admission::Merge)
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
            by => {
                let bytes = if self.arriving.contains(&row.block) { Bytes::Here } else { Bytes::Unknown };
                Ok(self.trees.change(tx, &row.block, by, bytes)?)
            }
        }
    }

    fn dropped(&self, tx: &mut RowTransaction<'_, '_>, row: &BlockRefRow) -> Result<(), TableError> {
        match count_change(Some(row), None) {
            0 => Ok(()),
            by => Ok(self.trees.change(tx, &row.block, by, Bytes::Here)?),
        }
    }

    /// Also by itself: while it could not be read, another one may have been replaced and it counted as live.
    fn derive_anew(&self, tx: &mut RowTransaction<'_, '_>, placement: &Placement, _by: ReplacedBy) -> Result<(), TableError> {
        self.trees.recount(tx, &BlockHash::from_bytes(*placement.as_bytes())).map(drop)
    }

    fn is_collectable(row: &BlockRefRow) -> bool {
        row.deleted
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
