//! What writes leave behind that were not finished, or whose end is in doubt: found by the owners of its rows and settled.
//!
//! A simple upload whose commit failed may be stored at some owners, and its message may still be on its way to others. So it is not
//! given up before every owner has durably closed it ([`UploadState::Closed`]): an owner that has finished it says so, and then it has
//! happened and its object is left to spread; if none has, none ever will, and its content belongs to nobody. The claims of completions are
//! carried out, or taken back in the same way. References that no row leads to are settled by [`crate::fresh_contents`].
//!
//! Must stay true: nothing is released while the node that writes it says that it does, or while an owner has not been heard. That a node is
//! silent for [`SILENT_MS`] decides only whether closing is tried: a write that is closed under its coordinator's hands fails.

use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{DbError, Direction, Snapshot, Transaction};
use garage_table::wire::{Read, Verdict};
use garage_table::{Schema, TableError};
use garage_types::{NodeId, Placement, Timestamp, UploadId, VersionId, chain};
use garage_worker::{Status, Step, StepError, Worker};

use crate::error::ModelError;
use crate::fresh_refs::LOOK_AFTER_MS;
use crate::garage::Garage;
use crate::put::won;
use crate::table_ids;
use crate::upload::{UploadRow, UploadState, UploadTable};
use crate::upload_end::name_of;
use crate::version::VersionRow;
use crate::working::{Activity, AtWork};

/// After how long a node that does not answer is taken to write something no more.
pub const SILENT_MS: u64 = 24 * 3600 * 1000;
/// How often owners look.
const PERIOD: Duration = Duration::from_secs(60);
/// Uploads, or references, looked at in one step.
pub(crate) const PAGE: usize = 256;

/// What came of looking at something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It has ended, or has been ended.
    Settled,
    Waits,
}

/// How an attempt to close an upload ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closing {
    /// Nobody had finished it: its content is released.
    Released,
    /// Some owner had.
    Happened,
}

/// A page of uploads, and where to go on; `None` at the end.
struct Watched {
    rows: Vec<UploadRow>,
    next: Option<Vec<u8>>,
}

impl Garage {
    /// Settles the uploads that nobody works on, and gives up the parts that an earlier run of this node left unfinished where it alone
    /// decides. Returns how many.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn reap_uploads(&self) -> Result<usize, ModelError> {
        self.watch_all_uploads().await?;
        let mut count = self.reap_parts().await?;
        let mut after = None;
        loop {
            let Watched { rows, next } = self.watched_uploads(after).await?;
            count += self.settle_uploads(&rows).await.settled;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(count),
            }
        }
    }

    /// Puts on the list what a version of this program has stored that kept none.
    async fn watch_all_uploads(&self) -> Result<(), ModelError> {
        let tree = self.0.local.watched.0;
        let mut after = None;
        loop {
            let found = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
            let keys = found.clone();
            let push = move |row: UploadRow| {
                if row.is_watched() {
                    keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(row.local_key());
                }
            };
            after = self.0.local.tables.scan::<UploadTable>(after, 1000, push).await?;
            let keys = std::mem::take(&mut *found.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
            if !keys.is_empty() {
                let list = move |tx: &mut Transaction<'_>| keys.iter().try_for_each(|key| tx.insert(tree, key, &[1]));
                self.0.local.tables.db().write::<_, DbError>(list).await.map_err(TableError::Db)?;
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn watched_uploads(&self, after: Option<Vec<u8>>) -> Result<Watched, ModelError> {
        let (tables, tree) = (&self.0.local.tables, self.0.local.watched.0);
        let read = move |tx: &Snapshot<'_>| {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut keys = Vec::new();
            tx.range(tree, (from, Bound::Unbounded), Direction::Forward, &mut |key, _listed| {
                keys.push(key.to_vec());
                if keys.len() < PAGE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok::<_, DbError>(keys)
        };
        let keys: Vec<Vec<u8>> = tables.db().read(read).await.map_err(TableError::Db)?;
        let layout = self.0.cluster.layout().version();
        let mut rows = Vec::with_capacity(keys.len());
        for key in &keys {
            let Some((placement, sort_key)) = key.split_first_chunk::<32>() else { continue };
            let placement = Placement::from_bytes(*placement);
            let read = Read { layout, table: table_ids::UPLOAD, placement, sort_key: sort_key.to_vec().into() };
            if let Some(row) = tables.read(read).await?.row {
                rows.push(UploadTable::decode(&row)?);
            }
        }
        Ok(Watched { rows, next: if keys.len() < PAGE { None } else { keys.last().cloned() } })
    }

    async fn settle_uploads(&self, rows: &[UploadRow]) -> Counted {
        let at_work = self.who_is_at_work(rows.iter().flat_map(writers)).await;
        let mut counted = Counted::default();
        for row in rows {
            counted.add(self.settle_upload(row, &at_work).await, || format!("the upload {} of {}", row.id, row.key));
        }
        counted
    }

    async fn settle_upload(&self, row: &UploadRow, at_work: &AtWork) -> Result<Outcome, ModelError> {
        let is_over = |coordinator: NodeId, version: VersionId| match at_work.activity(coordinator, version) {
            Activity::Working => false,
            Activity::Over => true,
            Activity::Unknown => self.is_long_ago(row.started),
        };
        match &row.state {
            UploadState::Simple(simple) if is_over(simple.coordinator, simple.version) => self.end_simple(row).await,
            UploadState::Closed { .. } => self.end_simple(row).await,
            UploadState::Multipart(multipart) => {
                let mut outcome = Outcome::Settled;
                for (id, claim) in multipart.held() {
                    if is_over(claim.coordinator, *id) {
                        self.settle_claim(row, *id, &claim.purpose).await?;
                    } else {
                        outcome = Outcome::Waits;
                    }
                }
                Ok(outcome)
            }
            UploadState::Simple(_) => Ok(Outcome::Waits),
            UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => Ok(Outcome::Settled),
        }
    }

    pub(crate) fn is_long_ago(&self, then: Timestamp) -> bool {
        then.plus_millis(SILENT_MS) < self.0.clock.now()
    }

    /// Ends a simple upload that nobody works on.
    async fn end_simple(&self, row: &UploadRow) -> Result<Outcome, ModelError> {
        // Nearly always it has ended, and this node only has not heard: it is told by the read.
        let Some(now) = self.certain().upload_row(&name_of(row)).await? else { return Ok(Outcome::Waits) };
        let version = match &now.state {
            UploadState::Simple(simple) => simple.version,
            UploadState::Closed { version } => *version,
            _ended => return Ok(Outcome::Settled),
        };
        match self.close(&now, version).await? {
            Closing::Released => Ok(Outcome::Settled),
            // The owner that has finished it tells the others.
            Closing::Happened => Ok(Outcome::Waits),
        }
    }

    /// Closes an upload at every owner and, if none of them has finished it, gives it up.
    pub(crate) async fn close(&self, row: &UploadRow, version: VersionId) -> Result<Closing, ModelError> {
        match self.0.uploads.commit_at_all(&row.with_state(UploadState::Closed { version })).await? {
            Verdict::Won => {}
            Verdict::Refused(_finished) => return Ok(Closing::Happened),
            verdict @ Verdict::Behind(_) => return won(verdict).map(|()| Closing::Happened),
        }
        let certain = self.certain();
        won(certain.0.uploads.commit(&row.with_state(UploadState::Aborted)).await?)?;
        // An owner that had not heard of the upload releases nothing when it ends.
        certain.0.versions.merge(&VersionRow::deleted(version)).await?;
        tracing::debug!(bucket = %row.bucket, key = %row.key, %version, "released what an unfinished write had stored");
        Ok(Closing::Released)
    }
}

/// The id of the upload that a version is written by: one has one, so either is found by the other.
pub(crate) fn upload_of(version: VersionId) -> UploadId {
    UploadId::from_bytes(*version.as_bytes())
}

/// The version that a simple upload writes.
pub(crate) fn version_of(upload: UploadId) -> VersionId {
    VersionId::from_bytes(*upload.as_bytes())
}

/// The nodes that may be working on an upload, with what they would be writing.
fn writers(row: &UploadRow) -> Vec<(NodeId, VersionId)> {
    match &row.state {
        UploadState::Simple(simple) => vec![(simple.coordinator, simple.version)],
        UploadState::Multipart(multipart) => multipart.held().map(|(id, claim)| (claim.coordinator, *id)).collect(),
        UploadState::Closed { .. } | UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => Vec::new(),
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub settled: usize,
    pub waiting: usize,
}

impl Counted {
    /// What fails waits: it is looked at again.
    pub(crate) fn add(&mut self, outcome: Result<Outcome, ModelError>, what: impl FnOnce() -> String) {
        match outcome {
            Ok(Outcome::Settled) => self.settled += 1,
            Ok(Outcome::Waits) => self.waiting += 1,
            Err(error) => {
                self.waiting += 1;
                tracing::debug!(error = %chain(&error), "{} cannot be settled yet", what());
            }
        }
    }
}

/// Settles what writes have left, once a minute.
pub(crate) struct UnfinishedWrites {
    garage: Garage,
    /// Whether what an earlier run left was looked at.
    begun: bool,
    /// After a start all references are looked at that came before it: what this node was writing when it ended, it writes no more.
    early_until: Option<Timestamp>,
    settled: usize,
    waiting: usize,
}

impl UnfinishedWrites {
    pub(crate) fn new(garage: Garage) -> Self {
        UnfinishedWrites { garage, begun: false, early_until: None, settled: 0, waiting: 0 }
    }

    async fn work(&mut self) -> Result<Step, ModelError> {
        if !self.begun {
            self.garage.watch_all_uploads().await?;
            self.settled += self.garage.reap_parts().await?;
            self.early_until = Some(self.garage.0.clock.now().plus_millis(LOOK_AFTER_MS));
            self.begun = true;
        }
        let mut waiting = 0;
        let mut after = None;
        loop {
            let Watched { rows, next } = self.garage.watched_uploads(after).await?;
            let counted = self.garage.settle_uploads(&rows).await;
            self.settled += counted.settled;
            waiting += counted.waiting;
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        for counted in [self.garage.settle_names().await?, self.garage.settle_closing().await?] {
            self.settled += counted.settled;
            waiting += counted.waiting;
        }
        let (now, early) = (self.garage.0.clock.now(), self.early_until);
        let (counted, more) = self.garage.settle_fresh_references(early.unwrap_or(now)).await?;
        if !more {
            self.early_until = None;
        }
        self.settled += counted.settled;
        self.waiting = waiting + counted.waiting;
        Ok(if more { Step::Busy } else { Step::Idle })
    }
}

impl Worker for UnfinishedWrites {
    fn name(&self) -> String {
        "Unfinished writes".to_owned()
    }

    fn status(&self) -> Status {
        let progress = Some(format!("{} settled", self.settled));
        Status { progress, queue_length: Some(self.waiting as u64), ..Status::default() }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move { Ok(self.work().await?) }.boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        tokio::time::sleep(PERIOD).boxed()
    }
}
