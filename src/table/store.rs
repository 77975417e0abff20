//! The rows of this node, and what coordinators may ask of them.
//!
//! Must stay true: a request's rows are stored together or not at all; `Won` is answered only after the commit is durable; a caller
//! whose layout version is no longer live here, or whose row comes from an earlier garbage collection epoch, is refused.

mod builder;
mod handlers;
mod pages;

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use garage_db::{Db, DbError, Direction, Snapshot, Tree};
use garage_rpc::layout::VersionKey;
use garage_types::planted::{Bug, is_planted};
use garage_types::{Clock, NodeId, Placement};
use tokio::sync::Notify;

use crate::epochs::{EpochTree, FloorTree, Known, Slot};
use crate::error::TableError;
use crate::graves::Graves;
use crate::rows::{Damaged, RowTree};
use crate::schema::{Collection, Replication, Rules, Schema, local_key};
use crate::segments::Segments;
use crate::set_aside::SetAsideTree;
use crate::transaction::RowTransaction;
use crate::wire::{Found, Mode, Page, Range, Read, TableId, Verdict, Write};

pub use builder::Builder;
pub use pages::RANGE_ROWS_MAX;
use pages::{BRIEF, BRIEF_LIMIT_MAX, FULL, read_page};

/// What the store must know of the layout: the oldest version that calls may still be made under, and whether this node may answer.
pub trait LiveLayouts: Send + Sync + 'static {
    fn oldest_live(&self) -> u64;

    /// Every live version.
    fn live(&self) -> Vec<VersionKey>;

    /// What is held while this node stores rows for a writer that goes by the layout `version`; `None`: see [`LayoutManager::admit`].
    ///
    /// [`LayoutManager::admit`]: garage_rpc::layout::LayoutManager::admit
    fn admit(&self, writer: NodeId, version: u64) -> Option<Vouch>;

    /// Whether this node's rows are not all there.
    fn is_rebuilding(&self) -> bool;

    /// Whether this node has held every tombstone that was collected.
    fn may_collect(&self) -> bool;
}

/// Held by a write under way; see [`LiveLayouts::admit`].
pub type Vouch = Box<dyn Send + Sync>;

pub(crate) struct LocalTable {
    pub(crate) rules: Arc<dyn Rules>,
    pub(crate) rows: RowTree,
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
    pub(crate) floors: FloorTree,
    /// What this node stamps the rows that it sends with.
    pub(crate) known_epochs: Known,
    pub(crate) graves: Graves,
    pub(crate) set_aside: SetAsideTree,
    /// As earlier versions kept it.
    pub(crate) older_set_aside: Tree,
    /// Epochs of the database that is being rebuilt.
    pub(crate) epochs_aside: Tree,
    pub(crate) state: Tree,
    pub(crate) damaged: Damaged,
    /// See [`TableStore::lacks_rows`].
    pub(crate) lacks_rows: AtomicBool,
    queued: Notify,
}

/// The local half of all tables. Cheap to clone.
#[derive(Clone)]
pub struct TableStore(pub(crate) Arc<Inner>);

/// The rows of this node in one snapshot.
pub struct LocalRows<'a> {
    inner: &'a Inner,
    tx: &'a Snapshot<'a>,
}

impl LocalRows<'_> {
    /// Visits every row of a table, in the order of placements.
    ///
    /// # Errors
    /// [`TableError`], of them [`TableError::DamagedRow`].
    pub fn each<S: Schema>(&self, visit: &mut dyn FnMut(S::Row)) -> Result<(), TableError> {
        let mut failed = None;
        let all = (Bound::Unbounded, Bound::Unbounded);
        self.inner.table(S::ID)?.rows.range(self.tx, all, Direction::Forward, &mut |_key, row| match S::decode(row) {
            Ok(row) => {
                visit(row);
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// For local trees.
    pub fn snapshot(&self) -> &Snapshot<'_> {
        self.tx
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
        if write.entries.iter().any(|entry| entry.mode == Mode::Commit) && !is_planted(Bug::RebuildingJudgesCommits) {
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

    /// As [`Self::write`], for a write that another node coordinates.
    ///
    /// # Errors
    /// [`TableError::OldLayoutOfStranger`], and those of [`Self::write`].
    pub async fn write_for(&self, writer: NodeId, write: Write) -> Result<Verdict, TableError> {
        let vouch = self.admit_writer(writer, write.layout)?;
        let written = self.write(write).await;
        drop(vouch);
        written
    }

    /// Lets a writer change something here that goes by the layout `version`. What is returned is held until that is stored.
    ///
    /// # Errors
    /// [`TableError::OldLayoutOfStranger`], [`TableError::StaleLayout`].
    pub fn admit_writer(&self, writer: NodeId, version: u64) -> Result<Vouch, TableError> {
        let Some(vouch) = self.0.layouts.admit(writer, version) else {
            let current = self.0.layouts.live().last().map_or(0, |key| key.number);
            return Err(TableError::OldLayoutOfStranger { writer: version, current });
        };
        self.check_layout(version)?;
        Ok(vouch)
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

    /// As [`Self::transact`], for a closure that reads rows and changes local trees only.
    ///
    /// # Errors
    /// The closure's, and the engine's.
    pub async fn transact_beside<T, E>(
        &self,
        mut body: impl FnMut(&mut RowTransaction<'_, '_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (inner, now) = (self.0.clone(), self.0.clock.now());
        self.0.db.write(move |tx| body(&mut RowTransaction { tx, inner: &inner, now })).await
    }

    fn touched(&self, table: TableId) {
        self.0.touched(table);
    }

    /// # Errors
    /// [`TableError`].
    pub async fn read(&self, read: Read) -> Result<Found, TableError> {
        self.check_layout(read.layout)?;
        self.check_answers()?;
        let rows = self.0.table(read.table)?.rows.clone();
        let row = self.0.db.read_at_once(move |tx| rows.get(tx, &local_key(&read.placement, &read.sort_key))).await?;
        Ok(Found { row: row.map(Into::into) })
    }

    /// # Errors
    /// [`TableError`].
    pub async fn range(&self, range: Range) -> Result<Page, TableError> {
        self.check_layout(range.layout)?;
        self.check_answers()?;
        let table = self.0.table(range.table)?;
        let (rules, rows, floors) = (table.rules.clone(), table.rows.clone(), self.0.floors);
        let range = Arc::new(range);
        if range.limit <= BRIEF_LIMIT_MAX {
            let (rules, rows, limit, range) = (rules.clone(), rows.clone(), range.limit as usize, range.clone());
            let page = self.0.db.read_at_once(move |tx| read_page(tx, (&rows, &floors), &*rules, &range, BRIEF)).await?;
            if !page.truncated || page.rows.len() >= limit {
                return Ok(page);
            }
        }
        self.0.db.read(move |tx| read_page(tx, (&rows, &floors), &*rules, &range, FULL)).await
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
        self.scan_all::<S>(after, limit, move |_key, row| row.map(&mut visit)).await
    }

    /// As [`Self::scan`], for callers that decide themselves what a row that cannot be read means: `visit` is given each local key with
    /// what reading its row gave, and ends the scan by an error.
    ///
    /// # Errors
    /// That of `visit`; [`TableError`].
    pub async fn scan_all<S: Schema>(
        &self,
        after: Option<Vec<u8>>,
        limit: usize,
        mut visit: impl FnMut(&[u8], Result<S::Row, TableError>) -> Result<(), TableError> + Send + 'static,
    ) -> Result<Option<Vec<u8>>, TableError> {
        let rows = self.0.table(S::ID)?.rows.clone();
        let read = move |tx: &Snapshot<'_>| {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut left = limit;
            let mut last = None;
            let mut failed = None;
            rows.range_of_all(tx, (from, Bound::Unbounded), Direction::Forward, &mut |key, row| {
                if let Err(error) = visit(key, row.and_then(S::decode)) {
                    failed = Some(error);
                    return ControlFlow::Break(());
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

    /// Reads rows of several tables in one snapshot. `read` runs on a blocking thread; the engine keeps what is replaced meanwhile.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn read_rows<T: Send + 'static>(
        &self,
        read: impl FnOnce(&LocalRows<'_>) -> Result<T, TableError> + Send + 'static,
    ) -> Result<T, TableError> {
        let inner = self.0.clone();
        self.0.db.read(move |tx| read(&LocalRows { inner: &inner, tx })).await
    }

    /// How many rows this node has of each table, by name.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn counts(&self) -> Result<Vec<TableCount>, TableError> {
        let inner = self.0.clone();
        let read = move |tx: &Snapshot<'_>| {
            let count = |table: &LocalTable| Ok(TableCount { name: table.rules.name(), rows: tx.count(table.rows.raw())? });
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

    /// Whether a row of this table, as bytes, only says that something is over.
    ///
    /// # Errors
    /// [`TableError::Row`] when it cannot be read.
    pub(crate) fn is_collectable(&self, table: TableId, row: &[u8]) -> Result<bool, TableError> {
        self.0.table(table)?.rules.is_collectable(row)
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

    /// Who holds the rows of a table.
    ///
    /// # Errors
    /// [`TableError::UnknownTable`].
    pub(crate) fn replication_of(&self, table: TableId) -> Result<Replication, TableError> {
        Ok(self.0.table(table)?.rules.replication())
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

    /// As [`Self::check_whole`], for reads.
    fn check_answers(&self) -> Result<(), TableError> {
        if is_planted(Bug::RebuildingAnswersReads) { Ok(()) } else { self.check_whole() }
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

    /// A row by its local key, as people find it.
    pub fn name_of_row(&self, table: TableId, key: &[u8]) -> String {
        self.0.tables.get(&table).map_or_else(|| hex::encode(key), |local| local.rows.name_of(key))
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
        Segments { table, rows: self.rows.clone(), digests }
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
