//! Copies: by reference where the digests of the source are enough, else through the write pipeline with the source as the body.
//!
//! A copy by reference lists the source's blocks under a version id of its own, then registers a reference to each with the block's
//! owners. An owner that lacks the bytes refuses; unless a write quorum has them they are fetched and stored like new ones.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use garage_types::codec::Unknown;
use garage_types::{BlockHash, VersionId};

use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind, Expected};
use crate::error::{ModelError, SourceError};
use crate::fresh_refs::Origin;
use crate::garage::Garage;
use crate::get::{ByteStream, Object};
use crate::multipart::{PartWritten, PutPart};
use crate::object::{Content, ObjectMeta};
use crate::pipeline::{InMemory, Source};
use crate::put::{PUT_SIZE_MAX, PutObject, Ready, Registered, Written, won};
use crate::version::{Piece, SEGMENT_PIECES_MAX, Segment, VersionContent, VersionRow};

/// References registered at once.
const REFERENCES_IN_FLIGHT: usize = 16;

/// An object to be written with the content of another.
#[derive(Clone, Debug)]
pub struct CopyObject {
    pub source: Object,
    /// The target; its `headers` are those of the source unless they are replaced.
    pub put: PutObject,
    /// The checksum asked for; `None` keeps the source's.
    pub checksum: Option<ChecksumAlgorithm>,
}

/// A stored object as the body of a new one.
struct Stored {
    stream: ByteStream,
    length: u64,
}

impl Source for Stored {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, SourceError>>> {
        async move { Some(self.stream.next().await?.map_err(SourceError::from)) }.boxed()
    }

    fn is_clients(&self) -> bool {
        false
    }

    fn expected(&mut self) -> Result<Expected, SourceError> {
        Ok(Expected { length: Some(self.length), ..Expected::default() })
    }
}

/// Whether a copy may keep the digests of its source.
fn keeps_digests(source: &ObjectMeta, asked: Option<ChecksumAlgorithm>) -> bool {
    asked.is_none_or(|asked| source.checksum.as_ref().is_some_and(|checksum| checksum.algorithm == asked))
}

impl Garage {
    /// Copies an object, within a bucket or between two.
    ///
    /// # Errors
    /// [`ModelError`]; nothing is visible then, and what was stored is released.
    pub async fn copy_object(&self, copy: CopyObject) -> Result<Written, ModelError> {
        self.check_conditions_available(&copy.put)?;
        self.check_room(copy.put.bucket, None)?;
        if copy.source.meta.size > PUT_SIZE_MAX {
            return Err(ModelError::CopySourceTooLarge { limit: PUT_SIZE_MAX });
        }
        let by_reference = match &copy.source.meta.content {
            Content::Inline(_) | Content::NotShown => false,
            Content::Blocks { .. } | Content::Parts { .. } => keeps_digests(&copy.source.meta, copy.checksum),
        };
        if !by_reference {
            return self.copy_bytes(copy).await;
        }
        // In a task of its own: a client that hangs up must not stop us halfway through cleaning up.
        let (done, result) = oneshot::channel();
        let garage = self.clone();
        let task = async move {
            drop(done.send(garage.copy_references(copy).await));
        };
        self.0.cluster.spawn().spawn("copy object", task.boxed());
        result.await.map_err(|_cancelled| ModelError::ShuttingDown)?
    }

    async fn copy_bytes(&self, copy: CopyObject) -> Result<Written, ModelError> {
        let CopyObject { source, mut put, checksum } = copy;
        let kept = source.meta.checksum.as_ref().map(|checksum| checksum.algorithm);
        put.checksum = checksum.or(kept).unwrap_or(put.checksum);
        let body: Box<dyn Source> = match &source.meta.content {
            Content::Inline(bytes) => Box::new(InMemory::new(bytes.to_vec())),
            _ => Box::new(self.stored(&source, 0..source.meta.size).await?),
        };
        self.put_object(put, body).await.map_err(unwrapped)
    }

    async fn stored(&self, source: &Object, range: Range<u64>) -> Result<Stored, ModelError> {
        let length = range.end - range.start;
        Ok(Stored { stream: self.read_object(source, range).await?, length })
    }

    async fn copy_references(&self, copy: CopyObject) -> Result<Written, ModelError> {
        let CopyObject { source, put, .. } = copy;
        let version = VersionId::random(&*self.0.random);
        let working = self.0.local.working.on(version);
        let upload = self.simple_upload(&put, version);
        let begin = async { won(self.0.uploads.commit(&upload).await?) };
        let ((), known) = futures_util::future::try_join(begin, self.known_before(&put)).await?;
        let origin = self.origin(put.bucket, &put.key, None);
        let registered = match self.blocks_of_object(&source).await {
            Ok(blocks) => self.register(&blocks, &origin, version).await.map(|()| blocks),
            Err(error) => Err(error),
        };
        let blocks = match registered {
            Ok(blocks) => blocks,
            Err(error) => {
                self.abort_upload_row(&upload).await;
                return Err(error);
            }
        };
        let content = content_of(&blocks);
        let meta = ObjectMeta {
            content,
            headers: put.headers.clone(),
            owner: put.owner.clone(),
            upload: None,
            unknown: Unknown::new(),
            ..source.meta.clone()
        };
        self.commit(Ready { put: &put, meta, stored: Some(Registered { upload, known, working }) }).await
    }

    /// Registers blocks that are stored already under `version`. The lists come first, so that giving up the version releases what
    /// was done.
    pub(crate) async fn register(
        &self,
        blocks: &[(BlockHash, u64)],
        origin: &Origin,
        version: VersionId,
    ) -> Result<(), ModelError> {
        for (index, blocks) in blocks.chunks(SEGMENT_PIECES_MAX).enumerate() {
            let pieces = blocks.iter().map(|(hash, length)| Piece::Block { hash: *hash, length: *length }).collect();
            let segment = Segment::listing(index as u32, origin.backlink.clone(), pieces);
            self.0.versions.merge(&VersionRow { version, content: VersionContent::Segment(segment) }).await?;
        }
        // One reference a block, however often it is repeated.
        let distinct: BTreeMap<BlockHash, u64> = blocks.iter().copied().collect();
        let refer = |(hash, _length)| self.refer_block(hash, version, origin);
        stream::iter(distinct).map(Ok).try_for_each_concurrent(REFERENCES_IN_FLIGHT, refer).await
    }

    /// Registers all blocks of `source` under `version`; returns the content that they are.
    pub(crate) async fn refer_all(&self, source: &Object, origin: &Origin, version: VersionId) -> Result<Content, ModelError> {
        let blocks = self.blocks_of_object(source).await?;
        self.register(&blocks, origin, version).await?;
        Ok(content_of(&blocks))
    }

    async fn refer_block(&self, hash: BlockHash, version: VersionId, origin: &Origin) -> Result<(), ModelError> {
        if self.0.blocks.refer(hash, version, origin).await.is_ok() {
            return Ok(());
        }
        // Before the block is in memory. What has the turn waits for nodes only, and gives it back by itself.
        let permit = self.0.block_buffer.turn(self.0.settings.block_size).await?;
        let plain = self.0.blocks.get(hash).await?;
        let block = self.0.blocks.encode(plain).await?;
        let stored = self.0.blocks.put(block, version, origin).await;
        drop(permit);
        stored
    }

    /// Stores bytes of an object as a part. Their MD5 has to be known: a whole object that has it as its ETag is taken over by
    /// reference; otherwise the bytes are read, and blocks that are cut as before are known to their owners and not stored twice.
    ///
    /// # Errors
    /// [`ModelError`]; what was stored is released then.
    pub async fn upload_part_copy(&self, put: PutPart, source: &Object, range: Range<u64>) -> Result<PartWritten, ModelError> {
        if range.end - range.start > PUT_SIZE_MAX {
            return Err(ModelError::CopySourceTooLarge { limit: PUT_SIZE_MAX });
        }
        let algorithm = self.part_checksum(&put).await?;
        if range == (0..source.meta.size) && has_digests_of_part(&source.meta, algorithm) {
            return self.refer_part(put, source).await;
        }
        let body = self.stored(source, range).await?;
        self.upload_part(put, Box::new(body)).await.map_err(unwrapped)
    }
}

/// An object's content in these blocks.
fn content_of(blocks: &[(BlockHash, u64)]) -> Content {
    match blocks.first().copied() {
        Some((first, first_length)) => Content::Blocks { first, first_length },
        None => Content::Inline(serde_bytes::ByteBuf::new()),
    }
}

/// Whether the digests of an object are those that a part of the same bytes would have.
fn has_digests_of_part(source: &ObjectMeta, algorithm: ChecksumAlgorithm) -> bool {
    let in_blocks = matches!(source.content, Content::Blocks { .. });
    // That of an upload in parts is no MD5 of the bytes, and says so by its dash.
    let is_md5 = source.etag.len() == 32 && source.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let whole = |checksum: &Checksum| checksum.algorithm == algorithm && checksum.kind == ChecksumKind::FullObject;
    in_blocks && is_md5 && source.checksum.as_ref().is_some_and(whole)
}

/// An error of reading the source, which came through the pipeline as that of a body.
fn unwrapped(error: ModelError) -> ModelError {
    match error {
        ModelError::Source(source) => match source.downcast::<ModelError>() {
            Ok(error) => *error,
            Err(source) => ModelError::Source(source),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_types::BlockHash;
    use garage_types::codec::Unknown;

    use super::{has_digests_of_part, keeps_digests};
    use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind};
    use crate::object::{Content, ObjectMeta};

    #[test]
    fn a_part_by_reference_needs_the_md5_and_the_checksum_of_the_whole() {
        let fits = |meta: &ObjectMeta| has_digests_of_part(meta, ChecksumAlgorithm::Crc32);
        let content = Content::Blocks { first: BlockHash::of(b"x"), first_length: 1 };
        let meta = ObjectMeta { etag: "0".repeat(32), content, ..meta() };
        assert!(fits(&meta));
        assert!(!has_digests_of_part(&meta, ChecksumAlgorithm::Sha256));
        assert!(!fits(&ObjectMeta { etag: format!("{}-2", "0".repeat(32)), ..meta.clone() }));
        assert!(!fits(&ObjectMeta { content: Content::Inline(b"x".to_vec().into()), ..meta.clone() }));
        let composite = Checksum { kind: ChecksumKind::Composite, ..meta.checksum.clone().unwrap() };
        assert!(!fits(&ObjectMeta { checksum: Some(composite), ..meta.clone() }));
        assert!(!fits(&ObjectMeta { checksum: None, ..meta }));
    }

    fn meta() -> ObjectMeta {
        let checksum = Checksum { algorithm: ChecksumAlgorithm::Crc32, value: String::new(), kind: ChecksumKind::FullObject };
        ObjectMeta {
            size: 1,
            etag: String::new(),
            content: Content::NotShown,
            headers: BTreeMap::new(),
            checksum: Some(checksum),
            owner: None,
            upload: None,
            unknown: Unknown::new(),
        }
    }

    #[test]
    fn another_checksum_needs_the_bytes() {
        let meta = meta();
        assert!(keeps_digests(&meta, None));
        assert!(keeps_digests(&meta, Some(ChecksumAlgorithm::Crc32)));
        assert!(!keeps_digests(&meta, Some(ChecksumAlgorithm::Sha256)));
        assert!(!keeps_digests(&ObjectMeta { checksum: None, ..meta }, Some(ChecksumAlgorithm::Crc32)));
    }
}
