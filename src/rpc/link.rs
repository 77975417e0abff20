//! The calling side of one connection: a stream per call, taken from a pool of idle ones.
//!
//! A reused stream has its receive window open already. A call that fails or is dropped half-way drops its stream, which the other
//! side notices; only streams between two messages return to the pool. Errors the other side answered are ordinary replies.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use garage_net::mux::streams_max;
use garage_net::{Class, Connection, MuxStream};
use garage_types::NodeId;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::endpoint::{Message, Request};
use crate::error::{ErrorCode, RpcError};
use crate::wire::{self, Encoded, MessageError, Received, ReplyEnvelope, RequestEnvelope};

/// Calls under way on one connection in our direction, below what the connection allows for streams that are just being dropped.
const fn calls_max(class: Class) -> usize {
    streams_max(class) * 4 / 5
}
/// Idle streams kept.
const IDLE_MAX: usize = 16;

/// One connection to a peer, and who made it.
pub(crate) struct Link {
    connection: Connection,
    /// The node that made the connection.
    pub caller: NodeId,
    /// The other end of the connection, as the transport names it.
    pub remote: String,
    pub since: Instant,
    idle: Mutex<Vec<MuxStream>>,
    calls: Semaphore,
    /// Counts the calls of all links.
    calls_made: Arc<AtomicU64>,
    /// Another connection took its place.
    pub superseded: Notify,
    /// The peer is taken for lost: what is under way fails now rather than when its time is up.
    given_up: CancellationToken,
}

impl Link {
    pub(crate) fn new(connection: Connection, caller: NodeId, remote: String, calls_made: Arc<AtomicU64>) -> Self {
        Link {
            remote,
            calls_made,
            calls: Semaphore::new(calls_max(connection.purpose.class)),
            connection,
            caller,
            since: Instant::now(),
            idle: Mutex::new(Vec::new()),
            superseded: Notify::new(),
            given_up: CancellationToken::new(),
        }
    }

    pub(crate) fn peer(&self) -> NodeId {
        self.connection.peer
    }

    pub(crate) fn class(&self) -> Class {
        self.connection.purpose.class
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Whether an answer is waited for.
    pub(crate) fn is_calling(&self) -> bool {
        self.calls.available_permits() < calls_max(self.class())
    }

    /// Ends all calls under way, and those to come.
    pub(crate) fn give_up(&self) {
        self.given_up.cancel();
    }

    pub(crate) async fn close(&self) {
        self.connection.close().await;
    }

    pub(crate) async fn call<R: Request>(&self, request: &Message<R>, timeout: Duration) -> Result<Message<R::Reply>, RpcError> {
        let envelope = RequestEnvelope { endpoint: R::ENDPOINT.to_owned(), packed_from: R::REPLY_PACKED_FROM };
        let encoded = wire::encode(&envelope, &request.body, request.data.clone())
            .map_err(|error| RpcError::new(ErrorCode::BadRequest, format!("the request to {}: {error}", R::ENDPOINT)))?;
        let work = async {
            tokio::select! {
                biased;
                answer = self.exchange(R::ENDPOINT, &encoded) => answer,
                () = self.given_up.cancelled() => {
                    Err(RpcError::new(ErrorCode::Unavailable, format!("node {:?} does not answer any more", self.peer())))
                }
            }
        };
        let received = tokio::time::timeout(timeout, work).await.map_err(|_elapsed| {
            RpcError::new(ErrorCode::Timeout, format!("no answer of {:?} to {} within {timeout:?}", self.peer(), R::ENDPOINT))
        })??;
        let body = rmp_serde::from_slice(received.body())
            .map_err(|error| RpcError::new(ErrorCode::Internal, format!("malformed reply of {}: {error}", R::ENDPOINT)))?;
        Ok(Message { body, data: received.data })
    }

    /// Sends a message and waits for its answer.
    async fn exchange(&self, endpoint: &str, request: &Encoded) -> Result<Received, RpcError> {
        let _permit = self.calls.acquire().await.expect("the semaphore is never closed");
        self.calls_made.fetch_add(1, Ordering::Relaxed);
        let idle = self.idle.lock().expect("nothing panics while holding the streams").pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => self.connection.open().await.map_err(|error| self.unavailable(endpoint, &error))?,
        };
        let received = match send_and_receive(&mut stream, request).await {
            Ok(received) => received,
            Err(error) => {
                if let MessageError::TooLong { .. } = error {
                    tracing::warn!(peer = ?self.peer(), endpoint, %error, "closing the connection");
                    self.close().await;
                }
                return Err(self.unavailable(endpoint, &error));
            }
        };
        self.keep(stream);
        let malformed = |error| RpcError::new(ErrorCode::Internal, format!("the reply of {endpoint}: {error}"));
        let envelope: ReplyEnvelope = received.envelope().map_err(malformed)?;
        match envelope.error {
            Some(error) => Err(error.into()),
            None => received.unpack(envelope.unpacked).map_err(malformed),
        }
    }

    fn keep(&self, stream: MuxStream) {
        let mut idle = self.idle.lock().expect("nothing panics while holding the streams");
        if idle.len() < IDLE_MAX {
            idle.push(stream);
        }
    }

    fn unavailable(&self, endpoint: &str, error: &dyn std::error::Error) -> RpcError {
        let cause = error.source().map_or_else(String::new, |source| format!(": {source}"));
        RpcError::new(ErrorCode::Unavailable, format!("call of {endpoint} to {:?}: {error}{cause}", self.peer()))
    }
}

async fn send_and_receive(stream: &mut MuxStream, request: &Encoded) -> Result<Received, MessageError> {
    request.send(stream).await?;
    let lengths = wire::receive_lengths(stream).await?;
    wire::receive_content(stream, lengths).await
}

/// What two connections of one class to one peer mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duplicate {
    KeepOld,
    KeepNew,
}

/// Two nodes that called each other at the same moment must keep the same one of the two connections: the one whose caller has
/// the lower id. Otherwise the newer is right: somebody made it because the old one was broken for him.
pub(crate) fn resolve_duplicate(old: &Link, new: &Link) -> Duplicate {
    let same_moment = new.since.saturating_duration_since(old.since) < SAME_MOMENT;
    if !old.is_closed() && same_moment && old.caller < new.caller { Duplicate::KeepOld } else { Duplicate::KeepNew }
}

/// Two connections made within this time count as made at the same moment.
const SAME_MOMENT: Duration = Duration::from_secs(10);
