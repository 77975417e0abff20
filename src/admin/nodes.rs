//! What single nodes say about themselves. A request names nodes and is answered for each; the contacted node asks the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use garage_rpc::endpoint::Message;
use garage_types::NodeId;
use garage_types::config::ConsistencyMode;
use serde::{Deserialize, Serialize};

use crate::cluster::known_nodes;
use crate::error::{AdminError, ApiError, with_causes};
use crate::moves::NodeMoves;
use crate::operations::{AdminService, Call, Operation, Visitor};
use crate::search;

/// How long a node is waited for that is to say something of itself: others are shown without it.
pub(crate) const TELLING: Duration = Duration::from_secs(3);

/// Room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub available: u64,
    pub total: u64,
}

/// How much room this node has; `None` when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spaces {
    /// Over all data directories.
    pub data: Option<Space>,
    pub metadata: Option<Space>,
}

/// Asks the file systems; the wiring implements it, off the async threads.
pub trait FreeSpace: Send + Sync + 'static {
    fn measure(&self) -> BoxFuture<'static, Spaces>;
}

/// What a node knows of itself from its start on.
#[derive(Clone)]
pub struct Facts {
    pub hostname: String,
    /// Of the program.
    pub version: String,
    pub features: Vec<String>,
    pub rust_version: String,
    pub db_engine: String,
    pub space: Arc<dyn FreeSpace>,
}

/// The host names that nodes told when they were last asked, for when they cannot be. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct HostNames(Arc<Mutex<BTreeMap<NodeId, String>>>);

impl HostNames {
    pub(crate) fn remember(&self, told: &BTreeMap<NodeId, NodeStatus>) {
        let names = told.iter().map(|(node, status)| (*node, status.hostname.clone()));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
    }

    pub(crate) fn all(&self) -> BTreeMap<NodeId, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One reply or error for each node asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multi<T> {
    pub success: BTreeMap<NodeId, T>,
    pub error: BTreeMap<NodeId, String>,
}

/// The nodes that `selector` means: `*`, `self`, or the beginning of one id.
///
/// # Errors
/// [`search::SearchError::Node`].
fn select(selector: &str, own: NodeId, known: &[NodeId]) -> Result<Vec<NodeId>, search::SearchError> {
    match selector {
        "*" => Ok(known.to_vec()),
        "self" => Ok(vec![own]),
        prefix => Ok(vec![search::node(prefix, known.iter().copied())?]),
    }
}

/// Asks all nodes that `selector` means at once.
pub(crate) async fn ask_each<O: Operation + Clone>(
    service: &AdminService,
    selector: &str,
    question: O,
) -> Result<Multi<O::Reply>, AdminError> {
    let own = service.garage.cluster().node_id();
    let nodes = select(selector, own, &known_nodes(service))?;
    let answers = join_all(nodes.into_iter().map(|node| {
        let question = question.clone();
        async move { (node, ask(service, node, question).await) }
    }))
    .await;
    let mut multi = Multi { success: BTreeMap::new(), error: BTreeMap::new() };
    for (node, answer) in answers {
        match answer {
            Ok(reply) => {
                multi.success.insert(node, reply);
            }
            Err(message) => {
                multi.error.insert(node, message);
            }
        }
    }
    Ok(multi)
}

/// Asks one node, which may be this one.
///
/// # Errors
/// In words.
pub(crate) async fn ask<O: Operation>(service: &AdminService, node: NodeId, question: O) -> Result<O::Reply, String> {
    if node == service.garage.cluster().node_id() {
        return question.run(service).await.map_err(|error| ApiError::from(error).to_string());
    }
    let answer = match O::PATIENCE {
        None => service.garage.cluster().call(node, Call(question)).await,
        Some(timeout) => service.mesh().call(node, Message::from(Call(question)), timeout).await.map(|message| message.body),
    };
    match answer {
        Ok(answer) => answer.map_err(|refusal| refusal.to_string()),
        Err(error) => Err(with_causes(&error)),
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetNodeInfo {
    pub node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    pub node_id: NodeId,
    pub garage_version: String,
    pub garage_features: Option<Vec<String>>,
    pub rust_version: String,
    pub db_engine: String,
    /// Its database was lost or is an old one: it answers for no row until it has fetched them from the other owners.
    #[serde(default)]
    pub rebuilding: bool,
}

impl Operation for GetNodeInfo {
    const ENDPOINT: &'static str = "admin.GetNodeInfo/1";
    type Reply = Multi<NodeInfo>;

    async fn run(self, service: &AdminService) -> Result<Multi<NodeInfo>, AdminError> {
        ask_each(service, &self.node, OwnInfo).await
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetNodeStatistics {
    pub node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatistics {
    pub name: String,
    /// Rows on this node.
    pub items: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatistics {
    pub info: NodeInfo,
    pub hostname: String,
    pub tables: Vec<TableStatistics>,
    /// Changes that other nodes have not acknowledged yet.
    pub insert_queue_length: u64,
    /// Rows that do not match their checksums and are not repaired yet; `None` from a node whose version does not tell.
    #[serde(default)]
    pub damaged_rows: Option<u64>,
    /// `None` from a node whose version does not tell.
    #[serde(default)]
    pub blocks: Option<BlockStatistics>,
    /// Data directories whose disk was unmounted, or exchanged, while the node runs.
    #[serde(default)]
    pub exchanged_directories: Vec<String>,
    /// `None` from a node whose version does not tell.
    #[serde(default)]
    pub moves: Option<NodeMoves>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockStatistics {
    /// Blocks that are, or were until lately, referred to from this node.
    pub rc_entries: u64,
    pub resync_queue_length: u64,
    /// Blocks whose last try failed.
    #[serde(default)]
    pub resync_errors: u64,
    /// Block files that nothing refers to, waiting to be given back.
    #[serde(default)]
    pub unreferenced: u64,
}

impl Operation for GetNodeStatistics {
    const ENDPOINT: &'static str = "admin.GetNodeStatistics/1";
    type Reply = Multi<NodeStatistics>;

    async fn run(self, service: &AdminService) -> Result<Multi<NodeStatistics>, AdminError> {
        ask_each(service, &self.node, OwnStatistics).await
    }
}

/// What nodes ask each other; operators ask [`GetNodeInfo`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnInfo;

impl Operation for OwnInfo {
    const ENDPOINT: &'static str = "admin.node.OwnInfo/1";
    const PATIENCE: Option<Duration> = Some(TELLING);
    type Reply = NodeInfo;

    async fn run(self, service: &AdminService) -> Result<NodeInfo, AdminError> {
        let facts = &service.node;
        Ok(NodeInfo {
            node_id: service.garage.cluster().node_id(),
            garage_version: facts.version.clone(),
            garage_features: Some(facts.features.clone()),
            rust_version: facts.rust_version.clone(),
            db_engine: facts.db_engine.clone(),
            rebuilding: service.garage.cluster().layout_manager().standing().is_rebuilding(),
        })
    }
}

/// What nodes ask each other; operators ask [`GetNodeStatistics`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnStatistics;

impl Operation for OwnStatistics {
    const ENDPOINT: &'static str = "admin.node.OwnStatistics/1";
    const PATIENCE: Option<Duration> = Some(TELLING);
    type Reply = NodeStatistics;

    async fn run(self, service: &AdminService) -> Result<NodeStatistics, AdminError> {
        let tables = &service.garage.local().tables;
        let count = |table: garage_table::store::TableCount| TableStatistics { name: table.name.to_owned(), items: table.rows };
        let blocks = service.garage.block_counts().await?;
        let moves = NodeMoves::own(service).await?;
        Ok(NodeStatistics {
            info: OwnInfo.run(service).await?,
            hostname: service.node.hostname.clone(),
            tables: tables.counts().await?.into_iter().map(count).collect(),
            insert_queue_length: tables.queue_len().await?,
            damaged_rows: Some(tables.damaged_rows()),
            blocks: Some(BlockStatistics {
                rc_entries: blocks.counted,
                resync_queue_length: blocks.resync_queue,
                resync_errors: moves.blocks_failed,
                unreferenced: service.garage.unreferenced_blocks().await?,
            }),
            exchanged_directories: exchanged_directories(service).await,
            moves: Some(moves),
        })
    }
}

async fn exchanged_directories(service: &AdminService) -> Vec<String> {
    match service.garage.local().blocks.blocks.exchanged().await {
        Ok(exchanged) => exchanged.into_iter().map(|path| path.display().to_string()).collect(),
        Err(error) => {
            tracing::warn!(error = with_causes(&error), "cannot tell whether the data directories are those that were opened");
            Vec::new()
        }
    }
}

/// What `garage status` shows of a node beside its role.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnStatus;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub hostname: String,
    pub version: String,
    pub data: Option<Space>,
    pub metadata: Option<Space>,
    /// `None` from a node whose version does not tell, or that cannot tell now.
    #[serde(default)]
    pub moves: Option<NodeMoves>,
    /// What it is configured for; `None` from a node whose version does not tell.
    #[serde(default)]
    pub replication_factor: Option<usize>,
    /// As above, by name.
    #[serde(default)]
    pub consistency_mode: Option<String>,
}

impl Operation for OwnStatus {
    const ENDPOINT: &'static str = "admin.node.OwnStatus/1";
    const PATIENCE: Option<Duration> = Some(TELLING);
    type Reply = NodeStatus;

    async fn run(self, service: &AdminService) -> Result<NodeStatus, AdminError> {
        let Facts { hostname, version, space, .. } = &service.node;
        let Spaces { data, metadata } = space.measure().await;
        let moves = match NodeMoves::own(service).await {
            Ok(moves) => Some(moves),
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "what is still to be moved cannot be told");
                None
            }
        };
        let Configured { replication_factor, consistency } = configured(service);
        Ok(NodeStatus {
            hostname: hostname.clone(),
            version: version.clone(),
            data,
            metadata,
            moves,
            replication_factor: Some(replication_factor),
            consistency_mode: Some(consistency.name().to_owned()),
        })
    }
}

/// What all nodes of a cluster must be configured for alike.
#[derive(Clone, Copy, Debug)]
struct Configured {
    replication_factor: usize,
    consistency: ConsistencyMode,
}

fn configured(service: &AdminService) -> Configured {
    Configured {
        replication_factor: service.layout().current().history().replication_factor(),
        consistency: service.mesh().configured_consistency(),
    }
}

/// Asks nodes for what they are configured, and refuses those that differ from this one: with another replication factor they would
/// take in none of its layouts, and in another consistency mode one of the two would not do as configured. Nodes that are not
/// connected, or do not tell, may be right.
///
/// # Errors
/// [`AdminError::OtherReplicationFactor`], [`AdminError::OtherConsistencyMode`].
pub(crate) async fn check_configurations(service: &AdminService, nodes: Vec<NodeId>) -> Result<(), AdminError> {
    let asked = nodes.into_iter().map(|node| async move {
        let answer = ask(service, node, OwnStatus).await;
        let unknown = |error| tracing::debug!(%node, error, "a node does not tell what it is configured for");
        (node, answer.map_err(unknown).ok())
    });
    let told = join_all(asked).await;
    told.iter()
        .try_for_each(|(node, status)| status.as_ref().map_or(Ok(()), |status| is_alike(configured(service), *node, status)))
}

fn is_alike(configured: Configured, node: NodeId, told: &NodeStatus) -> Result<(), AdminError> {
    let Configured { replication_factor, consistency } = configured;
    if let Some(found) = told.replication_factor.filter(|found| *found != replication_factor) {
        return Err(AdminError::OtherReplicationFactor { node, found, configured: replication_factor });
    }
    match told.consistency_mode.as_ref().filter(|found| found.as_str() != consistency.name()) {
        Some(found) => Err(AdminError::OtherConsistencyMode { node, found: found.clone(), configured: consistency.name() }),
        None => Ok(()),
    }
}

/// What nodes ask each other, to be served beside the operations.
pub(crate) fn visit_internal(visitor: &mut impl Visitor) {
    visitor.visit::<OwnInfo>();
    visitor.visit::<OwnStatistics>();
    visitor.visit::<OwnStatus>();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use garage_types::NodeId;
    use garage_types::config::ConsistencyMode;

    use super::{Configured, NodeStatus, OwnInfo, OwnStatistics, OwnStatus, is_alike, select};
    use crate::operations::Operation;
    use crate::workers::{OwnVariables, OwnWorker, OwnWorkers};

    fn told(replication_factor: Option<usize>, mode: Option<&str>) -> NodeStatus {
        NodeStatus {
            hostname: "h".into(),
            version: "1".into(),
            data: None,
            metadata: None,
            moves: None,
            replication_factor,
            consistency_mode: mode.map(str::to_owned),
        }
    }

    #[test]
    fn a_node_configured_for_something_else_is_refused_and_one_that_does_not_tell_is_not() {
        let node = NodeId::from_bytes([1; 32]);
        let configured = Configured { replication_factor: 3, consistency: ConsistencyMode::Consistent };
        assert!(is_alike(configured, node, &told(Some(3), Some("consistent"))).is_ok());
        assert!(is_alike(configured, node, &told(None, None)).is_ok());
        let refused = |status: NodeStatus| is_alike(configured, node, &status).unwrap_err().to_string();
        let factor = refused(told(Some(2), None));
        assert!(factor.contains(&node.short()) && factor.contains("replication_factor = 2, this node with 3"), "{factor}");
        let mode = refused(told(Some(3), Some("dangerous")));
        assert!(mode.contains("consistency_mode = \"dangerous\", this node with \"consistent\""), "{mode}");
    }

    #[test]
    fn an_older_node_tells_no_replication_factor() {
        let status: NodeStatus =
            serde_json::from_str(r#"{"hostname":"h","version":"1","data":null,"metadata":null,"moves":null}"#).unwrap();
        assert_eq!((status.replication_factor, status.consistency_mode), (None, None));
    }

    fn patience<O: Operation>() -> Option<Duration> {
        O::PATIENCE
    }

    #[test]
    fn a_node_that_hangs_holds_up_what_others_say_for_three_seconds_at_most() {
        let asked = [
            patience::<OwnInfo>(),
            patience::<OwnStatistics>(),
            patience::<OwnStatus>(),
            patience::<OwnVariables>(),
            patience::<OwnWorker>(),
            patience::<OwnWorkers>(),
        ];
        assert!(asked.iter().all(|patience| patience.is_some_and(|patience| patience <= Duration::from_secs(3))), "{asked:?}");
    }

    #[test]
    fn a_selector_means_all_nodes_this_one_or_one_by_prefix() {
        let known = [1, 2].map(|byte| NodeId::from_bytes([byte; 32]));
        assert_eq!(select("*", known[0], &known).unwrap(), known);
        assert_eq!(select("self", known[0], &known).unwrap(), [known[0]]);
        assert_eq!(select("02", known[0], &known).unwrap(), [known[1]]);
        assert!(select("0", known[0], &known).is_err());
    }
}
