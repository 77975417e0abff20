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
use garage_db::{Db, DbError, Direction, Snapshot, Transaction, Tree};
use garage_rpc::endpoint::{Caller, Handler, Message};
use garage_rpc::error::RpcError;
use garage_types::{Clock, Placement, Room, Timestamp};
use tokio::sync::Notify;

use crate::error::TableError;
use crate::queue;
use crate::schema::{Rules, Schema, Typed, local_key};
use crate::wire::{Entry, Found, Order, Page, Range, RangeRow, Read, TableId, Verdict, Write};

/// The oldest layout version that calls may still be made under.
pub trait LiveLayouts: Send + Sync + 'static {
    fn oldest_live(&self) -> u64;
}

/// The most rows one range request returns, whatever it asks for.
pub const RANGE_ROWS_MAX: usize = 4096;
/// Bytes of rows after which a range reply is cut.
const RANGE_BYTES_MAX: usize = 4 << 20;

struct LocalTable {
    rules: Arc<dyn Rules>,
    rows: Tree,
    /// Counts commits that touched the table, so that caches know when they are old.
    generation: Arc<AtomicU64>,
}

struct Inner {
    db: Db,
    clock: Arc<dyn Clock>,
    layouts: Arc<dyn LiveLayouts>,
    tables: BTreeMap<TableId, LocalTable>,
    queue: Tree,
    epochs: Tree,
    queued: Notify,
}

/// The local half of all tables. Cheap to clone.
#[derive(Clone)]
pub struct TableStore(Arc<Inner>);

/// Collects the schemas before the store opens.
pub struct Builder {
    db: Db,
    tables: BTreeMap<TableId, LocalTable>,
}

impl Builder {
    pub fn new(db: Db) -> Self {
        Builder { db, tables: BTreeMap::new() }
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

    /// # Errors
    /// The metadata engine's.
    pub fn open(self, clock: Arc<dyn Clock>, layouts: Arc<dyn LiveLayouts>) -> Result<TableStore, DbError> {
        let queue = self.db.open_tree("queue")?;
        let epochs = self.db.open_tree("gc_epochs")?;
        let Builder { db, tables } = self;
        Ok(TableStore(Arc::new(Inner { db, clock, layouts, tables, queue, epochs, queued: Notify::new() })))
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
        let rows = self.0.table(read.table)?.rows;
        let row: Option<Vec<u8>> = self.0.db.read(move |tx| tx.get(rows, &local_key(&read.placement, &read.sort_key))).await?;
        Ok(Found { row: row.map(Into::into) })
    }

    /// # Errors
    /// [`TableError`].
    pub async fn range(&self, range: Range) -> Result<Page, TableError> {
        self.check_layout(range.layout)?;
        let table = self.0.table(range.table)?;
        let (rules, rows) = (table.rules.clone(), table.rows);
        self.0.db.read(move |tx| read_page(tx, rows, &*rules, &range)).await
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

    fn check_layout(&self, caller: u64) -> Result<(), TableError> {
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

impl Inner {
    fn touched(&self, table: TableId) {
        if let Some(table) = self.tables.get(&table) {
            table.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn table(&self, id: TableId) -> Result<&LocalTable, TableError> {
        self.tables.get(&id).ok_or(TableError::UnknownTable(id))
    }
}

fn read_page(tx: &Snapshot<'_>, rows: Tree, rules: &dyn Rules, range: &Range) -> Result<Page, TableError> {
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
    let limit = (range.limit as usize).min(RANGE_ROWS_MAX);
    let mut page = Page { rows: Vec::new(), truncated: false };
    let (mut bytes, mut failed) = (0, None);
    tx.range(rows, bounds, direction, &mut |key, value| {
        if page.rows.len() >= limit || bytes >= RANGE_BYTES_MAX {
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

/// A transaction over the rows of this node and any local tree, with the queue of cascaded deletions.
pub struct RowTransaction<'a, 'tx> {
    tx: &'a mut Transaction<'tx>,
    inner: &'a Inner,
    now: Timestamp,
}

impl<'tx> RowTransaction<'_, 'tx> {
    /// Time of the request at this node, the same however often the transaction runs.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// What is known of this node's disks.
    pub fn room(&self) -> &Room {
        self.inner.db.room()
    }

    /// The engine's transaction, for local trees.
    pub fn raw(&mut self) -> &mut Transaction<'tx> {
        self.tx
    }

    pub(crate) fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        Ok(self.tx.get(self.inner.table(table)?.rows, key)?)
    }

    pub(crate) fn put(&mut self, table: TableId, key: &[u8], row: &[u8]) -> Result<(), TableError> {
        Ok(self.tx.insert(self.inner.table(table)?.rows, key, row)?)
    }

    /// Applies a row as if it had been sent here; for effects on tables placed like the row that causes them.
    ///
    /// # Errors
    /// [`TableError`]; the transaction must then be given up.
    pub fn apply(&mut self, entry: &Entry) -> Result<Verdict, TableError> {
        self.check_epoch(entry)?;
        let rules = self.inner.table(entry.table)?.rules.clone();
        rules.apply(self, entry)
    }

    /// One row of this node.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn row<S: Schema>(&self, placement: &Placement, sort_key: &[u8]) -> Result<Option<S::Row>, TableError> {
        self.get(S::ID, &local_key(placement, sort_key))?.as_deref().map(S::decode).transpose()
    }

    /// The rows of this node whose sort key starts with `prefix`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn rows_with_prefix<S: Schema>(&self, placement: &Placement, prefix: &[u8]) -> Result<Vec<S::Row>, TableError> {
        let from = local_key(placement, prefix);
        let to = garage_types::sort_key::after_prefix(&from);
        let bounds = (Bound::Included(from.as_slice()), to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let mut rows = Vec::new();
        self.tx.range(self.inner.table(S::ID)?.rows, bounds, Direction::Forward, &mut |_key, value| {
            rows.push(S::decode(value));
            ControlFlow::Continue(())
        })?;
        rows.into_iter().collect()
    }

    /// Removes a superseded row of this node, with the effects of its going.
    ///
    /// Only for rows whose absence another row of the same placement proves: anything else must become a tombstone.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_superseded<S: Schema>(&mut self, schema: &S, row: &S::Row) -> Result<(), TableError> {
        let key = local_key(&S::placement(row), &S::sort_key(row));
        self.tx.remove(self.inner.table(S::ID)?.rows, &key)?;
        schema.changed(self, Some(row), None)
    }

    /// Queues a row, which must be a deletion, to be sent to its owners.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn enqueue(&mut self, entry: &Entry) -> Result<(), TableError> {
        Ok(self.tx.insert(self.inner.queue, &queue::key_of(entry), &queue::encode(entry))?)
    }

    fn check_epoch(&self, entry: &Entry) -> Result<(), TableError> {
        let mut key = vec![entry.table.0];
        key.extend(&entry.placement.as_bytes()[..2]);
        let stored = self.tx.get(self.inner.epochs, &key)?;
        let current = stored.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        if entry.epoch < current { Err(TableError::StaleEpoch { caller: entry.epoch, current }) } else { Ok(()) }
    }
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
