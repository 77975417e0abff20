//! Writing and deleting objects: from the pipeline's result to the row that makes it visible.
//!
//! The timestamp is taken at completion. An owner that knows something at least as new answers `Behind T`; the write then repeats
//! with T + 1. Since a version id belongs to one row at one timestamp, what has blocks repeats under a new version id, after the
//! references were registered again under it.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use futures_channel::oneshot;
use futures_util::FutureExt;
use garage_table::Schema;
use garage_table::wire::{Mode, Projection, Verdict};
use garage_types::codec::{self, Unknown};
use garage_types::planted::{Bug, is_planted};
use garage_types::{BlockHash, BucketId, KeyId, ObjectKey, Timestamp, UploadId, VersionId};

use crate::bucket::Quotas;
use crate::counters::Counts;
use crate::digest::{Checksum, ChecksumAlgorithm, Digests};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::{Condition, Content, IndexShard, ObjectMeta, ObjectRow, ObjectState, ObjectTable, Refusal, judge_quotas};
use crate::pipeline::{self, Opening, Plan, Source, StoredBody};
use crate::upload::{SimpleUpload, UploadRow, UploadState, UploadTable};
use crate::version::Backlink;

/// Largest body of a single PUT, as AWS has it.
pub const PUT_SIZE_MAX: u64 = 5 << 30;
/// How often a write is repeated because of newer ones before the client is told to try again.
pub(crate) const ATTEMPTS_MAX: usize = 16;

/// What the writer may demand of the object that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// ETags without quotes, or `*`.
    pub if_match: Option<Vec<String>>,
    pub if_none_match: Option<Vec<String>>,
}

impl Preconditions {
    pub fn is_empty(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }
}

/// An object to be written, apart from its bytes.
#[derive(Clone, Debug)]
pub struct PutObject {
    pub bucket: BucketId,
    pub key: ObjectKey,
    /// Lower-case names.
    pub headers: BTreeMap<String, String>,
    /// The checksum to compute and keep; AWS's default is CRC64NVME.
    pub checksum: ChecksumAlgorithm,
    pub owner: Option<KeyId>,
    pub preconditions: Preconditions,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub etag: String,
    pub checksum: Option<Checksum>,
    pub size: u64,
    pub timestamp: Timestamp,
}

/// A version ready to become visible.
pub(crate) struct Ready<'a> {
    pub put: &'a PutObject,
    pub meta: ObjectMeta,
    /// What was stored for it, unless it is inline.
    pub stored: Option<Registered>,
}

/// A content in blocks, listed and referred to under the version of an upload.
pub(crate) struct Registered {
    pub upload: UploadRow,
    pub blocks: Vec<(BlockHash, u64)>,
}

impl Garage {
    /// Stores an object.
    ///
    /// # Errors
    /// [`ModelError`]; nothing is visible then, and what was stored is released.
    pub async fn put_object(&self, put: PutObject, mut source: Box<dyn Source>) -> Result<Written, ModelError> {
        self.check_conditions_available(&put)?;
        self.check_room(put.bucket, source.announced())?;
        match pipeline::open(&mut *source, self.0.settings.inline_max).await? {
            Opening::Whole(body) => self.put_inline(&put, body, &mut *source).await,
            Opening::Start(start) => {
                // In a task of its own: a client that hangs up must not stop us halfway through cleaning up.
                let (done, result) = oneshot::channel();
                let garage = self.clone();
                let task = async move {
                    // Nobody waits any more when the client is gone.
                    drop(done.send(garage.put_blocks(put, start, source).await));
                };
                self.0.cluster.spawn().spawn("put object", task.boxed());
                result.await.map_err(|_cancelled| ModelError::ShuttingDown)?
            }
        }
    }

    /// Refuses, before its body is read, what this node alone would have to store and has no room for; other owners say so
    /// themselves. `length`: of the body, if that is known; whether it can be compressed is not.
    pub(crate) fn check_room(&self, bucket: BucketId, length: Option<u64>) -> Result<(), ModelError> {
        let room = self.0.local.tables.db().room();
        let of_blocks = length.filter(|length| *length > self.0.settings.inline_max as u64);
        let fits = !room.is_metadata_scarce() && of_blocks.is_none_or(|length| length <= room.data_free());
        let placement = crate::object::IndexShard { bucket, shard: 0 }.placement();
        if fits || !self.0.cluster.decides_alone(&placement) { Ok(()) } else { Err(ModelError::NoRoom) }
    }

    pub(crate) fn check_conditions_available(&self, put: &PutObject) -> Result<(), ModelError> {
        let placement = crate::object::IndexShard { bucket: put.bucket, shard: 0 }.placement();
        if put.preconditions.is_empty() || self.0.cluster.decides_alone(&placement) {
            Ok(())
        } else {
            Err(ModelError::ConditionalWriteUnavailable)
        }
    }

    async fn put_inline(&self, put: &PutObject, body: Bytes, source: &mut dyn Source) -> Result<Written, ModelError> {
        let mut digests = Digests::new(put.checksum);
        digests.update(&body);
        let digested = digests.finish();
        source.expected().map_err(ModelError::Source)?.check(&digested)?;
        let etag = digested.etag();
        let meta = self.meta(put, digested.length, etag, Some(digested.checksum), Content::Inline(body.to_vec().into()));
        self.commit(Ready { put, meta, stored: None }).await
    }

    fn meta(&self, put: &PutObject, size: u64, etag: String, checksum: Option<Checksum>, content: Content) -> ObjectMeta {
        ObjectMeta {
            size,
            etag,
            content,
            headers: put.headers.clone(),
            checksum,
            owner: put.owner.clone(),
            upload: None,
            unknown: Unknown::new(),
        }
    }

    async fn put_blocks(&self, put: PutObject, start: BytesMut, source: Box<dyn Source>) -> Result<Written, ModelError> {
        let version = VersionId::random(&*self.0.random);
        let upload = self.simple_upload(&put, version);
        let plan = Plan {
            version,
            backlink: Backlink { bucket: put.bucket, key: put.key.clone() },
            checksum: put.checksum,
            size_max: PUT_SIZE_MAX,
        };
        // The upload row goes beside the blocks: it must be durable before the object row, not before the first block.
        let begin = async { won(self.0.uploads.commit(&upload).await?) };
        let (begun, stored) = futures_util::future::join(begin, pipeline::store(self.clone(), plan, start, source)).await;
        match (begun, stored) {
            (Ok(()), Ok(stored)) => self.commit_blocks(&put, upload, stored).await,
            (Err(error), _) | (_, Err(error)) => {
                self.abort_upload_row(&upload).await;
                Err(error)
            }
        }
    }

    pub(crate) fn simple_upload(&self, put: &PutObject, version: VersionId) -> UploadRow {
        let simple = SimpleUpload {
            version,
            coordinator: self.0.cluster.node_id(),
            incarnation: self.0.settings.incarnation,
            unknown: Unknown::new(),
        };
        UploadRow {
            bucket: put.bucket,
            shard: 0,
            key: put.key.clone(),
            id: UploadId::random(&*self.0.random),
            started: self.0.clock.now(),
            state: UploadState::Simple(simple),
        }
    }

    async fn commit_blocks(&self, put: &PutObject, upload: UploadRow, stored: StoredBody) -> Result<Written, ModelError> {
        let StoredBody { digested, first, blocks } = stored;
        let first = first.ok_or_else(|| ModelError::Damaged("a body was stored without a block".to_owned()))?;
        let etag = digested.etag();
        let content = Content::Blocks { first: first.hash, first_length: first.length };
        let meta = self.meta(put, digested.length, etag, Some(digested.checksum), content);
        self.commit(Ready { put, meta, stored: Some(Registered { upload, blocks }) }).await
    }

    /// Gives up an unfinished write. What fails here is found again: the row stays open, and its coordinator will have restarted.
    pub(crate) async fn abort_upload_row(&self, upload: &UploadRow) {
        let aborted = self.0.uploads.commit(&upload.with_state(UploadState::Aborted)).await;
        if let Err(error) = aborted {
            tracing::warn!(bucket = %upload.bucket, upload = %upload.id, %error, "an unfinished upload could not be given up yet");
        }
    }

    /// Writes the row that makes a version visible. What was stored for it is looked after in any case.
    ///
    /// Until the write is acknowledged, some owner may have the row of any attempt although too few do: releasing its content would
    /// make that row, where it is read or once it spreads, an object without bytes. So earlier attempts are given up only when a
    /// later row is acknowledged; a write that fails is given up only by an owner that decides alone, who knows what was stored.
    pub(crate) async fn commit(&self, ready: Ready<'_>) -> Result<Written, ModelError> {
        let Ready { put, meta, stored } = ready;
        let (first, blocks) = stored.map_or((None, Vec::new()), |stored| (Some(stored.upload), stored.blocks));
        let mut attempts: Vec<UploadRow> = first.into_iter().collect();
        let result = self.commit_attempts(put, meta, &blocks, &mut attempts).await;
        match &result {
            // The last was finished together with the object row.
            Ok(_written) => drop(attempts.pop()),
            Err(_) if attempts.iter().any(|upload| !self.0.cluster.decides_alone(&upload.placement())) => attempts.clear(),
            Err(_) => {}
        }
        for upload in &attempts {
            self.abort_upload_row(upload).await;
        }
        result
    }

    async fn commit_attempts(
        &self,
        put: &PutObject,
        meta: ObjectMeta,
        blocks: &[(BlockHash, u64)],
        attempts: &mut Vec<UploadRow>,
    ) -> Result<Written, ModelError> {
        let condition = self.condition(put, meta.size).await?;
        let mut at_least = Timestamp::ZERO;
        for _attempt in 0..ATTEMPTS_MAX {
            let upload = attempts.last().cloned();
            let version = match &upload {
                Some(UploadRow { state: UploadState::Simple(simple), .. }) => simple.version,
                _ => VersionId::random(&*self.0.random),
            };
            let timestamp = self.0.clock.now().max(at_least);
            let row = object_row(put, timestamp, version, ObjectState::Live(Box::new(meta.clone())));
            match self.commit_row(&row, upload.as_ref(), condition.as_ref()).await? {
                Verdict::Behind(_) if is_planted(Bug::BehindIgnored) => {
                    return Ok(Written { etag: meta.etag, checksum: meta.checksum, size: meta.size, timestamp });
                }
                Verdict::Won => {
                    return Ok(Written { etag: meta.etag, checksum: meta.checksum, size: meta.size, timestamp });
                }
                Verdict::Behind(newest) => at_least = newest.next(),
                Verdict::Refused(reason) => return Err(refused(&reason)),
            }
            if upload.is_some() {
                // Owners that stored the row may have released the version when the newer row came: take a fresh one.
                self.register_again(put, blocks, attempts).await?;
            }
        }
        Err(ModelError::Conflict("too many other writes to the same key at this moment; try again".to_owned()))
    }

    async fn commit_row(
        &self,
        row: &ObjectRow,
        upload: Option<&UploadRow>,
        condition: Option<&Condition>,
    ) -> Result<Verdict, ModelError> {
        let mut entry = ObjectTable::entry(row, Mode::Commit);
        entry.condition = condition.map(|condition| codec::encode(condition).into());
        let mut entries = vec![entry];
        if let Some(upload) = upload {
            entries.push(UploadTable::entry(&upload.with_state(UploadState::Done), Mode::Commit));
        }
        Ok(self.0.objects.write(row.index().placement(), entries).await?)
    }

    /// What the owners have to judge about an object of `size` bytes, if there is anything.
    ///
    /// Limits are judged by the owner where one decides alone, in the transaction that counts. Where several decide, each counts for
    /// itself, and a write that some of them refused would be stored at the others although its client was told that it was not:
    /// there the limits are judged here, before anything is written, and writes at the same time may exceed them.
    ///
    /// # Errors
    /// [`ModelError::QuotaObjects`], [`ModelError::QuotaBytes`].
    pub(crate) async fn condition(&self, put: &PutObject, size: u64) -> Result<Option<Condition>, ModelError> {
        let quotas = *self.bucket(put.bucket).await?.state.quotas.get();
        let Preconditions { if_match, if_none_match } = put.preconditions.clone();
        let alone = self.0.cluster.decides_alone(&IndexShard { bucket: put.bucket, shard: 0 }.placement());
        if !alone && quotas != Quotas::default() {
            // Few writes have limits to look at; all others should not carry this along.
            Box::pin(self.check_quotas(put, size, &quotas)).await?;
        }
        let quotas = if alone { quotas } else { Quotas::default() };
        let condition = Condition { if_match, if_none_match, quotas };
        Ok((condition != Condition::default()).then_some(condition))
    }

    async fn check_quotas(&self, put: &PutObject, size: u64, quotas: &Quotas) -> Result<(), ModelError> {
        let (before, rows) = futures_util::future::try_join(
            self.bucket_counts(put.bucket),
            self.object_rows(put.bucket, &put.key, Projection::Summary),
        )
        .await?;
        let replaced = rows.iter().filter_map(ObjectRow::live).map(|meta| Counts::of_object(meta.size));
        let change = replaced.fold(Counts::of_object(size), |change, gone| change.minus(&gone));
        match judge_quotas(quotas, &before, &change) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// Registers blocks under a fresh version. The list of an earlier attempt cannot be asked for them: it may be released by now.
    async fn register_again(
        &self,
        put: &PutObject,
        blocks: &[(BlockHash, u64)],
        attempts: &mut Vec<UploadRow>,
    ) -> Result<(), ModelError> {
        let version = VersionId::random(&*self.0.random);
        let upload = self.simple_upload(put, version);
        won(self.0.uploads.commit(&upload).await?)?;
        attempts.push(upload);
        let backlink = Backlink { bucket: put.bucket, key: put.key.clone() };
        self.register(blocks, backlink, version).await
    }

    /// Deletes an object. There need not be one.
    ///
    /// # Errors
    /// [`ModelError`]; the deletion may then have reached some of the owners.
    pub async fn delete_object(&self, bucket: BucketId, key: &ObjectKey, preconditions: Preconditions) -> Result<(), ModelError> {
        let put = PutObject {
            bucket,
            key: key.clone(),
            headers: BTreeMap::new(),
            checksum: ChecksumAlgorithm::Crc64Nvme,
            owner: None,
            preconditions,
        };
        self.check_conditions_available(&put)?;
        let condition = if put.preconditions.is_empty() { None } else { self.condition(&put, 0).await? };
        let mut at_least = Timestamp::ZERO;
        for _attempt in 0..ATTEMPTS_MAX {
            let timestamp = self.0.clock.now().max(at_least);
            let row = object_row(&put, timestamp, VersionId::random(&*self.0.random), ObjectState::Tombstone);
            match self.commit_row(&row, None, condition.as_ref()).await? {
                Verdict::Won => return Ok(()),
                Verdict::Behind(newest) => at_least = newest.next(),
                Verdict::Refused(reason) => return Err(refused(&reason)),
            }
        }
        Err(ModelError::Conflict("too many other writes to the same key at this moment; try again".to_owned()))
    }
}

pub(crate) fn object_row(put: &PutObject, timestamp: Timestamp, version: VersionId, state: ObjectState) -> ObjectRow {
    ObjectRow { bucket: put.bucket, shard: 0, key: put.key.clone(), timestamp, version, is_null: true, state }
}

/// For commits that only a refusal can stop.
pub(crate) fn won(verdict: Verdict) -> Result<(), ModelError> {
    match verdict {
        Verdict::Won => Ok(()),
        Verdict::Refused(reason) => Err(refused(&reason)),
        Verdict::Behind(_) => Err(ModelError::Conflict("the row was changed at this moment; try again".to_owned())),
    }
}

pub(crate) fn refused(reason: &[u8]) -> ModelError {
    match codec::decode::<Refusal>(reason) {
        Ok(refusal) => refusal.into(),
        Err(error) => ModelError::Damaged(format!("an owner's refusal: {error}")),
    }
}

impl From<Refusal> for ModelError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::PreconditionFailed => ModelError::PreconditionFailed,
            Refusal::NoSuchKey => ModelError::NoSuchKey,
            Refusal::NoSuchBucket => ModelError::NoSuchBucket(String::new()),
            Refusal::NoSuchUpload => ModelError::NoSuchUpload,
            Refusal::UploadBusy => {
                ModelError::Conflict("the upload is being completed or aborted by another request; try again".to_owned())
            }
            Refusal::QuotaObjects => ModelError::QuotaObjects,
            Refusal::QuotaBytes => ModelError::QuotaBytes,
        }
    }
}
