//! A node without capacity serves everything: it holds names and keys like every node, and asks the storage nodes for the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use garage_block::{Compression, DataDirectory, Durability, StoreOptions, Usage};
use garage_db::{Db, MemoryEngine};
use garage_model::Garage;
use garage_model::background::BackgroundSettings;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::garage::Settings;
use garage_model::key::Permissions;
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_net::MemoryNetwork;
use garage_net::identity::{Identity, NetworkKey};
use garage_net::mux::Windows;
use garage_node::node::{MeshSettings, Node, NodeParts, NodeSettings};
use garage_rpc::cluster::Timeouts;
use garage_rpc::endpoint::Router;
use garage_rpc::layout::NodeRole;
use garage_rpc::peers::PeerAddress;
use garage_rpc::quorum::ConsistencyMode;
use garage_types::clock::ManualClock;
use garage_types::config::HostPort;
use garage_types::disk::create_directories;
use garage_types::memory_disk::MemoryDisk;
use garage_types::names::Punycode;
use garage_types::offload::Inline;
use garage_types::random::SeededRandom;
use garage_types::{BucketId, Disk, ObjectKey, Random, Timestamp};
use garage_worker::spawn::TokioSpawn;

use crate::world::{BLOCK_SIZE, INLINE_MAX};

const GATEWAY: u8 = 4;

struct Machine {
    node: Node,
    disk: MemoryDisk,
}

fn identity(number: u8) -> Identity {
    Identity::generate(&SeededRandom::new(u64::from(number)))
}

fn address(number: u8) -> HostPort {
    HostPort { host: format!("node-{number}"), port: 3901 }
}

/// One of four nodes on `network`, which knows the first.
async fn start(network: &MemoryNetwork, number: u8) -> Machine {
    let disk = MemoryDisk::new();
    let (metadata_dir, data) = (PathBuf::from("/meta"), PathBuf::from("/data"));
    create_directories(&disk, &metadata_dir).unwrap();
    create_directories(&disk, &data).unwrap();
    let identity = identity(number);
    let id = identity.id();
    let bootstrap = PeerAddress { node: self::identity(1).id(), address: address(1) };
    let parts = NodeParts {
        identity,
        network_key: NetworkKey::from_bytes([7; 32]),
        transport: Arc::new(network.clone()),
        disk: Arc::new(disk.clone()) as Arc<dyn Disk>,
        db: Db::open_memory(MemoryEngine::new()).unwrap(),
        clock: Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000))),
        random: Arc::new(SeededRandom::new(100 + u64::from(number))) as Arc<dyn Random>,
        offload: Arc::new(Inline),
        spawn: Arc::new(TokioSpawn),
        connections: Arc::new(TokioSpawn),
        settings: NodeSettings {
            metadata_dir: metadata_dir.clone(),
            replication_factor: 3,
            consistency: ConsistencyMode::Consistent,
            timeouts: Timeouts::default(),
            blocks: StoreOptions {
                node: id,
                metadata_dir,
                directories: vec![DataDirectory { path: data, usage: Usage::Writable { capacity: 1 } }],
                durability: Durability::Synced,
                reserve_bytes: 0,
                reads_in_flight_max: 4,
                writes_in_flight_max: 4,
            },
            store: Settings {
                block_release_delay: std::time::Duration::from_secs(600),
                block_size: BLOCK_SIZE,
                inline_max: INLINE_MAX,
                compression: Compression::Zstd { level: 1 },
                punycode: Punycode::Refused,
                block_ram_buffer_max: 1 << 20,
                pages_at_once: 8,
                incarnation: 1,
            },
            background: BackgroundSettings::default(),
            collect_after: crate::world::COLLECT_AFTER,
            mesh: MeshSettings {
                public_addresses: vec![address(number).to_string()],
                bootstrap_peers: vec![bootstrap],
                windows: Windows::Fixed,
            },
        },
    };
    let node = Node::build(parts).await.unwrap();
    node.mesh.start(Router::default());
    node.mesh.listen(&address(number).to_string()).await.unwrap();
    Machine { node, disk }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::advance(Duration::from_millis(100)).await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), wait).await.unwrap_or_else(|_elapsed| panic!("never: {what}"));
}

/// Three storage nodes in three zones, and a gateway.
async fn cluster(network: &MemoryNetwork) -> Vec<Machine> {
    let mut machines = Vec::new();
    for number in 1..=GATEWAY {
        machines.push(start(network, number).await);
    }
    let connected = || {
        let up = |machine: &Machine| (1..=GATEWAY).all(|number| machine.node.mesh.is_up(identity(number).id()));
        machines.iter().all(up)
    };
    until("all nodes find each other", connected).await;
    let layout = &machines[0].node.layout;
    for number in 1..=GATEWAY {
        let capacity = (number != GATEWAY).then_some(1 << 30);
        let role = NodeRole { zone: format!("z{number}"), capacity, tags: vec![] };
        layout.stage_role(identity(number).id(), role).await.unwrap();
    }
    layout.apply(1).await.unwrap();
    until("the layout reaches every node", || machines.iter().all(|machine| machine.node.layout.current().version() == 1)).await;
    machines
}

fn put(bucket: BucketId, text: &str) -> PutObject {
    PutObject {
        bucket,
        key: ObjectKey::parse(text).unwrap(),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    }
}

async fn fetch(garage: &Garage, bucket: BucketId, text: &str) -> Vec<u8> {
    let object = garage.object(bucket, &ObjectKey::parse(text).unwrap()).await.unwrap();
    let mut stream = garage.read_object(&object, 0..object.meta.size).await.unwrap();
    let mut body = Vec::new();
    while let Some(bytes) = stream.next().await {
        body.extend_from_slice(&bytes.unwrap());
    }
    body
}

fn blocks(machine: &Machine) -> usize {
    machine.disk.files().iter().filter(|path| path.starts_with("/data") && path.components().count() == 5).count()
}

#[tokio::test(start_paused = true)]
async fn everything_works_through_a_gateway_and_nothing_is_stored_there() {
    let network = MemoryNetwork::default();
    let machines = cluster(&network).await;
    let [storage, gateway] = [0, 3].map(|at| &machines[at].node.garage);

    // Names and keys are made through the gateway and known everywhere, and the other way round.
    let bucket = gateway.create_bucket("through-gateway").await.unwrap();
    let key = gateway.create_key("app", None).await.unwrap();
    gateway.set_permissions(&key.id, bucket, Permissions::ALL).await.unwrap();
    assert_eq!(storage.resolve_bucket(Some(&key.id), "through-gateway").await.unwrap().id, bucket);
    let other = storage.create_bucket("through-storage").await.unwrap();
    assert_eq!(gateway.resolve_bucket(Some(&key.id), "through-storage").await.unwrap().id, other);

    let body: Vec<u8> = (0..10 * BLOCK_SIZE).map(|n| (n * 7 % 251) as u8).collect();
    gateway.put_object(put(bucket, "large"), Box::new(InMemory::new(body.clone()))).await.unwrap();
    gateway.put_object(put(bucket, "small"), Box::new(InMemory::new(b"inline".to_vec()))).await.unwrap();
    for garage in [gateway, storage] {
        assert_eq!(fetch(garage, bucket, "large").await, body);
        assert_eq!(fetch(garage, bucket, "small").await, b"inline");
        let counts = garage.bucket_counts(bucket).await.unwrap();
        assert_eq!((counts.objects, counts.bytes), (2, body.len() as i64 + 6), "counted by the owners, not by who is asked");
        assert_eq!(garage.total_counts().await.unwrap(), counts);
    }
    assert!(machines[..3].iter().all(|machine| blocks(machine) > 0));
    assert_eq!(blocks(&machines[3]), 0, "a gateway stores no block");
    let rows: BTreeMap<&str, u64> =
        gateway.local().tables.counts().await.unwrap().into_iter().map(|table| (table.name, table.rows)).collect();
    assert_eq!((rows["object"], rows["version"], rows["block_ref"]), (0, 0, 0), "{rows:?}");
    assert_eq!((rows["bucket"], rows["key"]), (2, 1), "names and keys are on every node: {rows:?}");

    // A storage node down: a gateway is served by the others.
    machines[1].node.mesh.shutdown();
    let gone = identity(2).id();
    until("the loss is noticed", || !machines[3].node.mesh.is_up(gone)).await;
    gateway.put_object(put(bucket, "later"), Box::new(InMemory::new(body.clone()))).await.unwrap();
    assert_eq!(fetch(gateway, bucket, "later").await, body);
}
