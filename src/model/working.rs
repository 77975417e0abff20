//! Which contents the requests of this node are writing at this moment, for other nodes that find what a write has left.
//!
//! Must stay true: a request names its content here before it sends anything of it, and until it sends nothing more. So what a node says
//! it does not work on, it never will: a run that has ended is no different from a request that has.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::RpcError;
use garage_types::{NodeId, VersionId, chain};
use serde::{Deserialize, Serialize};

use crate::garage::Garage;
use crate::presence::{Presence, Stay};

/// The contents being written here.
#[derive(Clone, Debug, Default)]
pub struct Working(pub(crate) Presence<VersionId>);

impl Working {
    /// Says so until what is returned is dropped.
    pub fn on(&self, version: VersionId) -> Stay<VersionId> {
        self.0.add(version)
    }
}

/// "Which of these are you writing?"
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskWorking {
    #[serde(rename = "v")]
    versions: BTreeSet<VersionId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkingOn {
    #[serde(rename = "v")]
    versions: BTreeSet<VersionId>,
}

impl Request for AskWorking {
    const ENDPOINT: &'static str = "upload.working/1";
    const CLASS: Class = Class::Metadata;
    type Reply = WorkingOn;
}

impl Handler<AskWorking> for Working {
    fn handle(&self, _caller: Caller, request: Message<AskWorking>) -> BoxFuture<'static, Result<Message<WorkingOn>, RpcError>> {
        let mut versions = request.body.versions;
        versions.retain(|version| self.0.contains(version));
        async move { Ok(WorkingOn { versions }.into()) }.boxed()
    }
}

/// What is known of the nodes that may be writing something.
#[derive(Debug, Default)]
pub(crate) struct AtWork {
    working: BTreeSet<VersionId>,
    /// Nodes that did not answer.
    silent: BTreeSet<NodeId>,
}

/// Whether a node still writes a content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Activity {
    Working,
    Over,
    /// The node does not answer.
    Unknown,
}

impl AtWork {
    pub(crate) fn activity(&self, coordinator: NodeId, version: VersionId) -> Activity {
        if self.working.contains(&version) {
            Activity::Working
        } else if self.silent.contains(&coordinator) {
            Activity::Unknown
        } else {
            Activity::Over
        }
    }
}

impl Garage {
    /// Asks coordinators which of the contents they are said to write they do.
    pub(crate) async fn who_is_at_work(&self, of: impl IntoIterator<Item = (NodeId, VersionId)>) -> AtWork {
        let mut by_node: BTreeMap<NodeId, BTreeSet<VersionId>> = BTreeMap::new();
        for (node, version) in of {
            by_node.entry(node).or_default().insert(version);
        }
        let calls = by_node
            .into_iter()
            .map(|(node, versions)| async move { (node, self.0.cluster.call(node, AskWorking { versions }).await) });
        let mut at_work = AtWork::default();
        for (node, reply) in join_all(calls).await {
            match reply {
                Ok(WorkingOn { versions }) => at_work.working.extend(versions),
                Err(error) => {
                    tracing::debug!(%node, error = %chain(&error), "a node cannot be asked what it is writing");
                    at_work.silent.insert(node);
                }
            }
        }
        at_work
    }
}
