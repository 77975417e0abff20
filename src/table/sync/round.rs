//! One comparison of everything this node has with everybody concerned: bookkeeping of what was done and what it proves. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use garage_rpc::layout::{ClusterLayout, VersionKey};
use garage_types::NodeId;

use super::plan::{OwnRows, Part, Unit, units};
use super::tenure::Tenures;
use super::wire::RANGES_MAX;
use crate::schema::Replication;
use crate::segments::KeyRange;
use crate::wire::TableId;

/// Number of a unit in its round.
pub type UnitIndex = usize;

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Compare the digests of these ranges, all of one table, with one peer.
    Roots { peer: NodeId, units: Vec<UnitIndex> },
    /// Bring one range together with a peer, from which it differs.
    Session { peer: NodeId, unit: UnitIndex },
    /// Hand over a range that is no longer this node's.
    Leave { unit: UnitIndex },
}

/// One round.
#[derive(Debug)]
pub struct Round {
    /// The version whose rows this round is to bring.
    syncs: Option<VersionKey>,
    /// The version that reads used when the round began.
    read_version: Option<VersionKey>,
    pub own: OwnRows,
    units: Vec<(TableId, Unit)>,
    done: Vec<BTreeSet<NodeId>>,
    pub jobs: VecDeque<Job>,
    pub extent: Extent,
    pub failures: u64,
    /// Peers with whom something failed.
    pub failed: BTreeSet<NodeId>,
}

/// With whom a round compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    Everybody,
    SomePeers,
}

/// What a finished round proves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Every row that the version asks for is here.
    pub synced: Option<VersionKey>,
    /// Every range has its sources.
    pub complete: bool,
}

impl Round {
    pub fn new(
        layout: &ClusterLayout,
        me: NodeId,
        (own, tenures): (OwnRows, &Tenures),
        tables: &[(TableId, Replication)],
    ) -> Self {
        let mut all = Vec::new();
        for (table, replication) in tables {
            all.extend(units(layout, me, own, tenures, *replication).into_iter().map(|unit| (*table, unit)));
        }
        let mut jobs = VecDeque::new();
        let mut roots: BTreeMap<(TableId, NodeId), Vec<UnitIndex>> = BTreeMap::new();
        for (index, (table, unit)) in all.iter().enumerate() {
            if unit.part == Part::Leaver {
                jobs.push_back(Job::Leave { unit: index });
            } else {
                for peer in &unit.peers {
                    roots.entry((*table, *peer)).or_default().push(index);
                }
            }
        }
        // What is to be received comes before what is to be handed over.
        for ((_table, peer), units) in roots.into_iter().rev() {
            for chunk in units.chunks(RANGES_MAX) {
                jobs.push_front(Job::Roots { peer, units: chunk.to_vec() });
            }
        }
        Round {
            syncs: layout.history().version_to_sync(me),
            read_version: layout.history().read_version().map(|version| version.key()),
            own,
            done: vec![BTreeSet::new(); all.len()],
            units: all,
            jobs,
            extent: Extent::Everybody,
            failures: 0,
            failed: BTreeSet::new(),
        }
    }

    /// Leaves out everybody but these peers; ranges are handed over where one of them is an owner.
    pub fn restrict_to(&mut self, peers: &BTreeSet<NodeId>) {
        self.extent = Extent::SomePeers;
        let units = &self.units;
        self.jobs.retain(|job| match job {
            Job::Roots { peer, .. } | Job::Session { peer, .. } => peers.contains(peer),
            Job::Leave { unit } => units[*unit].1.peers.iter().any(|owner| peers.contains(owner)),
        });
    }

    /// Leaves out everybody but these peers in tables that every node has.
    pub fn spare_full_copies(&mut self, peers: &BTreeSet<NodeId>) {
        let units = &self.units;
        self.jobs.retain(|job| match job {
            Job::Roots { peer, units: ranges } => {
                peers.contains(peer) || !ranges.iter().any(|unit| units[*unit].1.range == KeyRange::ALL)
            }
            Job::Session { .. } | Job::Leave { .. } => true,
        });
    }

    pub fn unit(&self, index: UnitIndex) -> (TableId, &Unit) {
        let (table, unit) = &self.units[index];
        (*table, unit)
    }

    /// The range is equal to the peer's, or has been made so.
    pub fn done(&mut self, index: UnitIndex, peer: NodeId) {
        self.done[index].insert(peer);
    }

    /// Whether enough sources of the range were compared.
    pub fn is_satisfied(&self, index: UnitIndex) -> bool {
        let (_, unit) = &self.units[index];
        unit.sources.iter().filter(|source| self.done[index].contains(source)).count() >= unit.needed
    }

    /// Whether there are ranges to be handed over.
    pub fn has_leavers(&self) -> bool {
        self.units.iter().any(|(_, unit)| unit.part == Part::Leaver)
    }

    /// What the round proves, given the layout at its end.
    pub fn proof(&self, layout: &ClusterLayout) -> Proof {
        let complete =
            (0..self.units.len()).filter(|index| self.units[*index].1.part != Part::Leaver).all(|index| self.is_satisfied(index));
        // Owners of a version that is no longer live may have handed their rows over already.
        let is_live = |key: VersionKey| layout.live_versions().contains(&key);
        let synced = self.syncs.filter(|_| complete && self.read_version.is_some_and(is_live));
        Proof { synced, complete }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use garage_rpc::layout::history::{LayoutHistory, OlderWrites};
    use garage_rpc::layout::{ClusterLayout, NodeRole};
    use garage_types::{NodeId, Timestamp};

    use super::{Job, Round};
    use crate::schema::Replication;
    use crate::sync::plan::OwnRows;
    use crate::sync::tenure::Tenures;
    use crate::wire::TableId;

    const TABLES: [(TableId, Replication); 2] = [(TableId(1), Replication::Sharded), (TableId(2), Replication::FullCopy)];

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    /// Nodes 1 to 3 as of version 1, and node 4 in the place of node 3 as of version 2, acknowledged by all.
    fn replaced() -> LayoutHistory {
        let mut history = LayoutHistory::new(3);
        let role = |n: u8| NodeRole { zone: n.to_string(), capacity: Some(1 << 30), tags: Vec::new() };
        for n in 1..=3 {
            history.stage_role(Timestamp::from_millis(1), node(n), role(n)).unwrap();
        }
        history.apply(1).unwrap();
        (1..=3).for_each(|n| history.advance(node(n), OlderWrites::Done));
        history.stage_role(Timestamp::from_millis(2), node(4), role(4)).unwrap();
        history.stage_removal(Timestamp::from_millis(2), node(3)).unwrap();
        history.apply(2).unwrap();
        (1..=4).for_each(|n| history.advance(node(n), OlderWrites::Done));
        history
    }

    fn view(history: &LayoutHistory) -> ClusterLayout {
        ClusterLayout::of(Arc::new(history.clone()))
    }

    /// Does all comparisons with `peers`.
    fn compare(round: &mut Round, peers: &[u8]) {
        for job in round.jobs.drain(..).collect::<Vec<_>>() {
            if let Job::Roots { peer, units } = job
                && peers.iter().any(|n| node(*n) == peer)
            {
                units.into_iter().for_each(|unit| round.done(unit, peer));
            }
        }
    }

    #[test]
    fn one_stale_owner_is_not_enough_to_be_synced() {
        let history = replaced();
        let layout = view(&history);
        for (peers, synced) in [(&[1][..], false), (&[4], false), (&[1, 2], true), (&[2, 3], true)] {
            let mut round = Round::new(&layout, node(4), (OwnRows::Whole, &Tenures::Unrecorded), &TABLES);
            compare(&mut round, peers);
            assert_eq!(round.proof(&layout).synced.is_some(), synced, "{peers:?}");
        }
    }

    #[test]
    fn a_round_for_who_came_up_asks_nobody_else_and_an_idle_one_few_for_full_copies() {
        let layout = view(&replaced());
        let peers_of = |round: &Round, table: TableId| -> BTreeSet<NodeId> {
            let asked = round.jobs.iter().filter_map(|job| match job {
                Job::Roots { peer, units } if round.unit(units[0]).0 == table => Some(*peer),
                _ => None,
            });
            asked.collect()
        };
        let whole = || Round::new(&layout, node(1), (OwnRows::Whole, &Tenures::Unrecorded), &TABLES);
        let (sharded, full) = (TableId(1), TableId(2));
        let all = BTreeSet::from([node(2), node(3), node(4)]);
        assert_eq!((peers_of(&whole(), sharded), peers_of(&whole(), full)), (all.clone(), all.clone()));
        let mut some = whole();
        some.restrict_to(&BTreeSet::from([node(3)]));
        assert_eq!((peers_of(&some, sharded), peers_of(&some, full)), ([node(3)].into(), [node(3)].into()));
        let mut idle = whole();
        idle.spare_full_copies(&BTreeSet::from([node(2)]));
        assert_eq!((peers_of(&idle, sharded), peers_of(&idle, full)), (all, [node(2)].into()));
    }

    #[test]
    fn what_came_from_owners_of_a_version_retired_meanwhile_proves_nothing() {
        let mut history = replaced();
        let mut round = Round::new(&view(&history), node(4), (OwnRows::Whole, &Tenures::Unrecorded), &TABLES);
        compare(&mut round, &[1, 2, 3]);
        let key = history.current().unwrap().key();
        (1..=4).for_each(|n| history.mark_synced(node(n), key).unwrap());
        (0..2).for_each(|_| (1..=4).for_each(|n| history.advance(node(n), OlderWrites::Done)));
        assert_eq!(round.proof(&view(&history)).synced, None);
    }
}
