//! Writing and deleting objects: from the pipeline's result to the row that makes it visible.
//!
//! The timestamp is taken at completion. An owner that knows something at least as new answers `Behind T`. A write may be repeated with
//! T + 1 only if no owner has stored it: otherwise it may have been seen, and would be seen again after the write that came in between.
//! What has blocks learns, while these are stored, what was acknowledged before it began, and takes a later time; who is `Behind` then
//! knows a write that overlaps it, and it has happened just before that one.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::FutureExt;
use garage_table::Schema;
use garage_table::heard::{Committed, Extent};
use garage_table::table::Rows;
use garage_table::wire::{Mode, Projection, Verdict};
use garage_types::codec::{self, Unknown};
use garage_types::planted::{Bug, is_planted};
use garage_types::{BucketId, KeyId, ObjectKey, Timestamp, VersionId};

use crate::bucket::Quotas;
use crate::counters::Counts;
use crate::digest::{Checksum, ChecksumAlgorithm, Digests};
use crate::error::ModelError;
use crate::fresh_refs::{Origin, PartName};
use crate::garage::Garage;
use crate::object::{Condition, Content, IndexShard, ObjectMeta, ObjectRow, ObjectState, ObjectTable, Refusal, judge_quotas};
use crate::pipeline::{self, Opening, Plan, Source, StoredBody};
use crate::presence::Stay;
use crate::unfinished::{upload_of, version_of};
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

/// Where the bytes of a new object are among the counts of its bucket already, before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CountedBefore {
    Nowhere,
    /// The bucket's limits were judged when each of them came.
    AsParts,
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
    /// Later than all that was acknowledged before the write began.
    pub known: Timestamp,
    /// Says that this node works on it.
    pub working: Stay<VersionId>,
}

impl Garage {
    /// Stores an object.
    ///
    /// # Errors
    /// [`ModelError`]; nothing is visible then, and what was stored is released.
    pub async fn put_object(&self, put: PutObject, mut source: Box<dyn Source>) -> Result<Written, ModelError> {
        self.check_conditions_available(&put)?;
        self.check_room(put.bucket, source.announced())?;
        self.check_limits(&put, source.announced()).await?;
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

    /// Refuses, before its body is read, what the bucket's limits do not admit. The limits are judged again once the size is certain.
    /// `length`: of the body, if that is known.
    ///
    /// # Errors
    /// [`ModelError::QuotaObjects`], [`ModelError::QuotaBytes`].
    async fn check_limits(&self, put: &PutObject, length: Option<u64>) -> Result<(), ModelError> {
        let quotas = self.limits(put.bucket).await?;
        match length {
            Some(length) if quotas != Quotas::default() => {
                Box::pin(self.check_quotas(put, length, &quotas, CountedBefore::Nowhere)).await
            }
            Some(_) | None => Ok(()),
        }
    }

    /// As [`Self::check_limits`], of a part.
    pub(crate) async fn check_limits_of_part(&self, bucket: BucketId, length: Option<u64>) -> Result<(), ModelError> {
        let quotas = self.limits(bucket).await?;
        let Some(length) = length.filter(|_length| quotas.size_bytes_max.is_some()) else { return Ok(()) };
        let change = Counts { objects: 0, ..Counts::of_object(length) };
        let before = Box::pin(self.bucket_counts(bucket)).await?.with_open_parts();
        judge_quotas(&quotas, &before, &change).map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// The limits of a bucket.
    pub(crate) async fn limits(&self, bucket: BucketId) -> Result<Quotas, ModelError> {
        Ok(*self.bucket(bucket).await?.state.quotas.get())
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

    async fn put_blocks(&self, put: PutObject, start: Bytes, source: Box<dyn Source>) -> Result<Written, ModelError> {
        let version = VersionId::random(&*self.0.random);
        let working = self.0.local.working.on(version);
        let upload = self.simple_upload(&put, version);
        let plan =
            Plan { version, origin: self.origin(put.bucket, &put.key, None), checksum: put.checksum, size_max: PUT_SIZE_MAX };
        // The upload row goes beside the blocks: it must be durable before the object row, not before the first block.
        let begin = async { won(self.0.uploads.commit(&upload).await?) };
        let store = pipeline::store(self.clone(), plan, start, source);
        let (begun, known, stored) = futures_util::future::join3(begin, self.known_before(&put), store).await;
        match begun.and(known).and_then(|known| Ok((known, stored?))) {
            Ok((known, stored)) => self.commit_blocks(&put, stored, Registered { upload, known, working }).await,
            Err(error) => {
                self.abort_upload_row(&upload).await;
                Err(error)
            }
        }
    }

    /// What the references of a write by this node say of it.
    pub(crate) fn origin(&self, bucket: BucketId, key: &ObjectKey, part: Option<PartName>) -> Origin {
        Origin { coordinator: self.0.cluster.node_id(), backlink: Backlink { bucket, key: key.clone() }, part }
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
            id: upload_of(version),
            started: self.0.clock.now(),
            state: UploadState::Simple(simple),
        }
    }

    async fn commit_blocks(&self, put: &PutObject, stored: StoredBody, registered: Registered) -> Result<Written, ModelError> {
        let StoredBody { digested, first } = stored;
        let first = first.ok_or_else(|| ModelError::Damaged("a body was stored without a block".to_owned()))?;
        let etag = digested.etag();
        let content = Content::Blocks { first: first.hash, first_length: first.length };
        let meta = self.meta(put, digested.length, etag, Some(digested.checksum), content);
        self.commit(Ready { put, meta, stored: Some(registered) }).await
    }

    /// Gives up an unfinished write. What fails here is found again: the row stays open, and nobody works on it any more.
    pub(crate) async fn abort_upload_row(&self, upload: &UploadRow) {
        let aborted = self.0.uploads.commit(&upload.with_state(UploadState::Aborted)).await;
        if let Err(error) = aborted {
            tracing::warn!(bucket = %upload.bucket, upload = %upload.id, %error, "an unfinished upload could not be given up yet");
        }
    }

    /// Writes the row that makes a version visible. What was stored for it is looked after in any case.
    ///
    /// Until the write is acknowledged, some owner may have the row although too few do: releasing its content would make that row,
    /// where it is read or once it spreads, an object without bytes. So a write that fails is given up only by an owner that decides
    /// alone, who knows what was stored; else by all of them together, once nobody works on it: see [`crate::unfinished`].
    pub(crate) async fn commit(&self, ready: Ready<'_>) -> Result<Written, ModelError> {
        let Ready { put, meta, stored } = ready;
        let Some(Registered { upload, known, working }) = stored else { return self.commit_inline(put, meta).await };
        let result = self.commit_stored(put, meta, &upload, known).await;
        if result.is_err() && self.0.cluster.decides_alone(&upload.placement()) {
            self.abort_upload_row(&upload).await;
        }
        drop(working);
        result
    }

    /// `known`: later than all that was acknowledged before the write began. So an owner that is behind knows a write that overlaps
    /// this one, and unless it decides alone, others may have stored this one, and shown it: it is then taken to have happened just before
    /// the other, and not repeated above it, which would make it be seen twice.
    async fn commit_stored(
        &self,
        put: &PutObject,
        meta: ObjectMeta,
        upload: &UploadRow,
        known: Timestamp,
    ) -> Result<Written, ModelError> {
        let condition = self.condition(put, meta.size, CountedBefore::Nowhere).await?;
        let version = version_of(upload.id);
        let mut at_least = known;
        for _attempt in 0..ATTEMPTS_MAX {
            let alone = self.0.cluster.decides_alone(&upload.placement());
            let timestamp = self.0.clock.now().max(at_least);
            let row = object_row(put, timestamp, version, ObjectState::Live(Box::new(meta.clone())));
            match self.commit_row(&row, Some(upload), condition.as_ref()).await? {
                Verdict::Won => return Ok(written(meta, timestamp)),
                Verdict::Behind(_) if is_planted(Bug::BehindIgnored) => return Ok(written(meta, timestamp)),
                Verdict::Behind(newest) if alone => at_least = newest.next(),
                Verdict::Behind(_) => {
                    self.commit_overlapped(&row, &upload.with_state(UploadState::Done)).await?;
                    return Ok(written(meta, timestamp));
                }
                Verdict::Refused(reason) => return Err(refused(&reason)),
            }
        }
        Err(too_many_writes())
    }

    async fn commit_inline(&self, put: &PutObject, meta: ObjectMeta) -> Result<Written, ModelError> {
        let condition = self.condition(put, meta.size, CountedBefore::Nowhere).await?;
        let state = ObjectState::Live(Box::new(meta.clone()));
        let timestamp = self.commit_at_once(put, state, condition.as_ref()).await?;
        Ok(written(meta, timestamp))
    }

    /// Writes a row that names nothing else, in one round: its time is guessed, and guessed anew when an owner knows something later.
    ///
    /// # Errors
    /// [`ModelError::Overtaken`] when some owner may have stored the first guess and shown it: seen again under the next, after what came
    /// in between, it would have happened twice.
    async fn commit_at_once(
        &self,
        put: &PutObject,
        state: ObjectState,
        condition: Option<&Condition>,
    ) -> Result<Timestamp, ModelError> {
        let mut at_least = Timestamp::ZERO;
        for _attempt in 0..ATTEMPTS_MAX {
            let timestamp = self.0.clock.now().max(at_least);
            let row = object_row(put, timestamp, VersionId::random(&*self.0.random), state.clone());
            let mut entry = ObjectTable::entry(&row, Mode::Commit);
            entry.condition = condition.map(|condition| codec::encode(condition).into());
            let Committed { verdict, extent } = self.0.objects.commit_heard(row.index().placement(), vec![entry]).await?;
            match verdict {
                Verdict::Won => return Ok(timestamp),
                Verdict::Behind(_) if is_planted(Bug::BehindIgnored) => return Ok(timestamp),
                Verdict::Behind(newest) if extent == Extent::Nowhere => at_least = newest.next(),
                Verdict::Behind(_) => return Err(ModelError::Overtaken),
                Verdict::Refused(reason) => return Err(refused(&reason)),
            }
        }
        Err(too_many_writes())
    }

    /// Ends a write just before the one that overlaps it, as it could as well have happened. `done`: its upload's row, ended.
    ///
    /// Its content is left to the owners: whoever stores the row releases it when the newer one comes, and whoever has the newer one
    /// queues the release when it ignores the row.
    pub(crate) async fn commit_overlapped(&self, row: &ObjectRow, done: &UploadRow) -> Result<(), ModelError> {
        let object = ObjectTable::entry(row, Mode::Replicate);
        // The end of the upload is a commit all the same: where it was closed, or its claim taken back, neither is stored.
        let entries = vec![object, UploadTable::entry(done, Mode::Commit)];
        won(self.0.objects.write(row.index().placement(), entries).await?)
    }

    /// A time later than that of everything acknowledged before this call, also of deletions that are forgotten meanwhile.
    pub(crate) async fn later_than_known(&self, bucket: BucketId, key: &ObjectKey) -> Result<Timestamp, ModelError> {
        let Rows { rows, floor, .. } = self.for_writes().object_rows_and_floor(bucket, key, Projection::Summary).await?;
        let newest = rows.iter().map(|row| row.timestamp).fold(floor, Timestamp::max);
        Ok(if newest == Timestamp::ZERO { newest } else { newest.next() })
    }

    /// As [`Self::later_than_known`], for a write whose commit is a round of its own; nothing needs to be asked where one decides alone.
    pub(crate) async fn known_before(&self, put: &PutObject) -> Result<Timestamp, ModelError> {
        if self.0.cluster.decides_alone(&IndexShard { bucket: put.bucket, shard: 0 }.placement()) {
            return Ok(Timestamp::ZERO);
        }
        self.later_than_known(put.bucket, &put.key).await
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
    pub(crate) async fn condition(
        &self,
        put: &PutObject,
        size: u64,
        counted: CountedBefore,
    ) -> Result<Option<Condition>, ModelError> {
        let quotas = self.limits(put.bucket).await?;
        let Preconditions { if_match, if_none_match } = put.preconditions.clone();
        let alone = self.0.cluster.decides_alone(&IndexShard { bucket: put.bucket, shard: 0 }.placement());
        if !alone && quotas != Quotas::default() {
            // Few writes have limits to look at; all others should not carry this along.
            Box::pin(self.check_quotas(put, size, &quotas, counted)).await?;
        }
        let quotas = if alone { quotas } else { Quotas::default() };
        let condition = Condition { if_match, if_none_match, quotas };
        Ok((condition != Condition::default()).then_some(condition))
    }

    async fn check_quotas(&self, put: &PutObject, size: u64, quotas: &Quotas, counted: CountedBefore) -> Result<(), ModelError> {
        let (before, rows) = futures_util::future::try_join(
            self.bucket_counts(put.bucket),
            self.object_rows(put.bucket, &put.key, Projection::Summary),
        )
        .await?;
        let before = match counted {
            CountedBefore::Nowhere => before.with_open_parts(),
            CountedBefore::AsParts => before,
        };
        let replaced = rows.iter().filter_map(ObjectRow::live).map(|meta| Counts::of_object(meta.size));
        let change = replaced.fold(Counts::of_object(size), |change, gone| change.minus(&gone));
        match judge_quotas(quotas, &before, &change) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
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
        let condition = if put.preconditions.is_empty() { None } else { self.condition(&put, 0, CountedBefore::Nowhere).await? };
        self.commit_at_once(&put, ObjectState::Tombstone, condition.as_ref()).await.map(drop)
    }
}

fn written(meta: ObjectMeta, timestamp: Timestamp) -> Written {
    Written { etag: meta.etag, checksum: meta.checksum, size: meta.size, timestamp }
}

fn too_many_writes() -> ModelError {
    ModelError::Conflict("too many other writes to the same key at this moment; try again".to_owned())
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
            Refusal::BucketClosing => ModelError::BucketClosing,
            Refusal::NoSuchUpload => ModelError::NoSuchUpload,
            Refusal::UploadBusy => ModelError::UploadBusy,
            Refusal::QuotaObjects => ModelError::QuotaObjects,
            Refusal::QuotaBytes => ModelError::QuotaBytes,
        }
    }
}
