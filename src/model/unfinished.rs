//! What writes leave behind that were not finished, or whose end is in doubt: found by the owners of its rows and settled.
//!
//! A simple upload whose commit failed may be stored at some owners, and its message may still be on its way to others. So it is not
//! given up before every owner has durably closed it ([`UploadState::Closed`]): an owner that has finished it says so, and then it has
//! happened and its object is left to spread; if none has, none ever will, and its content belongs to nobody. The claims of completions are
//! carried out, or taken back in the same way. References that no row leads to are found by [`crate::fresh_refs`].
//!
//! Must stay true: nothing is released while the node that writes it says that it does, or while an owner has not been heard. That a node is
//! silent for [`SILENT_MS`] decides only whether closing is tried: a write that is closed under its coordinator's hands fails.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{DbError, Direction, Snapshot, Transaction};
use garage_table::wire::{Order, Projection, Range, Read, Verdict};
use garage_table::{Schema, Table, TableError};
use garage_types::{BlockHash, NodeId, Placement, Timestamp, UploadId, VersionId, chain};
use garage_worker::{Status, Step, StepError, Worker};

use crate::block_ref::{BlockRefRow, BlockRefTable};
use crate::error::ModelError;
use crate::fresh_refs::{Due, LOOK_AFTER_MS, Origin, PartName};
use crate::garage::Garage;
use crate::in_use::{Listing, VersionUse};
use crate::multipart::UploadName;
use crate::object::{IndexShard, ObjectRow, ObjectTable, key_prefix};
use crate::part::{Attempt, AttemptState, Fate, PartEntry, PartRow, attempt_key};
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
const PAGE: usize = 256;

/// What came of looking at something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// It has ended, or has been ended.
    Settled,
    Waits,
}

/// How an attempt to close an upload ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Closing {
    /// Nobody had finished it: its content is released.
    Released,
    /// Some owner had.
    Happened,
}

/// What is known of the content of a fresh reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// It is part of something, whose end will release it.
    Kept,
    /// Nobody will ever use it.
    Dead,
    Open,
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

    fn is_long_ago(&self, then: Timestamp) -> bool {
        then.plus_millis(SILENT_MS) < self.0.clock.now()
    }

    /// Ends a simple upload that nobody works on.
    async fn end_simple(&self, row: &UploadRow) -> Result<Outcome, ModelError> {
        // Nearly always it has ended, and this node only has not heard: it is told by the read.
        let Some(now) = self.upload_row(&name_of(row)).await? else { return Ok(Outcome::Waits) };
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
    async fn close(&self, row: &UploadRow, version: VersionId) -> Result<Closing, ModelError> {
        match self.0.uploads.commit_at_all(&row.with_state(UploadState::Closed { version })).await? {
            Verdict::Won => {}
            Verdict::Refused(_finished) => return Ok(Closing::Happened),
            verdict @ Verdict::Behind(_) => return won(verdict).map(|()| Closing::Happened),
        }
        won(self.0.uploads.commit(&row.with_state(UploadState::Aborted)).await?)?;
        // An owner that had not heard of the upload releases nothing when it ends.
        self.0.versions.merge(&VersionRow::deleted(version)).await?;
        tracing::debug!(bucket = %row.bucket, key = %row.key, %version, "released what an unfinished write had stored");
        Ok(Closing::Released)
    }

    /// Looks at all references that are due. Returns how many contents were settled.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn look_at_fresh_references(&self) -> Result<usize, ModelError> {
        let mut settled = 0;
        loop {
            let (counted, more) = self.settle_fresh_references().await?;
            settled += counted.settled;
            if !more {
                return Ok(settled);
            }
        }
    }

    /// Looks at some of the references that are due. Returns what came of it, and whether there may be more.
    async fn settle_fresh_references(&self) -> Result<(Counted, bool), ModelError> {
        let (tables, fresh, now) = (&self.0.local.tables, self.0.local.block_trees.fresh, self.0.clock.now());
        let due: Vec<Due> = tables.db().read(move |tx| fresh.due(tx, now, PAGE)).await?;
        let more = due.len() == PAGE;
        let mut by_version: BTreeMap<VersionId, Vec<Due>> = BTreeMap::new();
        for due in due {
            by_version.entry(due.reference.version).or_default().push(due);
        }
        let mut counted = Counted::default();
        let (mut settled, mut again) = (Vec::new(), Vec::new());
        for (version, due) in by_version {
            let outcome = self.settle_references(version, &due).await;
            let place = if matches!(outcome, Ok(Outcome::Settled)) { &mut settled } else { &mut again };
            place.extend(due);
            counted.add(outcome, || format!("what was stored for version {version}"));
        }
        let record = move |tx: &mut Transaction<'_>| {
            for due in settled.iter().chain(&again) {
                tx.remove(fresh.0, &due.key)?;
            }
            again.iter().try_for_each(|due| fresh.add_at(tx, now.plus_millis(LOOK_AFTER_MS), &due.reference))
        };
        tables.db().write::<_, DbError>(record).await.map_err(TableError::Db)?;
        Ok((counted, more))
    }

    async fn settle_references(&self, version: VersionId, due: &[Due]) -> Result<Outcome, ModelError> {
        let Some(first) = due.first() else { return Ok(Outcome::Settled) };
        match self.content(version, &first.reference.origin, first.reference.arrived).await? {
            Content::Kept => Ok(Outcome::Settled),
            Content::Open => Ok(Outcome::Waits),
            Content::Dead => {
                let references = Table::<BlockRefTable>::new(self.0.local.tables.clone(), self.0.cluster.clone());
                for due in due {
                    let block = due.reference.block;
                    if self.is_referred_to_here(block, version).await? {
                        references.merge(&BlockRefRow::released(block, version)).await?;
                        tracing::debug!(%block, %version, "released a reference that nothing leads to");
                    }
                }
                Ok(Outcome::Settled)
            }
        }
    }

    async fn is_referred_to_here(&self, block: BlockHash, version: VersionId) -> Result<bool, ModelError> {
        let layout = self.0.cluster.layout().version();
        let sort_key = version.as_bytes().to_vec().into();
        let read = Read { layout, table: table_ids::BLOCK_REF, placement: block.into(), sort_key };
        let row = self.0.local.tables.read(read).await?.row;
        Ok(row.map(|row| BlockRefTable::decode(&row)).transpose()?.is_some_and(|row| !row.deleted))
    }

    /// What became of a content that a reference came with.
    async fn content(&self, version: VersionId, origin: &Origin, arrived: Timestamp) -> Result<Content, ModelError> {
        if let Some(part) = origin.part {
            return self.content_of_part(version, origin, part, arrived).await;
        }
        if self.has_object_here(version, origin).await? {
            return Ok(Content::Kept);
        }
        let name = UploadName { bucket: origin.backlink.bucket, key: origin.backlink.key.clone(), id: upload_of(version) };
        match self.upload_row(&name).await?.map(|row| row.state) {
            Some(UploadState::Aborted) => {
                self.0.versions.merge(&VersionRow::deleted(version)).await?;
                Ok(Content::Dead)
            }
            // Then all that was stored is listed, and is released with its object; what comes after that is not.
            Some(UploadState::Done) if self.listing(version).await? == Listing::Listed => Ok(Content::Kept),
            Some(UploadState::Done) => Ok(Content::Dead),
            Some(_open) => Ok(Content::Open),
            None => self.content_without_upload(version, origin, arrived, &name).await,
        }
    }

    /// Of a content whose upload no read quorum knows: it is over since long, or its row was not stored.
    async fn content_without_upload(
        &self,
        version: VersionId,
        origin: &Origin,
        arrived: Timestamp,
        name: &UploadName,
    ) -> Result<Content, ModelError> {
        if let VersionUse::Object(_) = self.version_use(version, &origin.backlink).await? {
            return Ok(Content::Kept);
        }
        if !self.is_write_over(version, origin, arrived).await {
            return Ok(Content::Open);
        }
        let row = UploadRow {
            bucket: name.bucket,
            shard: 0,
            key: name.key.clone(),
            id: name.id,
            started: arrived,
            state: UploadState::Closed { version },
        };
        Ok(match self.close(&row, version).await? {
            Closing::Released => Content::Dead,
            Closing::Happened => Content::Open,
        })
    }

    async fn is_write_over(&self, version: VersionId, origin: &Origin, arrived: Timestamp) -> bool {
        match self.who_is_at_work([(origin.coordinator, version)]).await.activity(origin.coordinator, version) {
            Activity::Working => false,
            Activity::Over => true,
            Activity::Unknown => self.is_long_ago(arrived),
        }
    }

    async fn content_of_part(
        &self,
        version: VersionId,
        origin: &Origin,
        part: PartName,
        arrived: Timestamp,
    ) -> Result<Content, ModelError> {
        let row = self.0.parts.get(part.upload.into(), attempt_key(part.number, &version)).await?;
        match row.map(|row| row.entry) {
            Some(PartEntry::Attempt(attempt)) => Ok(match attempt.state {
                AttemptState::Stored(_) | AttemptState::Gone(Fate::Taken) => Content::Kept,
                AttemptState::Gone(Fate::Released) => Content::Dead,
                // Released with its upload, but only as far as it was listed.
                AttemptState::Pending { .. } => Content::Open,
            }),
            Some(PartEntry::Ended(_)) | None => {
                if self.version_use(version, &origin.backlink).await? != VersionUse::None {
                    return Ok(Content::Kept);
                }
                if !self.is_write_over(version, origin, arrived).await {
                    return Ok(Content::Open);
                }
                // Refuses the attempt wherever it still comes, and releases what it listed.
                let gone = Attempt { number: part.number, version, state: AttemptState::Gone(Fate::Released) };
                let bucket = origin.backlink.bucket;
                self.0.parts.merge(&PartRow { upload: part.upload, bucket, entry: PartEntry::Attempt(gone) }).await?;
                Ok(Content::Dead)
            }
        }
    }

    /// Whether this node, as an owner, has an object of this version: nearly always so.
    async fn has_object_here(&self, version: VersionId, origin: &Origin) -> Result<bool, ModelError> {
        let placement = IndexShard { bucket: origin.backlink.bucket, shard: 0 }.placement();
        let layout = self.0.cluster.layout();
        if !layout.is_owner(self.0.cluster.node_id(), placement) {
            return Ok(false);
        }
        let from = key_prefix(&origin.backlink.key);
        let to = garage_types::sort_key::after_prefix(&from);
        let range = Range {
            layout: layout.version(),
            table: table_ids::OBJECT,
            placement,
            from: from.into(),
            to: to.map(Into::into),
            order: Order::Forward,
            limit: 10,
            projection: Projection::Summary,
        };
        for row in self.0.local.tables.range(range).await?.rows {
            let row: ObjectRow = ObjectTable::decode(&row.row)?;
            if row.version == version && row.live().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
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
struct Counted {
    settled: usize,
    waiting: usize,
}

impl Counted {
    /// What fails waits: it is looked at again.
    fn add(&mut self, outcome: Result<Outcome, ModelError>, what: impl FnOnce() -> String) {
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
    settled: usize,
    waiting: usize,
}

impl UnfinishedWrites {
    pub(crate) fn new(garage: Garage) -> Self {
        UnfinishedWrites { garage, begun: false, settled: 0, waiting: 0 }
    }

    async fn work(&mut self) -> Result<Step, ModelError> {
        if !self.begun {
            self.garage.watch_all_uploads().await?;
            self.settled += self.garage.reap_parts().await?;
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
        let (counted, more) = self.garage.settle_fresh_references().await?;
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
