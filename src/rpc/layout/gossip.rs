//! Bringing every node's layout to every other: told at once when it changes, compared now and then in case a message was lost.
//!
//! What must stay true: histories only ever merge, so the order and number of messages do not matter.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_types::{NodeId, Random};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::history::LayoutHistory;
use super::manager::LayoutManager;
use super::version::LayoutDigest;
use crate::endpoint::{Caller, Class, Handler, Message, Request};
use crate::error::{ErrorCode, RpcError};
use crate::mesh::Mesh;
use crate::peers::PeerState;
use garage_types::codec;

/// How long an exchange may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two comparisons with every peer, up to twice this.
const PERIOD_MS: u64 = 15_000;

/// "This is the digest of what I know; tell me if you know something else."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompareLayouts {
    #[serde(rename = "d")]
    digest: LayoutDigest,
}

/// The history of a node that differs, encoded with its format tag.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayoutDiffers {
    #[serde(rename = "h")]
    history: Option<ByteBuf>,
}

impl Request for CompareLayouts {
    const ENDPOINT: &'static str = "layout.compare/1";
    const CLASS: Class = Class::Metadata;
    type Reply = LayoutDiffers;
}

/// "Take in what I know."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MergeLayout {
    #[serde(rename = "h")]
    history: ByteBuf,
}

impl MergeLayout {
    /// `history`: encoded with its format tag.
    pub fn new(history: Vec<u8>) -> Self {
        MergeLayout { history: ByteBuf::from(history) }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayoutMerged {}

impl Request for MergeLayout {
    const ENDPOINT: &'static str = "layout.merge/1";
    const CLASS: Class = Class::Metadata;
    type Reply = LayoutMerged;
}

/// Answers other nodes.
pub struct LayoutGossip(pub Arc<LayoutManager>);

impl Handler<CompareLayouts> for LayoutGossip {
    fn handle(
        &self,
        _caller: Caller,
        request: Message<CompareLayouts>,
    ) -> BoxFuture<'_, Result<Message<LayoutDiffers>, RpcError>> {
        let history = self.0.current().history().clone();
        let differs = history.state_digest() != request.body.digest;
        let history = differs.then(|| ByteBuf::from(codec::encode(&*history)));
        async move { Ok(LayoutDiffers { history }.into()) }.boxed()
    }
}

impl Handler<MergeLayout> for LayoutGossip {
    fn handle(&self, _caller: Caller, request: Message<MergeLayout>) -> BoxFuture<'_, Result<Message<LayoutMerged>, RpcError>> {
        async move {
            merge(&self.0, &request.body.history).await?;
            Ok(LayoutMerged {}.into())
        }
        .boxed()
    }
}

async fn merge(manager: &LayoutManager, encoded: &[u8]) -> Result<(), RpcError> {
    let history: LayoutHistory =
        codec::decode(encoded).map_err(|error| RpcError::new(ErrorCode::BadRequest, format!("a layout: {error}")))?;
    let merged = manager.merge_remote(history).await;
    merged.map(drop).map_err(|error| RpcError::new(ErrorCode::Internal, format!("a layout could not be taken in: {error}")))
}

/// Keeps this node's layout equal to its peers'. Never returns.
pub async fn keep_equal(mesh: Mesh, manager: Arc<LayoutManager>, random: Arc<dyn Random>) {
    let mut changes = manager.watch();
    let mut links = mesh.watch();
    loop {
        let compare_at = Duration::from_millis(PERIOD_MS + random.below(PERIOD_MS));
        tokio::select! {
            biased;
            () = changes.changed() => tell(&mesh, &manager).await,
            () = links.changed() => compare(&mesh, &manager).await,
            () = tokio::time::sleep(compare_at) => compare(&mesh, &manager).await,
        }
    }
}

fn peers_up(mesh: &Mesh) -> Vec<NodeId> {
    let up = mesh.peers().into_iter().filter(|peer| !peer.is_self && matches!(peer.state, PeerState::Up { .. }));
    up.map(|peer| peer.id).collect()
}

async fn tell(mesh: &Mesh, manager: &LayoutManager) {
    let history = codec::encode(&**manager.current().history());
    let calls = peers_up(mesh).into_iter().map(|peer| {
        let message = Message::new(MergeLayout::new(history.clone()));
        async move { (peer, mesh.call(peer, message, TIMEOUT).await) }
    });
    for (peer, result) in futures_util::future::join_all(calls).await {
        if let Err(error) = result {
            tracing::warn!(%peer, %error, "a peer could not be told of the layout; it will be compared later");
        }
    }
}

async fn compare(mesh: &Mesh, manager: &LayoutManager) {
    for peer in peers_up(mesh) {
        let digest = manager.current().history().state_digest();
        let reply = mesh.call(peer, Message::new(CompareLayouts { digest }), TIMEOUT).await;
        let outcome = match reply {
            Ok(Message { body: LayoutDiffers { history: Some(history) }, .. }) => merge(manager, &history).await,
            Ok(_same) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::warn!(%peer, %error, "the layout could not be compared with a peer's");
        }
    }
}
