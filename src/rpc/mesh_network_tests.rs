//! Meshes on networks that are not what one would wish: addresses change, routers hide nodes, links are narrow, peers fall silent.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_net::establish::{self, Local, Purpose};
use garage_net::{Class, Listener, MemoryNetwork, NetworkKey, Socket, Transport};
use garage_types::config::{ConsistencyMode, PeerAddress};
use garage_types::random::SeededRandom;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::time::Instant;

use crate::endpoint::Message;
use crate::mesh::Mesh;
use crate::mesh_tests::{Bulk, KEY, Place, TIMEOUT, World, echo, until, until_up};

/// A place whose node does not know from where others see it.
fn behind(network: &MemoryNetwork, host: &str, port: u16) -> Place {
    Place {
        transport: Arc::new(network.at(host)),
        listen: format!("{host}:{port}"),
        public_addresses: vec![],
        knows: vec![],
        consistency: ConsistencyMode::Consistent,
    }
}

fn addresses(mesh: &Mesh, number: u64) -> Vec<String> {
    let id = World::identity(number).id();
    mesh.peers().into_iter().filter(|peer| peer.id == id).flat_map(|peer| peer.addresses).collect()
}

async fn pass(duration: Duration) {
    tokio::time::timeout(duration, std::future::pending::<()>()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn nodes_that_all_moved_find_each_other_through_the_one_that_stayed() {
    let world = World::new();
    let stays = world.node(1, &[]).await;
    let homes = [behind(&world.network, "home-2", 3901), behind(&world.network, "home-3", 3901)];
    let mut nodes = Vec::new();
    for (home, number) in homes.into_iter().zip(2..) {
        nodes.push(world.node_at(home, number, &[1]).await);
    }
    until_up(&nodes[0], nodes[1].node_id()).await;
    // Until the addresses are saved.
    pass(Duration::from_secs(30)).await;
    for node in &nodes {
        node.shutdown();
        until(&stays, |mesh| !mesh.is_up(node.node_id())).await;
    }

    // Each knows old addresses of the others, and the one of node 1; no bootstrap peers.
    let two = world.node_at(behind(&world.network, "elsewhere-2", 3901), 2, &[]).await;
    let three = world.node_at(behind(&world.network, "elsewhere-3", 4901), 3, &[]).await;
    until_up(&two, three.node_id()).await;
    until_up(&three, two.node_id()).await;
    two.call(three.node_id(), Message::new(echo("here")), TIMEOUT).await.unwrap();
    assert!(addresses(&stays, 3).contains(&"elsewhere-3:4901".to_owned()), "{:?}", addresses(&stays, 3));
}

#[tokio::test(start_paused = true)]
async fn nodes_behind_one_router_are_told_apart_by_their_ports() {
    let world = World::new();
    let public = world.node(1, &[]).await;
    let two = world.node_at(behind(&world.network, "router", 3902), 2, &[1]).await;
    let three = world.node_at(behind(&world.network, "router", 3903), 3, &[1]).await;
    until_up(&public, two.node_id()).await;
    until_up(&public, three.node_id()).await;
    // A newcomer outside reaches both, at the address from which node 1 saw them come.
    let newcomer = world.node(4, &[1]).await;
    for inside in [&two, &three] {
        until_up(&newcomer, inside.node_id()).await;
        newcomer.call(inside.node_id(), Message::new(echo("hello")), TIMEOUT).await.unwrap();
    }
    assert!(addresses(&public, 2).contains(&"router:3902".to_owned()));
    assert!(addresses(&public, 3).contains(&"router:3903".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_swallows_everything_does_not_hold_up_the_one_that_works() {
    let world = World::new();
    let network = SwallowsSome(world.network.clone());
    let two = world.node(2, &[]).await;
    let dead = PeerAddress { node: two.node_id(), address: "swallows-2:3901".parse().unwrap() };
    let began = Instant::now();
    let place = Place {
        transport: Arc::new(network),
        listen: "node-1:3901".into(),
        public_addresses: vec![],
        knows: vec![dead],
        consistency: ConsistencyMode::Consistent,
    };
    let one = world.node_at(place, 1, &[2]).await;
    until_up(&one, two.node_id()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(addresses(&one, 2), ["node-2:3901", "swallows-2:3901"], "the one that works is first now");
}

/// Connections to hosts whose names say so are never answered.
struct SwallowsSome(MemoryNetwork);

impl Transport for SwallowsSome {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        self.0.listen(address)
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Socket>> {
        if address.starts_with("swallows") { std::future::pending().boxed() } else { self.0.connect(address) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_for_blocks_that_fell_silent_is_closed_within_seconds() {
    let world = World::new();
    let one = world.node(1, &[]).await;
    let identity = World::identity(9);
    let random = Arc::new(SeededRandom::new(5));
    let local = Local { identity, network: NetworkKey::from_bytes(KEY), random, timeout: TIMEOUT };
    let socket = world.network.connect("node-1:3901").await.unwrap();
    let purpose = Purpose { role: garage_net::Role::Node, class: Class::Bulk };
    let mut silent = establish::connect(socket, &local, one.node_id(), purpose).await.unwrap();
    let began = Instant::now();
    // Reads what comes and answers nothing, as if the other direction were cut.
    let mut buffer = [0; 4096];
    while silent.stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    assert!(began.elapsed() <= Duration::from_secs(20), "{:?}", began.elapsed());
}

/// A link of so many bytes a second in each direction, shared by all connections through it.
struct NarrowLink {
    network: MemoryNetwork,
    there: Arc<Lane>,
    back: Arc<Lane>,
}

struct Lane {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

/// What one connection sends before another has its turn.
const PACKET_BYTES: usize = 1400;
/// What a sender may hand over before it waits.
const SEND_BUFFER_BYTES: usize = 64 << 10;

impl Lane {
    fn new(bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Lane { bytes_per_second, free_at: Mutex::new(Instant::now()) })
    }

    /// Waits until a packet has gone through.
    async fn carry(&self, bytes: usize) {
        let takes = Duration::from_micros(bytes as u64 * 1_000_000 / self.bytes_per_second);
        let done = {
            let mut free_at = self.free_at.lock().unwrap();
            *free_at = Instant::now().max(*free_at) + takes;
            *free_at
        };
        tokio::time::sleep_until(done).await;
    }

    async fn pump(self: Arc<Self>, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut packet = [0; PACKET_BYTES];
        while let Ok(read @ 1..) = from.read(&mut packet).await {
            self.carry(read).await;
            if to.write_all(&packet[..read]).await.is_err() {
                return;
            }
        }
        // The other side may have closed already.
        drop(to.shutdown().await);
    }
}

impl Transport for NarrowLink {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        self.network.listen(address)
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Socket>> {
        async move {
            let Socket { stream, remote } = self.network.connect(address).await?;
            let (ours, near) = duplex(SEND_BUFFER_BYTES);
            let ((far_read, far_write), (near_read, near_write)) = (split(stream), split(near));
            tokio::spawn(self.there.clone().pump(near_read, far_write));
            tokio::spawn(self.back.clone().pump(far_read, near_write));
            Ok(Socket { stream: Box::new(ours), remote })
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn pings_and_metadata_pass_while_blocks_fill_a_narrow_link() {
    const BYTES_PER_SECOND: u64 = 256 << 10;
    let world = World::new();
    let one = world.node(1, &[]).await;
    let lane = || Lane::new(BYTES_PER_SECOND);
    let link = NarrowLink { network: world.network.clone(), there: lane(), back: lane() };
    let place = Place {
        transport: Arc::new(link),
        listen: "node-2:3901".into(),
        public_addresses: vec![],
        knows: vec![],
        consistency: ConsistencyMode::Consistent,
    };
    let two = world.node_at(place, 2, &[1]).await;
    until_up(&two, one.node_id()).await;
    two.call(one.node_id(), Message::new(Bulk {}), TIMEOUT).await.unwrap();
    let made = world.network.connections_made();

    let (from, to) = (two.clone(), one.node_id());
    let large = Message::with_data(Bulk {}, Bytes::from(vec![1; 8 << 20]));
    let began = Instant::now();
    let transfer = tokio::spawn(async move { from.call(to, large, Duration::from_secs(600)).await.unwrap().data.len() });
    for _second in 0..20 {
        let sent = Instant::now();
        two.call(one.node_id(), Message::new(echo("quick")), TIMEOUT).await.unwrap();
        assert!(sent.elapsed() < Duration::from_millis(500), "{:?}", sent.elapsed());
        pass(Duration::from_secs(1)).await;
    }
    assert!(!transfer.is_finished());
    assert_eq!(transfer.await.unwrap(), 8 << 20);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(75), "there and back: the link is used, {took:?}");
    assert_eq!(world.network.connections_made(), made, "nobody was thought to be down");
    let latency = two.latency(one.node_id()).unwrap();
    assert!(latency > Duration::ZERO && latency < Duration::from_millis(500), "{latency:?}");
    let seen = two.peers().into_iter().find_map(|peer| peer.throughput).unwrap();
    assert!((BYTES_PER_SECOND / 2..=BYTES_PER_SECOND).contains(&seen), "{seen} bytes a second");
}
