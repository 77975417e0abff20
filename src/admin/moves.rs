//! What moves between nodes: how much each has still to receive or to hand over, and whether one that left may be switched off.
//!
//! Must stay true: a node is called safe to remove only by its own word, given under the layout that the asker goes by; of one that
//! cannot be asked nothing is said.

use std::collections::{BTreeMap, BTreeSet};

use garage_model::moving::{Counted, Moving, Stray, layout_name};
use garage_rpc::layout::ClusterLayout;
use garage_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::error::AdminError;
use crate::operations::AdminService;

/// What a node has still to receive or to hand over. Sizes and times are estimated from the blocks moved so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeMoves {
    /// Names the live layout versions that the node goes by.
    pub layout: String,
    /// It has not looked at all of its blocks since the layout changed: there may be more to move than counted here.
    pub still_counting: bool,
    /// That this node should have and perhaps has not.
    pub blocks_to_fetch: u64,
    /// That other nodes should have instead of this one.
    pub blocks_to_hand_over: u64,
    /// Blocks whose last try failed; they are counted above as well.
    pub blocks_failed: u64,
    /// It owns nothing, nothing is queued, and yet there are blocks; `None` where that was not looked at.
    pub has_other_blocks: Option<bool>,
    pub bytes_left_estimated: u64,
    /// Since there was something to move; `None` while nothing has been.
    pub bytes_per_second: Option<u64>,
    pub seconds_left_estimated: Option<u64>,
    /// With rows here that belong to other nodes.
    pub partitions_to_hand_over: u64,
    /// That other nodes have not acknowledged yet.
    pub deletions_to_send: u64,
    /// Rows that a collection of tombstones, or a rebuilding, went on without.
    pub rows_set_aside: u64,
    /// Its own database is incomplete.
    pub rebuilding: bool,
    /// Blocks that it fetched, or gave to others, since it started.
    #[serde(default)]
    pub blocks_moved: u64,
    #[serde(default)]
    pub bytes_moved: u64,
}

impl NodeMoves {
    /// What this node says of itself.
    ///
    /// # Errors
    /// [`AdminError::Model`].
    pub(crate) async fn own(service: &AdminService) -> Result<Self, AdminError> {
        let Moving { layout, blocks, counted, stray_blocks, partitions, queued_deletions, set_aside } =
            service.garage.moving().await?;
        Ok(NodeMoves {
            layout,
            still_counting: counted == Counted::Some,
            blocks_to_fetch: blocks.fetch,
            blocks_to_hand_over: blocks.hand_over,
            blocks_failed: blocks.failed,
            has_other_blocks: match stray_blocks {
                Stray::None => Some(false),
                Stray::Found => Some(true),
                Stray::NotLookedFor => None,
            },
            bytes_left_estimated: blocks.bytes_left,
            bytes_per_second: blocks.bytes_per_second,
            seconds_left_estimated: blocks.seconds_left,
            partitions_to_hand_over: partitions,
            deletions_to_send: queued_deletions,
            rows_set_aside: set_aside,
            rebuilding: service.layout().standing().is_rebuilding(),
            blocks_moved: blocks.moved.blocks,
            bytes_moved: blocks.moved.bytes,
        })
    }

    pub fn blocks(&self) -> u64 {
        self.blocks_to_fetch + self.blocks_to_hand_over
    }

    /// Whether there is anything to tell of a node that has a role.
    pub fn is_moving(&self) -> bool {
        self.still_counting || self.blocks() + self.partitions_to_hand_over > 0
    }
}

/// Whether a node that has no role any more may be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Removal {
    /// Every block that it had is on all its owners, every row handed over.
    SafeToRemove,
    StillNeeded,
    /// It cannot be asked, or goes by another layout.
    Unknown,
}

/// A node without a role in the current layout that stored data, or still does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DepartedNode {
    pub id: NodeId,
    /// The version that took its role away; `None` when that is too long ago to be known.
    pub left_with_version: Option<u64>,
    pub removal: Removal,
    /// Partitions that it stores for a layout version that is still live.
    pub partitions_live: u64,
    /// `None` when it does not say.
    pub moves: Option<NodeMoves>,
}

/// The nodes that left, by ascending id. `told`: what nodes said of themselves.
pub fn departed(layout: &ClusterLayout, told: &BTreeMap<NodeId, NodeMoves>) -> Vec<DepartedNode> {
    let history = layout.history();
    let mut known: BTreeMap<u64, BTreeSet<NodeId>> = BTreeMap::new();
    for version in history.past().chain(history.live()) {
        known.entry(version.number()).or_default().extend(version.roles().keys().copied());
    }
    let has_role = |node: &NodeId| layout.role(*node).is_some();
    let had_role: BTreeSet<NodeId> = known.values().flatten().copied().collect();
    let storing = told.iter().filter(|(_node, moves)| holds_anything(moves)).map(|(node, _moves)| *node);
    let name = layout_name(layout);
    let departed = |id: NodeId| {
        let last = known.iter().rev().find(|(_number, nodes)| nodes.contains(&id)).map(|(number, _nodes)| *number);
        let left_with_version = last.and_then(|last| known.keys().copied().find(|number| *number > last));
        let partitions_live = layout.partitions_of(id).len() as u64;
        let moves = told.get(&id).cloned();
        let removal = match &moves {
            Some(moves) if moves.layout == name && partitions_live == 0 && !holds_anything(moves) && is_certain(moves) => {
                Removal::SafeToRemove
            }
            Some(moves) if moves.layout != name => Removal::Unknown,
            Some(_) => Removal::StillNeeded,
            None => Removal::Unknown,
        };
        DepartedNode { id, left_with_version, removal, partitions_live, moves }
    };
    let all: BTreeSet<NodeId> = had_role.into_iter().chain(storing).filter(|node| !has_role(node)).collect();
    if layout.is_empty() { Vec::new() } else { all.into_iter().map(departed).collect() }
}

fn holds_anything(moves: &NodeMoves) -> bool {
    let counted = moves.blocks() + moves.partitions_to_hand_over + moves.deletions_to_send + moves.rows_set_aside;
    counted > 0 || moves.has_other_blocks == Some(true)
}

/// Whether what a node says of itself is all there is to say.
fn is_certain(moves: &NodeMoves) -> bool {
    !moves.still_counting && !moves.rebuilding && moves.has_other_blocks == Some(false)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use garage_model::moving::layout_name;
    use garage_rpc::layout::history::{LayoutHistory, OlderWrites};
    use garage_rpc::layout::{ClusterLayout, NodeRole};
    use garage_types::{NodeId, Timestamp};

    use super::{DepartedNode, NodeMoves, Removal, departed};

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn view(history: &LayoutHistory) -> ClusterLayout {
        ClusterLayout::of(Arc::new(history.clone()))
    }

    /// Node 4 in the place of node 3 as of version 2.
    fn replaced() -> LayoutHistory {
        let mut history = LayoutHistory::new(3);
        let role = |n: u8| NodeRole { zone: n.to_string(), capacity: Some(1 << 30), tags: Vec::new() };
        (1..=3).for_each(|n| history.stage_role(Timestamp::from_millis(1), node(n), role(n)).unwrap());
        history.apply(1).unwrap();
        (1..=3).for_each(|n| history.advance(node(n), OlderWrites::Done));
        history.stage_role(Timestamp::from_millis(2), node(4), role(4)).unwrap();
        history.stage_removal(Timestamp::from_millis(2), node(3)).unwrap();
        history.apply(2).unwrap();
        history
    }

    fn retire(history: &mut LayoutHistory) {
        let key = history.current().unwrap().key();
        (1..=4).for_each(|n| history.advance(node(n), OlderWrites::Done));
        (1..=4).for_each(|n| history.mark_synced(node(n), key).unwrap());
        (0..2).for_each(|_| (1..=4).for_each(|n| history.advance(node(n), OlderWrites::Done)));
        assert_eq!(history.live().count(), 1);
    }

    fn only(layout: &ClusterLayout, told: &BTreeMap<NodeId, NodeMoves>) -> DepartedNode {
        let mut all = departed(layout, told);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn a_node_that_left_is_needed_while_a_layout_that_names_it_is_live_and_safe_only_by_its_own_word() {
        let mut history = replaced();
        let empty = |layout: &ClusterLayout| NodeMoves {
            layout: layout_name(layout),
            has_other_blocks: Some(false),
            ..NodeMoves::default()
        };
        let layout = view(&history);
        let draining = only(&layout, &BTreeMap::from([(node(3), empty(&layout))]));
        assert_eq!((draining.id, draining.removal, draining.partitions_live), (node(3), Removal::StillNeeded, 256));
        assert_eq!(draining.left_with_version, Some(2));

        retire(&mut history);
        let older = empty(&layout);
        let layout = view(&history);
        let judged = |moves: NodeMoves| only(&layout, &BTreeMap::from([(node(3), moves)])).removal;
        assert_eq!(judged(empty(&layout)), Removal::SafeToRemove);
        assert_eq!(judged(older), Removal::Unknown, "it does not know the layout yet");
        assert_eq!(only(&layout, &BTreeMap::new()).removal, Removal::Unknown);
        for needed in [
            NodeMoves { blocks_to_hand_over: 1, ..empty(&layout) },
            NodeMoves { blocks_to_fetch: 1, ..empty(&layout) },
            NodeMoves { partitions_to_hand_over: 1, ..empty(&layout) },
            NodeMoves { deletions_to_send: 1, ..empty(&layout) },
            NodeMoves { rows_set_aside: 1, ..empty(&layout) },
            NodeMoves { still_counting: true, ..empty(&layout) },
            NodeMoves { rebuilding: true, ..empty(&layout) },
            NodeMoves { has_other_blocks: Some(true), ..empty(&layout) },
            NodeMoves { has_other_blocks: None, ..empty(&layout) },
        ] {
            assert_eq!(judged(needed.clone()), Removal::StillNeeded, "{needed:?}");
        }
    }

    #[test]
    fn a_stranger_is_listed_only_when_it_stores_something() {
        let layout = view(&LayoutHistory::new(3));
        let stored = NodeMoves { blocks_to_hand_over: 2, ..NodeMoves::default() };
        assert!(departed(&layout, &BTreeMap::from([(node(9), stored.clone())])).is_empty(), "without a layout nobody has left");
        let layout = view(&replaced());
        let told =
            BTreeMap::from([(node(9), NodeMoves { layout: layout_name(&layout), ..stored }), (node(8), NodeMoves::default())]);
        let listed: Vec<_> = departed(&layout, &told).into_iter().map(|left| (left.id, left.left_with_version)).collect();
        assert_eq!(listed, [(node(3), Some(2)), (node(9), None)]);
    }
}
