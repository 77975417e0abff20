//! Block files that no reference counts: how they are noticed, and queued to be given back.
//!
//! A block's file is on the disk before its reference is in the database. So a file may stay that nothing refers to:
//! - the reference was released before the block came, since its version was listed, and given up, earlier. The owner queues the block
//!   in the transaction that finds this ([`crate::block_ref`]);
//! - the reference could not be stored, or whoever sent the block hung up in between. The block is told of here ([`Writing`]) and queued;
//! - the process, or the machine, died in between. After each start all files are compared with the counts, a page at a time.
//!
//! Must stay true: nothing is deleted here. A queued block is decided on as every other one: under its lock, once all owners have said
//! that they need it no more ([`crate::resync`]). A node that has no other owner to ask, and whose database knew of no block when it first
//! saw these files, queues none of them: more likely that is not the database they belong to.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_table::TableError;
use garage_types::BlockHash;
use garage_types::planted::{Bug, is_planted};
use garage_worker::{Status, Step, StepError, Worker};
use tokio::sync::Notify;

use crate::block_ref::RefCount;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::resync_queue::{Queued, Reason};

/// Files compared with the counts in one step, and those that share their directory with the last.
const STEP_FILES: usize = 500;
/// How often it is looked whether the comparison may begin.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// Blocks that were written here and whose reference is perhaps not stored. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Uncounted(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// At most the blocks whose writers hung up since the worker last looked.
    left: Mutex<BTreeSet<BlockHash>>,
    told: Notify,
    /// Files that stay because the database may not be theirs.
    strange: AtomicU64,
}

impl Uncounted {
    /// A block's file is about to be written. Unless its reference is stored then, it is looked at.
    pub(crate) fn writing(&self, block: BlockHash) -> Writing {
        Writing { uncounted: self.clone(), block: Some(block) }
    }

    /// Every change under this lock is one insertion, or all are taken.
    fn left(&self) -> MutexGuard<'_, BTreeSet<BlockHash>> {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, blocks: impl IntoIterator<Item = BlockHash>) {
        self.left().extend(blocks);
        self.0.told.notify_one();
    }
}

/// Held while a block's file and its reference are stored.
pub(crate) struct Writing {
    uncounted: Uncounted,
    block: Option<BlockHash>,
}

impl Writing {
    /// Its reference is in the database, or there is no file.
    pub(crate) fn seen_to(mut self) {
        self.block = None;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.uncounted.tell([block]);
        }
    }
}

/// Whether the files of this node are those that its database counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Files {
    Own,
    /// They were there when the database knew of no block.
    Strange,
}

/// Where it is recorded, once for each database.
#[derive(Clone, Copy, Debug)]
pub struct FilesKnown(pub Tree);

const FILES_KEY: &[u8] = b"files";
const OWN: &[u8] = b"own";
const STRANGE: &[u8] = b"strange";

impl FilesKnown {
    fn get(&self, tx: &Snapshot<'_>) -> Result<Option<Files>, DbError> {
        Ok(tx.get(self.0, FILES_KEY)?.map(|bytes: Vec<u8>| if bytes == OWN { Files::Own } else { Files::Strange }))
    }

    fn set(&self, tx: &mut Transaction<'_>, files: Files) -> Result<(), DbError> {
        let bytes = match files {
            Files::Own => OWN,
            Files::Strange => STRANGE,
        };
        tx.insert(self.0, FILES_KEY, bytes)
    }
}

impl Garage {
    /// Queues those of some files that nothing refers to. Returns how many there are, queued or not.
    async fn queue_unreferenced(&self, blocks: &[BlockHash]) -> Result<u64, ModelError> {
        if is_planted(Bug::UncountedFilesForgotten) {
            return Ok(0);
        }
        let counts = self.0.local.blocks.counts(blocks).await?;
        let is_unreferenced = |count: &Option<RefCount>| count.is_none_or(|count| count.count == 0);
        let found: Vec<BlockHash> =
            blocks.iter().zip(counts).filter(|(_block, count)| is_unreferenced(count)).map(|(block, _count)| *block).collect();
        let due = self.0.clock.now().plus_millis(self.0.local.block_trees.release_delay_ms);
        self.queue_blocks(found.iter().map(|block| Queued::new(due, *block, Reason::Unreferenced)).collect()).await?;
        Ok(found.len() as u64)
    }

    /// Queues those files of a page of the disk that no count knows. A count of zero has queued its block itself. Returns how many.
    async fn queue_uncounted(&self, blocks: &[BlockHash], files: Files) -> Result<u64, ModelError> {
        let counts = self.0.local.blocks.counts(blocks).await?;
        let mut uncounted: Vec<BlockHash> =
            blocks.iter().zip(counts).filter(|(_block, count)| count.is_none()).map(|(block, _count)| *block).collect();
        if files == Files::Strange {
            let all = uncounted.len();
            uncounted.retain(|block| self.may_be_given_back(*block, files));
            self.0.local.blocks.uncounted.0.strange.fetch_add((all - uncounted.len()) as u64, Ordering::Relaxed);
        }
        self.queue_unreferenced(&uncounted).await
    }

    /// Whether a file that no count knows may be given back without an operator's word.
    pub(crate) fn may_be_given_back(&self, block: BlockHash, files: Files) -> bool {
        files == Files::Own || !self.0.cluster.decides_alone(&block.into())
    }

    /// Compares all files with the counts, and queues those that nothing refers to. Returns how many.
    ///
    /// # Errors
    /// [`ModelError`]; what was queued before stays queued.
    pub async fn queue_uncounted_files(&self) -> Result<u64, ModelError> {
        let mut worker = UncountedFiles::new(self.clone());
        while worker.work().await? == Step::Busy {}
        Ok(worker.found)
    }

    /// Whether the database counts the files that are here; decided when it first sees any.
    pub(crate) async fn files_known(&self) -> Result<Files, ModelError> {
        let (known, counts, db) = (self.0.local.files_known, self.0.local.block_trees.counts, self.0.local.tables.db());
        let read = move |tx: &Snapshot<'_>| {
            let mut counts_any = false;
            tx.range(counts, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |_block, _count| {
                counts_any = true;
                ControlFlow::Break(())
            })?;
            Ok::<_, DbError>((known.get(tx)?, counts_any))
        };
        let (recorded, counts_any) = db.read(read).await.map_err(TableError::Db)?;
        if let Some(files) = recorded {
            return Ok(files);
        }
        let files = if counts_any || !self.has_files().await? { Files::Own } else { Files::Strange };
        db.write::<_, DbError>(move |tx| known.set(tx, files)).await.map_err(TableError::Db)?;
        Ok(files)
    }

    async fn has_files(&self) -> Result<bool, ModelError> {
        let mut from = Some(BlockHash::from_bytes([0; 32]));
        while let Some(position) = from {
            let page = self.0.local.blocks.blocks.page(position, 1).await?;
            if !page.hashes.is_empty() {
                return Ok(true);
            }
            from = page.next;
        }
        Ok(false)
    }

    /// An operator has said that all files here which nothing refers to are superfluous.
    pub(crate) async fn own_all_files(&self) -> Result<(), ModelError> {
        let known = self.0.local.files_known;
        let own = move |tx: &mut Transaction<'_>| known.set(tx, Files::Own);
        self.0.local.tables.db().write::<_, DbError>(own).await.map_err(TableError::Db)?;
        self.0.local.blocks.uncounted.0.strange.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// How many block files are known here that nothing refers to: those that wait to be given back, and those that stay because the
    /// database may not be theirs.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn unreferenced_blocks(&self) -> Result<u64, ModelError> {
        let queued = self.resync_queue_counts().await?.unreferenced;
        Ok(queued + self.0.local.blocks.uncounted.0.strange.load(Ordering::Relaxed))
    }
}

/// The comparison of the files with the counts.
struct Comparison {
    files: Files,
    from: BlockHash,
    looked_at: u64,
}

/// Finds block files that no reference counts.
pub(crate) struct UncountedFiles {
    garage: Garage,
    comparison: Option<Comparison>,
    is_compared: bool,
    found: u64,
}

impl UncountedFiles {
    pub(crate) fn new(garage: Garage) -> Self {
        UncountedFiles { garage, comparison: None, is_compared: false, found: 0 }
    }

    async fn work(&mut self) -> Result<Step, ModelError> {
        let uncounted = self.garage.0.local.blocks.uncounted.clone();
        let left: Vec<BlockHash> = std::mem::take(&mut *uncounted.left()).into_iter().collect();
        if !left.is_empty() {
            let queued = self.garage.queue_unreferenced(&left).await;
            if queued.is_err() {
                uncounted.tell(left);
            }
            self.found += queued?;
            return Ok(Step::Busy);
        }
        // A node whose rows are not all there, or that knows no owners, cannot tell.
        let may_begin = self.garage.0.background.may_delete.may_delete_blocks() && !self.garage.0.cluster.layout().is_empty();
        if self.is_compared || !may_begin {
            return Ok(Step::Idle);
        }
        self.compare().await?;
        Ok(Step::Busy)
    }

    async fn compare(&mut self) -> Result<(), ModelError> {
        let comparison = match &mut self.comparison {
            Some(comparison) => comparison,
            None => {
                let files = self.garage.files_known().await?;
                self.comparison.insert(Comparison { files, from: BlockHash::from_bytes([0; 32]), looked_at: 0 })
            }
        };
        let page = self.garage.0.local.blocks.blocks.page(comparison.from, STEP_FILES).await?;
        self.found += self.garage.queue_uncounted(&page.hashes, comparison.files).await?;
        comparison.looked_at += page.hashes.len() as u64;
        match page.next {
            Some(from) => comparison.from = from,
            None => {
                self.is_compared = true;
                let strange = self.garage.0.local.blocks.uncounted.0.strange.load(Ordering::Relaxed);
                if strange > 0 {
                    tracing::warn!(
                        files = strange,
                        "block files are here that this node's database never knew of, and no other node can be asked about; they \
                         stay. If the database is the right one, \"garage repair blocks\" removes them"
                    );
                }
                if self.found > 0 {
                    tracing::info!(files = self.found, "block files that nothing refers to are given back");
                }
            }
        }
        Ok(())
    }
}

impl Worker for UncountedFiles {
    fn name(&self) -> String {
        "Unreferenced blocks".to_owned()
    }

    fn status(&self) -> Status {
        let looked_at = self.comparison.as_ref().map_or(0, |comparison| comparison.looked_at);
        Status { tranquility: Some(2), progress: Some(format!("{looked_at} ({})", self.found)), ..Status::default() }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move { Ok(self.work().await?) }.boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        let uncounted = self.garage.0.local.blocks.uncounted.clone();
        let is_compared = self.is_compared;
        async move {
            let look = async {
                if is_compared {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(LOOK_PERIOD).await;
            };
            tokio::select! {
                biased;
                () = uncounted.0.told.notified() => {}
                () = look => {}
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use garage_types::BlockHash;

    use super::Uncounted;

    #[test]
    fn a_block_whose_writer_goes_away_before_its_reference_is_stored_is_looked_at() {
        let (uncounted, block) = (Uncounted::default(), BlockHash::from_bytes([1; 32]));
        uncounted.writing(block).seen_to();
        assert!(uncounted.left().is_empty());
        drop(uncounted.writing(block));
        assert!(uncounted.left().contains(&block));
    }
}
