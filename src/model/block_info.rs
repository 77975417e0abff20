//! What operators ask of single blocks on this node: which there are, who refers to one, and giving up one that is lost.

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction, Snapshot};
use garage_table::wire::{Order, Projection, Range, Verdict};
use garage_table::{Schema, Table, TableError};
use garage_types::{BlockHash, Placement, VersionId};

use crate::block_ref::{BlockRefRow, BlockRefTable};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::in_use::{VersionUse, deleted_key};
use crate::multipart::UploadName;
use crate::object::{ObjectRow, ObjectState, ObjectTable};
use crate::table_ids;
use crate::upload::{UploadRow, UploadState};
use crate::version::{Backlink, VersionRow};

/// Rows of references read at once.
const PAGE: u32 = 1000;

/// A reference to a block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockReference {
    pub version: VersionId,
    /// The reference itself is deleted.
    pub deleted: bool,
    pub version_deleted: bool,
    /// What the version says that it belongs to; unknown once it is deleted.
    pub backlink: Option<Backlink>,
    pub used_by: VersionUse,
}

/// What this node knows of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockInfo {
    pub block: BlockHash,
    /// As counted; differs from the live references only if something is wrong.
    pub references_counted: u64,
    pub is_here: bool,
    pub references: Vec<BlockReference>,
}

/// What giving up blocks removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub blocks: u64,
    pub references: u64,
    pub versions: u64,
    pub objects: u64,
    pub uploads: u64,
}

impl Garage {
    /// The blocks known here whose names lie between two, both included; at most `limit`.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn blocks_between(&self, from: BlockHash, to: BlockHash, limit: usize) -> Result<Vec<BlockHash>, ModelError> {
        let tree = self.0.local.block_trees.counts;
        let read = move |tx: &Snapshot<'_>| {
            let bounds = (Bound::Included(from.as_bytes().as_slice()), Bound::Included(to.as_bytes().as_slice()));
            let mut blocks = Vec::new();
            tx.range(tree, bounds, Direction::Forward, &mut |key, _count| {
                blocks.extend(BlockHash::from_slice(key));
                if blocks.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok::<_, DbError>(blocks)
        };
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    /// Who refers to a block, as this node knows it.
    ///
    /// # Errors
    /// [`ModelError`].
    pub async fn block_info(&self, block: BlockHash) -> Result<BlockInfo, ModelError> {
        let mut references = Vec::new();
        for BlockRefRow { version, deleted, .. } in self.references_here(block).await? {
            let version_deleted = self.0.versions.get(version.into(), deleted_key()).await?.is_some();
            let backlink = self.segments(version).await?.into_iter().next().map(|segment| segment.backlink);
            let used_by = match &backlink {
                Some(backlink) => self.version_use(version, backlink).await?,
                None => VersionUse::None,
            };
            references.push(BlockReference { version, deleted, version_deleted, backlink, used_by });
        }
        Ok(BlockInfo {
            block,
            references_counted: self.reference_count(block).await?.map_or(0, |count| count.count),
            is_here: self.0.local.blocks.blocks.contains(block).await?,
            references,
        })
    }

    async fn references_here(&self, block: BlockHash) -> Result<Vec<BlockRefRow>, ModelError> {
        let mut rows = Vec::new();
        let mut from = Vec::new();
        loop {
            let range = Range {
                layout: self.0.cluster.layout().version(),
                table: table_ids::BLOCK_REF,
                placement: Placement::from(block),
                from: from.into(),
                to: None,
                order: Order::Forward,
                limit: PAGE,
                projection: Projection::Whole,
            };
            let page = self.0.local.tables.range(range).await?;
            for row in &page.rows {
                rows.push(BlockRefTable::decode(&row.row)?);
            }
            let last = page.rows.last().filter(|_| page.truncated).map(|row| row.sort_key.to_vec());
            let Some(mut last) = last else { return Ok(rows) };
            last.push(0);
            from = last;
        }
    }

    /// Gives up blocks that are lost for good: deletes every object and ends every upload that contains one of them.
    ///
    /// # Errors
    /// [`ModelError`]; what was deleted before stays deleted, and the call can be repeated.
    pub async fn purge_blocks(&self, blocks: &[BlockHash]) -> Result<Purged, ModelError> {
        let mut purged = Purged::default();
        let references = Table::<BlockRefTable>::new(self.0.local.tables.clone(), self.0.cluster.clone());
        for block in blocks {
            let info = self.block_info(*block).await?;
            for reference in info.references.iter().filter(|reference| !reference.deleted) {
                match &reference.used_by {
                    VersionUse::Object(row) => purged.objects += self.delete_just_this(row).await?,
                    VersionUse::Upload(upload) => {
                        self.end_upload(upload).await?;
                        purged.uploads += 1;
                    }
                    VersionUse::None => {}
                }
                // What the object or upload has not released by itself.
                self.0.versions.merge(&VersionRow::deleted(reference.version)).await?;
                purged.versions += u64::from(!reference.version_deleted);
                references.merge(&BlockRefRow::released(*block, reference.version)).await?;
                purged.references += 1;
            }
            self.retry_blocks(Some(vec![*block])).await?;
            purged.blocks += 1;
            tracing::warn!(%block, "gave up a block, with everything that contained it");
        }
        Ok(purged)
    }

    /// Deletes one version of an object, unless a newer one has taken its place.
    async fn delete_just_this(&self, row: &ObjectRow) -> Result<u64, ModelError> {
        let tombstone = ObjectRow {
            timestamp: row.timestamp.next(),
            version: VersionId::random(&*self.0.random),
            state: ObjectState::Tombstone,
            ..row.clone()
        };
        let entry = ObjectTable::entry(&tombstone, garage_table::wire::Mode::Commit);
        match self.0.objects.write(row.index().placement(), vec![entry]).await? {
            Verdict::Won => Ok(1),
            Verdict::Behind(_) => Ok(0),
            Verdict::Refused(reason) => Err(crate::put::refused(&reason)),
        }
    }

    async fn end_upload(&self, upload: &UploadRow) -> Result<(), ModelError> {
        match &upload.state {
            UploadState::Multipart(_) => {
                let name = UploadName { bucket: upload.bucket, key: upload.key.clone(), id: upload.id };
                self.abort_multipart(&name).await
            }
            UploadState::Simple(_) => crate::put::won(self.0.uploads.commit(&upload.with_state(UploadState::Aborted)).await?),
            UploadState::Closed { .. } | UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => Ok(()),
        }
    }

    /// Lets resync look at its settings and its queue now.
    pub fn wake_resync(&self) {
        self.0.resync.wake.notify_waiters();
    }
}
