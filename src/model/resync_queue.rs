//! The blocks of this node that are to be looked at, by due time, and those that failed: local trees, changed in the transactions of
//! whatever makes a block worth a look.
//!
//! Must stay true: a block that failed is in the queue at its next try, so that entries for it that fall due before can be dropped.

use std::ops::{Bound, ControlFlow};

use garage_block::backoff::Failures;
use garage_db::{DbError, Direction, Snapshot, Transaction};
use garage_table::TableError;
use garage_types::codec::{Format, decode, encode};
use garage_types::{BlockHash, Timestamp};
use serde::{Deserialize, Serialize};

use crate::block_ref::{BlockTrees, RefCount};
use crate::error::ModelError;
use crate::garage::Garage;

/// Why a block is to be looked at: kept to tell operators how much there is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing refers to it any more, or so it seems.
    Released,
    /// Its file is here, and no reference was ever counted, or so it seems.
    Unreferenced,
    /// This node should have it and perhaps does not.
    Fetch,
    /// This node has it and others should.
    HandOver,
}

impl Reason {
    pub(crate) fn encode(self) -> &'static [u8] {
        match self {
            Reason::Released => b"",
            Reason::Unreferenced => b"u",
            Reason::Fetch => b"f",
            Reason::HandOver => b"h",
        }
    }

    fn decode(bytes: &[u8]) -> Self {
        match bytes {
            b"u" => Reason::Unreferenced,
            b"f" => Reason::Fetch,
            b"h" => Reason::HandOver,
            _ => Reason::Released,
        }
    }
}

/// A queued block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    pub due: Timestamp,
    pub block: BlockHash,
    pub reason: Reason,
}

impl Queued {
    pub fn new(due: Timestamp, block: BlockHash, reason: Reason) -> Self {
        Queued { due, block, reason }
    }

    fn key(&self) -> Vec<u8> {
        let mut key = self.due.as_millis().to_be_bytes().to_vec();
        key.extend_from_slice(self.block.as_bytes());
        key
    }

    /// One row of the queue; `None` when it is none.
    pub fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let (due, block) = key.split_first_chunk::<8>()?;
        let block = BlockHash::from_slice(block)?;
        Some(Queued { due: Timestamp::from_millis(u64::from_be_bytes(*due)), block, reason: Reason::decode(value) })
    }
}

/// The failures of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockFailure {
    #[serde(rename = "f")]
    pub failures: Failures,
    /// The last error, for people.
    #[serde(rename = "m")]
    pub message: String,
}

impl Format for BlockFailure {
    const TAG: &'static str = "berr1";
}

/// Characters of an error that are kept.
const MESSAGE_CHARS_MAX: usize = 500;

impl BlockTrees {
    /// # Errors
    /// The metadata engine's.
    pub fn enqueue(&self, tx: &mut Transaction<'_>, queued: &Queued) -> Result<(), DbError> {
        tx.insert(self.resync, &queued.key(), queued.reason.encode())
    }

    /// # Errors
    /// The metadata engine's.
    pub fn dequeue(&self, tx: &mut Transaction<'_>, queued: &Queued) -> Result<(), DbError> {
        tx.remove(self.resync, &queued.key())
    }

    /// Records one more failure, and queues the next try.
    pub(crate) fn failed(&self, tx: &mut Transaction<'_>, queued: &Queued, message: &str, now: Timestamp) -> Result<(), DbError> {
        // A damaged record counts as none: it only decides how long to wait.
        let previous = tx.get(self.errors, queued.block.as_bytes())?.and_then(|bytes| decode::<BlockFailure>(&bytes).ok());
        let failures = Failures::after(previous.map(|failure| failure.failures), now);
        let failure = BlockFailure { failures, message: message.chars().take(MESSAGE_CHARS_MAX).collect() };
        tx.insert(self.errors, queued.block.as_bytes(), &encode(&failure))?;
        self.enqueue(tx, &Queued::new(failures.next_try(), queued.block, queued.reason))
    }

    pub(crate) fn succeeded(&self, tx: &mut Transaction<'_>, block: &BlockHash) -> Result<(), DbError> {
        match tx.get(self.errors, block.as_bytes())? {
            Some(_failure) => tx.remove(self.errors, block.as_bytes()),
            None => Ok(()),
        }
    }

    /// Forgets the failure to get a block that was found good here, and has it looked at now instead of at its next try.
    pub(crate) fn recovered(&self, tx: &mut Transaction<'_>, block: &BlockHash, now: Timestamp) -> Result<(), DbError> {
        let Some(failure) = tx.get(self.errors, block.as_bytes())? else { return Ok(()) };
        tx.remove(self.errors, block.as_bytes())?;
        // Of a damaged record the next try is not known: the block is looked at twice.
        if let Ok(BlockFailure { failures, .. }) = decode(&failure) {
            self.dequeue(tx, &Queued::new(failures.next_try(), *block, Reason::Fetch))?;
        }
        self.enqueue(tx, &Queued::new(now, *block, Reason::Fetch))
    }

    /// What a block that failed is to be tried again for.
    pub(crate) fn failed_for(&self, tx: &Snapshot<'_>, block: &BlockHash) -> Result<Option<Reason>, DbError> {
        let Some(BlockFailure { failures, .. }) = self.failure(tx, block)? else { return Ok(None) };
        let next = Queued::new(failures.next_try(), *block, Reason::Fetch);
        Ok(tx.get(self.resync, &next.key())?.map(|reason| Reason::decode(&reason)))
    }

    pub(crate) fn failure(&self, tx: &Snapshot<'_>, block: &BlockHash) -> Result<Option<BlockFailure>, DbError> {
        Ok(tx.get(self.errors, block.as_bytes())?.and_then(|bytes| decode(&bytes).ok()))
    }
}

/// A block whose last resync failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedBlock {
    pub block: BlockHash,
    /// References on this node.
    pub references: u64,
    pub failure: BlockFailure,
}

/// What is queued, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    pub released: u64,
    pub unreferenced: u64,
    pub fetch: u64,
    pub hand_over: u64,
    /// Blocks whose last try failed; they are counted above as well.
    pub failed: u64,
}

impl Garage {
    /// Queues blocks to be looked at, all in one transaction.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn queue_blocks(&self, queued: Vec<Queued>) -> Result<(), ModelError> {
        if queued.is_empty() {
            return Ok(());
        }
        let trees = self.0.local.block_trees;
        let write = move |tx: &mut Transaction<'_>| queued.iter().try_for_each(|queued| trees.enqueue(tx, queued));
        self.0.local.tables.db().write::<_, DbError>(write).await.map_err(TableError::Db)?;
        self.0.resync.wake.notify_waiters();
        Ok(())
    }

    /// The first `limit` queued blocks that are due now, whoever works on them.
    pub(crate) async fn due_blocks(&self, now: Timestamp, limit: usize) -> Result<Vec<Queued>, ModelError> {
        let tree = self.0.local.block_trees.resync;
        let end = now.next().as_millis().to_be_bytes();
        let read = move |tx: &Snapshot<'_>| {
            let mut due = Vec::new();
            tx.range(tree, (Bound::Unbounded, Bound::Excluded(&end)), Direction::Forward, &mut |key, value| {
                due.extend(Queued::decode(key, value));
                if due.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok::<_, DbError>(due)
        };
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    /// Counts what is queued and what failed.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn resync_queue_counts(&self) -> Result<QueueCounts, ModelError> {
        let trees = self.0.local.block_trees;
        let read = move |tx: &Snapshot<'_>| {
            let mut counts = QueueCounts { failed: tx.count(trees.errors)?, ..QueueCounts::default() };
            tx.range(trees.resync, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |_key, value| {
                match Reason::decode(value) {
                    Reason::Released => counts.released += 1,
                    Reason::Unreferenced => counts.unreferenced += 1,
                    Reason::Fetch => counts.fetch += 1,
                    Reason::HandOver => counts.hand_over += 1,
                }
                ControlFlow::Continue(())
            })?;
            Ok::<_, DbError>(counts)
        };
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    /// The length of the queue and of the list of failures; quicker than [`Garage::resync_queue_counts`].
    pub(crate) async fn resync_lengths(&self) -> Result<(u64, u64), ModelError> {
        let trees = self.0.local.block_trees;
        let read = move |tx: &Snapshot<'_>| Ok::<_, DbError>((tx.count(trees.resync)?, tx.count(trees.errors)?));
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    /// The blocks of this node whose last resync failed, in the order of their hashes.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn failed_blocks(&self) -> Result<Vec<FailedBlock>, ModelError> {
        let trees = self.0.local.block_trees;
        let read = move |tx: &Snapshot<'_>| {
            let mut failed = Vec::new();
            tx.range(trees.errors, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, value| {
                let failure = decode::<BlockFailure>(value).ok();
                if let (Some(block), Some(failure)) = (BlockHash::from_slice(key), failure) {
                    failed.push(FailedBlock { block, references: 0, failure });
                }
                ControlFlow::Continue(())
            })?;
            for entry in &mut failed {
                let count = tx.get(trees.counts, entry.block.as_bytes())?.as_deref().and_then(RefCount::decode);
                entry.references = count.map_or(0, |count| count.count);
            }
            Ok::<_, DbError>(failed)
        };
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    /// Forgets the failures of these blocks and queues them for now; of all that failed when `blocks` is `None`. Returns how many.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn retry_blocks(&self, blocks: Option<Vec<BlockHash>>) -> Result<usize, ModelError> {
        let blocks = match blocks {
            Some(blocks) => blocks,
            None => self.failed_blocks().await?.into_iter().map(|failed| failed.block).collect(),
        };
        let (trees, now, count) = (self.0.local.block_trees, self.0.clock.now(), blocks.len());
        let retried = blocks.clone();
        let write = move |tx: &mut Transaction<'_>| {
            blocks.iter().try_for_each(|block| {
                trees.succeeded(tx, block)?;
                trees.enqueue(tx, &Queued::new(now, *block, Reason::Fetch))
            })
        };
        self.0.local.tables.db().write::<_, DbError>(write).await.map_err(TableError::Db)?;
        retried.iter().for_each(|block| self.0.local.blocks.failed.forget(block));
        self.0.resync.wake.notify_waiters();
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use garage_types::{BlockHash, Timestamp};

    use super::{Queued, Reason};

    #[test]
    fn queued_blocks_are_ordered_by_due_time_and_keep_their_reason() {
        let block = BlockHash::from_bytes([9; 32]);
        let mut last = Vec::new();
        for (due, reason) in
            [(5, Reason::Fetch), (256, Reason::HandOver), (70_000, Reason::Released), (70_001, Reason::Unreferenced)]
        {
            let queued = Queued::new(Timestamp::from_millis(due), block, reason);
            assert_eq!(Queued::decode(&queued.key(), reason.encode()), Some(queued));
            assert!(queued.key() > last);
            last = queued.key();
        }
        assert_eq!(Queued::decode(b"short", b""), None);
    }
}
