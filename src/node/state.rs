//! What a node keeps in its metadata directory beside the database: who it is, how often it has started, and the lock that keeps a
//! second daemon out.
//!
//! Must stay true: only a file that does not exist means a first start; anything else that keeps us from reading our own state stops
//! the node with the path in the message.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use garage_net::identity::{Identity, IdentityError};
use garage_types::Random;
use garage_types::disk::{Access, Disk, FileError, create_directories, read_state, replace_atomically};

/// The node's secret key.
pub const NODE_KEY: &str = "node_key";
/// The node's id in hexadecimal, for the command line.
pub const NODE_KEY_PUBLIC: &str = "node_key.pub";
const STARTS: &str = "starts";
const LOCK: &str = "lock";

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} does not hold a node key", path.display())]
    NodeKey {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error("{} does not hold a number", path.display())]
    Starts { path: PathBuf },
    #[error("another garage daemon is using {}", path.display())]
    InUse { path: PathBuf },
    #[error("cannot lock {}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Held for as long as the daemon runs.
#[derive(Debug)]
pub struct DirectoryLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

/// Keeps a second daemon out of a metadata directory, which is created when missing.
///
/// # Errors
/// [`StateError::InUse`] when another process holds the lock.
pub fn lock(disk: &dyn Disk, metadata_dir: &Path) -> Result<DirectoryLock, StateError> {
    create_directories(disk, metadata_dir)?;
    let path = metadata_dir.join(LOCK);
    let failed = |source| StateError::Lock { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    hold(file, metadata_dir)
}

fn hold(file: File, directory: &Path) -> Result<DirectoryLock, StateError> {
    match file.try_lock() {
        Ok(()) => Ok(DirectoryLock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(StateError::InUse { path: directory.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(StateError::Lock { path: directory.join(LOCK), source }),
    }
}

/// Keeps daemons out of a directory if it is one that a daemon has used.
///
/// # Errors
/// As [`lock`].
pub fn lock_existing(directory: &Path) -> Result<Option<DirectoryLock>, StateError> {
    let path = directory.join(LOCK);
    match File::options().write(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Lock { path, source }),
        Ok(file) => hold(file, directory).map(Some),
    }
}

/// The node's identity: read, or made on the first start.
///
/// # Errors
/// [`StateError`]; a key that is there and cannot be read is never replaced.
pub fn identity(disk: &dyn Disk, random: &dyn Random, metadata_dir: &Path) -> Result<Identity, StateError> {
    let path = metadata_dir.join(NODE_KEY);
    let identity = match read_state(disk, &path)? {
        Some(bytes) => Identity::from_secret_bytes(&bytes).map_err(|source| StateError::NodeKey { path, source })?,
        None => {
            let identity = Identity::generate(random);
            replace_atomically(disk, &path, &identity.secret_bytes(), Access::OwnerOnly)?;
            identity
        }
    };
    let public = metadata_dir.join(NODE_KEY_PUBLIC);
    let text = format!("{}\n", identity.id());
    if read_state(disk, &public)?.as_deref() != Some(text.as_bytes()) {
        replace_atomically(disk, &public, text.as_bytes(), Access::Everyone)?;
    }
    Ok(identity)
}

/// The number of the start that comes next on this node, or is under way: 1 is the first.
///
/// # Errors
/// [`StateError`].
pub fn next_start(disk: &dyn Disk, metadata_dir: &Path) -> Result<u64, StateError> {
    let path = metadata_dir.join(STARTS);
    let counted: u64 = match read_state(disk, &path)? {
        None => 0,
        Some(bytes) => {
            let counted = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
            counted.ok_or(StateError::Starts { path })?
        }
    };
    Ok(counted + 1)
}

/// Counts a start, so that its number never comes again. Only once the database has recorded it: what the database knows is never
/// older than what is counted here, unless it was put back.
///
/// # Errors
/// [`StateError`].
pub fn count_start(disk: &dyn Disk, metadata_dir: &Path, start: u64) -> Result<(), StateError> {
    let path = metadata_dir.join(STARTS);
    let text = format!("{start}\n");
    match replace_atomically(disk, &path, text.as_bytes(), Access::Everyone) {
        // A node has to start on a full disk, or nobody could delete anything. A few bytes of one sector are written or not.
        Err(error) if start > 1 && is_full(&error) => {
            disk.overwrite(&path, text.as_bytes()).map_err(FileError::of("overwrite", &path))?;
            disk.sync_file(&path).map_err(FileError::of("sync", &path))?;
        }
        replaced => replaced?,
    }
    Ok(())
}

fn is_full(error: &FileError) -> bool {
    matches!(error.source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use garage_types::disk::{Access, Disk};
    use garage_types::memory_disk::MemoryDisk;
    use garage_types::random::SeededRandom;

    use super::{StateError, count_start, identity, next_start};

    fn start(disk: &MemoryDisk) -> u64 {
        let start = next_start(disk, Path::new("/")).unwrap();
        count_start(disk, Path::new("/"), start).unwrap();
        start
    }

    #[test]
    fn a_node_keeps_its_identity_and_counts_its_starts() {
        let (disk, random) = (MemoryDisk::new(), SeededRandom::new(1));
        let first = identity(&disk, &random, Path::new("/")).unwrap().id();
        disk.crash();
        assert_eq!(identity(&disk, &random, Path::new("/")).unwrap().id(), first);
        assert_eq!([start(&disk), start(&disk)], [1, 2]);
    }

    #[test]
    fn starts_are_counted_on_a_full_disk_too() {
        let disk = MemoryDisk::new();
        let count = || start(&disk);
        assert_eq!(count(), 1);
        disk.set_capacity(Some(2));
        let after: Vec<u64> = (0..10).map(|_| count()).collect();
        assert_eq!(after, (2..12).collect::<Vec<_>>());
        disk.crash();
        assert_eq!(count(), 12);
        disk.set_capacity(None);
        assert_eq!(count(), 13);
    }

    #[test]
    fn a_damaged_key_stops_the_node_and_is_not_replaced() {
        let (disk, random) = (MemoryDisk::new(), SeededRandom::new(1));
        disk.create(Path::new("/node_key"), &[b"short"], Access::OwnerOnly).unwrap();
        assert!(matches!(identity(&disk, &random, Path::new("/")), Err(StateError::NodeKey { .. })));
        assert_eq!(disk.read(Path::new("/node_key")).unwrap(), b"short");
    }
}
