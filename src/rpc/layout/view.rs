//! The layout as every call sees it: immutable, shared, looked up without allocation where a single answer is wanted.

use std::collections::BTreeSet;
use std::sync::Arc;

use garage_types::placement::Partition;
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Placement};

use super::assignment::Assignment;
use super::history::LayoutHistory;
use super::version::{LayoutVersion, NodeRole, VersionKey};

/// One state of the layout, worked out for looking up. Cheap to hand around in an [`Arc`]; a newer state is another value.
#[derive(Debug)]
pub struct ClusterLayout {
    history: Arc<LayoutHistory>,
    current: Option<Arc<LayoutVersion>>,
    live: Vec<VersionKey>,
    replication_factor: usize,
    reads: Option<Rows>,
    /// By ascending version.
    writes: Vec<Rows>,
    storage_nodes: Vec<NodeId>,
    all_nodes: Vec<NodeId>,
    read_members: Vec<NodeId>,
}

/// An assignment spread out, so that a row is a slice.
#[derive(Debug, Clone)]
struct Rows {
    partition_bits: u8,
    replication_factor: usize,
    nodes: Vec<NodeId>,
}

impl Rows {
    fn of(assignment: &Assignment) -> Self {
        Rows {
            partition_bits: assignment.partition_bits(),
            replication_factor: assignment.replication_factor(),
            nodes: assignment.rows().flatten().collect(),
        }
    }

    fn row(&self, placement: Placement) -> &[NodeId] {
        let Partition(partition) = placement.partition(self.partition_bits);
        let start = usize::from(partition) * self.replication_factor;
        &self.nodes[start..start + self.replication_factor]
    }
}

impl ClusterLayout {
    pub fn of(history: Arc<LayoutHistory>) -> Self {
        let current = history.current().cloned();
        ClusterLayout {
            live: history.live().map(|version| version.key()).collect(),
            replication_factor: history.replication_factor(),
            reads: if is_planted(Bug::ReadsBeforeSynced) { history.current() } else { history.read_version() }
                .map(|version| Rows::of(version.assignment())),
            writes: history.live().map(|version| Rows::of(version.assignment())).collect(),
            storage_nodes: current.iter().flat_map(|version| version.storage_nodes()).collect(),
            read_members: history.read_version().iter().flat_map(|version| version.roles().keys().copied()).collect(),
            all_nodes: history.members().into_iter().collect(),
            current,
            history,
        }
    }

    /// What this view was made from, for showing and for gossip.
    pub fn history(&self) -> &Arc<LayoutHistory> {
        &self.history
    }

    /// No layout was applied yet: nothing can be read or written.
    pub fn is_empty(&self) -> bool {
        self.current.is_none()
    }

    /// The number of the current version; 0 when there is none.
    pub fn version(&self) -> u64 {
        self.current.as_ref().map_or(0, |version| version.number())
    }

    pub fn current(&self) -> Option<&Arc<LayoutVersion>> {
        self.current.as_ref()
    }

    /// By ascending number. Calls with a version older than the first are refused by replicas.
    pub fn live_versions(&self) -> &[VersionKey] {
        &self.live
    }

    pub fn replication_factor(&self) -> usize {
        self.replication_factor
    }

    /// Of the current version; 0 when there is none.
    pub fn partition_bits(&self) -> u8 {
        self.current.as_ref().map_or(0, |version| version.assignment().partition_bits())
    }

    /// The nodes to read from, by ascending id: those of the newest version that every node has synced. Empty without a layout.
    pub fn read_nodes(&self, placement: Placement) -> &[NodeId] {
        self.reads.as_ref().map_or(&[], |rows| rows.row(placement))
    }

    /// The nodes to write to: a set for each live version, each of which needs its write quorum. Equal sets are given once. Empty
    /// without a layout.
    pub fn write_sets(&self, placement: Placement) -> Vec<Vec<NodeId>> {
        self.write_sets_until(placement, u64::MAX)
    }

    /// As [`Self::write_sets`], of the live versions up to one: those that somebody wrote to who knew no later one. None of them may be
    /// live any more.
    pub fn write_sets_until(&self, placement: Placement, last: u64) -> Vec<Vec<NodeId>> {
        let mut sets: Vec<Vec<NodeId>> = Vec::with_capacity(self.writes.len());
        let known = self.live.iter().zip(&self.writes).take_while(|(key, _rows)| key.number <= last);
        for row in known.map(|(_key, rows)| rows.row(placement)) {
            if !sets.iter().any(|set| set == row) {
                sets.push(row.to_vec());
            }
        }
        sets
    }

    /// As [`Self::write_sets`], for tables of which every node with a role has a full copy.
    pub fn full_copy_sets(&self) -> Vec<Vec<NodeId>> {
        let mut sets: Vec<Vec<NodeId>> = self.history.live().map(|version| version.roles().keys().copied().collect()).collect();
        sets.dedup();
        sets
    }

    /// Whether `node` holds, or is about to hold, what lives at `placement`: it does in some live version.
    pub fn is_owner(&self, node: NodeId, placement: Placement) -> bool {
        self.writes.iter().any(|rows| rows.row(placement).contains(&node))
    }

    /// Nodes that held what lives at `placement` in versions that are not live any more, and hold it in none that is; latest first.
    /// Blocks that did not move yet are found there.
    pub fn past_nodes(&self, placement: Placement) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = Vec::new();
        for assignment in self.history.past().map(|version| version.assignment()) {
            for node in assignment.row(placement.partition(assignment.partition_bits())) {
                if !nodes.contains(&node) && !self.is_owner(node, placement) {
                    nodes.push(node);
                }
            }
        }
        nodes
    }

    /// Nodes with capacity in the current version, by ascending id.
    pub fn storage_nodes(&self) -> &[NodeId] {
        &self.storage_nodes
    }

    /// Nodes with a role in the version that reads use: each has, or may ask the others for, every row of the full-copy tables.
    pub fn read_members(&self) -> &[NodeId] {
        &self.read_members
    }

    /// Nodes with a role in any live version, gateways and draining nodes included, by ascending id.
    pub fn all_nodes(&self) -> &[NodeId] {
        &self.all_nodes
    }

    /// The node's role in the current version.
    pub fn role(&self, node: NodeId) -> Option<&NodeRole> {
        self.current.as_ref().and_then(|version| version.roles().get(&node))
    }

    /// The partitions that a node holds in any live version, by ascending number: what its table sync goes through. Versions with
    /// another number of partitions than the current one are left out.
    pub fn partitions_of(&self, node: NodeId) -> Vec<Partition> {
        let mut held = BTreeSet::new();
        let bits = self.partition_bits();
        for rows in self.writes.iter().filter(|rows| rows.partition_bits == bits) {
            let owned = rows.nodes.chunks_exact(rows.replication_factor).zip(0..).filter(|(row, _)| row.contains(&node));
            held.extend(owned.map(|(_, partition)| Partition(partition)));
        }
        held.into_iter().collect()
    }
}
