//! Carries out a step: workers in a closed loop until the limit, their latencies put together.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::{JoinSet, LocalSet};

use crate::client::{Client, Target};
use crate::content::{Content, seed_of};
use crate::step::{Limit, Operation, Step};

/// Failures in a row after which a worker gives up.
const FAILURES_MAX: usize = 20;

#[derive(Default)]
pub struct Outcome {
    pub elapsed: Duration,
    /// Of the operations that succeeded, in ascending order.
    pub latencies: Vec<Duration>,
    pub bytes: u64,
    pub errors: usize,
    pub first_error: Option<String>,
}

impl Outcome {
    /// The latency that `share` of the operations did not exceed; zero when there were none.
    pub fn percentile(&self, share: f64) -> Duration {
        let index = (share * self.latencies.len() as f64).ceil() as usize;
        self.latencies.get(index.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// When to stop, and what happened so far; shared by the workers of one step, all on one thread.
struct Progress {
    deadline: Option<Instant>,
    left: Cell<usize>,
    outcome: RefCell<Outcome>,
}

impl Progress {
    fn new(limit: Limit) -> Rc<Self> {
        let (deadline, left) = match limit {
            Limit::Time(time) => (Some(Instant::now() + time), usize::MAX),
            Limit::Operations(count) => (None, count),
        };
        Rc::new(Self { deadline, left: Cell::new(left), outcome: RefCell::default() })
    }

    /// Whether another operation may start.
    fn start(&self) -> bool {
        let open = self.left.get() > 0 && self.deadline.is_none_or(|deadline| Instant::now() < deadline);
        if open {
            self.left.set(self.left.get() - 1);
        }
        open
    }

    /// Notes an operation that moved `bytes`; returns whether it succeeded.
    fn note(&self, started: Instant, result: Result<()>, bytes: usize) -> bool {
        let mut outcome = self.outcome.borrow_mut();
        match result {
            Ok(()) => {
                outcome.latencies.push(started.elapsed());
                outcome.bytes += bytes as u64;
                true
            }
            Err(error) => {
                outcome.errors += 1;
                outcome.first_error.get_or_insert_with(|| format!("{error:#}"));
                false
            }
        }
    }
}

/// Runs steps one after the other and remembers which objects there are.
pub struct Loader {
    target: Rc<Target>,
    verify: bool,
    /// Size to the numbers of the objects of that size: `0..count`, each under [`key`].
    objects: HashMap<usize, usize>,
    uploads: usize,
}

fn prefix(size: usize) -> String {
    format!("bench/{size}/")
}

fn key(size: usize, number: usize) -> String {
    format!("{}{number:08}", prefix(size))
}

impl Loader {
    pub fn new(target: Rc<Target>, verify: bool) -> Self {
        Self { target, verify, objects: HashMap::new(), uploads: 0 }
    }

    /// # Errors
    /// When the step needs objects that no earlier step wrote. Failed operations are counted in the outcome instead.
    pub async fn run(&mut self, step: &Step) -> Result<Outcome> {
        let count = self.objects.get(&step.size).copied().unwrap_or(0);
        let needs_objects = !matches!(step.operation, Operation::Put | Operation::Multipart { .. });
        ensure!(!needs_objects || count > 0, "step {} comes before any put of this size", step.text);
        let progress = Progress::new(step.limit);
        let started = Instant::now();
        let workers = LocalSet::new();
        match step.operation {
            Operation::Multipart { part } => workers.run_until(self.multipart(step, part, &progress)).await?,
            Operation::List { page } => workers.run_until(self.list(step, page, count, &progress)).await?,
            _ => workers.run_until(self.objects(step, count, &progress)).await?,
        }
        let mut outcome = progress.outcome.take();
        outcome.elapsed = started.elapsed();
        outcome.latencies.sort_unstable();
        Ok(outcome)
    }

    /// Put, get, head, delete: put and delete go through the numbers in order, get and head choose at random.
    async fn objects(&mut self, step: &Step, count: usize, progress: &Rc<Progress>) -> Result<()> {
        let next = Rc::new(Cell::new(if step.operation == Operation::Put { count } else { 0 }));
        let mut workers = JoinSet::new();
        for worker in 0..step.concurrency {
            let (progress, next, operation) = (Rc::clone(progress), Rc::clone(&next), step.operation);
            let (size, verify, mut client) = (step.size, self.verify, Client::new(Rc::clone(&self.target)));
            let mut random = Random(seed_of(&format!("{} {worker}", step.text)) | 1);
            workers.spawn_local(async move {
                let mut failures = 0;
                while failures < FAILURES_MAX && progress.start() {
                    let number = match operation {
                        Operation::Get | Operation::Head => random.below(count),
                        _ => next.replace(next.get() + 1),
                    };
                    if operation == Operation::Delete && number >= count {
                        break;
                    }
                    let name = key(size, number);
                    let content = Content::seeded(seed_of(&name), size);
                    let started = Instant::now();
                    let (result, bytes) = match operation {
                        Operation::Put => (client.put(&name, content).await, size),
                        Operation::Get => (client.get(&name, size, verify.then_some(content)).await, size),
                        Operation::Head => (client.head(&name, size).await, 0),
                        _ => (client.delete(&name).await, 0),
                    };
                    failures = if progress.note(started, result, bytes) { 0 } else { failures + 1 };
                }
            });
        }
        join(workers).await?;
        match step.operation {
            Operation::Put => drop(self.objects.insert(step.size, next.get())),
            // What a time limit left over has gaps in front: nobody may read it.
            Operation::Delete => drop(self.objects.remove(&step.size)),
            _ => {}
        }
        Ok(())
    }

    /// Page after page, from the start again at the end. One operation is one page.
    async fn list(&self, step: &Step, page: usize, count: usize, progress: &Rc<Progress>) -> Result<()> {
        let mut workers = JoinSet::new();
        for _ in 0..step.concurrency {
            let (progress, prefix, mut client) = (Rc::clone(progress), prefix(step.size), Client::new(Rc::clone(&self.target)));
            workers.spawn_local(async move {
                let (mut token, mut seen, mut failures) = (None, 0, 0);
                while failures < FAILURES_MAX && progress.start() {
                    let started = Instant::now();
                    let result = client.list(&prefix, page, token.as_deref()).await.and_then(|found| {
                        seen += found.keys;
                        token = found.next;
                        ensure!(token.is_some() || seen == count, "a listing gave {seen} keys instead of {count}");
                        Ok(())
                    });
                    let good = progress.note(started, result, 0);
                    failures = if good { 0 } else { failures + 1 };
                    if token.is_none() || !good {
                        (token, seen) = (None, 0);
                    }
                }
            });
        }
        join(workers).await
    }

    /// One upload after the other. One operation is a whole upload.
    async fn multipart(&mut self, step: &Step, part: usize, progress: &Rc<Progress>) -> Result<()> {
        let clients: Vec<_> =
            (0..step.concurrency).map(|_| Rc::new(tokio::sync::Mutex::new(Client::new(Rc::clone(&self.target))))).collect();
        let mut failures = 0;
        while failures < FAILURES_MAX && progress.start() {
            let name = format!("bench/multipart/{:08}", self.uploads);
            self.uploads += 1;
            let started = Instant::now();
            let result = upload(&clients, &name, step.size, part).await;
            failures = if progress.note(started, result, step.size) { 0 } else { failures + 1 };
        }
        Ok(())
    }
}

/// Uploads one object over all connections at once.
async fn upload(clients: &[Rc<tokio::sync::Mutex<Client>>], name: &str, size: usize, part: usize) -> Result<()> {
    let first = clients.first().context("no connection")?;
    let id = first.lock().await.create_upload(name).await?;
    let count = size.div_ceil(part);
    let etags = Rc::new(RefCell::new(vec![String::new(); count]));
    let next = Rc::new(Cell::new(0));
    let mut workers = JoinSet::new();
    for client in clients {
        let (client, id, etags, next, name) =
            (Rc::clone(client), Rc::clone(&id), Rc::clone(&etags), Rc::clone(&next), name.to_owned());
        workers.spawn_local(async move {
            loop {
                let index = next.replace(next.get() + 1);
                if index >= count {
                    return Ok::<(), anyhow::Error>(());
                }
                let length = part.min(size - index * part);
                let content = Content::seeded(seed_of(&format!("{name} {index}")), length);
                let etag = client.lock().await.upload_part(&name, &id, index + 1, content).await?;
                etags.borrow_mut()[index] = etag;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker broke")??;
    }
    let etags = etags.take();
    first.lock().await.complete_upload(name, &id, &etags).await
}

async fn join(mut workers: JoinSet<()>) -> Result<()> {
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker broke")?;
    }
    Ok(())
}

/// Xorshift64: which object to read next needs no better one.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
