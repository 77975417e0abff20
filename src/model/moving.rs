//! What this node has still to receive or to hand over, as operators see it: above all whether a node that left may be switched off.
//!
//! Reads only. Must stay true: what is counted is never less than what there is; where that is not known, it says so.

use garage_rpc::layout::ClusterLayout;
use garage_types::BlockHash;
use garage_types::hash::blake2b;

use crate::error::ModelError;
use crate::garage::Garage;
use crate::resync::BlocksToMove;
use crate::resync_queue::{Queued, Reason};

/// Blocks looked for in one step.
const PAGE_BLOCKS: usize = 500;

/// What a node has still to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moving {
    /// Names the live layout versions that this node goes by; empty without a layout.
    pub layout: String,
    pub blocks: BlocksToMove,
    /// Whether every block was looked at since the layout changed; before, `blocks` counts some of them only.
    pub counted: Counted,
    /// Whether a file of a block is here. Looked for only where this node owns nothing, and nothing is known to be left.
    pub stray_blocks: Stray,
    /// Partitions of which rows are here that belong to other nodes.
    pub partitions: u64,
    /// Deletions that their owners have not been told.
    pub queued_deletions: u64,
    /// Rows that wait for the operator's word.
    pub set_aside: u64,
}

/// How much of what there is has been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    All,
    Some,
}

/// Blocks on a node that owns none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stray {
    None,
    Found,
    NotLookedFor,
}

/// Names the live versions; empty when there are none.
pub fn layout_name(layout: &ClusterLayout) -> String {
    let mut bytes = Vec::new();
    for key in layout.live_versions() {
        bytes.extend(key.number.to_be_bytes());
        bytes.extend(format!("{:?}", key.digest).as_bytes());
    }
    if bytes.is_empty() { String::new() } else { hex::encode(&blake2b(&bytes)[..16]) }
}

impl Garage {
    /// What this node has still to move.
    ///
    /// # Errors
    /// [`ModelError`].
    pub async fn moving(&self) -> Result<Moving, ModelError> {
        let (layout, me) = (self.0.cluster.layout(), self.0.cluster.node_id());
        let name = layout_name(&layout);
        let tables = &self.0.local.tables;
        let blocks = self.blocks_to_move().await?;
        let counted = if self.0.background.walked.get().layout == name { Counted::All } else { Counted::Some };
        let is_member = layout.all_nodes().contains(&me);
        let stray_blocks = if is_member || layout.is_empty() || counted == Counted::Some || blocks.fetch + blocks.hand_over > 0 {
            Stray::NotLookedFor
        } else {
            self.look_for_blocks().await?
        };
        Ok(Moving {
            layout: name,
            blocks,
            counted,
            stray_blocks,
            partitions: tables.partitions_to_hand_over(&layout, me).await?,
            queued_deletions: tables.queue_len().await?,
            set_aside: tables.set_aside_count().await?,
        })
    }

    /// Whether any block is here, although none is known to be left to hand over. Those found are queued.
    async fn look_for_blocks(&self) -> Result<Stray, ModelError> {
        let mut from = Some(BlockHash::from_bytes([0; 32]));
        while let Some(position) = from {
            let page = self.0.local.blocks.blocks.page(position, PAGE_BLOCKS).await?;
            if !page.hashes.is_empty() {
                let now = self.0.clock.now();
                self.queue_blocks(page.hashes.into_iter().map(|block| Queued::new(now, block, Reason::HandOver)).collect())
                    .await?;
                return Ok(Stray::Found);
            }
            from = page.next;
        }
        Ok(Stray::None)
    }
}
