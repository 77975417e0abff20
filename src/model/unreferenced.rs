//! Block files that no reference counts: how they are noticed, and queued to be given back.
//!
//! A block's file is on the disk before its reference is in the database. So a file may stay that nothing refers to:
//! - the reference was released before the block came, since its version was listed, and given up, earlier. The owner queues the block
//!   in the transaction that finds this ([`crate::block_ref`]);
//! - the reference could not be stored, or whoever sent the block hung up in between. The block is told of here ([`Writing`]) and queued;
//! - the process, or the machine, died in between. After each start all files are compared with the counts, a page at a time.
//!
//! Must stay true: nothing is deleted here. A queued block is decided on as every other one: under its lock, once all owners have said
//! that they need it no more ([`crate::resync`]). Where the database lacks rows that no other node has, none of these files is queued: the
//! lost rows may refer to them ([`garage_table::store::TableStore::lacks_rows`]).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
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
    /// Files that stay because the database that was lost may have known them.
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
    async fn queue_uncounted(&self, blocks: &[BlockHash]) -> Result<u64, ModelError> {
        let counts = self.0.local.blocks.counts(blocks).await?;
        let uncounted: Vec<BlockHash> =
            blocks.iter().zip(counts).filter(|(_block, count)| count.is_none()).map(|(block, _count)| *block).collect();
        if self.0.local.tables.lacks_rows() {
            self.0.local.blocks.uncounted.0.strange.fetch_add(uncounted.len() as u64, Ordering::Relaxed);
            return Ok(0);
        }
        self.queue_unreferenced(&uncounted).await
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

    /// How many block files are known here that nothing refers to: those that wait to be given back, and those that stay because the
    /// database may not be theirs.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn unreferenced_blocks(&self) -> Result<u64, ModelError> {
        let queued = self.resync_queue_counts().await?.unreferenced;
        let strange =
            if self.0.local.tables.lacks_rows() { self.0.local.blocks.uncounted.0.strange.load(Ordering::Relaxed) } else { 0 };
        Ok(queued + strange)
    }
}

/// The comparison of the files with the counts.
struct Comparison {
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
        // A node that may lack rows it has to have, or that knows no owners, cannot tell.
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
                self.garage.0.local.blocks.uncounted.0.strange.store(0, Ordering::Relaxed);
                self.comparison.insert(Comparison { from: BlockHash::from_bytes([0; 32]), looked_at: 0 })
            }
        };
        let page = self.garage.0.local.blocks.blocks.page(comparison.from, STEP_FILES).await?;
        self.found += self.garage.queue_uncounted(&page.hashes).await?;
        comparison.looked_at += page.hashes.len() as u64;
        match page.next {
            Some(from) => comparison.from = from,
            None => {
                self.is_compared = true;
                let strange = self.garage.0.local.blocks.uncounted.0.strange.load(Ordering::Relaxed);
                if strange > 0 {
                    tracing::warn!(
                        files = strange,
                        "block files that the database does not know stay, since it is not the one that they were written under and no other node can be asked about them (garage repair --yes lost-blocks gives them up)"
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
