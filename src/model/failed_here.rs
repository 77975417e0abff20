//! Blocks that resync failed to get here, and that turn out to be good: a read verified them, or somebody wrote them.
//!
//! They are known in memory, so that a read costs no look at the database. Must stay true: what is known is bounded. A block that it does
//! not have, having come when it was full, stays listed until its next try, which is within an hour.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garage_db::{Db, DbError, Direction, Snapshot, Transaction};
use garage_types::{BlockHash, chain};

use crate::block_ref::BlockTrees;
use crate::blocks::BlockService;
use crate::resync_queue::Reason;

/// A few megabytes.
const KNOWN_MAX: usize = 1 << 16;

/// Blocks whose last resync failed when it was to get them. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct FailedHere(Arc<Mutex<BTreeSet<BlockHash>>>);

impl FailedHere {
    /// Those that the database lists.
    pub(crate) fn load(db: &Db, trees: BlockTrees) -> Result<Self, DbError> {
        let known = db.read_blocking(|tx| failed_fetches(tx, trees))?;
        Ok(FailedHere(Arc::new(Mutex::new(known))))
    }

    /// Only failed fetches: good bytes here do not mean that the block can be deleted, or given to others.
    pub(crate) fn failed(&self, block: BlockHash, reason: Reason) {
        let mut known = self.known();
        if reason == Reason::Fetch && known.len() < KNOWN_MAX {
            known.insert(block);
        }
    }

    pub(crate) fn forget(&self, block: &BlockHash) {
        self.known().remove(block);
    }

    fn contains(&self, block: &BlockHash) -> bool {
        self.known().contains(block)
    }

    /// Every change under this lock is one insertion or removal.
    fn known(&self) -> MutexGuard<'_, BTreeSet<BlockHash>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed_fetches(tx: &Snapshot<'_>, trees: BlockTrees) -> Result<BTreeSet<BlockHash>, DbError> {
    let mut failed = Vec::new();
    tx.range(trees.errors, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, _failure| {
        failed.extend(BlockHash::from_slice(key));
        if failed.len() < KNOWN_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let mut fetches = BTreeSet::new();
    for block in failed {
        if trees.failed_for(tx, &block)? == Some(Reason::Fetch) {
            fetches.insert(block);
        }
    }
    Ok(fetches)
}

impl BlockService {
    /// A good copy of the block is here: if resync failed to get it, that is forgotten, and resync looks once more.
    pub(crate) async fn found_good(&self, block: BlockHash) {
        if !self.failed.contains(&block) {
            return;
        }
        let (trees, now) = (self.trees, self.clock.now());
        let clear = move |tx: &mut Transaction<'_>| trees.recovered(tx, &block, now);
        match self.tables.db().write::<_, DbError>(clear).await {
            Ok(()) => self.failed.forget(&block),
            Err(error) => {
                tracing::warn!(%block, error = %chain(&error), "a block that failed is good again and stays listed until its next try");
            }
        }
    }
}
