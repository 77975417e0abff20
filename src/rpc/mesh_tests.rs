//! Several meshes in one process, over pipes and under paused time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_net::establish::{self, Local, PROOF_TIMEOUT, Purpose};
use garage_net::mux::Windows;
use garage_net::{Class, Identity, MemoryNetwork, NetError, NetworkKey, Socket, Transport};
use garage_types::clock::ManualClock;
use garage_types::config::{ConsistencyMode, HostPort};
use garage_types::memory_disk::MemoryDisk;
use garage_types::offload::Inline;
use garage_types::random::SeededRandom;
use garage_types::{Disk, NodeId, Random};
use garage_worker::spawn::TokioSpawn;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Client, ClientOptions};
use crate::endpoint::{Caller, Handler, Message, Request, Role, Router};
use crate::error::{ErrorCode, RpcError};
use crate::mesh::{Connecting, Mesh, MeshOptions, Timing};
use crate::peers::{PeerAddress, PeerState, Twin};
use crate::quorum::{self, WriteQuorum};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const KEY: [u8; 32] = [8; 32];

macro_rules! request {
    ($name:ident, $endpoint:literal, $class:ident, { $($field:ident: $type:ty),* }) => {
        #[derive(Serialize, Deserialize, Clone)]
        pub(crate) struct $name { $($field: $type),* }
        impl Request for $name {
            const ENDPOINT: &'static str = $endpoint;
            const CLASS: Class = Class::$class;
            type Reply = String;
        }
    };
}

request!(Echo, "test.echo/1", Metadata, { text: String });
// What a newer version may send to the same endpoint.
request!(NewerEcho, "test.echo/1", Metadata, { text: String, added: Vec<u32> });
request!(Bulk, "test.bulk/1", Bulk, {});
request!(Fail, "test.fail/1", Metadata, {});
request!(Panic, "test.panic/1", Metadata, {});
request!(Hang, "test.hang/1", Metadata, {});
request!(Absent, "test.absent/1", Metadata, {});
request!(ForClients, "test.clients/1", Metadata, {});
request!(Malformed, "test.echo/1", Metadata, { other: u8 });

type Reply = Result<Message<String>, RpcError>;

/// The test endpoints; tells when a hanging handler begins and when it is dropped.
struct Handlers(mpsc::UnboundedSender<&'static str>);

impl Handler<Echo> for Handlers {
    fn handle(&self, caller: Caller, request: Message<Echo>) -> BoxFuture<'_, Reply> {
        let text = format!("{} from {:?}", request.body.text, caller.role);
        async move { Ok(Message::with_data(text, request.data)) }.boxed()
    }
}

impl Handler<Bulk> for Handlers {
    fn handle(&self, _caller: Caller, request: Message<Bulk>) -> BoxFuture<'_, Reply> {
        async move { Ok(Message::with_data(request.data.len().to_string(), request.data)) }.boxed()
    }
}

impl Handler<Fail> for Handlers {
    fn handle(&self, _caller: Caller, _request: Message<Fail>) -> BoxFuture<'_, Reply> {
        async { Err(RpcError::new(ErrorCode::StaleEpoch, "epoch 3 has passed")) }.boxed()
    }
}

impl Handler<Panic> for Handlers {
    fn handle(&self, _caller: Caller, _request: Message<Panic>) -> BoxFuture<'_, Reply> {
        async { panic!("a bug") }.boxed()
    }
}

impl Handler<ForClients> for Handlers {
    fn handle(&self, caller: Caller, _request: Message<ForClients>) -> BoxFuture<'_, Reply> {
        async move { Ok(format!("{:?}", caller.role).into()) }.boxed()
    }
}

struct Dropped(mpsc::UnboundedSender<&'static str>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.send("dropped").unwrap();
    }
}

impl Handler<Hang> for Handlers {
    fn handle(&self, _caller: Caller, _request: Message<Hang>) -> BoxFuture<'_, Reply> {
        let dropped = Dropped(self.0.clone());
        async move {
            dropped.0.send("began").unwrap();
            std::future::pending::<()>().await;
            drop(dropped);
            Ok(String::new().into())
        }
        .boxed()
    }
}

/// Where a node is.
pub(crate) struct Place {
    pub transport: Arc<dyn Transport>,
    pub listen: String,
    pub public_addresses: Vec<String>,
    /// Bootstrap peers before the others.
    pub knows: Vec<PeerAddress>,
    pub consistency: ConsistencyMode,
}

pub(crate) struct World {
    pub network: MemoryNetwork,
    disk: Arc<MemoryDisk>,
    events: mpsc::UnboundedReceiver<&'static str>,
    handlers: Arc<Handlers>,
}

impl World {
    pub(crate) fn new() -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let disk = Arc::new(MemoryDisk::default());
        disk.create_directory("/meta".as_ref()).unwrap();
        World { network: MemoryNetwork::default(), disk, events, handlers: Arc::new(Handlers(sender)) }
    }

    pub(crate) fn identity(number: u64) -> Identity {
        Identity::generate(&SeededRandom::new(number))
    }

    pub(crate) fn address(number: u64) -> PeerAddress {
        PeerAddress { node: Self::identity(number).id(), address: HostPort { host: format!("node-{number}"), port: 3901 } }
    }

    /// Starts node `number`, which knows the nodes `bootstrap`.
    pub(crate) async fn node(&self, number: u64, bootstrap: &[u64]) -> Mesh {
        self.node_at(self.place(number), number, bootstrap).await
    }

    fn place(&self, number: u64) -> Place {
        let address = Self::address(number).address.to_string();
        Place {
            transport: Arc::new(self.network.clone()),
            listen: address.clone(),
            public_addresses: vec![address],
            knows: vec![],
            consistency: ConsistencyMode::Consistent,
        }
    }

    pub(crate) async fn node_at(&self, place: Place, number: u64, bootstrap: &[u64]) -> Mesh {
        self.seeded_node_at(place, (number, number), bootstrap).await
    }

    /// `seed`: of what the process draws.
    async fn seeded_node_at(&self, place: Place, (number, seed): (u64, u64), bootstrap: &[u64]) -> Mesh {
        let options = MeshOptions {
            identity: Self::identity(number),
            network_key: NetworkKey::from_bytes(KEY),
            transport: place.transport,
            clock: Arc::new(ManualClock::default()),
            random: Arc::new(SeededRandom::new(1000 + seed)),
            spawn: Arc::new(TokioSpawn),
            disk: self.disk.clone(),
            offload: Arc::new(Inline),
            peer_list: PathBuf::from(format!("/meta/peer_list-{number}")),
            public_addresses: place.public_addresses,
            bootstrap: place.knows.into_iter().chain(bootstrap.iter().map(|&other| Self::address(other))).collect(),
            timing: Timing::default(),
            consistency: place.consistency,
            windows: Windows::Grow,
            incoming_bytes_max: 64 << 20,
        };
        let node_router = Router::builder()
            .add::<Echo>(self.handlers.clone())
            .add::<Bulk>(self.handlers.clone())
            .add::<Fail>(self.handlers.clone())
            .add::<Panic>(self.handlers.clone())
            .add::<Hang>(self.handlers.clone())
            .build();
        let client_router = Router::builder().add::<ForClients>(self.handlers.clone()).build();
        let mesh = Mesh::open(options, node_router).await.unwrap();
        mesh.start(client_router);
        mesh.listen(&place.listen).await.unwrap();
        mesh
    }

    async fn client(&self, number: u64, key: [u8; 32]) -> Result<Client, NetError> {
        let options = ClientOptions {
            transport: Arc::new(self.network.clone()),
            network_key: NetworkKey::from_bytes(key),
            random: Arc::new(SeededRandom::new(77)),
            spawn: Arc::new(TokioSpawn),
            timeout: TIMEOUT,
        };
        Client::connect(options, &Self::address(number)).await
    }
}

pub(crate) async fn until(mesh: &Mesh, condition: impl Fn(&Mesh) -> bool) {
    let mut changes = mesh.watch();
    let wait = async {
        while !condition(mesh) {
            changes.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), wait).await.expect("the condition never came true");
}

pub(crate) async fn until_up(mesh: &Mesh, peer: NodeId) {
    until(mesh, |mesh| mesh.is_up(peer)).await;
}

async fn two_nodes(world: &World) -> (Mesh, Mesh) {
    let (a, b) = (world.node(1, &[]).await, world.node(2, &[1]).await);
    until_up(&a, b.node_id()).await;
    until_up(&b, a.node_id()).await;
    (a, b)
}

pub(crate) fn echo(text: &str) -> Echo {
    Echo { text: text.to_owned() }
}

fn code<T>(result: Result<T, RpcError>) -> Option<ErrorCode> {
    result.err().map(|error| error.code)
}

#[tokio::test(start_paused = true)]
async fn calls_reach_peers_both_ways_and_ourselves_with_their_data() {
    let world = World::new();
    let (a, b) = two_nodes(&world).await;
    let data = Bytes::from(vec![5; 3 << 20]);
    for (from, to, role) in [(&a, &b, "Node"), (&b, &a, "Node"), (&a, &a, "Local")] {
        let reply = from.call(to.node_id(), Message::with_data(echo("hi"), data.clone()), TIMEOUT).await.unwrap();
        assert_eq!(reply.body, format!("hi from {role}"));
        assert!(reply.data == data);
        let reply = from.call(to.node_id(), Message::with_data(Bulk {}, data.clone()), TIMEOUT).await.unwrap();
        assert_eq!(reply.body, data.len().to_string());
    }
    assert_eq!(a.peers().len(), 2);
    assert!(a.peers()[0].is_self && !a.peers()[1].is_self);
}

#[tokio::test(start_paused = true)]
async fn errors_cross_with_their_code_and_the_connection_stays() {
    let world = World::new();
    let (a, b) = two_nodes(&world).await;
    let made = world.network.connections_made();
    for to in [b.node_id(), a.node_id()] {
        let error = a.call(to, Message::new(Fail {}), TIMEOUT).await.err().unwrap();
        assert_eq!(error, RpcError::new(ErrorCode::StaleEpoch, "epoch 3 has passed"));
        assert!(error.is_retryable());
        assert_eq!(code(a.call(to, Message::new(Absent {}), TIMEOUT).await), Some(ErrorCode::UnknownEndpoint));
        assert_eq!(code(a.call(to, Message::new(Panic {}), TIMEOUT).await), Some(ErrorCode::Internal));
    }
    assert_eq!(code(a.call(b.node_id(), Message::new(Malformed { other: 1 }), TIMEOUT).await), Some(ErrorCode::BadRequest));
    a.call(b.node_id(), Message::new(echo("still here")), TIMEOUT).await.unwrap();
    assert_eq!(world.network.connections_made(), made);
}

#[tokio::test(start_paused = true)]
async fn fields_of_a_newer_version_are_ignored() {
    let world = World::new();
    let (a, b) = two_nodes(&world).await;
    let request = NewerEcho { text: "new".into(), added: vec![1, 2] };
    assert_eq!(a.call(b.node_id(), Message::new(request), TIMEOUT).await.unwrap().body, "new from Node");
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_node_that_is_down_fails_at_once() {
    let world = World::new();
    let a = world.node(1, &[9]).await;
    let before = tokio::time::Instant::now();
    assert_eq!(code(a.call(World::address(9).node, Message::new(echo("x")), TIMEOUT).await), Some(ErrorCode::Unavailable));
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_call_times_out_and_its_handler_is_dropped() {
    let mut world = World::new();
    let (a, b) = two_nodes(&world).await;
    assert_eq!(code(a.call(b.node_id(), Message::new(Hang {}), TIMEOUT).await), Some(ErrorCode::Timeout));
    assert_eq!(world.events.recv().await, Some("began"));
    assert_eq!(world.events.recv().await, Some("dropped"));
    a.call(b.node_id(), Message::new(echo("next")), TIMEOUT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_drops_its_handler() {
    let mut world = World::new();
    let (a, b) = two_nodes(&world).await;
    let call = tokio::spawn(async move { a.call(b.node_id(), Message::new(Hang {}), Duration::from_secs(1_000_000)).await });
    assert_eq!(world.events.recv().await, Some("began"));
    call.abort();
    assert_eq!(world.events.recv().await, Some("dropped"));
}

#[tokio::test(start_paused = true)]
async fn clients_call_what_is_for_them_and_nothing_else() {
    let world = World::new();
    let (a, b) = two_nodes(&world).await;
    let client = world.client(1, KEY).await.unwrap();
    assert_eq!(client.call(Message::new(ForClients {}), TIMEOUT).await.unwrap().body, format!("{:?}", Role::Client));
    assert_eq!(code(client.call(Message::new(echo("x")), TIMEOUT).await), Some(ErrorCode::Refused));
    assert_eq!(code(client.call(Message::new(Absent {}), TIMEOUT).await), Some(ErrorCode::UnknownEndpoint));
    assert_eq!(a.peers().len(), 2, "a client is no peer");
    assert_eq!(a.call(b.node_id(), Message::new(ForClients {}), TIMEOUT).await.unwrap().body, format!("{:?}", Role::Node));
}

#[tokio::test(start_paused = true)]
async fn connections_that_say_nothing_keep_neither_peers_nor_the_command_line_out() {
    let world = World::new();
    let one = world.node(1, &[]).await;
    let address = World::address(1).address.to_string();
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(world.network.connect(&address).await.unwrap());
    }
    let started = Instant::now();
    let two = world.node(2, &[1]).await;
    until_up(&two, one.node_id()).await;
    let client = world.client(1, KEY).await.unwrap();
    client.call(Message::new(ForClients {}), TIMEOUT).await.unwrap();
    assert!(started.elapsed() < PROOF_TIMEOUT, "nobody waited for the time of the silent ones to be up");
    drop(silent);
}

/// A way to `far` on which everything after the hello arrives only after 500 connections to `address` that say nothing.
fn through_a_flood(network: MemoryNetwork, address: String, far: Socket) -> Socket {
    const HELLO_BYTES: usize = establish::VERSION_TAG.len() + 64;
    let (ours, near) = tokio::io::duplex(1024);
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far.stream);
    tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
    tokio::spawn(async move {
        let (mut sent, mut silent, mut message) = (0, Vec::new(), [0; 1024]);
        while let Ok(bytes @ 1..) = near_read.read(&mut message).await {
            for _ in 0..if sent < HELLO_BYTES { 0 } else { 500 } {
                silent.push(network.connect(&address).await.unwrap());
            }
            far_write.write_all(&message[..bytes]).await.unwrap();
            sent += bytes;
        }
    });
    Socket { stream: Box::new(ours), remote: far.remote }
}

#[tokio::test(start_paused = true)]
async fn whoever_said_hello_comes_in_however_many_come_after_it() {
    let world = World::new();
    let one = world.node(1, &[]).await;
    let address = World::address(1).address.to_string();
    let socket = through_a_flood(world.network.clone(), address.clone(), world.network.connect(&address).await.unwrap());
    let random: Arc<dyn Random> = Arc::new(SeededRandom::new(5));
    let local = Local { identity: Identity::generate(&*random), network: NetworkKey::from_bytes(KEY), random, timeout: TIMEOUT };
    let purpose = Purpose { role: garage_net::Role::Client, class: Class::Metadata };
    let established = establish::connect(socket, &local, one.node_id(), purpose).await;
    assert!(established.is_ok(), "{:?}", established.err());
}

#[tokio::test(start_paused = true)]
async fn a_client_with_another_network_key_is_refused() {
    let world = World::new();
    let _a = world.node(1, &[]).await;
    assert!(world.client(1, [9; 32]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn peers_reconnect_after_their_connections_break() {
    let world = World::new();
    let (a, b) = two_nodes(&world).await;
    world.network.cut_connections();
    until(&a, |mesh| !mesh.is_up(b.node_id())).await;
    until_up(&a, b.node_id()).await;
    until_up(&b, a.node_id()).await;
    a.call(b.node_id(), Message::new(echo("again")), TIMEOUT).await.unwrap();
    a.call(b.node_id(), Message::new(Bulk {}), TIMEOUT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nodes_that_share_a_peer_find_each_other_and_remember() {
    let world = World::new();
    let (a, b, c) = (world.node(1, &[]).await, world.node(2, &[1]).await, world.node(3, &[1]).await);
    until_up(&c, b.node_id()).await;
    until_up(&b, c.node_id()).await;
    b.call(c.node_id(), Message::new(echo("hello")), TIMEOUT).await.unwrap();
    assert_eq!(a.peers().len(), 3);

    // Saved a moment later; after a restart no bootstrap peer is needed.
    tokio::time::timeout(Duration::from_secs(2), std::future::pending::<()>()).await.unwrap_err();
    c.shutdown();
    until(&a, |mesh| !mesh.is_up(c.node_id())).await;
    let again = world.node(3, &[]).await;
    until_up(&again, a.node_id()).await;
    until_up(&again, b.node_id()).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_the_operator_named_is_remembered_though_the_node_is_killed_at_once() {
    let world = World::new();
    let (a, b) = (world.node(1, &[]).await, world.node(2, &[]).await);
    assert_eq!(a.connect(&World::address(2)).await.unwrap(), Connecting::Done);
    let elsewhere = PeerAddress { address: World::address(7).address, ..World::address(2) };
    let again = a.connect(&elsewhere).await.unwrap();
    assert!(
        matches!(&again, Connecting::WasConnected { address } if *address == World::address(2).address.to_string()),
        "{again:?}"
    );
    tokio::time::timeout(Duration::from_millis(10), std::future::pending::<()>()).await.unwrap_err();
    a.shutdown();
    until(&b, |mesh| !mesh.is_up(a.node_id())).await;
    world.disk.crash();
    let again = world.node(1, &[]).await;
    until_up(&again, b.node_id()).await;
    assert_eq!(world.network.connections_made(), 4, "one for each class, before and after");
}

/// What is known of a node that exists twice, if it has been noticed.
fn twin_of(mesh: &Mesh, node: NodeId) -> Option<Twin> {
    mesh.peers().into_iter().find(|peer| peer.id == node)?.twin
}

#[tokio::test(start_paused = true)]
async fn two_processes_with_one_key_are_named_and_count_as_one_node() {
    let world = World::new();
    let a = world.node(1, &[]).await;
    let place = Place { transport: Arc::new(world.network.at("node-2")), ..world.place(2) };
    let original = world.node_at(place, 2, &[1]).await;
    let id = original.node_id();
    until_up(&a, id).await;
    let address = "copied-disk:3901".to_owned();
    let place = Place {
        transport: Arc::new(world.network.at("copied-disk")),
        listen: address.clone(),
        public_addresses: vec![address],
        knows: vec![],
        consistency: ConsistencyMode::Consistent,
    };
    // Another random seed than the original's, as another process has.
    let copy = world.seeded_node_at(place, (2, 77), &[1]).await;
    assert_eq!(copy.node_id(), id);
    until(&a, |mesh| twin_of(mesh, id).is_some()).await;
    let mut addresses = twin_of(&a, id).unwrap().addresses;
    addresses.sort();
    assert_eq!(addresses, ["copied-disk:3901", "node-2:3901"]);

    // Of the row's owners only this one is there, twice: that is not two.
    let absent = World::identity(3).id();
    let owners = vec![id, absent];
    let call = |node| {
        let a = a.clone();
        async move { a.call(node, Message::new(echo("row")), TIMEOUT).await }
    };
    let written = quorum::write_to_sets(std::slice::from_ref(&owners), WriteQuorum::Count(2), drop, call).await;
    assert!(written.unwrap_err().reached < 2);
    let read = quorum::read_from(&owners, 2, Duration::from_millis(300), call).await;
    assert!(read.unwrap_err().reached < 2);
    assert_eq!(a.arrivals().len(), 1, "it is one node");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_restarts_is_not_taken_for_two() {
    let world = World::new();
    let a = world.node(1, &[]).await;
    for seed in 0..4 {
        let place = world.place(2);
        let b = world.seeded_node_at(place, (2, seed), &[1]).await;
        until_up(&a, b.node_id()).await;
        tokio::time::timeout(Duration::from_secs(20), std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(twin_of(&a, b.node_id()), None);
        b.shutdown();
        until(&a, |mesh| !mesh.is_up(b.node_id())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_strictest_consistency_mode_is_in_force_also_where_those_who_have_it_are_cut_off() {
    use ConsistencyMode::{Consistent, Dangerous, Degraded};
    let world = World::new();
    let in_mode = |number, consistency| Place { consistency, ..world.place(number) };
    let a = world.node_at(in_mode(1, Dangerous), 1, &[]).await;
    assert_eq!(a.consistency(), Dangerous, "there is nobody else");
    let b = world.node_at(in_mode(2, Degraded), 2, &[1]).await;
    until(&a, |mesh| mesh.consistency() == Degraded).await;
    assert_eq!(b.consistency(), Degraded);
    let c = world.node_at(in_mode(3, Consistent), 3, &[1]).await;
    for mesh in [&a, &b, &c] {
        until(mesh, |mesh| mesh.consistency() == Consistent).await;
    }
    let told = a.peers().into_iter().find(|peer| peer.id == b.node_id()).and_then(|peer| peer.consistency);
    assert_eq!(told, Some(Degraded), "what each is configured for stays known");
    c.shutdown();
    until(&a, |mesh| !mesh.is_up(c.node_id())).await;
    assert_eq!(a.consistency(), Consistent, "it may go on elsewhere, and must not miss what is acknowledged here");
    let again = world.node_at(in_mode(3, Degraded), 3, &[1]).await;
    until_up(&a, again.node_id()).await;
    until(&a, |mesh| mesh.consistency() == Degraded).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_down() {
    let world = World::new();
    let a = world.node(1, &[]).await;
    let random: Arc<dyn Random> = Arc::new(SeededRandom::new(5));
    let mute = Identity::generate(&*random);
    let id = mute.id();
    let local = Local { identity: mute, network: NetworkKey::from_bytes(KEY), random, timeout: TIMEOUT };
    let socket = world.network.connect("node-1:3901").await.unwrap();
    let purpose = Purpose { role: garage_net::Role::Node, class: Class::Metadata };
    let _silent = establish::connect(socket, &local, a.node_id(), purpose).await.unwrap();
    until_up(&a, id).await;
    let up = tokio::time::Instant::now();
    until(&a, |mesh| !mesh.is_up(id)).await;
    assert!(up.elapsed() <= Duration::from_secs(11), "{:?}", up.elapsed());
    assert!(matches!(a.peers().last().unwrap().state, PeerState::Down { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_large_transfer_does_not_hold_up_small_calls() {
    let world = World::new();
    let (a, b) = two_nodes(&world).await;
    let (from, to) = (a.clone(), b.node_id());
    let large = Message::with_data(Bulk {}, Bytes::from(vec![1; 48 << 20]));
    let transfer = tokio::spawn(async move { from.call(to, large, Duration::from_secs(600)).await });
    for _ in 0..20 {
        a.call(b.node_id(), Message::new(echo("quick")), TIMEOUT).await.unwrap();
    }
    assert!(!transfer.is_finished(), "the small calls waited for the large one");
    assert_eq!(transfer.await.unwrap().unwrap().data.len(), 48 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_claims_too_much_is_disconnected() {
    let world = World::new();
    let a = world.node(1, &[]).await;
    let random: Arc<dyn Random> = Arc::new(SeededRandom::new(5));
    let rogue = Identity::generate(&*random);
    let local = Local { identity: rogue, network: NetworkKey::from_bytes(KEY), random, timeout: TIMEOUT };
    let socket = world.network.connect("node-1:3901").await.unwrap();
    let purpose = Purpose { role: garage_net::Role::Client, class: Class::Metadata };
    let connection = establish::connect(socket, &local, a.node_id(), purpose).await.unwrap().multiplex(Windows::Grow);
    let driver = tokio::spawn(connection.driver);
    let mut stream = connection.connection.open().await.unwrap();
    stream.write_all(&[0xff; 12]).await.unwrap();
    driver.await.unwrap().unwrap();
}

#[test]
#[should_panic(expected = "added twice")]
fn one_endpoint_cannot_be_added_twice() {
    let handlers = Arc::new(Handlers(mpsc::unbounded_channel().0));
    drop(Router::builder().add::<Echo>(handlers.clone()).add::<Echo>(handlers).build());
}
