//! A walk over every block that this node counts or has, queueing those that are not where they should be: after the layout changed,
//! and when an operator asks for it.
//!
//! First the counts (what is referenced and absent), then the files (what is here and nothing refers to, or others own). What comes
//! or goes meanwhile queues itself.

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction, Snapshot};
use garage_table::TableError;
use garage_types::{BlockHash, Placement};

use crate::block_ref::RefCount;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::resync_queue::{Queued, Reason};

/// Blocks looked at in one step.
const STEP_BLOCKS: usize = 500;
/// Over this time the blocks that are to be handed over come up.
const HAND_OVER_SPREAD_MS: u64 = 5_000;
/// Of the hash space, in which positions are given.
const WHOLE: u64 = 1 << 16;

enum Position {
    Counts { after: Option<BlockHash> },
    Files { from: BlockHash },
    End,
}

/// How far a walk is.
pub(crate) struct BlockWalk {
    position: Position,
    pub looked_at: u64,
    pub queued: u64,
}

/// Whether a walk is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    GoesOn,
    Ended,
}

impl BlockWalk {
    pub(crate) fn new() -> Self {
        BlockWalk { position: Position::Counts { after: None }, looked_at: 0, queued: 0 }
    }

    /// `12345 (67), 34% of files`
    pub(crate) fn progress(&self) -> String {
        let at = |hash: &BlockHash| u64::from(u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])) * 100 / WHOLE;
        let part = match &self.position {
            Position::Counts { after } => format!(", {}% of counts", after.as_ref().map_or(0, at)),
            Position::Files { from } => format!(", {}% of files", at(from)),
            Position::End => String::new(),
        };
        format!("{} ({}){part}", self.looked_at, self.queued)
    }

    /// Looks at some more blocks.
    pub(crate) async fn step(&mut self, garage: &Garage) -> Result<Walk, ModelError> {
        let mut queued = Vec::new();
        let next = match &self.position {
            Position::Counts { after } => {
                let page = count_page(garage, *after).await?;
                self.looked_at += page.len() as u64;
                for (block, count) in &page {
                    queued.extend(worth_a_look(garage, *block, *count).await?);
                }
                let last = page.last().filter(|_| page.len() == STEP_BLOCKS).map(|(block, _count)| *block);
                match last {
                    Some(last) => Position::Counts { after: Some(last) },
                    None => Position::Files { from: BlockHash::from_bytes([0; 32]) },
                }
            }
            Position::Files { from } => {
                let page = garage.0.local.blocks.blocks.page(*from, STEP_BLOCKS).await?;
                self.looked_at += page.hashes.len() as u64;
                let counts = garage.0.local.blocks.counts(&page.hashes).await?;
                for (block, count) in page.hashes.into_iter().zip(counts) {
                    queued.extend(file_worth_a_look(garage, block, count));
                }
                page.next.map_or(Position::End, |from| Position::Files { from })
            }
            Position::End => return Ok(Walk::Ended),
        };
        self.queued += queued.len() as u64;
        garage.queue_blocks(queued).await?;
        self.position = next;
        Ok(if matches!(self.position, Position::End) { Walk::Ended } else { Walk::GoesOn })
    }
}

/// Some counts, behind `after`; the last page is empty or short.
pub(crate) async fn count_page(
    garage: &Garage,
    after: Option<BlockHash>,
) -> Result<Vec<(BlockHash, Option<RefCount>)>, ModelError> {
    let tree = garage.0.local.block_trees.counts;
    let read = move |tx: &Snapshot<'_>| {
        let from = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_bytes().as_slice()));
        let mut page = Vec::new();
        tx.range(tree, (from, Bound::Unbounded), Direction::Forward, &mut |key, value| {
            page.extend(BlockHash::from_slice(key).map(|block| (block, RefCount::decode(value))));
            if page.len() < STEP_BLOCKS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok::<_, DbError>(page)
    };
    Ok(garage.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
}

fn owns(garage: &Garage, block: BlockHash) -> bool {
    garage.0.cluster.layout().is_owner(garage.0.cluster.node_id(), Placement::from(block))
}

async fn worth_a_look(garage: &Garage, block: BlockHash, count: Option<RefCount>) -> Result<Option<Queued>, ModelError> {
    let now = garage.0.clock.now();
    Ok(match count {
        Some(RefCount { count: 0, released_at }) => Some(Queued::new(
            now.max(released_at.plus_millis(garage.0.local.block_trees.release_delay_ms)),
            block,
            Reason::Released,
        )),
        // A damaged count is queued too, to be listed among the failures; as is a file that the disk says nothing of.
        Some(_) | None if owns(garage, block) && !matches!(garage.0.local.blocks.blocks.contains(block).await, Ok(true)) => {
            Some(Queued::new(now, block, Reason::Fetch))
        }
        Some(_) | None => None,
    })
}

fn file_worth_a_look(garage: &Garage, block: BlockHash, count: Option<RefCount>) -> Option<Queued> {
    let now = garage.0.clock.now();
    match count {
        _ if !owns(garage, block) => Some(Queued::new(now.plus_millis(hand_over_after_ms(block)), block, Reason::HandOver)),
        // Seen with its count already.
        Some(_) => None,
        // The rows that were lost may refer to it.
        None if garage.0.local.tables.lacks_rows() => None,
        // Nobody knows since when nothing refers to it.
        None => Some(Queued::new(now.plus_millis(garage.0.local.block_trees.release_delay_ms), block, Reason::Unreferenced)),
    }
}

/// Its new owners fetch blocks by themselves meanwhile, in the order of their hashes. Handed over in another order they rarely meet.
fn hand_over_after_ms(block: BlockHash) -> u64 {
    let [.., last] = block.as_bytes();
    u64::from(*last) * HAND_OVER_SPREAD_MS / 256
}

impl Garage {
    /// Queues those of some files that should not be here, or that nothing refers to: a power cut may leave a file whose reference was
    /// not stored any more.
    ///
    /// # Errors
    /// [`ModelError`].
    pub(crate) async fn queue_stray_files(&self, hashes: &[BlockHash]) -> Result<(), ModelError> {
        let counts = self.0.local.blocks.counts(hashes).await?;
        let stray = hashes.iter().zip(counts).filter_map(|(block, count)| file_worth_a_look(self, *block, count));
        self.queue_blocks(stray.collect()).await
    }

    /// Looks at every block that this node counts or has, and queues those that are not where they should be. Returns how many.
    ///
    /// # Errors
    /// [`ModelError`]; what was queued before stays queued.
    pub async fn queue_misplaced_blocks(&self) -> Result<u64, ModelError> {
        let mut walk = BlockWalk::new();
        while walk.step(self).await? == Walk::GoesOn {}
        Ok(walk.queued)
    }
}
