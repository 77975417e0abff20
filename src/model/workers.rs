//! Background work on what the tables say: sending queued deletions. Also where all jobs of a node start; those on blocks are in
//! [`crate::resync_worker`], the settling of unfinished writes in [`crate::unfinished`].

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use garage_table::Schema;
use garage_table::queue::Item;
use garage_table::table::Query;
use garage_table::wire::{Order, Projection, TableId, Verdict};
use garage_types::planted::{Bug, is_planted};
use garage_worker::{Status, Step, StepError, Worker};

use crate::background::RESYNC_WORKERS_MAX;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::part::PartTable;
use crate::recount::CounterWorker;
use crate::resync_worker::{LayoutWalker, ResyncWorker};
use crate::scrub::ScrubWorker;
use crate::table_ids;
use crate::unfinished::UnfinishedWrites;
use crate::unreferenced::UncountedFiles;
use crate::upload::{UploadRow, UploadState};
use crate::version::VersionTable;

/// Queued deletions sent at once.
const QUEUE_BATCH: usize = 256;

impl Garage {
    /// Runs the background work of this node until the process ends.
    pub fn start_workers(&self) {
        let workers = self.workers();
        workers.start(QueueSender { garage: self.clone(), after: None, queue_length: 0 });
        workers.start(UnfinishedWrites::new(self.clone()));
        for number in 1..=RESYNC_WORKERS_MAX {
            workers.start(ResyncWorker::new(self.clone(), number));
        }
        workers.start(LayoutWalker::new(self.clone()));
        workers.start(ScrubWorker::new(self.clone()));
        workers.start(UncountedFiles::new(self.clone()));
        workers.start(CounterWorker(self.clone()));
    }

    /// Sends what is queued to its owners, until the queue is empty. Returns how many deletions were sent.
    ///
    /// # Errors
    /// The first one that keeps an item from its owners; what was sent before stays sent.
    pub async fn send_queue(&self) -> Result<usize, ModelError> {
        let mut sent = 0;
        loop {
            let batch = self.send_queue_batch(None).await?;
            sent += batch.sent;
            match batch.failure {
                Some(error) => return Err(error),
                None if batch.last.is_none() => return Ok(sent),
                None => {}
            }
        }
    }

    /// Sends one batch of what is queued behind `after`. Items that cannot be sent stay in the queue.
    async fn send_queue_batch(&self, after: Option<Vec<u8>>) -> Result<SentBatch, ModelError> {
        let tables = &self.0.local.tables;
        let items = tables.queue_peek(after, QUEUE_BATCH).await?;
        let last = items.last().map(Item::position);
        let results: Vec<(Result<(), ModelError>, Item)> = stream::iter(items)
            .map(|item| async move { (self.send_item(&item).await, item) })
            .buffer_unordered(32)
            .collect()
            .await;
        let mut failure = None;
        let mut done = Vec::new();
        for (result, item) in results {
            match result {
                Ok(()) => done.push(item),
                Err(_) if is_planted(Bug::QueueRowTakenOffUnsent) => done.push(item),
                Err(error) => failure = Some(error),
            }
        }
        let sent = done.len();
        tables.queue_remove(done).await?;
        Ok(SentBatch { sent, failure, last })
    }

    async fn send_item(&self, item: &Item) -> Result<(), ModelError> {
        let placement = item.entry.placement;
        let entries = vec![item.entry.clone()];
        // Whoever takes a deletion off the queue may be the last who knows of it.
        let certain = &self.certain().0;
        let verdict = match item.entry.table {
            table_ids::VERSION => {
                let release_at_once = is_planted(Bug::ReleasedOnArrival) && item.entry.condition.is_some();
                if !release_at_once {
                    self.spread_what_superseded(VersionTable::decode(&item.entry.row)?.version).await?;
                }
                certain.versions.write(placement, entries).await?
            }
            table_ids::BLOCK_REF => self.certain().reference_table().write(placement, entries).await?,
            table_ids::PART => return self.end_parts(&PartTable::decode(&item.entry.row)?).await,
            TableId(other) => return Err(ModelError::Damaged(format!("table {other} has no queued deletions"))),
        };
        match verdict {
            Verdict::Won => Ok(()),
            verdict => Err(ModelError::Damaged(format!("a queued deletion was answered {verdict:?}"))),
        }
    }

    /// The uploads of a bucket that are not finished, in the order of their keys; for tests and operators.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn unfinished_uploads(&self, bucket: garage_types::BucketId) -> Result<Vec<UploadRow>, ModelError> {
        let placement = crate::object::IndexShard { bucket, shard: 0 }.placement();
        let mut from = Vec::new();
        let mut open = Vec::new();
        loop {
            let query = Query { from, to: None, order: Order::Forward, limit: 1000, projection: Projection::Whole };
            let page = self.0.uploads.range(placement, query).await?;
            open.extend(page.rows.into_iter().filter(|row| matches!(row.state, UploadState::Simple(_))));
            match page.last {
                Some(mut last) => {
                    last.push(0);
                    from = last;
                }
                None => return Ok(open),
            }
        }
    }
}

/// What came of a batch of queued deletions.
struct SentBatch {
    sent: usize,
    failure: Option<ModelError>,
    /// The position of the last one looked at; `None` when there was none.
    last: Option<Vec<u8>>,
}

/// Sends queued deletions to their owners.
struct QueueSender {
    garage: Garage,
    /// Behind what was looked at; from the start again once the end is reached.
    after: Option<Vec<u8>>,
    queue_length: u64,
}

impl Worker for QueueSender {
    fn name(&self) -> String {
        "Queued deletions".to_owned()
    }

    fn status(&self) -> Status {
        Status { queue_length: Some(self.queue_length), ..Status::default() }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move {
            let from_start = self.after.is_none();
            let batch = self.garage.send_queue_batch(self.after.take()).await?;
            self.queue_length = self.garage.0.local.tables.queue_len().await.map_err(ModelError::Table)?;
            let at_end = batch.last.is_none();
            self.after = batch.last;
            match batch.failure {
                Some(error) => Err(error.into()),
                None if at_end && from_start => Ok(Step::Idle),
                None => Ok(Step::Busy),
            }
        }
        .boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        async move { self.garage.0.local.tables.queue_changed().await }.boxed()
    }
}
