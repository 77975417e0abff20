//! Multipart uploads while they are open: beginning them, storing and listing their parts. How they end: [`crate::upload_end`].

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{join, join3};
use garage_table::table::Query;
use garage_table::wire::{Order, Projection, Verdict};
use garage_types::codec::Unknown;
use garage_types::{BucketId, KeyId, ObjectKey, Timestamp, UploadId, VersionId};

use crate::digest::{Checksum, ChecksumAlgorithm};
use crate::error::ModelError;
use crate::fresh_refs::PartName;
use crate::garage::Garage;
use crate::get::Object;
use crate::part::{Attempt, AttemptState, Fate, Part, PartEntry, PartRow, StoredPart, attempts_from, newest_parts};
use crate::pipeline::{self, Plan, Source, StoredBody};
use crate::put::{ATTEMPTS_MAX, PUT_SIZE_MAX, refused, won};
use crate::upload::{MultipartUpload, UploadChecksum, UploadRow, UploadState, UploadTable};

/// Rows of attempts read at once.
const ATTEMPTS_PAGE: u32 = 1000;

/// A multipart upload to be begun.
#[derive(Clone, Debug)]
pub struct CreateUpload {
    pub bucket: BucketId,
    pub key: ObjectKey,
    /// Lower-case names.
    pub headers: BTreeMap<String, String>,
    pub checksum: Option<UploadChecksum>,
    pub owner: Option<KeyId>,
}

/// Which multipart upload is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadName {
    pub bucket: BucketId,
    pub key: ObjectKey,
    pub id: UploadId,
}

/// A part to be stored, apart from its bytes.
#[derive(Clone, Debug)]
pub struct PutPart {
    pub upload: UploadName,
    /// 1 to 10 000.
    pub number: u32,
    /// The algorithm the client announced.
    pub checksum: Option<ChecksumAlgorithm>,
}

/// What was stored of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartWritten {
    pub etag: String,
    pub checksum: Checksum,
    pub timestamp: Timestamp,
}

/// A page of the parts of an upload.
#[derive(Clone, Debug, PartialEq)]
pub struct PartListing {
    pub upload: MultipartUpload,
    pub parts: Vec<Part>,
    pub truncated: bool,
}

/// The checksum to compute of a part: the upload's; without one the client's, or AWS's default.
fn part_algorithm(upload: Option<UploadChecksum>, announced: Option<ChecksumAlgorithm>) -> Result<ChecksumAlgorithm, ModelError> {
    match (upload, announced) {
        (Some(upload), Some(found)) if upload.algorithm != found => {
            Err(ModelError::PartChecksumAlgorithm { expected: upload.algorithm, found })
        }
        (Some(upload), _) => Ok(upload.algorithm),
        (None, announced) => Ok(announced.unwrap_or(ChecksumAlgorithm::Crc64Nvme)),
    }
}

impl Garage {
    /// Begins a multipart upload.
    ///
    /// # Errors
    /// [`ModelError`].
    pub async fn create_multipart(&self, create: CreateUpload) -> Result<UploadId, ModelError> {
        let CreateUpload { bucket, key, headers, checksum, owner } = create;
        let multipart = MultipartUpload { headers, checksum, owner, claims: BTreeMap::new(), unknown: Unknown::new() };
        let row = UploadRow {
            bucket,
            shard: 0,
            key,
            id: UploadId::random(&*self.0.random),
            started: self.0.clock.now(),
            state: UploadState::Multipart(Box::new(multipart)),
        };
        won(self.0.uploads.commit(&row).await?)?;
        Ok(row.id)
    }

    /// The row of an upload, ended or not.
    pub(crate) async fn upload_row(&self, name: &UploadName) -> Result<Option<UploadRow>, ModelError> {
        let index = crate::object::IndexShard { bucket: name.bucket, shard: 0 };
        Ok(self.0.uploads.get(index.placement(), UploadTable::key_of(&name.key, &name.id)).await?)
    }

    /// An open multipart upload.
    ///
    /// # Errors
    /// [`ModelError::NoSuchUpload`].
    pub async fn open_multipart(&self, name: &UploadName) -> Result<MultipartUpload, ModelError> {
        let row = self.upload_row(name).await?;
        row.as_ref().and_then(UploadRow::multipart).cloned().ok_or(ModelError::NoSuchUpload)
    }

    /// Stores a part; it replaces what was stored under the same number before.
    ///
    /// # Errors
    /// [`ModelError`]; what was stored is released then.
    pub async fn upload_part(&self, put: PutPart, source: Box<dyn Source>) -> Result<PartWritten, ModelError> {
        self.check_room(put.upload.bucket, source.announced())?;
        self.check_limits_of_part(put.upload.bucket, source.announced()).await?;
        let algorithm = self.part_checksum(&put).await?;
        // In a task of its own: a client that hangs up must not stop us halfway through cleaning up.
        let (done, result) = oneshot::channel();
        let garage = self.clone();
        let task = async move {
            // Nobody waits any more when the client is gone.
            drop(done.send(garage.store_part(put, algorithm, source).await));
        };
        self.0.cluster.spawn().spawn("upload part", task.boxed());
        result.await.map_err(|_cancelled| ModelError::ShuttingDown)?
    }

    /// The checksum that a part gets.
    ///
    /// # Errors
    /// [`ModelError::NoSuchUpload`], [`ModelError::PartChecksumAlgorithm`].
    pub(crate) async fn part_checksum(&self, put: &PutPart) -> Result<ChecksumAlgorithm, ModelError> {
        part_algorithm(self.open_multipart(&put.upload).await?.checksum, put.checksum)
    }

    /// Makes a part of a whole object, whose digests are those of the part, by references to its blocks.
    ///
    /// # Errors
    /// As [`Garage::upload_part`].
    pub(crate) async fn refer_part(&self, put: PutPart, source: &Object) -> Result<PartWritten, ModelError> {
        self.check_limits_of_part(put.upload.bucket, Some(source.meta.size)).await?;
        let (done, result) = oneshot::channel();
        let (garage, source) = (self.clone(), source.clone());
        let task = async move {
            drop(done.send(garage.store_reference(put, &source).await));
        };
        self.0.cluster.spawn().spawn("copy part", task.boxed());
        result.await.map_err(|_cancelled| ModelError::ShuttingDown)?
    }

    async fn store_reference(&self, put: PutPart, source: &Object) -> Result<PartWritten, ModelError> {
        let missing = || ModelError::Damaged(format!("{} has no checksum", source.key));
        let checksum = source.meta.checksum.clone().ok_or_else(missing)?;
        let (row, attempt) = self.new_attempt(&put);
        let _working = self.0.local.working.on(attempt.version);
        let UploadName { bucket, key, id } = put.upload;
        won(self.0.parts.commit(&row).await?)?;
        let origin = self.origin(bucket, &key, Some(PartName { upload: id, number: put.number }));
        let referred = self.refer_all(source, &origin, attempt.version);
        let (referred, later) = join(referred, self.later_than_parts(id, put.number)).await;
        let prepared = referred.and_then(|_content| {
            let timestamp = self.0.clock.now().max(later?);
            Ok(StoredPart { timestamp, size: source.meta.size, etag: source.meta.etag.clone(), checksum })
        });
        self.commit_prepared(&row, &attempt, prepared).await
    }

    fn new_attempt(&self, put: &PutPart) -> (PartRow, Attempt) {
        let state = AttemptState::Pending { coordinator: self.0.cluster.node_id(), incarnation: self.0.settings.incarnation };
        let attempt = Attempt { number: put.number, version: VersionId::random(&*self.0.random), state };
        let UploadName { bucket, id, .. } = put.upload;
        (PartRow { upload: id, bucket, entry: PartEntry::Attempt(attempt.clone()) }, attempt)
    }

    async fn commit_prepared(
        &self,
        row: &PartRow,
        attempt: &Attempt,
        prepared: Result<StoredPart, ModelError>,
    ) -> Result<PartWritten, ModelError> {
        match prepared {
            Ok(stored) => self.commit_part(row, attempt, stored).await,
            Err(error) => {
                self.give_up_attempt(row, attempt).await;
                Err(error)
            }
        }
    }

    async fn store_part(
        &self,
        put: PutPart,
        checksum: ChecksumAlgorithm,
        source: Box<dyn Source>,
    ) -> Result<PartWritten, ModelError> {
        let (row, attempt) = self.new_attempt(&put);
        let _working = self.0.local.working.on(attempt.version);
        let UploadName { bucket, key, id } = put.upload;
        let origin = self.origin(bucket, &key, Some(PartName { upload: id, number: put.number }));
        let plan = Plan { version: attempt.version, origin, checksum, size_max: PUT_SIZE_MAX };
        // As for whole objects, the row that tells of the attempt goes beside its blocks.
        let begin = async { won(self.0.parts.commit(&row).await?) };
        let store = pipeline::store(self.clone(), plan, Bytes::new(), source);
        let (begun, stored, later) = join3(begin, store, self.later_than_parts(id, put.number)).await;
        // Again, now that the size is certain and other parts have come meanwhile.
        let length = stored.as_ref().ok().map(|stored| stored.digested.length);
        let admitted = self.check_limits_of_part(bucket, length).await;
        let prepared = begun.and(admitted).and(stored).and_then(|StoredBody { digested, .. }| {
            let timestamp = self.0.clock.now().max(later?);
            Ok(StoredPart { timestamp, size: digested.length, etag: digested.etag(), checksum: digested.checksum })
        });
        self.commit_prepared(&row, &attempt, prepared).await
    }

    /// A time later than that of every part acknowledged under this number before this call, whatever the clocks say.
    async fn later_than_parts(&self, upload: UploadId, number: u32) -> Result<Timestamp, ModelError> {
        let newest = newest_parts(self.for_writes().part_attempts(upload, number, Some(number)).await?);
        Ok(newest.first().map_or(Timestamp::ZERO, |part| part.stored.timestamp.next()))
    }

    /// Makes a stored part count, as the newest of its number: a part that was acknowledged while this one was under way comes before it.
    ///
    /// Whatever goes wrong here, the attempt is not given up at once: some owner may have it, and a completion that read it there may
    /// be taking it over. The end of the upload decides; when it is there already, it is carried out once more.
    async fn commit_part(&self, row: &PartRow, attempt: &Attempt, stored: StoredPart) -> Result<PartWritten, ModelError> {
        let not_taken = match self.commit_newest(row, attempt, stored).await? {
            Ok(written) => return Ok(written),
            Err(why) => why,
        };
        // Recorded first, so that carrying out the end finds it even if no owner took it.
        self.certain().0.parts.merge(row).await?;
        self.carry_out_end(row.upload).await;
        Err(not_taken)
    }

    /// Commits a stored part, later than all that its owners have of the same number.
    ///
    /// # Errors
    /// Outside: [`ModelError::Table`]. Inside: why the owners do not take it.
    async fn commit_newest(
        &self,
        row: &PartRow,
        attempt: &Attempt,
        mut stored: StoredPart,
    ) -> Result<Result<PartWritten, ModelError>, ModelError> {
        for _attempt in 0..ATTEMPTS_MAX {
            let finished = row.with_state(attempt, AttemptState::Stored(stored.clone()));
            match self.0.parts.commit(&finished).await? {
                Verdict::Won => {
                    let StoredPart { etag, checksum, timestamp, .. } = stored;
                    return Ok(Ok(PartWritten { etag, checksum, timestamp }));
                }
                Verdict::Behind(newest) => stored.timestamp = newest.next(),
                Verdict::Refused(reason) => return Ok(Err(refused(&reason))),
            }
        }
        Ok(Err(ModelError::Conflict("too many other uploads of the same part at this moment; try again".to_owned())))
    }

    /// Releases an attempt that did not get as far as counting. What fails here is released when the upload ends.
    async fn give_up_attempt(&self, row: &PartRow, attempt: &Attempt) {
        let gone = row.with_state(attempt, AttemptState::Gone(Fate::Released));
        if let Err(error) = self.0.parts.merge(&gone).await {
            tracing::warn!(upload = %row.upload, part = attempt.number, %error, "a failed part could not be given up yet");
        }
    }

    /// The rows of all attempts at the parts from number `first` to `last`.
    pub(crate) async fn part_attempts(
        &self,
        upload: UploadId,
        first: u32,
        last: Option<u32>,
    ) -> Result<Vec<PartRow>, ModelError> {
        let to = last.and_then(|last| last.checked_add(1)).map(attempts_from);
        let mut from = attempts_from(first);
        let mut rows = Vec::new();
        loop {
            let query =
                Query { from, to: to.clone(), order: Order::Forward, limit: ATTEMPTS_PAGE, projection: Projection::Whole };
            let page = self.0.parts.range(upload.into(), query).await?;
            rows.extend(page.rows);
            let Some(mut end) = page.last else { return Ok(rows) };
            end.push(0);
            from = end;
        }
    }

    /// The finished parts of an open upload behind number `after`.
    ///
    /// # Errors
    /// [`ModelError::NoSuchUpload`].
    pub async fn list_parts(&self, name: &UploadName, after: u32, limit: usize) -> Result<PartListing, ModelError> {
        let upload = self.open_multipart(name).await?;
        let mut parts = Vec::new();
        // Whole numbers at a time, so that all attempts at a part are seen together.
        let mut first = after.saturating_add(1);
        while parts.len() <= limit {
            let last = self.last_of_page(name.id, first).await?;
            let Some(last) = last else { break };
            parts.extend(newest_parts(self.part_attempts(name.id, first, Some(last)).await?));
            first = last.saturating_add(1);
        }
        let truncated = parts.len() > limit;
        parts.truncate(limit);
        Ok(PartListing { upload, parts, truncated })
    }

    /// The greatest number on the page of attempts that begins with part `first`.
    async fn last_of_page(&self, upload: UploadId, first: u32) -> Result<Option<u32>, ModelError> {
        let query = Query {
            from: attempts_from(first),
            to: None,
            order: Order::Forward,
            limit: ATTEMPTS_PAGE,
            projection: Projection::Whole,
        };
        let page = self.0.parts.range(upload.into(), query).await?;
        let numbers: BTreeSet<u32> = page.rows.iter().filter_map(number).collect();
        Ok(numbers.last().copied())
    }

    /// Gives up the attempts that an earlier run of this node left unfinished.
    pub(crate) async fn reap_parts(&self) -> Result<usize, ModelError> {
        let (own, current) = (self.0.cluster.node_id(), self.0.settings.incarnation);
        let rows = crate::buckets::all_rows::<crate::part::PartTable>(&self.0.local.tables).await?;
        let mut count = 0;
        for row in rows {
            let PartEntry::Attempt(attempt) = &row.entry else { continue };
            let AttemptState::Pending { coordinator, incarnation } = attempt.state else { continue };
            // With other owners one of them may have it finished, and acknowledged, or a completion may be taking it over: it is left
            // to the end of its upload.
            let decidable = self.0.cluster.decides_alone(&row.upload.into());
            if coordinator == own && incarnation != current && decidable {
                self.0.parts.merge(&row.with_state(attempt, AttemptState::Gone(Fate::Released))).await?;
                count += 1;
            }
        }
        Ok(count)
    }
}

fn number(row: &PartRow) -> Option<u32> {
    match &row.entry {
        PartEntry::Attempt(attempt) => Some(attempt.number),
        PartEntry::Ended(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::part_algorithm;
    use crate::digest::{ChecksumAlgorithm, ChecksumKind};
    use crate::error::ModelError;
    use crate::upload::UploadChecksum;

    #[test]
    fn a_part_has_the_checksum_of_its_upload() {
        let upload = Some(UploadChecksum { algorithm: ChecksumAlgorithm::Sha256, kind: ChecksumKind::Composite });
        assert_eq!(part_algorithm(upload, None).unwrap(), ChecksumAlgorithm::Sha256);
        assert_eq!(part_algorithm(upload, Some(ChecksumAlgorithm::Sha256)).unwrap(), ChecksumAlgorithm::Sha256);
        assert!(matches!(part_algorithm(upload, Some(ChecksumAlgorithm::Crc32)), Err(ModelError::PartChecksumAlgorithm { .. })));
        assert_eq!(part_algorithm(None, Some(ChecksumAlgorithm::Crc32)).unwrap(), ChecksumAlgorithm::Crc32);
        assert_eq!(part_algorithm(None, None).unwrap(), ChecksumAlgorithm::Crc64Nvme);
    }
}
