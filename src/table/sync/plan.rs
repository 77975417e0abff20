//! Which ranges a node compares, with whom, and how many of them it takes. Pure.
//!
//! Must stay true: rows count as received only when they came from as many owners of the version that reads use as a read asks, this
//! node counting for itself only where it is one of them and its rows are all there; a range that is no longer this node's is
//! compared with all its owners. Only rows of an unbroken time as an owner ([`Tenures`]) are offered without looking at epochs.

use std::collections::BTreeSet;

use garage_rpc::layout::ClusterLayout;
use garage_rpc::quorum::{ConsistencyMode, Quorums, WriteQuorum};
use garage_types::placement::Partition;
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Placement};

use super::tenure::Tenures;
use crate::schema::Replication;
use crate::segments::KeyRange;
use crate::wire::TableId;

/// As what this node compares a range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// One of those who answer reads.
    Owner,
    /// An owner in a later version only: what it has was written since it is one.
    Newcomer,
    /// An owner that has not been one all the time, or one with an older database: its rows may be left over.
    Returner,
    /// An owner whose database was lost: it only receives.
    Rebuilder,
    /// No owner any more: it hands over what it has.
    Leaver,
}

/// A range to be compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unit {
    pub range: KeyRange,
    pub part: Part,
    /// Everybody to compare with.
    pub peers: Vec<NodeId>,
    /// Those among them whose rows count.
    pub sources: Vec<NodeId>,
    /// How many sources it takes.
    pub needed: usize,
}

impl Unit {
    /// A node whose database was accepted counts for itself, as an owner does: there may be nobody else.
    fn of_accepted(mut self, own: OwnRows) -> Self {
        if own == OwnRows::Accepted && self.part == Part::Returner {
            self.needed = self.needed.saturating_sub(1);
        }
        self
    }
}

/// Whether a rebuilding `me` finds everything that it needs at the nodes of `able`.
pub fn can_rebuild_from(layout: &ClusterLayout, me: NodeId, tables: &[(TableId, Replication)], able: &BTreeSet<NodeId>) -> bool {
    let has_enough = |unit: &Unit| unit.sources.iter().filter(|source| able.contains(source)).count() >= unit.needed;
    let kinds: Vec<Replication> = tables.iter().map(|(_table, replication)| *replication).collect();
    let differs = |kind: &Replication| kinds.contains(kind);
    let wanted = [Replication::Sharded, Replication::FullCopy].into_iter().filter(differs);
    wanted
        .flat_map(|kind| units(layout, me, OwnRows::Rebuilding, &Tenures::Unrecorded, kind))
        .filter(|unit| unit.part != Part::Leaver)
        .all(|unit| has_enough(&unit))
}

/// Whether this node's rows are all there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnRows {
    Whole,
    Rebuilding,
    /// An older database that an operator declared whole: it may lack tombstones that the others have collected.
    Accepted,
}

/// What `me` has to compare of a table.
pub fn units(layout: &ClusterLayout, me: NodeId, own: OwnRows, tenures: &Tenures, replication: Replication) -> Vec<Unit> {
    if layout.is_empty() {
        return Vec::new();
    }
    match replication {
        Replication::FullCopy => full_copy(layout, me, own).into_iter().collect(),
        Replication::Sharded => slices(layout).into_iter().filter_map(|range| sharded(layout, me, own, tenures, range)).collect(),
    }
}

/// The slices of sharded tables that `me` owns in no live version, by the partition they are in.
pub fn slices_of_others(layout: &ClusterLayout, me: NodeId) -> Vec<(Partition, KeyRange)> {
    if layout.is_empty() {
        return Vec::new();
    }
    let bits = layout.partition_bits();
    let others = slices(layout).into_iter().filter(|range| !layout.is_owner(me, first_placement(range)));
    others.map(|range| (first_placement(&range).partition(bits), range)).collect()
}

fn full_copy(layout: &ClusterLayout, me: NodeId, own: OwnRows) -> Option<Unit> {
    let members = layout.all_nodes();
    if !members.contains(&me) {
        return None;
    }
    let readers = layout.read_members();
    let part = part_of(readers.contains(&me), Tenure::Unbroken, own);
    let majority = WriteQuorum::Majority.of(readers.len());
    Some(unit(KeyRange::ALL, part, me, members.to_vec(), readers, majority).of_accepted(own))
}

fn sharded(layout: &ClusterLayout, me: NodeId, own: OwnRows, tenures: &Tenures, range: KeyRange) -> Option<Unit> {
    let placement = first_placement(&range);
    let readers = layout.read_nodes(placement);
    let owners: BTreeSet<NodeId> = layout.write_sets(placement).into_iter().flatten().collect();
    let tenure = if tenures.is_unbroken(layout, me, placement) { Tenure::Unbroken } else { Tenure::Broken };
    let part = if owners.contains(&me) { part_of(readers.contains(&me), tenure, own) } else { Part::Leaver };
    // Whatever the consistency mode: what moves must be all that was acknowledged.
    let quorum = Quorums::of(layout.replication_factor(), ConsistencyMode::Consistent).read;
    Some(unit(range, part, me, owners.into_iter().collect(), readers, quorum).of_accepted(own))
}

/// Whether a node has been an owner since its rows were known to be of its time. Full-copy tables keep their tombstones: for them it
/// does not matter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tenure {
    Unbroken,
    Broken,
}

fn part_of(is_reader: bool, tenure: Tenure, own: OwnRows) -> Part {
    match (own, is_reader, tenure) {
        (OwnRows::Rebuilding, _, _) => Part::Rebuilder,
        (OwnRows::Accepted, _, _) | (OwnRows::Whole, _, Tenure::Broken) => Part::Returner,
        (OwnRows::Whole, true, Tenure::Unbroken) => Part::Owner,
        (OwnRows::Whole, false, Tenure::Unbroken) => Part::Newcomer,
    }
}

fn unit(range: KeyRange, part: Part, me: NodeId, owners: Vec<NodeId>, readers: &[NodeId], quorum: usize) -> Unit {
    let others = |nodes: &[NodeId]| nodes.iter().copied().filter(|node| *node != me).collect::<Vec<_>>();
    let sources = others(readers);
    let (sources, needed) = match part {
        Part::Owner => (sources, quorum.saturating_sub(1)),
        Part::Newcomer | Part::Returner if is_planted(Bug::SyncedFromOneOwner) => (sources, 1),
        Part::Newcomer | Part::Returner => (sources, quorum),
        Part::Rebuilder if is_planted(Bug::RebuiltFromOneOwner) => (sources, 1),
        // It may have been one of the few that had a row: everything the others have as a quorum is all there is.
        Part::Rebuilder => {
            let needed = quorum.min(sources.len());
            (sources, needed)
        }
        Part::Leaver => {
            let owners = others(&owners);
            let needed = owners.len();
            (owners, needed)
        }
    };
    let mut peers = others(&owners);
    peers.extend(sources.iter().filter(|source| !owners.contains(source)));
    Unit { range, part, peers, sources, needed }
}

/// The hash space in slices that lie in one partition and in one slot of tombstone collection.
pub(super) fn slices(layout: &ClusterLayout) -> Vec<KeyRange> {
    let bits = u32::from(layout.partition_bits()).max(8);
    let bound = |index: u32| ((index << (16 - bits)) as u16).to_be_bytes();
    let count = 1_u32 << bits;
    let range = |index: u32| KeyRange { from: trimmed(bound(index)), to: (index + 1 < count).then(|| trimmed(bound(index + 1))) };
    (0..count).map(range).collect()
}

/// Two bytes as the start of keys: one byte where the second says nothing.
fn trimmed(bound: [u8; 2]) -> Vec<u8> {
    if bound[1] == 0 { vec![bound[0]] } else { bound.to_vec() }
}

/// The placement with which a slice begins.
pub(super) fn first_placement(range: &KeyRange) -> Placement {
    let mut bytes = [0; 32];
    bytes[..range.from.len()].copy_from_slice(&range.from);
    Placement::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garage_rpc::layout::history::{LayoutHistory, OlderWrites};
    use garage_rpc::layout::{ClusterLayout, NodeRole};
    use garage_types::{NodeId, Timestamp};

    use super::{KeyRange, OwnRows, Part, Tenures, Unit, can_rebuild_from, slices_of_others, units};
    use crate::schema::Replication;
    use crate::wire::TableId;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn stage(history: &mut LayoutHistory, n: u8, time: u64) {
        let role = NodeRole { zone: n.to_string(), capacity: Some(1 << 30), tags: Vec::new() };
        history.stage_role(Timestamp::from_millis(time), node(n), role).unwrap();
    }

    /// Three nodes at factor 3 whose rows are synced.
    fn three() -> LayoutHistory {
        let mut history = LayoutHistory::new(3);
        (1..=3).for_each(|n| stage(&mut history, n, 1));
        history.apply(1).unwrap();
        (1..=3).for_each(|n| history.advance(node(n), OlderWrites::Done));
        history
    }

    fn view(history: &LayoutHistory) -> ClusterLayout {
        ClusterLayout::of(Arc::new(history.clone()))
    }

    fn of(history: &LayoutHistory, n: u8, own: OwnRows) -> Vec<Unit> {
        units(&view(history), node(n), own, &Tenures::Unrecorded, Replication::Sharded)
    }

    #[test]
    fn slices_cover_the_hash_space_without_gaps() {
        let all = of(&three(), 1, OwnRows::Whole);
        assert_eq!(all.len(), 256);
        let mut from = vec![0];
        for unit in &all {
            assert_eq!(unit.range.from, from);
            from = unit.range.to.clone().unwrap_or_default();
        }
        assert_eq!(from, Vec::<u8>::new());
        assert_eq!(
            units(&view(&three()), node(1), OwnRows::Whole, &Tenures::Unrecorded, Replication::FullCopy)[0].range,
            KeyRange::ALL
        );
    }

    #[test]
    fn an_owner_needs_one_more_and_a_rebuilder_two_of_the_others() {
        let owner = &of(&three(), 1, OwnRows::Whole)[7];
        assert_eq!((owner.part, owner.needed, &owner.sources), (Part::Owner, 1, &vec![node(2), node(3)]));
        let rebuilder = &of(&three(), 1, OwnRows::Rebuilding)[7];
        assert_eq!((rebuilder.part, rebuilder.needed, rebuilder.sources.len()), (Part::Rebuilder, 2, 2));
    }

    #[test]
    fn an_accepted_database_counts_for_itself_and_a_rebuilding_one_waits_for_two_others() {
        let accepted = &of(&three(), 1, OwnRows::Accepted)[7];
        assert_eq!((accepted.part, accepted.needed, accepted.peers.len()), (Part::Returner, 1, 2));
        let able = |nodes: &[u8]| {
            let tables = [(TableId(1), Replication::Sharded), (TableId(2), Replication::FullCopy)];
            can_rebuild_from(&view(&three()), node(1), &tables, &nodes.iter().map(|n| node(*n)).collect())
        };
        assert!(able(&[2, 3]));
        assert!(!able(&[2]) && !able(&[]) && !able(&[1, 2]), "its own rows do not count");
    }

    #[test]
    fn a_node_that_replaces_another_needs_a_read_quorum_of_the_old_owners() {
        let mut history = three();
        stage(&mut history, 4, 2);
        history.stage_removal(Timestamp::from_millis(2), node(3)).unwrap();
        history.apply(2).unwrap();
        let newcomer = &of(&history, 4, OwnRows::Whole)[0];
        assert_eq!((newcomer.part, newcomer.needed), (Part::Newcomer, 2));
        assert_eq!(newcomer.sources, vec![node(1), node(2), node(3)]);
        // Until the old version is retired, the node that leaves still is an owner.
        assert_eq!(of(&history, 3, OwnRows::Whole)[0].part, Part::Owner);
        let key = history.current().unwrap().key();
        for round in 0..3 {
            for n in 1..=4 {
                history.advance(node(n), OlderWrites::Done);
                if round > 0 {
                    history.mark_synced(node(n), key).unwrap();
                }
            }
        }
        let leaver = &of(&history, 3, OwnRows::Whole)[0];
        assert_eq!((leaver.part, leaver.needed), (Part::Leaver, 3));
        assert_eq!(leaver.sources, vec![node(1), node(2), node(4)]);
        assert!(units(&view(&history), node(3), OwnRows::Whole, &Tenures::Unrecorded, Replication::FullCopy).is_empty());
        assert_eq!(slices_of_others(&view(&history), node(3)).len(), 256);
        assert!(slices_of_others(&view(&history), node(4)).is_empty());
        // Taken back, it may have kept rows that the others have forgotten by now.
        stage(&mut history, 3, 3);
        history.stage_removal(Timestamp::from_millis(3), node(4)).unwrap();
        history.apply(3).unwrap();
        assert_eq!(of(&history, 3, OwnRows::Whole)[0].part, Part::Returner);
        let sorted = Tenures::Unrecorded.without_leftovers(&view(&history), node(3));
        let again = units(&view(&history), node(3), OwnRows::Whole, &sorted, Replication::Sharded);
        assert_eq!(again[0].part, Part::Newcomer, "its rows of that time are set aside");
    }
}
