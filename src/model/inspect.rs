//! Everything that is stored under one key, for operators who look at it: versions with their blocks, and open uploads.

use garage_table::table::Query;
use garage_table::wire::{Order, Projection};
use garage_types::{BlockHash, BucketId, ObjectKey, Timestamp, UploadId, VersionId, sort_key};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::get::Object;
use crate::object::{Content, IndexShard, ObjectMeta, ObjectRow, ObjectState};
use crate::part::newest_parts;
use crate::upload::{MultipartUpload, UploadRow};

/// A block of a content, in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedBlock {
    /// 1 for a content that was not uploaded in parts.
    pub part: u32,
    /// Of its first byte within the part.
    pub offset: u64,
    pub hash: BlockHash,
    pub size: u64,
}

/// What there is under a key.
#[derive(Clone, Debug)]
pub enum Inspected {
    /// A version that can be read, the newest first among several.
    Object { version: VersionId, timestamp: Timestamp, meta: Box<ObjectMeta>, blocks: Vec<InspectedBlock> },
    /// The key was deleted.
    Deleted { version: VersionId, timestamp: Timestamp },
    /// An open multipart upload, with the parts that are there.
    Upload { id: UploadId, started: Timestamp, upload: Box<MultipartUpload>, size: u64, blocks: Vec<InspectedBlock> },
}

/// Gives each block its place.
fn placed(part: u32, blocks: Vec<(BlockHash, u64)>) -> impl Iterator<Item = InspectedBlock> {
    let mut offset = 0;
    blocks.into_iter().map(move |(hash, size)| {
        let block = InspectedBlock { part, offset, hash, size };
        offset += size;
        block
    })
}

impl Garage {
    /// All that is stored under a key, versions first.
    ///
    /// # Errors
    /// [`ModelError::NoSuchKey`] when nothing is, nor is known to have been deleted.
    pub async fn inspect(&self, bucket: BucketId, key: &ObjectKey) -> Result<Vec<Inspected>, ModelError> {
        let mut found = Vec::new();
        for row in self.object_rows(bucket, key, Projection::Whole).await? {
            found.push(self.inspect_version(row).await?);
        }
        for row in self.open_uploads_of(bucket, key).await? {
            let Some(upload) = row.multipart().cloned() else { continue };
            found.push(self.inspect_upload(&row, upload).await?);
        }
        if found.is_empty() { Err(ModelError::NoSuchKey) } else { Ok(found) }
    }

    async fn inspect_version(&self, row: ObjectRow) -> Result<Inspected, ModelError> {
        let ObjectRow { bucket, key, timestamp, version, state, .. } = row;
        let ObjectState::Live(meta) = state else { return Ok(Inspected::Deleted { version, timestamp }) };
        let mut blocks = Vec::new();
        match &meta.content {
            Content::Inline(_) | Content::NotShown => {}
            Content::Blocks { .. } => blocks.extend(placed(1, self.blocks_of(version).await?)),
            Content::Parts { .. } => {
                let object = Object { bucket, key, version, timestamp, meta: (*meta).clone() };
                for part in self.object_parts(&object).await?.iter() {
                    blocks.extend(placed(part.number, self.blocks_of(part.version).await?));
                }
            }
        }
        Ok(Inspected::Object { version, timestamp, meta, blocks })
    }

    async fn inspect_upload(&self, row: &UploadRow, upload: MultipartUpload) -> Result<Inspected, ModelError> {
        let mut blocks = Vec::new();
        let mut size = 0;
        for part in newest_parts(self.part_attempts(row.id, 0, None).await?) {
            size += part.stored.size;
            blocks.extend(placed(part.number, self.blocks_of(part.version).await?));
        }
        Ok(Inspected::Upload { id: row.id, started: row.started, upload: Box::new(upload), size, blocks })
    }

    async fn open_uploads_of(&self, bucket: BucketId, key: &ObjectKey) -> Result<Vec<UploadRow>, ModelError> {
        let placement = IndexShard { bucket, shard: 0 }.placement();
        let mut from = Vec::new();
        sort_key::push_text(&mut from, key.as_str());
        let to = sort_key::after_prefix(&from);
        let mut uploads = Vec::new();
        loop {
            let query = Query { from, to: to.clone(), order: Order::Forward, limit: 1000, projection: Projection::Whole };
            let page = self.0.uploads.range(placement, query).await?;
            uploads.extend(page.rows.into_iter().filter(|row| row.multipart().is_some()));
            let Some(last) = page.last else { return Ok(uploads) };
            from = last;
            from.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_types::BlockHash;

    use super::placed;

    #[test]
    fn blocks_lie_one_behind_the_other() {
        let blocks = vec![(BlockHash::of(b"a"), 10), (BlockHash::of(b"b"), 5)];
        let offsets: Vec<(u32, u64, u64)> = placed(3, blocks).map(|block| (block.part, block.offset, block.size)).collect();
        assert_eq!(offsets, [(3, 0, 10), (3, 10, 5)]);
    }
}
