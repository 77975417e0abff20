//! Computes which nodes hold each partition: maximum flow, then minimum cost.
//!
//! Pure. In order of importance: every partition on `replication_factor` distinct nodes over enough zones; partitions as large as
//! the capacities allow; as few copies moved from the previous assignment as possible; shares close to the ratio of the capacities;
//! moves spread over node pairs (arcs are walked in random order). The randomness is seeded by the input, so that every node computes
//! the same assignment from it. Called by [`super::history`].

use std::collections::{BTreeMap, BTreeSet};

use garage_types::NodeId;
use garage_types::hash::blake2b;
use garage_types::random::SeededRandom;
use serde::Serialize;

use super::assignment::Assignment;
use super::flow::{Arc, FlowNetwork, Vertex};
use super::report::{Report, report};
use super::version::ZoneRedundancy;

/// A storage node, as far as the assignment is concerned.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Member {
    pub id: NodeId,
    pub zone: String,
    /// Bytes.
    pub capacity: u64,
}

/// What to assign to whom.
#[derive(Clone, Debug, Serialize)]
pub struct Problem<'a> {
    /// Storage nodes with distinct ids, gateways left out; their order does not matter.
    pub members: &'a [Member],
    /// At least 1.
    pub replication_factor: usize,
    pub zone_redundancy: ZoneRedundancy,
    /// There are `2^partition_bits` partitions; at most 16.
    pub partition_bits: u8,
    /// The assignment in force, of which as much as possible is kept.
    pub previous: Option<&'a Assignment>,
}

/// An assignment and what it means.
#[derive(Clone, Debug)]
pub struct Solution {
    pub assignment: Assignment,
    pub report: Report,
}

/// Why no assignment exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    #[error("{needed} storage nodes are needed, there are {found}")]
    TooFewNodes { needed: usize, found: usize },
    #[error("storage nodes are needed in {needed} zones, there are {found}")]
    TooFewZones { needed: usize, found: usize },
    #[error("at most {max} storage nodes are possible, there are {found}")]
    TooManyNodes { max: usize, found: usize },
    #[error("{needed} zones for each partition are more than its {replication_factor} copies")]
    RedundancyTooHigh { needed: usize, replication_factor: usize },
    #[error("the capacities are too small for {copies} copies of partitions")]
    CapacityTooSmall { copies: usize },
}

impl Problem<'_> {
    fn partitions(&self) -> usize {
        1 << self.partition_bits
    }

    fn copies(&self) -> usize {
        self.partitions() * self.replication_factor
    }

    /// The partition of the previous assignment that held what `partition` holds: they differ when the number of partitions does.
    pub(super) fn previous_partition(&self, partition: usize) -> usize {
        let before = self.previous.map_or(self.partition_bits, Assignment::partition_bits);
        if before >= self.partition_bits {
            partition << (before - self.partition_bits)
        } else {
            partition >> (self.partition_bits - before)
        }
    }
}

/// Assigns every partition of a new layout version to storage nodes.
///
/// Returns, for each partition, `replication_factor` distinct nodes in enough zones: partition size maximal, then copies moved from
/// the previous assignment minimal. Same input, same output, on every node. May take seconds for a hundred nodes: not for an async thread.
///
/// # Errors
/// [`AssignError`]: no assignment exists, and why.
///
/// # Panics
/// When `replication_factor` is 0 or `partition_bits` exceeds 16.
pub fn assign(problem: &Problem<'_>) -> Result<Solution, AssignError> {
    assert!(problem.replication_factor > 0, "a partition has at least one copy");
    assert!(problem.partition_bits <= Assignment::PARTITION_BITS_MAX, "a layout has at most 2^16 partitions");
    let mut members = problem.members.to_vec();
    members.sort_by_key(|member| member.id);
    let problem = Problem { members: &members, ..problem.clone() };
    let zones_min = check_numbers(&problem)?;

    let mut solver = Solver::new(&problem, zones_min);
    let size = solver.largest_partition_size().ok_or(AssignError::CapacityTooSmall { copies: problem.copies() })?;
    solver.keep_previous_copies(size);
    solver.minimise_moves();
    solver.even_out(size);
    let assignment = solver.assignment(size);
    let report = report(&problem, zones_min, &assignment);
    Ok(Solution { assignment, report })
}

/// How many zones each partition must be in, once there are enough nodes and zones at all.
fn check_numbers(problem: &Problem<'_>) -> Result<usize, AssignError> {
    let replication_factor = problem.replication_factor;
    let found = problem.members.len();
    if found < replication_factor {
        return Err(AssignError::TooFewNodes { needed: replication_factor, found });
    }
    if found > Assignment::NODES_MAX {
        return Err(AssignError::TooManyNodes { max: Assignment::NODES_MAX, found });
    }
    let zones: BTreeSet<&str> = problem.members.iter().map(|member| member.zone.as_str()).collect();
    match problem.zone_redundancy {
        ZoneRedundancy::Maximum => Ok(zones.len().min(replication_factor)),
        ZoneRedundancy::AtLeast(needed) if needed > replication_factor => {
            Err(AssignError::RedundancyTooHigh { needed, replication_factor })
        }
        ZoneRedundancy::AtLeast(needed) if needed > zones.len() => Err(AssignError::TooFewZones { needed, found: zones.len() }),
        ZoneRedundancy::AtLeast(needed) => Ok(needed),
    }
}

/// An arc from a partition's place in a zone to a node of that zone: with flow, the node holds the partition.
struct CopyArc {
    arc: Arc,
    partition: usize,
    member: usize,
    /// The node holds the partition in the previous assignment.
    kept: bool,
}

/// One copy moved outweighs every difference in shares: a cycle passes the sink once, so that the shares count
/// for less than `4 * SHARE_SCALE` in it.
const MOVE_COST: i64 = 8 * SHARE_SCALE;
const SHARE_SCALE: i64 = 1 << 20;

const SOURCE: Vertex = 0;
const SINK: Vertex = 1;

/// The flow network: source → p⁺, p⁻ → x(partition, zone) → node → sink. What p⁺ passes on goes to distinct zones, what p⁻ passes
/// on goes anywhere; the capacity of node → sink is the number of partitions of the size in question that fit the node.
struct Solver<'a> {
    problem: &'a Problem<'a>,
    network: FlowNetwork,
    copies: Vec<CopyArc>,
    /// In the order of the members.
    sinks: Vec<Arc>,
}

impl<'a> Solver<'a> {
    fn new(problem: &'a Problem<'a>, zones_min: usize) -> Self {
        let partitions = problem.partitions();
        let names: BTreeSet<&str> = problem.members.iter().map(|member| member.zone.as_str()).collect();
        let zones: BTreeMap<&str, usize> = names.into_iter().zip(0..).collect();
        let free = problem.replication_factor - zones_min;
        let first_place = 2 + 2 * partitions;
        let first_node = first_place + partitions * zones.len();
        let mut network = FlowNetwork::new(first_node + problem.members.len());
        let mut copies = Vec::with_capacity(partitions * problem.members.len());
        let sinks = (0..problem.members.len()).map(|member| network.add_arc(first_node + member, SINK, 0)).collect();
        let previous = previous_holders(problem);
        for (partition, previous) in previous.iter().enumerate() {
            let place = |zone: usize| first_place + partition * zones.len() + zone;
            let (spread, anywhere) = (2 + partition, 2 + partitions + partition);
            network.add_arc(SOURCE, spread, zones_min as u32);
            if free > 0 {
                network.add_arc(SOURCE, anywhere, free as u32);
            }
            for zone in 0..zones.len() {
                network.add_arc(spread, place(zone), 1);
                if free > 0 {
                    network.add_arc(anywhere, place(zone), free as u32);
                }
            }
            for (index, member) in problem.members.iter().enumerate() {
                let arc = network.add_arc(place(zones[member.zone.as_str()]), first_node + index, 1);
                copies.push(CopyArc { arc, partition, member: index, kept: previous.contains(&member.id) });
            }
        }
        let seed = rmp_serde::to_vec(problem).expect("plain data always serializes into memory");
        network.shuffle(&SeededRandom::from_seed(blake2b(&seed)));
        Solver { problem, network, copies, sinks }
    }

    fn set_partition_size(&mut self, size: u64) {
        self.network.clear_flow();
        for (arc, member) in self.sinks.iter().zip(self.problem.members) {
            let fits = (member.capacity / size).min(self.problem.partitions() as u64);
            self.network.reset_arc(*arc, fits as u32);
        }
    }

    fn is_feasible(&mut self, size: u64) -> bool {
        self.set_partition_size(size);
        self.network.maximise(SOURCE, SINK) == self.problem.copies() as u64
    }

    /// Binary search; `None` when not even partitions of one byte fit.
    fn largest_partition_size(&mut self) -> Option<u64> {
        let total: u128 = self.problem.members.iter().map(|member| u128::from(member.capacity)).sum();
        let bound = u64::try_from(total / self.problem.copies() as u128).unwrap_or(u64::MAX - 1);
        if !self.is_feasible(1) {
            return None;
        }
        let (mut feasible, mut infeasible) = (1, bound + 1);
        while feasible + 1 < infeasible {
            let middle = feasible + (infeasible - feasible) / 2;
            if self.is_feasible(middle) {
                feasible = middle;
            } else {
                infeasible = middle;
            }
        }
        Some(feasible)
    }

    /// A maximum flow that begins with as many of the previous copies as fit together.
    fn keep_previous_copies(&mut self, size: u64) {
        self.set_partition_size(size);
        for copy in self.copies.iter().filter(|copy| !copy.kept) {
            self.network.reset_arc(copy.arc, 0);
        }
        let kept = self.network.maximise(SOURCE, SINK);
        for copy in self.copies.iter().filter(|copy| !copy.kept) {
            self.network.widen_arc(copy.arc, 1);
        }
        let added = self.network.maximise(SOURCE, SINK);
        assert_eq!(kept + added, self.problem.copies() as u64, "a feasible size stays feasible");
    }

    /// The price of each arc, by its index, when every new copy costs one.
    fn move_costs(&self) -> Vec<i64> {
        let arcs = self.copies.iter().map(|copy| copy.arc.index()).max().map_or(0, |last| last + 1);
        let mut costs = vec![0; arcs];
        for copy in self.copies.iter().filter(|copy| !copy.kept) {
            costs[copy.arc.index()] = 1;
        }
        costs
    }

    /// Makes the number of copies moved minimal, whatever it takes.
    fn minimise_moves(&mut self) {
        if self.problem.previous.is_none() {
            return;
        }
        let costs = self.move_costs();
        self.network.cancel_negative_cycles(usize::MAX, |_, arc| signed(arc, costs[arc.index()]));
    }

    /// Among assignments with equally few moves, goes towards the one whose shares follow the capacities: it minimises the sum over
    /// nodes of `partitions² / capacity`.
    fn even_out(&mut self, size: u64) {
        let moves = self.move_costs();
        let capacities: Vec<u64> = self.problem.members.iter().map(|member| member.capacity).collect();
        // Arcs to the sink were added first: their index is the member's.
        let cost = move |network: &FlowNetwork, arc: Arc| match capacities.get(arc.index()) {
            Some(capacity) if arc.is_forward() => share_cost(network.flow(arc), *capacity, size),
            Some(capacity) => -share_cost(network.flow(arc.reversed()) - 1, *capacity, size),
            None => signed(arc, MOVE_COST * moves[arc.index()]),
        };
        // A nicety, not worth an endless search.
        let cycles_max = 16 * self.problem.copies();
        self.network.cancel_negative_cycles(cycles_max, cost);
    }

    fn assignment(&self, size: u64) -> Assignment {
        let mut rows = vec![Vec::new(); self.problem.partitions()];
        for copy in self.copies.iter().filter(|copy| self.network.flow(copy.arc) > 0) {
            rows[copy.partition].push(copy.member as u16);
        }
        let nodes = self.problem.members.iter().map(|member| member.id).collect();
        let Problem { replication_factor, partition_bits, .. } = *self.problem;
        Assignment::new(nodes, replication_factor, partition_bits, size, rows.concat())
            .expect("a maximum flow gives each partition its copies on distinct nodes")
    }
}

/// For each partition, the nodes that hold it already.
fn previous_holders(problem: &Problem<'_>) -> Vec<BTreeSet<NodeId>> {
    let Some(previous) = problem.previous else { return vec![BTreeSet::new(); problem.partitions()] };
    let rows: Vec<BTreeSet<NodeId>> = previous.rows().map(Iterator::collect).collect();
    (0..problem.partitions()).map(|partition| rows[problem.previous_partition(partition)].clone()).collect()
}

fn signed(arc: Arc, cost: i64) -> i64 {
    if arc.is_forward() { cost } else { -cost }
}

/// The price of a node's next partition when it holds `held`: grows with how full it is. At most `2 * SHARE_SCALE` as long as
/// the partition fits.
fn share_cost(held: u32, capacity: u64, partition_size: u64) -> i64 {
    let filled = (2 * u128::from(held) + 1) * u128::from(partition_size) * SHARE_SCALE as u128;
    (filled / u128::from(capacity.max(1))) as i64
}

#[cfg(test)]
mod tests;
