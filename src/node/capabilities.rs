//! The real world behind the traits: the system's randomness, threads for work that blocks, and tasks that end with the node.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garage_types::Offload;
use garage_types::random::SeededRandom;
use garage_worker::spawn::Spawn;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// A generator seeded by the operating system.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn system_random() -> Result<SeededRandom, getrandom::Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(SeededRandom::from_seed(seed))
}

/// Runs blocking work on the async runtime's pool of blocking threads.
#[derive(Clone, Debug)]
pub struct BlockingThreads(Handle);

impl BlockingThreads {
    /// Of the runtime that this is called in.
    pub fn of_current_runtime() -> Self {
        BlockingThreads(Handle::current())
    }
}

impl Offload for BlockingThreads {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        // The work reports its own result; the handle says nothing more.
        drop(self.0.spawn_blocking(work));
    }
}

/// Tasks that are stopped before what they use is closed: what meets a closed database has failed, and a stop is no failure. Clones share
/// them.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    tasks: JoinSet<()>,
    stopped: bool,
}

impl Tasks {
    /// Starts no more tasks, gives those that run `grace` to end by themselves, and drops the others where they wait. Returns once none
    /// is left. As in a crash, each that was dropped may have done a part of what it began.
    pub async fn stop(&self, grace: Duration) {
        let mut tasks = {
            let mut running = self.running();
            running.stopped = true;
            std::mem::take(&mut running.tasks)
        };
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all_ended).await.is_err() {
            tasks.shutdown().await;
        }
    }

    /// A panic while the lock was held left a whole set.
    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spawn for Tasks {
    fn spawn(&self, name: &'static str, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let mut running = self.running();
        if running.stopped {
            return;
        }
        // Those that have ended: who panicked has said so.
        while running.tasks.try_join_next().is_some() {}
        let span = tracing::trace_span!("task", name);
        running.tasks.spawn(tracing::Instrument::instrument(task, span));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use garage_worker::spawn::Spawn;

    use super::Tasks;

    /// Counts those that are dropped, and those that end by themselves.
    #[derive(Clone, Default)]
    struct Counts {
        begun: Arc<AtomicU64>,
        ended: Arc<AtomicU64>,
    }

    impl Counts {
        fn start(&self, tasks: &Tasks, works_for: Duration) {
            let counts = self.clone();
            let task = async move {
                counts.begun.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(works_for).await;
                counts.ended.fetch_add(1, Ordering::SeqCst);
            };
            tasks.spawn("test", Box::pin(task));
        }

        fn get(&self) -> (u64, u64) {
            (self.begun.load(Ordering::SeqCst), self.ended.load(Ordering::SeqCst))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_are_dropped_where_they_wait_and_none_begins_after_a_stop() {
        let (tasks, counts) = (Tasks::default(), Counts::default());
        counts.start(&tasks, Duration::from_secs(60));
        tokio::task::yield_now().await;
        tasks.stop(Duration::ZERO).await;
        counts.start(&tasks, Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(counts.get(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_end_within_the_grace_are_waited_for() {
        let (tasks, counts) = (Tasks::default(), Counts::default());
        counts.start(&tasks, Duration::from_secs(1));
        counts.start(&tasks, Duration::from_secs(60));
        tasks.stop(Duration::from_secs(2)).await;
        assert_eq!(counts.get(), (2, 1));
    }
}
