//! What does not go on by itself at present, and for whom it waits. Pure.

use std::collections::{BTreeMap, BTreeSet};

use garage_rpc::layout::ClusterLayout;
use garage_table::Replication;
use garage_table::sync::plan::can_rebuild_from;
use garage_table::wire::TableId;
use garage_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::moves::NodeMoves;

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stalled {
    /// A node fetches its lost database from the other owners.
    Rebuilding { node: NodeId },
    /// Not every node has acknowledged the newest layout version, and has its metadata.
    LayoutChange { version: u64 },
}

/// Something that takes its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    pub what: Stalled,
    /// It can end only when these are back: they are not connected.
    pub for_nodes_away: Vec<NodeId>,
    /// Or these, which are rebuilding themselves.
    pub for_nodes_rebuilding: Vec<NodeId>,
}

/// What waits for whom. A rebuilding that finds all it needs waits for nobody.
pub fn waiting(
    layout: &ClusterLayout,
    tables: &[(TableId, Replication)],
    up: &BTreeSet<NodeId>,
    told: &BTreeMap<NodeId, NodeMoves>,
) -> Vec<Waiting> {
    let is_rebuilding = |node: &NodeId| told.get(node).is_some_and(|moves| moves.rebuilding);
    let (rebuilding, others): (BTreeSet<NodeId>, BTreeSet<NodeId>) = up.iter().copied().partition(is_rebuilding);
    let mut all = Vec::new();
    for node in &rebuilding {
        let ends_by_itself = can_rebuild_from(layout, *node, tables, &others);
        let missing = |present: bool| {
            let readers = layout.read_members().iter().copied();
            readers
                .filter(|other| other != node && !ends_by_itself && up.contains(other) == present && !others.contains(other))
                .collect()
        };
        all.push(Waiting {
            what: Stalled::Rebuilding { node: *node },
            for_nodes_away: missing(false),
            for_nodes_rebuilding: missing(true),
        });
    }
    if layout.live_versions().len() > 1 {
        let history = layout.history();
        let version = layout.version();
        let is_behind = |node: &&NodeId| history.trackers().sync.get(**node).is_none_or(|key| key.number < version);
        let behind = |nodes: &dyn Fn(&NodeId) -> bool| {
            layout.all_nodes().iter().filter(is_behind).copied().filter(|node| nodes(node)).collect::<Vec<_>>()
        };
        let (for_nodes_away, for_nodes_rebuilding) =
            (behind(&|node| !up.contains(node)), behind(&|node| rebuilding.contains(node)));
        if !for_nodes_away.is_empty() || !for_nodes_rebuilding.is_empty() {
            all.push(Waiting { what: Stalled::LayoutChange { version }, for_nodes_away, for_nodes_rebuilding });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use garage_rpc::layout::history::{LayoutHistory, OlderWrites};
    use garage_rpc::layout::{ClusterLayout, NodeRole};
    use garage_table::Replication;
    use garage_table::wire::TableId;
    use garage_types::{NodeId, Timestamp};

    use super::{NodeMoves, Stalled, Waiting, waiting};

    const TABLES: [(TableId, Replication); 2] = [(TableId(1), Replication::Sharded), (TableId(2), Replication::FullCopy)];

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn stage(history: &mut LayoutHistory, n: u8) {
        let role = NodeRole { zone: n.to_string(), capacity: Some(1 << 30), tags: Vec::new() };
        history.stage_role(Timestamp::from_millis(u64::from(n)), node(n), role).unwrap();
    }

    fn three() -> LayoutHistory {
        let mut history = LayoutHistory::new(3);
        (1..=3).for_each(|n| stage(&mut history, n));
        history.apply(1).unwrap();
        (1..=3).for_each(|n| history.advance(node(n), OlderWrites::Done));
        history
    }

    fn of(history: &LayoutHistory, up: &[u8], rebuilding: &[u8]) -> Vec<Waiting> {
        let moves = NodeMoves { rebuilding: true, ..NodeMoves::default() };
        let told = rebuilding.iter().map(|n| (node(*n), moves.clone())).collect::<BTreeMap<_, _>>();
        let up = up.iter().map(|n| node(*n)).collect::<BTreeSet<_>>();
        waiting(&ClusterLayout::of(Arc::new(history.clone())), &TABLES, &up, &told)
    }

    #[test]
    fn a_rebuilding_says_for_whom_it_waits() {
        let rebuilding = |n, away: &[u8], others: &[u8]| Waiting {
            what: Stalled::Rebuilding { node: node(n) },
            for_nodes_away: away.iter().map(|n| node(*n)).collect(),
            for_nodes_rebuilding: others.iter().map(|n| node(*n)).collect(),
        };
        assert!(of(&three(), &[1, 2, 3], &[]).is_empty());
        assert_eq!(of(&three(), &[1, 2, 3], &[2]), [rebuilding(2, &[], &[])], "it has all it needs");
        assert_eq!(of(&three(), &[1, 2], &[2]), [rebuilding(2, &[3], &[])]);
        assert_eq!(of(&three(), &[1, 2, 3], &[2, 3]), [rebuilding(2, &[], &[3]), rebuilding(3, &[], &[2])]);
    }

    #[test]
    fn a_node_that_is_replaced_while_another_rebuilds_waits_for_both() {
        let mut history = three();
        stage(&mut history, 4);
        history.stage_removal(Timestamp::from_millis(9), node(3)).unwrap();
        history.apply(2).unwrap();
        let found = of(&history, &[1, 2, 4], &[2]);
        assert_eq!(found[0].for_nodes_away, [node(3)], "{found:?}");
        let change = Waiting {
            what: Stalled::LayoutChange { version: 2 },
            for_nodes_away: vec![node(3)],
            for_nodes_rebuilding: vec![node(2)],
        };
        assert_eq!(found[1..], [change]);
        assert!(of(&history, &[1, 2, 3, 4], &[]).is_empty(), "it only takes its time");
    }
}
