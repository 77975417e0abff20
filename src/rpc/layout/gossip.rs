//! Bringing every node's layout to every other: told at once when it changes, compared with who comes up, and now and then with a few,
//! in case a message was lost: whoever lacks something soon asks somebody who has it.
//!
//! What must stay true: histories only ever merge, so the order and number of messages do not matter.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use garage_types::{NodeId, Random};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tokio::time::Instant;

use super::history::LayoutHistory;
use super::manager::LayoutManager;
use super::version::LayoutDigest;
use crate::endpoint::{Caller, Class, Handler, Message, Request};
use crate::error::{ErrorCode, RpcError};
use crate::mesh::Mesh;
use garage_types::codec;

/// How long an exchange may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two comparisons with some peers, up to twice this.
const PERIOD_MS: u64 = 15_000;
/// How many peers those are.
const COMPARED_AT_ONCE: usize = 3;

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

/// What a peer is to be asked or told next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct News {
    /// What this node knows.
    tell: bool,
    /// Whether it knows something else.
    compare: bool,
}

impl News {
    const CHANGED: News = News { tell: true, compare: false };
    const DOUBTFUL: News = News { tell: false, compare: true };
    const BOTH: News = News { tell: true, compare: true };

    fn and(self, other: News) -> News {
        News { tell: self.tell || other.tell, compare: self.compare || other.compare }
    }
}

/// Exchanges with peers: one at a time with each, so that one that hangs delays none of the others.
#[derive(Debug, Default)]
struct Exchanges {
    /// Those under way, with what is to follow each.
    under_way: BTreeMap<NodeId, Option<News>>,
}

impl Exchanges {
    /// Returns what is to be begun now: nothing while an exchange with the peer is under way.
    fn want(&mut self, peer: NodeId, news: News) -> Option<News> {
        match self.under_way.entry(peer) {
            Entry::Vacant(entry) => {
                entry.insert(None);
                Some(news)
            }
            Entry::Occupied(mut entry) => {
                let next = entry.get_mut();
                *next = Some(next.unwrap_or_default().and(news));
                None
            }
        }
    }

    /// An exchange ended. Returns what is to follow it now.
    fn ended(&mut self, peer: NodeId) -> Option<News> {
        match self.under_way.remove(&peer).flatten() {
            Some(news) => self.want(peer, news),
            None => None,
        }
    }
}

/// Keeps this node's layout equal to its peers'. Never returns.
pub async fn keep_equal(mesh: Mesh, manager: Arc<LayoutManager>, random: Arc<dyn Random>) {
    let mut changes = manager.watch();
    let mut links = mesh.watch();
    let mut exchanges = Exchanges::default();
    let mut under_way = FuturesUnordered::new();
    let mut met = BTreeMap::new();
    // Peers with whom the last exchange failed.
    let mut missed = BTreeSet::new();
    let mut compare_at = next_comparison(&*random);
    loop {
        let wanted: Vec<(NodeId, News)> = tokio::select! {
            biased;
            () = changes.changed() => all_up(&mesh).into_iter().map(|peer| (peer, News::CHANGED)).collect(),
            () = links.changed() => {
                let before = std::mem::replace(&mut met, mesh.arrivals());
                newly_met(&before, &met).into_iter().map(|peer| (peer, News::DOUBTFUL)).collect()
            }
            Some((peer, outcome)) = under_way.next() => {
                match outcome {
                    Outcome::Exchanged => missed.remove(&peer),
                    Outcome::Failed => missed.insert(peer),
                };
                if let Some(news) = exchanges.ended(peer) {
                    under_way.push(exchange(&mesh, &manager, peer, news));
                }
                continue;
            }
            () = tokio::time::sleep_until(compare_at) => {
                compare_at = next_comparison(&*random);
                let up = all_up(&mesh);
                let again: Vec<NodeId> = std::mem::take(&mut missed).into_iter().filter(|peer| up.contains(peer)).collect();
                let some = some_of(up, COMPARED_AT_ONCE, &*random).into_iter().map(|peer| (peer, News::DOUBTFUL));
                again.into_iter().map(|peer| (peer, News::BOTH)).chain(some).collect()
            }
        };
        for (peer, news) in wanted {
            if let Some(news) = exchanges.want(peer, news) {
                under_way.push(exchange(&mesh, &manager, peer, news));
            }
        }
    }
}

/// The peers that are connected, and were not or by another connection.
pub fn newly_met(before: &BTreeMap<NodeId, u64>, now: &BTreeMap<NodeId, u64>) -> Vec<NodeId> {
    now.iter().filter(|(peer, arrival)| before.get(*peer) != Some(*arrival)).map(|(peer, _arrival)| *peer).collect()
}

/// Some nodes, drawn without putting back.
pub fn some_of(mut nodes: Vec<NodeId>, count: usize, random: &dyn Random) -> Vec<NodeId> {
    let mut drawn = Vec::new();
    while drawn.len() < count && !nodes.is_empty() {
        drawn.push(nodes.swap_remove(random.below(nodes.len() as u64) as usize));
    }
    drawn
}

fn next_comparison(random: &dyn Random) -> Instant {
    Instant::now() + Duration::from_millis(PERIOD_MS + random.below(PERIOD_MS))
}

fn all_up(mesh: &Mesh) -> Vec<NodeId> {
    mesh.arrivals().into_keys().collect()
}

/// What came of an exchange.
enum Outcome {
    Exchanged,
    Failed,
}

/// Returns the peer once it has been told and asked, or could not be.
async fn exchange(mesh: &Mesh, manager: &LayoutManager, peer: NodeId, news: News) -> (NodeId, Outcome) {
    let mut outcome = Outcome::Exchanged;
    if news.tell
        && let Err(error) = tell(mesh, manager, peer).await
    {
        tracing::warn!(%peer, %error, "a peer could not be told of the layout; it will be, later");
        outcome = Outcome::Failed;
    }
    if news.compare
        && let Err(error) = compare(mesh, manager, peer).await
    {
        tracing::warn!(%peer, %error, "the layout could not be compared with a peer's");
        outcome = Outcome::Failed;
    }
    (peer, outcome)
}

async fn tell(mesh: &Mesh, manager: &LayoutManager, peer: NodeId) -> Result<(), RpcError> {
    let history = codec::encode(&**manager.current().history());
    mesh.call(peer, Message::new(MergeLayout::new(history)), TIMEOUT).await.map(drop)
}

async fn compare(mesh: &Mesh, manager: &LayoutManager, peer: NodeId) -> Result<(), RpcError> {
    let digest = manager.current().history().state_digest();
    match mesh.call(peer, Message::new(CompareLayouts { digest }), TIMEOUT).await?.body {
        LayoutDiffers { history: Some(history) } => merge(manager, &history).await,
        LayoutDiffers { history: None } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_hangs_hears_all_that_came_meanwhile_once_and_others_at_once() {
        let (hangs, other) = (NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let mut exchanges = Exchanges::default();
        assert_eq!(exchanges.want(hangs, News::CHANGED), Some(News::CHANGED));
        assert_eq!(exchanges.want(hangs, News::CHANGED), None);
        assert_eq!(exchanges.want(other, News::CHANGED), Some(News::CHANGED));
        assert_eq!(exchanges.ended(other), None);
        assert_eq!(exchanges.want(hangs, News::DOUBTFUL), None);
        assert_eq!(exchanges.ended(hangs), Some(News { tell: true, compare: true }));
        assert_eq!(exchanges.want(hangs, News::DOUBTFUL), None, "that is under way");
        assert_eq!(exchanges.ended(hangs), Some(News::DOUBTFUL));
        assert_eq!(exchanges.ended(hangs), None);
        assert_eq!(exchanges.want(hangs, News::CHANGED), Some(News::CHANGED));
    }
}
