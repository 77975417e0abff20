//! The default engine: LMDB, a copy-on-write B+ tree in one memory-mapped file.
//!
//! What must stay true:
//! - one environment per path and process (LMDB's locks demand it; `heed` refuses a second one);
//! - the environment is replaced only while no transaction of this process is open: every transaction holds the read side of
//!   [`LmdbEngine::state`], replacing takes the write side;
//! - no `NO*SYNC` flag unless the operator has asked for it: with one, a power cut may destroy the database.
//!
//! The map is virtual memory and costs nothing by itself. It shrinks at opening when the system has less address space (39 bits on
//! some small boards), and grows by reopening the environment when a transaction does not fit; the transaction is then run again.
//! Reopening waits for the readers, a running snapshot among them, and new readers wait for it; with the map's usual size it never
//! happens. It is preferred to LMDB's own way of resizing, after whose failure there is no map left to read from.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use heed::types::{Bytes, DecodeIgnore, Str};
use heed::{
    CommitOrAbort, CompactionOption, Database, DatabaseStat, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls,
};
use rustix::io::Errno;

use crate::engine::{AtOnce, Bounds, Direction, Durability, KEY_LENGTH_MAX, ReadRows, Storage, Tree, Visit, WriteRows};
use crate::error::{DbError, Limit};
use crate::files::{create_directories, io_error, is_full, sync_directory};

/// Address space for the file: 1 TiB, or 1 GiB where addresses have 32 bits.
#[cfg(target_pointer_width = "64")]
const MAP_SIZE_DEFAULT: u64 = 1 << 40;
#[cfg(not(target_pointer_width = "64"))]
const MAP_SIZE_DEFAULT: u64 = 1 << 30;

/// How far the map grows on its own.
#[cfg(target_pointer_width = "64")]
const MAP_SIZE_MAX: u64 = 1 << 46;
#[cfg(not(target_pointer_width = "64"))]
const MAP_SIZE_MAX: u64 = 1 << 31;

/// A smaller map is not tried when the system has too little address space.
const MAP_SIZE_MIN: u64 = 64 << 20;

/// Maps are multiples of this, and so of every system's page size.
const MAP_SIZE_STEP: u64 = 64 << 10;

/// Free bytes on a disk that has no room for the pages of a large transaction.
const NEARLY_FULL: u64 = 32 << 20;

const TREES_MAX: u32 = 128;

/// Transactions open for reading at the same time; more than any pool of blocking threads has threads.
const READERS_MAX: u32 = 1024;

/// LMDB's name for the file within the environment's directory.
pub(crate) const FILE_NAME: &str = "data.mdb";

type Rows = Database<'static, Bytes, Bytes>;

/// How to open LMDB.
#[derive(Clone, Debug)]
pub struct LmdbOptions {
    /// Address space for the file in bytes, to begin with.
    pub map_size: u64,
    pub sync: Durability,
}

impl Default for LmdbOptions {
    fn default() -> Self {
        LmdbOptions { map_size: MAP_SIZE_DEFAULT, sync: Durability::Synced }
    }
}

struct Environment {
    env: Env<WithoutTls>,
    /// By the number in [`Tree`].
    trees: Vec<Rows>,
}

struct State {
    /// Or why it could not be opened again; after each failed write that is tried anew.
    environment: Result<Environment, DbError>,
    /// By the number in [`Tree`]; survives reopening.
    names: Vec<String>,
    /// Of the latest environment, in bytes.
    map_size: u64,
}

/// An open LMDB environment.
pub(crate) struct LmdbEngine {
    path: PathBuf,
    sync: Durability,
    map_size_max: u64,
    state: RwLock<State>,
}

impl LmdbEngine {
    /// Opens the environment in the directory `path`, both created durably when missing.
    pub(crate) fn open(path: &Path, options: LmdbOptions) -> Result<Self, DbError> {
        Self::open_limited(path, options, MAP_SIZE_MAX)
    }

    fn open_limited(path: &Path, options: LmdbOptions, map_size_max: u64) -> Result<Self, DbError> {
        if options.sync == Durability::Unsynced {
            tracing::warn!(path = %path.display(), "metadata are not synced: a power cut loses writes and may destroy the database");
        }
        create_directories(path)?;
        let map_size = options.map_size.clamp(MAP_SIZE_STEP, map_size_max);
        let env = open_environment(path, map_size, options.sync)?;
        // LMDB syncs its file, but not the file's name.
        sync_directory(path)?;
        let map_size = env.info().map_size as u64;
        let state = State { environment: Ok(Environment { env, trees: Vec::new() }), names: Vec::new(), map_size };
        Ok(LmdbEngine { path: path.to_owned(), sync: options.sync, map_size_max, state: RwLock::new(state) })
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_once(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        let state = self.state();
        let Environment { env, trees } = state.environment()?;
        let txn = env.write_txn().map_err(of_lmdb("begin a write transaction"))?;
        let mut rows = Writing { trees, txn };
        body(&mut rows)?;
        rows.txn.commit().map_err(|error| self.of_commit(error))
    }

    /// A write that the file system cuts short because it is nearly full, LMDB reports as an input/output error.
    fn of_commit(&self, error: heed::Error) -> DbError {
        let cut_short = matches!(&error, heed::Error::Io(cause) if cause.raw_os_error() == Some(Errno::IO.raw_os_error()));
        let is_nearly_full =
            || rustix::fs::statvfs(&self.path).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < NEARLY_FULL);
        match cut_short && is_nearly_full() {
            true => DbError::Full { limit: Limit::Disk, source: Arc::new(error) },
            false => of_lmdb("commit")(error),
        }
    }

    fn open_tree_once(&self, name: &str) -> Result<Tree, DbError> {
        let mut state = self.state_mut();
        let State { environment, names, .. } = &mut *state;
        let number = |index| Tree(u32::try_from(index).expect("there are at most TREES_MAX trees"));
        if let Some(index) = names.iter().position(|known| known == name) {
            return Ok(number(index));
        }
        let Environment { env, trees } = environment.as_mut().map_err(|error| error.clone())?;
        trees.push(open_or_create_tree(env, name)?);
        names.push(name.to_owned());
        Ok(number(names.len() - 1))
    }

    /// Makes the map larger after a transaction did not fit into it.
    fn enlarge(&self, failure: DbError) -> Result<(), DbError> {
        let mut state = self.state_mut();
        let map_size = state.map_size;
        let larger = map_size.saturating_mul(2).min(self.map_size_max);
        if larger <= map_size {
            return Err(failure);
        }
        self.reopen(&mut state, larger);
        if state.environment.is_ok() && state.map_size > map_size {
            tracing::info!(path = %self.path.display(), map_size = state.map_size, "enlarged the map of the metadata database");
            return Ok(());
        }
        Err(failure)
    }

    /// Opens the environment again if LMDB has given it up (the disk failed in the middle of a commit), so that reads go on.
    fn revive(&self) {
        let is_usable = |state: &State| state.environment.as_ref().is_ok_and(|environment| environment.env.read_txn().is_ok());
        if is_usable(&self.state()) {
            return;
        }
        let mut state = self.state_mut();
        let map_size = state.map_size;
        self.reopen(&mut state, map_size);
    }

    fn reopen(&self, state: &mut State, map_size: u64) {
        // Closes the old one first: there is but one environment per path.
        state.environment = Err(DbError::Closed);
        state.environment = open_environment(&self.path, map_size, self.sync).and_then(|env| {
            state.map_size = env.info().map_size as u64;
            let trees = state.names.iter().map(|name| open_or_create_tree(&env, name)).collect::<Result<_, _>>()?;
            Ok(Environment { env, trees })
        });
        if let Err(error) = &state.environment {
            tracing::error!(path = %self.path.display(), %error, "cannot open the metadata database again");
        }
    }
}

impl State {
    fn environment(&self) -> Result<&Environment, DbError> {
        self.environment.as_ref().map_err(DbError::clone)
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        let Environment { env, trees } = self.environment()?;
        let txn = env.read_txn().map_err(of_lmdb("begin a read transaction"))?;
        body(&Reading { trees, txn });
        Ok(())
    }
}

impl Storage for LmdbEngine {
    fn name(&self) -> &'static str {
        "lmdb"
    }

    fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        loop {
            match self.open_tree_once(name) {
                Err(failure @ DbError::Full { limit: Limit::Map, .. }) => self.enlarge(failure)?,
                outcome => return outcome,
            }
        }
    }

    fn tree_names(&self) -> Result<Vec<String>, DbError> {
        let state = self.state();
        let Environment { env, .. } = state.environment()?;
        let txn = env.read_txn().map_err(of_lmdb("begin a read transaction"))?;
        // The unnamed tree has the names of the others for keys, and no more than that: rows of ours have trees of their own.
        let root = env.open_databases_and_commit(txn, |opener, txn| {
            opener.open_database::<Str, DecodeIgnore>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
        });
        let Some(Some(root)) = root.map_err(of_lmdb("list the trees"))?.commit() else { return Ok(Vec::new()) };
        let txn = env.read_txn().map_err(of_lmdb("begin a read transaction"))?;
        let names = root.iter(&txn).map_err(of_lmdb("list the trees"))?;
        names.map(|row| row.map(|(name, _tree)| name.to_owned()).map_err(of_lmdb("list the trees"))).collect()
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        self.state().read(body)
    }

    /// LMDB's readers wait for no writer; what they might wait for is the environment being replaced. A page that is not in memory
    /// is fetched from the disk, as with any mapped file.
    fn read_at_once(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<AtOnce, DbError> {
        let state = match self.state.try_read() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(AtOnce::WouldWait),
        };
        state.read(body).map(|()| AtOnce::Done)
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        loop {
            match self.write_once(body) {
                Ok(()) => return Ok(()),
                Err(failure @ DbError::Full { limit: Limit::Map, .. }) => self.enlarge(failure)?,
                Err(failure) => {
                    self.revive();
                    return Err(failure);
                }
            }
        }
    }

    fn sync(&self) -> Result<(), DbError> {
        self.state().environment()?.env.force_sync().map_err(of_lmdb("sync"))
    }

    fn reusable_bytes(&self) -> Result<u64, DbError> {
        let state = self.state();
        let Environment { env, trees } = state.environment()?;
        let txn = env.read_txn().map_err(of_lmdb("begin a read transaction"))?;
        let root = env.unnamed_database_stat();
        let pages = |stat: &DatabaseStat| (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64;
        let mut used = pages(&root);
        for tree in trees {
            used += pages(&tree.stat(&txn).map_err(of_lmdb("measure the database"))?);
        }
        let all = env.info().last_page_number as u64;
        Ok(all.saturating_sub(used) * u64::from(root.page_size))
    }

    fn snapshot_to(&self, directory: &Path) -> Result<(), DbError> {
        create_directories(directory)?;
        self.copy_to(&directory.join(FILE_NAME))
    }
}

impl LmdbEngine {
    fn copy_to(&self, path: &Path) -> Result<(), DbError> {
        let mut options = OpenOptions::new();
        // The copy holds the same secrets as the original.
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(path).map_err(io_error("create", path))?;
        let state = self.state();
        let copied = state.environment()?.env.copy_to_file(&mut file, CompactionOption::Enabled);
        copied.map_err(of_lmdb("copy the database"))?;
        file.sync_all().map_err(io_error("sync", path))
    }
}

/// Opens the environment with a map of at most `map_size` bytes: less when the system has less address space.
fn open_environment(path: &Path, map_size: u64, sync: Durability) -> Result<Env<WithoutTls>, DbError> {
    let mut map_size = map_size;
    loop {
        match open_environment_exactly(path, map_size, sync) {
            Err(heed::Error::Io(error)) if error.kind() == io::ErrorKind::OutOfMemory && map_size / 2 >= MAP_SIZE_MIN => {
                map_size /= 2;
            }
            Err(heed::Error::EnvAlreadyOpened) => return Err(DbError::AlreadyOpen { path: path.to_owned() }),
            Err(heed::Error::Io(error)) => return Err(io_error("open the database", path)(error)),
            outcome => {
                let env = outcome.map_err(of_lmdb("open the database"))?;
                // Pages of less than 4 KiB, which only another program makes, hold shorter keys.
                if env.max_key_size() < KEY_LENGTH_MAX {
                    return Err(of_lmdb("use a database with pages that small")(heed::Error::Mdb(MdbError::Invalid)));
                }
                return Ok(env);
            }
        }
    }
}

#[expect(unsafe_code, reason = "a memory-mapped file is only sound while nobody else writes to it; see below")]
fn open_environment_exactly(path: &Path, map_size: u64, sync: Durability) -> heed::Result<Env<WithoutTls>> {
    let map_size = usize::try_from(map_size.next_multiple_of(MAP_SIZE_STEP)).unwrap_or(usize::MAX);
    let flags = match sync {
        Durability::Synced => EnvFlags::empty(),
        Durability::Unsynced => EnvFlags::NO_SYNC,
    };
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_size).max_dbs(TREES_MAX).max_readers(READERS_MAX);
    // SAFETY: the map is undefined behaviour if the file is changed other than through LMDB. It lies in the node's own metadata
    // directory, with mode 0600, which a lock file keeps for one daemon; within the process `heed` refuses to open it twice.
    // LMDB's locks stay on (no NO_LOCK). NO_SYNC weakens what survives a power cut, not memory safety while running.
    unsafe { options.flags(flags).open(path) }
}

fn open_or_create_tree(env: &Env<WithoutTls>, name: &str) -> Result<Rows, DbError> {
    let txn = env.read_txn().map_err(of_lmdb("begin a read transaction"))?;
    let existing = env.open_databases_and_commit(txn, |opener, txn| {
        opener.open_database::<Bytes, Bytes>(txn, Some(name)).map(CommitOrAbort::<_, ()>::Commit)
    });
    if let Some(Some(tree)) = existing.map_err(of_lmdb("open a tree"))?.commit() {
        return Ok(tree);
    }
    let txn = env.write_txn().map_err(of_lmdb("begin a write transaction"))?;
    let created = env.create_databases_and_commit(txn, |opener, txn| {
        opener.create_database::<Bytes, Bytes>(txn, Some(name)).map(CommitOrAbort::<_, ()>::Commit)
    });
    Ok(created.map_err(of_lmdb("create a tree"))?.commit().expect("the closure asked for a commit"))
}

/// For `map_err`: what LMDB says, with what callers treat differently told apart.
fn of_lmdb(action: &'static str) -> impl FnOnce(heed::Error) -> DbError {
    move |error| match &error {
        heed::Error::Mdb(MdbError::MapFull) => DbError::Full { limit: Limit::Map, source: Arc::new(error) },
        heed::Error::Mdb(MdbError::DbsFull) => DbError::TooManyTrees { max: TREES_MAX as usize },
        heed::Error::Io(cause) if is_full(cause) => DbError::Full { limit: Limit::Disk, source: Arc::new(error) },
        _ => DbError::Engine { action, source: Arc::new(error) },
    }
}

struct Reading<'e> {
    trees: &'e [Rows],
    txn: RoTxn<'e, WithoutTls>,
}

struct Writing<'e> {
    trees: &'e [Rows],
    txn: RwTxn<'e>,
}

fn rows(trees: &[Rows], tree: Tree) -> Result<Rows, DbError> {
    trees.get(tree.index()).copied().ok_or(DbError::UnknownTree)
}

fn get(rows: Rows, txn: &RoTxn<'_>, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
    if let Some(value) = rows.get(txn, key).map_err(of_lmdb("read"))? {
        found(value);
    }
    Ok(())
}

fn range(rows: Rows, txn: &RoTxn<'_>, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
    match direction {
        Direction::Forward => visit_all(rows.range(txn, &bounds).map_err(of_lmdb("read"))?, visit),
        Direction::Backward => visit_all(rows.rev_range(txn, &bounds).map_err(of_lmdb("read"))?, visit),
    }
}

fn visit_all<'t>(rows: impl Iterator<Item = heed::Result<(&'t [u8], &'t [u8])>>, visit: &mut Visit<'_>) -> Result<(), DbError> {
    for row in rows {
        let (key, value) = row.map_err(of_lmdb("read"))?;
        if visit(key, value).is_break() {
            break;
        }
    }
    Ok(())
}

impl ReadRows for Reading<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        get(rows(self.trees, tree)?, &self.txn, key, found)
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        range(rows(self.trees, tree)?, &self.txn, bounds, direction, visit)
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        rows(self.trees, tree)?.len(&self.txn).map_err(of_lmdb("count"))
    }
}

impl ReadRows for Writing<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        get(rows(self.trees, tree)?, &self.txn, key, found)
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        range(rows(self.trees, tree)?, &self.txn, bounds, direction, visit)
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        rows(self.trees, tree)?.len(&self.txn).map_err(of_lmdb("count"))
    }
}

impl WriteRows for Writing<'_> {
    fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError> {
        rows(self.trees, tree)?.put(&mut self.txn, key, value).map_err(of_lmdb("insert"))
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> Result<(), DbError> {
        rows(self.trees, tree)?.delete(&mut self.txn, key).map(|_existed| ()).map_err(of_lmdb("remove"))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::Bound::Unbounded;
    use std::ops::ControlFlow;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Arc;

    use garage_types::offload::Inline;

    use super::{FILE_NAME, LmdbEngine, LmdbOptions, TREES_MAX};
    use crate::engine::{AtOnce, Direction, Durability, ReadRows, Storage, Tree};
    use crate::error::{DbError, Limit};
    use crate::{Db, MemoryEngine};

    const MIB: u64 = 1 << 20;

    fn small(map_size: u64) -> LmdbOptions {
        LmdbOptions { map_size, sync: Durability::Synced }
    }

    fn open(path: &Path) -> Db {
        Db::open_lmdb(path, LmdbOptions::default(), Arc::new(Inline)).unwrap()
    }

    fn insert(engine: &LmdbEngine, tree: Tree, keys: std::ops::Range<u32>, length: usize) -> Result<(), DbError> {
        let value = vec![7; length];
        engine.write(&mut |rows| keys.clone().try_for_each(|key| rows.insert(tree, &key.to_be_bytes(), &value)))
    }

    fn count(engine: &LmdbEngine, tree: Tree) -> u64 {
        let mut count = None;
        engine.read(&mut |rows: &dyn ReadRows| count = Some(rows.count(tree).unwrap())).unwrap();
        count.unwrap()
    }

    fn rows(db: &Db, tree: Tree) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        db.read_blocking::<_, DbError>(|snapshot| {
            snapshot.range(tree, (Unbounded, Unbounded), Direction::Forward, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
        })
        .unwrap();
        rows
    }

    #[tokio::test]
    async fn reopened_database_has_its_trees_and_rows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/when/missing");
        for sync in [Durability::Synced, Durability::Unsynced] {
            let options = LmdbOptions { sync, ..LmdbOptions::default() };
            let db = Db::open_lmdb(&path, options.clone(), Arc::new(Inline)).unwrap();
            let (first, second) = (db.open_tree("first").unwrap(), db.open_tree("second").unwrap());
            db.write::<_, DbError>(move |transaction| {
                transaction.insert(first, b"key", b"1")?;
                transaction.insert(second, b"key", b"2")
            })
            .await
            .unwrap();
            db.close().await.unwrap();
            drop(db);

            let db = Db::open_lmdb(&path, options, Arc::new(Inline)).unwrap();
            let (second, first) = (db.open_tree("second").unwrap(), db.open_tree("first").unwrap());
            assert_eq!(rows(&db, first), [(b"key".to_vec(), b"1".to_vec())], "{sync:?}");
            assert_eq!(rows(&db, second), [(b"key".to_vec(), b"2".to_vec())], "{sync:?}");
            db.close().await.unwrap();
        }
    }

    #[tokio::test]
    async fn database_is_open_only_once_in_a_process() {
        let directory = tempfile::tempdir().unwrap();
        let db = open(directory.path());
        let again = Db::open_lmdb(directory.path(), LmdbOptions::default(), Arc::new(Inline));
        assert!(matches!(again.err(), Some(DbError::AlreadyOpen { .. })));
        db.close().await.unwrap();
    }

    #[test]
    fn file_that_is_no_database_is_an_error_and_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE_NAME);
        std::fs::write(&file, [b'x'; 10_000]).unwrap();
        assert!(matches!(LmdbEngine::open(directory.path(), LmdbOptions::default()).err(), Some(DbError::Engine { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), [b'x'; 10_000]);
    }

    #[test]
    fn database_is_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let engine = LmdbEngine::open(&directory.path().join("db"), LmdbOptions::default()).unwrap();
        engine.snapshot_to(&directory.path().join("copy")).unwrap();
        for place in ["db", "copy"] {
            let mode = std::fs::metadata(directory.path().join(place).join(FILE_NAME)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{place}");
        }
    }

    #[test]
    fn map_grows_when_a_transaction_does_not_fit_and_the_transaction_runs_again() {
        let directory = tempfile::tempdir().unwrap();
        let engine = LmdbEngine::open(directory.path(), small(MIB)).unwrap();
        let tree = engine.open_tree("rows").unwrap();
        insert(&engine, tree, 0..100, 1000).unwrap();
        // Several doublings for one transaction.
        insert(&engine, tree, 100..10_000, 1000).unwrap();
        assert_eq!(count(&engine, tree), 10_000);
        assert!(engine.state().map_size >= 8 * MIB);
        // Trees opened before and after live in the new environment.
        let other = engine.open_tree("other").unwrap();
        insert(&engine, other, 0..10, 1000).unwrap();
        assert_eq!((count(&engine, tree), count(&engine, other)), (10_000, 10));
    }

    #[test]
    fn map_that_cannot_grow_is_full_and_still_reads_removes_and_writes_what_fits() {
        let directory = tempfile::tempdir().unwrap();
        let engine = LmdbEngine::open_limited(directory.path(), small(MIB), 2 * MIB).unwrap();
        let tree = engine.open_tree("rows").unwrap();
        insert(&engine, tree, 0..200, 1000).unwrap();
        let failure = insert(&engine, tree, 200..10_000, 1000).unwrap_err();
        assert!(matches!(failure, DbError::Full { limit: Limit::Map, .. }), "{failure}");
        assert_eq!(count(&engine, tree), 200);
        engine.write(&mut |rows| rows.remove(tree, &0_u32.to_be_bytes())).unwrap();
        insert(&engine, tree, 200..300, 1000).unwrap();
        assert_eq!(count(&engine, tree), 299);
    }

    #[test]
    fn read_at_once_does_not_wait_for_the_environment_to_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let engine = LmdbEngine::open(directory.path(), LmdbOptions::default()).unwrap();
        let tree = engine.open_tree("rows").unwrap();
        insert(&engine, tree, 0..10, 10).unwrap();
        let rows = Cell::new(0);
        let read = || engine.read_at_once(&mut |snapshot| rows.set(snapshot.count(tree).unwrap())).unwrap();
        assert_eq!((read(), rows.take()), (AtOnce::Done, 10));
        let replacing = engine.state_mut();
        assert_eq!((read(), rows.take()), (AtOnce::WouldWait, 0));
        drop(replacing);
        assert_eq!((read(), rows.take()), (AtOnce::Done, 10));
    }

    #[test]
    fn environment_that_was_given_up_is_opened_again_for_those_who_come_later() {
        let directory = tempfile::tempdir().unwrap();
        let engine = LmdbEngine::open(directory.path(), LmdbOptions::default()).unwrap();
        let tree = engine.open_tree("rows").unwrap();
        insert(&engine, tree, 0..10, 10).unwrap();
        engine.state_mut().environment = Err(DbError::Closed);
        assert!(insert(&engine, tree, 10..20, 10).is_err());
        assert_eq!(count(&engine, tree), 10);
        insert(&engine, tree, 10..20, 10).unwrap();
        assert_eq!(count(&engine, tree), 20);
    }

    #[test]
    fn room_of_removed_rows_is_reusable() {
        let directory = tempfile::tempdir().unwrap();
        let engine = LmdbEngine::open(directory.path(), LmdbOptions::default()).unwrap();
        let tree = engine.open_tree("rows").unwrap();
        insert(&engine, tree, 0..1000, 1000).unwrap();
        let before = engine.reusable_bytes().unwrap();
        engine.write(&mut |rows| (0..1000_u32).try_for_each(|key| rows.remove(tree, &key.to_be_bytes()))).unwrap();
        assert!(engine.reusable_bytes().unwrap() >= before + 900_000);
    }

    #[test]
    fn tree_too_many_is_an_error_and_the_others_still_work() {
        let directory = tempfile::tempdir().unwrap();
        let engine = LmdbEngine::open(directory.path(), LmdbOptions::default()).unwrap();
        let trees: Vec<_> = (0..TREES_MAX).map(|number| engine.open_tree(&format!("tree {number}")).unwrap()).collect();
        assert!(matches!(engine.open_tree("one more"), Err(DbError::TooManyTrees { max: 128 })));
        insert(&engine, trees[127], 0..10, 10).unwrap();
        assert_eq!(count(&engine, trees[127]), 10);
    }

    #[tokio::test]
    async fn snapshot_opens_as_a_database_with_the_same_rows() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("snapshots/1");
        let db = open(&directory.path().join("db"));
        let tree = db.open_tree("rows").unwrap();
        db.write::<_, DbError>(move |transaction| {
            (0..1000_u32).try_for_each(|number| transaction.insert(tree, &number.to_be_bytes(), &[7; 100]))
        })
        .await
        .unwrap();
        db.snapshot_to(&copy).await.unwrap();
        db.write::<_, DbError>(move |transaction| transaction.insert(tree, b"later", b"")).await.unwrap();

        let copied = open(&copy);
        let copied_tree = copied.open_tree("rows").unwrap();
        let mut expected = rows(&db, tree);
        expected.retain(|(key, _)| key != b"later");
        assert_eq!(rows(&copied, copied_tree), expected);
    }

    #[tokio::test]
    async fn snapshot_does_not_replace_a_database() {
        let directory = tempfile::tempdir().unwrap();
        let db = open(directory.path());
        let error = db.snapshot_to(directory.path()).await.unwrap_err();
        assert!(matches!(error, DbError::Io { .. }), "{error}");
        db.open_tree("rows").unwrap();
    }

    #[tokio::test]
    async fn snapshot_of_a_database_in_memory_is_refused() {
        let db = Db::open_memory(MemoryEngine::new()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(db.snapshot_to(directory.path()).await, Err(DbError::Unsupported { .. })));
    }
}
