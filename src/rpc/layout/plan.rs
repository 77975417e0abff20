//! What a change of layout moves: how many partitions each node receives, sends and gives up.
//!
//! Pure. A node that gets a partition may fetch it from any node that had it before; the estimate takes the reachable one that has
//! least to send so far, because that is where spreading the load leads. Called for showing a layout before it is applied.

use std::collections::{BTreeMap, BTreeSet};

use garage_types::NodeId;
use garage_types::placement::Partition;

use super::assignment::Assignment;

/// One node's part in a change, in partitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeMoves {
    /// It did not hold these before.
    pub receives: usize,
    pub sends: usize,
    /// It need not hold these any more.
    pub gives_up: usize,
}

/// What a change of layout moves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Nodes for which something changes.
    pub nodes: BTreeMap<NodeId, NodeMoves>,
    /// Copies of partitions that no reachable node can send now.
    pub without_source: usize,
}

/// Compares the assignment in force with the next one.
///
/// `reachable`: nodes that can send, this one included.
pub fn plan(previous: &Assignment, next: &Assignment, reachable: &BTreeSet<NodeId>) -> Plan {
    let mut plan = Plan::default();
    for (partition, row) in next.rows().enumerate() {
        let after: BTreeSet<NodeId> = row.collect();
        let before: BTreeSet<NodeId> = previous.row(same_content(partition, next, previous)).collect();
        for node in before.difference(&after) {
            plan.nodes.entry(*node).or_default().gives_up += 1;
        }
        for node in after.difference(&before) {
            plan.nodes.entry(*node).or_default().receives += 1;
            let sent = |source: &NodeId| plan.nodes.get(source).map_or(0, |moves| moves.sends);
            match before.intersection(reachable).min_by_key(|source| (sent(source), **source)).copied() {
                Some(source) => plan.nodes.entry(source).or_default().sends += 1,
                None => plan.without_source += 1,
            }
        }
    }
    plan
}

/// The partition of `of` that holds what `partition` of `by` holds, or the first of them: they differ when their number does.
fn same_content(partition: usize, by: &Assignment, of: &Assignment) -> Partition {
    let (from, to) = (by.partition_bits(), of.partition_bits());
    let partition = if to >= from { partition << (to - from) } else { partition >> (from - to) };
    // At most 16 bits: see `Assignment::PARTITION_BITS_MAX`.
    Partition(partition as u16)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use garage_types::NodeId;

    use super::{NodeMoves, plan};
    use crate::layout::assignment::Assignment;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    /// Rows of two nodes each, by number.
    fn assignment(bits: u8, rows: &[[u16; 2]]) -> Assignment {
        Assignment::new((0..5).map(node).collect(), 2, bits, 10, rows.concat()).unwrap()
    }

    fn moves(receives: usize, sends: usize, gives_up: usize) -> NodeMoves {
        NodeMoves { receives, sends, gives_up }
    }

    #[test]
    fn who_gets_a_partition_fetches_it_from_whom_has_least_to_send() {
        let before = assignment(1, &[[0, 1], [0, 1]]);
        let after = assignment(1, &[[0, 2], [0, 2]]);
        let all = (0..5).map(node).collect();
        let found = plan(&before, &after, &all);
        let expected = [(0, moves(0, 1, 0)), (1, moves(0, 1, 2)), (2, moves(2, 0, 0))];
        assert_eq!(found.nodes, BTreeMap::from(expected.map(|(n, moves)| (node(n), moves))));
        assert_eq!(found.without_source, 0);
        assert_eq!(plan(&before, &before, &all).nodes.len(), 0, "nothing changes");
    }

    #[test]
    fn nobody_fetches_from_nodes_that_cannot_be_reached() {
        let before = assignment(0, &[[0, 1]]);
        let found = plan(&before, &assignment(0, &[[0, 2]]), &BTreeSet::from([node(1)]));
        assert_eq!((found.nodes[&node(1)], found.without_source), (moves(0, 1, 1), 0));
        let found = plan(&before, &assignment(0, &[[3, 2]]), &BTreeSet::new());
        assert_eq!((found.nodes[&node(2)], found.without_source), (moves(1, 0, 0), 2));
    }

    #[test]
    fn a_partition_that_is_split_stays_where_it_is() {
        let found = plan(&assignment(0, &[[0, 1]]), &assignment(1, &[[0, 1], [1, 0]]), &BTreeSet::new());
        assert_eq!(found.nodes, BTreeMap::new());
    }
}
