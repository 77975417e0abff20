//! The cluster as tables and blocks see it: who owns what, how to reach them, how many must answer.
//!
//! One handle joins the mesh, the layout and the consistency mode, so that every quorum call follows the same rules.

use std::collections::BTreeSet;
use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Placement};
use garage_worker::spawn::Spawn;
use tokio::sync::Notify;

use crate::endpoint::{Message, Request};
use crate::error::RpcError;
use crate::layout::{ClusterLayout, LayoutManager, WritePermit};
use crate::mesh::{Mesh, PING_TIMEOUT};
use crate::quorum::{self, NodeReply, QuorumError, Quorums, WriteQuorum};

/// How long metadata and block calls may take, and when a read asks one more node.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub metadata: Duration,
    pub bulk: Duration,
    /// An answer later than this makes a read ask the next node as well.
    pub hedge: Duration,
    /// For the answer to a ping.
    pub ping: Duration,
}

/// How much longer a block may take than metadata.
const BULK_FACTOR: u32 = 12;

impl Timeouts {
    /// `metadata`, `ping`: as configured; the others follow.
    pub fn from_configured(metadata: Duration, ping: Duration) -> Self {
        Timeouts { metadata, bulk: metadata.saturating_mul(BULK_FACTOR), hedge: Duration::from_millis(300), ping }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts::from_configured(Duration::from_secs(10), PING_TIMEOUT)
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    mesh: Mesh,
    layout: Arc<LayoutManager>,
    asked_for: AskedFor,
    timeouts: Timeouts,
    spawn: Arc<dyn Spawn>,
    missed: Arc<Missed>,
}

/// The nodes that did not answer a write of rows which this node sent to them.
#[derive(Default)]
pub struct Missed {
    nodes: Mutex<BTreeSet<NodeId>>,
    added: Notify,
}

impl Missed {
    pub fn add(&self, node: NodeId) {
        self.nodes().insert(node);
        self.added.notify_one();
    }

    /// Resolves once there are some; for one waiter.
    pub async fn added(&self) {
        self.added.notified().await;
    }

    /// Those since the last time.
    pub fn take(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.nodes())
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, BTreeSet<NodeId>> {
        self.nodes.lock().expect("nothing panics while holding the nodes")
    }
}

/// What quorums are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AskedFor {
    /// Requests: as many nodes as the consistency mode says.
    Requests,
    /// Decisions that lead to a deletion: enough nodes to meet every acknowledged write.
    Deletions,
}

impl Cluster {
    pub fn new(mesh: Mesh, layout: Arc<LayoutManager>, timeouts: Timeouts, spawn: Arc<dyn Spawn>) -> Self {
        let asked_for = AskedFor::Requests;
        Cluster(Arc::new(Inner { mesh, layout, asked_for, timeouts, spawn, missed: Arc::default() }))
    }

    /// The same cluster for decisions that lead to a deletion: see [`Quorums::certain`].
    #[must_use]
    pub fn certain(&self) -> Self {
        let Inner { mesh, layout, timeouts, spawn, missed, .. } = &*self.0;
        Cluster(Arc::new(Inner {
            mesh: mesh.clone(),
            layout: layout.clone(),
            asked_for: AskedFor::Deletions,
            timeouts: *timeouts,
            spawn: spawn.clone(),
            missed: missed.clone(),
        }))
    }

    pub fn node_id(&self) -> NodeId {
        self.0.mesh.node_id()
    }

    pub fn mesh(&self) -> &Mesh {
        &self.0.mesh
    }

    /// Who may lack rows, as far as this node's writes tell.
    pub fn missed(&self) -> &Arc<Missed> {
        &self.0.missed
    }

    pub fn layout_manager(&self) -> &Arc<LayoutManager> {
        &self.0.layout
    }

    /// The layout to read by.
    pub fn layout(&self) -> Arc<ClusterLayout> {
        self.0.layout.current()
    }

    /// The layout to write by, held for as long as the write runs.
    pub fn begin_write(&self) -> Arc<WritePermit> {
        Arc::new(self.0.layout.begin_write())
    }

    pub fn timeouts(&self) -> Timeouts {
        self.0.timeouts
    }

    pub fn spawn(&self) -> &Arc<dyn Spawn> {
        &self.0.spawn
    }

    /// By the strictest mode among the nodes that this one has met: one node's configuration must not weaken what the others promise.
    pub fn quorums(&self) -> Quorums {
        let (factor, mesh) = (self.layout().replication_factor(), &self.0.mesh);
        let quorums = match self.0.asked_for {
            AskedFor::Deletions if !is_planted(Bug::ReleasedByOneCopy) => Quorums::certain(factor, mesh.weakest_consistency()),
            AskedFor::Requests | AskedFor::Deletions => Quorums::of(factor, mesh.consistency()),
        };
        if is_planted(Bug::WriteQuorumOfOne) { Quorums { write: 1, ..quorums } } else { quorums }
    }

    /// Whether this node alone decides about a row: one copy, one live layout version, and it is here.
    pub fn decides_alone(&self, placement: &Placement) -> bool {
        let sets = self.layout().write_sets(*placement);
        matches!(sets.as_slice(), [set] if set.as_slice() == [self.node_id()])
    }

    /// Self first, then the same zone, then by measured latency.
    pub fn nearest_first(&self, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        if nodes.len() > 1 {
            let layout = self.layout();
            let own = self.node_id();
            let own_zone = layout.role(own).map(|role| role.zone.clone());
            nodes.sort_by_cached_key(|node| {
                let other_zone = layout.role(*node).map(|role| role.zone.clone()) != own_zone;
                (*node != own, other_zone, self.0.mesh.latency(*node).unwrap_or(Duration::MAX))
            });
        }
        nodes
    }

    /// One metadata call.
    ///
    /// # Errors
    /// What the other node answered, or why it did not.
    pub async fn call<R: Request>(&self, node: NodeId, request: R) -> Result<R::Reply, RpcError> {
        let reply = self.0.mesh.call(node, Message::from(request), self.0.timeouts.metadata).await?;
        Ok(reply.body)
    }

    /// Calls every node of `sets` and returns once each set has `quorum` successes; the other calls go on in the background, and
    /// hold the permit until they end.
    ///
    /// # Errors
    /// [`QuorumError`] with every node's error, once some set can no longer reach the quorum.
    pub async fn write<T, E, F>(
        &self,
        permit: &Arc<WritePermit>,
        sets: &[Vec<NodeId>],
        quorum: impl Into<WriteQuorum>,
        call: impl Fn(NodeId) -> F,
    ) -> Result<Vec<NodeReply<T>>, QuorumError<E>>
    where
        T: Send + 'static,
        E: Error + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let spawn = self.0.spawn.clone();
        let held = |node| {
            let (call, permit) = (call(node), permit.clone());
            call.inspect(move |_reply| drop(permit))
        };
        quorum::write_to_sets(sets, quorum, move |rest| spawn.spawn("rest of a quorum write", rest), held).await
    }

    /// Asks the nearest of `nodes` until `quorum` have answered.
    ///
    /// # Errors
    /// [`QuorumError`] with every node's error, once too few are left.
    pub async fn read<T, E, F>(
        &self,
        nodes: Vec<NodeId>,
        quorum: usize,
        call: impl Fn(NodeId) -> F,
    ) -> Result<Vec<NodeReply<T>>, QuorumError<E>>
    where
        T: Send + 'static,
        E: Error + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        quorum::read_from(&self.nearest_first(nodes), quorum, self.0.timeouts.hedge, call).await
    }
}
