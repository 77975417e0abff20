//! redb: a copy-on-write B+ tree in one file, written in Rust throughout.
//!
//! What must stay true:
//! - every commit that is synced also records the allocator's state (quick-repair), so that the first start after a power cut does
//!   not have to walk the whole file;
//! - the database is replaced only while no transaction of this process is open: every transaction holds the read side of
//!   [`RedbEngine::state`], replacing takes the write side;
//! - after the first error of the disk, redb refuses everything until it is opened again, reads too: so it is opened again by
//!   whoever met the error ([`RedbEngine::revive`]).
//!
//! Without syncing, commits stay in memory until the next one that is synced, and the file is consistent whatever happens: a power
//! cut, and here also a kill, loses what was committed since. One commit in [`COMMITS_UNSYNCED_MAX`] is synced all the same.

use std::cell::{Cell, OnceCell};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use redb::{Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use redb::{Table, TableDefinition, TableHandle, WriteTransaction};

use crate::copy::copy_all;
use crate::engine::{Bounds, Direction, Durability, ReadRows, Storage, Tree, VALUE_LENGTH_MAX, Visit, WriteRows};
use crate::error::{DbError, Limit};
use crate::files::{create_directories, io_error, is_full, sync_directory};

/// The file within the engine's directory.
pub(crate) const FILE_NAME: &str = "data.redb";

/// Memory for pages of the file: redb's own default is more than a small node has.
const CACHE_BYTES: usize = 64 << 20;

/// Without syncing, one commit in so many is synced: what waits in memory stays little.
const COMMITS_UNSYNCED_MAX: u32 = 256;

type Bytes = &'static [u8];

fn definition(name: &str) -> TableDefinition<'_, Bytes, Bytes> {
    TableDefinition::new(name)
}

/// Opens the database; called again after an error of the disk.
type Open = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

struct State {
    /// Or why it could not be opened again; that is tried anew by each read and write.
    database: Result<Database, DbError>,
    /// By the number in [`Tree`].
    names: Vec<String>,
    /// How often the database was opened.
    opened: u64,
}

/// An open redb database.
pub(crate) struct RedbEngine {
    path: PathBuf,
    sync: Durability,
    open: Open,
    state: RwLock<State>,
    commits_unsynced: AtomicU32,
}

impl RedbEngine {
    /// Opens the database in the directory `path`, both created durably when missing.
    pub(crate) fn open(path: &Path, sync: Durability) -> Result<Self, DbError> {
        create_directories(path)?;
        let file = path.join(FILE_NAME);
        let open = move || {
            let mut options = OpenOptions::new();
            // Nobody else reads the keys' secrets.
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            Database::builder().set_cache_size(CACHE_BYTES).create_file(options.open(&file)?)
        };
        let engine = Self::open_with(path, sync, Box::new(open))?;
        // redb syncs its file, but not the file's name.
        sync_directory(path)?;
        Ok(engine)
    }

    fn open_with(path: &Path, sync: Durability, open: Open) -> Result<Self, DbError> {
        let database = open().map_err(|error| of_opening(path, error))?;
        let state = RwLock::new(State { database: Ok(database), names: Vec::new(), opened: 1 });
        Ok(RedbEngine { path: path.to_owned(), sync, open, state, commits_unsynced: AtomicU32::new(0) })
    }

    /// The state with a database that was opened, if it can be.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.database.is_ok() {
            return state;
        }
        let opened = state.opened;
        drop(state);
        self.revive(opened);
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the database again after an error, unless someone else has since it was opened for the `opened`th time.
    fn revive(&self, opened: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.opened != opened {
            return;
        }
        // Closes the old one first: its lock on the file would keep the new one out.
        state.database = Err(DbError::Closed);
        state.opened += 1;
        state.database = (self.open)().map_err(|error| of_opening(&self.path, error));
        match &state.database {
            Ok(_open) => tracing::warn!(path = %self.path.display(), "opened the metadata database again after an error"),
            Err(error) => tracing::error!(path = %self.path.display(), %error, "cannot open the metadata database again"),
        }
    }

    fn write_once(&self, state: &State, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        let txn = self.begin(state.database()?, self.next_durability())?;
        let outcome = body(&mut Writing { names: &state.names, tables: cells(state.names.len()), txn: &txn });
        match outcome {
            Ok(()) => txn.commit().map_err(of_redb("commit")),
            Err(error) => {
                txn.abort().map_err(of_redb("abort"))?;
                Err(error)
            }
        }
    }

    fn begin(&self, database: &Database, durability: Durability) -> Result<WriteTransaction, DbError> {
        let mut txn = database.begin_write().map_err(of_redb("begin a write transaction"))?;
        match durability {
            Durability::Synced => txn.set_quick_repair(true),
            Durability::Unsynced => txn.set_durability(redb::Durability::None).map_err(of_redb("begin a write transaction"))?,
        }
        Ok(txn)
    }

    fn next_durability(&self) -> Durability {
        let waiting = self.commits_unsynced.fetch_add(1, Ordering::Relaxed);
        if self.sync == Durability::Synced || waiting >= COMMITS_UNSYNCED_MAX {
            self.commits_unsynced.store(0, Ordering::Relaxed);
            return Durability::Synced;
        }
        Durability::Unsynced
    }

    /// Runs `body` with the database, and opens that again if what happened says that it has to be.
    fn with_state<T>(&self, body: impl FnOnce(&State) -> Result<T, DbError>) -> Result<T, DbError> {
        let state = self.state();
        let opened = state.opened;
        let outcome = body(&state);
        drop(state);
        if let Err(error) = &outcome
            && needs_reopening(error)
        {
            self.revive(opened);
        }
        outcome
    }
}

impl State {
    fn database(&self) -> Result<&Database, DbError> {
        self.database.as_ref().map_err(DbError::clone)
    }
}

/// After an error of its own redb answers nothing more.
fn needs_reopening(error: &DbError) -> bool {
    matches!(error, DbError::Engine { .. } | DbError::Full { .. } | DbError::Io { .. })
}

fn of_opening(path: &Path, error: DatabaseError) -> DbError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => DbError::AlreadyOpen { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(error)) => io_error("open the database in", path)(error),
        error => DbError::Io { action: "open the database in", path: path.to_owned(), source: Arc::new(error) },
    }
}

/// For `map_err`: what redb says, with what callers treat differently told apart.
fn of_redb<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> DbError {
    move |error| match error.into() {
        redb::Error::Io(cause) if is_full(&cause) => DbError::Full { limit: Limit::Disk, source: Arc::new(cause) },
        redb::Error::ValueTooLarge(length) => DbError::ValueTooLong { length, max: VALUE_LENGTH_MAX },
        error => DbError::Engine { action, source: Arc::new(error) },
    }
}

/// No `read_at_once`: a page that is not in redb's cache is read from the file, and may be looked for behind a lock that a commit
/// holds while it writes.
impl Storage for RedbEngine {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        let number = |index| Tree(u32::try_from(index).expect("fewer than 2^32 trees"));
        // A known tree does not have to wait for the readers.
        let known = self.state().names.iter().position(|known| known == name);
        if let Some(index) = known {
            return Ok(number(index));
        }
        self.with_state(|state| {
            let txn = self.begin(state.database()?, Durability::Synced)?;
            drop(txn.open_table(definition(name)).map_err(of_redb("create a tree"))?);
            txn.commit().map_err(of_redb("create a tree"))
        })?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let index = state.names.iter().position(|known| known == name).unwrap_or_else(|| {
            state.names.push(name.to_owned());
            state.names.len() - 1
        });
        Ok(number(index))
    }

    fn tree_names(&self) -> Result<Vec<String>, DbError> {
        self.with_state(|state| {
            let txn = state.database()?.begin_read().map_err(of_redb("begin a read transaction"))?;
            let tables = txn.list_tables().map_err(of_redb("list the trees"))?;
            let mut names: Vec<String> = tables.map(|table| table.name().to_owned()).collect();
            names.sort();
            Ok(names)
        })
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        let failed = Cell::new(false);
        let state = self.state();
        let opened = state.opened;
        let txn = state.database()?.begin_read().map_err(of_redb("begin a read transaction"));
        let outcome =
            txn.map(|txn| body(&Reading { names: &state.names, tables: cells(state.names.len()), txn, failed: &failed }));
        drop(state);
        if outcome.is_err() || failed.get() {
            self.revive(opened);
        }
        outcome
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        self.with_state(|state| self.write_once(state, body))
    }

    fn sync(&self) -> Result<(), DbError> {
        if self.sync == Durability::Synced || self.commits_unsynced.swap(0, Ordering::Relaxed) == 0 {
            return Ok(());
        }
        self.with_state(|state| self.begin(state.database()?, Durability::Synced)?.commit().map_err(of_redb("sync")))
    }

    fn snapshot_to(&self, directory: &Path) -> Result<(), DbError> {
        let target = RedbEngine::open(directory, Durability::Synced)?;
        copy_all(self, &target, &mut |_rows| {}).map(|_trees| ())
    }
}

type Cells<T> = Vec<OnceCell<T>>;

fn cells<T>(count: usize) -> Cells<T> {
    std::iter::repeat_with(OnceCell::new).take(count).collect()
}

/// The table of a tree, opened when it is used for the first time within a transaction.
fn table<'c, T>(
    tables: &'c Cells<T>,
    names: &[String],
    tree: Tree,
    open: impl FnOnce(TableDefinition<'_, Bytes, Bytes>) -> Result<T, redb::TableError>,
) -> Result<&'c T, DbError> {
    let (cell, name) = tables.get(tree.index()).zip(names.get(tree.index())).ok_or(DbError::UnknownTree)?;
    if let Some(table) = cell.get() {
        return Ok(table);
    }
    let table = open(definition(name)).map_err(of_redb("open a tree"))?;
    Ok(cell.get_or_init(|| table))
}

struct Reading<'s> {
    names: &'s [String],
    tables: Cells<ReadOnlyTable<Bytes, Bytes>>,
    txn: ReadTransaction,
    /// Set when an error has been met.
    failed: &'s Cell<bool>,
}

impl Reading<'_> {
    fn with<T>(&self, tree: Tree, body: impl FnOnce(&ReadOnlyTable<Bytes, Bytes>) -> Result<T, DbError>) -> Result<T, DbError> {
        let outcome = table(&self.tables, self.names, tree, |definition| self.txn.open_table(definition)).and_then(body);
        if let Err(error) = &outcome
            && needs_reopening(error)
        {
            self.failed.set(true);
        }
        outcome
    }
}

struct Writing<'t> {
    names: &'t [String],
    tables: Cells<Table<'t, Bytes, Bytes>>,
    txn: &'t WriteTransaction,
}

impl<'t> Writing<'t> {
    fn table(&self, tree: Tree) -> Result<&Table<'t, Bytes, Bytes>, DbError> {
        table(&self.tables, self.names, tree, |definition| self.txn.open_table(definition))
    }

    fn table_mut(&mut self, tree: Tree) -> Result<&mut Table<'t, Bytes, Bytes>, DbError> {
        self.table(tree)?;
        self.tables.get_mut(tree.index()).and_then(OnceCell::get_mut).ok_or(DbError::UnknownTree)
    }
}

fn get(table: &impl ReadableTable<Bytes, Bytes>, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
    if let Some(value) = table.get(key).map_err(of_redb("read"))? {
        found(value.value());
    }
    Ok(())
}

fn range(
    table: &impl ReadableTable<Bytes, Bytes>,
    bounds: Bounds<'_>,
    direction: Direction,
    visit: &mut Visit<'_>,
) -> Result<(), DbError> {
    let mut rows = table.range::<&[u8]>(bounds).map_err(of_redb("read"))?;
    while let Some(row) = match direction {
        Direction::Forward => rows.next(),
        Direction::Backward => rows.next_back(),
    } {
        let (key, value) = row.map_err(of_redb("read"))?;
        if visit(key.value(), value.value()).is_break() {
            break;
        }
    }
    Ok(())
}

impl ReadRows for Reading<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        self.with(tree, |table| get(table, key, found))
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        self.with(tree, |table| range(table, bounds, direction, visit))
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        self.with(tree, |table| table.len().map_err(of_redb("count")))
    }
}

impl ReadRows for Writing<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        get(self.table(tree)?, key, found)
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        range(self.table(tree)?, bounds, direction, visit)
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        self.table(tree)?.len().map_err(of_redb("count"))
    }
}

impl WriteRows for Writing<'_> {
    fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError> {
        self.table_mut(tree)?.insert(key, value).map(|_replaced| ()).map_err(of_redb("insert"))
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> Result<(), DbError> {
        self.table_mut(tree)?.remove(key).map(|_removed| ()).map_err(of_redb("remove"))
    }
}

#[cfg(test)]
#[path = "redb_tests.rs"]
mod tests;
