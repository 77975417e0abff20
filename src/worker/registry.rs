//! All background jobs of a node: started, listed, throttled, paused, tried again after errors.
//!
//! Must stay true: a failing worker pauses longer and longer and never spins; a paused worker does no step; the list is bounded
//! however many one-off jobs ran.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use garage_types::{Clock, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::spawn::Spawn;
use crate::worker::{Status, Step, StepError, Worker};

/// Rest after a first error; doubles with each further one.
const ERROR_PAUSE: Duration = Duration::from_secs(10);
const ERROR_PAUSE_MAX: Duration = Duration::from_secs(600);
/// The longest rest that tranquility may ask for after one step.
const THROTTLE_MAX: Duration = Duration::from_secs(30);
/// Jobs that are done stay listed, the newest of them.
const DONE_KEPT: usize = 50;

/// Number of a worker on its node, from 1, until the node stops.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u64);

/// What a worker is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum State {
    Busy,
    /// Between two steps, because of its tranquility or after an error, for this long.
    Throttled {
        rest: Duration,
    },
    Idle,
    Done,
    /// By an operator.
    Paused,
}

/// A failed step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastError {
    pub message: String,
    pub at: Timestamp,
}

/// One worker as lists show it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkerInfo {
    pub id: WorkerId,
    pub name: String,
    pub state: State,
    pub status: Status,
    pub errors: u64,
    pub consecutive_errors: u64,
    pub last_error: Option<LastError>,
}

/// Whether an operator lets a worker work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Allowed {
    Run,
    Pause,
}

struct Entry {
    info: WorkerInfo,
    allowed: Arc<watch::Sender<Allowed>>,
}

struct Inner {
    spawn: Arc<dyn Spawn>,
    clock: Arc<dyn Clock>,
    entries: Mutex<(u64, BTreeMap<WorkerId, Entry>)>,
}

/// The workers of one node. Cheap to clone.
#[derive(Clone)]
pub struct Workers(Arc<Inner>);

impl Workers {
    pub fn new(spawn: Arc<dyn Spawn>, clock: Arc<dyn Clock>) -> Self {
        Workers(Arc::new(Inner { spawn, clock, entries: Mutex::default() }))
    }

    /// Starts a worker; it runs until it is done or the node stops.
    pub fn start(&self, worker: impl Worker) -> WorkerId {
        let (allowed, watching) = watch::channel(Allowed::Run);
        let id = {
            let mut guard = self.lock();
            let (last, entries) = &mut *guard;
            *last += 1;
            let id = WorkerId(*last);
            let info = WorkerInfo {
                id,
                name: worker.name(),
                state: State::Busy,
                status: worker.status(),
                errors: 0,
                consecutive_errors: 0,
                last_error: None,
            };
            entries.insert(id, Entry { info, allowed: Arc::new(allowed) });
            id
        };
        let workers = self.clone();
        self.0.spawn.spawn("worker", Box::pin(async move { workers.run(id, Box::new(worker), watching).await }));
        id
    }

    /// Every worker, by number.
    pub fn list(&self) -> Vec<WorkerInfo> {
        self.lock().1.values().map(|entry| entry.info.clone()).collect()
    }

    pub fn info(&self, id: WorkerId) -> Option<WorkerInfo> {
        self.lock().1.get(&id).map(|entry| entry.info.clone())
    }

    /// Keeps a worker from its next step until [`Self::resume`]. `None`: there is no such worker.
    pub fn pause(&self, id: WorkerId) -> Option<()> {
        self.allow(id, Allowed::Pause)
    }

    /// `None`: there is no such worker.
    pub fn resume(&self, id: WorkerId) -> Option<()> {
        self.allow(id, Allowed::Run)
    }

    fn allow(&self, id: WorkerId, allowed: Allowed) -> Option<()> {
        let sender = self.lock().1.get(&id)?.allowed.clone();
        sender.send_replace(allowed);
        Some(())
    }

    async fn run(&self, id: WorkerId, mut worker: Box<dyn Worker>, mut allowed: watch::Receiver<Allowed>) {
        loop {
            if *allowed.borrow_and_update() == Allowed::Pause {
                self.update(id, |info| info.state = State::Paused);
                if allowed.wait_for(|allowed| *allowed == Allowed::Run).await.is_err() {
                    return;
                }
            }
            self.update(id, |info| info.state = State::Busy);
            let began = Instant::now();
            let outcome = AssertUnwindSafe(worker.step()).catch_unwind().await;
            let took = began.elapsed();
            let status = worker.status();
            let outcome = outcome.unwrap_or_else(|_panic| Err(StepError::from("the worker panicked; this is a bug")));
            match outcome {
                Ok(step) => {
                    let rest = throttle(took, status.tranquility);
                    self.update(id, |info| {
                        info.consecutive_errors = 0;
                        info.status = status;
                        info.state = match step {
                            Step::Busy if rest.is_zero() => State::Busy,
                            Step::Busy => State::Throttled { rest },
                            Step::Idle => State::Idle,
                            Step::Done => State::Done,
                        };
                    });
                    match step {
                        // Others get their turn even when nothing in the step waited.
                        Step::Busy if rest.is_zero() => tokio::task::yield_now().await,
                        Step::Busy => rest_unless_told(rest, &mut allowed).await,
                        Step::Idle => {
                            tokio::select! {
                            biased;
                                        () = worker.wait() => {}
                                        changed = allowed.changed() => if changed.is_err() { return },
                                    }
                        }
                        Step::Done => {
                            self.forget_old();
                            return;
                        }
                    }
                }
                Err(error) => {
                    let rest = self.failed(id, &error, status);
                    rest_unless_told(rest, &mut allowed).await;
                }
            }
        }
    }

    fn failed(&self, id: WorkerId, error: &StepError, status: Status) -> Duration {
        let message = garage_types::chain(&**error);
        let at = self.0.clock.now();
        let mut rest = ERROR_PAUSE;
        self.update(id, |info| {
            info.errors += 1;
            info.consecutive_errors += 1;
            rest = error_pause(info.consecutive_errors);
            info.status = status;
            info.state = State::Throttled { rest };
            info.last_error = Some(LastError { message: message.clone(), at });
            tracing::warn!(worker = info.name, error = message, again_in_s = rest.as_secs(), "a background job failed");
        });
        rest
    }

    fn update(&self, id: WorkerId, change: impl FnOnce(&mut WorkerInfo)) {
        if let Some(entry) = self.lock().1.get_mut(&id) {
            change(&mut entry.info);
        }
    }

    fn forget_old(&self) {
        let mut guard = self.lock();
        let done = guard.1.values().filter(|entry| entry.info.state == State::Done).map(|entry| entry.info.id);
        let done: Vec<WorkerId> = done.collect();
        for id in done.iter().take(done.len().saturating_sub(DONE_KEPT)) {
            guard.1.remove(id);
        }
    }

    /// A panic while the lock was held left whole entries: each change is one assignment.
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<WorkerId, Entry>)> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operator's word ends a rest early.
async fn rest_unless_told(rest: Duration, allowed: &mut watch::Receiver<Allowed>) {
    tokio::select! {
                    biased;
        () = tokio::time::sleep(rest) => {}
        _told_or_gone = allowed.changed() => {}
    }
}

/// How long to rest after work that took `took`.
pub fn throttle(took: Duration, tranquility: Option<u32>) -> Duration {
    took.saturating_mul(tranquility.unwrap_or(0)).min(THROTTLE_MAX)
}

/// How long to rest after the `consecutive`-th error in a row.
pub fn error_pause(consecutive: u64) -> Duration {
    let doublings = u32::try_from(consecutive.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    ERROR_PAUSE.saturating_mul(1 << doublings).min(ERROR_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::future::BoxFuture;
    use garage_types::clock::ManualClock;
    use tokio::sync::Notify;

    use super::*;
    use crate::spawn::TokioSpawn;

    /// Does what the script says, counts, then is done.
    struct Scripted {
        script: Vec<Result<Step, &'static str>>,
        steps: Arc<AtomicU64>,
        wake: Arc<Notify>,
    }

    impl Worker for Scripted {
        fn name(&self) -> String {
            "scripted".to_owned()
        }

        fn status(&self) -> Status {
            Status { queue_length: Some(self.script.len() as u64), ..Status::default() }
        }

        fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
            self.steps.fetch_add(1, Ordering::SeqCst);
            let next = if self.script.is_empty() { Ok(Step::Done) } else { self.script.remove(0) };
            Box::pin(async move { next.map_err(StepError::from) })
        }

        fn wait(&mut self) -> BoxFuture<'_, ()> {
            Box::pin(self.wake.notified())
        }
    }

    struct World {
        workers: Workers,
        steps: Arc<AtomicU64>,
        wake: Arc<Notify>,
    }

    impl World {
        fn new() -> Self {
            let workers = Workers::new(Arc::new(TokioSpawn), Arc::new(ManualClock::at(Timestamp::from_millis(5))));
            World { workers, steps: Arc::default(), wake: Arc::default() }
        }

        fn start(&self, script: Vec<Result<Step, &'static str>>) -> WorkerId {
            self.workers.start(Scripted { script, steps: self.steps.clone(), wake: self.wake.clone() })
        }

        async fn settled(&self) {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }

        fn state(&self, id: WorkerId) -> State {
            self.workers.info(id).unwrap().state
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_worker_waits_until_it_is_woken() {
        let world = World::new();
        let id = world.start(vec![Ok(Step::Busy), Ok(Step::Idle)]);
        world.settled().await;
        assert_eq!((world.state(id), world.steps.load(Ordering::SeqCst)), (State::Idle, 2));
        world.wake.notify_one();
        world.settled().await;
        assert_eq!(world.state(id), State::Done);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_worker_rests_longer_each_time_and_is_shown_with_its_error() {
        let world = World::new();
        let id = world.start(vec![Err("disk on fire"), Err("still"), Ok(Step::Idle)]);
        world.settled().await;
        let info = world.workers.info(id).unwrap();
        assert_eq!(info.state, State::Throttled { rest: Duration::from_secs(10) });
        assert_eq!(info.last_error.unwrap().message, "disk on fire");
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(world.state(id), State::Throttled { rest: Duration::from_secs(20) });
        tokio::time::sleep(Duration::from_secs(21)).await;
        let info = world.workers.info(id).unwrap();
        assert_eq!((info.state, info.errors, info.consecutive_errors), (State::Idle, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_worker_does_nothing_until_it_is_resumed() {
        let world = World::new();
        let id = world.start(vec![Ok(Step::Idle)]);
        world.settled().await;
        world.workers.pause(id).unwrap();
        world.wake.notify_one();
        world.settled().await;
        assert_eq!((world.state(id), world.steps.load(Ordering::SeqCst)), (State::Paused, 1));
        world.workers.resume(id).unwrap();
        world.settled().await;
        assert_eq!(world.state(id), State::Done);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_that_are_done_do_not_pile_up() {
        let world = World::new();
        for _ in 0..DONE_KEPT + 20 {
            world.start(Vec::new());
            world.settled().await;
        }
        assert_eq!(world.workers.list().len(), DONE_KEPT);
    }

    #[test]
    fn rests_are_bounded() {
        assert_eq!(throttle(Duration::from_millis(10), Some(4)), Duration::from_millis(40));
        assert_eq!(throttle(Duration::from_secs(60), Some(4)), THROTTLE_MAX);
        assert_eq!(error_pause(1), ERROR_PAUSE);
        assert_eq!(error_pause(u64::MAX), ERROR_PAUSE_MAX);
    }
}
