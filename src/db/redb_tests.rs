//! What only redb does: giving up after an error of its disk, and coming back.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, StorageBackend};

use super::{COMMITS_UNSYNCED_MAX, FILE_NAME, RedbEngine};
use crate::engine::{Durability, ReadRows, Storage, Tree};
use crate::error::DbError;

/// A file on a disk that can be made full, without the lock that keeps a second opening out.
struct Failing {
    file: File,
    full: Arc<AtomicBool>,
}

impl fmt::Debug for Failing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Failing").finish_non_exhaustive()
    }
}

impl Failing {
    fn check(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        // Overwriting the header needs no room: opening works on a full disk.
        if offset > 0 {
            self.check()?;
        }
        self.file.write_all_at(data, offset)
    }
}

fn open_failing(directory: &Path, full: &Arc<AtomicBool>) -> RedbEngine {
    let (path, full) = (directory.join(FILE_NAME), full.clone());
    let open = move || {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        Database::builder().create_with_backend(Failing { file, full: full.clone() })
    };
    RedbEngine::open_with(directory, Durability::Synced, Box::new(open)).unwrap()
}

fn insert(engine: &RedbEngine, tree: Tree, keys: std::ops::Range<u32>, length: usize) -> Result<(), DbError> {
    let value = vec![7; length];
    engine.write(&mut |rows| keys.clone().try_for_each(|key| rows.insert(tree, &key.to_be_bytes(), &value)))
}

fn count(engine: &RedbEngine, tree: Tree) -> u64 {
    let mut count = None;
    engine.read(&mut |rows: &dyn ReadRows| count = Some(rows.count(tree).unwrap())).unwrap();
    count.unwrap()
}

#[test]
fn full_disk_keeps_nothing_of_the_transaction_and_is_overcome_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let engine = open_failing(directory.path(), &full);
    let tree = engine.open_tree("rows").unwrap();
    insert(&engine, tree, 0..100, 1000).unwrap();
    full.store(true, Ordering::SeqCst);
    let failure = insert(&engine, tree, 100..200, 1000).unwrap_err();
    assert!(failure.is_full(), "{failure:?}");
    full.store(false, Ordering::SeqCst);
    assert_eq!(count(&engine, tree), 100);
    insert(&engine, tree, 100..200, 1000).unwrap();
    assert_eq!(count(&engine, tree), 200);
}

#[test]
fn database_that_was_given_up_is_opened_again_for_those_who_come_later() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RedbEngine::open(directory.path(), Durability::Synced).unwrap();
    let tree = engine.open_tree("rows").unwrap();
    insert(&engine, tree, 0..10, 10).unwrap();
    engine.state.write().unwrap().database = Err(DbError::Closed);
    assert_eq!(count(&engine, tree), 10);
    insert(&engine, tree, 10..20, 10).unwrap();
    assert_eq!(count(&engine, tree), 20);
}

#[test]
fn file_is_for_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RedbEngine::open(&directory.path().join("db"), Durability::Synced).unwrap();
    engine.snapshot_to(&directory.path().join("copy")).unwrap();
    for place in ["db", "copy"] {
        let mode = std::fs::metadata(directory.path().join(place).join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{place}");
    }
}

#[test]
fn unsynced_commits_are_synced_from_time_to_time() {
    let directory = tempfile::tempdir().unwrap();
    let engine = RedbEngine::open(directory.path(), Durability::Unsynced).unwrap();
    let tree = engine.open_tree("rows").unwrap();
    for key in 0..COMMITS_UNSYNCED_MAX + 1 {
        insert(&engine, tree, key..key + 1, 10).unwrap();
    }
    assert_eq!(engine.commits_unsynced.load(Ordering::SeqCst), 0);
    // What a kill leaves: the file as it is.
    let killed = directory.path().join("killed");
    std::fs::create_dir(&killed).unwrap();
    std::fs::copy(directory.path().join(FILE_NAME), killed.join(FILE_NAME)).unwrap();
    insert(&engine, tree, 9000..9001, 10).unwrap();
    let left = RedbEngine::open(&killed, Durability::Synced).unwrap();
    let tree = left.open_tree("rows").unwrap();
    assert_eq!(count(&left, tree), u64::from(COMMITS_UNSYNCED_MAX) + 1);
}
