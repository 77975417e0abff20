//! `garage status`

use std::collections::{BTreeMap, BTreeSet};

use garage_admin::cluster::{ClusterNode, ClusterStatus, Connected, Role};
use garage_admin::databases::DatabaseAccepted;
use garage_admin::layout::Layout;
use garage_admin::nodes::Multi;
use garage_admin::waiting::{Stalled, Waiting};
use garage_types::NodeId;
use garage_types::config::PeerAddress;
use garage_types::size::format_decimal;

use super::{MANY_NODES, NAMED_MAX, ago, cut, heading, moves, named, row, share, table, tags};

/// Of a cell.
const HOSTNAME_CHARS_MAX: usize = 32;

/// The nodes of the cluster, and what is staged for them.
pub fn status(status: &ClusterStatus, layout: &Layout) -> String {
    let mut nodes: Vec<&ClusterNode> = status.nodes.iter().collect();
    nodes.sort_by(|a, b| place(a).cmp(&place(b)));
    let (up, failed): (Vec<&ClusterNode>, Vec<&ClusterNode>) = nodes.into_iter().partition(|node| node.is_up);
    let mut text = heading("HEALTHY NODES");
    let mut healthy = vec![row(["ID", "Hostname", "Address", "Tags", "Zone", "Capacity", "DataAvail", "Version"])];
    healthy.extend(up.iter().map(|node| healthy_row(node, layout)));
    text += &table(&healthy);
    if status.nodes.len() > MANY_NODES {
        let zones: BTreeSet<&str> = status.nodes.iter().filter_map(|node| Some(node.role.as_ref()?.zone.as_str())).collect();
        text +=
            &format!("\n{} nodes in {} zones: {} healthy, {} failed\n", status.nodes.len(), zones.len(), up.len(), failed.len());
    }
    if !failed.is_empty() {
        text += "\n";
        text += &heading("FAILED NODES");
        let mut rows = vec![row(["ID", "Hostname", "Tags", "Zone", "Capacity", "Last seen"])];
        rows.extend(failed.iter().map(|node| failed_row(node, layout)));
        text += &table(&rows);
        if failed.iter().any(|node| node.draining) {
            text += "\nFailed nodes hold up the change of layout; see garage layout history, and if they will not come back, \
                     garage layout skip-dead-nodes.\n";
        }
    }
    let with_role = status.nodes.iter().filter(|node| node.role.is_some());
    let moving = moves::moving(with_role.filter_map(|node| Some((node.id, node.moves.as_ref()?))), MANY_NODES);
    // Those that left long ago and are not there are in the layout's history.
    let departed =
        moves::departed(status.departed.iter().filter(|node| {
            node.moves.is_some() || node.left_with_version.is_none_or(|version| version >= status.layout_version)
        }));
    for section in [moving, departed].iter().filter(|section| !section.is_empty()) {
        text += "\n";
        text += section;
    }
    text += &other_factors(status);
    text += &other_modes(status);
    text += &twins(status);
    text += &waiting(status);
    text += &super::layout::conflicts(&status.layout_conflicts);
    if layout.has_staged() {
        text += "\n";
        text += &super::layout::staged(layout);
        text += "\nTo see what the changes would do: garage layout show\n";
    }
    text
}

/// The nodes that take in none of the contacted node's layouts.
fn other_factors(status: &ClusterStatus) -> String {
    let mut factors: BTreeMap<usize, Vec<NodeId>> = BTreeMap::new();
    // 0: the contacted node is of a version that does not tell.
    for node in status.nodes.iter().filter(|_node| status.replication_factor > 0) {
        if let Some(factor) = node.replication_factor.filter(|factor| *factor != status.replication_factor) {
            factors.entry(factor).or_default().push(node.id);
        }
    }
    let line = |(factor, nodes): (usize, Vec<NodeId>)| {
        format!(
            "\nConfigured with replication_factor = {factor}, where the contacted node has {}: {}. They take in none of its layouts: \
             put the\nconfiguration file right that is wrong, and restart that node.\n",
            status.replication_factor,
            named(&nodes)
        )
    };
    factors.into_iter().map(line).collect()
}

/// The nodes that are configured for more or less consistency than the contacted one.
fn other_modes(status: &ClusterStatus) -> String {
    let mut modes: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    // Empty: the contacted node is of a version that does not tell.
    for node in status.nodes.iter().filter(|_node| !status.consistency_mode.is_empty()) {
        if let Some(mode) = node.consistency_mode.as_deref().filter(|mode| *mode != status.consistency_mode) {
            modes.entry(mode).or_default().push(node.id);
        }
    }
    let line = |(mode, nodes): (&str, Vec<NodeId>)| {
        format!(
            "\nConfigured with consistency_mode = \"{mode}\", where the contacted node has \"{}\": {}. The stricter is in force \
             on all\nof them: put the configuration file right that is wrong, and restart that node.\n",
            status.consistency_mode,
            named(&nodes)
        )
    };
    modes.into_iter().map(line).collect()
}

/// The nodes that exist twice.
fn twins(status: &ClusterStatus) -> String {
    let twins = status.nodes.iter().filter(|node| !node.twin_addresses.is_empty());
    let line = |node: &ClusterNode| {
        format!(
            "\nTwo nodes have the key of {}, at {}: one runs on a copy of the other's disk. They count as one node, and take\nthe \
             place of each other. Stop one of them, and wipe its metadata before it starts again.\n",
            node.id.short(),
            node.twin_addresses.join(" and ")
        )
    };
    twins.map(line).collect()
}

/// What cannot end by itself, what rebuilds, and which nodes wait for the operator's word.
fn waiting(status: &ClusterStatus) -> String {
    let mut text = String::new();
    // When many wait for one another, one sentence for each that names all others is of no use to anybody.
    let stuck = status.waiting.iter().filter(|waiting| !needed(waiting).is_empty()).count();
    let mut rebuilding = Vec::new();
    for waiting in &status.waiting {
        let needed = needed(waiting);
        text += &match waiting.what {
            Stalled::Rebuilding { node } if needed.is_empty() || stuck > NAMED_MAX => {
                rebuilding.push(node);
                continue;
            }
            Stalled::Rebuilding { node } => format!(
                "\n{} cannot rebuild its metadata: it waits for {needed}. Bring them back. If they and their databases are gone for good, \
                 see garage node accept-database.\n",
                node.short()
            ),
            Stalled::LayoutChange { version } => format!(
                "\nThe change to layout version {version} waits for {needed}. Those that rebuild must end that first; for those that will not \
                 come back, see garage layout skip-dead-nodes.\n"
            ),
        };
    }
    text += &match &rebuilding[..] {
        [] => String::new(),
        [node] => format!(
            "\n{} rebuilds its metadata from the other owners, and answers for none of it until that is done.\n",
            node.short()
        ),
        nodes => format!(
            "\n{} rebuild their metadata from the other owners, and answer for none of it until that is done.\n",
            named(nodes)
        ),
    };
    if stuck > NAMED_MAX {
        text += "\nMany wait for nodes that are away or rebuild themselves: see garage status --json. Bring back those that have their \
                 databases.\nIf these are gone for good, see garage node accept-database.\n";
    }
    text + &set_aside(status)
}

/// Whom something waits for; empty when it ends by itself.
fn needed(waiting: &Waiting) -> String {
    let Waiting { for_nodes_away, for_nodes_rebuilding, .. } = waiting;
    let mut needed = Vec::new();
    if !for_nodes_away.is_empty() {
        needed.push(format!("{} (not connected)", named(for_nodes_away)));
    }
    if !for_nodes_rebuilding.is_empty() {
        needed.push(format!("{} (rebuilding)", named(for_nodes_rebuilding)));
    }
    needed.join(" and ")
}

/// What came of `garage node connect`.
pub fn connected(replies: &[Connected], asked: &PeerAddress) -> String {
    let outcome = match replies.iter().find_map(|reply| reply.already_at.as_ref()) {
        Some(known) => format!("Already connected at {known}: {} was not tried.\n", asked.address),
        None => "Success.\n".to_owned(),
    };
    let warnings = replies.iter().filter_map(|reply| reply.warning.as_ref());
    warnings.fold(outcome, |said, warning| format!("{said}Warning: {warning}.\n"))
}

fn set_aside(status: &ClusterStatus) -> String {
    let rows = |node: &ClusterNode| node.moves.as_ref().filter(|moves| !moves.rebuilding).map_or(0, |moves| moves.rows_set_aside);
    let nodes: Vec<&ClusterNode> = status.nodes.iter().filter(|node| rows(node) > 0).collect();
    match &nodes[..] {
        nodes if nodes.len() > NAMED_MAX => {
            let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
            let all = nodes.iter().map(|node| rows(node)).fold(0, u64::saturating_add);
            format!("\n{} have {all} rows set aside: see garage repair set-aside list there.\n", named(&ids))
        }
        nodes => {
            let line = |node: &&ClusterNode| {
                format!("\n{} has {} rows set aside: see garage repair set-aside list there.\n", node.id.short(), rows(node))
            };
            nodes.iter().map(line).collect()
        }
    }
}

/// Where a node stands in the list: with its zone; those without a role come last.
fn place(node: &ClusterNode) -> (bool, &str, Option<&str>, NodeId) {
    let zone = node.role.as_ref().map(|role| role.zone.as_str());
    (zone.is_none(), zone.unwrap_or_default(), node.hostname.as_deref(), node.id)
}

fn hostname(node: &ClusterNode) -> String {
    node.hostname.as_ref().map_or_else(|| "?".to_owned(), |name| cut(name, HOSTNAME_CHARS_MAX))
}

fn healthy_row(node: &ClusterNode, layout: &Layout) -> Vec<String> {
    let (tags, zone) = tags_and_zone(node.role.as_ref());
    let space = match (&node.data_partition, node.role.as_ref().and_then(|role| role.capacity)) {
        (Some(space), _) => share(space.available, space.total),
        (None, Some(_)) => "?".to_owned(),
        (None, None) if node.role.is_some() => "N/A".to_owned(),
        (None, None) => String::new(),
    };
    vec![
        node.id.short(),
        hostname(node),
        node.addr.clone().unwrap_or_else(|| "N/A".to_owned()),
        tags,
        zone,
        capacity(node, layout),
        space,
        node.garage_version.clone().unwrap_or_else(|| "?".to_owned()),
    ]
}

fn failed_row(node: &ClusterNode, layout: &Layout) -> Vec<String> {
    let (tags, zone) = tags_and_zone(node.role.as_ref());
    vec![
        node.id.short(),
        hostname(node),
        tags,
        zone,
        capacity(node, layout),
        node.last_seen_secs_ago.map_or_else(|| "never seen".to_owned(), ago),
    ]
}

fn tags_and_zone(role: Option<&Role>) -> (String, String) {
    role.map_or_else(Default::default, |role| (tags(&role.tags), role.zone.clone()))
}

/// The node's capacity, or why it has none.
fn capacity(node: &ClusterNode, layout: &Layout) -> String {
    let staged = layout.staged_role_changes.iter().any(|change| change.id == node.id && !change.remove);
    match &node.role {
        Some(Role { capacity: Some(bytes), .. }) => format_decimal(*bytes),
        Some(Role { capacity: None, .. }) => "gateway".to_owned(),
        None if node.draining => "draining metadata..".to_owned(),
        None if staged => "pending...".to_owned(),
        None => "NO ROLE ASSIGNED".to_owned(),
    }
}

/// Whose databases count as whole now.
pub fn accepted(accepted: &Multi<DatabaseAccepted>) -> String {
    let mut rows = vec![row(["Node", "Result"])];
    let result = |accepted: &DatabaseAccepted| format!("Accepted, {} rows", accepted.rows_brought_back);
    rows.extend(accepted.success.iter().map(|(node, accepted)| vec![node.short(), result(accepted)]));
    rows.extend(accepted.error.iter().map(|(node, error)| vec![node.short(), format!("Error: {error}")]));
    table(&rows)
}

/// What came of asking nodes for a snapshot.
pub fn snapshots(made: &Multi<()>) -> String {
    let mut rows = vec![row(["Node", "Result"])];
    rows.extend(made.success.keys().map(|node| vec![node.short(), "Snapshot created".to_owned()]));
    rows.extend(made.error.iter().map(|(node, error)| vec![node.short(), format!("Error: {error}")]));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use garage_admin::cluster::{ClusterNode, ClusterStatus, Connected, Role, StatusConflict};
    use garage_admin::layout::{Layout, LayoutParameters, RoleChange, ZoneRedundancy};
    use garage_admin::moves::{DepartedNode, NodeMoves, Removal};
    use garage_admin::nodes::{Multi, Space};
    use garage_types::NodeId;
    use garage_types::config::PeerAddress;

    use super::{Stalled, Waiting, connected, other_factors, other_modes, snapshots, status, twins};

    fn node(byte: u8) -> ClusterNode {
        ClusterNode {
            id: NodeId::from_bytes([byte; 32]),
            garage_version: Some("v1".into()),
            addr: Some("10.1.0.1:3901".into()),
            hostname: Some("alpha".into()),
            is_up: true,
            last_seen_secs_ago: None,
            latency_ms: None,
            role: None,
            draining: false,
            data_partition: None,
            metadata_partition: None,
            moves: None,
            replication_factor: None,
            consistency_mode: None,
            twin_addresses: vec![],
        }
    }

    #[test]
    fn nodes_in_another_mode_and_nodes_that_exist_twice_are_named() {
        let other = ClusterNode { consistency_mode: Some("dangerous".into()), ..node(2) };
        let twin = ClusterNode { twin_addresses: vec!["10.1.0.1:3901".into(), "10.1.0.9:3901".into()], ..node(3) };
        let cluster = ClusterStatus {
            layout_version: 0,
            replication_factor: 3,
            consistency_mode: "consistent".into(),
            nodes: vec![node(1), other, twin],
            layout_conflicts: vec![],
            departed: vec![],
            waiting: vec![],
        };
        let text = other_modes(&cluster);
        let named = "consistency_mode = \"dangerous\", where the contacted node has \"consistent\": 0202020202020202.";
        assert!(text.contains(named), "{text}");
        let text = twins(&cluster);
        assert!(text.contains("0303030303030303, at 10.1.0.1:3901 and 10.1.0.9:3901:"), "{text}");
        assert_eq!(
            other_modes(&ClusterStatus { consistency_mode: String::new(), ..cluster }),
            "",
            "an older daemon does not tell"
        );
    }

    #[test]
    fn nodes_for_another_number_of_copies_are_named() {
        let other = ClusterNode { replication_factor: Some(2), ..node(2) };
        let nodes = vec![ClusterNode { replication_factor: Some(3), ..node(1) }, other, node(3)];
        let cluster = ClusterStatus {
            layout_version: 0,
            replication_factor: 3,
            consistency_mode: "consistent".into(),
            nodes,
            layout_conflicts: vec![],
            departed: vec![],
            waiting: vec![],
        };
        let named = "replication_factor = 2, where the contacted node has 3: 0202020202020202.";
        assert!(other_factors(&cluster).contains(named), "{}", other_factors(&cluster));
        assert_eq!(other_factors(&ClusterStatus { replication_factor: 0, ..cluster }), "", "an older daemon does not tell");
    }

    #[test]
    fn each_node_says_whether_it_made_a_snapshot() {
        let made = Multi {
            success: [(NodeId::from_bytes([1; 32]), ())].into(),
            error: [(NodeId::from_bytes([2; 32]), "the disk is full".to_owned())].into(),
        };
        let expected =
            "Node              Result\n0101010101010101  Snapshot created\n0202020202020202  Error: the disk is full\n";
        assert_eq!(snapshots(&made), expected);
    }

    #[test]
    fn status_lists_healthy_then_failed_nodes_and_staged_changes() {
        let role = Role { zone: "paris".into(), tags: vec!["ssd".into(), "a".into()], capacity: Some(2_000_000_000_000) };
        let space = Space { available: 1_400_000_000_000, total: 2_000_000_000_000 };
        let nodes = vec![
            ClusterNode { role: Some(role), data_partition: Some(space), ..node(1) },
            node(2),
            ClusterNode { is_up: false, draining: true, hostname: None, ..node(3) },
        ];
        let removal = RoleChange::removal(nodes[0].id);
        let layout = Layout {
            version: 1,
            roles: vec![],
            parameters: LayoutParameters { zone_redundancy: ZoneRedundancy::Maximum },
            partition_size: 0,
            staged_role_changes: vec![removal],
            staged_parameters: None,
            conflicts: vec![],
        };
        let conflict = StatusConflict { version: 1, digests: vec!["a".repeat(64), "b".repeat(64)] };
        let cluster = ClusterStatus {
            layout_version: 1,
            replication_factor: 3,
            consistency_mode: "consistent".into(),
            nodes,
            layout_conflicts: vec![conflict],
            departed: vec![],
            waiting: vec![],
        };
        let text = status(&cluster, &layout);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..5],
            [
                "==== HEALTHY NODES ====",
                "ID                Hostname  Address        Tags     Zone   Capacity          DataAvail       Version",
                "0101010101010101  alpha     10.1.0.1:3901  [ssd,a]  paris  2.0 TB            1.4 TB (70.0%)  v1",
                "0202020202020202  alpha     10.1.0.1:3901                  NO ROLE ASSIGNED                  v1",
                "",
            ]
        );
        assert_eq!(lines[5], "==== FAILED NODES ====");
        assert_eq!(lines[7], "0303030303030303  ?                     draining metadata..  never seen");
        assert!(text.contains("as version 1: aaaaaaaaaaaaaaaa and bbbbbbbbbbbbbbbb."));
        assert!(
            text.contains("layout history") && text.contains("skip-dead-nodes") && text.contains("0101010101010101  REMOVED")
        );
        assert!(!text.contains("STILL TO BE MOVED") && !text.contains("NODES THAT LEFT"), "nothing moves");
        let left = |left_with_version| DepartedNode {
            id: NodeId::from_bytes([left_with_version as u8; 32]),
            left_with_version: Some(left_with_version),
            removal: Removal::Unknown,
            partitions_live: 0,
            moves: None,
        };
        let text = status(&ClusterStatus { layout_version: 5, departed: vec![left(4), left(5)], ..cluster }, &layout);
        assert!(text.contains("0505050505050505  #5         unknown"), "{text}");
        assert!(!text.contains("0404040404040404"), "it left before the last change, and is not there: {text}");
        let id = |byte| NodeId::from_bytes([byte; 32]);
        let stalled = |what, away: &[u8], rebuilding: &[u8]| Waiting {
            what,
            for_nodes_away: away.iter().map(|n| id(*n)).collect(),
            for_nodes_rebuilding: rebuilding.iter().map(|n| id(*n)).collect(),
        };
        let waiting = vec![
            stalled(Stalled::Rebuilding { node: id(1) }, &[], &[]),
            stalled(Stalled::Rebuilding { node: id(2) }, &[3], &[4]),
            stalled(Stalled::LayoutChange { version: 7 }, &[3], &[]),
        ];
        let moves = NodeMoves { rows_set_aside: 4, ..NodeMoves::default() };
        let nodes = vec![ClusterNode { moves: Some(moves), ..node(6) }];
        let text = status(
            &ClusterStatus {
                layout_version: 5,
                replication_factor: 3,
                consistency_mode: "consistent".into(),
                nodes,
                layout_conflicts: vec![],
                departed: vec![],
                waiting,
            },
            &layout,
        );
        assert!(text.contains("0101010101010101 rebuilds its metadata"), "{text}");
        let why = "0202020202020202 cannot rebuild its metadata: it waits for 0303030303030303 (not connected) and 0404040404040404 (rebuilding)";
        assert!(text.contains(why) && text.contains("garage node accept-database"), "{text}");
        assert!(text.contains("layout version 7 waits for 0303030303030303 (not connected)"), "{text}");
        assert!(text.contains("0606060606060606 has 4 rows set aside"), "{text}");
    }

    #[test]
    fn an_address_that_was_not_tried_is_not_called_a_success() {
        let asked: PeerAddress = format!("{}@far:3901", NodeId::from_bytes([2; 32])).parse().unwrap();
        let reply = |already_at: Option<&str>| Connected {
            success: true,
            already_at: already_at.map(str::to_owned),
            ..Connected::default()
        };
        assert_eq!(connected(&[reply(None)], &asked), "Success.\n");
        assert_eq!(connected(&[reply(Some("near:3901"))], &asked), "Already connected at near:3901: far:3901 was not tried.\n");
    }
}
