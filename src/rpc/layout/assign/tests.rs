use std::collections::BTreeSet;

use garage_types::NodeId;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop, proptest};

use super::{AssignError, Member, Problem, Solution, assign, share_cost};
use crate::layout::assignment::Assignment;
use crate::layout::version::ZoneRedundancy;

const TB: u64 = 1_000_000_000_000;

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn member(n: u8, zone: &str, capacity: u64) -> Member {
    Member { id: node(n), zone: zone.to_owned(), capacity }
}

fn problem(members: &[Member], replication_factor: usize) -> Problem<'_> {
    Problem { members, replication_factor, zone_redundancy: ZoneRedundancy::Maximum, partition_bits: 8, previous: None }
}

fn partitions(solution: &Solution, n: u8) -> usize {
    solution.assignment.partitions_of(node(n))
}

/// Mercury and Venus in Paris, Earth in London, Mars in Brussels.
fn planets() -> [Member; 4] {
    [member(1, "par1", TB), member(2, "par1", 2 * TB), member(3, "lon1", 2 * TB), member(4, "bru1", 3 * TB / 2)]
}

#[test]
fn the_smallest_zone_decides_and_paris_shares_by_capacity() {
    let members = planets();
    let solution = assign(&problem(&members, 3)).unwrap();
    assert_eq!(solution.assignment.partition_size(), 3 * TB / 2 / 256);
    assert_eq!([1, 2, 3, 4].map(|n| partitions(&solution, n)), [85, 171, 256, 256]);
    let report = solution.report;
    assert_eq!((report.zones_min, report.total, report.copies_to_transfer), (3, 13 * TB / 2, 0));
    assert_eq!(report.partition_size_previous, None);
    assert_eq!(report.usable, report.effective * 3);
    let zones: Vec<_> = report.zones.iter().map(|zone| (zone.zone.as_str(), zone.copies, zone.partitions)).collect();
    assert_eq!(zones, [("bru1", 256, 256), ("lon1", 256, 256), ("par1", 256, 256)]);
    let paris = &report.zones[2].nodes;
    assert_eq!((paris[0].partitions_new, paris[1].partitions_new), (85, 171));
    assert_eq!(paris[0].usable, 85 * report.partition_size);
}

#[test]
fn the_order_of_the_members_does_not_matter() {
    let mut members = planets();
    let one = assign(&problem(&members, 3)).unwrap();
    members.reverse();
    let other = assign(&problem(&members, 3)).unwrap();
    assert_eq!(one.assignment, other.assignment);
    assert_eq!(one.report, other.report);
}

#[test]
fn an_unchanged_cluster_moves_nothing() {
    let members = planets();
    let before = assign(&problem(&members, 3)).unwrap().assignment;
    let after = assign(&Problem { previous: Some(&before), ..problem(&members, 3) }).unwrap();
    assert_eq!(after.report.copies_to_transfer, 0);
    assert_eq!(after.report.partition_size_previous, Some(before.partition_size()));
}

#[test]
fn a_node_added_where_it_cannot_raise_the_partition_size_gets_nothing() {
    let mut members = planets().to_vec();
    let before = assign(&problem(&members, 3)).unwrap().assignment;
    members.push(member(5, "lon1", 2 * TB));
    let after = assign(&Problem { previous: Some(&before), ..problem(&members, 3) }).unwrap();
    assert_eq!((partitions(&after, 5), after.report.copies_to_transfer), (0, 0));
}

#[test]
fn halving_the_neighbours_capacity_makes_them_share_with_the_new_node() {
    let members = planets();
    let before = assign(&problem(&members, 3)).unwrap().assignment;
    let members = [&planets()[..2], &[member(3, "lon1", TB), member(4, "bru1", 3 * TB / 2), member(5, "lon1", TB)]].concat();
    let after = assign(&Problem { previous: Some(&before), ..problem(&members, 3) }).unwrap();
    assert_eq!(after.assignment.partition_size(), before.partition_size());
    assert_eq!(partitions(&after, 3), 170, "as many as fit");
    assert_eq!((partitions(&after, 5), after.report.copies_to_transfer), (86, 86));
}

/// Zone `a` of `neighbours` and node 1, which then moves to node 9 in zone `b`; zone `c` keeps the partition size as it is.
fn move_node_one(neighbours: std::ops::Range<u8>) -> Solution {
    let cluster = |zone: &str| -> Vec<Member> {
        let neighbours = neighbours.clone().map(|n| member(n, "a", 2 * TB));
        neighbours.chain([member(1, zone, 2 * TB), member(8, "c", 2 * TB), member(9, "b", 2 * TB)]).collect()
    };
    let before = assign(&problem(&cluster("a"), 3)).unwrap().assignment;
    assign(&Problem { previous: Some(&before), ..problem(&cluster("b"), 3) }).unwrap()
}

#[test]
fn a_node_moved_to_another_zone_fetches_nothing_there_even_if_shares_stay_uneven() {
    let after = move_node_one(2..5);
    assert_eq!([9, 1].map(|n| partitions(&after, n)), [192, 64], "three quarters and one quarter");
    assert_eq!(after.report.copies_to_transfer, 64, "only the zone it left replaces its copies");
}

#[test]
fn a_node_moved_to_another_zone_takes_an_equal_share_when_it_has_the_copies() {
    let after = move_node_one(2..3);
    assert_eq!([9, 1].map(|n| partitions(&after, n)), [128, 128]);
    assert_eq!(after.report.copies_to_transfer, 128);
}

#[test]
fn a_single_node_holds_everything_once() {
    let members = [member(1, "here", 1024)];
    let solution = assign(&problem(&members, 1)).unwrap();
    assert_eq!((partitions(&solution, 1), solution.assignment.partition_size()), (256, 4));
}

#[test]
fn two_zones_are_enough_when_so_configured() {
    let members = [member(1, "a", TB), member(2, "a", TB), member(3, "b", TB)];
    let two = Problem { zone_redundancy: ZoneRedundancy::AtLeast(2), ..problem(&members, 3) };
    assert_eq!(assign(&two).unwrap().assignment.partition_size(), TB / 256);
    let three = Problem { zone_redundancy: ZoneRedundancy::AtLeast(3), ..problem(&members, 3) };
    assert_eq!(assign(&three).unwrap_err(), AssignError::TooFewZones { needed: 3, found: 2 });
    let four = Problem { zone_redundancy: ZoneRedundancy::AtLeast(4), ..problem(&members, 3) };
    assert_eq!(assign(&four).unwrap_err(), AssignError::RedundancyTooHigh { needed: 4, replication_factor: 3 });
}

#[test]
fn too_few_nodes_or_too_little_room_is_said() {
    let members = [member(1, "a", TB), member(2, "a", 10)];
    assert_eq!(assign(&problem(&members, 3)).unwrap_err(), AssignError::TooFewNodes { needed: 3, found: 2 });
    assert_eq!(assign(&problem(&members, 2)).unwrap_err(), AssignError::CapacityTooSmall { copies: 512 });
    assert_eq!(assign(&problem(&[], 1)).unwrap_err(), AssignError::TooFewNodes { needed: 1, found: 0 });
}

#[test]
fn splitting_partitions_leaves_their_content_where_it_is() {
    let members = planets();
    let before = assign(&Problem { partition_bits: 4, ..problem(&members, 3) }).unwrap().assignment;
    let after = assign(&Problem { partition_bits: 5, previous: Some(&before), ..problem(&members, 3) }).unwrap();
    assert_eq!(after.report.copies_to_transfer, 0);
    assert_eq!(after.assignment.rows().count(), 32);
}

fn hundred(capacity_of: impl Fn(u8) -> u64) -> Vec<Member> {
    (0..100).map(|n| member(n, ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][usize::from(n % 10)], capacity_of(n))).collect()
}

/// A first layout of a hundred nodes in ten zones, and one after three left and many capacities changed.
fn hundred_twice() -> [Solution; 2] {
    let members = hundred(|n| TB * (1 + u64::from(n) * 7 % 13));
    let first = assign(&problem(&members, 3)).unwrap();
    let members = hundred(|n| if n < 30 { TB } else { TB * (1 + u64::from(n) * 5 % 11) });
    let second = assign(&Problem { previous: Some(&first.assignment), ..problem(&members[3..], 3) }).unwrap();
    [first, second]
}

#[test]
fn most_copies_stay_when_many_of_a_hundred_nodes_change() {
    let [_first, second] = hundred_twice();
    assert!(second.report.copies_to_transfer < 400, "{}", second.report.copies_to_transfer);
}

/// Measures real time: `cargo test --release -p garage-rpc -- --ignored --nocapture takes_less_than_five_seconds`.
#[test]
#[ignore = "a measurement"]
fn each_layout_of_a_hundred_nodes_takes_less_than_five_seconds() {
    let start = std::time::Instant::now();
    let solutions = hundred_twice();
    let took = start.elapsed();
    println!("{} layouts of a hundred nodes in ten zones: {took:?}", solutions.len());
    assert!(took.as_secs() < 5, "{took:?}");
}

/// A cluster small enough to try every assignment.
#[derive(Debug, Clone)]
struct SmallCase {
    members: Vec<Member>,
    replication_factor: usize,
    redundancy: ZoneRedundancy,
    /// Nodes of each of the four partitions before, as indices that may point past the members (nodes that left).
    previous: Option<Vec<Vec<u8>>>,
}

fn small_cases() -> impl Strategy<Value = SmallCase> {
    let members = prop::collection::vec((0..3_usize, 1..40_u64), 1..=4);
    (members, 1..=3_usize).prop_flat_map(|(members, replication_factor)| {
        let members: Vec<Member> =
            members.into_iter().zip(0..).map(|((zone, capacity), n)| member(n, ["x", "y", "z"][zone], capacity)).collect();
        let row = prop::sample::subsequence((0..5_u8).collect::<Vec<_>>(), replication_factor);
        let redundancy = (0..=replication_factor).prop_map(|zones| match zones {
            0 => ZoneRedundancy::Maximum,
            zones => ZoneRedundancy::AtLeast(zones),
        });
        let previous = prop::option::of(prop::collection::vec(row, 4));
        (Just(members), Just(replication_factor), redundancy, previous).prop_map(
            |(members, replication_factor, redundancy, previous)| SmallCase { members, replication_factor, redundancy, previous },
        )
    })
}

/// What the best of all assignments achieves, found by trying them all.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Best {
    size: u64,
    moves: usize,
    uneven: i64,
}

fn rows_allowed(case: &SmallCase, zones_min: usize) -> Vec<Vec<usize>> {
    let all = (0..1_u32 << case.members.len()).map(|mask| (0..case.members.len()).filter(|n| mask >> n & 1 == 1).collect());
    let allowed = |row: &Vec<usize>| {
        let zones: BTreeSet<&str> = row.iter().map(|n| case.members[*n].zone.as_str()).collect();
        row.len() == case.replication_factor && zones.len() >= zones_min
    };
    all.filter(allowed).collect()
}

fn unevenness(held: &[u32], case: &SmallCase, size: u64) -> i64 {
    let node = |(held, member): (&u32, &Member)| (0..*held).map(|k| share_cost(k, member.capacity, size)).sum::<i64>();
    held.iter().zip(&case.members).map(node).sum()
}

fn best_of_all(case: &SmallCase) -> Option<Best> {
    let zones: BTreeSet<&str> = case.members.iter().map(|member| member.zone.as_str()).collect();
    let zones_min = match case.redundancy {
        ZoneRedundancy::Maximum => zones.len().min(case.replication_factor),
        ZoneRedundancy::AtLeast(zones) => zones,
    };
    let rows = rows_allowed(case, zones_min);
    // Shares and moves of every choice of four rows.
    let mut tried: BTreeSet<(Vec<u32>, usize)> = BTreeSet::from([(vec![0; case.members.len()], 0)]);
    for partition in 0..4 {
        let before: &[u8] = case.previous.as_ref().map_or(&[], |rows| &rows[partition]);
        let mut longer = BTreeSet::new();
        for ((held, moves), row) in tried.iter().flat_map(|choice| rows.iter().map(move |row| (choice, row))) {
            let mut held = held.clone();
            row.iter().for_each(|n| held[*n] += 1);
            longer.insert((held, moves + row.iter().filter(|n| !before.contains(&(**n as u8))).count()));
        }
        tried = longer;
    }
    let fits = |held: &[u32]| {
        let used = held.iter().zip(&case.members).filter(|(held, _)| **held > 0);
        used.map(|(held, member)| member.capacity / u64::from(*held)).min().unwrap_or(0)
    };
    let size = tried.iter().map(|(held, _)| fits(held)).max().filter(|size| *size > 0)?;
    let optimal = tried.iter().filter(|(held, _)| fits(held) >= size);
    let ranked = optimal.map(|(held, moves)| (*moves, unevenness(held, case, size)));
    ranked.min().map(|(moves, uneven)| Best { size, moves, uneven })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn no_assignment_is_better_than_the_computed_one(case in small_cases()) {
        let previous = case.previous.as_ref().map(|rows| {
            let nodes = (0..5).map(node).collect();
            let copies = rows.concat().into_iter().map(u16::from).collect();
            Assignment::new(nodes, case.replication_factor, 2, 1, copies).unwrap()
        });
        let computed = assign(&Problem {
            members: &case.members,
            replication_factor: case.replication_factor,
            zone_redundancy: case.redundancy,
            partition_bits: 2,
            previous: previous.as_ref(),
        });
        let achieved = computed.ok().map(|solution| {
            let assignment = &solution.assignment;
            let held: Vec<u32> = case.members.iter().map(|member| assignment.partitions_of(member.id) as u32).collect();
            let before: Vec<Vec<u8>> = case.previous.clone().unwrap_or(vec![Vec::new(); 4]);
            let moved = |(row, before): (Vec<NodeId>, &Vec<u8>)| row.iter().filter(|id| !before.iter().any(|n| node(*n) == **id)).count();
            let moves = assignment.rows().map(Iterator::collect).zip(&before).map(moved).sum();
            if case.previous.is_some() { assert_eq!(solution.report.copies_to_transfer, moves); }
            Best { size: assignment.partition_size(), moves, uneven: unevenness(&held, &case, assignment.partition_size()) }
        });
        assert_eq!(achieved, best_of_all(&case));
    }
}
