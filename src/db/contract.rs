//! What every engine promises, run on each of them. What only one engine can do is tested beside it.

use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::ops::ControlFlow;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;

use garage_types::offload::Inline;
use tempfile::TempDir;

use crate::{Db, DbError, Direction, Durability, Engine, EngineOptions, KEY_LENGTH_MAX, MemoryEngine, Transaction, Tree};

/// An empty database and what keeps its files.
struct Fixture {
    db: Db,
    _directory: Option<TempDir>,
}

impl Fixture {
    fn memory() -> Self {
        Fixture { db: Db::open_memory(MemoryEngine::new()).unwrap(), _directory: None }
    }

    fn on_disk(engine: Engine) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = open(engine, &directory.path().join(engine.directory_name()));
        Fixture { db, _directory: Some(directory) }
    }
}

fn open(engine: Engine, path: &Path) -> Db {
    Db::open(engine, path, &EngineOptions::default(), Arc::new(Inline)).unwrap()
}

/// One of each engine; a failing assertion names it.
fn every_engine() -> Vec<Fixture> {
    std::iter::once(Fixture::memory()).chain(Engine::ALL.iter().copied().map(Fixture::on_disk)).collect()
}

/// An error type of a caller, to see that both kinds of error arrive.
#[derive(Debug, PartialEq)]
enum TestError {
    Refused,
    Db(String),
}

impl From<DbError> for TestError {
    fn from(error: DbError) -> Self {
        TestError::Db(error.to_string())
    }
}

async fn insert(db: &Db, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError> {
    let (key, value) = (key.to_vec(), value.to_vec());
    db.write(move |transaction| transaction.insert(tree, &key, &value)).await
}

async fn get(db: &Db, tree: Tree, key: &[u8]) -> Option<Vec<u8>> {
    let key = key.to_vec();
    db.read::<_, DbError>(move |snapshot| snapshot.get(tree, &key)).await.unwrap()
}

fn keys(db: &Db, tree: Tree, bounds: (Bound<&[u8]>, Bound<&[u8]>), direction: Direction) -> Vec<String> {
    let mut keys = Vec::new();
    db.read_blocking::<_, DbError>(|snapshot| {
        snapshot.range(tree, bounds, direction, &mut |key, _value| {
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            ControlFlow::Continue(())
        })
    })
    .unwrap();
    keys
}

fn transaction_keys(
    transaction: &Transaction<'_>,
    tree: Tree,
    bounds: (Bound<&[u8]>, Bound<&[u8]>),
    direction: Direction,
) -> Result<Vec<String>, DbError> {
    let mut keys = Vec::new();
    transaction.range(tree, bounds, direction, &mut |key, _value| {
        keys.push(String::from_utf8(key.to_vec()).unwrap());
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

#[tokio::test]
async fn committed_row_is_read_back_and_can_be_replaced_and_removed() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        assert_eq!(get(&db, tree, b"key").await, None, "{}", db.engine_name());
        insert(&db, tree, b"key", b"value").await.unwrap();
        assert_eq!(get(&db, tree, b"key").await.as_deref(), Some(&b"value"[..]), "{}", db.engine_name());
        insert(&db, tree, b"key", b"").await.unwrap();
        assert_eq!(get(&db, tree, b"key").await.as_deref(), Some(&b""[..]), "{}", db.engine_name());
        db.write(move |transaction| transaction.remove(tree, b"key")).await.unwrap();
        assert_eq!(get(&db, tree, b"key").await, None, "{}", db.engine_name());
    }
}

#[tokio::test]
async fn trees_are_apart_and_a_name_always_gives_the_same_tree() {
    for Fixture { db, _directory } in every_engine() {
        let (first, second) = (db.open_tree("first").unwrap(), db.open_tree("second").unwrap());
        assert_ne!(first, second, "{}", db.engine_name());
        assert_eq!(db.open_tree("first").unwrap(), first, "{}", db.engine_name());
        insert(&db, first, b"key", b"1").await.unwrap();
        assert_eq!(get(&db, second, b"key").await, None, "{}", db.engine_name());
    }
}

#[tokio::test]
async fn transaction_reads_its_own_writes() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"old", b"1").await.unwrap();
        let seen = db.write::<_, DbError>(move |transaction| {
            transaction.insert(tree, b"new", b"2")?;
            transaction.remove(tree, b"old")?;
            let (old, new) = (transaction.get(tree, b"old")?, transaction.get(tree, b"new")?);
            Ok((old, new, transaction_keys(transaction, tree, (Unbounded, Unbounded), Direction::Forward)?))
        });
        let expected = (None, Some(b"2".to_vec()), vec!["new".to_owned()]);
        assert_eq!(seen.await.unwrap(), expected, "{}", db.engine_name());
    }
}

#[tokio::test]
async fn refused_transaction_leaves_nothing_behind_and_returns_its_own_error() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"kept", b"1").await.unwrap();
        let refused = db.write(move |transaction| {
            transaction.insert(tree, b"new", b"1")?;
            transaction.remove(tree, b"kept")?;
            Err::<(), _>(TestError::Refused)
        });
        assert_eq!(refused.await, Err(TestError::Refused), "{}", db.engine_name());
        assert_eq!(keys(&db, tree, (Unbounded, Unbounded), Direction::Forward), ["kept"], "{}", db.engine_name());
    }
}

#[tokio::test]
async fn panicking_transaction_is_an_error_for_its_caller_only() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let panicked = db.write::<(), DbError>(move |transaction| {
            transaction.insert(tree, b"new", b"1")?;
            panic!("on purpose");
        });
        let error = panicked.await.unwrap_err();
        assert!(matches!(&error, DbError::Panicked { message } if message == "on purpose"), "{}: {error}", db.engine_name());
        insert(&db, tree, b"later", b"1").await.unwrap();
        assert_eq!(keys(&db, tree, (Unbounded, Unbounded), Direction::Forward), ["later"], "{}", db.engine_name());
    }
}

#[tokio::test]
async fn panicking_read_is_an_error_for_its_caller_only() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let error = db.read::<(), DbError>(|_snapshot| panic!("on purpose")).await.unwrap_err();
        assert!(matches!(error, DbError::Panicked { .. }), "{}: {error}", db.engine_name());
        insert(&db, tree, b"later", b"1").await.unwrap();
        assert_eq!(get(&db, tree, b"later").await.as_deref(), Some(&b"1"[..]), "{}", db.engine_name());
    }
}

#[tokio::test]
async fn read_at_once_sees_what_was_committed_and_returns_its_own_error() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"key", b"value").await.unwrap();
        let value = db.read_at_once::<_, DbError>(move |snapshot| snapshot.get(tree, b"key")).await.unwrap();
        assert_eq!(value.as_deref(), Some(&b"value"[..]), "{}", db.engine_name());
        let refused = db.read_at_once(|_snapshot| Err::<(), _>(TestError::Refused)).await;
        assert_eq!(refused, Err(TestError::Refused), "{}", db.engine_name());
        let error = db.read_at_once::<(), DbError>(|_snapshot| panic!("on purpose")).await.unwrap_err();
        assert!(matches!(error, DbError::Panicked { .. }), "{}: {error}", db.engine_name());
        assert_eq!(get(&db, tree, b"key").await.as_deref(), Some(&b"value"[..]), "{}", db.engine_name());
    }
}

#[tokio::test]
async fn read_at_once_waits_for_no_transaction_and_sees_nothing_of_it() {
    for Fixture { db, _directory } in every_engine() {
        if db.engine_name() == "memory" {
            continue; // Its transactions run to their end on the caller's thread.
        }
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"key", b"before").await.unwrap();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let writing = db.write::<_, DbError>(move |transaction| {
            transaction.insert(tree, b"key", b"after")?;
            begun.send(()).unwrap();
            // Ended by the other half being dropped.
            may_go_on.recv().unwrap_err();
            Ok(())
        });
        let reading = async {
            let has_begun = tokio::task::spawn_blocking(move || has_begun.recv().map(|()| has_begun)).await.unwrap().unwrap();
            let value = db.read_at_once::<_, DbError>(move |snapshot| snapshot.get(tree, b"key")).await.unwrap();
            drop(go_on);
            (value, has_begun)
        };
        let (written, (value, _has_begun)) = tokio::join!(writing, reading);
        written.unwrap();
        assert_eq!(value.as_deref(), Some(&b"before"[..]), "{}", db.engine_name());
        assert_eq!(get(&db, tree, b"key").await.as_deref(), Some(&b"after"[..]), "{}", db.engine_name());
    }
}

#[tokio::test]
async fn range_obeys_both_bounds_of_every_kind_in_both_directions() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let names = ["a", "b", "ba", "c", "d"];
        for name in names {
            insert(&db, tree, name.as_bytes(), b"").await.unwrap();
        }
        let ends = ["", "a", "b", "bb", "d", "e"];
        let bounds: Vec<Bound<&[u8]>> =
            ends.iter().flat_map(|end| [Included(end.as_bytes()), Excluded(end.as_bytes())]).chain([Unbounded]).collect();
        for lower in &bounds {
            for upper in &bounds {
                let bounds = (*lower, *upper);
                let is_within = |name: &str| RangeBounds::<[u8]>::contains(&bounds, name.as_bytes());
                let mut expected: Vec<_> = names.into_iter().filter(|name| is_within(name)).collect();
                let (engine, what) = (db.engine_name(), format!("{bounds:?}"));
                assert_eq!(keys(&db, tree, bounds, Direction::Forward), expected, "{engine} {what}");
                expected.reverse();
                assert_eq!(keys(&db, tree, bounds, Direction::Backward), expected, "{engine} {what}");
            }
        }
    }
}

#[tokio::test]
async fn range_within_a_transaction_merges_its_changes_with_the_engines_rows() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        for key in [b"b", b"c", b"e"] {
            insert(&db, tree, key, b"").await.unwrap();
        }
        let seen = db.write::<_, DbError>(move |transaction| {
            transaction.insert(tree, b"a", b"")?;
            transaction.insert(tree, b"d", b"")?;
            transaction.insert(tree, b"f", b"")?;
            transaction.remove(tree, b"c")?;
            let forward = transaction_keys(transaction, tree, (Included(b"a"), Excluded(b"f")), Direction::Forward)?;
            let backward = transaction_keys(transaction, tree, (Excluded(b"a"), Unbounded), Direction::Backward)?;
            Ok((forward, backward))
        });
        let (forward, backward) = seen.await.unwrap();
        assert_eq!(forward, ["a", "b", "d", "e"], "{}", db.engine_name());
        assert_eq!(backward, ["f", "e", "d", "b"], "{}", db.engine_name());
    }
}

#[tokio::test]
async fn range_ends_where_the_visitor_breaks() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        for key in [b"a", b"b", b"c"] {
            insert(&db, tree, key, b"").await.unwrap();
        }
        for direction in [Direction::Forward, Direction::Backward] {
            let mut visits = 0;
            let break_at_second = &mut |_key: &[u8], _value: &[u8]| {
                visits += 1;
                if visits == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let range = |snapshot: &crate::Snapshot<'_>| snapshot.range(tree, (Unbounded, Unbounded), direction, break_at_second);
            db.read_blocking::<_, DbError>(range).unwrap();
            assert_eq!(visits, 2, "{}", db.engine_name());
        }
    }
}

#[tokio::test]
async fn longest_key_is_kept_and_a_longer_or_empty_one_refused() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let longest = vec![0xff; KEY_LENGTH_MAX];
        insert(&db, tree, &longest, b"1").await.unwrap();
        assert_eq!(get(&db, tree, &longest).await.as_deref(), Some(&b"1"[..]), "{}", db.engine_name());
        let too_long = vec![0xff; KEY_LENGTH_MAX + 1];
        let error = insert(&db, tree, &too_long, b"1").await.unwrap_err();
        assert!(matches!(error, DbError::KeyTooLong { length: 1983, max: 1982 }), "{}: {error}", db.engine_name());
        let error = insert(&db, tree, b"", b"1").await.unwrap_err();
        assert!(matches!(error, DbError::KeyEmpty), "{}: {error}", db.engine_name());
    }
}

#[tokio::test]
async fn key_that_cannot_exist_is_absent_as_key_and_harmless_as_bound() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"a", b"1").await.unwrap();
        let too_long = vec![0xff; KEY_LENGTH_MAX + 1];
        for key in [&b""[..], &too_long] {
            assert_eq!(get(&db, tree, key).await, None, "{}", db.engine_name());
            let key = key.to_vec();
            db.write(move |transaction| transaction.remove(tree, &key)).await.unwrap();
        }
        let bounds = (Unbounded, Excluded(too_long.as_slice()));
        assert_eq!(keys(&db, tree, bounds, Direction::Forward), ["a"], "{}", db.engine_name());
        assert_eq!(keys(&db, tree, bounds, Direction::Backward), ["a"], "{}", db.engine_name());
    }
}

#[tokio::test]
async fn large_values_are_kept_whole() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let value: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        insert(&db, tree, b"large", &value).await.unwrap();
        assert!(get(&db, tree, b"large").await == Some(value), "{}", db.engine_name());
    }
}

#[tokio::test]
async fn count_follows_inserts_replacements_and_removals() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let count = || db.read_blocking::<_, DbError>(|snapshot| snapshot.count(tree)).unwrap();
        assert_eq!(count(), 0, "{}", db.engine_name());
        insert(&db, tree, b"a", b"1").await.unwrap();
        insert(&db, tree, b"b", b"1").await.unwrap();
        insert(&db, tree, b"b", b"2").await.unwrap();
        assert_eq!(count(), 2, "{}", db.engine_name());
        db.write(move |transaction| transaction.remove(tree, b"a")).await.unwrap();
        assert_eq!(count(), 1, "{}", db.engine_name());
    }
}

#[tokio::test]
async fn get_with_lends_the_value_without_copying() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"key", b"value").await.unwrap();
        let length =
            |key: &'static [u8]| db.read_blocking::<_, DbError>(|snapshot| snapshot.get_with(tree, key, <[u8]>::len)).unwrap();
        assert_eq!(length(b"key"), Some(5), "{}", db.engine_name());
        assert_eq!(length(b"absent"), None, "{}", db.engine_name());
    }
}

#[test]
fn snapshot_does_not_see_what_is_committed_after_it_began_and_does_not_delay_it() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(insert(&db, tree, b"key", b"before")).unwrap();
        db.read_blocking::<_, DbError>(|snapshot| {
            let committed = runtime.block_on(db.write(move |transaction| {
                transaction.remove(tree, b"key")?;
                transaction.insert(tree, b"other", b"after")
            }));
            committed.unwrap();
            assert_eq!(snapshot.get(tree, b"key")?.as_deref(), Some(&b"before"[..]), "{}", db.engine_name());
            assert_eq!(snapshot.get(tree, b"other")?, None, "{}", db.engine_name());
            assert_eq!(snapshot.count(tree)?, 1, "{}", db.engine_name());
            Ok(())
        })
        .unwrap();
        assert_eq!(keys(&db, tree, (Unbounded, Unbounded), Direction::Forward), ["other"], "{}", db.engine_name());
    }
}

#[tokio::test]
async fn transactions_of_many_tasks_see_each_other_one_after_another() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let db = db.clone();
            tasks.spawn(async move {
                db.write::<u32, DbError>(move |transaction| {
                    let count = transaction.get(tree, b"counter")?;
                    let count = count.map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
                    transaction.insert(tree, b"counter", &(count + 1).to_be_bytes())?;
                    Ok(count)
                })
                .await
                .unwrap()
            });
        }
        let mut seen = tasks.join_all().await;
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>(), "{}", db.engine_name());
    }
}

#[tokio::test]
async fn tree_of_another_database_is_an_error() {
    for Fixture { db, _directory } in every_engine() {
        let other = Db::open_memory(MemoryEngine::new()).unwrap();
        let foreign = other.open_tree("foreign").unwrap();
        let error = insert(&db, foreign, b"key", b"1").await.unwrap_err();
        assert!(matches!(error, DbError::UnknownTree), "{}: {error}", db.engine_name());
        let error = db.read_blocking::<_, DbError>(|snapshot| snapshot.get(foreign, b"key")).unwrap_err();
        assert!(matches!(error, DbError::UnknownTree), "{}: {error}", db.engine_name());
    }
}

#[tokio::test]
async fn closed_database_refuses_writes_and_still_reads() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"key", b"1").await.unwrap();
        db.close().await.unwrap();
        db.close().await.unwrap();
        let error = insert(&db, tree, b"key", b"2").await.unwrap_err();
        assert!(matches!(error, DbError::Closed), "{}: {error}", db.engine_name());
        assert_eq!(get(&db, tree, b"key").await.as_deref(), Some(&b"1"[..]), "{}", db.engine_name());
    }
}

#[tokio::test]
async fn closed_database_opens_again_with_its_rows_and_only_once_at_a_time() {
    for engine in Engine::ALL.iter().copied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let db = open(engine, &path);
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"key", b"1").await.unwrap();
        let again = Db::open(engine, &path, &EngineOptions::default(), Arc::new(Inline));
        assert!(again.is_err(), "{}", engine.name());
        db.close().await.unwrap();
        drop(db);
        let db = open(engine, &path);
        let tree = db.open_tree("rows").unwrap();
        assert_eq!(get(&db, tree, b"key").await.as_deref(), Some(&b"1"[..]), "{}", engine.name());
    }
}

#[tokio::test]
async fn closing_brings_unsynced_commits_to_disk() {
    for engine in Engine::ALL.iter().copied() {
        let directory = tempfile::tempdir().unwrap();
        let options = EngineOptions { sync: Durability::Unsynced, ..EngineOptions::default() };
        let db = Db::open(engine, directory.path(), &options, Arc::new(Inline)).unwrap();
        let tree = db.open_tree("rows").unwrap();
        insert(&db, tree, b"key", b"1").await.unwrap();
        db.close().await.unwrap();
        drop(db);
        let db = open(engine, directory.path());
        let tree = db.open_tree("rows").unwrap();
        assert_eq!(get(&db, tree, b"key").await.as_deref(), Some(&b"1"[..]), "{}", engine.name());
    }
}

#[test]
fn reader_that_stays_sees_its_own_rows_whatever_is_written_meanwhile() {
    for Fixture { db, _directory } in every_engine() {
        let tree = db.open_tree("rows").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let write = |round: u32| {
            db.write::<_, DbError>(move |transaction| {
                (0..200_u32).try_for_each(|key| match (key + round) % 3 {
                    0 => transaction.remove(tree, &key.to_be_bytes()),
                    _ => transaction.insert(tree, &key.to_be_bytes(), &round.to_be_bytes()),
                })
            })
        };
        let rows = |snapshot: &crate::Snapshot<'_>, direction| {
            let mut rows = Vec::new();
            let bounds = (Unbounded, Unbounded);
            snapshot.range(tree, bounds, direction, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })?;
            Ok::<_, DbError>(rows)
        };
        runtime.block_on(write(1)).unwrap();
        let outcome = db.read_blocking::<_, DbError>(|snapshot| {
            let before = rows(snapshot, Direction::Forward)?;
            for round in 2..20 {
                runtime.block_on(write(round))?;
                assert_eq!(rows(snapshot, Direction::Forward)?, before, "{} round {round}", db.engine_name());
                let mut backward = rows(snapshot, Direction::Backward)?;
                backward.reverse();
                assert_eq!(backward, before, "{} round {round}", db.engine_name());
                assert_eq!(snapshot.count(tree)?, before.len() as u64, "{}", db.engine_name());
                for (key, value) in &before {
                    assert_eq!(snapshot.get(tree, key)?.as_ref(), Some(value), "{}", db.engine_name());
                }
            }
            Ok(before)
        });
        assert_eq!(outcome.unwrap().len(), 134, "{}", db.engine_name());
    }
}

#[tokio::test]
async fn snapshot_opens_like_the_original_and_has_its_rows() {
    for engine in Engine::ALL.iter().copied() {
        let directory = tempfile::tempdir().unwrap();
        let db = open(engine, &directory.path().join("db"));
        let trees = ["first", "second", "empty"].map(|name| db.open_tree(name).unwrap());
        for tree in &trees[..2] {
            insert(&db, *tree, b"key", b"1").await.unwrap();
        }
        let copy = directory.path().join("copies/1");
        db.snapshot_to(&copy).await.unwrap();
        insert(&db, trees[0], b"later", b"1").await.unwrap();
        let refused = db.snapshot_to(&copy).await;
        assert!(matches!(refused, Err(DbError::Io { .. })), "{}: {refused:?}", engine.name());

        let copied = open(engine, &copy);
        assert_eq!(copied.storage.tree_names().unwrap(), ["empty", "first", "second"], "{}", engine.name());
        for (name, expected) in [("first", 1), ("second", 1), ("empty", 0)] {
            let tree = copied.open_tree(name).unwrap();
            assert_eq!(keys(&copied, tree, (Unbounded, Unbounded), Direction::Forward).len(), expected, "{}", engine.name());
        }
    }
}
