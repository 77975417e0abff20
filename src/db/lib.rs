//! The metadata engine behind a narrow door: ordered trees of bytes, consistent reads, durable transactions.
//!
//! - [`Db::write`] runs a closure in a transaction over any trees and resolves once that is durable. Many closures share one commit
//!   and one fsync (`writer.rs`), so a closure may run more than once and touches nothing but its transaction.
//! - [`Db::read`] runs a closure on a consistent snapshot, off the async threads; [`Db::read_at_once`] is for bounded lookups, and runs
//!   them where they are asked for if the engine has nothing to wait for.
//! - Engines: those of [`Engine`] ([`Db::open`]), and one in memory that knows what a power cut would take ([`MemoryEngine`]). One contract
//!   suite runs against each of them.
//!
//! What must stay true: nothing is answered before it is durable; async code never waits for a writer, its disk or the
//! engine's locks; a closure that fails leaves
//! nothing behind. This room knows nothing of what the bytes mean.

mod bounds;
pub mod convert;
mod copy;
mod engine;
mod error;
mod files;
mod gather;
mod lmdb;
mod memory;
mod overlay;
mod redb_engine;
mod relief;
#[cfg(feature = "sled")]
mod sled_engine;
#[cfg(feature = "sled")]
mod sled_versions;
mod transaction;
mod writer;

#[cfg(test)]
mod contract;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use garage_types::offload::{Inline, offload};
use garage_types::{Offload, Room};

pub use engine::{Bounds, Direction, Durability, Engine, EngineOptions, KEY_LENGTH_MAX, Tree, VALUE_LENGTH_MAX, Visit};
pub use error::{DbError, EngineError, Limit};
pub use lmdb::LmdbOptions;
pub use memory::MemoryEngine;
pub use relief::{Relief, Relieved};
pub use transaction::{Snapshot, Transaction};

use engine::{AtOnce, Storage};
use lmdb::LmdbEngine;
use redb_engine::RedbEngine;
use relief::RelievedStorage;
use writer::{Writer, panic_message};

/// An open database; clones share it. When the last one is dropped the writer finishes its queue and ends.
#[derive(Clone)]
pub struct Db {
    storage: Arc<dyn Storage>,
    writer: Arc<Writer>,
    offload: Arc<dyn Offload>,
    room: Room,
}

impl fmt::Debug for Db {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Db").field("engine", &self.engine_name()).finish_non_exhaustive()
    }
}

impl Db {
    /// Opens the database of `engine` in the directory `path`, which is created when missing. Blocks.
    ///
    /// # Errors
    /// [`DbError::AlreadyOpen`], and whatever keeps its files from being opened.
    pub fn open(engine: Engine, path: &Path, options: &EngineOptions, offload: Arc<dyn Offload>) -> Result<Db, DbError> {
        Self::threaded(open_storage(engine, path, options)?, offload)
    }

    fn threaded(storage: Arc<dyn Storage>, offload: Arc<dyn Offload>) -> Result<Db, DbError> {
        let writer = Arc::new(Writer::spawn(storage.clone())?);
        Ok(Db { storage, writer, offload, room: Room::default() })
    }

    /// The same database, just opened, whose commits ask `relief` for room when the disk is full; `room` is what is known of it.
    ///
    /// # Errors
    /// [`DbError::Engine`] when the system has no thread to give.
    pub fn with_relief(self, relief: Arc<dyn Relief>, room: Room) -> Result<Db, DbError> {
        let Db { storage, writer, offload, room: _unwatched } = self;
        let is_inline = writer.is_inline();
        drop(writer);
        let storage: Arc<dyn Storage> = Arc::new(RelievedStorage { storage, relief });
        let writer = if is_inline { Writer::inline(storage.clone()) } else { Writer::spawn(storage.clone())? };
        Ok(Db { storage, writer: Arc::new(writer), offload, room })
    }

    /// What is known of the room on this node's disks; whoever watches them says it here.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Bytes within the database's files that commits will use before the files grow, as far as can be told cheaply.
    ///
    /// # Errors
    /// What the engine reports; [`DbError::Lost`].
    pub async fn reusable_bytes(&self) -> Result<u64, DbError> {
        let storage = self.storage.clone();
        offload(&*self.offload, move || storage.reusable_bytes()).await?
    }

    /// Opens the LMDB database in the directory `path`, which is created when missing. Blocks.
    ///
    /// # Errors
    /// [`DbError::AlreadyOpen`], and whatever keeps its files from being opened.
    pub fn open_lmdb(path: &Path, options: LmdbOptions, offload: Arc<dyn Offload>) -> Result<Db, DbError> {
        Self::threaded(Arc::new(LmdbEngine::open(path, options)?), offload)
    }

    /// Opens a database in memory. Everything runs at once on the caller's thread, in the order of the calls.
    ///
    /// # Errors
    /// None at present.
    pub fn open_memory(memory: MemoryEngine) -> Result<Db, DbError> {
        let storage: Arc<dyn Storage> = Arc::new(memory);
        let writer = Arc::new(Writer::inline(storage.clone()));
        Ok(Db { storage, writer, offload: Arc::new(Inline), room: Room::default() })
    }

    /// The tree of that name, created when missing. For the start: blocks, and waits for running reads and writes.
    ///
    /// # Errors
    /// [`DbError::TooManyTrees`], [`DbError::Full`], and what the engine reports.
    ///
    /// # Panics
    /// When the name is empty or contains a zero byte: names are constants of our own.
    pub fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        assert!(!name.is_empty() && !name.contains('\0'), "{name:?} cannot name a tree");
        self.storage.open_tree(name)
    }

    /// Runs a closure in a transaction; resolves once the transaction is durable (if so configured). Sees all earlier transactions.
    ///
    /// The closure must touch nothing but the transaction, and not this database by another way. It may run more than once; the
    /// result of the last run is returned. All writers wait while it runs, so it is short and does no other I/O. A future dropped
    /// before it resolves leaves open whether the transaction happens.
    ///
    /// # Errors
    /// The closure's own error, in which case nothing of it is kept. Else a [`DbError`]: [`DbError::Full`], [`DbError::Closed`],
    /// [`DbError::Panicked`], what the engine reports. Then nothing is kept either, except that an error of the disk itself during
    /// the commit, or [`DbError::Lost`], leaves it open until the next start.
    pub async fn write<T: Send + 'static, E: From<DbError> + Send + 'static>(
        &self,
        body: impl FnMut(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        self.writer.write(body).await
    }

    /// Runs a closure on a consistent snapshot, off the async threads. Keep it short: see [`Snapshot`].
    ///
    /// # Errors
    /// The closure's own; [`DbError::Panicked`], [`DbError::Lost`], what the engine reports.
    pub async fn read<T: Send + 'static, E: From<DbError> + Send + 'static>(
        &self,
        body: impl FnOnce(&Snapshot<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let storage = self.storage.clone();
        let work = move || catch_unwind(AssertUnwindSafe(|| read(&*storage, body)));
        match offload(&*self.offload, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(DbError::Panicked { message: panic_message(&*panic) }.into()),
            Err(lost) => Err(DbError::Lost(lost).into()),
        }
    }

    /// As [`Db::read`], for a closure that looks up a bounded number of rows, some ten at most: with LMDB it runs on the caller's
    /// thread, where it takes a microsecond or two instead of the twenty of a visit to another thread. Rows that are not in memory are
    /// waited for there: this is for rows that are in use. Runs off the async threads whenever the engine would make it wait.
    ///
    /// # Errors
    /// As [`Db::read`].
    pub async fn read_at_once<T: Send + 'static, E: From<DbError> + Send + 'static>(
        &self,
        body: impl FnOnce(&Snapshot<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        match read_at_once(&*self.storage, body) {
            Ok(result) => result,
            Err(not_run) => self.read(not_run).await,
        }
    }

    /// As [`Db::read`], on the caller's thread, which must be one that may block. Not from within another closure: a snapshot that
    /// waits for the engine's file to be remapped, inside one that keeps it from being remapped, waits for ever.
    ///
    /// # Errors
    /// The closure's own; what the engine reports.
    pub fn read_blocking<T, E: From<DbError>>(&self, body: impl FnOnce(&Snapshot<'_>) -> Result<T, E>) -> Result<T, E> {
        read(&*self.storage, body)
    }

    /// The engine's name, as in the configuration.
    pub fn engine_name(&self) -> &'static str {
        self.storage.name()
    }

    /// Writes a consistent, compacted copy of the database into `directory` (new or empty) while reads and writes go on. It opens
    /// like the original. The directory has its name only once it is whole and on stable storage.
    ///
    /// # Errors
    /// [`DbError::Io`] when there is something already; [`DbError::Full`]; [`DbError::Unsupported`] in memory. No copy is left then.
    pub async fn snapshot_to(&self, directory: &Path) -> Result<(), DbError> {
        let storage = self.storage.clone();
        let directory = directory.to_owned();
        offload(&*self.offload, move || copy::make_whole(&directory, |partial| storage.snapshot_to(partial))).await?
    }

    /// Brings what was committed without syncing to stable storage.
    ///
    /// # Errors
    /// What the engine reports; [`DbError::Lost`].
    pub async fn sync(&self) -> Result<(), DbError> {
        let storage = self.storage.clone();
        offload(&*self.offload, move || storage.sync()).await?
    }

    /// Ends writing: what was asked before is finished and brought to stable storage, later writes get [`DbError::Closed`]. Reads
    /// still work. The files are free for another opening once all clones are dropped.
    ///
    /// # Errors
    /// What the engine reports about the last step; [`DbError::Lost`] when the writer's thread died.
    pub async fn close(&self) -> Result<(), DbError> {
        self.writer.close().await
    }
}

fn open_storage(engine: Engine, path: &Path, options: &EngineOptions) -> Result<Arc<dyn Storage>, DbError> {
    Ok(match engine {
        Engine::Lmdb => {
            let map_size = options.lmdb_map_size.unwrap_or(LmdbOptions::default().map_size);
            Arc::new(LmdbEngine::open(path, LmdbOptions { map_size, sync: options.sync })?)
        }
        Engine::Redb => Arc::new(RedbEngine::open(path, options.sync)?),
        #[cfg(feature = "sled")]
        Engine::Sled => Arc::new(sled_engine::SledEngine::open(path, options.sync)?),
    })
}

fn read<T, E: From<DbError>>(storage: &dyn Storage, body: impl FnOnce(&Snapshot<'_>) -> Result<T, E>) -> Result<T, E> {
    let mut body = Some(body);
    let mut result = None;
    storage.read(&mut |rows| result = body.take().map(|body| body(&Snapshot::new(rows))))?;
    result.expect("an engine that reports no error has run the closure")
}

/// The closure is given back if it would have had to wait.
fn read_at_once<T, E: From<DbError>, B: FnOnce(&Snapshot<'_>) -> Result<T, E>>(
    storage: &dyn Storage,
    body: B,
) -> Result<Result<T, E>, B> {
    let mut body = Some(body);
    let mut result = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        storage.read_at_once(&mut |rows| result = body.take().map(|body| body(&Snapshot::new(rows))))
    }));
    match (outcome, body) {
        (Ok(Ok(AtOnce::WouldWait)), Some(not_run)) => Err(not_run),
        (Ok(Ok(_)), _) => Ok(result.expect("an engine that reports no error has run the closure")),
        (Ok(Err(error)), _) => Ok(Err(error.into())),
        (Err(panic), _) => Ok(Err(DbError::Panicked { message: panic_message(&*panic) }.into())),
    }
}
