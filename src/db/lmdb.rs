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

mod environment;
mod rows;
#[cfg(test)]
mod tests;
mod whole;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use heed::types::{DecodeIgnore, Str};
use heed::{CommitOrAbort, CompactionOption, DatabaseStat, Env, WithoutTls};
use rustix::io::Errno;

use environment::{MAP_SIZE_STEP, Rows, of_lmdb, open_environment, open_or_create_tree};
use rows::{Reading, Writing};

use crate::engine::{AtOnce, Durability, ReadRows, Storage, Tree, WriteRows};
use crate::error::{DbError, Limit};
use crate::files::{create_directories, io_error, sync_directory};

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

/// Free bytes on a disk that has no room for the pages of a large transaction.
const NEARLY_FULL: u64 = 32 << 20;

/// LMDB's name for the file within the environment's directory.
pub(crate) const FILE_NAME: &str = "data.mdb";

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
        whole::check_length(&path.join(FILE_NAME))?;
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
