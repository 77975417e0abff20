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
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use garage_types::offload::Lost;
use tokio::sync::{mpsc, watch};

use crate::engine::{ReadRows, Storage};
use crate::error::DbError;
use crate::gather::{Awaited, Gathering};
use crate::overlay::Overlay;
use crate::transaction::Transaction;

/// Closures waiting for the writer; more of them wait in their callers.
const QUEUE_MAX: usize = 1024;

/// Closures in one engine transaction.
const GROUP_MEMBERS_MAX: usize = 1024;

/// Bytes written by one engine transaction after which it is committed although more closures wait: bounds the delay of the first
/// and the dirty pages in memory.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// How often the writer looks, at most, whether what it waits for has come.
const PAUSE_MIN: Duration = Duration::from_micros(50);

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
    let mut gathering = Gathering::default();
    let mut committed = Instant::now();
    loop {
        if queue.is_empty() {
            match receiver.blocking_recv() {
                Some(message) => take(message, &mut receiver, &mut queue),
                None => return,
            }
        }
        take_all(&mut receiver, &mut queue);
        if let Some(awaited) = gathering.awaited() {
            gather(awaited, committed, &mut gathering, &mut receiver, &mut queue);
        }
        if !queue.is_empty() {
            let (began, before) = (Instant::now(), queue.len());
            commit_group(storage, &mut queue);
            let answered = before - queue.len();
            committed = Instant::now();
            take_all(&mut receiver, &mut queue);
            gathering.committed(answered, queue.len(), committed.duration_since(began));
        }
    }
}

/// Waits until as many closures are queued as are worth waiting for, or it takes too long.
fn gather(
    awaited: Awaited,
    committed: Instant,
    gathering: &mut Gathering,
    receiver: &mut mpsc::Receiver<Message>,
    queue: &mut VecDeque<Box<dyn Member>>,
) {
    // No more are taken than one transaction has.
    let members = awaited.members.min(GROUP_MEMBERS_MAX);
    let before = queue.len();
    if before >= members || committed.elapsed() >= awaited.within {
        return;
    }
    while queue.len() < members && !receiver.is_closed() && committed.elapsed() < awaited.within {
        thread::sleep((awaited.within / 16).max(PAUSE_MIN));
        take_all(receiver, queue);
    }
    gathering.waited(awaited, queue.len() - before);
}

fn take_all(receiver: &mut mpsc::Receiver<Message>, queue: &mut VecDeque<Box<dyn Member>>) {
    while queue.len() < GROUP_MEMBERS_MAX
        && let Ok(message) = receiver.try_recv()
    {
        take(message, receiver, queue);
    }
}

fn take(message: Message, receiver: &mut mpsc::Receiver<Message>, queue: &mut VecDeque<Box<dyn Member>>) {
    match message {
        Message::Run(member) => queue.push_back(member),
        Message::Close => receiver.close(),
    }
}

#[cfg(test)]
mod tests;
