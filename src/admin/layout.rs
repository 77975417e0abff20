//! Operations on the cluster layout.

use garage_rpc::layout::history::LayoutHistory;
use garage_rpc::layout::version::{LayoutParameters as Parameters, LayoutVersion, NodeRole, ZoneRedundancy as Redundancy};
use garage_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::cluster::{StatusConflict, connected_nodes, status_conflicts};
use crate::error::{AdminError, ApiError};
use crate::layout_plan::{LayoutPlan, layout_plan};
use crate::nodes::check_configurations;
use crate::operations::{AdminService, Operation};
use crate::report;

/// Over how many zones the copies of a partition are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ZoneRedundancy {
    Maximum,
    AtLeast(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LayoutParameters {
    pub zone_redundancy: ZoneRedundancy,
}

impl From<Parameters> for LayoutParameters {
    fn from(parameters: Parameters) -> Self {
        let zone_redundancy = match parameters.zone_redundancy {
            Redundancy::Maximum => ZoneRedundancy::Maximum,
            Redundancy::AtLeast(zones) => ZoneRedundancy::AtLeast(zones),
        };
        LayoutParameters { zone_redundancy }
    }
}

impl From<LayoutParameters> for Parameters {
    fn from(parameters: LayoutParameters) -> Self {
        let zone_redundancy = match parameters.zone_redundancy {
            ZoneRedundancy::Maximum => Redundancy::Maximum,
            ZoneRedundancy::AtLeast(zones) => Redundancy::AtLeast(zones),
        };
        Parameters { zone_redundancy }
    }
}

/// A node's place in a layout version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleInfo {
    pub id: NodeId,
    pub zone: String,
    pub tags: Vec<String>,
    /// Bytes; `None` for a gateway.
    pub capacity: Option<u64>,
    pub stored_partitions: Option<usize>,
    /// Bytes.
    pub usable_capacity: Option<u64>,
}

/// A role to be given, or with `remove` alone, to be taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleChange {
    pub id: NodeId,
    #[serde(default)]
    pub remove: bool,
    #[serde(default)]
    pub zone: Option<String>,
    #[serde(default)]
    pub tags: Option<Vec<String>>,
    /// Bytes; `None` makes a gateway.
    #[serde(default)]
    pub capacity: Option<u64>,
}

/// What a [`RoleChange`] asks for, once it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Assign(NodeRole),
    Remove,
}

impl RoleChange {
    pub fn removal(id: NodeId) -> Self {
        RoleChange { id, remove: true, zone: None, tags: None, capacity: None }
    }

    /// # Errors
    /// [`AdminError::IncompleteRole`], [`AdminError::AmbiguousRole`].
    pub fn check(&self) -> Result<Change, AdminError> {
        let node = self.id;
        match (self.remove, &self.zone, &self.tags) {
            (true, None, None) if self.capacity.is_none() => Ok(Change::Remove),
            (true, _, _) => Err(AdminError::AmbiguousRole { node }),
            (false, None, _) => Err(AdminError::IncompleteRole { node, missing: "a zone" }),
            (false, _, None) => Err(AdminError::IncompleteRole { node, missing: "tags (an empty list will do)" }),
            (false, Some(zone), Some(tags)) => {
                Ok(Change::Assign(NodeRole { zone: zone.clone(), capacity: self.capacity, tags: tags.clone() }))
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layout {
    /// 0 before the first.
    pub version: u64,
    pub roles: Vec<RoleInfo>,
    pub parameters: LayoutParameters,
    /// Bytes.
    pub partition_size: u64,
    pub staged_role_changes: Vec<RoleChange>,
    /// Only when different.
    pub staged_parameters: Option<LayoutParameters>,
    /// Different live layouts with one number, of which the roles are those of one: an operator has to choose.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<StatusConflict>,
}

impl Layout {
    /// Whether there is anything to apply.
    pub fn has_staged(&self) -> bool {
        !self.staged_role_changes.is_empty() || self.staged_parameters.is_some()
    }
}

/// The part of a [`Layout`] that a version fixes.
pub(crate) fn version_as_layout(version: &LayoutVersion) -> Layout {
    let assignment = version.assignment();
    let partition_size = assignment.partition_size();
    let role = |(id, role): (&NodeId, &NodeRole)| {
        let stored = role.capacity.map(|_bytes| assignment.partitions_of(*id));
        RoleInfo {
            id: *id,
            zone: role.zone.clone(),
            tags: role.tags.clone(),
            capacity: role.capacity,
            stored_partitions: stored,
            usable_capacity: stored.map(|partitions| partitions as u64 * partition_size),
        }
    };
    Layout {
        version: version.number(),
        roles: version.roles().iter().map(role).collect(),
        parameters: version.parameters().into(),
        partition_size,
        staged_role_changes: Vec::new(),
        staged_parameters: None,
        conflicts: Vec::new(),
    }
}

/// The current version and what is staged.
pub fn layout_of(history: &LayoutHistory) -> Layout {
    let mut layout = history.current().map_or_else(
        || Layout {
            version: 0,
            roles: Vec::new(),
            parameters: Parameters::default().into(),
            partition_size: 0,
            staged_role_changes: Vec::new(),
            staged_parameters: None,
            conflicts: Vec::new(),
        },
        |version| version_as_layout(version),
    );
    let staged = |(id, role): (&NodeId, &Option<NodeRole>)| match role {
        None => RoleChange::removal(*id),
        Some(role) => RoleChange {
            id: *id,
            remove: false,
            zone: Some(role.zone.clone()),
            tags: Some(role.tags.clone()),
            capacity: role.capacity,
        },
    };
    layout.staged_role_changes = history.staging().roles().map(staged).collect();
    let parameters = history.staging().parameters().map(LayoutParameters::from);
    layout.staged_parameters = parameters.filter(|staged| *staged != layout.parameters);
    layout.conflicts = status_conflicts(history);
    layout
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetClusterLayout;

impl Operation for GetClusterLayout {
    const ENDPOINT: &'static str = "admin.GetClusterLayout/1";
    type Reply = Layout;

    async fn run(self, service: &AdminService) -> Result<Layout, AdminError> {
        Ok(layout_of(service.layout().current().history()))
    }
}

/// Stages changes. All are checked before any is staged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateClusterLayout {
    #[serde(default)]
    pub roles: Vec<RoleChange>,
    #[serde(default)]
    pub parameters: Option<LayoutParameters>,
}

impl Operation for UpdateClusterLayout {
    const ENDPOINT: &'static str = "admin.UpdateClusterLayout/1";
    type Reply = Layout;

    async fn run(self, service: &AdminService) -> Result<Layout, AdminError> {
        let check = |change: &RoleChange| change.check().map(|checked| (change.id, checked));
        let changes = self.roles.iter().map(check).collect::<Result<Vec<_>, _>>()?;
        let connected = connected_nodes(service);
        let assigned = changes.iter().filter(|(node, change)| connected.contains(node) && matches!(change, Change::Assign(_)));
        check_configurations(service, assigned.map(|(node, _role)| *node).collect()).await?;
        for (node, change) in changes {
            match change {
                Change::Assign(role) => service.layout().stage_role(node, role).await?,
                Change::Remove => service.layout().stage_removal(node).await?,
            }
        }
        if let Some(parameters) = self.parameters {
            service.layout().stage_parameters(parameters.into()).await?;
        }
        GetClusterLayout.run(service).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PreviewClusterLayoutChanges;

/// What applying would make, or why it cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutPreview {
    /// Set when nothing can be computed; the others are empty then.
    pub error: Option<String>,
    /// Lines for people.
    pub message: Vec<String>,
    pub new_layout: Option<Layout>,
    /// What it would move.
    #[serde(default)]
    pub plan: Option<LayoutPlan>,
}

impl Operation for PreviewClusterLayoutChanges {
    const ENDPOINT: &'static str = "admin.PreviewClusterLayoutChanges/1";
    type Reply = LayoutPreview;

    async fn run(self, service: &AdminService) -> Result<LayoutPreview, AdminError> {
        match service.layout().preview().await {
            Ok(preview) => Ok(LayoutPreview {
                error: None,
                message: report::lines(&preview.report, preview.version.roles()),
                new_layout: Some(version_as_layout(&preview.version)),
                plan: Some(layout_plan(service, &preview).await),
            }),
            Err(error) => {
                let error = ApiError::from(AdminError::Layout(error));
                // What the operator can change is an answer; our own failures are errors.
                if error.status >= 500 {
                    return Err(AdminError::Elsewhere(error));
                }
                Ok(LayoutPreview { error: Some(error.message), message: Vec::new(), new_layout: None, plan: None })
            }
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyClusterLayout {
    /// The current one + 1.
    pub version: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedLayout {
    /// Lines for people.
    pub message: Vec<String>,
    pub layout: Layout,
}

impl Operation for ApplyClusterLayout {
    const ENDPOINT: &'static str = "admin.ApplyClusterLayout/1";
    type Reply = AppliedLayout;

    async fn run(self, service: &AdminService) -> Result<AppliedLayout, AdminError> {
        can_apply(&layout_of(service.layout().current().history()))?;
        let report = service.layout().apply(self.version).await?;
        let current = service.layout().current();
        let roles = current.current().map(|version| version.roles().clone()).unwrap_or_default();
        tracing::info!(version = self.version, "layout applied");
        Ok(AppliedLayout { message: report::lines(&report, &roles), layout: layout_of(current.history()) })
    }
}

/// A version like the one in force would only wait for every node once more. What a conflict needs is said by the layout itself.
///
/// # Errors
/// [`AdminError::NothingStaged`].
fn can_apply(layout: &Layout) -> Result<(), AdminError> {
    if layout.has_staged() || !layout.conflicts.is_empty() { Ok(()) } else { Err(AdminError::NothingStaged) }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RevertClusterLayout;

impl Operation for RevertClusterLayout {
    const ENDPOINT: &'static str = "admin.RevertClusterLayout/1";
    type Reply = Layout;

    async fn run(self, service: &AdminService) -> Result<Layout, AdminError> {
        service.layout().revert().await?;
        GetClusterLayout.run(service).await
    }
}

#[cfg(test)]
mod tests {
    use garage_rpc::layout::history::LayoutHistory;
    use garage_rpc::layout::version::NodeRole;
    use garage_types::{NodeId, Timestamp};
    use serde_json::json;

    use super::{Change, Layout, RoleChange, UpdateClusterLayout, ZoneRedundancy, can_apply, layout_of};

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn role(capacity: Option<u64>) -> NodeRole {
        NodeRole { zone: "paris".into(), capacity, tags: vec!["a".into()] }
    }

    #[test]
    fn changes_read_the_json_of_the_interface() {
        let update: UpdateClusterLayout = serde_json::from_value(json!({
            "roles": [
                { "id": node(1).to_string(), "zone": "z", "tags": [], "capacity": 2000 },
                { "id": node(2).to_string(), "remove": true },
            ],
            "parameters": { "zoneRedundancy": { "atLeast": 2 } },
        }))
        .unwrap();
        assert_eq!(
            update.roles[0].check().unwrap(),
            Change::Assign(NodeRole { zone: "z".into(), capacity: Some(2000), tags: vec![] })
        );
        assert_eq!(update.roles[1].check().unwrap(), Change::Remove);
        assert_eq!(update.parameters.unwrap().zone_redundancy, ZoneRedundancy::AtLeast(2));
        assert!(serde_json::from_value::<UpdateClusterLayout>(json!({ "rolls": [] })).is_err());
    }

    #[test]
    fn a_change_is_a_whole_role_or_a_removal_alone() {
        let nothing = RoleChange { id: node(1), remove: false, zone: None, tags: None, capacity: None };
        assert!(nothing.check().unwrap_err().to_string().contains("needs a zone"));
        let both = RoleChange { remove: true, zone: Some("z".into()), ..nothing };
        assert!(both.check().unwrap_err().to_string().contains("remove stands alone"));
    }

    #[test]
    fn a_layout_that_contradicts_another_one_says_so() {
        let (mut one, mut other) = (LayoutHistory::new(1), LayoutHistory::new(1));
        for (history, byte) in [(&mut one, 1), (&mut other, 2)] {
            history.stage_role(Timestamp::from_millis(1), node(byte), role(Some(1_000_000))).unwrap();
            history.apply(1).unwrap();
        }
        assert!(layout_of(&one).conflicts.is_empty());
        assert!(can_apply(&layout_of(&one)).unwrap_err().to_string().contains("nothing is staged"));
        one.merge(&other).unwrap();
        assert!(can_apply(&layout_of(&one)).is_ok(), "the refusal that names the conflict comes later");
        let conflicts = layout_of(&one).conflicts;
        assert_eq!((conflicts.len(), conflicts[0].version, conflicts[0].digests.len()), (1, 1, 2));
    }

    #[test]
    fn a_layout_shows_roles_and_what_is_staged() {
        let mut history = LayoutHistory::new(1);
        assert_eq!(layout_of(&history).version, 0);
        history.stage_role(Timestamp::from_millis(1), node(1), role(Some(1_000_000))).unwrap();
        history.stage_role(Timestamp::from_millis(1), node(2), role(None)).unwrap();
        history.apply(1).unwrap();
        history.stage_removal(Timestamp::from_millis(2), node(2)).unwrap();
        let layout: Layout = layout_of(&history);
        assert_eq!((layout.version, layout.roles.len()), (1, 2));
        assert_eq!(layout.roles[0].stored_partitions, Some(256));
        assert_eq!(layout.roles[0].usable_capacity, Some(256 * layout.partition_size));
        assert_eq!((layout.roles[1].capacity, layout.roles[1].stored_partitions), (None, None));
        assert_eq!(layout.staged_role_changes, [RoleChange::removal(node(2))]);
        assert!(can_apply(&layout).is_ok());
        assert_eq!(layout.staged_parameters, None);
    }
}
