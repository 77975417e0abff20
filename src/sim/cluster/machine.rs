//! One simulated machine: what outlives its node (disk, database, clock, randomness), and the tasks that die with it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::future::BoxFuture;
use garage_block::{Compression, DataDirectory, StoreOptions, Usage};
use garage_db::{Db, MemoryEngine};
use garage_model::Garage;
use garage_model::background::BackgroundSettings;
use garage_model::garage::Settings;
use garage_net::identity::NetworkKey;
use garage_net::mux::Windows;
use garage_node::node::{MeshSettings, Node, NodeError, NodeParts, NodeSettings};
use garage_node::snapshots::outdate_copies;
use garage_node::state;
use garage_rpc::cluster::Timeouts;
use garage_rpc::endpoint::Router;
use garage_rpc::peers::PeerAddress;
use garage_rpc::quorum::ConsistencyMode;
use garage_types::disk::{Disk, create_directories};
use garage_types::memory_disk::MemoryDisk;
use garage_types::names::Punycode;
use garage_types::offload::Inline;
use garage_types::random::SeededRandom;
use garage_types::{Clock, NodeId, Offload, Random, Timestamp};
use garage_worker::spawn::Spawn;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::frontend;
use super::network::{Death, Network};
use crate::world::{BLOCK_SIZE, COLLECT_AFTER, INLINE_MAX};

/// Virtual time, plus how far this machine's clock is off.
pub struct MachineClock {
    started: Instant,
    off_by_ms: AtomicI64,
}

const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(60);

const EPOCH_MS: u64 = 1_700_000_000_000;

impl MachineClock {
    fn new() -> Self {
        MachineClock { started: Instant::now(), off_by_ms: AtomicI64::new(0) }
    }

    pub fn set_off_by_ms(&self, off_by_ms: i64) {
        self.off_by_ms.store(off_by_ms, Ordering::Relaxed);
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        let elapsed = self.started.elapsed().as_millis() as u64;
        let off_by_ms = self.off_by_ms.load(Ordering::Relaxed);
        Timestamp::from_millis((EPOCH_MS + elapsed).saturating_add_signed(off_by_ms))
    }
}

/// Tasks that die together.
#[derive(Default)]
pub struct Tasks(Mutex<Vec<AbortHandle>>);

impl Tasks {
    fn add(&self, handle: AbortHandle) {
        let mut tasks = self.0.lock().unwrap();
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(handle);
    }

    fn kill(&self) {
        self.0.lock().unwrap().drain(..).for_each(|task| task.abort());
    }
}

impl Spawn for Tasks {
    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) {
        self.add(tokio::spawn(task).abort_handle());
    }
}

/// A disk that takes its time. Work that has not been done when the machine dies is never done.
struct SlowDisk {
    tasks: Arc<Tasks>,
    random: Arc<SeededRandom>,
    delay_max_us: Arc<AtomicU64>,
}

impl Offload for SlowDisk {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        let max = self.delay_max_us.load(Ordering::Relaxed);
        if max == 0 {
            return work();
        }
        let delay = Duration::from_micros(self.random.below(max));
        let task = async move {
            tokio::time::sleep(delay).await;
            work();
        };
        self.tasks.add(tokio::spawn(task).abort_handle());
    }
}

/// What is configured on every machine alike.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub replication_factor: usize,
    pub consistency: ConsistencyMode,
    pub data_durability: garage_block::Durability,
    pub metadata_durability: garage_db::Durability,
    pub sizes: Sizes,
}

/// Where a body is cut, and what of it stays in memory; in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub block: usize,
    pub inline_max: usize,
    pub buffer_max: usize,
}

impl Sizes {
    /// So small that the bodies of a workload have several blocks.
    pub const SMALL: Sizes = Sizes { block: BLOCK_SIZE, inline_max: INLINE_MAX, buffer_max: 1 << 20 };
    /// As a daemon has them by default.
    pub const USUAL: Sizes = Sizes { block: 1 << 20, inline_max: 8192, buffer_max: 256 << 20 };
}

pub struct Machine {
    pub number: usize,
    pub id: NodeId,
    pub disk: MemoryDisk,
    pub engine: MemoryEngine,
    pub clock: Arc<MachineClock>,
    network: Network,
    setup: Setup,
    random: Arc<SeededRandom>,
    disk_delay_max_us: Arc<AtomicU64>,
    bootstrap: Mutex<Vec<PeerAddress>>,
    running: Mutex<Option<Running>>,
}

#[derive(Clone)]
struct Running {
    node: Node,
    tasks: Arc<Tasks>,
}

/// Why an operation on a machine has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The machine was off.
    Off,
    /// The machine died, or the client's patience ended: nobody knows how far it came.
    Broken,
}

impl Machine {
    pub fn new(number: usize, seed: u64, network: Network, setup: Setup) -> Self {
        let disk = MemoryDisk::new();
        let random = Arc::new(SeededRandom::new(seed));
        create_directories(&disk, &metadata_dir()).unwrap();
        create_directories(&disk, &data_dir()).unwrap();
        let id = state::identity(&disk, &*random, &metadata_dir()).unwrap().id();
        let engine = MemoryEngine::new();
        engine.set_durability(setup.metadata_durability);
        Machine {
            number,
            id,
            disk,
            engine,
            clock: Arc::new(MachineClock::new()),
            network,
            setup,
            random,
            disk_delay_max_us: Arc::default(),
            bootstrap: Mutex::default(),
            running: Mutex::default(),
        }
    }

    pub fn address(&self) -> PeerAddress {
        PeerAddress { node: self.id, address: Network::address(self.number).parse().unwrap() }
    }

    pub fn meets(&self, peers: Vec<PeerAddress>) {
        *self.bootstrap.lock().unwrap() = peers;
    }

    pub fn set_disk_delay_max(&self, delay: Duration) {
        self.disk_delay_max_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn node(&self) -> Option<Node> {
        self.running.lock().unwrap().as_ref().map(|running| running.node.clone())
    }

    pub fn garage(&self) -> Option<Garage> {
        self.node().map(|node| node.garage)
    }

    /// Starts the machine's node. Whatever happened before, it must start.
    pub async fn start(&self) {
        self.try_start().await.unwrap();
    }

    /// As [`Machine::start`], where it may be kept from it.
    ///
    /// # Errors
    /// What the node says; the machine stays off.
    pub async fn try_start(&self) -> Result<(), NodeError> {
        let identity = state::identity(&self.disk, &*self.random, &metadata_dir()).unwrap();
        assert_eq!(identity.id(), self.id, "machine {} lost its identity", self.number);
        let incarnation = state::next_start(&self.disk, &metadata_dir()).unwrap();
        let tasks = Arc::new(Tasks::default());
        let offload =
            SlowDisk { tasks: tasks.clone(), random: self.random.clone(), delay_max_us: self.disk_delay_max_us.clone() };
        let parts = NodeParts {
            identity,
            network_key: NetworkKey::from_bytes([7; 32]),
            transport: self.network.of(self.number),
            disk: Arc::new(self.disk.clone()) as Arc<dyn Disk>,
            db: Db::open_memory(self.engine.clone()).unwrap(),
            clock: self.clock.clone(),
            random: self.random.clone() as Arc<dyn Random>,
            offload: Arc::new(offload),
            spawn: tasks.clone(),
            connections: tasks.clone(),
            settings: self.settings(incarnation),
        };
        let node = Node::build(parts).await?;
        node.mesh.start(Router::default());
        node.mesh.listen(&Network::address(self.number)).await.unwrap();
        node.start_workers();
        let random = self.random.clone() as Arc<dyn Random>;
        frontend::serve(&self.network, self.number, node.garage.clone(), random, tasks.clone()).await;
        *self.running.lock().unwrap() = Some(Running { node, tasks });
        Ok(())
    }

    fn settings(&self, incarnation: u64) -> NodeSettings {
        NodeSettings {
            metadata_dir: metadata_dir(),
            replication_factor: self.setup.replication_factor,
            consistency: self.setup.consistency,
            timeouts: Timeouts::default(),
            blocks: StoreOptions {
                node: self.id,
                metadata_dir: metadata_dir(),
                directories: vec![DataDirectory { path: data_dir(), usage: Usage::Writable { capacity: 1 } }],
                durability: self.setup.data_durability,
                reserve_bytes: 0,
                reads_in_flight_max: 4,
                writes_in_flight_max: 4,
            },
            store: Settings {
                block_release_delay: std::time::Duration::from_secs(600),
                block_size: self.setup.sizes.block,
                inline_max: self.setup.sizes.inline_max,
                compression: Compression::Off,
                punycode: Punycode::Refused,
                block_ram_buffer_max: self.setup.sizes.buffer_max,
                pages_at_once: 8,
                incarnation,
            },
            background: BackgroundSettings::default(),
            collect_after: COLLECT_AFTER,
            mesh: MeshSettings {
                public_addresses: vec![Network::address(self.number)],
                bootstrap_peers: self.bootstrap.lock().unwrap().clone(),
                windows: Windows::Fixed,
            },
        }
    }

    /// Every task ends where it is, and what was not synced is lost.
    pub fn crash(&self, death: Death) {
        let Some(running) = self.running.lock().unwrap().take() else { return };
        self.network.machine_dies(self.number, death);
        running.tasks.kill();
        self.disk.crash();
        self.engine.crash();
    }

    /// A copy of the database, made as the daemon makes snapshots; `None` when the machine is off or dies meanwhile.
    pub async fn snapshot(&self) -> Option<MemoryEngine> {
        let (engine, disk) = (self.engine.clone(), Arc::new(self.disk.clone()));
        let work = |garage: Garage| async move {
            let copy = engine.copy();
            outdate_copies(garage.local().tables.db(), disk, &Inline, metadata_dir()).await.map(|()| copy)
        };
        self.run(SNAPSHOT_PATIENCE, work).await.ok().and_then(Result::ok)
    }

    /// The content of another database takes the place of this machine's. Not while it runs.
    pub fn put_back(&self, engine: &MemoryEngine) {
        self.engine.become_copy_of(engine);
        self.engine.set_durability(self.setup.metadata_durability);
    }

    /// Its files and its database can be read and written again.
    pub fn end_disk_errors(&self) {
        self.disk.failing(None);
        self.engine.fail_reads(false);
    }

    /// Starts the machine. Its disks answer: a node that cannot read its state does not start, and its supervisor tries again.
    pub async fn restart(&self) {
        self.end_disk_errors();
        self.network.machine_returns(self.number);
        // What the dead node's tasks drop is dropped before the new one starts.
        tokio::task::yield_now().await;
        self.start().await;
    }

    /// Runs an operation as a task of the machine, which ends with it. The client waits for `patience` and then hangs up.
    pub async fn run<T, F>(&self, patience: Duration, work: impl FnOnce(Garage) -> F) -> Result<T, NoAnswer>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let running = self.running.lock().unwrap().clone().ok_or(NoAnswer::Off)?;
        let (sender, answer) = oneshot::channel();
        let work = work(running.node.garage);
        let task = async move { drop(sender.send(work.await)) };
        let handle = tokio::spawn(task).abort_handle();
        running.tasks.add(handle.clone());
        let answer = tokio::time::timeout(patience, answer).await;
        handle.abort();
        answer.ok().and_then(Result::ok).ok_or(NoAnswer::Broken)
    }
}

fn metadata_dir() -> PathBuf {
    PathBuf::from("/meta")
}

pub fn data_dir() -> PathBuf {
    PathBuf::from("/data")
}
