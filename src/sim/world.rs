//! One node's surroundings, which outlive the node.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use garage_block::{Compression, DataDirectory, Durability, StoreOptions, Usage};
use garage_db::{Db, MemoryEngine};
use garage_model::background::BackgroundSettings;
use garage_model::garage::Settings;
use garage_net::MemoryNetwork;
use garage_net::identity::NetworkKey;
use garage_net::mux::Windows;
use garage_node::node::{MeshSettings, Node, NodeParts, NodeSettings};
use garage_node::{single, state};
use garage_rpc::cluster::Timeouts;
use garage_rpc::quorum::ConsistencyMode;
use garage_table::collect::CollectAfter;
use garage_types::clock::ManualClock;
use garage_types::disk::{Disk, create_directories};
use garage_types::memory_disk::MemoryDisk;
use garage_types::names::Punycode;
use garage_types::offload::Inline;
use garage_types::random::SeededRandom;
use garage_types::{Power, Random, Timestamp};
use garage_worker::spawn::Spawn;
use tokio::task::AbortHandle;

/// Small, so that objects of a few hundred bytes have several blocks.
pub const BLOCK_SIZE: usize = 64;
pub const INLINE_MAX: usize = 16;

/// So short that collections happen between faults.
pub const COLLECT_AFTER: CollectAfter = CollectAfter { soon: Duration::from_secs(2), late: Duration::from_secs(60) };

/// Tasks that die together.
#[derive(Default)]
struct Tasks(Mutex<Vec<AbortHandle>>);

impl Spawn for Tasks {
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        let handle = tokio::spawn(task).abort_handle();
        self.0.lock().expect("nothing panics while holding the tasks").push(handle);
    }
}

/// The disk, the database, the clock and the randomness of one simulated machine.
pub struct World {
    pub disk: MemoryDisk,
    pub engine: MemoryEngine,
    pub clock: Arc<ManualClock>,
    pub random: Arc<SeededRandom>,
    /// Of the disk and the database together.
    pub power: Power,
    tasks: Mutex<Arc<Tasks>>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let (disk, engine, power) = (MemoryDisk::new(), MemoryEngine::new(), Power::default());
        disk.run_on(power.clone());
        engine.run_on(power.clone());
        World {
            disk,
            engine,
            power,
            clock: Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000))),
            random: Arc::new(SeededRandom::new(seed)),
            tasks: Mutex::default(),
        }
    }

    /// The power goes: every task ends where it is, and what was not synced is lost.
    pub fn cut_power(&self) {
        self.end_tasks();
        self.disk.crash();
        self.engine.crash();
    }

    /// As [`World::cut_power`], but by chance the disk keeps some of what was not synced. The power is back afterwards.
    pub fn end_power_cut(&self, random: &dyn Random) {
        self.end_tasks();
        self.disk.crash_keeping(random);
        self.engine.crash();
        self.power.restore();
    }

    fn end_tasks(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().expect("nothing panics while holding the tasks"));
        for task in tasks.0.lock().expect("nothing panics while holding the tasks").drain(..) {
            task.abort();
        }
    }

    /// Starts the machine's node, with a layout of it alone.
    ///
    /// # Panics
    /// When the node does not start: after whatever happened, it must.
    pub async fn start(&self) -> Node {
        self.try_start().await.expect("the node starts")
    }

    /// As [`World::start`].
    ///
    /// # Errors
    /// What keeps the node from starting.
    pub async fn try_start(&self) -> Result<Node, Box<dyn Error>> {
        let metadata_dir = PathBuf::from("/meta");
        create_directories(&self.disk, &metadata_dir)?;
        let identity = state::identity(&self.disk, &*self.random, &metadata_dir)?;
        let incarnation = state::next_start(&self.disk, &metadata_dir)?;
        let id = identity.id();
        let data = PathBuf::from("/data");
        create_directories(&self.disk, &data)?;
        let tasks = self.tasks.lock().expect("nothing panics while holding the tasks").clone();
        let parts = NodeParts {
            identity,
            network_key: NetworkKey::from_bytes([7; 32]),
            transport: Arc::new(MemoryNetwork::default()),
            disk: Arc::new(self.disk.clone()) as Arc<dyn Disk>,
            db: Db::open_memory(self.engine.clone())?,
            clock: self.clock.clone(),
            random: self.random.clone() as Arc<dyn Random>,
            offload: Arc::new(Inline),
            spawn: tasks.clone(),
            connections: tasks,
            settings: NodeSettings {
                metadata_dir: metadata_dir.clone(),
                replication_factor: 1,
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
                    block_release_delay: Duration::from_secs(600),
                    block_size: BLOCK_SIZE,
                    inline_max: INLINE_MAX,
                    compression: Compression::Zstd { level: 1 },
                    punycode: Punycode::Refused,
                    block_ram_buffer_max: 1 << 20,
                    pages_at_once: 8,
                    incarnation,
                },
                collect_after: COLLECT_AFTER,
                background: BackgroundSettings::default(),
                mesh: MeshSettings { public_addresses: Vec::new(), bootstrap_peers: Vec::new(), windows: Windows::Fixed },
            },
        };
        let node = Node::build(parts).await?;
        single::ensure_layout(&node.layout, id, 1 << 30).await?;
        Ok(node)
    }
}
