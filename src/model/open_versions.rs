//! Which contents unfinished writes are storing, cluster-wide: what block references may belong to before anything lists them.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::RpcError;
use garage_table::TableError;
use garage_types::VersionId;
use serde::{Deserialize, Serialize};

use crate::blocks::BlockService;
use crate::buckets::all_rows;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::part::{PartEntry, PartTable};
use crate::upload::{UploadState, UploadTable};

/// "Which contents do the unfinished uploads of your tables have?"
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskOpenVersions {}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenVersions {
    #[serde(rename = "v")]
    pub versions: BTreeSet<VersionId>,
}

impl Request for AskOpenVersions {
    const ENDPOINT: &'static str = "upload.versions/1";
    const CLASS: Class = Class::Metadata;
    type Reply = OpenVersions;
}

impl BlockService {
    async fn open_versions(&self) -> Result<OpenVersions, TableError> {
        let mut versions = BTreeSet::new();
        for upload in all_rows::<UploadTable>(&self.tables).await? {
            match upload.state {
                UploadState::Simple(simple) => {
                    versions.insert(simple.version);
                }
                UploadState::Closed { version } => {
                    versions.insert(version);
                }
                UploadState::Multipart(multipart) => versions.extend(multipart.claims.into_keys()),
                UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => {}
            }
        }
        for part in all_rows::<PartTable>(&self.tables).await? {
            if let PartEntry::Attempt(attempt) = part.entry
                && !attempt.state.is_gone()
            {
                versions.insert(attempt.version);
            }
        }
        Ok(OpenVersions { versions })
    }
}

impl Handler<AskOpenVersions> for BlockService {
    fn handle(
        &self,
        _caller: Caller,
        _request: Message<AskOpenVersions>,
    ) -> BoxFuture<'static, Result<Message<OpenVersions>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.open_versions().await?.into()) }.boxed()
    }
}

impl Garage {
    /// The contents of all unfinished uploads. Every node of the layout has to answer.
    ///
    /// # Errors
    /// [`ModelError::Table`]: one did not.
    pub(crate) async fn open_versions(&self) -> Result<BTreeSet<VersionId>, ModelError> {
        let nodes = self.0.cluster.layout().all_nodes().to_vec();
        let calls = nodes.into_iter().map(|node| self.0.cluster.call(node, AskOpenVersions {}));
        let replies = try_join_all(calls).await.map_err(|error| ModelError::NodeSilent(Box::new(error)))?;
        Ok(replies.into_iter().flat_map(|reply| reply.versions).collect())
    }
}
