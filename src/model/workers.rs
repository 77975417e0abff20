//! Background work on what the tables say: sending queued deletions, giving up uploads whose coordinator is gone, deleting blocks
//! that nothing needs.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use garage_block::LockedBlock;
use garage_block::resync::{Decision, Duty, OnDisk, Refs, decide};
use garage_db::{DbError, Direction, Snapshot};
use garage_table::queue::Item;
use garage_table::table::Query;
use garage_table::wire::{Order, Projection, TableId, Verdict};
use garage_table::{Schema, Table, TableError};
use garage_types::{BlockHash, Placement, Timestamp, chain};
use std::ops::{Bound, ControlFlow};

use crate::block_ref::{RefCount, resync_key};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::part::PartTable;
use crate::table_ids;
use crate::upload::{UploadRow, UploadState, UploadTable};

/// Queued deletions sent at once.
const QUEUE_BATCH: usize = 256;
/// How long a worker rests after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(10);
/// How often blocks due for deletion are looked for.
const RESYNC_PERIOD: Duration = Duration::from_secs(10);
/// How long a block that failed is put off.
const RESYNC_RETRY_MS: u64 = 60_000;
/// Blocks looked at between two pauses.
const RESYNC_BATCH: usize = 100;

impl Garage {
    /// Runs the background work of this node until the process ends.
    pub fn start_workers(&self) {
        let spawn = self.0.cluster.spawn().clone();
        let garage = self.clone();
        spawn.spawn("queued deletions", Box::pin(async move { garage.send_queue_forever().await }));
        let garage = self.clone();
        spawn.spawn("block resync", Box::pin(async move { garage.resync_forever().await }));
        let garage = self.clone();
        spawn.spawn("upload reaper", Box::pin(async move { garage.reap_uploads_once_ready().await }));
    }

    async fn send_queue_forever(&self) {
        loop {
            match self.send_queue().await {
                Ok(0) => self.0.local.tables.queue_changed().await,
                Ok(_sent) => {}
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "queued deletions could not be sent; trying again soon");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        }
    }

    /// Sends what is queued to its owners, until the queue is empty. Returns how many deletions were sent.
    ///
    /// # Errors
    /// The first one that keeps an item from its owners; what was sent before stays sent.
    pub async fn send_queue(&self) -> Result<usize, ModelError> {
        let tables = &self.0.local.tables;
        let mut sent = 0;
        loop {
            let items = tables.queue_peek(None, QUEUE_BATCH).await?;
            if items.is_empty() {
                return Ok(sent);
            }
            let results: Vec<(Result<(), ModelError>, Item)> = stream::iter(items)
                .map(|item| async move { (self.send_item(&item).await, item) })
                .buffer_unordered(32)
                .collect()
                .await;
            let mut failure = None;
            let mut done = Vec::new();
            for (result, item) in results {
                match result {
                    Ok(()) => done.push(item),
                    Err(error) => failure = Some(error),
                }
            }
            sent += done.len();
            tables.queue_remove(done).await?;
            if let Some(error) = failure {
                return Err(error);
            }
        }
    }

    async fn send_item(&self, item: &Item) -> Result<(), ModelError> {
        let placement = item.entry.placement;
        let entries = vec![item.entry.clone()];
        let verdict = match item.entry.table {
            table_ids::VERSION => self.0.versions.write(placement, entries).await?,
            table_ids::BLOCK_REF => {
                Table::<crate::block_ref::BlockRefTable>::new(self.0.local.tables.clone(), self.0.cluster.clone())
                    .write(placement, entries)
                    .await?
            }
            table_ids::PART => return self.end_parts(&PartTable::decode(&item.entry.row)?).await,
            TableId(other) => return Err(ModelError::Damaged(format!("table {other} has no queued deletions"))),
        };
        match verdict {
            Verdict::Won => Ok(()),
            verdict => Err(ModelError::Damaged(format!("a queued deletion was answered {verdict:?}"))),
        }
    }

    /// Gives up the simple uploads that an earlier run of this node left unfinished.
    async fn reap_uploads_once_ready(&self) {
        loop {
            match self.reap_uploads().await {
                Ok(0) => return,
                Ok(count) => {
                    tracing::info!(count, "gave up uploads that an earlier run left unfinished");
                    return;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "unfinished uploads could not be given up; trying again soon");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        }
    }

    /// # Errors
    /// [`ModelError::Table`].
    pub async fn reap_uploads(&self) -> Result<usize, ModelError> {
        let (own, incarnation) = (self.0.cluster.node_id(), self.0.settings.incarnation);
        let rows = crate::buckets::all_rows::<UploadTable>(&self.0.local.tables).await?;
        // With other owners a stale row may belong to a write that one of them stored: it waits until they can be asked.
        let decidable = |row: &UploadRow| self.0.cluster.decides_alone(&row.placement());
        let stale = rows.into_iter().filter(|row| is_stale(row, own, incarnation) && decidable(row));
        let mut count = 0;
        for row in stale {
            self.0.uploads.commit(&row.with_state(UploadState::Aborted)).await?;
            count += 1;
        }
        Ok(count + self.settle_claims().await? + self.reap_parts().await?)
    }

    async fn resync_forever(&self) {
        loop {
            match self.resync_due().await {
                Ok(RESYNC_BATCH) => tokio::task::yield_now().await,
                Ok(_fewer) => tokio::time::sleep(RESYNC_PERIOD).await,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "block resync failed; trying again soon");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        }
    }

    /// Looks at the blocks whose time has come. Returns how many there were, at most a batch.
    ///
    /// A block that fails is put off, so that it holds up no other.
    ///
    /// # Errors
    /// [`ModelError::Table`]: the queue itself cannot be read or written.
    pub async fn resync_due(&self) -> Result<usize, ModelError> {
        let due = self.due_blocks().await?;
        let count = due.len();
        for (time, block) in due {
            self.resync_block(time, block).await?;
        }
        Ok(count)
    }

    async fn due_blocks(&self) -> Result<Vec<(Timestamp, BlockHash)>, ModelError> {
        let tree = self.0.local.block_trees.resync;
        let end = self.0.clock.now().next().as_millis().to_be_bytes();
        let read = move |tx: &Snapshot<'_>| {
            let mut due = Vec::new();
            tx.range(tree, (Bound::Unbounded, Bound::Excluded(&end)), Direction::Forward, &mut |key, _value| {
                if let Some((time, hash)) = key.split_first_chunk::<8>()
                    && let Some(hash) = BlockHash::from_slice(hash)
                {
                    due.push((Timestamp::from_millis(u64::from_be_bytes(*time)), hash));
                }
                if due.len() < RESYNC_BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok::<_, DbError>(due)
        };
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    async fn resync_block(&self, due: Timestamp, block: BlockHash) -> Result<(), ModelError> {
        // Held to the end: a reference that arrives meanwhile waits, and finds the block gone or staying.
        let locked = self.0.local.blocks.blocks.lock(block).await;
        let again = self.settle_block(&locked).await.unwrap_or_else(|error| {
            tracing::warn!(%block, error = %chain(&error), "a block could not be looked after; trying again later");
            Some(self.0.clock.now().plus_millis(RESYNC_RETRY_MS))
        });
        let trees = self.0.local.block_trees;
        let requeue = move |tx: &mut garage_db::Transaction<'_>| {
            tx.remove(trees.resync, &resync_key(due, &block))?;
            match again {
                Some(time) => tx.insert(trees.resync, &resync_key(time, &block), &[]),
                None => Ok::<_, DbError>(()),
            }
        };
        self.0.local.tables.db().write(requeue).await.map_err(TableError::Db)?;
        drop(locked);
        Ok(())
    }

    /// Does what is to be done about a block; returns when to look again, if at all.
    async fn settle_block(&self, locked: &LockedBlock) -> Result<Option<Timestamp>, ModelError> {
        let block = locked.hash();
        let on_disk = if locked.contains().await? { OnDisk::Present } else { OnDisk::Absent };
        let placement = Placement::from(block);
        let duty =
            if self.0.cluster.layout().is_owner(self.0.cluster.node_id(), placement) { Duty::Replica } else { Duty::NotReplica };
        let refs = self.references(block).await?;
        Ok(match decide(on_disk, refs, duty, self.0.clock.now()) {
            Decision::Drop => {
                locked.remove().await?;
                tracing::debug!(%block, "deleted a block that nothing refers to any more");
                self.forget_count(block).await?;
                None
            }
            Decision::ForgetCounter => {
                self.forget_count(block).await?;
                None
            }
            Decision::WaitUntil(until) => Some(until),
            // Other owners hold it too: asking them, and fetching from them, comes with the cluster's resync.
            Decision::AskOwners => Some(self.0.clock.now().plus_millis(self.0.local.block_trees.release_delay_ms)),
            Decision::Fetch => {
                tracing::error!(%block, "a referenced block is missing on this node");
                None
            }
            Decision::Nothing => None,
        })
    }

    async fn references(&self, block: BlockHash) -> Result<Refs, ModelError> {
        let tree = self.0.local.block_trees.counts;
        let read = move |tx: &Snapshot<'_>| tx.get(tree, block.as_bytes());
        let bytes: Option<Vec<u8>> = self.0.local.tables.db().read(read).await.map_err(TableError::Db)?;
        let damaged = || ModelError::Damaged(format!("the count of references to block {block}"));
        let count = match bytes {
            Some(bytes) => RefCount::decode(&bytes).ok_or_else(damaged)?,
            None => RefCount { count: 0, released_at: Timestamp::ZERO },
        };
        Ok(if count.count > 0 {
            Refs::Held
        } else if self.0.cluster.decides_alone(&Placement::from(block)) {
            Refs::ReleasedOnEveryOwner { until: count.released_at.plus_millis(self.0.local.block_trees.release_delay_ms) }
        } else {
            Refs::ReleasedHere
        })
    }

    async fn forget_count(&self, block: BlockHash) -> Result<(), ModelError> {
        let tree = self.0.local.block_trees.counts;
        let forget = move |tx: &mut garage_db::Transaction<'_>| {
            let count = tx.get(tree, block.as_bytes())?.as_deref().and_then(RefCount::decode);
            if count.is_some_and(|count| count.count == 0) { tx.remove(tree, block.as_bytes()) } else { Ok::<_, DbError>(()) }
        };
        Ok(self.0.local.tables.db().write(forget).await.map_err(TableError::Db)?)
    }

    /// The uploads of a bucket that are not finished, in the order of their keys; for tests and operators.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn unfinished_uploads(&self, bucket: garage_types::BucketId) -> Result<Vec<UploadRow>, ModelError> {
        let placement = crate::object::IndexShard { bucket, shard: 0 }.placement();
        let mut from = Vec::new();
        let mut open = Vec::new();
        loop {
            let query = Query { from, to: None, order: Order::Forward, limit: 1000, projection: Projection::Whole };
            let page = self.0.uploads.range(placement, query).await?;
            open.extend(page.rows.into_iter().filter(|row| matches!(row.state, UploadState::Simple(_))));
            match page.last {
                Some(mut last) => {
                    last.push(0);
                    from = last;
                }
                None => return Ok(open),
            }
        }
    }
}

/// Whether a simple upload belongs to an earlier run of this node.
fn is_stale(row: &UploadRow, own: garage_types::NodeId, incarnation: u64) -> bool {
    match &row.state {
        UploadState::Simple(simple) => simple.coordinator == own && simple.incarnation != incarnation,
        // Multipart uploads outlive the requests that work on them.
        UploadState::Multipart(_) | UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => false,
    }
}
