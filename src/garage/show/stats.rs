//! `garage stats`

use garage_admin::cluster::ClusterStatus;
use garage_admin::layout::Layout;
use garage_admin::nodes::{BlockStatistics, Multi, NodeStatistics, Space};
use garage_types::NodeId;
use garage_types::size::format_decimal;
use serde::Serialize;

use super::{heading, moves, row, table};

/// What nodes store, and what the cluster still has room for.
pub fn stats(nodes: &Multi<NodeStatistics>, status: &ClusterStatus, layout: &Layout) -> String {
    let mut text = String::new();
    for (id, statistics) in &nodes.success {
        text += &node(*id, statistics);
        text += "\n";
    }
    for (id, error) in &nodes.error {
        text += &heading(&format!("NODE [{}]", id.short()));
        text += &format!("Error: {error}\n\n");
    }
    text + &cluster(status, layout)
}

fn node(id: NodeId, statistics: &NodeStatistics) -> String {
    let info = &statistics.info;
    let features = info.garage_features.as_deref().unwrap_or_default().join(", ");
    let mut text = heading(&format!("NODE [{}]", id.short()));
    text += &table(&[
        row(["Node ID:", &id.short()]),
        row(["Hostname:", &statistics.hostname]),
        row(["Garage version:", &info.garage_version]),
        row(["Garage features:", &features]),
        row(["Rust compiler version:", &info.rust_version]),
        row(["Database engine:", &info.db_engine]),
    ]);
    if info.rebuilding {
        text += "\nThis node rebuilds its metadata from the other owners, and answers for none of it until that is done.\n";
    }
    text += "\nTable stats:\n";
    let mut rows = vec![row(["  Table", "Items"])];
    rows.extend(statistics.tables.iter().map(|table| vec![format!("  {}", table.name), table.items.to_string()]));
    text += &table(&rows);
    text += &format!("\nInsert queue length: {}\n", statistics.insert_queue_length);
    if let Some(damaged) = statistics.damaged_rows.filter(|damaged| *damaged > 0) {
        text += &format!(
            "Damaged rows: {damaged} (the log names them; they are repaired from their other copies, once those answer)\n"
        );
    }
    if let Some(BlockStatistics { rc_entries, resync_queue_length, resync_errors, unreferenced }) = statistics.blocks {
        text += "\nBlock manager stats:\n";
        text += &table(&[
            row(["  number of RC entries:", &format!("{rc_entries} (~= number of blocks)")]),
            row(["  resync queue length:", &resync_queue_length.to_string()]),
            row(["  blocks with resync errors:", &resync_errors.to_string()]),
            row(["  unreferenced block files:", &unreferenced.to_string()]),
        ]);
    }
    for path in &statistics.exchanged_directories {
        text += &format!(
            "\nData directory {path} is not the one that was opened: mount the right disk there, or restart the node to use this one.\n"
        );
    }
    text += &statistics.moves.as_ref().map(moves::of_node).unwrap_or_default();
    text
}

fn cluster(status: &ClusterStatus, layout: &Layout) -> String {
    let mut text = heading("CLUSTER STATISTICS");
    if layout.roles.is_empty() {
        return text + "No node has a role yet: see garage status, then garage layout assign.\n";
    }
    let space = |space: Option<Space>| match space {
        None => "?".to_owned(),
        Some(Space { available, total }) => {
            let percent = if total == 0 { 0.0 } else { available as f64 * 100.0 / total as f64 };
            format!("{}/{} ({percent:.1}%)", format_decimal(available), format_decimal(total))
        }
    };
    let mut rows = vec![row(["  ID", "Hostname", "Zone", "Capacity", "Part.", "DataAvail", "MetaAvail"])];
    for role in &layout.roles {
        let Some(capacity) = role.capacity else { continue };
        let node = status.nodes.iter().find(|node| node.id == role.id);
        rows.push(vec![
            format!("  {}", role.id.short()),
            node.and_then(|node| node.hostname.clone()).unwrap_or_else(|| "?".to_owned()),
            role.zone.clone(),
            format_decimal(capacity),
            role.stored_partitions.unwrap_or(0).to_string(),
            space(node.and_then(|node| node.data_partition)),
            space(node.and_then(|node| node.metadata_partition)),
        ]);
    }
    text += "Storage nodes:\n";
    text += &table(&rows);
    let estimate = |kind: fn(&garage_admin::cluster::ClusterNode) -> Option<Space>| {
        free_space(status, layout, kind).map_or_else(|| "?".to_owned(), |free| free.to_string())
    };
    text += "\nEstimated free space for the whole cluster (upper estimate):\n";
    text += &table(&[
        row(["  data:", &estimate(|node| node.data_partition)]),
        row(["  metadata:", &estimate(|node| node.metadata_partition)]),
    ]);
    text
}

/// What the cluster still has room for, as JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoomLeft {
    /// `None` when no node tells.
    data_bytes_free_estimated: Option<u64>,
    metadata_bytes_free_estimated: Option<u64>,
    /// Some nodes do not tell: there may be less.
    is_upper_bound: bool,
}

/// What the cluster still has room for.
pub fn room_left(status: &ClusterStatus, layout: &Layout) -> RoomLeft {
    let data = free_space(status, layout, |node| node.data_partition);
    let metadata = free_space(status, layout, |node| node.metadata_partition);
    let bytes = |free: FreeSpace| match free {
        FreeSpace::Exactly(bytes) | FreeSpace::AtMost(bytes) => bytes,
    };
    RoomLeft {
        data_bytes_free_estimated: data.map(bytes),
        metadata_bytes_free_estimated: metadata.map(bytes),
        is_upper_bound: [data, metadata].iter().any(|free| !matches!(free, Some(FreeSpace::Exactly(_)))),
    }
}

/// How much fits until the first node is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FreeSpace {
    Exactly(u64),
    /// Some nodes did not tell.
    AtMost(u64),
}

impl std::fmt::Display for FreeSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FreeSpace::Exactly(bytes) => f.write_str(&format_decimal(*bytes)),
            FreeSpace::AtMost(bytes) => write!(f, "< {} (some nodes do not tell)", format_decimal(*bytes)),
        }
    }
}

/// Partitions grow alike: the node with the least room per partition decides. `None` when no node tells.
fn free_space(
    status: &ClusterStatus,
    layout: &Layout,
    kind: fn(&garage_admin::cluster::ClusterNode) -> Option<Space>,
) -> Option<FreeSpace> {
    let storing =
        layout.roles.iter().filter_map(|role| role.stored_partitions.filter(|held| *held > 0).map(|held| (role.id, held)));
    let mut per_partition: Option<u64> = None;
    let mut silent = 0;
    let mut copies = 0;
    for (id, held) in storing {
        copies += held;
        match status.nodes.iter().find(|node| node.id == id).and_then(kind) {
            Some(space) => {
                let room = space.available / held as u64;
                per_partition = Some(per_partition.map_or(room, |least| least.min(room)));
            }
            None => silent += 1,
        }
    }
    // Every partition is held as often as the replication factor says; there are 256 of them at the usual 8 bits.
    let partitions = 256.min(copies as u64);
    let free = per_partition?.saturating_mul(partitions);
    Some(if silent == 0 { FreeSpace::Exactly(free) } else { FreeSpace::AtMost(free) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_admin::cluster::{ClusterNode, ClusterStatus};
    use garage_admin::layout::{Layout, LayoutParameters, RoleInfo, ZoneRedundancy};
    use garage_admin::nodes::{BlockStatistics, Multi, NodeInfo, NodeStatistics, Space, TableStatistics};
    use garage_types::NodeId;

    use super::{FreeSpace, RoomLeft, cluster, free_space, room_left, stats};

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn node(byte: u8, available: Option<u64>) -> ClusterNode {
        ClusterNode {
            id: id(byte),
            garage_version: None,
            addr: None,
            hostname: None,
            is_up: true,
            last_seen_secs_ago: None,
            latency_ms: None,
            role: None,
            draining: false,
            data_partition: available.map(|available| Space { available, total: 2 * available }),
            metadata_partition: None,
            moves: None,
            replication_factor: None,
            consistency_mode: None,
            twin_addresses: vec![],
        }
    }

    #[test]
    fn the_fullest_node_limits_what_the_cluster_can_take() {
        let role = |byte, held| RoleInfo {
            id: id(byte),
            zone: "z".into(),
            tags: vec![],
            capacity: Some(1),
            stored_partitions: Some(held),
            usable_capacity: Some(1),
        };
        let layout = Layout {
            version: 1,
            roles: vec![role(1, 256), role(2, 128), role(3, 128)],
            parameters: LayoutParameters { zone_redundancy: ZoneRedundancy::Maximum },
            partition_size: 1,
            staged_role_changes: vec![],
            staged_parameters: None,
            conflicts: vec![],
        };
        let status = |third| ClusterStatus {
            layout_version: 1,
            replication_factor: 3,
            consistency_mode: "consistent".into(),
            nodes: vec![node(1, Some(25_600)), node(2, Some(6400)), node(3, third)],
            layout_conflicts: vec![],
            departed: vec![],
            waiting: vec![],
        };
        let data = |node: &ClusterNode| node.data_partition;
        assert_eq!(free_space(&status(Some(12_800)), &layout, data), Some(FreeSpace::Exactly(50 * 256)));
        assert_eq!(free_space(&status(None), &layout, data), Some(FreeSpace::AtMost(50 * 256)));
        assert_eq!(free_space(&status(None), &layout, |node| node.metadata_partition), None);
        let room =
            RoomLeft { data_bytes_free_estimated: Some(50 * 256), metadata_bytes_free_estimated: None, is_upper_bound: true };
        assert_eq!(room_left(&status(None), &layout), room);
        assert!(cluster(&status(None), &layout).contains("data:      < 12.8 KB (some nodes do not tell)"));
    }

    #[test]
    fn every_node_is_shown_with_what_it_stores_or_why_it_does_not_say() {
        let info = NodeInfo {
            node_id: id(1),
            garage_version: "1".into(),
            garage_features: None,
            rust_version: "1".into(),
            db_engine: "LMDB".into(),
            rebuilding: false,
        };
        let statistics = NodeStatistics {
            info,
            hostname: "alpha".into(),
            tables: vec![TableStatistics { name: "object".into(), items: 1204 }],
            insert_queue_length: 2,
            damaged_rows: Some(3),
            blocks: Some(BlockStatistics { rc_entries: 5120, resync_queue_length: 0, resync_errors: 0, unreferenced: 3 }),
            exchanged_directories: vec!["/mnt/b".into()],
            moves: None,
        };
        let nodes = Multi {
            success: BTreeMap::from([(id(1), statistics)]),
            error: BTreeMap::from([(id(2), "node is not connected".to_owned())]),
        };
        let layout = Layout {
            version: 0,
            roles: vec![],
            parameters: LayoutParameters { zone_redundancy: ZoneRedundancy::Maximum },
            partition_size: 0,
            staged_role_changes: vec![],
            staged_parameters: None,
            conflicts: vec![],
        };
        let status = ClusterStatus {
            layout_version: 0,
            replication_factor: 3,
            consistency_mode: "consistent".into(),
            nodes: vec![],
            layout_conflicts: vec![],
            departed: vec![],
            waiting: vec![],
        };
        let text = stats(&nodes, &status, &layout);
        for part in [
            "==== NODE [0101010101010101] ====\n",
            "  object  1204\n",
            "  number of RC entries:       5120 (~= number of blocks)\n  resync queue length:        0\n",
            "  blocks with resync errors:  0\n  unreferenced block files:   3\n",
            "\nData directory /mnt/b is not the one that was opened",
            "==== NODE [0202020202020202] ====\nError: node is not connected\n",
            "==== CLUSTER STATISTICS ====\nNo node has a role yet",
        ] {
            assert!(text.contains(part), "{text}\nshould have\n{part}");
        }
    }
}
