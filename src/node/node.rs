//! One node, built from its parts: the same in the daemon and in the simulator.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use garage_block::scrub::Scrub;
use garage_block::{BlockError, LocalStore, OpenError, StoreOptions};
use garage_db::{Db, DbError};
use garage_model::Garage;
use garage_model::background::{Background, BackgroundSettings, MayDelete};
use garage_model::block_need::{AskNeeds, GiveBlock};
use garage_model::blocks::{GetBlock, PutBlock, ReferBlock};
use garage_model::closing::{AskClosing, AskLive};
use garage_model::count::CountBucket;
use garage_model::garage::{LocalModel, LocalParts, Parts, Settings};
use garage_model::name_claims::AskName;
use garage_model::open_versions::AskOpenVersions;
use garage_model::state_file::{StateDirectory, StateFileError};
use garage_model::working::AskWorking;
use garage_net::identity::{Identity, NetworkKey};
use garage_net::mux::Windows;
use garage_net::transport::Transport;
use garage_rpc::cluster::{Cluster, Timeouts};
use garage_rpc::endpoint::Router;
use garage_rpc::layout::gossip::{CompareLayouts, LayoutGossip, MergeLayout, keep_equal};
use garage_rpc::layout::manager::LayoutSetup;
use garage_rpc::layout::{LayoutError, LayoutManager, Leftovers, SharedStanding, Standing, StartFacts, VersionKey};
use garage_rpc::mesh::{Mesh, MeshError, MeshOptions, Timing};
use garage_rpc::peers::PeerAddress;
use garage_rpc::quorum::ConsistencyMode;
use garage_table::collect::{AdvanceEpoch, CollectAfter, Collector, DropTombstones, HoldTombstones};
use garage_table::damage::RowRepair;
use garage_table::starts::start_facts;
use garage_table::store::{LiveLayouts, Vouch};
use garage_table::sync::wire::{AskDigests, Exchange};
use garage_table::sync::worker::{SyncControl, SyncWorker};
use garage_table::wire::{AskEpoch, Range, Read, Write};
use garage_table::{TableError, TableStore};
use garage_types::offload::{self, Lost};
use garage_types::{Clock, Disk, NodeId, Offload, Random};
use garage_worker::Workers;
use garage_worker::spawn::Spawn;

use crate::state::{self, StateError};

/// What a node is built from.
pub struct NodeParts {
    pub identity: Identity,
    pub network_key: NetworkKey,
    pub transport: Arc<dyn Transport>,
    pub disk: Arc<dyn Disk>,
    pub db: Db,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub offload: Arc<dyn Offload>,
    pub spawn: Arc<dyn Spawn>,
    /// For connections to other nodes, which outlive the rest: they say goodbye.
    pub connections: Arc<dyn Spawn>,
    pub settings: NodeSettings,
}

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    pub metadata_dir: PathBuf,
    pub replication_factor: usize,
    pub consistency: ConsistencyMode,
    pub timeouts: Timeouts,
    pub blocks: StoreOptions,
    pub store: Settings,
    pub background: BackgroundSettings,
    pub mesh: MeshSettings,
    /// How old tombstones are when they are collected.
    pub collect_after: CollectAfter,
}

/// Addresses and peers.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    pub public_addresses: Vec<String>,
    pub bootstrap_peers: Vec<PeerAddress>,
    pub windows: Windows,
}

/// Bytes of requests from other nodes that may be in memory at once.
const INCOMING_BYTES_MAX: usize = 256 << 20;

/// Why a node cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the metadata database cannot be opened")]
    Db(#[from] DbError),
    #[error("the metadata cannot be read")]
    Tables(#[from] TableError),
    #[error("the block store cannot be opened")]
    Blocks(#[from] OpenError),
    #[error("the blocks cannot be listed")]
    ListBlocks(#[from] BlockError),
    #[error("the cluster layout cannot be opened")]
    Layout(#[from] LayoutError),
    #[error("the list of peers cannot be opened")]
    Mesh(#[from] MeshError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the start was interrupted")]
    Interrupted(#[from] Lost),
    #[error("the state of the background jobs cannot be opened")]
    Background(#[from] StateFileError),
}

/// A running node.
#[derive(Clone)]
pub struct Node {
    pub mesh: Mesh,
    pub layout: Arc<LayoutManager>,
    pub garage: Garage,
    /// Every background job.
    pub workers: Workers,
    /// Asks for a comparison of all rows with the other owners.
    pub sync: SyncControl,
    start: u64,
    collect_after: CollectAfter,
}

struct Live(Arc<LayoutManager>);

impl LiveLayouts for Live {
    fn oldest_live(&self) -> u64 {
        self.0.current().live_versions().first().map_or(0, |key| key.number)
    }

    fn live(&self) -> Vec<VersionKey> {
        self.0.current().live_versions().to_vec()
    }

    fn admit(&self, writer: NodeId, version: u64) -> Option<Vouch> {
        self.0.admit(writer, version).map(|permit| Box::new(permit) as Vouch)
    }

    fn is_rebuilding(&self) -> bool {
        self.0.standing().is_rebuilding()
    }

    fn may_collect(&self) -> bool {
        !matches!(self.0.standing().get(), Standing::Rebuilding | Standing::Accepted)
    }
}

/// Blocks are deleted by a node that knows what refers to them, or that no layout counts on: that one goes by its owners' word alone.
struct AsStanding {
    layout: Arc<LayoutManager>,
    me: NodeId,
}

impl MayDelete for AsStanding {
    fn may_delete_blocks(&self) -> bool {
        match self.layout.standing().get() {
            Standing::Whole => true,
            Standing::Fresh => {
                let layout = self.layout.current();
                !layout.is_empty() && !layout.all_nodes().contains(&self.me)
            }
            Standing::Rebuilding | Standing::Accepted => false,
        }
    }

    fn knows_references(&self) -> bool {
        self.layout.standing().get() == Standing::Whole
    }
}

/// Where no other node has this one's rows: whether its database is the one that its blocks were written under.
async fn note_lost_rows(local: &LocalModel, facts: StartFacts, me: NodeId) -> Result<(), NodeError> {
    local.tables.note_lost_rows(facts, local.blocks_on_disk().await?).await?;
    if local.tables.lacks_rows() {
        tracing::warn!(node = %me, "the database is new, or older than the files beside it, and nobody else has its rows: what was acknowledged under the other one is lost unless that is put back; blocks that this one does not know are kept (garage repair --yes lost-blocks gives them up)");
    }
    Ok(())
}

impl Node {
    /// Opens everything a node has and joins it together. Nothing listens yet.
    ///
    /// # Errors
    /// [`NodeError`]: a part of the node's own state that cannot be read.
    pub async fn build(parts: NodeParts) -> Result<Node, NodeError> {
        let NodeParts { identity, network_key, transport, disk, db, clock, random, offload, spawn, connections, settings } =
            parts;
        let start = settings.store.incarnation;
        let facts = start_facts(&db, start).await?;
        let setup = LayoutSetup {
            me: identity.id(),
            replication_factor: settings.replication_factor,
            metadata_dir: settings.metadata_dir.clone(),
            disk: disk.clone(),
            offload: offload.clone(),
            clock: clock.clone(),
            start: facts,
            leftovers: Leftovers::SortedOutFor(BTreeSet::new()),
        };
        let layout = Arc::new(LayoutManager::open(setup).await?);
        let blocks = LocalStore::open(disk.clone(), offload.clone(), settings.blocks).await?;
        let live = Arc::new(Live(layout.clone()));
        let may_delete: Arc<dyn MayDelete> = Arc::new(AsStanding { layout: layout.clone(), me: identity.id() });
        let local = LocalModel::open(LocalParts {
            db: &db,
            blocks,
            clock: clock.clone(),
            layouts: live,
            layout: layout.clone(),
            offload: offload.clone(),
            may_delete: may_delete.clone(),
            block_release_delay: settings.store.block_release_delay,
        })?;
        let directory = StateDirectory { disk: disk.clone(), offload: offload.clone(), path: settings.metadata_dir.clone() };
        let background =
            Background::open(&directory, settings.background, may_delete, Scrub::new(clock.now(), random.u64())).await?;
        if local.blocks.blocks.lacks_blocks() {
            background.look_at_all_blocks().await?;
        }

        if settings.replication_factor == 1 {
            note_lost_rows(&local, facts, identity.id()).await?;
        }
        settle_start(&local.tables, layout.standing(), identity.id(), start).await?;
        {
            let (disk, metadata_dir) = (disk.clone(), settings.metadata_dir.clone());
            offload::offload(&*offload, move || state::count_start(&*disk, &metadata_dir, start)).await??;
        }

        let router = Router::builder()
            .add::<Write>(Arc::new(local.tables.clone()))
            .add::<Read>(Arc::new(local.tables.clone()))
            .add::<Range>(Arc::new(local.tables.clone()))
            .add::<AskEpoch>(Arc::new(local.tables.clone()))
            .add::<AskDigests>(Arc::new(local.tables.clone()))
            .add::<Exchange>(Arc::new(local.tables.clone()))
            .add::<HoldTombstones>(Arc::new(local.tables.clone()))
            .add::<AdvanceEpoch>(Arc::new(local.tables.clone()))
            .add::<DropTombstones>(Arc::new(local.tables.clone()))
            .add::<PutBlock>(Arc::new(local.blocks.clone()))
            .add::<ReferBlock>(Arc::new(local.blocks.clone()))
            .add::<GetBlock>(Arc::new(local.blocks.clone()))
            .add::<CountBucket>(Arc::new(local.count_service()))
            .add::<AskNeeds>(Arc::new(local.blocks.clone()))
            .add::<GiveBlock>(Arc::new(local.blocks.clone()))
            .add::<AskOpenVersions>(Arc::new(local.blocks.clone()))
            .add::<AskWorking>(Arc::new(local.working.clone()))
            .add::<AskName>(Arc::new(local.name_service()))
            .add::<AskClosing>(Arc::new(local.closing_service()))
            .add::<AskLive>(Arc::new(local.closing_service()))
            .add::<CompareLayouts>(Arc::new(LayoutGossip(layout.clone())))
            .add::<MergeLayout>(Arc::new(LayoutGossip(layout.clone())))
            .build();
        let options = MeshOptions {
            identity,
            network_key,
            transport,
            clock: clock.clone(),
            random: random.clone(),
            spawn: connections,
            disk,
            offload: offload.clone(),
            peer_list: settings.metadata_dir.join("peer_list"),
            public_addresses: settings.mesh.public_addresses,
            bootstrap: settings.mesh.bootstrap_peers,
            consistency: settings.consistency,
            timing: Timing { ping_timeout: settings.timeouts.ping, ..Timing::default() },
            windows: settings.mesh.windows,
            incoming_bytes_max: INCOMING_BYTES_MAX,
        };
        let mesh = Mesh::open(options, router).await?;
        let manager = layout.clone();
        spawn.spawn("layout acknowledgement", Box::pin(async move { manager.acknowledge_as_writes_end().await }));
        let gossip = keep_equal(mesh.clone(), layout.clone(), random.clone());
        spawn.spawn("layout gossip", Box::pin(gossip));
        let workers = Workers::new(spawn.clone(), clock.clone());
        let cluster = Cluster::new(mesh.clone(), layout.clone(), settings.timeouts, spawn);
        let sync = SyncControl::default();
        let parts = Parts {
            cluster,
            clock,
            random,
            offload,
            workers: workers.clone(),
            sync: sync.clone(),
            settings: settings.store,
            background,
            local,
        };
        Ok(Node { mesh, layout, garage: Garage::new(parts), workers, sync, start, collect_after: settings.collect_after })
    }

    /// Starts the background work; to be called once the mesh has started.
    pub fn start_workers(&self) {
        let cluster = self.garage.cluster().clone();
        let tables = self.garage.local().tables.clone();
        let (standing, start) = (self.layout.standing().clone(), self.start);
        let record = record_start_once_settled(tables.clone(), standing, start);
        cluster.spawn().spawn("record of this start", Box::pin(record));
        let clock = self.garage.clock().clone();
        self.workers.start(Collector::new(tables.clone(), cluster.clone(), clock, self.collect_after));
        self.workers.start(RowRepair::new(tables.clone(), cluster.clone()));
        self.workers.start(SyncWorker::new(tables, cluster, self.garage.random().clone(), self.sync.clone()));
        self.garage.start_workers();
    }
}

/// Acts on what the start of this node means, before anything is served.
async fn settle_start(tables: &TableStore, standing: &SharedStanding, node: NodeId, start: u64) -> Result<(), TableError> {
    tables.ensure_digests().await?;
    tables.adopt_older_set_aside().await?;
    match standing.get() {
        Standing::Whole | Standing::Accepted => tables.record_start(start).await,
        Standing::Rebuilding if tables.is_accepting().await? => {
            tracing::warn!(%node, "the operator declared this node's database whole: its rows are being brought back");
            tables.accept_database().await?;
            standing.set(Standing::Accepted);
            tables.record_start(start).await
        }
        Standing::Rebuilding => {
            tracing::warn!(%node, "the database is not the one this node had; its rows are fetched from the other owners, and until then this node answers no reads");
            tables.begin_rebuilding(start).await
        }
        Standing::Fresh => Ok(()),
    }
}

/// A new database is settled by the first layout.
async fn record_start_once_settled(tables: TableStore, standing: SharedStanding, start: u64) {
    loop {
        let changed = standing.changed();
        let recorded = match standing.get() {
            Standing::Fresh => {
                changed.await;
                continue;
            }
            Standing::Whole | Standing::Accepted => tables.record_start(start).await,
            Standing::Rebuilding => tables.begin_rebuilding(start).await,
        };
        if let Err(error) = recorded {
            // The next start finds no record, takes the database for new and rebuilds it: safe, only slow.
            tracing::error!(error = %garage_types::chain(&error), "this start could not be recorded");
        }
        return;
    }
}
