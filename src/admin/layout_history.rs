//! Operations on versions of the layout: how far each node has come, moving on without dead ones, ending a conflict.

use std::collections::{BTreeMap, BTreeSet};

use garage_rpc::layout::VersionKey;
use garage_rpc::layout::history::{LayoutHistory, MissingData, Skipped, VersionStatus as Status};
use garage_rpc::layout::version::LayoutVersion;
use garage_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::cluster::{connected_nodes, moves_of, told};
use crate::error::AdminError;
use crate::layout::{Layout, layout_of, version_as_layout};
use crate::moves::{DepartedNode, NodeMoves, departed};
use crate::operations::{AdminService, Operation};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetClusterLayoutHistory;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionStatus {
    Current,
    Draining,
    Historical,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    pub version: u64,
    /// 64 hexadecimal digits, which tell it from others with its number; `None` from older versions.
    #[serde(default)]
    pub digest: Option<String>,
    pub status: VersionStatus,
    pub storage_nodes: usize,
    pub gateway_nodes: usize,
}

/// Up to which version a node has come; 0 before any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrackerInfo {
    pub ack: u64,
    pub sync: u64,
    pub sync_ack: u64,
}

/// Different live layouts with one number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutConflict {
    pub version: u64,
    pub layouts: Vec<ConflictingLayout>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictingLayout {
    /// 64 hexadecimal digits, the beginning of which names it.
    pub digest: String,
    pub layout: Layout,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutHistoryInfo {
    pub current_version: u64,
    pub min_ack: u64,
    /// Newest first.
    pub versions: Vec<VersionInfo>,
    /// Only while several versions are live.
    pub update_trackers: Option<BTreeMap<NodeId, TrackerInfo>>,
    /// Members of live versions to which the contacted node has no connection.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disconnected: Vec<NodeId>,
    /// Empty as long as nobody applied two changes at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<LayoutConflict>,
    /// What the nodes have still to move, as far as they tell.
    #[serde(default)]
    pub moves: BTreeMap<NodeId, NodeMoves>,
    /// Nodes without a role that stored data, or still do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<DepartedNode>,
}

/// What there is to know of past and live versions, at a node that is connected to `connected`, itself included.
pub fn history_of(history: &LayoutHistory, connected: &BTreeSet<NodeId>) -> LayoutHistoryInfo {
    let versions = history.summaries().into_iter().map(|summary| VersionInfo {
        version: summary.key.number,
        digest: Some(summary.key.digest.hex()),
        status: match summary.status {
            Status::Current => VersionStatus::Current,
            Status::Draining => VersionStatus::Draining,
            Status::Historical => VersionStatus::Historical,
        },
        storage_nodes: summary.storage_nodes,
        gateway_nodes: summary.gateway_nodes,
    });
    let trackers = history.trackers();
    let tracker = |node: NodeId| {
        let number = |key: Option<VersionKey>| key.map_or(0, |key| key.number);
        let ack = number(trackers.ack.get(node));
        let sync = number(trackers.sync.get(node));
        (node, TrackerInfo { ack, sync, sync_ack: number(trackers.sync_ack.get(node)) })
    };
    let several_live = history.live().nth(1).is_some();
    LayoutHistoryInfo {
        current_version: history.current_number(),
        min_ack: history.min_ack(),
        versions: versions.collect(),
        update_trackers: several_live.then(|| history.members().into_iter().map(tracker).collect()),
        disconnected: history.members().difference(connected).copied().collect(),
        conflicts: conflicts_of(history),
        moves: BTreeMap::new(),
        departed: Vec::new(),
    }
}

/// The layouts between which an operator has to choose.
pub fn conflicts_of(history: &LayoutHistory) -> Vec<LayoutConflict> {
    let conflicting =
        |version: &LayoutVersion| ConflictingLayout { digest: version.key().digest.hex(), layout: version_as_layout(version) };
    let conflict = |number: u64| LayoutConflict {
        version: number,
        layouts: history.live().filter(|version| version.number() == number).map(|version| conflicting(version)).collect(),
    };
    history.conflicts().iter().map(|found| conflict(found.number)).collect()
}

impl Operation for GetClusterLayoutHistory {
    const ENDPOINT: &'static str = "admin.GetClusterLayoutHistory/1";
    type Reply = LayoutHistoryInfo;

    async fn run(self, service: &AdminService) -> Result<LayoutHistoryInfo, AdminError> {
        let moves = moves_of(&told(service).await);
        let layout = service.layout().current();
        let departed = departed(&layout, &moves);
        Ok(LayoutHistoryInfo { moves, departed, ..history_of(layout.history(), &connected_nodes(service)) })
    }
}

/// Moves on without the nodes that are not connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterLayoutSkipDeadNodes {
    /// Up to which live version.
    pub version: u64,
    /// Accept that metadata which only dead nodes had is lost.
    pub allow_missing_data: bool,
}

/// The nodes that were moved on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkippedNodes {
    pub ack_updated: Vec<NodeId>,
    pub sync_updated: Vec<NodeId>,
    pub sync_ack_updated: Vec<NodeId>,
}

impl Operation for ClusterLayoutSkipDeadNodes {
    const ENDPOINT: &'static str = "admin.ClusterLayoutSkipDeadNodes/1";
    type Reply = SkippedNodes;

    async fn run(self, service: &AdminService) -> Result<SkippedNodes, AdminError> {
        let connected = connected_nodes(service);
        let members = service.layout().current().history().members();
        let dead: BTreeSet<NodeId> = members.difference(&connected).copied().collect();
        let missing = if self.allow_missing_data { MissingData::Allow } else { MissingData::Refuse };
        let skipped = service.layout().skip_dead_nodes(self.version, dead, missing).await?;
        tracing::warn!(version = self.version, ?missing, ?skipped, "the operator moved the layout on without dead nodes");
        let Skipped { ack, sync, sync_ack } = skipped;
        Ok(SkippedNodes { ack_updated: ack, sync_updated: sync, sync_ack_updated: sync_ack })
    }
}

/// Ends a conflict in favour of one layout, which becomes the next version.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveClusterLayout {
    /// The beginning of its digest.
    pub digest: String,
}

impl Operation for ResolveClusterLayout {
    const ENDPOINT: &'static str = "admin.ResolveClusterLayout/1";
    type Reply = Layout;

    async fn run(self, service: &AdminService) -> Result<Layout, AdminError> {
        let chosen = service.layout().resolve(self.digest).await?;
        tracing::warn!(version = chosen.number, digest = %chosen.digest, "the operator chose between layouts with one number");
        Ok(layout_of(service.layout().current().history()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use garage_rpc::layout::history::LayoutHistory;
    use garage_rpc::layout::version::NodeRole;
    use garage_types::{NodeId, Timestamp};

    use super::{VersionStatus, history_of};

    fn stage(history: &mut LayoutHistory, byte: u8, capacity: u64) {
        let role = NodeRole { zone: "paris".into(), capacity: Some(capacity), tags: vec![] };
        history.stage_role(Timestamp::from_millis(1), NodeId::from_bytes([byte; 32]), role).unwrap();
    }

    #[test]
    fn trackers_are_shown_only_while_several_versions_are_live() {
        let mut history = LayoutHistory::new(1);
        for version in 1..=2 {
            stage(&mut history, 1, version << 20);
            history.apply(version).unwrap();
            let shown = history_of(&history, &BTreeSet::new());
            assert_eq!(shown.update_trackers.is_some(), version == 2);
            assert_eq!(shown.versions[0].status, VersionStatus::Current);
            assert!(shown.conflicts.is_empty());
        }
        let node = NodeId::from_bytes([1; 32]);
        assert_eq!(history_of(&history, &BTreeSet::new()).disconnected, [node]);
        assert!(history_of(&history, &BTreeSet::from([node])).disconnected.is_empty());
    }

    #[test]
    fn two_layouts_with_one_number_are_shown_with_what_tells_them_apart() {
        let (mut one, mut other) = (LayoutHistory::new(1), LayoutHistory::new(1));
        stage(&mut one, 1, 1 << 20);
        stage(&mut other, 2, 1 << 20);
        one.apply(1).unwrap();
        other.apply(1).unwrap();
        one.merge(&other).unwrap();
        let shown = history_of(&one, &BTreeSet::new());
        assert_eq!(shown.versions.len(), 2);
        assert_ne!(shown.versions[0].digest, shown.versions[1].digest);
        let conflicts = shown.conflicts;
        assert_eq!((conflicts.len(), conflicts[0].version, conflicts[0].layouts.len()), (1, 1, 2));
        let [first, second] = [0, 1].map(|at| &conflicts[0].layouts[at]);
        assert_ne!(first.layout.roles[0].id, second.layout.roles[0].id);
        assert!(first.digest.len() == 64 && first.digest != second.digest);
    }
}
