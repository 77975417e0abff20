//! Reading objects: the current version of a key, and its bytes as a stream.

use std::future::ready;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use garage_table::table::{Query, Rows};
use garage_table::wire::{Order, Projection};
use garage_types::{BlockHash, BucketId, ObjectKey, Timestamp, VersionId, sort_key};

use crate::error::ModelError;
use crate::fetch::Slice;
use crate::garage::Garage;
use crate::object::{Content, IndexShard, ObjectMeta, ObjectRow, ObjectState, current, key_prefix};
use crate::part_lists::{BlockList, SliceList, WantedParts};
use crate::version::{Piece, Segment, VersionContent, VersionRow};

/// Parts whose blocks are looked up at once, for all of an object.
const LISTS_AT_ONCE: usize = 8;

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

/// A part of an object that was uploaded in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPart {
    pub number: u32,
    /// Which bytes of the object it is.
    pub bytes: Range<u64>,
    pub version: VersionId,
    /// Base64.
    pub checksum: Option<String>,
}

/// Where each part begins and ends.
fn lay_out<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> Vec<ObjectPart> {
    let mut start = 0;
    let mut parts = Vec::new();
    for piece in pieces {
        let Piece::Part { number, version, length, checksum } = piece else { continue };
        let end = start + length;
        parts.push(ObjectPart { number: *number, bytes: start..end, version: *version, checksum: checksum.clone() });
        start = end;
    }
    parts
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
        Ok(self.object_rows_and_floor(bucket, key, projection).await?.rows)
    }

    /// As [`Self::object_rows`], with the time that a new row must be later than.
    ///
    /// # Errors
    /// As [`Self::object_rows`].
    pub(crate) async fn object_rows_and_floor(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        projection: Projection,
    ) -> Result<Rows<ObjectRow>, ModelError> {
        let placement = IndexShard { bucket, shard: 0 }.placement();
        let from = key_prefix(key);
        let to = sort_key::after_prefix(&from);
        let query = Query { from, to, order: Order::Forward, limit: 100, projection };
        Ok(self.0.objects.range(placement, query).await?)
    }

    /// The bytes `range` of an object; `range` lies within it.
    ///
    /// The first bytes are at hand when this returns: the caller may have a status to send, which it cannot take back once it is told
    /// that there are no bytes.
    ///
    /// # Errors
    /// [`ModelError`] before the first byte, of them [`ModelError::Superseded`] when the object has to be found again; later ones
    /// come through the stream.
    pub async fn read_object(&self, object: &Object, range: Range<u64>) -> Result<ByteStream, ModelError> {
        let mut bytes = self.stream_object(object, range).await?;
        match bytes.next().await {
            Some(Ok(first)) => Ok(stream::once(ready(Ok(first))).chain(bytes).boxed()),
            Some(Err(error)) => Err(self.why_unreadable(object, error).await),
            None => Ok(stream::empty().boxed()),
        }
    }

    /// Why the first bytes of an object cannot be read: the blocks of one that was overwritten since it was found may be gone.
    async fn why_unreadable(&self, object: &Object, error: ModelError) -> ModelError {
        match self.object(object.bucket, &object.key).await {
            Ok(now) if now.version != object.version => ModelError::Superseded,
            Err(ModelError::NoSuchKey) => ModelError::Superseded,
            Ok(_) | Err(_) => error,
        }
    }

    async fn stream_object(&self, object: &Object, range: Range<u64>) -> Result<ByteStream, ModelError> {
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
                Ok(self.stream_slices(None, [Slice { hash: *first, block_length: *first_length, bytes: range }]))
            }
            Content::Blocks { first, first_length } => {
                // The row names the first block, so that it is fetched while the others are looked up.
                let opening = (range.start < *first_length).then_some(Slice {
                    hash: *first,
                    block_length: *first_length,
                    bytes: range.start..*first_length,
                });
                let opened = async {
                    match opening.clone() {
                        Some(slice) => self.fetch_first(slice).await.map(Some),
                        None => Ok(None),
                    }
                };
                let (slices, opened) = join(self.slices_of(object, &range), opened).await;
                // A list that is gone says more than a block that is.
                let slices = slices?;
                let Some((opened, rest)) = opened?.filter(|_opened| slices.clone().next() == opening) else {
                    return Ok(self.stream_slices(None, slices));
                };
                Ok(self.stream_slices(Some(opened), rest.into_iter().chain(slices.skip(1))))
            }
            Content::Parts { .. } => {
                let parts = WantedParts::of(self.object_parts(object).await?, range);
                Ok(self.stream_blocks(None, self.slices_of_parts(parts)))
            }
            Content::NotShown => Err(ModelError::Damaged(format!("the content of {} was not read with it", object.key))),
        }
    }

    /// The parts of an object that was uploaded in parts, in order; none of any other.
    ///
    /// # Errors
    /// [`ModelError::Damaged`] when they are not as many bytes as the object; [`ModelError::Superseded`].
    pub async fn object_parts(&self, object: &Object) -> Result<Arc<Vec<ObjectPart>>, ModelError> {
        let Content::Parts { count } = object.meta.content else { return Ok(Arc::default()) };
        let end = |parts: &[ObjectPart]| parts.last().map_or(0, |part| part.bytes.end);
        let whole = |parts: &Vec<ObjectPart>| parts.len() == count as usize && end(parts) == object.meta.size;
        let laid_out = |segments: &[Segment]| lay_out(segments.iter().flat_map(|segment| &segment.pieces));
        if let Some(parts) = self.segments_here(object.version).await?.map(|segments| laid_out(&segments)).filter(whole) {
            return Ok(self.0.part_lists.share(object.version, parts));
        }
        let parts = laid_out(&self.segments(object.version).await?);
        let end = end(&parts);
        if parts.len() != count as usize || end != object.meta.size {
            let listed = parts.len();
            let what = format!("lists {listed} of {count} parts, {end} of {} bytes", object.meta.size);
            return Err(self.incomplete(object, what).await);
        }
        Ok(self.0.part_lists.share(object.version, parts))
    }

    /// All blocks of an object that is stored in blocks, in order.
    pub(crate) async fn blocks_of_object(&self, object: &Object) -> Result<Vec<(BlockHash, u64)>, ModelError> {
        let versions = match &object.meta.content {
            Content::Parts { .. } => self.object_parts(object).await?.iter().map(|part| part.version).collect(),
            Content::Blocks { .. } => vec![object.version],
            Content::Inline(_) | Content::NotShown => Vec::new(),
        };
        let listed: Vec<Vec<(BlockHash, u64)>> =
            stream::iter(versions).map(|version| self.blocks_of(version)).buffered(LISTS_AT_ONCE).try_collect().await?;
        let blocks = listed.concat();
        let total = total(&blocks);
        if total != object.meta.size {
            return Err(self.incomplete(object, format!("lists {total} of {} bytes", object.meta.size)).await);
        }
        Ok(blocks)
    }

    /// Why the lists of an object's content are not complete: it is released since it was found, or they are damaged.
    async fn incomplete(&self, object: &Object, what: String) -> ModelError {
        match self.object(object.bucket, &object.key).await {
            Ok(now) if now.version == object.version => ModelError::Damaged(format!("{} {what}", object.key)),
            Ok(_) | Err(ModelError::NoSuchKey) => ModelError::Superseded,
            Err(error) => error,
        }
    }

    /// `opened`: what comes before the slices.
    fn stream_slices<I>(&self, opened: Option<Bytes>, slices: I) -> ByteStream
    where
        I: IntoIterator<Item = Slice>,
        I::IntoIter: Send + 'static,
    {
        self.stream_blocks(opened, stream::iter(slices.into_iter().map(Ok)))
    }

    /// Which bytes of which blocks a range of an object covers.
    async fn slices_of(&self, object: &Object, range: &Range<u64>) -> Result<SliceList, ModelError> {
        let blocks = self.blocks_of_length(object.version, object.meta.size).await?;
        let total = total(&blocks);
        if total != object.meta.size {
            return Err(self.incomplete(object, format!("lists {total} of {} bytes", object.meta.size)).await);
        }
        Ok(SliceList::of(blocks, range))
    }

    pub(crate) async fn blocks_of(&self, version: VersionId) -> Result<Vec<(BlockHash, u64)>, ModelError> {
        blocks_in(version, &self.segments(version).await?)
    }

    /// The blocks of a version that is known to have `length` bytes, from this node if it has the whole list: no other bytes can ever
    /// be listed under the same version. They are fewer when the version is released or damaged.
    pub(crate) async fn blocks_of_length(&self, version: VersionId, length: u64) -> Result<Arc<BlockList>, ModelError> {
        if let Some(segments) = self.segments_here(version).await? {
            let blocks = blocks_in(version, &segments)?;
            if total(&blocks) == length {
                return Ok(self.0.block_lists.share(version, blocks));
            }
        }
        Ok(self.0.block_lists.share(version, self.blocks_of(version).await?))
    }

    /// The rows that list a version's pieces, in order; none of a deleted version.
    pub(crate) async fn segments(&self, version: VersionId) -> Result<Vec<Segment>, ModelError> {
        let mut segments = Segments::default();
        while let Some(query) = segments.next_page() {
            segments.add(self.0.versions.range(version.into(), query).await?);
        }
        Ok(segments.found)
    }

    /// The same as this node alone has them, which may be too few; `None` when it is no owner.
    async fn segments_here(&self, version: VersionId) -> Result<Option<Vec<Segment>>, ModelError> {
        let mut segments = Segments::default();
        while let Some(query) = segments.next_page() {
            let Some(page) = self.0.versions.range_here(version.into(), query).await? else { return Ok(None) };
            segments.add(page);
        }
        Ok(Some(segments.found))
    }
}

/// The walk over the rows of a version.
struct Segments {
    found: Vec<Segment>,
    /// Where the next page begins; `None` at the end.
    from: Option<Vec<u8>>,
}

impl Default for Segments {
    fn default() -> Self {
        Segments { found: Vec::new(), from: Some(Vec::new()) }
    }
}

impl Segments {
    fn next_page(&self) -> Option<Query> {
        let from = self.from.clone()?;
        Some(Query { from, to: None, order: Order::Forward, limit: 100, projection: Projection::Whole })
    }

    fn add(&mut self, page: Rows<VersionRow>) {
        self.from = page.last.map(|mut last| {
            last.push(0);
            last
        });
        for row in page.rows {
            match row.content {
                // The mark comes first; rows behind it may still wait for their turn to be deleted.
                VersionContent::Deleted => {
                    *self = Segments { found: Vec::new(), from: None };
                    return;
                }
                VersionContent::Segment(segment) if segment.deleted || segment.withdrawn => {}
                VersionContent::Segment(segment) => self.found.push(segment),
            }
        }
    }
}

fn total(blocks: &[(BlockHash, u64)]) -> u64 {
    blocks.iter().map(|(_hash, length)| length).sum()
}

fn blocks_in(version: VersionId, segments: &[Segment]) -> Result<Vec<(BlockHash, u64)>, ModelError> {
    let block = |piece: &Piece| match piece {
        Piece::Block { hash, length } => Ok((*hash, *length)),
        Piece::Part { .. } => Err(ModelError::Damaged(format!("version {version} lists a part among its blocks"))),
    };
    segments.iter().flat_map(|segment| &segment.pieces).map(block).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garage_types::VersionId;

    use super::lay_out;
    use crate::part_lists::WantedParts;
    use crate::version::Piece;

    #[test]
    fn a_range_is_cut_out_of_the_parts_it_touches() {
        let version = |n: u32| VersionId::from_bytes([n as u8; 32]);
        let piece = |(number, length)| Piece::Part { number, version: version(number), length, checksum: None };
        let parts = lay_out(&[(1, 10), (3, 0), (7, 5)].map(piece));
        assert_eq!(parts.iter().map(|part| part.bytes.clone()).collect::<Vec<_>>(), [0..10, 10..10, 10..15]);
        let parts = Arc::new(parts);
        let cut = |range| {
            let wanted = WantedParts::of(parts.clone(), range);
            let (left, found) = (wanted.left(), wanted.map(|part| (part.version, part.bytes)).collect::<Vec<_>>());
            assert_eq!(left, found.len());
            found
        };
        assert_eq!(cut(0..15), [(version(1), 0..10), (version(7), 0..5)]);
        assert_eq!(cut(9..11), [(version(1), 9..10), (version(7), 0..1)]);
        assert_eq!(cut(12..14), [(version(7), 2..4)]);
        assert_eq!(cut(3..3), []);
    }
}
