//! The HTTP/1.1 server every frontend runs on, over TCP or a Unix socket.
//!
//! Invariants: connections, headers and waiting times are bounded ([`ServerLimits`]); every reply has `x-amz-request-id`, but for those
//! that hyper gives by itself to what is no request (400, 414, 431), where it has no place for ours; a panic in a handler is a 500 and
//! costs one request; a body that breaks off aborts its connection, so that the client sees a truncated reply; a reply given before the
//! request's body was read says that the connection ends, and reaches a client that is still sending ([`linger`]). Bodies of requests are
//! bounded by who reads them ([`crate::body::BodyLimits`]).

mod connection;
mod linger;
mod listener;
mod overdue;
mod patient;
mod places;
mod request_body;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use garage_types::{Random, StallBudget};
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::reply::ReplyBody;
use places::{NoPlace, Place, Places};

pub use listener::{BindAddress, BindError, Listener, Peer, bind};
pub use request_body::RequestBody;

/// What answers requests: one frontend.
pub trait Service: Send + Sync + 'static {
    /// The request carries its [`crate::RequestId`] as an extension.
    fn call(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> BoxFuture<'static, Response<ReplyBody>>;
}

/// Bounds on what clients may cost.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// From the readiness to read a request until its head is complete: bounds slow heads and idle connections alike.
    pub head_timeout: Duration,
    /// The same for the first request of a connection.
    pub first_head_timeout: Duration,
    /// How long a client may accept no byte of a reply.
    pub write_idle: Duration,
    /// Request line and headers.
    pub head_bytes_max: usize,
    pub header_count_max: usize,
    /// Beyond these, a new connection takes the place of one that is silent. If each is being answered, clients wait to be accepted.
    pub connections_max: usize,
    /// Of these, those of one address (or one IPv6 network): a proxy may be all there is, so only some places are kept for others.
    pub connections_of_one_address_max: usize,
    /// Bytes a connection buffers in each direction; grows with the traffic.
    pub buffer_bytes_max: usize,
    /// Replies that are whole in memory and that clients have not taken, in all; twice as much while they take them. For more, the client
    /// that has taken nothing for the longest time is cut off.
    pub document_bytes_max: usize,
    /// How long requests in flight may still take once the server is told to stop.
    pub drain: Duration,
}

const CONNECTIONS_MAX: usize = 4096;
/// The part of all places that no single address has.
const KEPT_FROM_ONE_ADDRESS: usize = 8;

impl ServerLimits {
    /// As many connections as half of these file descriptors allow; the other half is for peers, blocks and the database.
    #[must_use]
    pub fn for_descriptors(self, descriptors: u64) -> Self {
        let half = usize::try_from(descriptors / 2).unwrap_or(usize::MAX).max(1);
        let connections_max = self.connections_max.min(half);
        let connections_of_one_address_max = (connections_max - connections_max / KEPT_FROM_ONE_ADDRESS).max(1);
        ServerLimits { connections_max, connections_of_one_address_max, ..self }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            head_timeout: Duration::from_secs(60),
            first_head_timeout: Duration::from_secs(15),
            write_idle: Duration::from_secs(60),
            head_bytes_max: 32 * 1024,
            header_count_max: 128,
            connections_max: CONNECTIONS_MAX,
            connections_of_one_address_max: CONNECTIONS_MAX - CONNECTIONS_MAX / KEPT_FROM_ONE_ADDRESS,
            buffer_bytes_max: 128 * 1024,
            document_bytes_max: 64 << 20,
            drain: Duration::from_secs(30),
        }
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections cut because they outlasted [`ServerLimits::drain`].
    pub cut: usize,
}

/// Everything a connection needs, shared by all.
struct Shared<S: ?Sized> {
    service: Arc<S>,
    limits: ServerLimits,
    random: Arc<dyn Random>,
    lingering: linger::Places,
    documents: StallBudget,
}

impl<S: ?Sized> Shared<S> {
    fn new(service: Arc<S>, limits: ServerLimits, random: Arc<dyn Random>) -> Self {
        Shared {
            service,
            limits,
            random,
            lingering: linger::Places::default(),
            documents: StallBudget::new(limits.document_bytes_max),
        }
    }
}

/// Serves until `stop` is ready; then accepts no more, lets requests in flight finish, and closes.
///
/// `random`: makes the request ids.
pub async fn serve<S: Service + ?Sized>(
    listener: Listener,
    service: Arc<S>,
    limits: ServerLimits,
    random: Arc<dyn Random>,
    stop: impl Future<Output = ()>,
) -> Drained {
    let shared = Arc::new(Shared::new(service, limits, random));
    let places = Places::new(limits.connections_max, limits.connections_of_one_address_max);
    let (closing, on_close) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => accepted,
        };
        connections.spawn(connection::run(accepted.stream, accepted.peer, shared.clone(), on_close.clone(), accepted.place));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    drop(closing);
    drain(connections, limits.drain).await
}

/// Serves one connection to its end, whatever it is made of; for the simulator, whose connections are pipes.
pub async fn serve_connection<S: Service + ?Sized>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    service: Arc<S>,
    limits: ServerLimits,
    random: Arc<dyn Random>,
) {
    // Held to the end: nobody stops this server.
    let (_closing, on_close) = watch::channel(());
    let Ok(place) = Places::new(1, 1).take(peer) else { return };
    let shared = Arc::new(Shared::new(service, limits, random));
    connection::run(stream, peer, shared, on_close, place).await;
}

struct Accepted {
    stream: listener::Stream,
    peer: Peer,
    place: Place,
}

/// While everybody is being answered, one new client is kept waiting, and the others stay in the kernel's queue.
async fn accept(listener: &Listener, places: &Places) -> Accepted {
    loop {
        places.free().await;
        match listener.accept().await {
            Ok((stream, peer)) => match place_for(peer, places).await {
                Some(place) => return Accepted { stream, peer, place },
                None => tracing::debug!(%peer, "refused a connection: all places of its address are in use"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely: asking again at once would spin until one is closed.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Waits until a client has a place; `None` when its address has too many already.
async fn place_for(peer: Peer, places: &Places) -> Option<Place> {
    loop {
        match places.take(peer) {
            Ok(place) => return Some(place),
            Err(NoPlace::OfThisAddress) => return None,
            // It was silent when we began to listen.
            Err(NoPlace::OfAnybody) => places.free().await,
        }
    }
}

async fn drain(mut connections: JoinSet<()>, patience: Duration) -> Drained {
    let all_done = async { while connections.join_next().await.is_some() {} };
    // What is left after the deadline is counted and cut below.
    if tokio::time::timeout(patience, all_done).await.is_err() {
        tracing::warn!(connections = connections.len(), "cutting connections that outlast the shutdown");
    }
    let cut = connections.len();
    connections.shutdown().await;
    Drained { cut }
}

#[cfg(test)]
mod tests;
