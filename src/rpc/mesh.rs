//! The mesh: this node's connections to all its peers, kept up, and calls over them.
//!
//! Every peer has two connections, one per [`Class`]; either side may have made them. What must stay true: calls reach the node
//! whose key was asked for, wherever it is; clients are never called and never listed; a peer that does not answer pings is down,
//! and calls to it fail at once; whoever is known to one peer becomes known to all.

mod arrivals;
mod connections;
mod dialling;
mod endpoints;
mod refusals;
mod saving;
mod state;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use garage_net::establish::Local;
use garage_net::mux::Windows;
use garage_net::{Class, Identity, NetError, NetworkKey, Transport};
use garage_types::codec::DecodeError;
use garage_types::config::{ConsistencyMode, HostPort};
use garage_types::disk::{Disk, FileError};
use garage_types::offload::{Lost, Offload};
use garage_types::{Clock, NodeId, Random};
use garage_worker::Watch;
use garage_worker::spawn::Spawn;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::endpoint::{Caller, Message, Request, Role, Router};
use crate::error::{ErrorCode, RpcError};
use crate::link::Link;
use crate::peers::{Backoff, PeerAddress, PeerAddresses, PeerInfo, PeerState};
use arrivals::Arrivals;
use endpoints::{Answerer, Exchange, Exchanger, Ping};
use refusals::Refusals;
use saving::load;
use state::Shared;

/// Connections of command lines at once.
const CLIENTS_MAX: usize = 64;
/// Pause after a failure to accept, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a ping is waited for, unless configured. With the interval and two misses, a peer that went silent is noticed within
/// eleven seconds; far more than a round trip over a busy link takes.
pub const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// What a mesh is made of.
pub struct MeshOptions {
    pub identity: Identity,
    pub network_key: NetworkKey,
    pub transport: Arc<dyn Transport>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub spawn: Arc<dyn Spawn>,
    pub disk: Arc<dyn Disk>,
    pub offload: Arc<dyn Offload>,
    /// State file with the peers known.
    pub peer_list: PathBuf,
    /// Where other nodes can reach this one.
    pub public_addresses: Vec<String>,
    pub bootstrap: Vec<PeerAddress>,
    pub timing: Timing,
    /// What this node is configured for; told to its peers.
    pub consistency: ConsistencyMode,
    pub windows: Windows,
    /// Memory for large requests being received and handled; a peer has a part of it, and as much again at most for blocks sent to it.
    pub incoming_bytes_max: usize,
}

/// The mesh's waits.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub handshake_timeout: Duration,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// Unanswered pings in a row after which a peer is down.
    pub pings_missed_max: u32,
    /// Before a peer is told of addresses that have become known since it was last.
    pub exchange_interval: Duration,
    pub backoff: Backoff,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(3),
            ping_timeout: PING_TIMEOUT,
            pings_missed_max: 2,
            exchange_interval: Duration::from_secs(60),
            backoff: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) },
        }
    }
}

/// Why the mesh could not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the peer list {} is damaged; without the file, the node starts from its bootstrap peers", path.display())]
    PeerList {
        path: PathBuf,
        #[source]
        source: DecodeError,
    },
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("cannot listen on {address}")]
    Listen {
        address: String,
        #[source]
        source: std::io::Error,
    },
}

/// A node's place in the mesh. Clones are the same.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

/// What came of connecting to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connecting {
    Done,
    /// It was before, and is known at this address; another one was not tried.
    WasConnected {
        address: String,
    },
}

struct Inner {
    options: MeshOptions,
    local: Local,
    /// The node's own endpoints and the mesh's.
    node_router: Router,
    client_router: OnceLock<Router>,
    budget: Arc<Budget>,
    state: Arc<Shared>,
    arrivals: Arrivals,
    clients: Arc<Semaphore>,
    refusals: Mutex<Refusals>,
    shutdown: CancellationToken,
}

impl Mesh {
    /// Reads the peer list. Nothing is called or accepted before [`Mesh::start`].
    ///
    /// `node_router`: what peers may call.
    ///
    /// # Errors
    /// [`MeshError`]: the peer list exists but cannot be read.
    pub async fn open(options: MeshOptions, node_router: Router) -> Result<Mesh, MeshError> {
        let saved = load(&options).await?;
        let local = Local {
            identity: options.identity.clone(),
            network: options.network_key.clone(),
            random: options.random.clone(),
            timeout: options.timing.handshake_timeout,
        };
        let id = local.identity.id();
        let us = PeerAddresses { id, addresses: options.public_addresses.clone() };
        let shared =
            Arc::new(Shared::new(us, options.clock.clone(), options.timing.backoff, (options.random.u64(), options.consistency)));
        shared.learn(&saved.peers);
        for peer in &options.bootstrap {
            shared.learn(&[PeerAddresses { id: peer.node, addresses: vec![peer.address.to_string()] }]);
        }
        let node_router = Router::builder()
            .with(&node_router)
            .add::<Ping>(Arc::new(Answerer))
            .add::<Exchange>(Arc::new(Exchanger(shared.clone())))
            .build();
        Ok(Mesh(Arc::new(Inner {
            budget: Arc::new(Budget::new(options.incoming_bytes_max)),
            local,
            node_router,
            client_router: OnceLock::new(),
            state: shared,
            arrivals: Arrivals::default(),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
            refusals: Mutex::default(),
            shutdown: CancellationToken::new(),
            options,
        })))
    }

    /// Begins to call peers. `client_router`: what the command line (and peers too) may call.
    ///
    /// # Panics
    /// When called twice.
    pub fn start(&self, client_router: Router) {
        assert!(self.0.client_router.set(client_router).is_ok(), "a mesh is started once");
        self.spawn("mesh-dial", self.clone().keep_dialling());
        self.spawn("mesh-save", self.clone().keep_saving());
    }

    /// Accepts connections at `address` from now until [`Mesh::shutdown`]; returns the address bound.
    ///
    /// # Errors
    /// [`MeshError::Listen`].
    ///
    /// # Panics
    /// Before [`Mesh::start`].
    pub async fn listen(&self, address: &str) -> Result<String, MeshError> {
        assert!(self.0.client_router.get().is_some(), "a mesh is started before it listens");
        let listening = self.0.options.transport.listen(address).await;
        let mut listener = listening.map_err(|source| MeshError::Listen { address: address.to_owned(), source })?;
        let bound = listener.local_address();
        if let Ok(HostPort { port, .. }) = bound.parse() {
            // Of several, peers are told the first.
            self.0.state.port.get_or_init(|| port);
        }
        let mesh = self.clone();
        self.spawn("mesh-listen", async move {
            loop {
                match listener.accept().await {
                    Ok(socket) => {
                        let arrival = mesh.arrival(&socket.remote);
                        mesh.spawn("mesh-accept", mesh.clone().accept(socket, arrival));
                        // It may have said hello already: that is read before others come.
                        tokio::task::yield_now().await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        Ok(bound)
    }

    /// Closes all connections and stops everything; calls fail from now on.
    pub fn shutdown(&self) {
        self.0.shutdown.cancel();
    }

    pub fn node_id(&self) -> NodeId {
        self.0.local.identity.id()
    }

    /// All nodes known, ourselves first.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let now = self.0.state.clock.now();
        let us = PeerInfo {
            id: self.node_id(),
            addresses: self.0.state.us.addresses.clone(),
            state: PeerState::Up { since: now },
            latency: Some(Duration::ZERO),
            throughput: None,
            last_seen: Some(now),
            is_self: true,
            consistency: Some(self.0.options.consistency),
            twin: None,
        };
        std::iter::once(us).chain(self.0.state.with(|state| state.peers.infos())).collect()
    }

    /// Smoothed round trip to a node: zero to ourselves, `None` when never measured.
    pub fn latency(&self, node: NodeId) -> Option<Duration> {
        if node == self.node_id() {
            return Some(Duration::ZERO);
        }
        self.0.state.with(|state| state.peers.latency(node))
    }

    /// Whether calls to `node` can be tried at all.
    pub fn is_up(&self, node: NodeId) -> bool {
        node == self.node_id() || self.0.state.with(|state| state.links.contains_key(&(node, Class::Metadata)))
    }

    /// The peers that are up, each with a number that grows whenever it is connected anew.
    pub fn arrivals(&self) -> BTreeMap<NodeId, u64> {
        self.0.state.with(|state| state.peers.arrivals())
    }

    /// The consistency mode in this node's configuration.
    pub fn configured_consistency(&self) -> ConsistencyMode {
        self.0.options.consistency
    }

    /// The strictest consistency mode that this node or one that it has met since its start is configured for: the weaker would break
    /// what the stricter promises.
    pub fn consistency(&self) -> ConsistencyMode {
        self.0.state.consistency_in_force()
    }

    /// The weakest consistency mode that this node or one that it has met since its start is configured for: what was acknowledged may be
    /// at no more copies than that one promises.
    pub fn weakest_consistency(&self) -> ConsistencyMode {
        self.0.state.weakest_consistency()
    }

    /// Calls of other nodes since the start, pings included.
    pub fn calls_made(&self) -> u64 {
        self.0.state.calls.load(Ordering::Relaxed)
    }

    /// Marked as changed whenever connections come or go, or addresses are learnt.
    pub fn watch(&self) -> Watch {
        self.0.state.links_changed.watch()
    }

    /// Connects to a peer now and remembers it. One that is connected keeps its connections, and the address is not tried.
    ///
    /// # Errors
    /// [`NetError`]: why that address does not lead to that node.
    pub async fn connect(&self, peer: &PeerAddress) -> Result<Connecting, NetError> {
        let mut done = None;
        for class in [Class::Metadata, Class::Bulk] {
            if !self.0.state.has_link(peer.node, class) {
                self.dial_at(peer.node, &peer.address.to_string(), class).await?;
                done = Some(Connecting::Done);
            }
        }
        Ok(done.unwrap_or_else(|| {
            let known = self.peers().into_iter().find(|known| known.id == peer.node);
            let address = known.and_then(|known| known.addresses.into_iter().next());
            Connecting::WasConnected { address: address.unwrap_or_else(|| "an address that is not known".to_owned()) }
        }))
    }

    /// Calls a node, or ourselves without any encoding.
    ///
    /// # Errors
    /// What the node answers; `Unavailable` at once when it is down; `Timeout` when there is no answer in time.
    pub async fn call<R: Request>(
        &self,
        to: NodeId,
        request: Message<R>,
        timeout: Duration,
    ) -> Result<Message<R::Reply>, RpcError> {
        if to == self.node_id() {
            return self.call_ourselves(request, timeout).await;
        }
        let deadline = Instant::now() + timeout;
        let link = self.link(to, R::CLASS, deadline).await?;
        let began = Instant::now();
        let reply = link.call(&request, deadline.saturating_duration_since(began)).await?;
        let carried = request.data.len() + reply.data.len();
        self.0.state.with(|state| state.peers.transferred(to, carried, began.elapsed()));
        Ok(reply)
    }

    async fn call_ourselves<R: Request>(&self, request: Message<R>, timeout: Duration) -> Result<Message<R::Reply>, RpcError> {
        let caller = Caller { node: self.node_id(), role: Role::Local };
        let clients = self.0.client_router.get();
        let router = match clients {
            Some(clients) if !self.0.node_router.contains(R::ENDPOINT) => clients,
            Some(_) | None => &self.0.node_router,
        };
        let answer = tokio::time::timeout(timeout, router.call_local(caller, request)).await;
        let answer = answer.map_err(|_elapsed| {
            RpcError::new(ErrorCode::Timeout, format!("no answer of ourselves to {} within {timeout:?}", R::ENDPOINT))
        })?;
        let unknown = || RpcError::new(ErrorCode::UnknownEndpoint, format!("this node has no endpoint {}", R::ENDPOINT));
        answer.ok_or_else(unknown)?
    }

    /// The link for a class. A peer that is up but lacks this one is just being connected: that is waited for.
    async fn link(&self, to: NodeId, class: Class, deadline: Instant) -> Result<Arc<Link>, RpcError> {
        let mut changes = self.0.state.links_changed.watch();
        let unavailable = |reason: &str| RpcError::new(ErrorCode::Unavailable, format!("node {to:?} {reason}"));
        loop {
            if self.0.shutdown.is_cancelled() {
                return Err(unavailable("cannot be called: this node is stopping"));
            }
            let (wanted, any) = self
                .0
                .state
                .with(|state| (state.links.get(&(to, class)).cloned(), state.links.contains_key(&(to, Class::Metadata))));
            match wanted {
                Some(link) if !link.is_closed() => return Ok(link),
                _ if !any => return Err(unavailable("is not connected")),
                _ => {}
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(unavailable("has no connection for this kind of call"));
            }
        }
    }

    /// Runs `task` until it ends or the mesh is shut down.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.0.shutdown.clone();
        let task = async move { shutdown.run_until_cancelled(task).await.unwrap_or(()) };
        self.0.options.spawn.spawn(name, task.boxed());
    }

    fn jitter(&self) -> u8 {
        self.0.options.random.below(256) as u8
    }
}
