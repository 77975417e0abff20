//! The store as frontends and admin operations use it: tables, blocks and settings in one cheap handle.

use std::sync::Arc;
use std::time::Duration;

use garage_block::{BlockError, Compression, LocalStore};
use garage_db::{Db, DbError};
use garage_rpc::cluster::Cluster;
use garage_rpc::layout::LayoutManager;
use garage_table::starts::BlocksOnDisk;
use garage_table::store::{Builder, LiveLayouts};
use garage_table::sync::worker::SyncControl;
use garage_table::{Table, TableStore};
use garage_types::names::Punycode;
use garage_types::{BlockHash, BucketId, Clock, KeyId, Offload, Random};
use garage_worker::Workers;

use crate::alias::{AliasRow, AliasScope, AliasTable};
use crate::background::{Background, MayDelete};
use crate::block_buffer::{BlockBuffer, DocumentRoom, PageTurn};
use crate::block_ref::{Arriving, BlockRefTable, BlockTrees};
use crate::blocks::{BlockService, Blocks};
use crate::bucket::{BucketRow, BucketTable};
use crate::cache::RowCache;
use crate::closing::{ClosingMarks, ClosingService};
use crate::count::CountService;
use crate::counters::BucketCounters;
use crate::error::ModelError;
use crate::failed_here::FailedHere;
use crate::fresh_refs::FreshReferences;
use crate::get::ObjectPart;
use crate::key::{KeyRow, KeyTable};
use crate::misses::Misses;
use crate::name_claims::{NameClaims, NameService};
use crate::object::ObjectTable;
use crate::part::PartTable;
use crate::resync::Resync;
use crate::shared_lists::SharedLists;
use crate::unreferenced::Uncounted;
use crate::upload::{UploadTable, WatchedUploads};
use crate::version::VersionTable;
use crate::working::Working;

/// Settings of this node that shape what it writes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of a block of a new object.
    pub block_size: usize,
    /// Bodies of at most this many bytes live in the object's row.
    pub inline_max: usize,
    pub compression: Compression,
    pub punycode: Punycode,
    /// Bytes of blocks that may wait in memory at once, over all requests.
    pub block_ram_buffer_max: usize,
    /// Pages of listings that are made at once. One with the longest keys is some megabytes. It takes a processor for some milliseconds, and
    /// waits for other nodes.
    pub pages_at_once: usize,
    /// After how long without references a block may be deleted.
    pub block_release_delay: Duration,
    /// Differs after each start of this node.
    pub incarnation: u64,
}

/// The local half: what this node stores, to be registered as handlers before the mesh starts.
#[derive(Clone)]
pub struct LocalModel {
    pub tables: TableStore,
    pub blocks: BlockService,
    pub counters: BucketCounters,
    pub block_trees: BlockTrees,
    pub watched: WatchedUploads,
    pub claims: NameClaims,
    pub marks: ClosingMarks,
    pub working: Working,
}

impl LocalModel {
    /// Opens every table of this node.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn open(parts: LocalParts<'_>) -> Result<Self, DbError> {
        let LocalParts { db, blocks, clock, layouts, layout, offload, may_delete, block_release_delay } = parts;
        let counters = BucketCounters(db.open_tree("bucket_counters")?);
        let trees = BlockTrees {
            counts: db.open_tree("block_counts")?,
            resync: db.open_tree("block_resync")?,
            errors: db.open_tree("block_errors")?,
            fresh: FreshReferences(db.open_tree("fresh_refs")?),
            release_delay_ms: u64::try_from(block_release_delay.as_millis()).unwrap_or(u64::MAX),
        };
        let watched = WatchedUploads(db.open_tree("watched_uploads")?);
        let claims = NameClaims(db.open_tree(crate::name_claims::TREE)?);
        let marks = ClosingMarks(db.open_tree(crate::closing::TREE)?);
        let arriving = Arriving::default();
        let tables = Builder::new(db.clone())
            .with(Arc::new(BucketTable { marks }))?
            .with(Arc::new(AliasTable { claims }))?
            .with(Arc::new(KeyTable))?
            .with(Arc::new(ObjectTable { counters, marks }))?
            .with(Arc::new(UploadTable { counters, watched, marks }))?
            .with(Arc::new(PartTable { counters }))?
            .with(Arc::new(VersionTable))?
            .with(Arc::new(BlockRefTable { trees, arriving: arriving.clone() }))?
            .with_derived(counters.0)
            .with_derived(claims.0)
            .with_derived(marks.0)
            .with_derived(trees.counts)
            .with_derived(trees.resync)
            .with_derived(trees.errors)
            .with_derived(watched.0)
            .open(clock.clone(), layouts)?;
        let uncounted = Uncounted::default();
        let failed = FailedHere::load(db, trees)?;
        let blocks = BlockService {
            blocks,
            tables: tables.clone(),
            trees,
            arriving,
            uncounted,
            failed,
            clock,
            offload,
            may_delete,
            layout,
        };
        let working = Working::default();
        Ok(LocalModel { tables, blocks, counters, block_trees: trees, watched, claims, marks, working })
    }

    /// Whether any block file is here.
    ///
    /// # Errors
    /// [`BlockError`]: a directory cannot be listed.
    pub async fn blocks_on_disk(&self) -> Result<BlocksOnDisk, BlockError> {
        let mut from = Some(BlockHash::from_bytes([0; 32]));
        while let Some(position) = from {
            let page = self.blocks.blocks.page(position, 1).await?;
            if !page.hashes.is_empty() {
                return Ok(BlocksOnDisk::Some);
            }
            from = page.next;
        }
        Ok(BlocksOnDisk::None)
    }

    /// Answers who claims names.
    pub fn name_service(&self) -> NameService {
        NameService { tables: self.tables.clone(), claims: self.claims }
    }

    /// Answers who deletes buckets.
    pub fn closing_service(&self) -> ClosingService {
        ClosingService { tables: self.tables.clone(), marks: self.marks, counters: self.counters }
    }

    /// Answers how much buckets hold.
    pub fn count_service(&self) -> CountService {
        CountService { counters: self.counters, tables: self.tables.clone() }
    }
}

/// The capabilities a node's own half is built from.
pub struct LocalParts<'a> {
    pub db: &'a Db,
    pub blocks: LocalStore,
    pub clock: Arc<dyn Clock>,
    pub layouts: Arc<dyn LiveLayouts>,
    pub layout: Arc<LayoutManager>,
    pub offload: Arc<dyn Offload>,
    pub may_delete: Arc<dyn MayDelete>,
    /// After how long without references a block may be deleted.
    pub block_release_delay: Duration,
}

#[derive(Clone)]
pub(crate) struct Inner {
    /// The same store for decisions that lead to a deletion; `None` in that store itself.
    certain: Option<Garage>,
    pub cluster: Cluster,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub offload: Arc<dyn Offload>,
    pub workers: Workers,
    pub sync: SyncControl,
    pub settings: Settings,
    pub background: Arc<Background>,
    pub local: LocalModel,
    pub blocks: Blocks,
    pub resync: Arc<Resync>,
    pub buckets: Table<BucketTable>,
    pub aliases: Table<AliasTable>,
    pub keys: Table<KeyTable>,
    pub objects: Table<ObjectTable>,
    pub uploads: Table<UploadTable>,
    pub parts: Table<PartTable>,
    pub versions: Table<VersionTable>,
    pub bucket_cache: Arc<RowCache<BucketId, BucketRow>>,
    pub alias_cache: Arc<RowCache<(AliasScope, String), AliasRow>>,
    pub key_cache: Arc<RowCache<KeyId, KeyRow>>,
    pub misses: Arc<Misses>,
    pub block_buffer: Arc<BlockBuffer>,
    pub block_lists: Arc<SharedLists<(BlockHash, u64)>>,
    pub part_lists: Arc<SharedLists<ObjectPart>>,
}

impl Inner {
    fn certain(self) -> Self {
        let (cluster, tables) = (self.cluster.certain(), self.local.tables.clone());
        Inner {
            objects: Table::new(tables.clone(), cluster.clone()),
            uploads: Table::new(tables.clone(), cluster.clone()),
            parts: Table::new(tables.clone(), cluster.clone()),
            versions: Table::new(tables, cluster.clone()),
            cluster,
            ..self
        }
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Garage(pub(crate) Arc<Inner>);

/// The capabilities a store is built from.
pub struct Parts {
    pub cluster: Cluster,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub offload: Arc<dyn Offload>,
    pub workers: Workers,
    pub sync: SyncControl,
    pub settings: Settings,
    pub background: Background,
    pub local: LocalModel,
}

/// What is on its way to slow owners may take this part of the room for blocks, on top of it.
const LINGERING_SHARE: usize = 4;

/// Room for blocks in memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMemory {
    /// Of uploads and copies, and of readers that have not taken theirs yet.
    pub in_flight: usize,
    pub in_flight_max: usize,
    /// On their way to slow owners when the others have them.
    pub lingering: usize,
    pub lingering_max: usize,
}

impl Garage {
    pub fn new(parts: Parts) -> Self {
        let Parts { cluster, clock, random, offload, workers, sync, settings, background, local } = parts;
        let tables = &local.tables;
        let lingering_max = settings.block_ram_buffer_max / LINGERING_SHARE;
        let blocks = Blocks::new(cluster.clone(), local.blocks.clone(), offload.clone(), settings.compression, lingering_max);
        let inner = Inner {
            certain: None,
            blocks,
            resync: Arc::new(Resync::new(&background.settings)),
            buckets: Table::new(tables.clone(), cluster.clone()),
            aliases: Table::new(tables.clone(), cluster.clone()),
            keys: Table::new(tables.clone(), cluster.clone()),
            objects: Table::new(tables.clone(), cluster.clone()),
            uploads: Table::new(tables.clone(), cluster.clone()),
            parts: Table::new(tables.clone(), cluster.clone()),
            versions: Table::new(tables.clone(), cluster.clone()),
            bucket_cache: Arc::new(RowCache::new(tables.generation(crate::table_ids::BUCKET))),
            alias_cache: Arc::new(RowCache::new(tables.generation(crate::table_ids::ALIAS))),
            key_cache: Arc::new(RowCache::new(tables.generation(crate::table_ids::KEY))),
            misses: Arc::default(),
            block_buffer: Arc::new(BlockBuffer::new(settings.block_ram_buffer_max, settings.pages_at_once)),
            block_lists: Arc::new(SharedLists::new()),
            part_lists: Arc::new(SharedLists::new()),
            cluster,
            clock,
            random,
            offload,
            workers,
            sync,
            settings,
            background: Arc::new(background),
            local,
        };
        let certain = Garage(Arc::new(inner.clone().certain()));
        Garage(Arc::new(Inner { certain: Some(certain), ..inner }))
    }

    /// This store for decisions that lead to a deletion or a release. Its reads meet every acknowledged write, and its writes are at
    /// as many nodes as consistent ones, whatever the consistency mode; where too few nodes answer, the decision waits.
    pub(crate) fn certain(&self) -> &Garage {
        self.0.certain.as_ref().unwrap_or(self)
    }

    /// This store for reads that a write goes by: what was acknowledged before. They ask no more nodes than the write itself needs; in
    /// the `dangerous` mode, where that is not enough to be certain, they go by what they find.
    pub(crate) fn for_writes(&self) -> &Garage {
        let certain = self.certain();
        if certain.0.cluster.quorums().read <= self.0.cluster.quorums().write { certain } else { self }
    }

    /// How much of the room for blocks is taken.
    pub fn block_memory(&self) -> BlockMemory {
        let (in_flight, in_flight_max) = self.0.block_buffer.used();
        let (lingering, lingering_max) = self.0.blocks.lingering();
        BlockMemory { in_flight, in_flight_max, lingering, lingering_max }
    }

    /// Room in memory for a document that a client sends, of which nothing is there yet.
    pub fn document_room(&self) -> DocumentRoom {
        self.0.block_buffer.for_document()
    }

    /// The turn to make one page of a listing. Whoever has it must not wait for a client.
    ///
    /// # Errors
    /// [`ModelError::ShuttingDown`].
    pub async fn page_turn(&self) -> Result<PageTurn, ModelError> {
        self.0.block_buffer.page_turn().await
    }

    pub fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    /// The background jobs of this node.
    pub fn workers(&self) -> &Workers {
        &self.0.workers
    }

    /// What the background jobs may do and remember.
    pub fn background(&self) -> &Background {
        &self.0.background
    }

    /// Asks for a comparison of this node's rows with the other owners'.
    pub fn sync(&self) -> &SyncControl {
        &self.0.sync
    }

    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub fn local(&self) -> &LocalModel {
        &self.0.local
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    pub fn random(&self) -> &Arc<dyn Random> {
        &self.0.random
    }
}
