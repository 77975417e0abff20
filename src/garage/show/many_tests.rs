//! What a cluster of a hundred nodes looks like: a line for each node once, nothing that grows faster, no line too long to read.

use garage_admin::cluster::{ClusterNode, ClusterStatus, Role};
use garage_admin::layout::{Layout, LayoutParameters, LayoutPreview, RoleChange, RoleInfo, ZoneRedundancy};
use garage_admin::layout_plan::{LayoutPlan, NodePlan};
use garage_admin::moves::NodeMoves;
use garage_admin::nodes::Space;
use garage_admin::waiting::{Stalled, Waiting};
use garage_types::NodeId;
use garage_types::hash::blake2b;

use super::{cluster, layout};

const NODES: usize = 100;
const ZONES: usize = 10;
const CAPACITY: u64 = 2_000_000_000_000;
/// A wide terminal.
const LINE_CHARS_MAX: usize = 180;

/// As ids are: in no order that has to do with anything else.
fn id(number: usize) -> NodeId {
    NodeId::from_bytes(blake2b(&number.to_be_bytes()))
}

fn zone(number: usize) -> String {
    format!("place-{}", number % ZONES)
}

fn node(number: usize) -> ClusterNode {
    let tags = vec!["hetzner".to_owned(), format!("rack{}", number % 7), "bought-in-2026-with-the-second-grant".to_owned()];
    let space = Some(Space { available: CAPACITY / 3, total: CAPACITY });
    ClusterNode {
        id: id(number),
        garage_version: Some("v2.0.1".to_owned()),
        addr: Some(format!("[2001:db8:1f3:{number:x}::1]:3901")),
        hostname: Some(format!("storage-{number:03}.with-a-long-name.example.org")),
        is_up: number % 20 != 7,
        last_seen_secs_ago: Some(4000),
        latency_ms: Some(3.0),
        role: Some(Role { zone: zone(number), tags, capacity: (number % 10 != 3).then_some(CAPACITY) }),
        draining: false,
        data_partition: space,
        metadata_partition: space,
        moves: Some(NodeMoves {
            blocks_to_fetch: number as u64,
            bytes_left_estimated: 1_000_000 * number as u64,
            rows_set_aside: 2,
            ..NodeMoves::default()
        }),
        replication_factor: Some(if number == 5 { 2 } else { 3 }),
        consistency_mode: None,
        twin_addresses: vec![],
    }
}

fn roles() -> Layout {
    let role = |number| {
        let node = node(number).role.unwrap();
        RoleInfo {
            id: id(number),
            zone: node.zone,
            tags: node.tags,
            capacity: node.capacity,
            stored_partitions: node.capacity.map(|_bytes| 8),
            usable_capacity: node.capacity,
        }
    };
    let mut roles: Vec<RoleInfo> = (0..NODES).map(role).collect();
    roles.sort_by_key(|role| role.id);
    Layout {
        version: 3,
        roles,
        parameters: LayoutParameters { zone_redundancy: ZoneRedundancy::Maximum },
        partition_size: 1,
        staged_role_changes: vec![],
        staged_parameters: None,
        conflicts: vec![],
    }
}

#[track_caller]
fn is_readable(text: &str, lines_max: usize) {
    let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(longest <= LINE_CHARS_MAX, "a line of {longest} characters:\n{text}");
    let lines = text.lines().count();
    assert!(lines <= lines_max, "{lines} lines:\n{text}");
}

#[test]
fn the_status_of_a_hundred_nodes_is_by_zone_and_counted() {
    let mut nodes: Vec<ClusterNode> = (0..NODES).map(node).collect();
    nodes.sort_by_key(|node| node.id);
    let waiting = (0..NODES).map(|number| Waiting {
        what: Stalled::Rebuilding { node: id(number) },
        for_nodes_away: vec![],
        for_nodes_rebuilding: (0..NODES).filter(|other| *other != number).map(id).collect(),
    });
    let waiting = waiting.collect();
    let status = ClusterStatus {
        layout_version: 3,
        replication_factor: 3,
        consistency_mode: "consistent".into(),
        nodes,
        layout_conflicts: vec![],
        departed: vec![],
        waiting,
    };
    let text = cluster::status(&status, &roles());
    is_readable(&text, NODES + 50);
    let zones: Vec<&str> = text.lines().skip(2).take(95).map(|line| line.split("place-").nth(1).unwrap_or(line)).collect();
    assert!(zones.is_sorted_by_key(|rest| rest.chars().next()), "{text}");
    for part in [
        "\n100 nodes in 10 zones: 95 healthy, 5 failed\n",
        " and 79 more nodes, about 3.2 GB: see garage layout history\n",
        " and 96 more rebuild their metadata",
        " and 96 more have 200 rows set aside",
        "storage-001.with-a-long-name.ex…",
    ] {
        assert!(text.contains(part.trim_start()), "{text}\nshould have\n{part}");
    }
}

#[test]
fn a_change_among_a_hundred_nodes_shows_what_changes() {
    let current = roles();
    is_readable(&layout::show(&current, None), NODES + 10);
    let staged = RoleChange { id: id(1000), remove: false, zone: Some(zone(0)), tags: Some(vec![]), capacity: Some(CAPACITY) };
    let plan = |number| NodePlan {
        id: id(number),
        receives_partitions: if number == 0 { 8 } else { 0 },
        sends_partitions: 1,
        gives_up_partitions: usize::from(number < 30),
        receives_bytes: Some(80_000_000),
        sends_bytes: Some(10_000_000),
        gives_up_bytes: Some(10_000_000),
    };
    let plan = LayoutPlan {
        zone_redundancy: 3,
        usable_capacity: 1,
        effective_capacity: 1,
        partition_bytes: Some(10_000_000),
        nodes: (0..NODES).map(plan).collect(),
        partitions_without_source: 0,
        seconds: Some(7300),
        unknown_speeds: (0..NODES).map(id).collect(),
        disconnected_receivers: (0..NODES).map(id).collect(),
    };
    let preview = LayoutPreview {
        error: None,
        message: vec!["report".to_owned()],
        new_layout: Some(Layout { version: 4, ..current.clone() }),
        plan: Some(plan),
    };
    let text = layout::show(&Layout { staged_role_changes: vec![staged], ..current }, Some(&preview));
    is_readable(&text, 80);
    let changed = text.lines().skip_while(|line| !line.contains("PARTITIONS TO MOVE")).nth(2).unwrap();
    assert!(changed.starts_with(&id(0).short()) && changed.contains("8 (~80.0 MB)"), "who has most to do comes first:\n{text}");
    assert!(text.contains("\nand 80 more nodes with at most 2 each\n") && text.contains("\nplace-0  10 "), "{text}");
}
