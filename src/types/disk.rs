//! The file system as a capability: what is written, what is on stable storage, and what a power cut would take.
//!
//! All calls block; async code reaches them through [`crate::Offload`]. Paths are absolute or relative to the process.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub name: OsString,
    pub kind: FileKind,
}

/// Size of the file system that holds a path, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    pub total: u64,
    /// What an unprivileged process may still use.
    pub available: u64,
}

/// By which a file is told from another that has its path later. Those of one file are equal while its file system stays mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Some file systems get another number when they are mounted again.
    pub device: u64,
    /// Some file systems number a file anew from time to time.
    pub inode: u64,
    /// When its content was last written, in nanoseconds since 1970, as fine as the file system has it.
    pub modified_ns: i128,
}

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mode 0644, less the process's umask.
    Everyone,
    /// Mode 0600.
    OwnerOnly,
}

/// An open file, read at given offsets. It stays readable after its name is gone.
#[expect(clippy::len_without_is_empty, reason = "a length that can fail to be read, not a collection's")]
pub trait DiskFile: Send + Sync {
    /// Length in bytes when it was opened or last asked.
    ///
    /// # Errors
    /// What the operating system reports.
    fn len(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; else what the operating system reports.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// How much is written at once by disks that cannot reserve room otherwise.
const PREALLOCATED_PART: usize = 64 << 10;

/// A file system. The daemon has the real one; [`crate::memory_disk::MemoryDisk`] forgets what was not synced.
pub trait Disk: Send + Sync + 'static {
    /// The whole content of a file.
    ///
    /// # Errors
    /// `NotFound`, and what the operating system reports.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Opens a file for reading.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Creates a file that must not exist and writes `parts` one after another. Nothing is synced.
    ///
    /// # Errors
    /// `AlreadyExists`, `StorageFull`, … . On failure the partial file is left for the caller to remove.
    fn create(&self, path: &Path, parts: &[&[u8]], access: Access) -> io::Result<()>;

    /// Creates a file that must not exist and takes up `len` bytes, for its owner only. Nothing is synced.
    ///
    /// # Errors
    /// As [`Disk::create`].
    fn preallocate(&self, path: &Path, len: u64) -> io::Result<()> {
        let zeros = vec![0; PREALLOCATED_PART];
        let whole = usize::try_from(len).map_err(|_too_long| io::ErrorKind::FileTooLarge)? / PREALLOCATED_PART;
        let mut parts = vec![zeros.as_slice(); whole];
        parts.push(&zeros[..(len % PREALLOCATED_PART as u64) as usize]);
        self.create(path, &parts, Access::OwnerOnly)
    }

    /// Overwrites the beginning of a file that exists, where it lies: a full disk does not keep that from being done, a crash may
    /// leave some of it. Nothing is synced.
    ///
    /// # Errors
    /// `NotFound`, `Unsupported`, and what the operating system reports.
    fn overwrite(&self, _path: &Path, _content: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Brings a file's content to stable storage (not its name: [`Disk::sync_directory`]).
    ///
    /// # Errors
    /// What the operating system reports; the content may then be lost.
    fn sync_file(&self, path: &Path) -> io::Result<()>;

    /// Brings the names in a directory to stable storage.
    ///
    /// # Errors
    /// What the operating system reports.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Replaces `to` by `from` atomically.
    ///
    /// # Errors
    /// What the operating system reports.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes one file.
    ///
    /// # Errors
    /// `NotFound`, and what the operating system reports.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Creates one directory whose parent exists. Succeeds with `false` when it exists already.
    ///
    /// # Errors
    /// `NotFound` without a parent, and what the operating system reports.
    fn create_directory(&self, path: &Path) -> io::Result<bool>;

    /// The names in a directory, in no particular order.
    ///
    /// # Errors
    /// `NotFound`, and what the operating system reports.
    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>>;

    /// What is at `path`; `None` when nothing is.
    ///
    /// # Errors
    /// What the operating system reports, apart from `NotFound`.
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>>;

    /// Which file is at `path`.
    ///
    /// # Errors
    /// `NotFound`, and what the operating system reports.
    fn identity(&self, path: &Path) -> io::Result<FileIdentity>;

    /// The space of the file system that holds `path`.
    ///
    /// # Errors
    /// What the operating system reports.
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;
}

/// An I/O error with what was being done and to which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: names the action and the path.
    pub fn of<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
        move |source| FileError { action, path: path.to_owned(), source }
    }
}

/// The content of a state file; `None` only when there is no such file, which alone means a first start.
///
/// # Errors
/// Every other failure to read it.
pub fn read_state(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match disk.read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::of("read", path)(error)),
    }
}

/// Replaces a state file: after success the new content is on stable storage, after a failure or a crash the old one still is.
///
/// # Errors
/// Any step's failure, with its path.
pub fn replace_atomically(disk: &dyn Disk, path: &Path, content: &[u8], access: Access) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    match disk.remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(FileError::of("remove", &temporary)(error)),
    }
    disk.create(&temporary, &[content], access).map_err(FileError::of("write", &temporary))?;
    disk.sync_file(&temporary).map_err(FileError::of("sync", &temporary))?;
    disk.rename(&temporary, path).map_err(FileError::of("replace", path))?;
    let parent = path.parent().unwrap_or(Path::new("."));
    disk.sync_directory(parent).map_err(FileError::of("sync", parent))
}

/// Creates `path` and every missing directory above it, each made durable in its parent.
///
/// # Errors
/// Any step's failure, with its path.
pub fn create_directories(disk: &dyn Disk, path: &Path) -> Result<(), FileError> {
    if path.as_os_str().is_empty() || disk.kind(path).map_err(FileError::of("look at", path))? == Some(FileKind::Directory) {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    create_directories(disk, parent)?;
    disk.create_directory(path).map_err(FileError::of("create directory", path))?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    disk.sync_directory(parent).map_err(FileError::of("sync", parent))
}
