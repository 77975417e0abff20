//! Group commit: many closures share one engine transaction and one fsync.
//!
//! What must stay true:
//! - a closure is answered with success only after the engine has committed the transaction it was in;
//! - a closure that fails or panics leaves nothing behind and does not disturb the others of its group;
//! - when a commit fails, every member of the group is told so, also one whose closure refused: it may have refused because of rows
//!   that have now never existed;
//! - the queue is bounded, and senders wait for room without blocking a thread.
//!
//! In the daemon the closures run on one thread of their own ([`Writer::spawn`]); in tests and in the simulator on the caller's, one
//! by one and in order ([`Writer::inline`]).

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use futures_channel::oneshot;
use garage_types::offload::Lost;
use tokio::sync::{mpsc, watch};

use crate::engine::{ReadRows, Storage};
use crate::error::DbError;
use crate::overlay::Overlay;
use crate::transaction::Transaction;

/// Closures waiting for the writer; more of them wait in their callers.
const QUEUE_MAX: usize = 1024;

/// Closures in one engine transaction.
const GROUP_MEMBERS_MAX: usize = 1024;

/// Bytes written by one engine transaction after which it is committed although more closures wait: bounds the delay of the first
/// and the dirty pages in memory.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// One closure and the caller that waits for it, whatever their types.
trait Member: Send {
    /// Runs the closure and returns the changes to keep. May be called again; only the last run counts.
    fn run(&mut self, base: &dyn ReadRows) -> Option<Overlay>;

    /// Tells the caller.
    fn answer(self: Box<Self>, commit: Result<(), DbError>);
}

struct Waiting<B, T, E> {
    body: B,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<B, T, E> Member for Waiting<B, T, E>
where
    B: FnMut(&mut Transaction<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<DbError> + Send,
{
    fn run(&mut self, base: &dyn ReadRows) -> Option<Overlay> {
        let mut transaction = Transaction::new(base);
        let result = catch_unwind(AssertUnwindSafe(|| (self.body)(&mut transaction)))
            .unwrap_or_else(|panic| Err(DbError::Panicked { message: panic_message(&*panic) }.into()));
        let result = self.result.insert(result);
        result.is_ok().then(|| transaction.into_overlay())
    }

    fn answer(self: Box<Self>, commit: Result<(), DbError>) {
        let result = match commit {
            Ok(()) => self.result.expect("a member of a committed group has run"),
            Err(error) => Err(error.into()),
        };
        // A caller that was cancelled no longer waits; its transaction counts all the same.
        drop(self.reply.send(result));
    }
}

/// What a panic said, as far as it is text.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Runs the first closures of `queue` in one engine transaction, takes them off and answers them.
fn commit_group(storage: &dyn Storage, queue: &mut VecDeque<Box<dyn Member>>) {
    let mut members = 0;
    let outcome = storage.write(&mut |rows| {
        members = 0;
        let mut bytes = 0;
        for member in queue.iter_mut().take(GROUP_MEMBERS_MAX) {
            members += 1;
            if let Some(overlay) = member.run(&*rows) {
                bytes += overlay.apply(rows)?;
            }
            if bytes >= GROUP_BYTES_MAX {
                break;
            }
        }
        Ok(())
    });
    // A transaction that could not even begin still has to be answered by someone, or the queue would never get shorter.
    let answered = members.max(1).min(queue.len());
    for member in queue.drain(..answered) {
        member.answer(outcome.clone());
    }
}

enum Message {
    Run(Box<dyn Member>),
    Close,
}

/// How the writer ended: `None` while it runs.
type Ended = Option<Result<(), DbError>>;

enum Place {
    Thread { queue: mpsc::Sender<Message>, ended: watch::Receiver<Ended> },
    Inline { storage: Arc<dyn Storage>, closed: AtomicBool },
}

/// The only way to write to an engine.
pub(crate) struct Writer(Place);

impl Writer {
    /// A writer on a thread of its own. It ends when it is closed or dropped, once the queue is empty.
    ///
    /// # Errors
    /// [`DbError::Engine`] when the system has no thread to give.
    pub(crate) fn spawn(storage: Arc<dyn Storage>) -> Result<Self, DbError> {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let (end, ended) = watch::channel(None);
        let thread = thread::Builder::new().name("db-writer".to_owned()).spawn(move || {
            serve(&*storage, receiver);
            let synced = storage.sync();
            // Whoever waits for the end may open the same files again.
            drop(storage);
            end.send_replace(Some(synced));
        });
        match thread {
            Ok(_detached) => Ok(Writer(Place::Thread { queue, ended })),
            Err(error) => Err(DbError::Engine { action: "start the writer's thread", source: Arc::new(error) }),
        }
    }

    /// A writer that runs each closure at once, in a group of its own.
    pub(crate) fn inline(storage: Arc<dyn Storage>) -> Self {
        Writer(Place::Inline { storage, closed: AtomicBool::new(false) })
    }

    /// Whether closures run on the caller's thread.
    pub(crate) fn is_inline(&self) -> bool {
        matches!(self.0, Place::Inline { .. })
    }

    /// Runs the closure in a transaction and waits until that is committed.
    ///
    /// # Errors
    /// The closure's own; [`DbError::Closed`]; what the engine reports.
    pub(crate) async fn write<T, E>(
        &self,
        body: impl FnMut(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.submit(Box::new(Waiting { body, result: None, reply })).await?;
        answer.await.unwrap_or_else(|_dropped| Err(DbError::Lost(Lost).into()))
    }

    async fn submit(&self, member: Box<dyn Member>) -> Result<(), DbError> {
        match &self.0 {
            Place::Thread { queue, .. } => queue.send(Message::Run(member)).await.map_err(|_closed| DbError::Closed),
            Place::Inline { closed, .. } if closed.load(Ordering::Acquire) => Err(DbError::Closed),
            Place::Inline { storage, .. } => {
                commit_group(&**storage, &mut VecDeque::from([member]));
                Ok(())
            }
        }
    }

    /// Takes no more closures, finishes those that were taken, and brings everything to stable storage. May be called again.
    ///
    /// # Errors
    /// What the engine reports about the last step; [`DbError::Lost`] when the writer's thread died.
    pub(crate) async fn close(&self) -> Result<(), DbError> {
        match &self.0 {
            Place::Thread { queue, ended } => {
                // Fails only when the writer has ended, or is about to.
                drop(queue.send(Message::Close).await);
                let mut ended = ended.clone();
                let end = ended.wait_for(Option::is_some).await.map_err(|_dead| DbError::Lost(Lost))?;
                end.clone().expect("waited for")
            }
            Place::Inline { storage, closed } => {
                closed.store(true, Ordering::Release);
                storage.sync()
            }
        }
    }
}

/// The writer's thread: returns once the channel is closed and empty.
fn serve(storage: &dyn Storage, mut receiver: mpsc::Receiver<Message>) {
    let mut queue = VecDeque::new();
    loop {
        if queue.is_empty() {
            match receiver.blocking_recv() {
                Some(message) => take(message, &mut receiver, &mut queue),
                None => return,
            }
        }
        while queue.len() < GROUP_MEMBERS_MAX
            && let Ok(message) = receiver.try_recv()
        {
            take(message, &mut receiver, &mut queue);
        }
        if !queue.is_empty() {
            commit_group(storage, &mut queue);
        }
    }
}

fn take(message: Message, receiver: &mut mpsc::Receiver<Message>, queue: &mut VecDeque<Box<dyn Member>>) {
    match message {
        Message::Run(member) => queue.push_back(member),
        Message::Close => receiver.close(),
    }
}

#[cfg(test)]
mod tests {
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
}
