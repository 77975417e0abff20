//! What every operation has in common: a name, a reply, and the way to it over RPC.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_model::Garage;
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request, Router, RouterBuilder};
use garage_rpc::error::RpcError;
use garage_rpc::layout::LayoutManager;
use garage_rpc::mesh::Mesh;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{AdminError, ApiError};
use crate::{blocks, buckets, cluster, databases, keys, layout, layout_history, nodes, objects, set_aside, snapshots, workers};

/// Something an operator may ask.
pub trait Operation: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `admin.<name>/<version>`.
    const ENDPOINT: &'static str;
    /// How long it may take, where that is longer than usual.
    const PATIENCE: Option<Duration> = None;
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;

    fn run(self, service: &AdminService) -> impl Future<Output = Result<Self::Reply, AdminError>> + Send;
}

/// The operation's name alone, as the administration API has it.
pub fn name_of<O: Operation>() -> &'static str {
    let name = O::ENDPOINT.strip_prefix("admin.").unwrap_or(O::ENDPOINT);
    name.split_once('/').map_or(name, |(name, _version)| name)
}

/// Something done with every operation, for lists that must not miss one.
pub trait Visitor {
    fn visit<O: Operation>(&mut self);
}

/// The list of all operations.
pub fn visit_all(visitor: &mut impl Visitor) {
    visitor.visit::<cluster::GetClusterStatus>();
    visitor.visit::<cluster::GetClusterHealth>();
    visitor.visit::<cluster::ConnectClusterNodes>();
    visitor.visit::<layout::GetClusterLayout>();
    visitor.visit::<layout_history::GetClusterLayoutHistory>();
    visitor.visit::<layout_history::ClusterLayoutSkipDeadNodes>();
    visitor.visit::<layout_history::ResolveClusterLayout>();
    visitor.visit::<layout::UpdateClusterLayout>();
    visitor.visit::<layout::PreviewClusterLayoutChanges>();
    visitor.visit::<layout::ApplyClusterLayout>();
    visitor.visit::<layout::RevertClusterLayout>();
    visitor.visit::<keys::ListKeys>();
    visitor.visit::<keys::GetKeyInfo>();
    visitor.visit::<keys::CreateKey>();
    visitor.visit::<keys::ImportKey>();
    visitor.visit::<keys::UpdateKey>();
    visitor.visit::<keys::DeleteKey>();
    visitor.visit::<buckets::ListBuckets>();
    visitor.visit::<buckets::ListDamagedRows>();
    visitor.visit::<buckets::GetBucketInfo>();
    visitor.visit::<buckets::CreateBucket>();
    visitor.visit::<buckets::UpdateBucket>();
    visitor.visit::<buckets::DeleteBucket>();
    visitor.visit::<buckets::AllowBucketKey>();
    visitor.visit::<buckets::DenyBucketKey>();
    visitor.visit::<buckets::AddBucketAlias>();
    visitor.visit::<buckets::RemoveBucketAlias>();
    visitor.visit::<objects::InspectObject>();
    visitor.visit::<objects::CleanupIncompleteUploads>();
    visitor.visit::<nodes::GetNodeInfo>();
    visitor.visit::<nodes::GetNodeStatistics>();
    visitor.visit::<snapshots::CreateMetadataSnapshot>();
    visitor.visit::<workers::ListWorkers>();
    visitor.visit::<workers::GetWorkerInfo>();
    visitor.visit::<workers::GetWorkerVariable>();
    visitor.visit::<workers::SetWorkerVariable>();
    visitor.visit::<workers::LaunchRepairOperation>();
    visitor.visit::<blocks::ListBlockErrors>();
    visitor.visit::<blocks::GetBlockInfo>();
    visitor.visit::<blocks::RetryBlockResync>();
    visitor.visit::<blocks::PurgeBlocks>();
    visitor.visit::<databases::GetDatabaseState>();
    visitor.visit::<databases::AcceptDatabase>();
    visitor.visit::<set_aside::ListSetAsideRows>();
    visitor.visit::<set_aside::GetSetAsideRow>();
    visitor.visit::<set_aside::MergeSetAsideRows>();
    visitor.visit::<set_aside::DiscardSetAsideRows>();
}

/// Runs operations on one node.
#[derive(Clone)]
pub struct AdminService {
    pub garage: Garage,
    pub node: nodes::Facts,
    pub snapshots: snapshots::SharedSnapshots,
    pub host_names: nodes::HostNames,
}

impl AdminService {
    pub(crate) fn layout(&self) -> &LayoutManager {
        self.garage.cluster().layout_manager()
    }

    pub(crate) fn mesh(&self) -> &Mesh {
        self.garage.cluster().mesh()
    }
}

/// An operation on its way to a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Call<O>(pub O);

/// Refusals travel as replies, so that their codes arrive whole; an [`RpcError`] means that the operation was not reached.
impl<O: Operation> Request for Call<O> {
    const ENDPOINT: &'static str = O::ENDPOINT;
    const CLASS: Class = Class::Metadata;
    type Reply = Result<O::Reply, ApiError>;
}

impl<O: Operation> Handler<Call<O>> for AdminService {
    fn handle(
        &self,
        _caller: Caller,
        request: Message<Call<O>>,
    ) -> BoxFuture<'static, Result<Message<Result<O::Reply, ApiError>>, RpcError>> {
        let service = self.clone();
        let run = async move {
            let Call(operation) = request.body;
            let reply = operation.run(&service).await.map_err(|error| {
                let error = ApiError::from(error);
                if error.status >= 500 {
                    tracing::warn!(operation = name_of::<O>(), error = %error, "administration operation failed");
                }
                error
            });
            Ok(Message::from(reply))
        };
        run.boxed()
    }
}

struct Registration {
    builder: RouterBuilder,
    service: Arc<AdminService>,
}

impl Visitor for Registration {
    fn visit<O: Operation>(&mut self) {
        let builder = std::mem::replace(&mut self.builder, Router::builder());
        self.builder = builder.add::<Call<O>>(self.service.clone());
    }
}

/// Serves all operations over RPC.
pub fn register(builder: RouterBuilder, service: AdminService) -> RouterBuilder {
    let mut registration = Registration { builder, service: Arc::new(service) };
    visit_all(&mut registration);
    nodes::visit_internal(&mut registration);
    snapshots::visit_internal(&mut registration);
    workers::visit_internal(&mut registration);
    blocks::visit_internal(&mut registration);
    databases::visit_internal(&mut registration);
    set_aside::visit_internal(&mut registration);
    registration.builder
}
