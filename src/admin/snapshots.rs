//! Copies of the metadata on the nodes' own disks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::error::{AdminError, ApiError};
use crate::nodes::{Multi, ask_each};
use crate::operations::{AdminService, Operation, Visitor};

/// Takes a snapshot of this node's metadata; the wiring implements it.
pub trait TakeSnapshot: Send + Sync + 'static {
    /// Says in words why there is none.
    fn take(&self) -> BoxFuture<'static, Result<(), String>>;
}

/// What [`TakeSnapshot`] is kept as.
pub type SharedSnapshots = Arc<dyn TakeSnapshot>;

/// Hundreds of gigabytes take a while to be copied.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateMetadataSnapshot {
    pub node: String,
}

impl Operation for CreateMetadataSnapshot {
    const ENDPOINT: &'static str = "admin.CreateMetadataSnapshot/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = Multi<()>;

    async fn run(self, service: &AdminService) -> Result<Multi<()>, AdminError> {
        ask_each(service, &self.node, OwnSnapshot).await
    }
}

/// What nodes ask each other; operators ask [`CreateMetadataSnapshot`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct OwnSnapshot;

impl Operation for OwnSnapshot {
    const ENDPOINT: &'static str = "admin.node.OwnSnapshot/1";
    const PATIENCE: Option<Duration> = Some(PATIENCE);
    type Reply = ();

    async fn run(self, service: &AdminService) -> Result<(), AdminError> {
        let taken = service.snapshots.take().await;
        let refuse = |message| ApiError { code: "SnapshotFailed".to_owned(), status: 500, message };
        taken.map_err(|message| AdminError::Elsewhere(refuse(message)))
    }
}

/// What nodes ask each other, to be served beside the operations.
pub(crate) fn visit_internal(visitor: &mut impl Visitor) {
    visitor.visit::<OwnSnapshot>();
}
