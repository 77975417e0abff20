//! What a computed assignment means, in numbers: the command line and the admin API word it.

use std::collections::{BTreeMap, BTreeSet};

use garage_types::NodeId;

use super::assign::{Member, Problem};
use super::assignment::Assignment;

/// Facts about a computed layout. All sizes are in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    pub replication_factor: usize,
    /// Every partition is in at least so many zones.
    pub zones_min: usize,
    pub partition_size: u64,
    /// `None` for the first layout.
    pub partition_size_previous: Option<u64>,
    /// What all copies may take together.
    pub usable: u64,
    /// The sum of the nodes' capacities.
    pub total: u64,
    /// What users can store: `usable` divided by the replication factor.
    pub effective: u64,
    /// Copies of partitions that nodes have to fetch; none in the first layout.
    pub copies_to_transfer: usize,
    /// By ascending zone name.
    pub zones: Vec<ZoneReport>,
}

/// One zone's part in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZoneReport {
    pub zone: String,
    /// By ascending id.
    pub nodes: Vec<NodeReport>,
    /// Copies of partitions in the zone, those of one partition on several nodes counted each.
    pub copies: usize,
    /// Distinct partitions with a copy in the zone.
    pub partitions: usize,
    pub capacity: u64,
    pub usable: u64,
}

/// One storage node's part in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeReport {
    pub node: NodeId,
    pub partitions: usize,
    /// Partitions among them that the node did not hold before.
    pub partitions_new: usize,
    pub capacity: u64,
    pub usable: u64,
}

/// Compares what was asked for with what came out.
pub(super) fn report(problem: &Problem<'_>, zones_min: usize, assignment: &Assignment) -> Report {
    let held = held_partitions(assignment);
    let held_before = problem.previous.map(held_partitions).unwrap_or_default();
    let mut by_zone: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
    for member in problem.members {
        by_zone.entry(&member.zone).or_default().push(member);
    }
    let none = BTreeSet::new();
    let size = assignment.partition_size();
    let zones: Vec<ZoneReport> = by_zone
        .into_iter()
        .map(|(zone, mut members)| {
            members.sort_by_key(|member| member.id);
            let nodes = members.iter().map(|member| {
                let now = held.get(&member.id).unwrap_or(&none);
                let before = held_before.get(&member.id).unwrap_or(&none);
                node_report(member, now, before, problem, size)
            });
            let distinct: BTreeSet<_> = members.iter().filter_map(|member| held.get(&member.id)).flatten().collect();
            zone_report(zone, nodes.collect(), distinct.len())
        })
        .collect();
    let new: usize = zones.iter().flat_map(|zone| &zone.nodes).map(|node| node.partitions_new).sum();
    let usable: u64 = zones.iter().map(|zone| zone.usable).sum();
    Report {
        replication_factor: problem.replication_factor,
        zones_min,
        partition_size: size,
        partition_size_previous: problem.previous.map(Assignment::partition_size),
        usable,
        total: zones.iter().fold(0, |sum, zone| sum.saturating_add(zone.capacity)),
        effective: usable / problem.replication_factor as u64,
        copies_to_transfer: if problem.previous.is_some() { new } else { 0 },
        zones,
    }
}

fn held_partitions(assignment: &Assignment) -> BTreeMap<NodeId, BTreeSet<usize>> {
    let mut held: BTreeMap<NodeId, BTreeSet<usize>> = BTreeMap::new();
    for (partition, row) in assignment.rows().enumerate() {
        for node in row {
            held.entry(node).or_default().insert(partition);
        }
    }
    held
}

fn node_report(
    member: &Member,
    now: &BTreeSet<usize>,
    before: &BTreeSet<usize>,
    problem: &Problem<'_>,
    partition_size: u64,
) -> NodeReport {
    let was_held = |partition: &&usize| before.contains(&problem.previous_partition(**partition));
    NodeReport {
        node: member.id,
        partitions: now.len(),
        partitions_new: now.len() - now.iter().filter(was_held).count(),
        capacity: member.capacity,
        usable: now.len() as u64 * partition_size,
    }
}

fn zone_report(zone: &str, nodes: Vec<NodeReport>, partitions: usize) -> ZoneReport {
    ZoneReport {
        zone: zone.to_owned(),
        copies: nodes.iter().map(|node| node.partitions).sum(),
        partitions,
        capacity: nodes.iter().fold(0, |sum, node| sum.saturating_add(node.capacity)),
        usable: nodes.iter().map(|node| node.usable).sum(),
        nodes,
    }
}
