//! The upload table: writes that are not finished. In the same partition as the key, so that an owner finishes the upload in the
//! transaction that makes the object visible.
//!
//! Must stay true: an upload ends once. `Done` and `Completed` are only written together with the object row; a commit finds
//! `Closed` or `Aborted` and is refused; a simple upload that may have been committed is given up only after every owner has closed it,
//! none of them having finished it; an abort finds an end and changes nothing. Only an abort releases a simple upload's content. Whoever ends
//! a multipart upload holds a [`Claim`] first; what its end means for the parts is decided by the part table ([`crate::part`]).

use std::collections::BTreeMap;

use garage_db::{DbError, Tree};
use garage_table::error::TableError;
use garage_table::schema::{Admission, Admit, Collection, ReplacedBy};
use garage_table::transaction::RowTransaction;
use garage_table::wire::{Mode, TableId};
use garage_table::{Replication, Schema};
use garage_types::codec::{Format, Unknown};
use garage_types::crdt::Crdt;
use garage_types::{BucketId, KeyId, NodeId, ObjectKey, Placement, Timestamp, UploadId, VersionId, sort_key};
use serde::{Deserialize, Serialize};

use crate::closing::{ClosingMarks, Taking};
use crate::counters::{BucketCounters, Counts};
use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind};
use crate::object::{BEING_DELETED, IndexShard, Refusal, refusal_of};
use crate::part::{Outcome, PartRow, PartTable};
use crate::table_ids;
use crate::version::{VersionRow, VersionTable};

/// An unfinished write by one request: known to the node that serves it, and given up when that node has restarted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SimpleUpload {
    #[serde(rename = "v")]
    pub version: VersionId,
    #[serde(rename = "c")]
    pub coordinator: NodeId,
    /// Which run of the coordinator: differs after a restart.
    #[serde(rename = "i")]
    pub incarnation: u64,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A multipart upload: open until a client ends it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MultipartUpload {
    /// The headers to keep with the object; lower-case names.
    #[serde(rename = "h", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The checksum that was asked for when the upload was created.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<UploadChecksum>,
    /// The access key that created it.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<KeyId>,
    /// Who is ending the upload, by an id made for the purpose; the final version's id of a completion.
    #[serde(rename = "e", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<VersionId, Claim>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The checksum that the object of a multipart upload will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadChecksum {
    #[serde(rename = "a")]
    pub algorithm: ChecksumAlgorithm,
    #[serde(rename = "k")]
    pub kind: ChecksumKind,
}

/// An intent to end a multipart upload, held once a write quorum of the owners has it durably. An owner refuses an intent that one it has
/// stored excludes; so at most one completes, and none completes what another aborts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    #[serde(rename = "p")]
    pub purpose: Purpose,
    #[serde(rename = "c")]
    pub coordinator: NodeId,
    /// Which run of the coordinator: a later one carries out what this one left behind.
    #[serde(rename = "i")]
    pub incarnation: u64,
    /// Given up without effect.
    #[serde(rename = "w", default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Purpose {
    #[serde(rename = "a")]
    Abort,
    #[serde(rename = "c")]
    Complete(Completion),
}

/// What a completion will make visible: enough to carry it out after a crash. Its pieces are listed by the version table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    #[serde(rename = "t")]
    pub timestamp: Timestamp,
    #[serde(rename = "z")]
    pub size: u64,
    #[serde(rename = "e")]
    pub etag: String,
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    #[serde(rename = "n")]
    pub parts: u32,
}

impl MultipartUpload {
    /// The claims not given up.
    pub fn held(&self) -> impl Iterator<Item = (&VersionId, &Claim)> {
        self.claims.iter().filter(|(_id, claim)| !claim.withdrawn)
    }

    /// Whether another claim forbids this one to go on. Aborts do not mind each other.
    pub fn forbids(&self, id: &VersionId, purpose: &Purpose) -> bool {
        let completes = |purpose: &Purpose| matches!(purpose, Purpose::Complete(_));
        self.held().any(|(other, claim)| other != id && (completes(purpose) || completes(&claim.purpose)))
    }

    fn merge_claims(&mut self, other: &Self) {
        for (id, claim) in &other.claims {
            match self.claims.get_mut(id) {
                Some(mine) => mine.withdrawn |= claim.withdrawn,
                None => {
                    self.claims.insert(*id, claim.clone());
                }
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum UploadState {
    #[serde(rename = "s")]
    Simple(SimpleUpload),
    #[serde(rename = "m")]
    Multipart(Box<MultipartUpload>),
    /// A simple upload that nobody works on any more: it cannot be finished where this is known. Once every owner knows, none of
    /// them having finished it, it is given up.
    #[serde(rename = "k")]
    Closed {
        #[serde(rename = "v")]
        version: VersionId,
    },
    /// Given up; what was stored for it is released.
    #[serde(rename = "a")]
    Aborted,
    /// A simple upload finished: its object row was written.
    #[serde(rename = "d")]
    Done,
    /// A multipart upload finished: the object row with this version was written.
    #[serde(rename = "f")]
    Completed {
        #[serde(rename = "v")]
        version: VersionId,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UploadRow {
    #[serde(rename = "b")]
    pub bucket: BucketId,
    #[serde(rename = "s", default)]
    pub shard: u16,
    #[serde(rename = "k")]
    pub key: ObjectKey,
    #[serde(rename = "u")]
    pub id: UploadId,
    #[serde(rename = "t")]
    pub started: Timestamp,
    #[serde(rename = "x")]
    pub state: UploadState,
}

impl UploadRow {
    /// Where it lives: with the rows of its key.
    pub(crate) fn placement(&self) -> Placement {
        self.index().placement()
    }

    #[must_use]
    pub fn with_state(&self, state: UploadState) -> Self {
        UploadRow { state, ..self.clone() }
    }

    pub fn index(&self) -> IndexShard {
        IndexShard { bucket: self.bucket, shard: self.shard }
    }

    /// The upload as long as it is an open multipart upload.
    pub fn multipart(&self) -> Option<&MultipartUpload> {
        match &self.state {
            UploadState::Multipart(multipart) => Some(multipart),
            _ => None,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        match &self.state {
            UploadState::Simple(_) => Counts { uploads: 1, ..Counts::default() },
            UploadState::Multipart(_) => Counts { uploads: 1, multipart_uploads: 1, ..Counts::default() },
            UploadState::Closed { .. } | UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => {
                Counts::default()
            }
        }
    }
}

impl UploadRow {
    /// Begins an upload, rather than saying something of one.
    fn is_new(&self) -> bool {
        match &self.state {
            UploadState::Simple(_) => true,
            UploadState::Multipart(multipart) => multipart.claims.is_empty(),
            UploadState::Closed { .. } | UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => false,
        }
    }

    /// Whether it has ended with an object.
    fn has_object(&self) -> bool {
        matches!(self.state, UploadState::Done | UploadState::Completed { .. })
    }

    /// Whether it waits for its end.
    fn is_open(&self) -> bool {
        matches!(self.state, UploadState::Simple(_) | UploadState::Multipart(_))
    }

    /// Whether somebody has to see to it that the upload ends: it is one request's, or is being ended.
    pub(crate) fn is_watched(&self) -> bool {
        match &self.state {
            UploadState::Simple(_) | UploadState::Closed { .. } => true,
            UploadState::Multipart(multipart) => multipart.held().next().is_some(),
            UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => false,
        }
    }

    /// Its key among all rows of the table.
    pub(crate) fn local_key(&self) -> Vec<u8> {
        let mut key = self.placement().as_bytes().to_vec();
        key.extend(UploadTable::sort_key(self));
        key
    }
}

impl UploadState {
    fn rank(&self) -> u8 {
        match self {
            UploadState::Simple(_) | UploadState::Multipart(_) => 0,
            UploadState::Closed { .. } => 1,
            UploadState::Aborted => 2,
            UploadState::Done | UploadState::Completed { .. } => 3,
        }
    }
}

impl Format for UploadRow {
    const TAG: &'static str = "upl1";
}

impl Crdt for UploadRow {
    fn merge(&mut self, other: &Self) {
        // Who closes an upload of which only the blocks are known does not know when it began.
        self.started = self.started.min(other.started);
        if other.state.rank() > self.state.rank() {
            self.state = other.state.clone();
        } else if let (UploadState::Multipart(mine), UploadState::Multipart(theirs)) = (&mut self.state, &other.state) {
            mine.merge_claims(theirs);
        }
    }
}

/// The upload table.
#[derive(Debug)]
pub struct UploadTable {
    pub counters: BucketCounters,
    pub watched: WatchedUploads,
    pub marks: ClosingMarks,
}

/// The tree of the keys of those uploads whose end somebody has to see to.
#[derive(Clone, Copy, Debug)]
pub struct WatchedUploads(pub Tree);

impl WatchedUploads {
    fn follow(&self, tx: &mut RowTransaction<'_, '_>, old: Option<&UploadRow>, new: Option<&UploadRow>) -> Result<(), DbError> {
        let watched = |row: Option<&UploadRow>| row.is_some_and(UploadRow::is_watched);
        match (old.or(new), watched(old), watched(new)) {
            (Some(row), false, true) => tx.raw().insert(self.0, &row.local_key(), &[1]),
            (Some(row), true, false) => tx.raw().remove(self.0, &row.local_key()),
            _ => Ok(()),
        }
    }
}

impl UploadTable {
    /// The sort key of an upload.
    pub fn key_of(key: &ObjectKey, id: &UploadId) -> Vec<u8> {
        let mut out = Vec::with_capacity(key.as_str().len() + 33);
        sort_key::push_text(&mut out, key.as_str());
        out.extend_from_slice(id.as_bytes());
        out
    }
}

impl Schema for UploadTable {
    const ID: TableId = table_ids::UPLOAD;
    const NAME: &'static str = "upload";
    const REPLICATION: Replication = Replication::Sharded;
    const COLLECTION: Collection = Collection::Late;
    type Row = UploadRow;

    fn placement(row: &UploadRow) -> Placement {
        row.index().placement()
    }

    fn sort_key(row: &UploadRow) -> Vec<u8> {
        Self::key_of(&row.key, &row.id)
    }

    fn shown(sort_key: &[u8]) -> String {
        sort_key::shown(sort_key)
    }

    fn grows(row: &UploadRow) -> bool {
        row.is_new()
    }

    fn admit(&self, tx: &mut RowTransaction<'_, '_>, row: &mut UploadRow, how: Admit<'_>) -> Result<Admission, TableError> {
        let present = tx.row::<UploadTable>(&row.index().placement(), &Self::sort_key(row))?.map(|row| row.state);
        let begins = present.is_none() && row.is_open();
        if how.mode == Mode::Replicate {
            let withheld = begins
                && self.marks.taking(tx, row.bucket)? == Taking::Closing
                && self.marks.keeps_out(tx, row.bucket, how.origin)?;
            return if withheld { Err(TableError::Withheld(BEING_DELETED)) } else { Ok(Admission::Merge) };
        }
        let mut refusal = present.as_ref().and_then(|present| refusal(present, &row.state));
        // The end of an upload may bring its object as a copy, which nobody else judges.
        if refusal.is_none() && (begins || (row.has_object() && !present.is_some_and(|state| state == row.state))) {
            refusal = refusal_of(self.marks.taking(tx, row.bucket)?);
        }
        Ok(refusal.map_or(Admission::Merge, |refusal| Admission::Answer(refusal.verdict())))
    }

    fn changed(
        &self,
        tx: &mut RowTransaction<'_, '_>,
        old: Option<&UploadRow>,
        new: Option<&UploadRow>,
    ) -> Result<(), TableError> {
        let Some(row) = new.or(old) else { return Ok(()) };
        let counts = |row: Option<&UploadRow>| row.map_or_else(Counts::default, UploadRow::counts);
        self.counters.add(tx, &row.bucket, &counts(new).minus(&counts(old)))?;
        self.watched.follow(tx, old, new)?;
        if let Some(version) = released_version(old, new) {
            tx.enqueue(&VersionTable::entry(&VersionRow::deleted(version), Mode::Replicate))?;
        }
        if let Some(end) = ended_parts(old, new) {
            tx.enqueue(&PartTable::entry(&end, Mode::Replicate))?;
        }
        Ok(())
    }

    fn dropped(&self, tx: &mut RowTransaction<'_, '_>, row: &UploadRow) -> Result<(), TableError> {
        self.watched.follow(tx, Some(row), None)?;
        Ok(self.counters.add(tx, &row.bucket, &Counts::default().minus(&row.counts()))?)
    }

    fn derive_anew(&self, tx: &mut RowTransaction<'_, '_>, _placement: &Placement, by: ReplacedBy) -> Result<(), TableError> {
        match by {
            ReplacedBy::Itself => Ok(()),
            ReplacedBy::Others => Ok(self.counters.doubt(tx)?),
        }
    }

    fn is_collectable(row: &UploadRow) -> bool {
        match &row.state {
            UploadState::Simple(_) | UploadState::Multipart(_) | UploadState::Closed { .. } => false,
            UploadState::Aborted | UploadState::Done | UploadState::Completed { .. } => true,
        }
    }
}

/// Why an owner that has `present` does not take `new`.
fn refusal(present: &UploadState, new: &UploadState) -> Option<Refusal> {
    match (present, new) {
        (UploadState::Closed { .. } | UploadState::Aborted, UploadState::Done | UploadState::Completed { .. }) => {
            Some(Refusal::NoSuchUpload)
        }
        (UploadState::Done | UploadState::Completed { .. }, UploadState::Closed { .. } | UploadState::Aborted) => {
            Some(Refusal::NoSuchUpload)
        }
        (UploadState::Completed { version }, UploadState::Completed { version: other }) if version != other => {
            Some(Refusal::NoSuchUpload)
        }
        (UploadState::Aborted | UploadState::Completed { .. }, UploadState::Multipart(_)) => Some(Refusal::NoSuchUpload),
        (UploadState::Multipart(open), UploadState::Multipart(new)) => {
            let forbidden = new.held().any(|(id, claim)| open.forbids(id, &claim.purpose));
            forbidden.then_some(Refusal::UploadBusy)
        }
        // Its claim was taken back everywhere, and with it the list of its parts.
        (UploadState::Multipart(open), UploadState::Completed { version }) => {
            open.claims.get(version).is_some_and(|claim| claim.withdrawn).then_some(Refusal::UploadBusy)
        }
        (UploadState::Multipart(open), UploadState::Aborted) => {
            let completing = open.held().any(|(_id, claim)| matches!(claim.purpose, Purpose::Complete(_)));
            completing.then_some(Refusal::UploadBusy)
        }
        _ => None,
    }
}

/// What its parts are told when a multipart upload ends.
fn ended_parts(old: Option<&UploadRow>, new: Option<&UploadRow>) -> Option<PartRow> {
    let (old, new) = (old?, new?);
    old.multipart()?;
    let outcome = match &new.state {
        UploadState::Aborted => Outcome::Aborted,
        UploadState::Completed { version } => Outcome::Completed(*version),
        UploadState::Simple(_) | UploadState::Multipart(_) | UploadState::Closed { .. } | UploadState::Done => return None,
    };
    Some(PartRow::ended(new.id, new.bucket, outcome))
}

/// The version that is released because its upload was given up.
fn released_version(old: Option<&UploadRow>, new: Option<&UploadRow>) -> Option<VersionId> {
    match (&old?.state, &new?.state) {
        (UploadState::Simple(SimpleUpload { version, .. }) | UploadState::Closed { version }, UploadState::Aborted) => {
            Some(*version)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use garage_types::codec::Unknown;
    use garage_types::{BucketId, NodeId, ObjectKey, Timestamp, UploadId, VersionId};

    use super::{Claim, Completion, MultipartUpload, Purpose, SimpleUpload, UploadRow, UploadState, refusal, released_version};
    use crate::object::Refusal;

    #[test]
    fn only_an_abort_releases_what_was_stored() {
        let version = VersionId::from_bytes([3; 32]);
        let coordinator = NodeId::from_bytes([4; 32]);
        let open = UploadRow {
            bucket: BucketId::from_bytes([1; 32]),
            shard: 0,
            key: ObjectKey::parse("k").unwrap(),
            id: UploadId::from_bytes([2; 32]),
            started: Timestamp::from_millis(1),
            state: UploadState::Simple(SimpleUpload { version, coordinator, incarnation: 1, unknown: Unknown::new() }),
        };
        let (aborted, done) = (open.with_state(UploadState::Aborted), open.with_state(UploadState::Done));
        assert_eq!(released_version(Some(&open), Some(&aborted)), Some(version));
        assert_eq!(released_version(Some(&open), Some(&done)), None);
        assert_eq!(released_version(Some(&aborted), Some(&done)), None);
        assert_eq!(released_version(None, Some(&aborted)), None);
        let closed = open.with_state(UploadState::Closed { version });
        assert_eq!(released_version(Some(&open), Some(&closed)), None, "another owner may have finished it");
        assert_eq!(released_version(Some(&closed), Some(&aborted)), Some(version));
    }

    #[test]
    fn what_is_closed_cannot_be_finished_and_what_is_finished_cannot_be_closed() {
        let version = VersionId::from_bytes([3; 32]);
        let closed = UploadState::Closed { version };
        assert_eq!(refusal(&closed, &UploadState::Done), Some(Refusal::NoSuchUpload));
        assert_eq!(refusal(&UploadState::Done, &closed), Some(Refusal::NoSuchUpload));
        assert_eq!(refusal(&closed, &UploadState::Aborted), None);
        assert_eq!(refusal(&UploadState::Aborted, &closed), None);
    }

    #[test]
    fn an_owner_takes_no_claim_beside_one_that_excludes_it() {
        let upload = |byte, purpose, withdrawn| {
            let claim = Claim { purpose, coordinator: NodeId::from_bytes([4; 32]), incarnation: 1, withdrawn };
            let claims = [(VersionId::from_bytes([byte; 32]), claim)].into();
            UploadState::Multipart(Box::new(MultipartUpload { claims, ..MultipartUpload::default() }))
        };
        let complete = || {
            let timestamp = Timestamp::from_millis(1);
            Purpose::Complete(Completion { timestamp, size: 1, etag: String::new(), checksum: None, parts: 1 })
        };
        let busy = Some(Refusal::UploadBusy);
        assert_eq!(refusal(&upload(1, complete(), false), &upload(2, complete(), false)), busy);
        assert_eq!(refusal(&upload(1, Purpose::Abort, false), &upload(2, complete(), false)), busy);
        assert_eq!(refusal(&upload(1, complete(), false), &upload(2, Purpose::Abort, false)), busy);
        assert_eq!(refusal(&upload(1, Purpose::Abort, false), &upload(2, Purpose::Abort, false)), None);
        assert_eq!(refusal(&upload(1, complete(), false), &upload(1, complete(), false)), None, "the same, told again");
        assert_eq!(refusal(&upload(1, complete(), true), &upload(2, complete(), false)), None, "it was given up");
    }

    #[test]
    fn a_completion_whose_claim_was_taken_back_is_refused() {
        let version = VersionId::from_bytes([3; 32]);
        let upload = |withdrawn| {
            let coordinator = NodeId::from_bytes([4; 32]);
            let claim = Claim { purpose: Purpose::Abort, coordinator, incarnation: 1, withdrawn };
            UploadState::Multipart(Box::new(MultipartUpload { claims: [(version, claim)].into(), ..MultipartUpload::default() }))
        };
        assert_eq!(refusal(&upload(false), &UploadState::Completed { version }), None);
        assert_eq!(refusal(&upload(true), &UploadState::Completed { version }), Some(Refusal::UploadBusy));
    }
}
