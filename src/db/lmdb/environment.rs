//! Opening LMDB's environment and the trees in it, and what its errors mean.

use std::io;
use std::path::Path;
use std::sync::Arc;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, MdbError, WithoutTls};

use crate::engine::{Durability, KEY_LENGTH_MAX};
use crate::error::{DbError, Limit};
use crate::files::{io_error, is_full};

/// A smaller map is not tried when the system has too little address space.
const MAP_SIZE_MIN: u64 = 64 << 20;

/// Maps are multiples of this, and so of every system's page size.
pub(super) const MAP_SIZE_STEP: u64 = 64 << 10;

pub(super) const TREES_MAX: u32 = 128;

/// Transactions open for reading at the same time; more than any pool of blocking threads has threads.
const READERS_MAX: u32 = 1024;

/// A tree of the environment.
pub(super) type Rows = Database<'static, Bytes, Bytes>;

/// Opens the environment with a map of at most `map_size` bytes: less when the system has less address space.
pub(super) fn open_environment(path: &Path, map_size: u64, sync: Durability) -> Result<Env<WithoutTls>, DbError> {
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

pub(super) fn open_or_create_tree(env: &Env<WithoutTls>, name: &str) -> Result<Rows, DbError> {
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
pub(super) fn of_lmdb(action: &'static str) -> impl FnOnce(heed::Error) -> DbError {
    move |error| match &error {
        heed::Error::Mdb(MdbError::MapFull) => DbError::Full { limit: Limit::Map, source: Arc::new(error) },
        heed::Error::Mdb(MdbError::DbsFull) => DbError::TooManyTrees { max: TREES_MAX as usize },
        heed::Error::Io(cause) if is_full(cause) => DbError::Full { limit: Limit::Disk, source: Arc::new(error) },
        _ => DbError::Engine { action, source: Arc::new(error) },
    }
}
