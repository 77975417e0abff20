use std::cell::Cell;
use std::ops::Bound::Unbounded;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use garage_types::offload::Inline;

use super::environment::TREES_MAX;
use super::{FILE_NAME, LmdbEngine, LmdbOptions};
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
