//! The rows of this node, and what coordinators may ask of them.
//!
//! Must stay true: a request's rows are stored together or not at all; `Won` is answered only after the commit is durable; a caller
//! whose layout version is no longer live here, or whose row comes from an earlier garbage collection epoch, is refused.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{Db, DbError, Direction, Snapshot, Tree};
use garage_rpc::endpoint::{Caller, Handler, Message};
use garage_rpc::error::RpcError;
use garage_rpc::layout::VersionKey;
use garage_types::{Clock, Placement};
use tokio::sync::Notify;

use crate::epochs::{EpochTree, Known, Slot};
use crate::error::TableError;
use crate::graves::Graves;
use crate::schema::{Collection, Replication, Rules, Schema, Typed, local_key};
use crate::segments::Segments;
use crate::set_aside::SetAsideTree;
use crate::starts::STATE_TREE;
use crate::transaction::RowTransaction;
use crate::wire::{AskEpoch, EpochIs, Found, Mode, Order, Page, Range, RangeRow, Read, TableId, Verdict, Write};

/// What the store must know of the layout: the oldest version that calls may still be made under, and whether this node may answer.
pub trait LiveLayouts: Send + Sync + 'static {
    fn oldest_live(&self) -> u64;

    /// Every live version.
    fn live(&self) -> Vec<VersionKey>;

    /// Whether this node's rows are not all there.
    fn is_rebuilding(&self) -> bool;

    /// Whether this node has held every tombstone that was collected.
    fn may_collect(&self) -> bool;
}

/// The most rows one range request returns, whatever it asks for.
pub const RANGE_ROWS_MAX: usize = 4096;
/// Bytes of rows after which a range reply is cut.
const RANGE_BYTES_MAX: usize = 4 << 20;

/// A range of at most this limit may turn out to be so few rows that they are read at once.
const BRIEF_LIMIT_MAX: u32 = 128;
/// What is read at once of a range; when there is more, all of it is read off the async threads.
const BRIEF: PageBounds = PageBounds { rows: 16, bytes: 64 << 10 };
const FULL: PageBounds = PageBounds { rows: RANGE_ROWS_MAX, bytes: RANGE_BYTES_MAX };

/// Where a page ends at the latest.
#[derive(Clone, Copy)]
struct PageBounds {
    rows: usize,
    /// Of the rows as they are returned.
    bytes: usize,
}

pub(crate) struct LocalTable {
    pub(crate) rules: Arc<dyn Rules>,
    pub(crate) rows: Tree,
    /// Counts commits that touched the table, so that caches know when they are old.
    generation: Arc<AtomicU64>,
}

pub(crate) struct Inner {
    db: Db,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) layouts: Arc<dyn LiveLayouts>,
    pub(crate) tables: BTreeMap<TableId, LocalTable>,
    /// Local trees of the schemas, that follow from rows.
    derived: Vec<Tree>,
    pub(crate) queue: Tree,
    pub(crate) digests: Tree,
    pub(crate) epochs: EpochTree,
    /// What this node stamps the rows that it sends with.
    pub(crate) known_epochs: Known,
    pub(crate) graves: Graves,
    pub(crate) set_aside: SetAsideTree,
    /// As earlier versions kept it.
    pub(crate) older_set_aside: Tree,
    /// Epochs of the database that is being rebuilt.
    pub(crate) epochs_aside: Tree,
    pub(crate) state: Tree,
    queued: Notify,
}

/// The local half of all tables. Cheap to clone.
#[derive(Clone)]
pub struct TableStore(pub(crate) Arc<Inner>);

/// Collects the schemas before the store opens.
pub struct Builder {
    db: Db,
    tables: BTreeMap<TableId, LocalTable>,
    derived: Vec<Tree>,
}

impl Builder {
    pub fn new(db: Db) -> Self {
        Builder { db, tables: BTreeMap::new(), derived: Vec::new() }
    }

    /// Adds a table.
    ///
    /// # Errors
    /// The metadata engine's.
    ///
    /// # Panics
    /// When two tables have one id.
    pub fn with<S: Schema>(mut self, schema: Arc<S>) -> Result<Self, DbError> {
        let rows = self.db.open_tree(&format!("{}:rows", S::NAME))?;
        let table = LocalTable { rules: Arc::new(Typed(schema)), rows, generation: Arc::default() };
        assert!(self.tables.insert(S::ID, table).is_none(), "table id {:?} is used twice", S::ID);
        Ok(self)
    }

    /// Names a local tree that the schemas keep, and that can be made again from the rows.
    #[must_use]
    pub fn with_derived(mut self, tree: Tree) -> Self {
        self.derived.push(tree);
        self
    }

    /// # Errors
    /// The metadata engine's.
    pub fn open(self, clock: Arc<dyn Clock>, layouts: Arc<dyn LiveLayouts>) -> Result<TableStore, DbError> {
        let Builder { db, tables, derived } = self;
        let inner = Inner {
            queue: db.open_tree("queue")?,
            digests: db.open_tree("digests")?,
            epochs: EpochTree(db.open_tree("gc_epochs")?),
            known_epochs: Known::new(tables.keys().copied()),
            graves: Graves(db.open_tree("graves")?),
            set_aside: SetAsideTree(db.open_tree("rows_set_aside")?),
            older_set_aside: db.open_tree("set_aside")?,
            epochs_aside: db.open_tree("epochs_set_aside")?,
            state: db.open_tree(STATE_TREE)?,
            db,
            clock,
            layouts,
            tables,
            derived,
            queued: Notify::new(),
        };
        Ok(TableStore(Arc::new(inner)))
    }
}

impl TableStore {
    pub fn db(&self) -> &Db {
        &self.0.db
    }

    /// Counts the commits that touched a table; what was read before it last changed may be old.
    ///
    /// # Panics
    /// When the table was not added.
    pub fn generation(&self, table: TableId) -> Arc<AtomicU64> {
        self.0.tables[&table].generation.clone()
    }

    /// Stores the rows of one request in one transaction.
    ///
    /// # Errors
    /// [`TableError`]; nothing was stored, unless the engine failed at the commit itself.
    pub async fn write(&self, write: Write) -> Result<Verdict, TableError> {
        self.check_layout(write.layout)?;
        if write.entries.iter().any(|entry| entry.mode == Mode::Commit) {
            self.check_whole()?;
        }
        let inner = self.0.clone();
        let now = inner.clock.now();
        let touched: Vec<TableId> = write.entries.iter().map(|entry| entry.table).collect();
        let touch = TouchLate { inner: inner.clone(), tables: touched.clone() };
        let entries = write.entries;
        // A refusal leaves the transaction by the error path, so that rows admitted before it are dropped with it.
        let written = self
            .0
            .db
            .write(move |tx| {
                let mut tx = RowTransaction { tx, inner: &touch.inner, now };
                for entry in &entries {
                    if let Err(error) = tx.check_epoch(entry) {
                        return Err(Stopped::Failed(error));
                    }
                    match tx.apply(entry) {
                        Ok(Verdict::Won) => {}
                        Ok(refusal) => return Err(Stopped::Refused(refusal)),
                        Err(error) => return Err(Stopped::Failed(error)),
                    }
                }
                Ok(())
            })
            .await;
        match written {
            Ok(()) => {
                for table in touched {
                    self.touched(table);
                }
                self.0.queued.notify_one();
                Ok(Verdict::Won)
            }
            Err(Stopped::Refused(verdict)) => Ok(verdict),
            Err(Stopped::Failed(error)) => Err(error),
        }
    }

    /// Runs a transaction of the caller's own over rows and local trees.
    ///
    /// # Errors
    /// The closure's, and the engine's.
    pub async fn transact<T, E>(
        &self,
        mut body: impl FnMut(&mut RowTransaction<'_, '_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let now = self.0.clock.now();
        let tables: Vec<TableId> = self.0.tables.keys().copied().collect();
        let touch = TouchLate { inner: self.0.clone(), tables: tables.clone() };
        let result = self.0.db.write(move |tx| body(&mut RowTransaction { tx, inner: &touch.inner, now })).await?;
        for table in tables {
            self.touched(table);
        }
        self.0.queued.notify_one();
        Ok(result)
    }

    fn touched(&self, table: TableId) {
        self.0.touched(table);
    }

    /// # Errors
    /// [`TableError`].
    pub async fn read(&self, read: Read) -> Result<Found, TableError> {
        self.check_layout(read.layout)?;
        self.check_whole()?;
        let rows = self.0.table(read.table)?.rows;
        let row: Option<Vec<u8>> =
            self.0.db.read_at_once(move |tx| tx.get(rows, &local_key(&read.placement, &read.sort_key))).await?;
        Ok(Found { row: row.map(Into::into) })
    }

    /// # Errors
    /// [`TableError`].
    pub async fn range(&self, range: Range) -> Result<Page, TableError> {
        self.check_layout(range.layout)?;
        self.check_whole()?;
        let table = self.0.table(range.table)?;
        let (rules, rows) = (table.rules.clone(), table.rows);
        let range = Arc::new(range);
        if range.limit <= BRIEF_LIMIT_MAX {
            let (rules, limit, range) = (rules.clone(), range.limit as usize, range.clone());
            let page = self.0.db.read_at_once(move |tx| read_page(tx, rows, &*rules, &range, BRIEF)).await?;
            if !page.truncated || page.rows.len() >= limit {
                return Ok(page);
            }
        }
        self.0.db.read(move |tx| read_page(tx, rows, &*rules, &range, FULL)).await
    }

    /// Visits every row this node has of a table, in pages, in the order of placements. `visit` runs on a blocking thread.
    ///
    /// `after`: the local key to continue behind. Returns the last key visited, `None` at the end.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn scan<S: Schema>(
        &self,
        after: Option<Vec<u8>>,
        limit: usize,
        mut visit: impl FnMut(S::Row) + Send + 'static,
    ) -> Result<Option<Vec<u8>>, TableError> {
        let rows = self.0.table(S::ID)?.rows;
        let read = move |tx: &Snapshot<'_>| {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut left = limit;
            let mut last = None;
            let mut failed = None;
            tx.range(rows, (from, Bound::Unbounded), Direction::Forward, &mut |key, value| {
                match S::decode(value) {
                    Ok(row) => visit(row),
                    Err(error) => {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                }
                left = left.saturating_sub(1);
                if left == 0 {
                    last = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
            failed.map_or(Ok(last), Err)
        };
        self.0.db.read(read).await
    }

    /// How many rows this node has of each table, by name.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn counts(&self) -> Result<Vec<TableCount>, TableError> {
        let inner = self.0.clone();
        let read = move |tx: &Snapshot<'_>| {
            let count = |table: &LocalTable| Ok(TableCount { name: table.rules.name(), rows: tx.count(table.rows)? });
            inner.tables.values().map(count).collect::<Result<Vec<_>, DbError>>()
        };
        Ok(self.0.db.read(read).await?)
    }

    /// Merges two copies of a row of this table, as bytes.
    ///
    /// # Errors
    /// [`TableError::Row`] when one of them cannot be read.
    pub fn merge(&self, table: TableId, a: &[u8], b: &[u8]) -> Result<Vec<u8>, TableError> {
        self.0.table(table)?.rules.merge(a, b)
    }

    pub(crate) fn queue_tree(&self) -> Tree {
        self.0.queue
    }

    /// Resolves when something may have been queued since the last time.
    pub(crate) async fn queued(&self) {
        self.0.queued.notified().await;
    }

    /// The newest epoch that this node knows of; what is sent is stamped with it.
    pub fn known_epoch(&self, table: TableId, placement: &Placement) -> u64 {
        self.0.known_epochs.get(table, Slot::of(placement))
    }

    /// Every table, with who holds its rows.
    pub fn tables(&self) -> Vec<(TableId, Replication)> {
        self.0.tables.iter().map(|(table, local)| (*table, local.rules.replication())).collect()
    }

    /// The tables of which tombstones are collected.
    pub(crate) fn collected_tables(&self) -> Vec<(TableId, Collection)> {
        let sharded = self.0.tables.iter().filter(|(_, local)| local.rules.replication() == Replication::Sharded);
        sharded.map(|(table, local)| (*table, local.rules.collection())).collect()
    }

    /// Every tree whose content follows from rows.
    pub(crate) fn derived_trees(&self) -> Vec<Tree> {
        let own = [self.0.queue, self.0.digests, self.0.epochs.0, self.0.graves.0];
        own.into_iter().chain(self.0.derived.iter().copied()).collect()
    }

    /// This node's own epoch.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn epoch(&self, table: TableId, slot: Slot) -> Result<u64, TableError> {
        let epochs = self.0.epochs;
        self.0.db.read_at_once(move |tx| epochs.get(tx, table, slot)).await
    }

    pub(crate) fn known_slot_epoch(&self, table: TableId, slot: Slot) -> u64 {
        self.0.known_epochs.get(table, slot)
    }

    /// Another node is at this epoch.
    pub fn learn_epoch(&self, table: TableId, slot: Slot, epoch: u64) {
        self.0.known_epochs.raise(table, slot, epoch);
    }

    /// Neither reads nor commits can be judged by rows that are not all there.
    ///
    /// # Errors
    /// [`TableError::Rebuilding`].
    pub fn check_whole(&self) -> Result<(), TableError> {
        if self.0.layouts.is_rebuilding() { Err(TableError::Rebuilding) } else { Ok(()) }
    }

    /// Neither can tombstones be collected by a node whose database is an older one and was not compared with the others' yet.
    ///
    /// # Errors
    /// [`TableError::Rebuilding`].
    pub(crate) fn check_may_collect(&self) -> Result<(), TableError> {
        if self.0.layouts.may_collect() { Ok(()) } else { Err(TableError::Rebuilding) }
    }

    /// The name of a table; `None` when there is none of that number.
    pub fn name_of(&self, table: TableId) -> Option<&'static str> {
        self.0.tables.get(&table).map(|local| local.rules.name())
    }

    pub(crate) fn check_layout(&self, caller: u64) -> Result<(), TableError> {
        let oldest = self.0.layouts.oldest_live();
        if caller < oldest { Err(TableError::StaleLayout { caller, oldest }) } else { Ok(()) }
    }
}

/// The size of one table on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableCount {
    pub name: &'static str,
    pub rows: u64,
}

enum Stopped {
    Refused(Verdict),
    Failed(TableError),
}

impl From<DbError> for Stopped {
    fn from(error: DbError) -> Self {
        Stopped::Failed(error.into())
    }
}

/// Makes caches old once a transaction's closure is disposed of, which is after its commit: also when nobody waits for it any more.
struct TouchLate {
    inner: Arc<Inner>,
    tables: Vec<TableId>,
}

impl Drop for TouchLate {
    fn drop(&mut self) {
        for table in &self.tables {
            self.inner.touched(*table);
        }
        self.inner.queued.notify_one();
    }
}

impl LocalTable {
    pub(crate) fn segments(&self, table: TableId, digests: Tree) -> Segments {
        Segments { table, rows: self.rows, digests }
    }
}

impl Inner {
    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    fn touched(&self, table: TableId) {
        if let Some(table) = self.tables.get(&table) {
            table.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn table(&self, id: TableId) -> Result<&LocalTable, TableError> {
        self.tables.get(&id).ok_or(TableError::UnknownTable(id))
    }
}

fn read_page(
    tx: &Snapshot<'_>,
    rows: Tree,
    rules: &dyn Rules,
    range: &Range,
    page_bounds: PageBounds,
) -> Result<Page, TableError> {
    let from = local_key(&range.placement, &range.from);
    let to = match &range.to {
        Some(to) => Some(local_key(&range.placement, to)),
        None => garage_types::sort_key::after_prefix(range.placement.as_bytes()),
    };
    let bounds = (Bound::Included(from.as_slice()), to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
    let direction = match range.order {
        Order::Forward => Direction::Forward,
        Order::Backward => Direction::Backward,
    };
    let limit = (range.limit as usize).min(page_bounds.rows);
    let mut page = Page { rows: Vec::new(), truncated: false };
    let (mut bytes, mut failed) = (0, None);
    tx.range(rows, bounds, direction, &mut |key, value| {
        if page.rows.len() >= limit || bytes >= page_bounds.bytes {
            page.truncated = true;
            return ControlFlow::Break(());
        }
        match rules.project(value, range.projection) {
            Ok(row) => {
                bytes += key.len() + row.len();
                page.rows.push(RangeRow { sort_key: key[32..].to_vec().into(), row: row.into() });
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(page), Err)
}

impl Handler<Write> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<Write>) -> BoxFuture<'static, Result<Message<Verdict>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.write(request.body).await?.into()) }.boxed()
    }
}

impl Handler<Read> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<Read>) -> BoxFuture<'static, Result<Message<Found>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.read(request.body).await?.into()) }.boxed()
    }
}

impl Handler<Range> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<Range>) -> BoxFuture<'static, Result<Message<Page>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.range(request.body).await?.into()) }.boxed()
    }
}

impl Handler<AskEpoch> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<AskEpoch>) -> BoxFuture<'static, Result<Message<EpochIs>, RpcError>> {
        let (store, AskEpoch { table, slot }) = (self.clone(), request.body);
        async move { Ok(EpochIs { epoch: store.epoch(table, slot).await? }.into()) }.boxed()
    }
}
