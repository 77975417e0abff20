//! The mesh: this node's connections to all its peers, kept up, and calls over them.
//!
//! Every peer has two connections, one per [`Class`]; either side may have made them. What must stay true: calls reach the node
//! whose key was asked for, wherever it is; clients are never called and never listed; a peer that does not answer pings is down,
//! and calls to it fail at once; whoever is known to one peer becomes known to all.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_net::establish::{self, Established, Local, Side};
use garage_net::mux::Windows;
use garage_net::{Class, Identity, Multiplexed, NetError, NetworkKey, Purpose, Socket, Transport};
use garage_types::codec::{self, DecodeError};
use garage_types::disk::{self, Access, Disk, FileError};
use garage_types::offload::{Lost, Offload, offload};
use garage_types::{Clock, NodeId, Random};
use garage_worker::spawn::Spawn;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{dial, log_end};
use crate::endpoint::{Caller, Handler, Message, Request, Role, Router};
use crate::error::{ErrorCode, RpcError};
use crate::link::{Duplicate, Link, resolve_duplicate};
use crate::peers::{Backoff, Dial, Now, PeerAddress, PeerAddresses, PeerInfo, PeerList, PeerState, PeerTable};
use crate::serve::{Budget, Service, serve};

/// Handshakes of strangers under way at once.
const HANDSHAKES_MAX: usize = 64;
/// Connections of command lines at once.
const CLIENTS_MAX: usize = 64;
/// How long a replaced connection may finish the calls it carries.
const SUPERSEDED_GRACE: Duration = Duration::from_secs(10);
/// Pause after a failure to accept, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Shortest time between two attempts to save the peer list.
const SAVE_PAUSE: Duration = Duration::from_secs(5);

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
    pub windows: Windows,
    /// Memory for large requests being received and handled.
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
    /// Between two exchanges of address lists with a peer.
    pub exchange_interval: Duration,
    pub backoff: Backoff,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(10),
            pings_missed_max: 4,
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

struct Inner {
    options: MeshOptions,
    local: Local,
    /// The node's own endpoints and the mesh's.
    node_router: Router,
    client_router: OnceLock<Router>,
    budget: Arc<Budget>,
    state: Arc<Shared>,
    handshakes: Arc<Semaphore>,
    clients: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// What the mesh's own endpoints share with it.
struct Shared {
    us: PeerAddresses,
    clock: Arc<dyn Clock>,
    table: Mutex<State>,
    /// Changes whenever a link comes or goes.
    links_changed: watch::Sender<()>,
    /// Something may be due earlier than it was.
    wake: Notify,
}

struct State {
    peers: PeerTable,
    links: HashMap<(NodeId, Class), Arc<Link>>,
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
        let shared = Arc::new(Shared {
            us: PeerAddresses { id, addresses: options.public_addresses.clone() },
            clock: options.clock.clone(),
            table: Mutex::new(State { peers: PeerTable::new(id, options.timing.backoff), links: HashMap::new() }),
            links_changed: watch::Sender::new(()),
            wake: Notify::new(),
        });
        shared.learn(&saved.peers);
        for peer in &options.bootstrap {
            shared.learn(&[PeerAddresses { id: peer.id, addresses: vec![peer.address.clone()] }]);
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
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            clients: Arc::new(Semaphore::new(CLIENTS_MAX)),
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
        let mesh = self.clone();
        self.spawn("mesh-listen", async move {
            loop {
                // Waiting for a place, not refusing: a flood of strangers delays peers by one handshake time-out at most.
                let permit = mesh.0.handshakes.clone().acquire_owned().await.expect("the semaphore is never closed");
                match listener.accept().await {
                    Ok(socket) => mesh.spawn("mesh-accept", mesh.clone().accept(socket, permit)),
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

    /// Marked as changed whenever connections come or go, or addresses are learnt.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.0.state.links_changed.subscribe()
    }

    /// Connects to a peer now and remembers it.
    ///
    /// # Errors
    /// [`NetError`]: why that address does not lead to that node.
    pub async fn connect(&self, peer: &PeerAddress) -> Result<(), NetError> {
        for class in [Class::Metadata, Class::Bulk] {
            if !self.0.state.has_link(peer.id, class) {
                self.dial(peer, class).await?;
            }
        }
        Ok(())
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
        let mut changes = self.0.state.links_changed.subscribe();
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
            if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
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

    async fn keep_dialling(self) {
        loop {
            let (dials, next) = self.0.state.with(|state| (state.peers.due(Instant::now()), state.peers.next_due()));
            for dial in dials {
                self.spawn("mesh-dial-peer", self.clone().dial_all(dial));
            }
            let idle = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next.unwrap_or(idle)) => {}
                () = self.0.state.wake.notified() => {}
            }
        }
    }

    /// Tries the addresses of a peer one after another, until one leads to it.
    async fn dial_all(self, attempt: Dial) {
        for address in attempt.addresses {
            let peer = PeerAddress { id: attempt.id, address };
            match self.dial_classes(&peer, &attempt.classes).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::debug!(%peer, error = &error as &dyn std::error::Error, "cannot connect to a peer");
                }
            }
        }
        let jitter = self.jitter();
        self.0.state.update(|state, now| state.peers.dialled(attempt.id, now, jitter));
    }

    async fn dial_classes(&self, peer: &PeerAddress, classes: &[Class]) -> Result<(), NetError> {
        for class in classes {
            if !self.0.state.has_link(peer.id, *class) {
                self.dial(peer, *class).await?;
            }
        }
        Ok(())
    }

    async fn dial(&self, peer: &PeerAddress, class: Class) -> Result<(), NetError> {
        let purpose = Purpose { role: garage_net::Role::Node, class };
        let established = dial(&*self.0.options.transport, &self.0.local, peer, purpose).await?;
        self.begin(established, Some(&peer.address));
        Ok(())
    }

    async fn accept(self, socket: Socket, handshake: OwnedSemaphorePermit) {
        let remote = socket.remote.clone();
        let established = match establish::accept(socket, &self.0.local).await {
            Ok(established) => established,
            Err(error) => {
                tracing::debug!(remote, error = &error as &dyn std::error::Error, "refused a connection");
                return;
            }
        };
        drop(handshake);
        match established.purpose.role {
            garage_net::Role::Node => self.begin(established, None),
            garage_net::Role::Client => match self.0.clients.clone().try_acquire_owned() {
                Ok(place) => self.serve_client(established, place).await,
                Err(_full) => tracing::warn!(remote, "refused a client: too many are connected"),
            },
        }
    }

    fn service(&self) -> Service {
        Service {
            node: self.0.node_router.clone(),
            client: self.0.client_router.get().cloned().unwrap_or_default(),
            budget: self.0.budget.clone(),
            spawn: self.0.options.spawn.clone(),
        }
    }

    async fn serve_client(self, established: Established, _place: OwnedSemaphorePermit) {
        let caller = Caller { node: established.peer, role: Role::Client };
        let Multiplexed { connection, incoming, driver } = established.multiplex(self.0.options.windows);
        self.0.options.spawn.spawn("mesh-driver", log_end(driver).boxed());
        serve(self.service(), caller, incoming, connection).await;
    }

    /// Puts a connection with a peer to use. `address`: where we called it.
    fn begin(&self, established: Established, address: Option<&str>) {
        let peer = established.peer;
        let caller_id = match established.side {
            Side::Caller => self.node_id(),
            Side::Called => peer,
        };
        let remote = established.remote.clone();
        let Multiplexed { connection, incoming, driver } = established.multiplex(self.0.options.windows);
        // Not bound to the shutdown: it ends by itself once the connection is closed, and says so to the peer.
        self.0.options.spawn.spawn("mesh-driver", log_end(driver).boxed());
        let link = Arc::new(Link::new(connection.clone(), caller_id));
        if self.0.state.add(&link, address) == Duplicate::KeepOld {
            tracing::debug!(?peer, "dropped a connection: there is one already");
            return;
        }
        tracing::info!(?peer, remote, class = ?link.class(), "connected");
        let caller = Caller { node: peer, role: Role::Node };
        let serving = serve(self.service(), caller, incoming, connection);
        self.0.options.spawn.spawn("mesh-link", self.clone().keep_link(link, serving).boxed());
    }

    /// Serves and watches a link until it ends, for whichever reason.
    async fn keep_link(self, link: Arc<Link>, serving: impl Future<Output = ()>) {
        let reason = tokio::select! {
            biased;
            () = serving => "the connection ended",
            () = self.ping_until_silent(&link) => "it does not answer any more",
            () = superseded(&link) => "another connection took the place of this one",
            () = self.0.shutdown.cancelled() => "this node is stopping",
        };
        tracing::info!(peer = ?link.peer(), class = ?link.class(), reason, "disconnected");
        link.close().await;
        let jitter = self.jitter();
        self.0.state.remove(&link, jitter);
    }

    /// Returns when the peer is to be given up.
    async fn ping_until_silent(&self, link: &Link) {
        let timing = self.0.options.timing;
        let mut missed = 0;
        let mut exchanged: Option<Instant> = None;
        while missed < timing.pings_missed_max {
            let sent = Instant::now();
            match link.call(&Message::new(Ping {}), timing.ping_timeout).await {
                Ok(_pong) => {
                    missed = 0;
                    if link.class() == Class::Metadata {
                        self.0.state.update(|state, now| state.peers.answered(link.peer(), sent.elapsed(), now));
                    }
                }
                Err(_unanswered) => missed += 1,
            }
            let due = exchanged.is_none_or(|last| last.elapsed() >= timing.exchange_interval);
            if missed == 0 && due && link.class() == Class::Metadata && self.exchange(link).await.is_ok() {
                exchanged = Some(Instant::now());
            }
            tokio::time::sleep(timing.ping_interval).await;
        }
    }

    async fn exchange(&self, link: &Link) -> Result<(), RpcError> {
        let reply = link.call(&Message::new(self.0.state.exchange()), self.0.options.timing.ping_timeout).await?;
        self.0.state.learn(&reply.body.peers);
        Ok(())
    }

    async fn keep_saving(self) {
        let mut changes = self.0.state.links_changed.subscribe();
        loop {
            self.save().await;
            tokio::time::sleep(SAVE_PAUSE).await;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn save(&self) {
        let Some(list) = self.0.state.with(|state| state.peers.take_unsaved()) else { return };
        let (disk, path) = (self.0.options.disk.clone(), self.0.options.peer_list.clone());
        let work = move || disk::replace_atomically(&*disk, &path, &codec::encode(&list), Access::Everyone);
        if let Ok(Err(error)) = offload(&*self.0.options.offload, work).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot save the peer list");
            self.0.state.with(|state| state.peers.still_unsaved());
        }
    }
}

/// Returns once another connection is in use and the calls on this one had their time.
async fn superseded(link: &Link) {
    link.superseded.notified().await;
    tokio::time::sleep(SUPERSEDED_GRACE).await;
}

async fn load(options: &MeshOptions) -> Result<PeerList, MeshError> {
    let (disk, path) = (options.disk.clone(), options.peer_list.clone());
    let content = offload(&*options.offload, move || disk::read_state(&*disk, &path)).await??;
    let Some(content) = content else { return Ok(PeerList::default()) };
    codec::decode(&content).map_err(|source| MeshError::PeerList { path: options.peer_list.clone(), source })
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.table.lock().expect("nothing panics while holding the peers"))
    }

    fn now(&self) -> Now {
        Now { wall: self.clock.now(), timer: Instant::now() }
    }

    /// Changes the peers, after which something may be due earlier.
    fn update<T>(&self, work: impl FnOnce(&mut State, Now) -> T) -> T {
        let now = self.now();
        let result = self.with(|state| work(state, now));
        self.wake.notify_one();
        result
    }

    fn learn(&self, told: &[PeerAddresses]) {
        self.update(|state, now| told.iter().for_each(|peer| state.peers.learn(peer, now)));
        self.links_changed.send_replace(());
    }

    fn has_link(&self, peer: NodeId, class: Class) -> bool {
        self.with(|state| state.links.get(&(peer, class)).is_some_and(|link| !link.is_closed()))
    }

    fn add(&self, link: &Arc<Link>, address: Option<&str>) -> Duplicate {
        let key = (link.peer(), link.class());
        let decision = self.update(|state, now| {
            if let Some(old) = state.links.get(&key) {
                if resolve_duplicate(old, link) == Duplicate::KeepOld {
                    return Duplicate::KeepOld;
                }
                old.superseded.notify_one();
            }
            state.links.insert(key, link.clone());
            state.peers.linked(key.0, key.1, address, now);
            Duplicate::KeepNew
        });
        self.links_changed.send_replace(());
        decision
    }

    /// Forgets a link, unless another has taken its place.
    fn remove(&self, link: &Arc<Link>, jitter: u8) {
        let key = (link.peer(), link.class());
        self.update(|state, now| {
            if state.links.get(&key).is_some_and(|current| Arc::ptr_eq(current, link)) {
                state.links.remove(&key);
                state.peers.unlinked(key.0, key.1, now, jitter);
            }
        });
        self.links_changed.send_replace(());
    }

    /// What we tell a peer: ourselves, and whom we can reach.
    fn exchange(&self) -> Exchange {
        let mut peers = self.with(|state| state.peers.to_share());
        peers.push(self.us.clone());
        Exchange { peers }
    }
}

/// "Are you there?"
#[derive(Serialize, Deserialize)]
struct Ping {}

#[derive(Serialize, Deserialize)]
struct Pong {}

impl Request for Ping {
    const ENDPOINT: &'static str = "mesh.ping/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Pong;
}

struct Answerer;

impl Handler<Ping> for Answerer {
    fn handle(&self, _caller: Caller, _request: Message<Ping>) -> BoxFuture<'_, Result<Message<Pong>, RpcError>> {
        async { Ok(Pong {}.into()) }.boxed()
    }
}

/// The addresses one side knows, answered by those of the other.
#[derive(Serialize, Deserialize)]
struct Exchange {
    #[serde(rename = "p", default)]
    peers: Vec<PeerAddresses>,
}

impl Request for Exchange {
    const ENDPOINT: &'static str = "mesh.peers/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Exchange;
}

struct Exchanger(Arc<Shared>);

impl Handler<Exchange> for Exchanger {
    fn handle(&self, _caller: Caller, request: Message<Exchange>) -> BoxFuture<'_, Result<Message<Exchange>, RpcError>> {
        self.0.learn(&request.body.peers);
        async { Ok(self.0.exchange().into()) }.boxed()
    }
}
