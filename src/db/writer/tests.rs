use std::collections::VecDeque;
use std::ops::Bound::Unbounded;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use futures_channel::oneshot;

use super::{GROUP_BYTES_MAX, Member, QUEUE_MAX, Waiting, Writer, commit_group};
use crate::engine::{Direction, ReadRows, Storage, Tree, WriteRows};
use crate::error::DbError;
use crate::lmdb::{LmdbEngine, LmdbOptions};
use crate::memory::MemoryEngine;
use crate::transaction::Transaction;

type Answer = oneshot::Receiver<Result<u32, DbError>>;

/// Something a caller may refuse with; any error of the room will do.
const REFUSED: DbError = DbError::KeyEmpty;

fn member(body: impl FnMut(&mut Transaction<'_>) -> Result<u32, DbError> + Send + 'static) -> (Box<dyn Member>, Answer) {
    let (reply, answer) = oneshot::channel();
    (Box::new(Waiting { body, result: None, reply }), answer)
}

fn answered(mut answer: Answer) -> Result<u32, DbError> {
    answer.try_recv().expect("the writer is alive").expect("the member was answered")
}

fn keys(storage: &dyn Storage, tree: Tree) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let mut read = |rows: &dyn ReadRows| {
        rows.range(tree, (Unbounded, Unbounded), Direction::Forward, &mut |key, _value| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    };
    storage.read(&mut read).unwrap();
    keys
}

/// Counts engine transactions, and can run each closure once for nothing before.
struct Observed {
    memory: MemoryEngine,
    transactions: AtomicU32,
    reruns: u32,
}

impl Observed {
    fn new(reruns: u32) -> (Arc<Self>, Tree) {
        let memory = MemoryEngine::new();
        let tree = memory.open_tree("rows").unwrap();
        (Arc::new(Observed { memory, transactions: AtomicU32::new(0), reruns }), tree)
    }

    fn transactions(&self) -> u32 {
        self.transactions.load(Ordering::SeqCst)
    }
}

impl Storage for Observed {
    fn name(&self) -> &'static str {
        "observed"
    }

    fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        self.memory.open_tree(name)
    }

    fn tree_names(&self) -> Result<Vec<String>, DbError> {
        self.memory.tree_names()
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        self.memory.read(body)
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        self.transactions.fetch_add(1, Ordering::SeqCst);
        for _ in 0..self.reruns {
            let aborted = self.memory.write(&mut |rows| body(rows).and(Err(REFUSED)));
            assert!(aborted.is_err());
        }
        self.memory.write(body)
    }

    fn sync(&self) -> Result<(), DbError> {
        Storage::sync(&self.memory)
    }

    fn snapshot_to(&self, directory: &Path) -> Result<(), DbError> {
        self.memory.snapshot_to(directory)
    }
}

#[test]
fn members_of_a_group_see_those_before_them_except_what_failed() {
    let directory = tempfile::tempdir().unwrap();
    let lmdb = LmdbEngine::open(directory.path(), LmdbOptions::default()).unwrap();
    let engines: [Box<dyn Storage>; 2] = [Box::new(MemoryEngine::new()), Box::new(lmdb)];
    for storage in engines {
        let tree = storage.open_tree("rows").unwrap();
        let count = move |transaction: &Transaction<'_>| {
            let mut count = 0;
            transaction.range(tree, (Unbounded, Unbounded), Direction::Forward, &mut |_key, _value| {
                count += 1;
                ControlFlow::Continue(())
            })?;
            Ok(count)
        };
        let (first, first_answer) = member(move |transaction| {
            transaction.insert(tree, b"first", b"")?;
            count(transaction)
        });
        let (refused, refused_answer) = member(move |transaction| {
            transaction.insert(tree, b"refused", b"")?;
            transaction.remove(tree, b"first")?;
            Err(REFUSED)
        });
        let (panicking, panicking_answer) = member(move |transaction| {
            transaction.insert(tree, b"panicking", b"")?;
            panic!("on purpose")
        });
        let (last, last_answer) = member(move |transaction| {
            transaction.insert(tree, b"last", b"")?;
            count(transaction)
        });
        commit_group(&*storage, &mut VecDeque::from([first, refused, panicking, last]));

        assert_eq!(answered(first_answer).unwrap(), 1, "{}", storage.name());
        assert!(matches!(answered(refused_answer), Err(DbError::KeyEmpty)), "{}", storage.name());
        assert!(matches!(answered(panicking_answer), Err(DbError::Panicked { .. })), "{}", storage.name());
        assert_eq!(answered(last_answer).unwrap(), 2, "{}", storage.name());
        assert_eq!(keys(&*storage, tree), [&b"first"[..], b"last"], "{}", storage.name());
    }
}

#[test]
fn failed_commit_is_told_to_every_member_even_to_one_that_refused() {
    let memory = MemoryEngine::new();
    let tree = memory.open_tree("rows").unwrap();
    let (writing, writing_answer) = member(move |transaction| transaction.insert(tree, b"key", b"").map(|()| 1));
    // It refuses because of a row that will never have existed.
    let (refusing, refusing_answer) = member(move |transaction| match transaction.get(tree, b"key")? {
        Some(_) => Err(REFUSED),
        None => Ok(2),
    });
    memory.fail_next_commits(1);
    commit_group(&memory, &mut VecDeque::from([writing, refusing]));
    assert!(answered(writing_answer).unwrap_err().is_full());
    assert!(answered(refusing_answer).unwrap_err().is_full());
    assert!(keys(&memory, tree).is_empty());
}

#[test]
fn group_ends_once_it_has_written_enough_and_the_rest_waits_for_the_next() {
    let (storage, tree) = Observed::new(0);
    let members = [b"a", b"b", b"c"].map(|key| {
        let large = vec![0; GROUP_BYTES_MAX / 2];
        member(move |transaction| transaction.insert(tree, key, &large).map(|()| 0))
    });
    let (mut queue, answers): (VecDeque<_>, Vec<_>) = members.into_iter().unzip();
    commit_group(&*storage, &mut queue);
    assert_eq!((queue.len(), keys(&*storage, tree).len()), (1, 2));
    commit_group(&*storage, &mut queue);
    assert_eq!((queue.len(), keys(&*storage, tree).len()), (0, 3));
    assert!(answers.into_iter().all(|answer| answered(answer).is_ok()));
}

#[test]
fn only_the_last_run_of_a_closure_counts() {
    let (storage, tree) = Observed::new(2);
    let mut runs = 0;
    let (counting, answer) = member(move |transaction| {
        runs += 1;
        transaction.insert(tree, format!("run {runs}").as_bytes(), b"")?;
        Ok(runs)
    });
    commit_group(&*storage, &mut VecDeque::from([counting]));
    assert_eq!(answered(answer).unwrap(), 3);
    assert_eq!(keys(&*storage, tree), [b"run 3"]);
}

/// Holds the writer's thread inside a transaction until told to go on; returns once it is there.
async fn hold(writer: &Arc<Writer>) -> (mpsc::Sender<()>, tokio::task::JoinHandle<Result<(), DbError>>) {
    let (go_on, wait) = mpsc::channel();
    let (arrive, arrived) = oneshot::channel();
    let (writer, mut arrive) = (writer.clone(), Some(arrive));
    let held = tokio::spawn(async move {
        let body = move |_: &mut Transaction<'_>| {
            arrive.take().expect("runs once").send(()).expect("the test waits");
            wait.recv().expect("the test goes on");
            Ok(())
        };
        writer.write::<(), DbError>(body).await
    });
    arrived.await.expect("the closure runs");
    (go_on, held)
}

fn spawn_insert(writer: &Arc<Writer>, tree: Tree, number: u32) -> tokio::task::JoinHandle<Result<(), DbError>> {
    let writer = writer.clone();
    tokio::spawn(async move { writer.write(move |transaction| transaction.insert(tree, &number.to_be_bytes(), b"")).await })
}

#[tokio::test]
async fn closures_that_wait_for_a_commit_share_the_next_one() {
    let (storage, tree) = Observed::new(0);
    let writer = Arc::new(Writer::spawn(storage.clone()).unwrap());
    let (go_on, held) = hold(&writer).await;
    let waiting: Vec<_> = (0..50).map(|number| spawn_insert(&writer, tree, number)).collect();
    // On this one thread every task has put its closure into the queue by the time it is our turn again.
    tokio::task::yield_now().await;
    go_on.send(()).unwrap();
    held.await.unwrap().unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(storage.transactions(), 2);
    assert_eq!(keys(&*storage, tree).len(), 50);
}

#[tokio::test]
async fn more_closures_than_the_queue_holds_wait_in_their_callers() {
    let (storage, tree) = Observed::new(0);
    let writer = Arc::new(Writer::spawn(storage.clone()).unwrap());
    let (go_on, held) = hold(&writer).await;
    let many = u32::try_from(QUEUE_MAX).unwrap() * 3;
    let waiting: Vec<_> = (0..many).map(|number| spawn_insert(&writer, tree, number)).collect();
    tokio::task::yield_now().await;
    go_on.send(()).unwrap();
    held.await.unwrap().unwrap();
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(keys(&*storage, tree).len(), QUEUE_MAX * 3);
}

#[tokio::test]
async fn close_finishes_what_is_queued_and_refuses_what_comes_later() {
    let (storage, tree) = Observed::new(0);
    let writer = Arc::new(Writer::spawn(storage.clone()).unwrap());
    let (go_on, held) = hold(&writer).await;
    let queued = spawn_insert(&writer, tree, 1);
    tokio::task::yield_now().await;
    let closing = tokio::spawn({
        let writer = writer.clone();
        async move { writer.close().await }
    });
    tokio::task::yield_now().await;
    go_on.send(()).unwrap();
    closing.await.unwrap().unwrap();
    held.await.unwrap().unwrap();
    queued.await.unwrap().unwrap();
    assert!(matches!(spawn_insert(&writer, tree, 2).await.unwrap(), Err(DbError::Closed)));
    assert_eq!(keys(&*storage, tree), [1_u32.to_be_bytes()]);
    assert_eq!(Arc::strong_count(&storage), 1, "the ended writer has let go of the engine");
}

#[tokio::test]
async fn transaction_of_a_cancelled_caller_counts_once_it_is_queued() {
    let (storage, tree) = Observed::new(0);
    let writer = Arc::new(Writer::spawn(storage.clone()).unwrap());
    let (go_on, held) = hold(&writer).await;
    let cancelled = spawn_insert(&writer, tree, 1);
    tokio::task::yield_now().await;
    cancelled.abort();
    go_on.send(()).unwrap();
    held.await.unwrap().unwrap();
    writer.close().await.unwrap();
    assert_eq!(keys(&*storage, tree), [1_u32.to_be_bytes()]);
}

#[tokio::test]
async fn dropped_writer_finishes_its_queue_and_ends() {
    let (storage, tree) = Observed::new(0);
    let writer = Arc::new(Writer::spawn(storage.clone()).unwrap());
    let super::Place::Thread { ended, .. } = &writer.0 else { unreachable!("spawned") };
    let mut ended = ended.clone();
    let (go_on, held) = hold(&writer).await;
    let queued = spawn_insert(&writer, tree, 1);
    tokio::task::yield_now().await;
    held.abort();
    queued.abort();
    drop(writer);
    go_on.send(()).unwrap();
    ended.wait_for(Option::is_some).await.unwrap();
    assert_eq!(keys(&*storage, tree), [1_u32.to_be_bytes()]);
}
