//! What can go wrong between a caller and the engine.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use garage_types::offload::Lost;

/// The engine's own error. Shared, because one failed commit answers every member of its group.
pub type EngineError = Arc<dyn Error + Send + Sync>;

/// What there is no more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The file system, or the quota on it.
    Disk,
    /// The address space the engine may map its file into (`lmdb_map_size`).
    Map,
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Limit::Disk => "disk",
            Limit::Map => "memory map of the metadata engine",
        })
    }
}

/// Why a database operation did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DbError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: EngineError,
    },
    #[error("the metadata engine cannot {action}")]
    Engine {
        action: &'static str,
        #[source]
        source: EngineError,
    },
    /// Nothing of the transaction is kept; reads go on, and smaller or later writes may succeed.
    #[error("the {limit} is full")]
    Full {
        limit: Limit,
        #[source]
        source: EngineError,
    },
    /// Copied in part, or cut by a file system that lost its end. What is left is not the database it was.
    #[error("{} is cut short: it has {bytes} bytes of {expected}, and pages in use are missing", path.display())]
    CutShort { path: PathBuf, bytes: u64, expected: u64 },
    #[error("a database key must not be empty")]
    KeyEmpty,
    #[error("a database key of {length} bytes is longer than {max} bytes")]
    KeyTooLong { length: usize, max: usize },
    #[error("a database value of {length} bytes is longer than {max} bytes")]
    ValueTooLong { length: usize, max: usize },
    #[error("the database has {max} trees already")]
    TooManyTrees { max: usize },
    #[error("this tree belongs to another database")]
    UnknownTree,
    #[error("the database {} is already open in this process", path.display())]
    AlreadyOpen { path: PathBuf },
    #[error("there is no metadata engine {name:?} in this build; there are: {}", built_in.join(", "))]
    UnknownEngine { name: String, built_in: &'static [&'static str] },
    #[error("the {engine} engine cannot {action}")]
    Unsupported { engine: &'static str, action: &'static str },
    #[error("a database closure panicked: {message}")]
    Panicked { message: String },
    /// The database was closed, or its writer has ended.
    #[error("the database is closed")]
    Closed,
    /// The thread that did the work ended without an answer: whether it was done is not known.
    #[error("the database work was lost before it was answered")]
    Lost(#[from] Lost),
}

impl DbError {
    /// Whether freeing space may help.
    pub fn is_full(&self) -> bool {
        matches!(self, DbError::Full { .. })
    }
}
