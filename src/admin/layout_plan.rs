//! What applying the staged changes would move, in bytes and time as far as they can be estimated.

use std::collections::{BTreeMap, BTreeSet};

use garage_rpc::layout::history::{LayoutHistory, Preview};
use garage_rpc::layout::plan::{NodeMoves, plan};
use garage_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::cluster::connected_nodes;
use crate::operations::AdminService;

/// What applying the staged changes would move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutPlan {
    /// Every partition will be in at least so many zones.
    pub zone_redundancy: usize,
    /// Bytes that all copies may take together.
    pub usable_capacity: u64,
    /// Bytes that users can store.
    pub effective_capacity: u64,
    /// Bytes in one partition now, one copy of them; `None` when the buckets could not be counted.
    pub partition_bytes: Option<u64>,
    /// Nodes for which something changes, by ascending id.
    pub nodes: Vec<NodePlan>,
    /// Copies of partitions that no connected node can send.
    pub partitions_without_source: usize,
    /// At the speeds that the contacted node has seen; `None` when it has seen none of those it would need, or bytes are not known.
    pub seconds: Option<u64>,
    /// Nodes that send or receive at a speed which the contacted node has not seen: `seconds` leaves them out.
    #[serde(default)]
    pub unknown_speeds: Vec<NodeId>,
    /// Nodes that are to receive something and are not connected.
    #[serde(default)]
    pub disconnected_receivers: Vec<NodeId>,
}

/// One node's part in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePlan {
    pub id: NodeId,
    pub receives_partitions: usize,
    pub sends_partitions: usize,
    /// It need not hold these any more.
    pub gives_up_partitions: usize,
    pub receives_bytes: Option<u64>,
    pub sends_bytes: Option<u64>,
    pub gives_up_bytes: Option<u64>,
}

/// What is known beside the layouts.
struct Known {
    own: NodeId,
    connected: BTreeSet<NodeId>,
    /// Of all objects, each counted once; `None` when unknown.
    stored_bytes: Option<u64>,
    /// Bytes a second to and from other nodes.
    speeds: BTreeMap<NodeId, u64>,
}

/// Asks what is stored, and plans.
pub(crate) async fn layout_plan(service: &AdminService, preview: &Preview) -> LayoutPlan {
    let stored_bytes = match service.garage.total_counts().await {
        Ok(counts) => Some(u64::try_from(counts.bytes.saturating_add(counts.multipart_bytes)).unwrap_or(0)),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "the plan of a layout goes without bytes");
            None
        }
    };
    let speeds = service.mesh().peers().into_iter().filter_map(|peer| Some((peer.id, peer.throughput?))).collect();
    let own = service.garage.cluster().node_id();
    let known = Known { own, connected: connected_nodes(service), stored_bytes, speeds };
    plan_of(service.layout().current().history(), preview, &known)
}

fn plan_of(history: &LayoutHistory, preview: &Preview, known: &Known) -> LayoutPlan {
    let next = preview.version.assignment();
    // A first layout moves nothing: there are no objects.
    let moves = history.current().map(|current| plan(current.assignment(), next, &known.connected)).unwrap_or_default();
    let partition_bytes = known.stored_bytes.map(|bytes| bytes >> next.partition_bits());
    let bytes = |partitions: usize| partition_bytes.map(|size| size.saturating_mul(partitions as u64));
    let node = |(id, NodeMoves { receives, sends, gives_up }): (&NodeId, &NodeMoves)| NodePlan {
        id: *id,
        receives_partitions: *receives,
        sends_partitions: *sends,
        gives_up_partitions: *gives_up,
        receives_bytes: bytes(*receives),
        sends_bytes: bytes(*sends),
        gives_up_bytes: bytes(*gives_up),
    };
    let nodes: Vec<NodePlan> = moves.nodes.iter().map(node).collect();
    let is_unknown = |node: &&NodePlan| is_busy(node) && node.id != known.own && !known.speeds.contains_key(&node.id);
    let is_cut_off = |node: &&NodePlan| node.receives_partitions > 0 && !known.connected.contains(&node.id);
    LayoutPlan {
        zone_redundancy: preview.report.zones_min,
        usable_capacity: preview.report.usable,
        effective_capacity: preview.report.effective,
        partition_bytes,
        seconds: seconds(&nodes, &known.speeds),
        unknown_speeds: nodes.iter().filter(is_unknown).map(|node| node.id).collect(),
        disconnected_receivers: nodes.iter().filter(is_cut_off).map(|node| node.id).collect(),
        nodes,
        partitions_without_source: moves.without_source,
    }
}

fn is_busy(node: &NodePlan) -> bool {
    node.receives_partitions + node.sends_partitions > 0
}

/// How long the busiest node takes, each sending and receiving at once at the speed seen. The contacted node has no speed of its own:
/// the others' say what it does.
fn seconds(nodes: &[NodePlan], speeds: &BTreeMap<NodeId, u64>) -> Option<u64> {
    let took = nodes.iter().filter(|node| is_busy(node)).filter_map(|node| {
        let bytes = node.receives_bytes.zip(node.sends_bytes).map(|(receives, sends)| receives.max(sends))?;
        speeds.get(&node.id).map(|speed| bytes.div_ceil((*speed).max(1)))
    });
    took.max()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use garage_rpc::layout::history::LayoutHistory;
    use garage_rpc::layout::version::NodeRole;
    use garage_types::{NodeId, Timestamp};

    use super::{Known, plan_of};

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn stage(history: &mut LayoutHistory, byte: u8) {
        let role = NodeRole { zone: format!("z{byte}"), capacity: Some(1 << 40), tags: vec![] };
        history.stage_role(Timestamp::from_millis(1), id(byte), role).unwrap();
    }

    #[test]
    fn a_replaced_node_gives_up_everything_and_the_new_one_gets_it() {
        let mut history = LayoutHistory::new(2);
        [1, 2].into_iter().for_each(|byte| stage(&mut history, byte));
        let known = |speeds: &[(u8, u64)]| Known {
            own: id(1),
            connected: BTreeSet::from([1, 3].map(id)),
            stored_bytes: Some(256 << 20),
            speeds: speeds.iter().map(|(byte, speed)| (id(*byte), *speed)).collect(),
        };
        let first = plan_of(&history, &history.preview().unwrap(), &known(&[]));
        assert_eq!((first.nodes.len(), first.zone_redundancy, first.seconds), (0, 2, None), "a first layout moves nothing");
        history.apply(1).unwrap();
        stage(&mut history, 3);
        history.stage_removal(Timestamp::from_millis(1), id(2)).unwrap();
        let plan = plan_of(&history, &history.preview().unwrap(), &known(&[(3, 1 << 20)]));
        let moved = |byte| plan.nodes.iter().find(|node| node.id == id(byte)).unwrap();
        assert_eq!((moved(3).receives_partitions, moved(3).receives_bytes), (256, Some(256 << 20)));
        assert_eq!((moved(2).gives_up_partitions, moved(2).sends_partitions), (256, 0), "it is not connected");
        assert_eq!((moved(1).sends_bytes, plan.partitions_without_source), (Some(256 << 20), 0));
        assert_eq!((plan.seconds, plan.unknown_speeds, plan.disconnected_receivers), (Some(256), vec![], vec![]));
        let plan = plan_of(&history, &history.preview().unwrap(), &known(&[]));
        assert_eq!((plan.seconds, plan.unknown_speeds), (None, vec![id(3)]), "the contacted node has no speed of its own");
        let unknown = Known { own: id(1), stored_bytes: None, connected: BTreeSet::new(), speeds: BTreeMap::from([(id(3), 1)]) };
        let plan = plan_of(&history, &history.preview().unwrap(), &unknown);
        assert_eq!((plan.seconds, plan.partition_bytes, plan.partitions_without_source), (None, None, 256));
        assert_eq!(plan.disconnected_receivers, [id(3)]);
    }
}
