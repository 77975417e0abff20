//! What an engine has to provide, and which engines this build has.
//!
//! An engine is a set of ordered trees of bytes with one write transaction at a time and any number of consistent readers. It knows
//! nothing of queues, groups and async code: [`crate::writer`] brings those. Keys and bounds reach it already checked
//! ([`crate::bounds`]), so that all engines agree about the odd ones.

use std::ops::{Bound, ControlFlow};
use std::path::Path;

use crate::error::DbError;

/// The longest key in bytes, the same for every engine: what LMDB takes with its usual pages of 4 KiB.
pub const KEY_LENGTH_MAX: usize = 1982;

/// The longest value in bytes, the same for every engine, so that each can take over the rows of another.
pub const VALUE_LENGTH_MAX: usize = 1 << 30;

/// The engines of this build, as named by `db_engine` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Lmdb,
    Redb,
    #[cfg(feature = "sled")]
    Sled,
}

impl Engine {
    /// All there are.
    pub const ALL: &'static [Engine] = &[
        Engine::Lmdb,
        Engine::Redb,
        #[cfg(feature = "sled")]
        Engine::Sled,
    ];

    /// The names [`Engine::parse`] takes.
    pub const BUILT_IN: &'static [&'static str] = &[
        "lmdb",
        "redb",
        #[cfg(feature = "sled")]
        "sled",
    ];

    /// The engine of that name.
    ///
    /// # Errors
    /// [`DbError::UnknownEngine`] lists those that are built in.
    pub fn parse(name: &str) -> Result<Self, DbError> {
        let named = Self::ALL.iter().find(|engine| engine.name() == name);
        named.copied().ok_or_else(|| DbError::UnknownEngine { name: name.to_owned(), built_in: Self::BUILT_IN })
    }

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Lmdb => "lmdb",
            Engine::Redb => "redb",
            #[cfg(feature = "sled")]
            Engine::Sled => "sled",
        }
    }

    /// What an operator has to know before trusting it; `None` when there is nothing.
    pub fn caution(self) -> Option<&'static str> {
        match self {
            Engine::Lmdb | Engine::Redb => None,
            #[cfg(feature = "sled")]
            Engine::Sled => Some(crate::sled_engine::CAUTION),
        }
    }

    /// The directory of its files within the metadata directory.
    pub fn directory_name(self) -> &'static str {
        match self {
            Engine::Lmdb => "db.lmdb",
            Engine::Redb => "db.redb",
            #[cfg(feature = "sled")]
            Engine::Sled => "db.sled",
        }
    }
}

impl Engine {
    /// The file within its directory without which, or with nothing in it, there is no database.
    pub fn main_file(self) -> &'static str {
        match self {
            Engine::Lmdb => crate::lmdb::FILE_NAME,
            Engine::Redb => crate::redb_engine::FILE_NAME,
            #[cfg(feature = "sled")]
            Engine::Sled => "db",
        }
    }
}

/// How to open an engine.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    pub sync: Durability,
    /// Address space for LMDB's file in bytes, to begin with; its own default when `None`. Other engines have no use for it.
    pub lmdb_map_size: Option<u64>,
}

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on stable storage.
    #[default]
    Synced,
    /// Once the operating system has it: a power cut loses the latest commits, and with LMDB may destroy the whole database.
    Unsynced,
}

/// One ordered map of keys to values within a database. Only meaningful to the database that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tree(pub(crate) u32);

impl Tree {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The order in which a range is visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Backward,
}

/// The lower and the upper end of a range of keys.
pub type Bounds<'b> = (Bound<&'b [u8]>, Bound<&'b [u8]>);

/// Called with each key and value; `Break` ends the range.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// A consistent view of all trees.
pub(crate) trait ReadRows {
    /// Calls `found` with the value of `key`, if there is one.
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError>;

    /// Visits the rows within `bounds`, which must be in order (see [`crate::bounds::check`]).
    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError>;

    /// How many rows a tree has; cheap.
    fn count(&self, tree: Tree) -> Result<u64, DbError>;
}

/// The one write transaction.
pub(crate) trait WriteRows: ReadRows {
    /// Sets the value of a key of 1 to [`KEY_LENGTH_MAX`] bytes.
    fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError>;

    /// Removes a key, which may be absent.
    fn remove(&mut self, tree: Tree, key: &[u8]) -> Result<(), DbError>;
}

/// Whether [`Storage::read_at_once`] has run its closure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtOnce {
    Done,
    /// It would have had to wait; the closure was not run.
    WouldWait,
}

/// An open engine. Every call but [`Storage::read_at_once`] may block.
pub(crate) trait Storage: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// The tree of that name, created durably when missing. The same name gives the same tree.
    fn open_tree(&self, name: &str) -> Result<Tree, DbError>;

    /// The names of all trees there are, opened or not, in their order.
    fn tree_names(&self) -> Result<Vec<String>, DbError>;

    /// Runs `body` once on a consistent view, unless an error is returned.
    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError>;

    /// As [`Storage::read`], unless that would mean waiting for a writer, for its disk, or for the files to be opened again. An engine
    /// that cannot rule these out always [`AtOnce::WouldWait`]s.
    fn read_at_once(&self, _body: &mut dyn FnMut(&dyn ReadRows)) -> Result<AtOnce, DbError> {
        Ok(AtOnce::WouldWait)
    }

    /// Runs `body` in a transaction and commits it, durably if so configured. An error, of `body` or of the commit, leaves nothing
    /// behind. `body` may run more than once; only its last run counts.
    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError>;

    /// Brings everything committed to stable storage.
    fn sync(&self) -> Result<(), DbError>;

    /// Writes a consistent copy into `directory`, which does not exist. The caller brings it to stable storage, or removes what a
    /// failure leaves.
    fn snapshot_to(&self, directory: &Path) -> Result<(), DbError>;

    /// Bytes within the files that later commits will use before the files grow, as far as the engine can tell cheaply.
    fn reusable_bytes(&self) -> Result<u64, DbError> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{DbError, Engine};

    #[test]
    fn every_built_in_name_gives_the_engine_of_that_name() {
        for name in Engine::BUILT_IN {
            assert_eq!(Engine::parse(name).unwrap().name(), *name);
        }
    }

    #[test]
    fn unknown_engine_error_lists_the_engines_there_are() {
        let error = Engine::parse("sqlite").unwrap_err();
        assert!(matches!(error, DbError::UnknownEngine { .. }));
        let list = Engine::BUILT_IN.join(", ");
        assert_eq!(error.to_string(), format!("there is no metadata engine \"sqlite\" in this build; there are: {list}"));
    }
}
