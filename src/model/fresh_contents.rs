//! Settling what references came with a write: whether their content became part of something, or nobody will ever use it.
//!
//! Must stay true: a reference is released only when its content is given up for good: where its upload or attempt is recorded as given
//! up, so that it is refused wherever it still comes. That is read where every acknowledged write is met, in every consistency mode.

use std::collections::BTreeMap;

use garage_db::{DbError, Transaction};
use garage_table::wire::{Order, Projection, Range, Read};
use garage_table::{Schema, TableError};
use garage_types::{BlockHash, Timestamp, VersionId};

use crate::block_ref::{BlockRefRow, BlockRefTable};
use crate::error::ModelError;
use crate::fresh_refs::{Due, FreshReference, LOOK_AFTER_MS, Origin, PartName};
use crate::garage::Garage;
use crate::in_use::{Listing, VersionUse};
use crate::multipart::UploadName;
use crate::object::{IndexShard, ObjectRow, ObjectTable, key_prefix};
use crate::part::{Attempt, AttemptState, Fate, PartEntry, PartRow, attempt_key};
use crate::table_ids;
use crate::unfinished::{Closing, Counted, Outcome, PAGE, upload_of};
use crate::upload::{UploadRow, UploadState};
use crate::version::VersionRow;
use crate::working::Activity;

/// What is known of the content of a fresh reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// It is part of something, whose end will release it.
    Kept,
    /// Nobody will ever use it.
    Dead,
    Open,
}

impl Garage {
    /// Looks at all references that are due. Returns how many contents were settled.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn look_at_fresh_references(&self) -> Result<usize, ModelError> {
        let mut settled = 0;
        let now = self.0.clock.now();
        loop {
            let (counted, more) = self.settle_fresh_references(now).await?;
            settled += counted.settled;
            if !more {
                return Ok(settled);
            }
        }
    }

    /// Looks at some of the references that are due by a time. Returns what came of it, and whether there may be more.
    pub(crate) async fn settle_fresh_references(&self, due_by: Timestamp) -> Result<(Counted, bool), ModelError> {
        let (tables, fresh, now) = (&self.0.local.tables, self.0.local.block_trees.fresh, self.0.clock.now());
        let due: Vec<Due> = tables.db().read(move |tx| fresh.due(tx, due_by, PAGE)).await?;
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
            let next = now.plus_millis(LOOK_AFTER_MS).max(due_by.next());
            again.iter().try_for_each(|due| fresh.add_at(tx, next, &due.reference))
        };
        tables.db().write::<_, DbError>(record).await.map_err(TableError::Db)?;
        Ok((counted, more))
    }

    async fn settle_references(&self, version: VersionId, due: &[Due]) -> Result<Outcome, ModelError> {
        let Some(FreshReference { origin, arrived, .. }) = due.first().map(|due| &due.reference) else {
            return Ok(Outcome::Settled);
        };
        if origin.part.is_none() && self.has_object_here(version, origin).await? {
            return Ok(Outcome::Settled);
        }
        let mut live = Vec::new();
        for due in due {
            if self.is_referred_to(due.reference.block, version).await? {
                live.push(due.reference.block);
            }
        }
        if live.is_empty() {
            return Ok(Outcome::Settled);
        }
        match self.certain().content(version, origin, *arrived).await? {
            Content::Kept => Ok(Outcome::Settled),
            Content::Open => Ok(Outcome::Waits),
            Content::Dead => {
                let references = self.certain().reference_table();
                for block in live {
                    references.merge(&BlockRefRow::released(block, version)).await?;
                    tracing::debug!(%block, %version, "released a reference that nothing leads to");
                }
                Ok(Outcome::Settled)
            }
        }
    }

    /// As this node knows, or, once the block belongs to others, as they do: they received the reference without its origin, so that
    /// nobody but this node looks at it.
    async fn is_referred_to(&self, block: BlockHash, version: VersionId) -> Result<bool, ModelError> {
        let (layout, sort_key) = (self.0.cluster.layout(), version.as_bytes().to_vec());
        if !layout.is_owner(self.0.cluster.node_id(), block.into()) {
            return Ok(self.certain().reference_table().get(block.into(), sort_key).await?.is_some_and(|row| !row.deleted));
        }
        let layout = layout.version();
        let read = Read { layout, table: table_ids::BLOCK_REF, placement: block.into(), sort_key: sort_key.into() };
        let row = self.0.local.tables.read(read).await?.row;
        Ok(row.map(|row| BlockRefTable::decode(&row)).transpose()?.is_some_and(|row| !row.deleted))
    }

    /// What became of a content that a reference came with.
    async fn content(&self, version: VersionId, origin: &Origin, arrived: Timestamp) -> Result<Content, ModelError> {
        if let Some(part) = origin.part {
            return self.content_of_part(version, origin, part, arrived).await;
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
