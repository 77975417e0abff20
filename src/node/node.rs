//! One node, built from its parts: the same in the daemon and in the simulator.

use std::path::PathBuf;
use std::sync::Arc;

use garage_block::{LocalStore, OpenError, StoreOptions};
use garage_db::{Db, DbError};
use garage_model::Garage;
use garage_model::blocks::{GetBlock, PutBlock, ReferBlock};
use garage_model::count::CountBucket;
use garage_model::garage::{LocalModel, Parts, Settings};
use garage_net::identity::{Identity, NetworkKey};
use garage_net::mux::Windows;
use garage_net::transport::Transport;
use garage_rpc::cluster::{Cluster, Timeouts};
use garage_rpc::endpoint::Router;
use garage_rpc::layout::gossip::{CompareLayouts, LayoutGossip, MergeLayout, keep_equal};
use garage_rpc::layout::manager::LayoutSetup;
use garage_rpc::layout::{LayoutError, LayoutManager};
use garage_rpc::mesh::{Mesh, MeshError, MeshOptions, Timing};
use garage_rpc::peers::PeerAddress;
use garage_rpc::quorum::ConsistencyMode;
use garage_table::store::LiveLayouts;
use garage_table::wire::{Range, Read, Write};
use garage_types::{Clock, Disk, Offload, Random};
use garage_worker::spawn::Spawn;

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
    pub mesh: MeshSettings,
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
    #[error("the block store cannot be opened")]
    Blocks(#[from] OpenError),
    #[error("the cluster layout cannot be opened")]
    Layout(#[from] LayoutError),
    #[error("the list of peers cannot be opened")]
    Mesh(#[from] MeshError),
}

/// A running node.
#[derive(Clone)]
pub struct Node {
    pub mesh: Mesh,
    pub layout: Arc<LayoutManager>,
    pub garage: Garage,
}

struct Live(Arc<LayoutManager>);

impl LiveLayouts for Live {
    fn oldest_live(&self) -> u64 {
        self.0.current().live_versions().first().map_or(0, |key| key.number)
    }
}

impl Node {
    /// Opens everything a node has and joins it together. Nothing listens yet.
    ///
    /// # Errors
    /// [`NodeError`]: a part of the node's own state that cannot be read.
    pub async fn build(parts: NodeParts) -> Result<Node, NodeError> {
        let NodeParts { identity, network_key, transport, disk, db, clock, random, offload, spawn, settings } = parts;
        let setup = LayoutSetup {
            me: identity.id(),
            replication_factor: settings.replication_factor,
            metadata_dir: settings.metadata_dir.clone(),
            disk: disk.clone(),
            offload: offload.clone(),
            clock: clock.clone(),
        };
        let layout = Arc::new(LayoutManager::open(setup).await?);
        let blocks = LocalStore::open(disk.clone(), offload.clone(), settings.blocks).await?;
        let live = Arc::new(Live(layout.clone()));
        let local = LocalModel::open(&db, blocks, clock.clone(), live, offload.clone())?;

        let router = Router::builder()
            .add::<Write>(Arc::new(local.tables.clone()))
            .add::<Read>(Arc::new(local.tables.clone()))
            .add::<Range>(Arc::new(local.tables.clone()))
            .add::<PutBlock>(Arc::new(local.blocks.clone()))
            .add::<ReferBlock>(Arc::new(local.blocks.clone()))
            .add::<GetBlock>(Arc::new(local.blocks.clone()))
            .add::<CountBucket>(Arc::new(local.count_service()))
            .add::<CompareLayouts>(Arc::new(LayoutGossip(layout.clone())))
            .add::<MergeLayout>(Arc::new(LayoutGossip(layout.clone())))
            .build();
        let options = MeshOptions {
            identity,
            network_key,
            transport,
            clock: clock.clone(),
            random: random.clone(),
            spawn: spawn.clone(),
            disk,
            offload: offload.clone(),
            peer_list: settings.metadata_dir.join("peer_list"),
            public_addresses: settings.mesh.public_addresses,
            bootstrap: settings.mesh.bootstrap_peers,
            timing: Timing { ping_timeout: settings.timeouts.ping, ..Timing::default() },
            windows: settings.mesh.windows,
            incoming_bytes_max: INCOMING_BYTES_MAX,
        };
        let mesh = Mesh::open(options, router).await?;
        let manager = layout.clone();
        spawn.spawn("layout acknowledgement", Box::pin(async move { manager.acknowledge_as_writes_end().await }));
        let gossip = keep_equal(mesh.clone(), layout.clone(), random.clone());
        spawn.spawn("layout gossip", Box::pin(gossip));
        let cluster = Cluster::new(mesh.clone(), layout.clone(), settings.consistency, settings.timeouts, spawn);
        let garage = Garage::new(Parts { cluster, clock, random, offload, settings: settings.store, local });
        Ok(Node { mesh, layout, garage })
    }
}
