//! Snapshots on a real disk, of every engine.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use garage_db::{Db, DbError, Engine, EngineOptions, Tree};
use garage_table::starts::start_facts;
use garage_types::clock::ManualClock;
use garage_types::memory_disk::MemoryDisk;
use garage_types::offload::Inline;
use garage_types::{Disk, Timestamp};

use super::{SnapshotError, SnapshotParts, Snapshots, names, next_name, superfluous, take_regularly};
use crate::real_disk::RealDisk;
use crate::state;

const NOON: Timestamp = Timestamp::from_millis(1_710_504_832_345);

fn open(engine: Engine, path: &Path) -> (Db, Tree) {
    let db = Db::open(engine, path, &EngineOptions::default(), Arc::new(Inline)).unwrap();
    let tree = db.open_tree("rows").unwrap();
    (db, tree)
}

fn snapshots(db: &Db, directory: &Path, clock: &Arc<ManualClock>, disk: Arc<dyn Disk>) -> Snapshots {
    Snapshots::new(SnapshotParts {
        db: db.clone(),
        database: directory.join("db"),
        metadata_dir: directory.to_owned(),
        directory: directory.join("snapshots"),
        reserve_bytes: 0,
        disk,
        clock: clock.clone(),
        offload: Arc::new(Inline),
    })
}

async fn insert(db: &Db, tree: Tree, key: &'static [u8]) {
    db.write::<_, DbError>(move |transaction| transaction.insert(tree, key, b"")).await.unwrap();
}

fn sorted_names(directory: &Path) -> Vec<String> {
    let mut names = names(&directory.join("snapshots")).unwrap();
    names.sort();
    names
}

#[tokio::test]
async fn newest_two_are_kept_and_a_database_starts_from_each() {
    for engine in Engine::ALL.iter().copied() {
        let directory = tempfile::tempdir().unwrap();
        let (db, tree) = open(engine, &directory.path().join("db"));
        let clock = Arc::new(ManualClock::at(NOON));
        let snapshots = snapshots(&db, directory.path(), &clock, Arc::new(RealDisk));
        // What a crash has left.
        fs::create_dir_all(directory.path().join("snapshots/2024-03-15T12:00:00Z.partial/more")).unwrap();
        fs::create_dir_all(directory.path().join("snapshots/2024-03-15T12:00:00Z.partial.partial")).unwrap();
        fs::create_dir_all(directory.path().join("snapshots/mine.partial")).unwrap();
        for key in [&b"1"[..], b"2", b"3"] {
            insert(&db, tree, key).await;
            snapshots.take().await.unwrap();
        }
        insert(&db, tree, b"later").await;
        let expected = ["2024-03-15T12:13:53Z", "2024-03-15T12:13:54Z", "mine.partial"];
        assert_eq!(sorted_names(directory.path()), expected, "{engine:?}: the clock stood still");
        db.close().await.unwrap();
        drop((db, snapshots));

        for (name, rows) in [("2024-03-15T12:13:53Z", 2), ("2024-03-15T12:13:54Z", 3)] {
            // As the operator does it.
            fs::remove_dir_all(directory.path().join("db")).unwrap();
            fs::rename(directory.path().join("snapshots").join(name), directory.path().join("db")).unwrap();
            let (db, tree) = open(engine, &directory.path().join("db"));
            let count = db.read_blocking::<_, DbError>(|snapshot| snapshot.count(tree)).unwrap();
            assert_eq!(count, rows, "{engine:?} {name}");
            db.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_older_than_the_files_beside_it_and_the_database_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (db, _tree) = open(Engine::ALL[0], &directory.path().join("db"));
    let state = db.open_tree("node_state").unwrap();
    let start = state::next_start(&RealDisk, directory.path()).unwrap();
    state::count_start(&RealDisk, directory.path(), start).unwrap();
    db.write::<_, DbError>(move |tx| tx.insert(state, b"start", &start.to_be_bytes())).await.unwrap();
    let clock = Arc::new(ManualClock::at(NOON));
    let path = snapshots(&db, directory.path(), &clock, Arc::new(RealDisk)).take().await.unwrap();
    let next = state::next_start(&RealDisk, directory.path()).unwrap();
    let (copy, _tree) = open(Engine::ALL[0], &path);
    for (db, is_older) in [(&db, false), (&copy, true)] {
        let facts = start_facts(db, next).await.unwrap();
        assert_eq!(facts.recorded_start < Some(facts.previous_start), is_older, "{facts:?}");
    }
}

#[tokio::test]
async fn snapshot_that_may_not_fit_is_refused_and_leaves_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let (db, tree) = open(Engine::Lmdb, &directory.path().join("db"));
    insert(&db, tree, b"key").await;
    let clock = Arc::new(ManualClock::at(NOON));
    snapshots(&db, directory.path(), &clock, Arc::new(RealDisk)).take().await.unwrap();
    let full = MemoryDisk::new();
    full.set_capacity(Some(1000));
    let error = snapshots(&db, directory.path(), &clock, Arc::new(full)).take().await.unwrap_err();
    assert!(matches!(error, SnapshotError::NoRoom { available: 1000, .. }), "{error}");
    assert_eq!(sorted_names(directory.path()).len(), 1);
}

#[tokio::test]
async fn snapshot_that_fails_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (db, _tree) = open(Engine::Lmdb, &directory.path().join("db"));
    let clock = Arc::new(ManualClock::at(NOON));
    let snapshots = snapshots(&db, directory.path(), &clock, Arc::new(RealDisk));
    // Something in the way of the unfinished copy that cannot be a directory.
    let in_the_way = directory.path().join("snapshots/2024-03-15T12:13:52Z");
    fs::create_dir_all(in_the_way.parent().unwrap()).unwrap();
    fs::write(&in_the_way, "").unwrap();
    snapshots.take().await.unwrap();
    assert_eq!(sorted_names(directory.path()), ["2024-03-15T12:13:52Z", "2024-03-15T12:13:53Z"], "another name is taken");
    let memory = Db::open_memory(garage_db::MemoryEngine::new()).unwrap();
    let of_memory = super::Snapshots::new(SnapshotParts {
        db: memory,
        database: directory.path().join("db"),
        metadata_dir: directory.path().to_owned(),
        directory: directory.path().join("others"),
        reserve_bytes: 0,
        disk: Arc::new(RealDisk),
        clock,
        offload: Arc::new(Inline),
    });
    assert!(matches!(of_memory.take().await, Err(SnapshotError::Db(DbError::Unsupported { .. }))));
    assert_eq!(fs::read_dir(directory.path().join("others")).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_taken_at_the_interval() {
    let directory = tempfile::tempdir().unwrap();
    let (db, _tree) = open(Engine::Lmdb, &directory.path().join("db"));
    let snapshots = snapshots(&db, directory.path(), &Arc::new(ManualClock::at(NOON)), Arc::new(RealDisk));
    let task = tokio::spawn(take_regularly(snapshots, Duration::from_secs(3600)));
    tokio::task::yield_now().await;
    assert!(!directory.path().join("snapshots").exists());
    for taken in 1..3 {
        tokio::time::advance(Duration::from_secs(3600)).await;
        let finished = || sorted_names(directory.path()).iter().filter(|name| super::is_snapshot(name)).count();
        while !directory.path().join("snapshots").exists() || finished() < taken {
            tokio::task::yield_now().await;
        }
    }
    task.abort();
}

#[test]
fn names_never_go_back_and_only_snapshots_count() {
    let names = ["2024-03-15T12:13:52Z", "2030-01-01T00:00:00Z", "2024-03-15T12:13:52.000Z", "notes"].map(str::to_owned);
    assert_eq!(next_name(&[], NOON), "2024-03-15T12:13:52Z");
    assert_eq!(next_name(&names, NOON), "2030-01-01T00:00:01Z");
    assert!(superfluous(&names).is_empty());
    let more = [&names[..], &["2025-01-01T00:00:00Z".to_owned()]].concat();
    assert_eq!(superfluous(&more), ["2024-03-15T12:13:52Z"]);
}
