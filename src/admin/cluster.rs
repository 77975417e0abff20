//! Operations on the cluster as a whole: who is there, and is it well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use garage_rpc::layout::ClusterLayout;
use garage_rpc::layout::history::{Conflict, LayoutHistory};
use garage_rpc::layout::version::{LayoutDigest, NodeRole};
use garage_rpc::mesh::Connecting;
use garage_rpc::peers::{PeerInfo, PeerState};
use garage_types::config::{ConsistencyMode, PeerAddress};
use garage_types::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{AdminError, with_causes};
use crate::moves::{DepartedNode, NodeMoves, departed};
use crate::nodes::{NodeStatus, OwnStatus, Space, ask, check_configurations};
use crate::operations::{AdminService, Operation};
use crate::waiting::{Waiting, waiting};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetClusterStatus;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub zone: String,
    pub tags: Vec<String>,
    /// Bytes; `None` for a gateway.
    pub capacity: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNode {
    pub id: NodeId,
    pub garage_version: Option<String>,
    pub addr: Option<String>,
    /// As it told when it was last asked from the contacted node.
    pub hostname: Option<String>,
    pub is_up: bool,
    pub last_seen_secs_ago: Option<u64>,
    /// Smoothed round trip from the contacted node; `None` for that node itself, and until it was measured.
    #[serde(default)]
    pub latency_ms: Option<f64>,
    pub role: Option<Role>,
    /// It has no role any more, and stores partitions of an older live layout version.
    pub draining: bool,
    pub data_partition: Option<Space>,
    pub metadata_partition: Option<Space>,
    /// `None` when the node does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<NodeMoves>,
    /// What it is configured for; `None` when the node does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<usize>,
    /// What it last said it is configured for; `None` when it has not told the contacted node since that started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency_mode: Option<String>,
    /// Where the two processes are that have this node's key; empty as long as there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub twin_addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    pub layout_version: u64,
    /// What the contacted node is configured for; nodes that differ take in none of its layouts. 0 from older versions.
    #[serde(default)]
    pub replication_factor: usize,
    /// What the contacted node is configured for; empty from older versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub consistency_mode: String,
    /// By ascending id.
    pub nodes: Vec<ClusterNode>,
    /// Different live layouts with one number: an operator has to choose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layout_conflicts: Vec<StatusConflict>,
    /// Nodes without a role that stored data, or still do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<DepartedNode>,
    /// Rebuildings, and a change of layout that cannot end by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
}

/// Which layouts contradict each other; [`crate::layout_history`] shows what is in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusConflict {
    pub version: u64,
    /// 64 hexadecimal digits each.
    pub digests: Vec<String>,
}

/// The layouts in conflict, by their digests.
pub(crate) fn status_conflicts(history: &LayoutHistory) -> Vec<StatusConflict> {
    let conflict = |found: Conflict| {
        let digests = found.digests.iter().map(LayoutDigest::hex).collect();
        StatusConflict { version: found.number, digests }
    };
    history.conflicts().into_iter().map(conflict).collect()
}

/// A node as the mesh sees it, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    address: Option<String>,
    is_up: bool,
    /// How long ago it was last connected; `None` when it never was, or is now.
    last_seen: Option<Duration>,
    latency: Option<Duration>,
    consistency: Option<ConsistencyMode>,
    twin_addresses: Vec<String>,
    is_self: bool,
}

/// Joins what the mesh, the nodes and the layout say. `names`: of nodes that told them before, and cannot now.
fn status_of(
    seen: &BTreeMap<NodeId, Seen>,
    told: &BTreeMap<NodeId, NodeStatus>,
    names: &BTreeMap<NodeId, String>,
    layout: &ClusterLayout,
) -> ClusterStatus {
    let history = layout.history();
    let roles = history.current().map(|version| version.roles().clone()).unwrap_or_default();
    let storing: BTreeSet<NodeId> = history.live().flat_map(|version| version.storage_nodes()).collect();
    // Nodes that left the cluster, neither connected nor of any use, are not listed.
    let own_mode = seen.values().find(|seen| seen.is_self).and_then(|seen| seen.consistency);
    let connected = seen.iter().filter(|(_id, seen)| seen.is_up).map(|(id, _seen)| *id);
    let listed: BTreeSet<NodeId> = connected.chain(roles.keys().copied()).chain(storing.iter().copied()).collect();
    let node = |id: NodeId| {
        let seen = seen.get(&id).cloned().unwrap_or_default();
        let told = told.get(&id);
        let role = roles.get(&id).map(|NodeRole { zone, capacity, tags }| Role {
            zone: zone.clone(),
            tags: tags.clone(),
            capacity: *capacity,
        });
        ClusterNode {
            id,
            garage_version: told.map(|told| told.version.clone()),
            addr: seen.address,
            hostname: told.map(|told| &told.hostname).or_else(|| names.get(&id)).cloned(),
            is_up: seen.is_up,
            last_seen_secs_ago: seen.last_seen.map(|ago| ago.as_secs()),
            latency_ms: seen.latency.map(|latency| latency.as_secs_f64() * 1000.0),
            draining: role.is_none() && storing.contains(&id),
            role,
            data_partition: told.and_then(|told| told.data),
            metadata_partition: told.and_then(|told| told.metadata),
            moves: told.and_then(|told| told.moves.clone()),
            replication_factor: told.and_then(|told| told.replication_factor),
            consistency_mode: seen.consistency.map(|mode| mode.name().to_owned()),
            twin_addresses: seen.twin_addresses,
        }
    };
    ClusterStatus {
        layout_version: history.current_number(),
        replication_factor: history.replication_factor(),
        consistency_mode: own_mode.map_or_else(String::new, |mode| mode.name().to_owned()),
        nodes: listed.into_iter().map(node).collect(),
        layout_conflicts: status_conflicts(history),
        departed: departed(layout, &moves_of(told)),
        waiting: Vec::new(),
    }
}

/// What nodes say that they have still to move.
pub(crate) fn moves_of(told: &BTreeMap<NodeId, NodeStatus>) -> BTreeMap<NodeId, NodeMoves> {
    told.iter().filter_map(|(node, status)| status.moves.clone().map(|moves| (*node, moves))).collect()
}

/// Everyone who is connected or has a role, by ascending id.
pub(crate) fn known_nodes(service: &AdminService) -> Vec<NodeId> {
    let members = service.layout().current().history().members();
    connected_nodes(service).union(&members).copied().collect()
}

/// This node and everyone it can call.
pub(crate) fn connected_nodes(service: &AdminService) -> BTreeSet<NodeId> {
    seen(service).into_iter().filter(|(_id, seen)| seen.is_up).map(|(id, _seen)| id).collect()
}

impl Operation for GetClusterStatus {
    const ENDPOINT: &'static str = "admin.GetClusterStatus/1";
    type Reply = ClusterStatus;

    async fn run(self, service: &AdminService) -> Result<ClusterStatus, AdminError> {
        let told = told(service).await;
        let (layout, tables) = (service.layout().current(), service.garage.local().tables.tables());
        let waiting = waiting(&layout, &tables, &connected_nodes(service), &moves_of(&told));
        Ok(ClusterStatus { waiting, ..status_of(&seen(service), &told, &service.host_names.all(), &layout) })
    }
}

/// What every node that can be reached, and answers soon, says of itself.
pub(crate) async fn told(service: &AdminService) -> BTreeMap<NodeId, NodeStatus> {
    let up = connected_nodes(service).into_iter();
    let answers = join_all(up.map(|node| async move { (node, ask(service, node, OwnStatus).await) })).await;
    let mut told = BTreeMap::new();
    for (node, answer) in answers {
        match answer {
            Ok(status) => {
                told.insert(node, status);
            }
            // It is shown without its details.
            Err(error) => tracing::debug!(%node, error, "a node does not tell its status"),
        }
    }
    service.host_names.remember(&told);
    told
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetClusterHealth;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// All storage nodes are connected.
    Healthy,
    /// Some are not, and every partition can still be written.
    Degraded,
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterHealth {
    pub status: Health,
    pub known_nodes: usize,
    pub connected_nodes: usize,
    pub storage_nodes: usize,
    pub storage_nodes_ok: usize,
    pub partitions: usize,
    /// With a write quorum connected.
    pub partitions_quorum: usize,
    /// With all their nodes connected.
    pub partitions_all_ok: usize,
}

/// How well a cluster is whose `connected` nodes can be reached.
fn health_of(history: &LayoutHistory, connected: &BTreeSet<NodeId>, write_quorum: usize) -> ClusterHealth {
    let members = history.members();
    let storage: BTreeSet<NodeId> = history.live().flat_map(|version| version.storage_nodes()).collect();
    let storage_nodes_ok = storage.intersection(connected).count();
    // Per partition, the connected nodes of the live version that has fewest.
    let mut connected_copies: Vec<usize> = Vec::new();
    for version in history.live() {
        let rows = version.assignment().rows().map(|row| row.filter(|node| connected.contains(node)).count());
        for (partition, copies) in rows.enumerate() {
            match connected_copies.get_mut(partition) {
                Some(fewest) => *fewest = copies.min(*fewest),
                None => connected_copies.push(copies),
            }
        }
    }
    let with_at_least = |copies: usize| connected_copies.iter().filter(|connected| **connected >= copies).count();
    let partitions = connected_copies.len();
    let partitions_quorum = with_at_least(write_quorum);
    let status = if partitions == 0 || partitions_quorum < partitions {
        Health::Unavailable
    } else if storage_nodes_ok < storage.len() {
        Health::Degraded
    } else {
        Health::Healthy
    };
    ClusterHealth {
        status,
        known_nodes: members.union(connected).count(),
        connected_nodes: connected.len(),
        storage_nodes: storage.len(),
        storage_nodes_ok,
        partitions,
        partitions_quorum,
        partitions_all_ok: with_at_least(history.replication_factor()),
    }
}

impl Operation for GetClusterHealth {
    const ENDPOINT: &'static str = "admin.GetClusterHealth/1";
    type Reply = ClusterHealth;

    async fn run(self, service: &AdminService) -> Result<ClusterHealth, AdminError> {
        let connected = connected_nodes(service);
        let quorum = service.garage.cluster().quorums().write;
        Ok(health_of(service.layout().current().history(), &connected, quorum))
    }
}

/// Addresses as `<node id>@<host>:<port>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnectClusterNodes(pub Vec<String>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    pub success: bool,
    pub error: Option<String>,
    /// Why the node is of no use although it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Where the peer is connected already, so that the address of the request was not tried.
    #[serde(default, rename = "alreadyAt", skip_serializing_if = "Option::is_none")]
    pub already_at: Option<String>,
}

impl Operation for ConnectClusterNodes {
    const ENDPOINT: &'static str = "admin.ConnectClusterNodes/1";
    /// In the order of the request.
    type Reply = Vec<Connected>;

    async fn run(self, service: &AdminService) -> Result<Vec<Connected>, AdminError> {
        let connect = |address: String| async move {
            match address.parse::<PeerAddress>() {
                Ok(peer) => connect(service, &peer).await,
                Err(error) => Connected { success: false, error: Some(error.to_string()), ..Connected::default() },
            }
        };
        Ok(join_all(self.0.into_iter().map(connect)).await)
    }
}

/// Since two processes with one key were last noticed: they would have been noticed again.
const TWINS_SHOWN: Duration = Duration::from_secs(3600);

/// This node and all that the mesh knows of.
fn seen(service: &AdminService) -> BTreeMap<NodeId, Seen> {
    let now = service.garage.clock().now();
    service.mesh().peers().into_iter().map(|peer| (peer.id, seen_as(peer, now))).collect()
}

fn seen_as(peer: PeerInfo, now: Timestamp) -> Seen {
    let is_up = peer.is_self || matches!(peer.state, PeerState::Up { .. });
    let ago = |last: Timestamp| Duration::from_millis(now.as_millis().saturating_sub(last.as_millis()));
    Seen {
        address: peer.addresses.into_iter().next(),
        is_up,
        last_seen: if is_up { None } else { peer.last_seen.map(ago) },
        latency: peer.latency.filter(|_measured| is_up && !peer.is_self),
        consistency: peer.consistency,
        twin_addresses: peer
            .twin
            .filter(|twin| ago(twin.noticed) < TWINS_SHOWN)
            .map_or_else(Vec::new, |twin| twin.addresses.to_vec()),
        is_self: peer.is_self,
    }
}

async fn connect(service: &AdminService, peer: &PeerAddress) -> Connected {
    let already_at = match service.mesh().connect(peer).await {
        Ok(Connecting::Done) => None,
        Ok(Connecting::WasConnected { address }) => Some(address),
        Err(error) => return Connected { success: false, error: Some(with_causes(&error)), ..Connected::default() },
    };
    let warning = check_configurations(service, vec![peer.node]).await.err().map(|error| error.to_string());
    Connected { success: true, error: None, warning, already_at }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use garage_rpc::layout::ClusterLayout;
    use garage_rpc::layout::history::LayoutHistory;
    use garage_rpc::layout::version::NodeRole;
    use garage_rpc::peers::{PeerInfo, PeerState, Twin};
    use garage_types::config::ConsistencyMode;
    use garage_types::{NodeId, Timestamp};

    use super::{Health, Seen, health_of, seen_as, status_of};
    use crate::nodes::{HostNames, NodeStatus};

    fn told_by(hostname: &str) -> NodeStatus {
        NodeStatus {
            hostname: hostname.into(),
            version: "1".into(),
            data: None,
            metadata: None,
            moves: None,
            replication_factor: Some(2),
            consistency_mode: None,
        }
    }

    fn view(history: LayoutHistory) -> ClusterLayout {
        ClusterLayout::of(Arc::new(history))
    }

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    /// Three storage nodes with all partitions, and a gateway.
    fn history() -> LayoutHistory {
        let mut history = LayoutHistory::new(3);
        for byte in 1..=4 {
            let capacity = (byte < 4).then_some(1 << 40);
            let role = NodeRole { zone: format!("z{byte}"), capacity, tags: vec![] };
            history.stage_role(Timestamp::from_millis(1), id(byte), role).unwrap();
        }
        history.apply(1).unwrap();
        history
    }

    fn seen(up: &[u8], down: &[u8]) -> BTreeMap<NodeId, Seen> {
        let ups = up.iter().map(|byte| (id(*byte), Seen { is_up: true, ..Seen::default() }));
        let downs = down.iter().map(|byte| (id(*byte), Seen { last_seen: Some(Duration::from_secs(9)), ..Seen::default() }));
        ups.chain(downs).collect()
    }

    #[test]
    fn status_lists_who_is_connected_or_of_use() {
        let told = BTreeMap::from([(id(1), told_by("alpha"))]);
        let status = status_of(&seen(&[1, 9], &[2, 8]), &told, &BTreeMap::new(), &view(history()));
        let listed: Vec<NodeId> = status.nodes.iter().map(|node| node.id).collect();
        assert_eq!(listed, [1, 2, 3, 4, 9].map(id), "8 is neither connected nor has a role");
        assert_eq!((status.layout_version, status.nodes[0].hostname.as_deref()), (1, Some("alpha")));
        let factors = (status.replication_factor, status.nodes[0].replication_factor, status.nodes[1].replication_factor);
        assert_eq!(factors, (3, Some(2), None), "what this node is configured for, and what the others tell");
        assert_eq!((status.nodes[1].is_up, status.nodes[1].last_seen_secs_ago), (false, Some(9)));
        assert_eq!((status.nodes[2].is_up, status.nodes[2].last_seen_secs_ago), (false, None), "never seen");
        assert!(status.nodes[3].role.as_ref().is_some_and(|role| role.capacity.is_none()));
        assert_eq!(status.nodes[4].role, None);
    }

    #[test]
    fn a_node_that_cannot_be_asked_any_more_keeps_the_name_it_told() {
        let names = HostNames::default();
        names.remember(&BTreeMap::from([(id(1), told_by("alpha")), (id(2), told_by("beta"))]));
        let told = BTreeMap::from([(id(1), told_by("renamed"))]);
        names.remember(&told);
        let status = status_of(&seen(&[1], &[2, 3]), &told, &names.all(), &view(history()));
        let shown: Vec<_> = status.nodes.iter().map(|node| node.hostname.as_deref()).collect();
        assert_eq!(shown, [Some("renamed"), Some("beta"), None, None]);
        assert_eq!(status.nodes[1].garage_version, None, "nothing else is known to be so still");
    }

    #[test]
    fn a_removed_node_drains_while_its_layout_version_is_live() {
        let mut history = history();
        let role = NodeRole { zone: "z5".into(), capacity: Some(1 << 40), tags: vec![] };
        history.stage_role(Timestamp::from_millis(2), id(5), role).unwrap();
        history.stage_removal(Timestamp::from_millis(2), id(3)).unwrap();
        history.apply(2).unwrap();
        let status = status_of(&seen(&[], &[]), &BTreeMap::new(), &BTreeMap::new(), &view(history));
        let draining: Vec<NodeId> = status.nodes.iter().filter(|node| node.draining).map(|node| node.id).collect();
        assert_eq!(draining, [id(3)]);
    }

    #[test]
    fn health_is_what_can_still_be_written() {
        let health = |up: &[u8]| health_of(&history(), &up.iter().map(|byte| id(*byte)).collect::<BTreeSet<_>>(), 2);
        assert_eq!(health(&[1, 2, 3]).status, Health::Healthy, "a gateway that is down does no harm");
        let degraded = health(&[1, 2, 4]);
        assert_eq!((degraded.status, degraded.storage_nodes_ok), (Health::Degraded, 2));
        assert_eq!((degraded.partitions, degraded.partitions_quorum, degraded.partitions_all_ok), (256, 256, 0));
        assert_eq!(health(&[1]).status, Health::Unavailable);
        assert_eq!(health_of(&LayoutHistory::new(3), &BTreeSet::new(), 2).status, Health::Unavailable, "without a layout");
    }

    #[test]
    fn a_peer_that_is_up_has_no_last_time() {
        let now = Timestamp::from_millis(10_000);
        let peer = |state| PeerInfo {
            id: id(1),
            addresses: vec!["host:1".into(), "other:1".into()],
            state,
            latency: Some(Duration::from_micros(1500)),
            throughput: None,
            last_seen: Some(Timestamp::from_millis(4000)),
            is_self: false,
            consistency: Some(ConsistencyMode::Dangerous),
            twin: Some(Twin { addresses: ["host:1".into(), "other:1".into()], noticed: Timestamp::from_millis(4000) }),
        };
        let up = seen_as(peer(PeerState::Up { since: now }), now);
        assert_eq!((up.address.as_deref(), up.is_up, up.last_seen), (Some("host:1"), true, None));
        assert_eq!(up.latency, Some(Duration::from_micros(1500)));
        assert_eq!((up.consistency, up.twin_addresses.len()), (Some(ConsistencyMode::Dangerous), 2));
        let long_after = seen_as(peer(PeerState::Up { since: now }), now.plus_millis(3_600_000));
        assert!(long_after.twin_addresses.is_empty(), "one of the two was stopped");
        let down = seen_as(peer(PeerState::Down { since: now }), now);
        assert_eq!((down.is_up, down.last_seen), (false, Some(Duration::from_secs(6))));
        assert_eq!(down.latency, None, "what was measured long ago says nothing");
    }
}
