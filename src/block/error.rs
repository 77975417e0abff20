//! What can go wrong with one block on this node's own disks.

use std::io;
use std::path::{Path, PathBuf};

use garage_types::BlockHash;
use garage_types::disk::FileError;
use garage_types::offload::Lost;

use crate::file::FormatError;
use crate::stored::ContentError;

/// Why a copy of a block cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Content(#[from] ContentError),
}

/// Another directory, or none, is where a data directory was opened: its disk was unmounted while the node runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not the directory that was opened: its disk is not mounted, or another one is", path.display())]
pub struct Exchanged {
    pub path: PathBuf,
}

/// Why nothing was done in a data directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(transparent)]
    Exchanged(#[from] Exchanged),
    #[error(transparent)]
    File(#[from] FileError),
}

impl PlaceError {
    pub(crate) fn of_block(self, hash: BlockHash) -> BlockError {
        match self {
            PlaceError::Exchanged(exchanged) => exchanged.into(),
            PlaceError::File(source) => BlockError::Io { hash, source },
        }
    }

    pub(crate) fn of_directory(self) -> BlockError {
        match self {
            PlaceError::Exchanged(exchanged) => exchanged.into(),
            PlaceError::File(source) => BlockError::Directory { source },
        }
    }
}

/// What can go wrong with one block on this node.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("block {hash} is not on this node")]
    Missing { hash: BlockHash },
    /// The copy has been set aside and logged; another replica should answer, and the block be fetched again.
    #[error("block {hash} was corrupt in {}", path.display())]
    Corrupt {
        hash: BlockHash,
        path: PathBuf,
        #[source]
        source: Damage,
    },
    /// Nothing is wrong with the file: this program is older than the one that wrote it.
    #[error("block {hash} in {} has format version {version}, which a newer version of this program wrote", path.display())]
    NewerFormat { hash: BlockHash, path: PathBuf, version: u8 },
    /// Below the reserve, or the disk said so itself (then with its error). Reads go on.
    #[error("the data directory {} is full", directory.display())]
    Full {
        directory: PathBuf,
        #[source]
        source: Option<FileError>,
    },
    /// Nothing is known of the block and nothing was done: it may be as good as ever, where the directory is now.
    #[error(transparent)]
    Exchanged(#[from] Exchanged),
    #[error("bytes up to {end} were asked of block {hash}, which has {plain_len}")]
    OutOfRange { hash: BlockHash, end: u64, plain_len: u32 },
    #[error("block {hash}")]
    Io {
        hash: BlockHash,
        #[source]
        source: FileError,
    },
    #[error("a directory of blocks")]
    Directory {
        #[source]
        source: FileError,
    },
    #[error("the work on block files was interrupted")]
    Lost {
        #[from]
        source: Lost,
    },
}

impl BlockError {
    /// Whether the disk itself says that it cannot give the bytes back. Any other error (no descriptor, no memory, no permission) says
    /// nothing about the file, which may be as good as ever.
    pub fn is_of_disk(&self) -> bool {
        match self {
            BlockError::Io { source, .. } => source.source.raw_os_error().is_some_and(|errno| OF_DISK.contains(&errno)),
            BlockError::Missing { .. }
            | BlockError::Corrupt { .. }
            | BlockError::NewerFormat { .. }
            | BlockError::Full { .. }
            | BlockError::Exchanged(_)
            | BlockError::OutOfRange { .. }
            | BlockError::Directory { .. }
            | BlockError::Lost { .. } => false,
        }
    }
}

/// By which Linux says that a medium or a file system cannot give bytes back: EIO, ENODATA, EBADMSG, EILSEQ, EUCLEAN and EREMOTEIO. The
/// first has the same number everywhere.
const OF_DISK: [i32; 6] = [5, 61, 74, 84, 117, 121];

/// Why one copy, in one directory, did not answer.
#[derive(Debug)]
pub(crate) enum CopyError {
    Absent,
    Damaged(Damage),
    NewerFormat { version: u8 },
    OutOfRange { end: u64, plain_len: u32 },
    Io(FileError),
    Exchanged(Exchanged),
}

impl CopyError {
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CopyError + 'a {
        move |error| match error.kind() {
            io::ErrorKind::NotFound => CopyError::Absent,
            _ => CopyError::Io(FileError::of(action, path)(error)),
        }
    }

    /// As the error of the block, for what is final whatever the other copies say.
    pub(crate) fn of_block(self, hash: BlockHash, path: PathBuf) -> BlockError {
        match self {
            CopyError::Absent => BlockError::Missing { hash },
            CopyError::Damaged(source) => BlockError::Corrupt { hash, path, source },
            CopyError::NewerFormat { version } => BlockError::NewerFormat { hash, path, version },
            CopyError::OutOfRange { end, plain_len } => BlockError::OutOfRange { hash, end, plain_len },
            CopyError::Io(source) => BlockError::Io { hash, source },
            CopyError::Exchanged(exchanged) => exchanged.into(),
        }
    }
}

impl From<PlaceError> for CopyError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Exchanged(exchanged) => CopyError::Exchanged(exchanged),
            PlaceError::File(error) => CopyError::Io(error),
        }
    }
}

impl From<FormatError> for CopyError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::NewerVersion { version } => CopyError::NewerFormat { version },
            damage => CopyError::Damaged(damage.into()),
        }
    }
}

impl From<ContentError> for CopyError {
    fn from(error: ContentError) -> Self {
        CopyError::Damaged(error.into())
    }
}

/// Whether an error of the disk means that it is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
