//! Reading objects: the current version of a key, and its bytes as a stream.

use std::ops::Range;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use garage_table::table::Query;
use garage_table::wire::{Order, Projection};
use garage_types::{BlockHash, BucketId, ObjectKey, Timestamp, VersionId, sort_key};

use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::{Content, IndexShard, ObjectMeta, ObjectRow, ObjectState, current, key_prefix};
use crate::version::{Piece, Segment, VersionContent};

/// Blocks fetched ahead of the one being sent.
const PREFETCH: usize = 2;

/// The current version of a key.
#[derive(Clone, Debug)]
pub struct Object {
    pub bucket: BucketId,
    pub key: ObjectKey,
    pub version: VersionId,
    pub timestamp: Timestamp,
    pub meta: ObjectMeta,
}

/// The bytes of an object, block by block. An error ends the stream: the reader must be cut off, not ended politely.
pub type ByteStream = BoxStream<'static, Result<Bytes, ModelError>>;

/// A block, and which of its bytes are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slice {
    hash: BlockHash,
    bytes: Range<u64>,
}

/// Which bytes of which pieces a range of the whole covers, in order. Pieces are given with their lengths.
fn slices(pieces: &[(BlockHash, u64)], range: &Range<u64>) -> Vec<Slice> {
    let mut start = 0;
    let mut wanted = Vec::new();
    for (hash, length) in pieces {
        let end = start + length;
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            wanted.push(Slice { hash: *hash, bytes: from - start..to - start });
        }
        start = end;
    }
    wanted
}

impl Garage {
    /// The current version of a key.
    ///
    /// # Errors
    /// [`ModelError::NoSuchKey`].
    pub async fn object(&self, bucket: BucketId, key: &ObjectKey) -> Result<Object, ModelError> {
        let rows = self.object_rows(bucket, key, Projection::Whole).await?;
        let row = current(&rows).ok_or(ModelError::NoSuchKey)?.clone();
        match row.state {
            ObjectState::Live(meta) => {
                Ok(Object { bucket, key: row.key, version: row.version, timestamp: row.timestamp, meta: *meta })
            }
            ObjectState::DeleteMarker | ObjectState::Tombstone => Err(ModelError::NoSuchKey),
        }
    }

    /// All rows of a key, newest first.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn object_rows(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        projection: Projection,
    ) -> Result<Vec<ObjectRow>, ModelError> {
        let placement = IndexShard { bucket, shard: 0 }.placement();
        let from = key_prefix(key);
        let to = sort_key::after_prefix(&from);
        let query = Query { from, to, order: Order::Forward, limit: 100, projection };
        Ok(self.0.objects.range(placement, query).await?.rows)
    }

    /// The bytes `range` of an object; `range` lies within it.
    ///
    /// # Errors
    /// [`ModelError`] before the first byte; later ones come through the stream.
    pub async fn read_object(&self, object: &Object, range: Range<u64>) -> Result<ByteStream, ModelError> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        match &object.meta.content {
            Content::Inline(bytes) => {
                let wanted = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
                let slice = wanted.and_then(|(start, end)| bytes.get(start..end));
                let slice = slice.ok_or_else(|| ModelError::Damaged(format!("{} has fewer bytes than its size", object.key)))?;
                let bytes = Bytes::copy_from_slice(slice);
                Ok(stream::once(async move { Ok(bytes) }).boxed())
            }
            Content::Blocks { first, first_length } if range.end <= *first_length => {
                Ok(self.stream_slices(vec![Slice { hash: *first, bytes: range }]))
            }
            Content::Blocks { .. } => {
                let blocks = self.blocks_of(object.version).await?;
                let total: u64 = blocks.iter().map(|(_hash, length)| length).sum();
                if total != object.meta.size {
                    return Err(ModelError::Damaged(format!("{} lists {total} of {} bytes", object.key, object.meta.size)));
                }
                Ok(self.stream_slices(slices(&blocks, &range)))
            }
            Content::Parts { .. } | Content::NotShown => {
                Err(ModelError::Damaged(format!("the content of {} cannot be read by this version", object.key)))
            }
        }
    }

    fn stream_slices(&self, slices: Vec<Slice>) -> ByteStream {
        let garage = self.clone();
        let fetch = move |slice: Slice| {
            let garage = garage.clone();
            async move {
                let block = garage.0.blocks.get(slice.hash).await?;
                let wanted = usize::try_from(slice.bytes.start).ok().zip(usize::try_from(slice.bytes.end).ok());
                let (start, end) = wanted.ok_or(ModelError::NoSuchKey)?;
                if end > block.len() {
                    return Err(ModelError::Damaged(format!("block {} is shorter than listed", slice.hash)));
                }
                Ok(block.slice(start..end))
            }
        };
        let [only] = slices.as_slice() else { return stream::iter(slices).map(fetch).buffered(PREFETCH).boxed() };
        stream::once(fetch(only.clone())).boxed()
    }

    async fn blocks_of(&self, version: VersionId) -> Result<Vec<(BlockHash, u64)>, ModelError> {
        let segments = self.segments(version).await?;
        let block = |piece: &Piece| match piece {
            Piece::Block { hash, length } => Ok((*hash, *length)),
            Piece::Part { .. } => Err(ModelError::Damaged(format!("version {version} lists a part among its blocks"))),
        };
        segments.iter().flat_map(|segment| &segment.pieces).map(block).collect()
    }

    /// The rows that list a version's pieces, in order; none of a deleted version.
    pub(crate) async fn segments(&self, version: VersionId) -> Result<Vec<Segment>, ModelError> {
        let mut segments = Vec::new();
        let mut from = Vec::new();
        loop {
            let query = Query { from, to: None, order: Order::Forward, limit: 100, projection: Projection::Whole };
            let page = self.0.versions.range(version.into(), query).await?;
            segments.extend(page.rows.into_iter().filter_map(|row| match row.content {
                VersionContent::Segment(segment) if !segment.deleted => Some(segment),
                VersionContent::Segment(_) | VersionContent::Deleted => None,
            }));
            match page.last {
                Some(mut last) => {
                    last.push(0);
                    from = last;
                }
                None => return Ok(segments),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_types::BlockHash;

    use super::{Slice, slices};

    #[test]
    fn a_range_is_cut_out_of_the_blocks_it_touches() {
        let hash = |n: u8| BlockHash::from_bytes([n; 32]);
        let blocks = [(hash(0), 10), (hash(1), 10), (hash(2), 5)];
        let cut = |range| slices(&blocks, &range).into_iter().map(|Slice { hash, bytes }| (hash, bytes)).collect::<Vec<_>>();
        assert_eq!(cut(0..25), [(hash(0), 0..10), (hash(1), 0..10), (hash(2), 0..5)]);
        assert_eq!(cut(9..11), [(hash(0), 9..10), (hash(1), 0..1)]);
        assert_eq!(cut(10..20), [(hash(1), 0..10)]);
        assert_eq!(cut(24..25), [(hash(2), 4..5)]);
        assert_eq!(cut(3..3), []);
    }
}
