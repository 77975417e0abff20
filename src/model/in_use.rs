//! Who uses a version's content: an object, an unfinished upload, or nobody.
//!
//! Must stay true: uploads are read before objects, because an upload ends in the transaction that makes its object visible.

use garage_table::Schema;
use garage_table::table::{Query, Table};
use garage_table::wire::{Order, Projection};
use garage_types::{BucketId, ObjectKey, VersionId, sort_key};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::{Content, IndexShard, ObjectRow, key_prefix};
use crate::part::{AttemptState, Fate, PartEntry};
use crate::upload::{UploadRow, UploadState};
use crate::version::{Backlink, Piece, VersionContent};

/// Rows of one key read at once.
const PAGE: u32 = 100;

/// What a version's content is part of.
#[derive(Clone, Debug, PartialEq)]
pub enum VersionUse {
    Object(Box<ObjectRow>),
    Upload(Box<UploadRow>),
    None,
}

/// The sort key of the mark that a version is deleted.
pub(crate) fn deleted_key() -> Vec<u8> {
    vec![0]
}

/// What the version table says of a content as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    Deleted,
    Listed,
    /// Nothing: it was never listed, or its deletion is long ago and forgotten.
    Absent,
}

impl Garage {
    /// Whether anything lists what `version` is made of.
    pub(crate) async fn listing(&self, version: VersionId) -> Result<Listing, ModelError> {
        // The mark of a deletion comes first.
        let query = Query { from: Vec::new(), to: None, order: Order::Forward, limit: 1, projection: Projection::Whole };
        let page = self.0.versions.range(version.into(), query).await?;
        Ok(match page.rows.first().map(|row| &row.content) {
            Some(VersionContent::Deleted) => Listing::Deleted,
            Some(VersionContent::Segment(_)) => Listing::Listed,
            None => Listing::Absent,
        })
    }

    /// Who uses `version`, which says of itself that it belongs to `backlink`.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn version_use(&self, version: VersionId, backlink: &Backlink) -> Result<VersionUse, ModelError> {
        // Nearly always the object itself.
        if let Some(object) = self.object_with(version, backlink).await? {
            return Ok(VersionUse::Object(Box::new(object)));
        }
        for upload in rows_of_key(&self.0.uploads, backlink.bucket, &backlink.key).await? {
            if self.upload_has(&upload, version).await? {
                return Ok(VersionUse::Upload(Box::new(upload)));
            }
        }
        let object = self.object_with(version, backlink).await?;
        Ok(object.map_or(VersionUse::None, |object| VersionUse::Object(Box::new(object))))
    }

    /// The object whose content the version is, or is a part of.
    async fn object_with(&self, version: VersionId, backlink: &Backlink) -> Result<Option<ObjectRow>, ModelError> {
        for row in rows_of_key(&self.0.objects, backlink.bucket, &backlink.key).await? {
            let Some(meta) = row.live() else { continue };
            let is_part = matches!(meta.content, Content::Parts { .. })
                && self.segments(row.version).await?.iter().flat_map(|segment| &segment.pieces).any(|piece| match piece {
                    Piece::Part { version: part, .. } => *part == version,
                    Piece::Block { .. } => false,
                });
            if row.version == version || is_part {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Whether an upload that has not ended, or whose end is not carried out yet, has the version.
    async fn upload_has(&self, upload: &UploadRow, version: VersionId) -> Result<bool, ModelError> {
        match &upload.state {
            UploadState::Simple(simple) if simple.version == version => return Ok(true),
            UploadState::Multipart(multipart) if multipart.claims.contains_key(&version) => return Ok(true),
            UploadState::Closed { version: closed } if *closed == version => return Ok(true),
            UploadState::Simple(_) | UploadState::Closed { .. } | UploadState::Done => return Ok(false),
            UploadState::Multipart(_) | UploadState::Aborted | UploadState::Completed { .. } => {}
        }
        let attempts = self.part_attempts(upload.id, 0, None).await?;
        Ok(attempts.iter().any(|row| match &row.entry {
            PartEntry::Attempt(attempt) => {
                let ended = matches!(attempt.state, AttemptState::Gone(Fate::Released | Fate::Taken));
                attempt.version == version && !ended
            }
            PartEntry::Ended(_) => false,
        }))
    }
}

/// All rows of a key in an index of the bucket: also of versions that are deleted, and of uploads that have ended.
pub(crate) async fn rows_of_key<S: Schema>(
    table: &Table<S>,
    bucket: BucketId,
    key: &ObjectKey,
) -> Result<Vec<S::Row>, ModelError> {
    let placement = IndexShard { bucket, shard: 0 }.placement();
    let mut from = key_prefix(key);
    let to = sort_key::after_prefix(&from);
    let mut rows = Vec::new();
    loop {
        let query = Query { from, to: to.clone(), order: Order::Forward, limit: PAGE, projection: Projection::Whole };
        let page = table.range(placement, query).await?;
        rows.extend(page.rows);
        let Some(mut last) = page.last else { return Ok(rows) };
        last.push(0);
        from = last;
    }
}
