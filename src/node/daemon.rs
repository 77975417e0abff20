//! The daemon: one node in the real world, from its configuration until it is told to stop.

use std::future::Future;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use garage_block::{DataDirectory, StoreOptions, Usage};
use garage_db::DbError;
use garage_http::server::{self, BindAddress, BindError, ServerLimits};
use garage_http::sigv4::RegionPolicy;
use garage_model::background::{BackgroundSettings, ScrubStart};
use garage_model::garage::Settings;
use garage_net::identity::NetworkKey;
use garage_net::mux::Windows;
use garage_net::tcp::TcpTransport;
use garage_rpc::cluster::Timeouts;
use garage_rpc::mesh::MeshError;
use garage_s3::{S3Service, S3Settings};
use garage_types::clock::SystemClock;
use garage_types::config::{Compression, Config, DataDir, DataDirPurpose, Listen};
use garage_types::disk::{Disk, FileError, create_directories};
use garage_types::{Random, Room, chain};
use garage_worker::spawn::Spawn;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::addresses;
use crate::capabilities::{BlockingThreads, Tasks, system_random};
use crate::engine::{self, EngineError};
use crate::lost::{self, LostError, Starting};
use crate::node::{MeshSettings, Node, NodeError, NodeParts, NodeSettings};
use crate::real_disk::RealDisk;
use crate::room::{Ballast, Watched, keep_room, reserve};
use crate::single::{self, Credentials, DefaultBucket, SingleError};
use crate::snapshots::{SnapshotParts, Snapshots, take_regularly};
use crate::state::{self, StateError};

/// The part of the room for blocks that replies may take beside it.
const REPLIES_SHARE: u64 = 4;
/// Pages of listings made at once, for each processor, and at least. The longest take a processor for some 20 ms, in which the replies of
/// others wait; short ones wait for other nodes above all.
const PAGES_PER_PROCESSOR: usize = 4;
const PAGES_MIN: usize = 8;

/// What a daemon is started with.
pub struct DaemonOptions {
    pub config: Config,
    pub rpc_secret: [u8; 32],
    pub setup: Setup,
    /// Files and sockets that the process may have open.
    pub descriptors: u64,
}

/// What the daemon makes itself before it serves.
pub enum Setup {
    /// Nothing: the operator makes the layout, keys and buckets.
    ByOperator,
    /// A layout of this node alone, and if asked for a key and a bucket; each only when missing.
    SingleNode { default_bucket: Option<DefaultBucket> },
}

/// A daemon that serves.
#[derive(Clone, Debug)]
pub struct Ready {
    pub node: garage_types::NodeId,
    /// Where S3 is served, as bound.
    pub s3_address: Option<String>,
    pub region: String,
    pub credentials: Option<Credentials>,
}

/// Why the daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the operating system gives no random numbers")]
    Random(#[from] getrandom::Error),
    #[error("the metadata database cannot be closed")]
    Close(#[source] DbError),
    #[error(
        "the metadata database did not close within {CLOSE_TIMEOUT:?}: its disk does not answer; what was acknowledged is on it"
    )]
    CloseTimeout,
    #[error(
        "the metadata database {} cannot be opened (if it is damaged: other nodes have its rows, or a snapshot in {}; see doc/operations.md)",
        path.display(), snapshots.display()
    )]
    Open {
        path: PathBuf,
        snapshots: PathBuf,
        #[source]
        source: DbError,
    },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Lost(#[from] LostError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Single(#[from] SingleError),
    #[error("the S3 API cannot be served at `s3_api.api_bind_addr`")]
    BindS3(#[from] BindError),
    #[error("other nodes and the command line cannot be served at `rpc_bind_addr`")]
    Mesh(#[from] MeshError),
}

/// Block files read or written at once.
const BLOCK_FILES_IN_FLIGHT: usize = 16;

/// How long the database may take to close once no request is left.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long connections may take to say goodbye to other nodes.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Runs a node until it is told to stop, then stops it in order: no new requests, those in flight end, the background work stops, the
/// connections close, then the database.
///
/// `told_to_stop` waits until somebody says so. When it is said a second time, the requests in flight are cut.
/// `ready` is called once everything listens.
///
/// # Errors
/// [`DaemonError`]; nothing was served then, unless the error came while stopping.
pub async fn run(
    options: DaemonOptions,
    admin: impl FnOnce(&Node, &Snapshots) -> garage_rpc::endpoint::Router,
    ready: impl FnOnce(&Ready),
    mut told_to_stop: impl AsyncFnMut(),
) -> Result<(), DaemonError> {
    let DaemonOptions { config, rpc_secret, setup, descriptors } = options;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let chosen = engine::choose(&*disk, &config)?;
    let lock = state::lock(&*disk, &config.metadata_dir)?;
    for directory in &config.data_dirs {
        create_directories(&*disk, &directory.path)?;
    }
    let ballast = Arc::new(Ballast::of(disk.clone(), &config.metadata_dir, Room::default())?);
    ballast.make_way_for_start()?;
    let random: Arc<dyn Random> = Arc::new(system_random()?);
    let identity = state::identity(&*disk, &*random, &config.metadata_dir)?;
    let incarnation = state::next_start(&*disk, &config.metadata_dir)?;
    let node_id = identity.id();
    let offload = Arc::new(BlockingThreads::of_current_runtime());
    lost::refuse_to_begin_anew(
        &*disk,
        &Starting {
            node: node_id,
            start: incarnation,
            replication_factor: usize::from(config.replication.factor),
            database: &chosen.path,
            main_file: chosen.engine.main_file(),
            metadata_dir: &config.metadata_dir,
            snapshots_dir: &config.metadata_snapshots_dir,
        },
    )?;
    let db = chosen.open(ballast.clone(), ballast.room.clone(), offload.clone()).map_err(|source| DaemonError::Open {
        path: chosen.path.clone(),
        snapshots: config.metadata_snapshots_dir.clone(),
        source,
    })?;
    let (work, connections) = (Tasks::default(), Tasks::default());
    let spawn: Arc<dyn Spawn> = Arc::new(work.clone());
    let parts = NodeParts {
        identity,
        network_key: NetworkKey::from_bytes(rpc_secret),
        transport: Arc::new(transport(&config)),
        disk: disk.clone(),
        db: db.clone(),
        clock: Arc::new(SystemClock),
        random,
        offload: offload.clone(),
        spawn: spawn.clone(),
        connections: Arc::new(connections.clone()),
        settings: settings(&config, node_id, incarnation, data_reserve(&*disk, &config.data_dirs)?),
    };
    let node = Node::build(parts).await?;
    lost::forget_confirmation(&*disk, &config.metadata_dir)?;
    let mut credentials = None;
    if let Setup::SingleNode { default_bucket } = setup {
        single::ensure_layout(&node.layout, node_id, capacity(&*disk, &config.data_dirs)?).await?;
        if let Some(wanted) = default_bucket {
            credentials = Some(single::ensure_bucket(&node.garage, wanted).await?);
        }
    }
    if chosen.options.sync == garage_db::Durability::Unsynced {
        spawn.spawn("metadata sync", Box::pin(engine::sync_regularly(db.clone())));
    }
    let watched = Watched {
        db: db.clone(),
        ballast,
        data: config
            .data_dirs
            .iter()
            .filter(|directory| is_writable(directory))
            .map(|directory| directory.path.clone())
            .collect(),
        disk: disk.clone(),
        offload: offload.clone(),
    };
    if let Err(error) = watched.look().await {
        tracing::warn!(error = %chain(&error), "cannot see how full the disks are");
    }
    spawn.spawn("room on the disks", Box::pin(keep_room(watched)));
    let metadata_reserve =
        reserve(disk.space(&config.metadata_dir).map_err(FileError::of("measure", &config.metadata_dir))?.total);
    let snapshots = Snapshots::new(SnapshotParts {
        db: db.clone(),
        database: chosen.path.clone(),
        metadata_dir: config.metadata_dir.clone(),
        directory: config.metadata_snapshots_dir.clone(),
        reserve_bytes: metadata_reserve,
        disk: disk.clone(),
        clock: Arc::new(SystemClock),
        offload,
    });
    if let Some(interval) = config.metadata_auto_snapshot_interval {
        spawn.spawn("metadata snapshots", Box::pin(take_regularly(snapshots.clone(), interval)));
    }
    node.mesh.start(admin(&node, &snapshots));
    node.mesh.listen(&config.rpc.bind_addr.to_string()).await?;
    node.start_workers();
    let stop = CancellationToken::new();
    let s3 = match &config.s3_api.api_bind_addr {
        Some(listen) => {
            let limits = s3_limits(&config, descriptors);
            tracing::info!(descriptors, connections_max = limits.connections_max, "limits");
            Some(serve_s3(&node, &config, listen, limits, stop.clone()).await?)
        }
        None => None,
    };
    ready(&Ready {
        node: node_id,
        s3_address: s3.as_ref().map(|serving| serving.address.clone()),
        region: config.s3_api.region.clone(),
        credentials,
    });
    told_to_stop().await;
    tracing::info!(node = %node_id, "stopping");
    stop.cancel();
    if let Some(serving) = s3 {
        drain(serving.task, told_to_stop()).await;
    }
    // In this order, so that no work meets a closed connection or a closed database, and reports a failure where there is only a stop.
    let close = async {
        work.stop(Duration::ZERO).await;
        node.mesh.shutdown();
        connections.stop(GOODBYE_MAX).await;
        db.close().await
    };
    let closed = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
    closed.map_err(|_elapsed| DaemonError::CloseTimeout)?.map_err(DaemonError::Close)?;
    drop(lock);
    Ok(())
}

/// Replies that wait for their clients have a part of the room for blocks, beside it.
fn s3_limits(config: &Config, descriptors: u64) -> ServerLimits {
    let document_bytes_max = usize::try_from(config.block_ram_buffer_max / REPLIES_SHARE).unwrap_or(usize::MAX);
    ServerLimits { document_bytes_max, ..ServerLimits::default() }.for_descriptors(descriptors)
}

/// Waits until the requests in flight have ended, or `hurry` resolves.
async fn drain<D>(mut serving: JoinHandle<D>, hurry: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        ended = &mut serving => if let Err(error) = ended {
            tracing::error!(%error, "the S3 server ended badly");
        },
        () = hurry => {
            tracing::warn!("told to stop again: requests in flight are cut");
            // Its connections end with it.
            serving.abort();
            if let Err(error) = serving.await && !error.is_cancelled() {
                tracing::error!(%error, "the S3 server ended badly");
            }
        }
    }
}

/// A frontend at work.
struct Serving {
    address: String,
    task: JoinHandle<server::Drained>,
}

async fn serve_s3(
    node: &Node,
    config: &Config,
    listen: &Listen,
    limits: ServerLimits,
    stop: CancellationToken,
) -> Result<Serving, DaemonError> {
    let region = config.s3_api.region.clone();
    let region_policy = if config.s3_api.region_any { RegionPolicy::Any } else { RegionPolicy::Exactly(region.clone()) };
    let root_domains = config.s3_api.root_domain.iter().cloned().collect();
    let service = S3Service::new(node.garage.clone(), S3Settings { region, region_policy, root_domains });
    let address = match listen {
        Listen::Tcp(address) => BindAddress::Tcp(*address),
        Listen::Unix(path) => BindAddress::Unix { path: path.clone(), mode: 0o222 },
    };
    let listener = server::bind(&address).await?;
    let address = listener.local_address().map_or_else(|| listen.to_string(), |address| address.to_string());
    let random = node.garage.random().clone();
    let serve = async move { server::serve(listener, Arc::new(service), limits, random, stop.cancelled()).await };
    Ok(Serving { address, task: tokio::spawn(serve) })
}

fn transport(config: &Config) -> TcpTransport {
    let outgoing = config.rpc.bind_outgoing.then(|| config.rpc.bind_addr.ip());
    TcpTransport { outgoing }
}

fn settings(config: &Config, node: garage_types::NodeId, incarnation: u64, reserve_bytes: u64) -> NodeSettings {
    NodeSettings {
        metadata_dir: config.metadata_dir.clone(),
        replication_factor: usize::from(config.replication.factor),
        consistency: config.replication.consistency,
        timeouts: Timeouts::from_configured(config.rpc.timeout, config.rpc.ping_timeout),
        blocks: StoreOptions {
            node,
            metadata_dir: config.metadata_dir.clone(),
            directories: config.data_dirs.iter().map(data_directory).collect(),
            durability: if config.data_fsync { garage_block::Durability::Synced } else { garage_block::Durability::Unsynced },
            reserve_bytes,
            reads_in_flight_max: BLOCK_FILES_IN_FLIGHT,
            writes_in_flight_max: BLOCK_FILES_IN_FLIGHT,
        },
        store: Settings {
            block_size: usize::try_from(config.block_size).unwrap_or(usize::MAX),
            inline_max: usize::try_from(config.inline_threshold).unwrap_or(usize::MAX),
            compression: match config.compression {
                Compression::Off => garage_block::Compression::Off,
                Compression::Zstd(level) => garage_block::Compression::Zstd { level },
            },
            punycode: config.punycode,
            block_ram_buffer_max: usize::try_from(config.block_ram_buffer_max).unwrap_or(usize::MAX),
            pages_at_once: PAGES_MIN.max(PAGES_PER_PROCESSOR * std::thread::available_parallelism().map_or(1, NonZero::get)),
            block_release_delay: config.block_release_delay,
            incarnation,
        },
        collect_after: garage_table::collect::CollectAfter::default(),
        background: BackgroundSettings {
            resync_bandwidth_limit: config.resync_bandwidth_limit,
            scrub: if config.disable_scrub { ScrubStart::OnCommand } else { ScrubStart::Automatic },
        },
        mesh: MeshSettings {
            public_addresses: addresses::advertised(&config.rpc, &addresses::interfaces()),
            bootstrap_peers: config.rpc.bootstrap_peers.clone(),
            windows: Windows::Grow,
        },
    }
}

fn data_directory(directory: &DataDir) -> DataDirectory {
    let usage = match directory.purpose {
        DataDirPurpose::Writable { capacity_bytes } => Usage::Writable { capacity: capacity_bytes.unwrap_or(1) },
        DataDirPurpose::ReadOnly => Usage::ReadOnly,
    };
    DataDirectory { path: directory.path.clone(), usage }
}

fn is_writable(directory: &DataDir) -> bool {
    matches!(directory.purpose, DataDirPurpose::Writable { .. })
}

/// What is left free on each data disk: what suits the smallest.
fn data_reserve(disk: &dyn Disk, directories: &[DataDir]) -> Result<u64, FileError> {
    let mut smallest = u64::MAX;
    for directory in directories.iter().filter(|directory| is_writable(directory)) {
        let total = disk.space(&directory.path).map_err(FileError::of("measure", &directory.path))?.total;
        smallest = smallest.min(reserve(total));
    }
    Ok(smallest)
}

/// What a node alone may store: what its directories are given, or the size of the file system below the only one.
fn capacity(disk: &dyn Disk, directories: &[DataDir]) -> Result<u64, FileError> {
    let mut total: u64 = 0;
    for directory in directories {
        let bytes = match directory.purpose {
            DataDirPurpose::ReadOnly => 0,
            DataDirPurpose::Writable { capacity_bytes: Some(bytes) } => bytes,
            DataDirPurpose::Writable { capacity_bytes: None } => {
                disk.space(&directory.path).map_err(FileError::of("measure", &directory.path))?.total
            }
        };
        total = total.saturating_add(bytes);
    }
    Ok(total.max(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use garage_types::config::{DataDir, DataDirPurpose};
    use garage_types::disk::Disk;
    use garage_types::memory_disk::MemoryDisk;

    use super::{capacity, drain};

    #[tokio::test]
    async fn a_drain_ends_at_once_when_somebody_hurries_and_takes_its_connections_along() {
        let (held, dropped) = tokio::sync::oneshot::channel::<()>();
        let stuck = async move {
            let _held = held;
            std::future::pending::<()>().await
        };
        drain(tokio::spawn(stuck), std::future::ready(())).await;
        assert!(dropped.await.is_err(), "what it held is gone");
        drain(tokio::spawn(async {}), std::future::pending()).await;
    }

    #[test]
    fn a_node_alone_stores_what_its_directories_are_given() {
        let disk = MemoryDisk::new();
        let whole = disk.space(&PathBuf::from("/")).unwrap().total;
        let of = |purposes: &[DataDirPurpose]| {
            let directories: Vec<DataDir> =
                purposes.iter().map(|purpose| DataDir { path: PathBuf::from("/"), purpose: *purpose }).collect();
            capacity(&disk, &directories).unwrap()
        };
        let given = |bytes| DataDirPurpose::Writable { capacity_bytes: Some(bytes) };
        assert_eq!(of(&[DataDirPurpose::Writable { capacity_bytes: None }]), whole);
        assert_eq!(of(&[given(1 << 30), given(3 << 30), DataDirPurpose::ReadOnly]), 4 << 30);
    }
}
