//! Calls to several nodes that return as soon as enough of them have answered.
//!
//! A write that is cancelled before its quorum cancels its calls; once the quorum is reached, the others go on in the background.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use garage_types::NodeId;
use tokio::time::{Instant, timeout_at};

use super::progress::{Progress, ReadProgress, ReadStep, WriteProgress, WriteQuorum};

pub use super::progress::NodeError;

/// What one node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReply<T> {
    pub node: NodeId,
    pub reply: T,
}

/// Too few nodes answered. The first node's error is the source; all are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumError<E> {
    pub needed: usize,
    /// Nodes that answered, in the worst set of a write.
    pub reached: usize,
    /// Nodes that could have answered, in the same set.
    pub of: usize,
    pub errors: Vec<NodeError<E>>,
}

impl<E: std::fmt::Display> std::fmt::Display for QuorumError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} nodes answered, {} are needed", self.reached, self.of, self.needed)?;
        // The first is the source.
        for failed in self.errors.iter().skip(1) {
            write!(f, "; node {}: {}", failed.node.short(), failed.error)?;
        }
        Ok(())
    }
}

impl<E: Error + 'static> Error for QuorumError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.errors.first().map(|failed| &failed.error as &(dyn Error + 'static))
    }
}

/// Calls every node of every set once and returns the replies up to the moment at which each set has its quorum.
///
/// `spawn_rest` receives the calls that are unfinished then, as one future to be run in the background; it is called at most once.
///
/// # Errors
/// [`QuorumError`] as soon as some set cannot reach its quorum; unfinished calls are cancelled.
pub async fn write_to_sets<T, E, F>(
    sets: &[Vec<NodeId>],
    quorum: impl Into<WriteQuorum>,
    spawn_rest: impl FnOnce(BoxFuture<'static, ()>),
    call: impl Fn(NodeId) -> F,
) -> Result<Vec<NodeReply<T>>, QuorumError<E>>
where
    T: Send + 'static,
    E: Error + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    let quorum = quorum.into();
    if let [set] = sets
        && let [node] = set[..]
        && quorum.of(1) == 1
    {
        return ask_only(node, call(node)).await;
    }
    let mut progress = WriteProgress::new(sets, quorum);
    let mut replies = Vec::new();
    let mut calls: FuturesUnordered<_> = match progress.progress() {
        Progress::Pending => distinct(sets).into_iter().map(|node| tagged(node, call(node))).collect(),
        Progress::Reached | Progress::Impossible => FuturesUnordered::new(),
    };
    let mut state = progress.progress();
    while state == Progress::Pending {
        let Some(answer) = calls.next().await else { break };
        state = match answer.result {
            Ok(reply) => {
                replies.push(NodeReply { node: answer.node, reply });
                progress.on_ok(answer.node)
            }
            Err(error) => progress.on_error(answer.node, error),
        };
    }
    if state != Progress::Reached {
        let worst = progress.worst_set();
        return Err(QuorumError { needed: worst.needed, reached: worst.written, of: worst.size, errors: progress.into_errors() });
    }
    if !calls.is_empty() {
        spawn_rest(Box::pin(finish(calls)));
    }
    Ok(replies)
}

/// Asks nodes for the same thing, as few as possible, and returns the first `quorum` replies.
///
/// `nodes`: nearest first. The next one is asked when a node fails, and when no answer came within `hedge_after`. Unfinished calls
/// are cancelled.
///
/// # Errors
/// [`QuorumError`] as soon as too few nodes are left.
pub async fn read_from<T, E, F>(
    nodes: &[NodeId],
    quorum: usize,
    hedge_after: Duration,
    call: impl Fn(NodeId) -> F,
) -> Result<Vec<NodeReply<T>>, QuorumError<E>>
where
    E: Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    if let ([node], 1) = (nodes, quorum) {
        return ask_only(*node, call(*node)).await;
    }
    let mut progress = ReadProgress::new(nodes.len(), quorum);
    let mut calls = FuturesUnordered::new();
    let mut left = nodes.iter();
    let mut replies = Vec::with_capacity(quorum);
    let mut errors = Vec::new();
    let mut late_at = Instant::now() + hedge_after;
    let mut step = progress.step();
    loop {
        match step {
            ReadStep::AskNext => {
                calls.extend(left.next().map(|node| tagged(*node, call(*node))));
                late_at = Instant::now() + hedge_after;
            }
            ReadStep::Reached => return Ok(replies),
            ReadStep::Impossible => {
                return Err(QuorumError { needed: quorum, reached: replies.len(), of: nodes.len(), errors });
            }
            ReadStep::Wait => {
                let next =
                    if progress.has_more() { timeout_at(late_at, calls.next()).await.ok() } else { Some(calls.next().await) };
                match next {
                    Some(Some(Answer { node, result: Ok(reply) })) => {
                        replies.push(NodeReply { node, reply });
                        progress.on_ok();
                    }
                    Some(Some(Answer { node, result: Err(error) })) => {
                        errors.push(NodeError { node, error });
                        progress.on_error();
                    }
                    // Waiting with nothing to wait for cannot happen; a late call makes the next node's turn.
                    Some(None) | None => {
                        step = progress.on_late();
                        continue;
                    }
                }
            }
        }
        step = progress.step();
    }
}

/// One call's end, with the node it went to.
struct Answer<T, E> {
    node: NodeId,
    result: Result<T, E>,
}

// Functions that are not `async` themselves: one of those would keep room for the call twice, and a write is many calls deep.

fn tagged<T, E>(node: NodeId, call: impl Future<Output = Result<T, E>>) -> impl Future<Output = Answer<T, E>> {
    call.map(move |result| Answer { node, result })
}

/// The usual case on a single machine: nothing to count, nothing to allocate but the reply's list.
fn ask_only<T, E>(
    node: NodeId,
    call: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<Vec<NodeReply<T>>, QuorumError<E>>> {
    call.map(move |result| match result {
        Ok(reply) => Ok(vec![NodeReply { node, reply }]),
        Err(error) => Err(QuorumError { needed: 1, reached: 0, of: 1, errors: vec![NodeError { node, error }] }),
    })
}

/// Each node of the sets once, in order of appearance.
fn distinct(sets: &[Vec<NodeId>]) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = Vec::new();
    for node in sets.iter().flatten() {
        if !nodes.contains(node) {
            nodes.push(*node);
        }
    }
    nodes
}

async fn finish<T, E: Error>(mut calls: FuturesUnordered<impl Future<Output = Answer<T, E>>>) {
    while let Some(answer) = calls.next().await {
        if let Err(error) = answer.result {
            // The quorum has what it needs; anti-entropy brings the row or block to this node.
            tracing::debug!(node = %answer.node.short(), %error, "a write went on after its quorum, and failed");
        }
    }
}

#[cfg(test)]
mod tests;
