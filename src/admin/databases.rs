//! Declaring databases whole that can be rebuilt from nobody.
//!
//! Must stay true: while somebody has something better, or may have, nothing is accepted unless the operator insists.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use garage_rpc::layout::{ClusterLayout, Standing};
use garage_table::Replication;
use garage_table::sync::plan::can_rebuild_from;
use garage_table::wire::TableId;
use garage_types::NodeId;
use serde::{Deserialize, Serialize};

use crate::error::AdminError;
use crate::nodes::{Multi, ask, ask_each};
use crate::operations::{AdminService, Operation, Visitor};
use crate::search;

/// Millions of rows take a while to be brought back.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// What a node's database is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DatabaseState {
    /// New, in no layout.
    Fresh,
    /// Lost or old: it is fetched from the other owners.
    Rebuilding,
    /// Old, and declared whole by an operator; not compared with the others yet.
    Accepted,
    Whole,
}

/// What a node says about its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseFacts {
    pub state: DatabaseState,
    /// Rows of the old database that an acceptance would bring back.
    pub rows_to_bring_back: u64,
}

/// Why a database is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptRefusal {
    #[error("no node is rebuilding its database: there is nothing to accept")]
    NobodyRebuilds,
    #[error("node {} is not rebuilding its database: there is nothing to accept", node.short())]
    NotRebuilding { node: NodeId },
    #[error(
        "{} cannot be asked, and may have what the others lack: bring them back first; if they are gone for good, add --force",
        names(nodes)
    )]
    Silent { nodes: Vec<NodeId> },
    #[error("node {} can be rebuilt from the others and will be: garage status shows how far it is", node.short())]
    WillBeRebuilt { node: NodeId },
    #[error(
        "{} never lost its database: accept one node at a time, and wait whether the others can be rebuilt then",
        names(nodes)
    )]
    SomeAreWhole { nodes: Vec<NodeId> },
    #[error("node {} has an empty database: accept those first that have rows, and it may be rebuilt from them", node.short())]
    Empty { node: NodeId },
}

fn names(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(NodeId::short).collect();
    format!("node{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// Whether the databases of `targets` may be accepted, given what every member of the layout says (`None`: it cannot be asked).
///
/// # Errors
/// [`AcceptRefusal`].
pub fn judge(
    layout: &ClusterLayout,
    tables: &[(TableId, Replication)],
    facts: &BTreeMap<NodeId, Option<DatabaseFacts>>,
    targets: &[NodeId],
    force: Force,
) -> Result<(), AcceptRefusal> {
    if targets.is_empty() {
        return Err(AcceptRefusal::NobodyRebuilds);
    }
    let state = |node: &NodeId| facts.get(node).copied().flatten().map(|facts| facts.state);
    if let Some(node) = targets.iter().find(|node| state(node) != Some(DatabaseState::Rebuilding)) {
        return Err(AcceptRefusal::NotRebuilding { node: *node });
    }
    if force == Force::Yes {
        return Ok(());
    }
    let those = |wanted: Option<DatabaseState>| facts.keys().filter(|node| state(node) == wanted).copied().collect::<Vec<_>>();
    let silent = those(None);
    if !silent.is_empty() {
        return Err(AcceptRefusal::Silent { nodes: silent });
    }
    let whole = those(Some(DatabaseState::Whole));
    let mut able: BTreeSet<NodeId> = whole.iter().chain(&those(Some(DatabaseState::Accepted))).copied().collect();
    for node in targets {
        if !whole.is_empty() && can_rebuild_from(layout, *node, tables, &able) {
            return Err(AcceptRefusal::WillBeRebuilt { node: *node });
        }
    }
    if !whole.is_empty() && targets.len() > 1 {
        return Err(AcceptRefusal::SomeAreWhole { nodes: whole });
    }
    let has_rows = |node: &NodeId| facts.get(node).copied().flatten().is_some_and(|facts| facts.rows_to_bring_back > 0);
    able.extend(facts.keys().filter(|node| has_rows(node)));
    match targets.iter().find(|node| !has_rows(node) && can_rebuild_from(layout, **node, tables, &able)) {
        Some(node) => Err(AcceptRefusal::Empty { node: *node }),
        None => Ok(()),
    }
}

/// Whether the operator insists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    No,
    Yes,
}

/// Declares the databases of nodes whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptDatabase {
    /// See [`crate::nodes`]; `*` means every node that is rebuilding and has rows of an old database.
    pub node: String,
    #[serde(default)]
    pub force: bool,
}

/// An accepted database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseAccepted {
    pub rows_brought_back: u64,
}

impl Operation for AcceptDatabase {
    const ENDPOINT: &'static str = "admin.AcceptDatabase/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = Multi<DatabaseAccepted>;

    async fn run(self, service: &AdminService) -> Result<Self::Reply, AdminError> {
        let layout = service.layout().current();
        let members = layout.all_nodes().iter().copied();
        let asked = members.map(|node| async move { (node, ask(service, node, OwnDatabase).await.ok()) });
        let facts: BTreeMap<NodeId, Option<DatabaseFacts>> = futures_util::future::join_all(asked).await.into_iter().collect();
        let old = |facts: &DatabaseFacts| facts.state == DatabaseState::Rebuilding && facts.rows_to_bring_back > 0;
        let own = service.garage.cluster().node_id();
        let targets: Vec<NodeId> = match self.node.as_str() {
            "*" => facts.iter().filter(|(_node, facts)| facts.as_ref().is_some_and(old)).map(|(node, _facts)| *node).collect(),
            "self" => vec![own],
            prefix => vec![search::node(prefix, facts.keys().copied())?],
        };
        let force = if self.force { Force::Yes } else { Force::No };
        judge(&layout, &service.garage.local().tables.tables(), &facts, &targets, force)?;
        tracing::warn!(?targets, ?force, "the operator declares databases whole");
        let told = targets.into_iter().map(|node| async move { (node, ask(service, node, OwnAcceptance).await) });
        let mut multi = Multi { success: BTreeMap::new(), error: BTreeMap::new() };
        for (node, answer) in futures_util::future::join_all(told).await {
            match answer {
                Ok(accepted) => drop(multi.success.insert(node, accepted)),
                Err(error) => drop(multi.error.insert(node, error)),
            }
        }
        Ok(multi)
    }
}

/// What nodes say about their databases.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetDatabaseState {
    pub node: String,
}

impl Operation for GetDatabaseState {
    const ENDPOINT: &'static str = "admin.GetDatabaseState/1";
    type Reply = Multi<DatabaseFacts>;

    async fn run(self, service: &AdminService) -> Result<Self::Reply, AdminError> {
        ask_each(service, &self.node, OwnDatabase).await
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnDatabase;

impl Operation for OwnDatabase {
    const ENDPOINT: &'static str = "admin.node.OwnDatabase/1";
    type Reply = DatabaseFacts;

    async fn run(self, service: &AdminService) -> Result<DatabaseFacts, AdminError> {
        let state = match service.layout().standing().get() {
            Standing::Fresh => DatabaseState::Fresh,
            Standing::Rebuilding => DatabaseState::Rebuilding,
            Standing::Accepted => DatabaseState::Accepted,
            Standing::Whole => DatabaseState::Whole,
        };
        Ok(DatabaseFacts { state, rows_to_bring_back: service.garage.local().tables.rows_to_bring_back().await? })
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnAcceptance;

impl Operation for OwnAcceptance {
    const ENDPOINT: &'static str = "admin.node.OwnAcceptance/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = DatabaseAccepted;

    async fn run(self, service: &AdminService) -> Result<DatabaseAccepted, AdminError> {
        let node = service.garage.cluster().node_id();
        if !service.layout().standing().is_rebuilding() {
            return Err(AcceptRefusal::NotRebuilding { node }.into());
        }
        let rows_brought_back = service.garage.local().tables.accept_database().await?;
        service.layout().accepted();
        service.garage.sync().request();
        tracing::warn!(%node, rows_brought_back, "this node's database counts as whole again, by the operator's word");
        Ok(DatabaseAccepted { rows_brought_back })
    }
}

/// What nodes ask each other, to be served beside the operations.
pub(crate) fn visit_internal(visitor: &mut impl Visitor) {
    visitor.visit::<OwnDatabase>();
    visitor.visit::<OwnAcceptance>();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use garage_rpc::layout::history::{LayoutHistory, OlderWrites};
    use garage_rpc::layout::{ClusterLayout, NodeRole};
    use garage_table::Replication;
    use garage_table::wire::TableId;
    use garage_types::{NodeId, Timestamp};

    use super::{AcceptRefusal, DatabaseFacts, DatabaseState, Force, judge};
    use DatabaseState::{Accepted, Rebuilding, Whole};

    const TABLES: [(TableId, Replication); 2] = [(TableId(1), Replication::Sharded), (TableId(2), Replication::FullCopy)];

    fn node(n: usize) -> NodeId {
        NodeId::from_bytes([n as u8; 32])
    }

    fn three() -> ClusterLayout {
        let mut history = LayoutHistory::new(3);
        for n in 1..=3 {
            let role = NodeRole { zone: n.to_string(), capacity: Some(1 << 30), tags: Vec::new() };
            history.stage_role(Timestamp::from_millis(1), node(n), role).unwrap();
        }
        history.apply(1).unwrap();
        (1..=3).for_each(|n| history.advance(node(n), OlderWrites::Done));
        ClusterLayout::of(Arc::new(history))
    }

    fn judged(states: [Option<(DatabaseState, u64)>; 3], targets: &[usize], force: Force) -> Result<(), AcceptRefusal> {
        let facts: BTreeMap<_, _> = (1..)
            .zip(states)
            .map(|(n, facts)| (node(n), facts.map(|(state, rows_to_bring_back)| DatabaseFacts { state, rows_to_bring_back })))
            .collect();
        judge(&three(), &TABLES, &facts, &targets.iter().map(|n| node(*n)).collect::<Vec<_>>(), force)
    }

    const OLD: Option<(DatabaseState, u64)> = Some((Rebuilding, 9));
    const EMPTY: Option<(DatabaseState, u64)> = Some((Rebuilding, 0));
    const SOUND: Option<(DatabaseState, u64)> = Some((Whole, 0));

    #[test]
    fn old_databases_are_accepted_when_nobody_has_better_ones() {
        assert_eq!(judged([OLD; 3], &[1, 2, 3], Force::No), Ok(()));
        assert_eq!(judged([OLD; 3], &[2], Force::No), Ok(()));
        let accepted = Some((Accepted, 0));
        assert_eq!(judged([accepted, accepted, OLD], &[3], Force::No), Ok(()), "its rows are as good as theirs");
        assert_eq!(judged([SOUND, OLD, OLD], &[2], Force::No), Ok(()), "one is not enough to rebuild from");
        assert_eq!(judged([EMPTY; 3], &[1], Force::No), Ok(()), "everything is lost");
    }

    #[test]
    fn while_somebody_has_or_may_have_better_nothing_is_accepted_unless_the_operator_insists() {
        let refused = |states, targets: &[usize]| {
            let rebuilding = targets.iter().all(|n| matches!(judged(states, &[*n], Force::Yes), Ok(())));
            (judged(states, targets, Force::No).unwrap_err(), rebuilding)
        };
        assert_eq!(refused([OLD, OLD, None], &[1, 2]), (AcceptRefusal::Silent { nodes: vec![node(3)] }, true));
        assert_eq!(refused([SOUND, SOUND, OLD], &[3]), (AcceptRefusal::WillBeRebuilt { node: node(3) }, true));
        assert_eq!(
            refused([SOUND, Some((Accepted, 0)), OLD], &[3]),
            (AcceptRefusal::WillBeRebuilt { node: node(3) }, true),
            "one was accepted, and now there are enough"
        );
        assert_eq!(refused([SOUND, OLD, OLD], &[2, 3]), (AcceptRefusal::SomeAreWhole { nodes: vec![node(1)] }, true));
        assert_eq!(refused([EMPTY, OLD, OLD], &[1]), (AcceptRefusal::Empty { node: node(1) }, true));
        assert_eq!(refused([SOUND, OLD, OLD], &[1]), (AcceptRefusal::NotRebuilding { node: node(1) }, false));
        assert_eq!(refused([SOUND; 3], &[]), (AcceptRefusal::NobodyRebuilds, true));
    }
}
