//! Several machines on one network of pipes, with one clock: for tests of where blocks go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use garage_block::{Compression, DataDirectory, Durability, StoreOptions, Usage};
use garage_db::{Db, MemoryEngine};
use garage_model::background::BackgroundSettings;
use garage_model::block_ref::BlockRefTable;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::garage::Settings;
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::{Garage, ModelError};
use garage_net::MemoryNetwork;
use garage_net::identity::{Identity, NetworkKey};
use garage_net::mux::Windows;
use garage_node::node::{MeshSettings, Node, NodeParts, NodeSettings};
use garage_node::state;
use garage_rpc::cluster::Timeouts;
use garage_rpc::endpoint::Router;
use garage_rpc::layout::NodeRole;
use garage_rpc::peers::PeerAddress;
use garage_rpc::quorum::ConsistencyMode;
use garage_table::Schema;
use garage_table::collect::{CollectAfter, Collector};
use garage_table::wire::{Mode, Write};
use garage_types::clock::ManualClock;
use garage_types::config::HostPort;
use garage_types::disk::create_directories;
use garage_types::memory_disk::MemoryDisk;
use garage_types::names::Punycode;
use garage_types::offload::Inline;
use garage_types::random::SeededRandom;
use garage_types::{BlockHash, BucketId, NodeId, ObjectKey, Timestamp};
use garage_worker::spawn::TokioSpawn;
use garage_worker::{Step, Worker};

/// Small, so that an object of a few hundred bytes has several blocks.
const BLOCK_SIZE: usize = 64;
const NODE_CAPACITY: u64 = 1 << 30;

/// One machine and its node.
pub struct Machine {
    pub disk: MemoryDisk,
    engine: MemoryEngine,
    number: u64,
    pub node: Node,
}

/// Machines that know each other.
pub struct Cluster {
    network: MemoryNetwork,
    pub clock: Arc<ManualClock>,
    pub machines: Vec<Machine>,
    pub replication_factor: usize,
    consistency: ConsistencyMode,
}

fn identity(number: u64) -> Identity {
    Identity::generate(&SeededRandom::new(number))
}

fn address(number: u64) -> PeerAddress {
    PeerAddress { node: identity(number).id(), address: HostPort { host: format!("node-{number}"), port: 3901 } }
}

impl Cluster {
    /// Machines `0..count`, all connected, without a layout.
    pub async fn of(count: u64, replication_factor: usize) -> Self {
        Cluster::in_mode(ConsistencyMode::Consistent, count, replication_factor).await
    }

    /// As [`Cluster::of`], in a consistency mode.
    pub async fn in_mode(consistency: ConsistencyMode, count: u64, replication_factor: usize) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)));
        let (network, machines) = (MemoryNetwork::default(), Vec::new());
        let mut cluster = Cluster { network, clock, machines, replication_factor, consistency };
        for number in 0..count {
            let (disk, engine) = (MemoryDisk::new(), MemoryEngine::new());
            let node = cluster.build(number, &disk, &engine).await;
            cluster.machines.push(Machine { disk, engine, number, node });
        }
        cluster.connect_all().await;
        cluster
    }

    async fn build(&self, number: u64, disk: &MemoryDisk, engine: &MemoryEngine) -> Node {
        let (meta, data) = (PathBuf::from("/meta"), PathBuf::from("/data"));
        for directory in [&meta, &data] {
            create_directories(disk, directory).expect("the disk takes a directory");
        }
        let identity = identity(number);
        let id = identity.id();
        let incarnation = state::next_start(disk, &meta).expect("starts can be counted");
        let parts = NodeParts {
            identity,
            network_key: NetworkKey::from_bytes([7; 32]),
            transport: Arc::new(self.network.clone()),
            disk: Arc::new(disk.clone()),
            db: Db::open_memory(engine.clone()).expect("the engine opens"),
            clock: self.clock.clone(),
            random: Arc::new(SeededRandom::new(1000 + number)),
            offload: Arc::new(Inline),
            spawn: Arc::new(TokioSpawn),
            connections: Arc::new(TokioSpawn),
            settings: NodeSettings {
                metadata_dir: meta.clone(),
                replication_factor: self.replication_factor,
                consistency: self.consistency,
                timeouts: Timeouts::default(),
                blocks: StoreOptions {
                    node: id,
                    metadata_dir: meta,
                    directories: vec![DataDirectory { path: data, usage: Usage::Writable { capacity: 1 } }],
                    durability: Durability::Synced,
                    reserve_bytes: 0,
                    reads_in_flight_max: 4,
                    writes_in_flight_max: 4,
                },
                store: Settings {
                    block_release_delay: std::time::Duration::from_secs(600),
                    block_size: BLOCK_SIZE,
                    inline_max: 16,
                    compression: Compression::Off,
                    punycode: Punycode::Refused,
                    block_ram_buffer_max: 1 << 20,
                    pages_at_once: 8,
                    incarnation,
                },
                collect_after: crate::world::COLLECT_AFTER,
                background: BackgroundSettings::default(),
                mesh: MeshSettings {
                    public_addresses: vec![address(number).address.to_string()],
                    bootstrap_peers: (0..number).map(address).collect(),
                    windows: Windows::Fixed,
                },
            },
        };
        let node = Node::build(parts).await.expect("the node starts");
        node.mesh.start(Router::builder().build());
        node.mesh.listen(&address(number).address.to_string()).await.expect("the address is free");
        node
    }

    async fn connect_all(&self) {
        for machine in &self.machines {
            for other in self.machines.iter().filter(|other| other.number != machine.number) {
                until(async || machine.node.mesh.is_up(other.id())).await;
            }
        }
    }

    /// The network of a machine goes.
    pub async fn take_down(&self, machine: usize) {
        let gone = &self.machines[machine];
        gone.node.mesh.shutdown();
        for other in self.machines.iter().filter(|other| other.number != gone.number) {
            until(async || !other.node.mesh.is_up(gone.id())).await;
        }
    }

    /// The machine comes back, with the disk and the database it had.
    pub async fn bring_back(&mut self, machine: usize) {
        let engine = self.machines[machine].engine.clone();
        self.bring_back_with(machine, engine).await;
    }

    /// The machine comes back with an empty database.
    pub async fn bring_back_without_metadata(&mut self, machine: usize) {
        self.bring_back_with(machine, MemoryEngine::new()).await;
    }

    async fn bring_back_with(&mut self, machine: usize, engine: MemoryEngine) {
        let Machine { disk, number, .. } = &self.machines[machine];
        let node = self.build(*number, disk, &engine).await;
        (self.machines[machine].node, self.machines[machine].engine) = (node, engine);
        self.connect_all().await;
    }

    /// Makes the next layout, with these machines storing; every node knows it when this returns.
    pub async fn lay_out(&self, storing: &[usize]) {
        let first = &self.machines[0].node.layout;
        let storing: BTreeSet<usize> = storing.iter().copied().collect();
        for (index, machine) in self.machines.iter().enumerate() {
            if storing.contains(&index) {
                let role = NodeRole { zone: format!("z{index}"), capacity: Some(NODE_CAPACITY), tags: Vec::new() };
                first.stage_role(machine.id(), role).await.expect("a role can be staged");
            } else if first.current().role(machine.id()).is_some() {
                first.stage_removal(machine.id()).await.expect("a removal can be staged");
            }
        }
        let next = first.current().version() + 1;
        first.apply(next).await.expect("the layout can be applied");
        for machine in &self.machines {
            until(async || machine.node.layout.current().version() == next).await;
            // As the background work would, which does not run here.
            if next == 1 {
                // The database is the one that the first layout was made with.
                machine.node.garage.local().tables.record_start(1).await.expect("the start can be recorded");
            }
            // No machine is given anything again that it owned before.
            let live = machine.node.layout.current().live_versions().to_vec();
            machine.node.layout.sorted_out(live).await.expect("the layout can be saved");
        }
    }

    /// Every node declares that it has the metadata of the current layout; the older versions are retired when this returns.
    pub async fn finish_layout_change(&self) {
        let current = self.machines[0].node.layout.current().live_versions().last().copied().expect("there is a layout");
        for machine in &self.machines {
            until(async || machine.node.layout.current().history().min_ack() >= current.number).await;
        }
        for machine in &self.machines {
            if machine.node.layout.current().all_nodes().contains(&machine.id()) {
                machine.node.layout.mark_synced(current).await.expect("the tracker can be saved");
            }
        }
        for machine in &self.machines {
            until(async || machine.node.layout.current().live_versions().len() == 1).await;
        }
    }

    /// What table sync would bring: all block references of one machine, to another.
    pub async fn copy_references(&self, from: usize, to: usize) {
        let rows = Arc::new(std::sync::Mutex::new(Vec::new()));
        let found = rows.clone();
        let tables = &self.machines[from].node.garage.local().tables;
        let push = move |row| found.lock().expect("nothing panics while holding the rows").push(row);
        tables.scan::<BlockRefTable>(None, usize::MAX, push).await.expect("the rows can be read");
        let rows = std::mem::take(&mut *rows.lock().expect("nothing panics while holding the rows"));
        let entries = rows.iter().map(|row| BlockRefTable::entry(row, Mode::Replicate)).collect();
        let layout = self.machines[to].node.layout.current().version();
        self.machines[to].node.garage.local().tables.write(Write { layout, entries }).await.expect("the rows can be stored");
    }

    /// Every owner forgets its tombstones, whatever their age.
    pub async fn collect_tombstones(&self) {
        self.clock.advance_millis(1);
        let at_once = CollectAfter { soon: Duration::ZERO, late: Duration::ZERO };
        for machine in &self.machines {
            let (garage, tables) = (&machine.node.garage, machine.node.garage.local().tables.clone());
            let mut collector = Collector::new(tables, garage.cluster().clone(), self.clock.clone(), at_once);
            while collector.step().await.expect("a step of the collection") == Step::Busy {}
        }
    }

    pub fn garage(&self, machine: usize) -> &Garage {
        &self.machines[machine].node.garage
    }

    /// The machines that have a block.
    pub async fn holders(&self, block: BlockHash) -> Vec<usize> {
        let mut holders = Vec::new();
        for (index, machine) in self.machines.iter().enumerate() {
            if machine.node.garage.local().blocks.blocks.contains(block).await.expect("the disk answers") {
                holders.push(index);
            }
        }
        holders
    }

    /// Looks at everything due on a machine, twice as time allows things to follow from each other.
    pub async fn resync(&self, machine: usize) {
        for _round in 0..3 {
            while self.garage(machine).resync_due().await.expect("the queue can be read") > 0 {
                self.clock.advance_millis(1);
            }
        }
    }
}

impl Machine {
    pub fn id(&self) -> NodeId {
        self.node.mesh.node_id()
    }
}

/// Stores an object.
pub async fn store(garage: &Garage, bucket: BucketId, key: &str, body: Vec<u8>) {
    try_store(garage, bucket, key, body).await.expect("the object is stored");
}

/// Stores an object, or not.
pub async fn try_store(garage: &Garage, bucket: BucketId, key: &str, body: Vec<u8>) -> Result<(), ModelError> {
    let put = PutObject {
        bucket,
        key: ObjectKey::parse(key).expect("a key"),
        headers: Default::default(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    };
    garage.put_object(put, Box::new(InMemory::new(body))).await.map(drop)
}

/// Waits, in simulated time, until something is so.
pub async fn until(condition: impl AsyncFn() -> bool) {
    for _attempt in 0..100_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came true");
}

/// A body whose blocks all differ, and their names.
pub fn body(seed: u64, blocks: usize) -> (Vec<u8>, Vec<BlockHash>) {
    let mut body = vec![0; blocks * BLOCK_SIZE];
    garage_types::Random::fill(&SeededRandom::new(seed), &mut body);
    let hashes = body.chunks(BLOCK_SIZE).map(BlockHash::of).collect();
    (body, hashes)
}
