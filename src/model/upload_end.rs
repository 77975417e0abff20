//! How multipart uploads end: completed, with the parts taken over by an object, or aborted, with all of them released.
//!
//! The object's version lists parts, each a version of its own, and releasing it releases them; so two versions must never list the
//! same parts when one of them may be released while the other lives. Hence:
//! - whoever ends an upload holds a claim on it ([`crate::upload::Claim`]), alone; a completion goes on under one version id to
//!   the end, and never registers the parts again under another;
//! - its timestamp is later than anything a read quorum knew before. An owner that is `Behind` then knows a write that overlaps this
//!   one. Where one owner decides alone nothing was stored yet, and the commit is repeated with a later timestamp. Elsewhere some
//!   owners may have stored the row, and a second row of the version would break "one row at one timestamp": the completion is then
//!   taken to have happened just before the write that overlaps it, which it could as well have;
//! - a list that was not committed is withdrawn: its rows are emptied without releasing what they named. That is done only once every
//!   owner has refused the completion for good: whoever knows of the claim, and not that it was withdrawn, may carry it out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{join, join3, try_join_all};
use garage_table::Schema;
use garage_table::wire::{Entry, Mode, Verdict};
use garage_types::codec::{self, Unknown};
use garage_types::{Timestamp, UploadId, VersionId};

use crate::bucket::Quotas;
use crate::combine;
use crate::complete::{Assembled, ListedWhole, assemble};
use crate::digest::ChecksumAlgorithm;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::multipart::UploadName;
use crate::object::{Condition, Content, ObjectMeta, ObjectRow, ObjectState, ObjectTable};
use crate::part::{AttemptState, Outcome, Part, PartEntry, PartRow, PartTable, ended_key, fate, newest_parts};
use crate::put::{ATTEMPTS_MAX, CountedBefore, Preconditions, PutObject, Written, object_row, refused, won};
use crate::upload::{Claim, Completion, MultipartUpload, Purpose, UploadRow, UploadState, UploadTable};
use crate::version::{Backlink, Piece, SEGMENT_PIECES_MAX, Segment, VersionContent, VersionRow};

/// Parts that are ended in one transaction.
const ENDED_AT_ONCE: usize = 250;

/// A multipart upload to be completed.
#[derive(Clone, Debug)]
pub struct CompleteUpload {
    pub upload: UploadName,
    pub whole: ListedWhole,
    pub preconditions: Preconditions,
}

/// What was read before a completion began.
struct Known {
    parts: Vec<Part>,
    /// Than everything that was acknowledged under the key.
    later: Timestamp,
}

/// A completion that holds its claim: what it takes to make it visible.
#[derive(Clone)]
struct Finish {
    row: UploadRow,
    put: PutObject,
    version: VersionId,
    completion: Completion,
}

impl Finish {
    fn meta(&self) -> ObjectMeta {
        ObjectMeta {
            size: self.completion.size,
            etag: self.completion.etag.clone(),
            content: Content::Parts { count: self.completion.parts },
            headers: self.put.headers.clone(),
            checksum: self.completion.checksum.clone(),
            owner: self.put.owner.clone(),
            upload: Some(self.row.id),
            unknown: Unknown::new(),
        }
    }

    fn object(&self, timestamp: Timestamp) -> ObjectRow {
        object_row(&self.put, timestamp, self.version, ObjectState::Live(Box::new(self.meta())))
    }

    fn completed(&self) -> UploadRow {
        self.row.with_state(UploadState::Completed { version: self.version })
    }

    fn written(&self, timestamp: Timestamp) -> Written {
        let Completion { size, etag, checksum, .. } = self.completion.clone();
        Written { etag, checksum, size, timestamp }
    }
}

/// The rows that list the parts of a completed upload.
fn final_rows(version: VersionId, backlink: &Backlink, parts: &[Part]) -> Vec<VersionRow> {
    let piece = |part: &Part| Piece::Part {
        number: part.number,
        version: part.version,
        length: part.stored.size,
        checksum: Some(part.stored.checksum.value.clone()),
    };
    let row = |(index, parts): (usize, &[Part])| {
        let segment = Segment::listing(index as u32, backlink.clone(), parts.iter().map(piece).collect());
        VersionRow { version, content: VersionContent::Segment(segment) }
    };
    parts.chunks(SEGMENT_PIECES_MAX).enumerate().map(row).collect()
}

/// The same rows taken back.
fn withdrawn_rows(version: VersionId, backlink: &Backlink, parts: u32) -> Vec<VersionRow> {
    let segments = (parts as usize).div_ceil(SEGMENT_PIECES_MAX) as u32;
    (0..segments).map(|index| VersionRow::withdrawn(version, index, backlink.clone())).collect()
}

impl Garage {
    /// Makes an object of the parts listed; parts not listed are released. Repeated after success it answers the same; repeated while
    /// another completion of the upload is under way it waits for that one, and then answers the same.
    ///
    /// # Errors
    /// [`ModelError::Complete`] and others: the upload is open then as it was. [`ModelError::Table`]: it may have been completed.
    pub async fn complete_multipart(&self, complete: CompleteUpload) -> Result<Written, ModelError> {
        // In a task of its own: a client that hangs up must not leave the upload claimed.
        let (done, result) = oneshot::channel();
        let garage = self.clone();
        let task = async move {
            drop(done.send(garage.complete(complete).await));
        };
        self.0.cluster.spawn().spawn("complete upload", task.boxed());
        result.await.map_err(|_cancelled| ModelError::ShuttingDown)?
    }

    async fn complete(&self, complete: CompleteUpload) -> Result<Written, ModelError> {
        let mut patience = Patience::default();
        loop {
            match self.complete_once(&complete).await {
                Err(ModelError::UploadBusy) => self.wait_for_its_end(&complete.upload, &mut patience).await?,
                done => return done,
            }
        }
    }

    /// Waits until nobody is ending the upload any more: it has ended, or whoever was at it has given up.
    ///
    /// # Errors
    /// [`ModelError::UploadBusy`] once the patience is used up.
    async fn wait_for_its_end(&self, name: &UploadName, patience: &mut Patience) -> Result<(), ModelError> {
        loop {
            let pause = patience.next(self.0.random.u64()).ok_or(ModelError::UploadBusy)?;
            tokio::time::sleep(pause).await;
            let row = self.upload_row(name).await?;
            if !row.as_ref().is_some_and(is_being_ended) {
                return Ok(());
            }
        }
    }

    async fn complete_once(&self, complete: &CompleteUpload) -> Result<Written, ModelError> {
        let UploadName { bucket, key, id } = &complete.upload;
        // None of these needs another's answer, and each sees what was acknowledged before this request came.
        let known = self.for_writes();
        let (row, attempts, later) =
            join3(known.upload_row(&complete.upload), known.part_attempts(*id, 0, None), self.later_than_known(*bucket, key))
                .await;
        let row = match row? {
            // Its claim would be refused. Without an end in sight the owners settle what is left of a dead coordinator's.
            Some(row) if is_being_ended(&row) => return Err(ModelError::UploadBusy),
            Some(row) if row.multipart().is_some() => row,
            ended => return known.completed_before(&complete.upload, &complete.whole, ended).await,
        };
        let read = Known { parts: newest_parts(attempts?), later: later? };
        let error = match self.complete_open(&row, complete, read).await {
            Err(error @ (ModelError::NoSuchUpload | ModelError::Complete(_))) => error,
            done => return done,
        };
        let now = known.upload_row(&complete.upload).await?;
        match after_refusal(now.as_ref(), error) {
            Next::LookAgain => Err(ModelError::UploadBusy),
            Next::Refuse(error) => Err(error),
            Next::AnswerAsBefore => known.completed_before(&complete.upload, &complete.whole, now).await,
        }
    }

    async fn complete_open(&self, row: &UploadRow, complete: &CompleteUpload, known: Known) -> Result<Written, ModelError> {
        let multipart = row.multipart().ok_or(ModelError::NoSuchUpload)?.clone();
        let put = final_put(row, &multipart, complete.preconditions.clone());
        self.check_conditions_available(&put)?;
        let assembled = assemble(&complete.whole, &known.parts, multipart.checksum)?;
        let version = VersionId::random(&*self.0.random);
        let _working = self.0.local.working.on(version);
        let completion = Completion {
            timestamp: known.later.max(self.0.clock.now()),
            size: assembled.size,
            etag: assembled.etag.clone(),
            checksum: assembled.checksum.clone(),
            parts: assembled.parts.len() as u32,
        };
        let finish = Finish { row: row.clone(), put, version, completion };
        self.list_and_claim(&finish, &assembled).await?;
        match self.condition(&finish.put, finish.completion.size, CountedBefore::AsParts).await {
            Ok(condition) => {
                let written = self.finish(&finish, condition).await?;
                self.uncount_parts(row, Outcome::Completed(version)).await;
                Ok(written)
            }
            Err(error) => {
                self.withdraw(&finish).await;
                Err(error)
            }
        }
    }

    /// The answer of a completion that succeeded before: its object is still the current one, and of the same parts.
    /// `ended`: the upload's row as it was read, if there still is one.
    async fn completed_before(
        &self,
        name: &UploadName,
        whole: &ListedWhole,
        ended: Option<UploadRow>,
    ) -> Result<Written, ModelError> {
        let object = match self.object(name.bucket, &name.key).await {
            Ok(object) => Some(object).filter(|object| object.meta.upload == Some(name.id)),
            Err(ModelError::NoSuchKey) => None,
            Err(error) => return Err(error),
        };
        let Some(object) = object else { return Err(self.completed_elsewhere(ended).await?) };
        let etags: Vec<&str> = whole.parts.iter().map(|part| part.etag.as_str()).collect();
        if !combine::etag(&etags).is_ok_and(|etag| etag == object.meta.etag) {
            return Err(ModelError::NoSuchUpload);
        }
        let ObjectMeta { size, etag, checksum, .. } = object.meta;
        Ok(Written { etag, checksum, size, timestamp: object.timestamp })
    }

    /// Why there is no object of an upload that has ended. The first owners may know of a completion that is still on its way to
    /// the others: then the object will be there, and "no such upload" would be a lie that makes a client start over.
    async fn completed_elsewhere(&self, ended: Option<UploadRow>) -> Result<ModelError, ModelError> {
        let Some(UploadRow { state: UploadState::Completed { version }, .. }) = ended else {
            return Ok(ModelError::NoSuchUpload);
        };
        if self.segments(version).await?.is_empty() {
            // Superseded or deleted since.
            return Ok(ModelError::NoSuchUpload);
        }
        Ok(ModelError::UploadBusy)
    }

    /// Lists the parts under the final version and claims the upload, side by side: nothing follows before both are durable.
    ///
    /// A crash on the way may leave rows that nothing names, which hold nothing, since their parts belong to the upload; or a claim
    /// without all of its list, which the owners take back.
    async fn list_and_claim(&self, finish: &Finish, assembled: &Assembled) -> Result<(), ModelError> {
        let rows = final_rows(finish.version, &backlink(&finish.row), &assembled.parts);
        let purpose = Purpose::Complete(finish.completion.clone());
        let list = try_join_all(rows.iter().map(|row| self.0.versions.merge(row)));
        let (claimed, listed) = join(self.claim(&finish.row, finish.version, &purpose), list).await;
        let result = claimed.and(listed.map(drop).map_err(ModelError::from));
        if result.is_err() {
            self.withdraw(finish).await;
        }
        result
    }

    /// Writes an intent at a write quorum. An owner that knows of another's, or of an end, refuses it in the transaction that would
    /// store it; and of two write quorums one owner is in both. So of two that exclude each other at most one is held. In every
    /// consistency mode: an end releases parts, and two ends that do not know of each other would release what the other one needs.
    async fn claim(&self, row: &UploadRow, id: VersionId, purpose: &Purpose) -> Result<(), ModelError> {
        let held = self.certain().0.uploads.commit(&self.claim_row(row, id, purpose, Hold::Held)?).await;
        held.map_err(ModelError::from).and_then(won)
    }

    fn claim_row(&self, row: &UploadRow, id: VersionId, purpose: &Purpose, hold: Hold) -> Result<UploadRow, ModelError> {
        let multipart = row.multipart().ok_or(ModelError::NoSuchUpload)?.clone();
        let claim = Claim {
            purpose: purpose.clone(),
            coordinator: self.0.cluster.node_id(),
            incarnation: self.0.settings.incarnation,
            withdrawn: hold == Hold::Withdrawn,
        };
        let multipart = MultipartUpload { claims: BTreeMap::from([(id, claim)]), ..multipart };
        Ok(row.with_state(UploadState::Multipart(Box::new(multipart))))
    }

    /// What fails here is done by the owners.
    async fn withdraw_claim(&self, row: &UploadRow, id: VersionId, purpose: &Purpose) {
        let Ok(withdrawn) = self.claim_row(row, id, purpose, Hold::Withdrawn) else { return };
        if let Err(error) = self.0.uploads.merge(&withdrawn).await {
            tracing::warn!(upload = %row.id, %error, "a claim on an upload could not be withdrawn");
        }
    }

    async fn withdraw_list(&self, finish: &Finish) {
        for row in withdrawn_rows(finish.version, &backlink(&finish.row), finish.completion.parts) {
            if let Err(error) = self.0.versions.merge(&row).await {
                tracing::warn!(version = %finish.version, %error, "a list of parts could not be withdrawn");
            }
        }
    }

    /// For a completion of which no owner has stored anything: others may claim the upload from here on. Its list is taken back beside
    /// what follows, since that takes all owners; where one is away the list stays, and holds nothing.
    async fn withdraw(&self, finish: &Finish) {
        self.withdraw_claim(&finish.row, finish.version, &Purpose::Complete(finish.completion.clone())).await;
        let (garage, finish) = (self.clone(), finish.clone());
        let take_back = async move {
            if let Err(error) = garage.take_back(&finish).await {
                tracing::debug!(upload = %finish.row.id, %error, "the list of an upload that was not completed stays");
            }
        };
        self.0.cluster.spawn().spawn("take back a completion", take_back.boxed());
    }

    /// Makes a claimed completion visible.
    async fn finish(&self, finish: &Finish, condition: Option<Condition>) -> Result<Written, ModelError> {
        let mut timestamp = finish.completion.timestamp;
        for _attempt in 0..ATTEMPTS_MAX {
            let alone = self.0.cluster.decides_alone(&finish.row.index().placement());
            let mut object = ObjectTable::entry(&finish.object(timestamp), Mode::Commit);
            object.condition = condition.as_ref().map(|condition| codec::encode(condition).into());
            let entries = vec![object, UploadTable::entry(&finish.completed(), Mode::Commit)];
            match self.0.objects.write(finish.row.index().placement(), entries).await {
                Ok(Verdict::Won) => return Ok(finish.written(timestamp)),
                Ok(Verdict::Behind(newest)) if alone => timestamp = newest.next(),
                Ok(Verdict::Behind(_)) => {
                    self.commit_overlapped(&finish.object(timestamp), &finish.completed()).await?;
                    return Ok(finish.written(timestamp));
                }
                Ok(Verdict::Refused(reason)) => {
                    if alone {
                        self.withdraw(finish).await;
                    }
                    return Err(refused(&reason));
                }
                Err(error) => return self.finish_unsure(finish, error.into(), alone).await,
            }
        }
        self.withdraw(finish).await;
        Err(ModelError::Conflict("too many other writes to the same key at this moment; try again".to_owned()))
    }

    async fn finish_unsure(&self, finish: &Finish, error: ModelError, alone: bool) -> Result<Written, ModelError> {
        if alone && let Ok(Some(row)) = self.upload_row(&name_of(&finish.row)).await {
            if row.state == (UploadState::Completed { version: finish.version }) {
                return Ok(finish.written(finish.completion.timestamp));
            }
            self.withdraw(finish).await;
        }
        // Elsewhere some owner may have stored it: the claim stays, and the owners carry it out.
        Err(error)
    }

    /// Gives up a multipart upload and releases its parts.
    ///
    /// # Errors
    /// [`ModelError::NoSuchUpload`]; [`ModelError::UploadBusy`] while it is being completed.
    pub async fn abort_multipart(&self, name: &UploadName) -> Result<(), ModelError> {
        let row =
            self.certain().upload_row(name).await?.filter(|row| row.multipart().is_some()).ok_or(ModelError::NoSuchUpload)?;
        let id = VersionId::random(&*self.0.random);
        let _working = self.0.local.working.on(id);
        if let Err(error) = self.claim(&row, id, &Purpose::Abort).await {
            self.withdraw_claim(&row, id, &Purpose::Abort).await;
            return Err(error);
        }
        let aborted = self.certain().0.uploads.commit(&row.with_state(UploadState::Aborted)).await;
        aborted.map_err(ModelError::from).and_then(won)?;
        self.uncount_parts(&row, Outcome::Aborted).await;
        Ok(())
    }

    /// Takes the parts of an upload that has ended out of the counts of a bucket with a limit on them: its client's next write must not
    /// be refused because of them. Elsewhere, and when this fails, the queue of the owners does it soon.
    async fn uncount_parts(&self, row: &UploadRow, outcome: Outcome) {
        let uncounted = match self.limits(row.bucket).await {
            Ok(Quotas { size_bytes_max: None, .. }) => Ok(()),
            Ok(_) => Box::pin(self.end_parts(&PartRow::ended(row.id, row.bucket, outcome))).await,
            Err(error) => Err(error),
        };
        if let Err(error) = uncounted {
            tracing::warn!(upload = %row.id, %error, "the parts of an ended upload are still counted");
        }
    }

    /// Carries out, or takes back, a claim whose holder is gone. `row`: as an owner has it.
    ///
    /// # Errors
    /// [`ModelError`]; the claim stays then.
    pub(crate) async fn settle_claim(&self, row: &UploadRow, id: VersionId, purpose: &Purpose) -> Result<(), ModelError> {
        self.certain().settle_claim_here(row, id, purpose).await
    }

    async fn settle_claim_here(&self, row: &UploadRow, id: VersionId, purpose: &Purpose) -> Result<(), ModelError> {
        let Some(now) = self.upload_row(&name_of(row)).await? else { return Ok(()) };
        let Some(multipart) = now.multipart() else { return Ok(()) };
        if multipart.claims.get(&id).is_some_and(|claim| claim.withdrawn) {
            return Ok(());
        }
        let forbidden = multipart.forbids(&id, purpose);
        match purpose {
            Purpose::Abort if !forbidden => {
                self.hold_for_another(row, id).await?;
                won(self.0.uploads.commit(&now.with_state(UploadState::Aborted)).await?)
            }
            Purpose::Abort => Ok(self.0.uploads.merge(&self.claim_row(&now, id, purpose, Hold::Withdrawn)?).await?),
            Purpose::Complete(completion) => {
                let put = final_put(&now, multipart, Preconditions::default());
                let finish = Finish { put, version: id, completion: completion.clone(), row: now };
                let listed: usize = self.segments(id).await?.iter().map(|segment| segment.pieces.len()).sum();
                // Where one owner decides, an upload that is open still means that nothing was stored.
                let nothing_stored = self.0.cluster.decides_alone(&finish.row.index().placement());
                if nothing_stored || forbidden || listed != completion.parts as usize {
                    return self.take_back(&finish).await;
                }
                self.hold_for_another(row, id).await?;
                // What it had to fulfil was judged before it could be stored anywhere; now it must not be given up for that.
                self.finish(&finish, None).await.map(drop)
            }
        }
    }

    /// Holds a claim whose holder is gone: it may have reached only some owners, and others may be claiming the upload at this moment.
    async fn hold_for_another(&self, row: &UploadRow, id: VersionId) -> Result<(), ModelError> {
        let multipart = row.multipart().ok_or(ModelError::NoSuchUpload)?.clone();
        let claims =
            multipart.claims.get(&id).map(|claim| BTreeMap::from([(id, claim.clone())])).ok_or(ModelError::NoSuchUpload)?;
        let held = row.with_state(UploadState::Multipart(Box::new(MultipartUpload { claims, ..multipart })));
        won(self.0.uploads.commit(&held).await?)
    }

    /// Takes back a completion that some owner may have stored: only once all have withdrawn the claim, and none has stored it, nor will.
    async fn take_back(&self, finish: &Finish) -> Result<(), ModelError> {
        let purpose = Purpose::Complete(finish.completion.clone());
        let withdrawn = self.claim_row(&finish.row, finish.version, &purpose, Hold::Withdrawn)?;
        match self.0.uploads.commit_at_all(&withdrawn).await? {
            Verdict::Won => {
                self.withdraw_list(finish).await;
                Ok(())
            }
            // It has ended; that spreads by itself.
            Verdict::Refused(_ended) => Ok(()),
            verdict @ Verdict::Behind(_) => won(verdict),
        }
    }

    /// Does to the attempts of an ended upload what its end means for them. Can be repeated, and done by several nodes.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub(crate) async fn end_parts(&self, end: &PartRow) -> Result<(), ModelError> {
        let PartEntry::Ended(outcome) = end.entry else {
            return Err(ModelError::Damaged("an attempt at a part was queued as the end of its upload".to_owned()));
        };
        let certain = self.certain();
        // From here on owners refuse attempts; those that are there already are seen by the read that follows.
        certain.0.parts.merge(end).await?;
        let taken = match outcome {
            Outcome::Aborted => BTreeSet::new(),
            // Nothing is listed any more once the object is deleted: what it had taken is released then, as is all else.
            Outcome::Completed(version) => certain.parts_of(version).await?,
        };
        let gone = |row: &PartRow| match &row.entry {
            PartEntry::Attempt(attempt) if !attempt.state.is_gone() => {
                Some(PartTable::entry(&row.with_state(attempt, AttemptState::Gone(fate(attempt, &taken))), Mode::Replicate))
            }
            PartEntry::Attempt(_) | PartEntry::Ended(_) => None,
        };
        let ended: Vec<Entry> = certain.part_attempts(end.upload, 0, None).await?.iter().filter_map(gone).collect();
        for some in ended.chunks(ENDED_AT_ONCE) {
            won(certain.0.parts.write(end.upload.into(), some.to_vec()).await?)?;
        }
        Ok(())
    }

    /// The end of an upload, for a part that came too late. What fails here is done by the queue of the owners.
    pub(crate) async fn carry_out_end(&self, upload: UploadId) {
        let end = self.certain().0.parts.get(upload.into(), ended_key()).await.map_err(ModelError::from);
        let done = match end {
            Ok(Some(end)) => self.end_parts(&end).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(%upload, %error, "a part that came too late could not be given up yet");
        }
    }

    async fn parts_of(&self, version: VersionId) -> Result<BTreeSet<VersionId>, ModelError> {
        let part = |piece: &Piece| match piece {
            Piece::Part { version, .. } => Some(*version),
            Piece::Block { .. } => None,
        };
        Ok(self.segments(version).await?.iter().flat_map(|segment| &segment.pieces).filter_map(part).collect())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Held,
    Withdrawn,
}

/// Whether somebody holds a claim on the upload.
fn is_being_ended(row: &UploadRow) -> bool {
    row.multipart().is_some_and(|multipart| multipart.held().next().is_some())
}

/// What a completion does that was refused.
#[derive(Debug)]
enum Next {
    /// Another request is ending the upload, or has: its end will show.
    LookAgain,
    Refuse(ModelError),
    /// It has ended: perhaps by the same completion, of which this one is a retry that came early.
    AnswerAsBefore,
}

/// `now`: the upload's row, read after the refusal.
///
/// The refusal and the row may come from different owners. An owner that knows the end refuses the claim, or has let the parts go, while
/// the others know only that somebody holds a claim. To take the refusal for the answer would say "no such upload" to a client whose very
/// completion is being carried out.
fn after_refusal(now: Option<&UploadRow>, refusal: ModelError) -> Next {
    match now {
        Some(row) if is_being_ended(row) => Next::LookAgain,
        Some(row) if row.multipart().is_some() => match refusal {
            ModelError::NoSuchUpload => Next::LookAgain,
            other => Next::Refuse(other),
        },
        Some(_) | None => Next::AnswerAsBefore,
    }
}

/// How long a completion waits for another one of its upload, and how often it looks.
#[derive(Debug, Default)]
struct Patience {
    pauses: u32,
    waited: Duration,
}

impl Patience {
    /// In all; clients wait for an answer about a minute.
    const MAX: Duration = Duration::from_secs(30);
    const FIRST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_secs(1);

    /// How long to wait before the next look; `None`: no longer. Several completions that refuse each other part by chance.
    fn next(&mut self, random: u64) -> Option<Duration> {
        if self.waited >= Self::MAX {
            return None;
        }
        let longest = Self::FIRST.saturating_mul(1 << self.pauses.min(10)).min(Self::LONGEST);
        let pause = longest / 2 + longest.mul_f64((random % 1024) as f64 / 2048.0);
        self.pauses += 1;
        self.waited += pause;
        Some(pause)
    }
}

pub(crate) fn name_of(row: &UploadRow) -> UploadName {
    UploadName { bucket: row.bucket, key: row.key.clone(), id: row.id }
}

fn backlink(row: &UploadRow) -> Backlink {
    Backlink { bucket: row.bucket, key: row.key.clone() }
}

fn final_put(row: &UploadRow, multipart: &MultipartUpload, preconditions: Preconditions) -> PutObject {
    PutObject {
        bucket: row.bucket,
        key: row.key.clone(),
        headers: multipart.headers.clone(),
        // Not used: the checksum of the whole was combined from those of the parts.
        checksum: multipart.checksum.map_or(ChecksumAlgorithm::Crc64Nvme, |checksum| checksum.algorithm),
        owner: multipart.owner.clone(),
        preconditions,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_types::crdt::Crdt;
    use garage_types::{BucketId, NodeId, ObjectKey, Timestamp, UploadId, VersionId};

    use super::{Next, Patience, after_refusal, final_rows, withdrawn_rows};
    use crate::complete::CompleteError;
    use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind};
    use crate::error::ModelError;
    use crate::part::{Part, StoredPart};
    use crate::upload::{Claim, MultipartUpload, Purpose, UploadRow, UploadState};
    use crate::version::{Backlink, SEGMENT_PIECES_MAX, VersionContent};

    fn parts(count: u32) -> Vec<Part> {
        let checksum = Checksum { algorithm: ChecksumAlgorithm::Crc32, value: String::new(), kind: ChecksumKind::FullObject };
        let stored = StoredPart { timestamp: Timestamp::ZERO, size: 1, etag: String::new(), checksum };
        (1..=count)
            .map(|number| Part { number, version: VersionId::from_bytes([number as u8; 32]), stored: stored.clone() })
            .collect()
    }

    #[test]
    fn a_refusal_is_the_answer_only_if_nobody_ends_the_upload() {
        let claim = Claim { purpose: Purpose::Abort, coordinator: NodeId::from_bytes([4; 32]), incarnation: 1, withdrawn: false };
        let row = |state| UploadRow {
            bucket: BucketId::from_bytes([1; 32]),
            shard: 0,
            key: ObjectKey::parse("k").unwrap(),
            id: UploadId::from_bytes([3; 32]),
            started: Timestamp::from_millis(1),
            state,
        };
        let version = VersionId::from_bytes([2; 32]);
        let claimed = |withdrawn| {
            let claims = BTreeMap::from([(version, Claim { withdrawn, ..claim.clone() })]);
            row(UploadState::Multipart(Box::new(MultipartUpload { claims, ..MultipartUpload::default() })))
        };
        let wrong_part = || ModelError::Complete(CompleteError::InvalidPart { number: 1, etag: String::new() });
        // The parts may be gone because of the end that the claim is for.
        assert!(matches!(after_refusal(Some(&claimed(false)), wrong_part()), Next::LookAgain));
        assert!(matches!(after_refusal(Some(&claimed(false)), ModelError::NoSuchUpload), Next::LookAgain));
        assert!(matches!(after_refusal(Some(&claimed(true)), wrong_part()), Next::Refuse(ModelError::Complete(_))));
        // An owner has seen the end, whatever the others say.
        assert!(matches!(after_refusal(Some(&claimed(true)), ModelError::NoSuchUpload), Next::LookAgain));
        for ended in [None, Some(row(UploadState::Completed { version })), Some(row(UploadState::Aborted))] {
            assert!(matches!(after_refusal(ended.as_ref(), ModelError::NoSuchUpload), Next::AnswerAsBefore));
        }
    }

    #[test]
    fn patience_grows_and_ends() {
        let mut patience = Patience::default();
        let pauses: Vec<_> = std::iter::from_fn(|| patience.next(0)).collect();
        assert!(pauses[0] < Patience::FIRST && pauses.is_sorted() && pauses.len() < 100);
        let waited: std::time::Duration = pauses.iter().sum();
        assert!(waited >= Patience::MAX && waited <= Patience::MAX + Patience::LONGEST);
    }

    #[test]
    fn a_withdrawn_list_covers_every_row_of_the_list_and_names_nothing_more() {
        let backlink = Backlink { bucket: BucketId::from_bytes([1; 32]), key: ObjectKey::parse("k").unwrap() };
        let version = VersionId::from_bytes([2; 32]);
        for count in [1, SEGMENT_PIECES_MAX as u32, SEGMENT_PIECES_MAX as u32 + 1, 10_000] {
            let (listed, withdrawn) = (final_rows(version, &backlink, &parts(count)), withdrawn_rows(version, &backlink, count));
            assert_eq!(listed.len(), withdrawn.len());
            for (mut row, taken_back) in listed.into_iter().zip(withdrawn) {
                row.merge(&taken_back);
                let VersionContent::Segment(segment) = row.content else { panic!("a list") };
                assert!(segment.pieces.is_empty() && segment.withdrawn && !segment.deleted);
            }
        }
    }
}
