//! The part table: what was uploaded of each part of a multipart upload. Placed by the upload, one row an attempt.
//!
//! Attempts of one part do not supersede each other here: the newest finished one counts, and all stay until the upload ends. An
//! owner cannot know, while it takes a newer attempt, that a completion elsewhere is just about to take over the older one; so
//! nothing but the end of the upload may release a finished attempt.
//!
//! The owners order the attempts as they finish: one that is not the newest of its part where it is to be stored is `Behind`, and its
//! coordinator gives it a later time. So whatever the clocks say, the attempt that is acknowledged last is the part. Other than an
//! object's, the row of an attempt may get a later time after some owner has stored it: what is seen of parts before they are
//! acknowledged binds nobody.
//!
//! Must stay true: a finished attempt is released only after its upload's end is recorded here at a write quorum, and never when the
//! completed object took it over; an attempt begun after that record is refused; one that slips past it has the end carried out again.

use std::collections::{BTreeMap, BTreeSet};

use garage_table::error::TableError;
use garage_table::schema::{Admission, Admit, Collection, ReplacedBy};
use garage_table::transaction::RowTransaction;
use garage_table::wire::{Mode, TableId, Verdict};
use garage_table::{Replication, Schema};
use garage_types::codec::Format;
use garage_types::crdt::Crdt;
use garage_types::{BucketId, NodeId, Placement, Timestamp, UploadId, VersionId};
use serde::{Deserialize, Serialize};

use crate::counters::{BucketCounters, Counts};
use crate::digest::Checksum;
use crate::object::Refusal;
use crate::table_ids;
use crate::version::{VersionRow, VersionTable};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRow {
    #[serde(rename = "u")]
    pub upload: UploadId,
    #[serde(rename = "b")]
    pub bucket: BucketId,
    #[serde(rename = "x")]
    pub entry: PartEntry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartEntry {
    /// The upload has ended.
    #[serde(rename = "e")]
    Ended(Outcome),
    #[serde(rename = "a")]
    Attempt(Attempt),
}

/// How a multipart upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    #[serde(rename = "a")]
    Aborted,
    /// The object has this version, whose pieces are the parts it took over.
    #[serde(rename = "c")]
    Completed(VersionId),
}

/// One try to upload a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 to 10 000.
    #[serde(rename = "n")]
    pub number: u32,
    /// The part's content.
    #[serde(rename = "v")]
    pub version: VersionId,
    #[serde(rename = "s")]
    pub state: AttemptState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptState {
    /// Being received by a node, in this run of it.
    #[serde(rename = "p")]
    Pending {
        #[serde(rename = "c")]
        coordinator: NodeId,
        #[serde(rename = "i")]
        incarnation: u64,
    },
    #[serde(rename = "s")]
    Stored(StoredPart),
    #[serde(rename = "g")]
    Gone(Fate),
}

/// What became of an attempt's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fate {
    #[serde(rename = "r")]
    Released,
    /// It is part of the object now.
    #[serde(rename = "t")]
    Taken,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPart {
    /// When it was finished; the newest attempt of a part counts.
    #[serde(rename = "t")]
    pub timestamp: Timestamp,
    /// Bytes.
    #[serde(rename = "z")]
    pub size: u64,
    /// MD5 in hexadecimal.
    #[serde(rename = "e")]
    pub etag: String,
    #[serde(rename = "k")]
    pub checksum: Checksum,
}

impl PartRow {
    pub fn ended(upload: UploadId, bucket: BucketId, outcome: Outcome) -> Self {
        PartRow { upload, bucket, entry: PartEntry::Ended(outcome) }
    }

    #[must_use]
    pub fn with_state(&self, attempt: &Attempt, state: AttemptState) -> Self {
        PartRow { entry: PartEntry::Attempt(Attempt { state, ..attempt.clone() }), ..self.clone() }
    }

    pub(crate) fn counts(&self) -> Counts {
        match &self.entry {
            PartEntry::Attempt(Attempt { state: AttemptState::Stored(stored), .. }) => {
                Counts { multipart_bytes: i64::try_from(stored.size).unwrap_or(i64::MAX), ..Counts::default() }
            }
            PartEntry::Attempt(_) | PartEntry::Ended(_) => Counts::default(),
        }
    }
}

impl AttemptState {
    fn rank(&self) -> u8 {
        match self {
            AttemptState::Pending { .. } => 0,
            AttemptState::Stored(_) => 1,
            AttemptState::Gone(Fate::Released) => 2,
            AttemptState::Gone(Fate::Taken) => 3,
        }
    }

    /// Which of two states of one attempt stays. What it stored is the same whenever it is said to have finished.
    fn supersedes(&self, other: &Self) -> bool {
        match (self, other) {
            (AttemptState::Stored(mine), AttemptState::Stored(theirs)) => mine.timestamp > theirs.timestamp,
            _ => self.rank() > other.rank(),
        }
    }

    pub fn is_gone(&self) -> bool {
        matches!(self, AttemptState::Gone(_))
    }
}

impl Format for PartRow {
    const TAG: &'static str = "prt1";
}

impl Crdt for PartRow {
    fn merge(&mut self, other: &Self) {
        match (&mut self.entry, &other.entry) {
            (PartEntry::Ended(mine), PartEntry::Ended(theirs)) => *mine = (*mine).max(*theirs),
            (PartEntry::Attempt(mine), PartEntry::Attempt(theirs)) if theirs.state.supersedes(&mine.state) => {
                mine.state = theirs.state.clone();
            }
            // Rows of different keys never meet.
            _ => {}
        }
    }
}

const ENDED_KEY: u8 = 0;
const ATTEMPT_KEY: u8 = 1;

/// The sort key of the row that records the end.
pub(crate) fn ended_key() -> Vec<u8> {
    vec![ENDED_KEY]
}

/// The first sort key that attempts of part `number` can have.
pub(crate) fn attempts_from(number: u32) -> Vec<u8> {
    let mut key = vec![ATTEMPT_KEY];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The sort key of an attempt.
pub(crate) fn attempt_key(number: u32, version: &VersionId) -> Vec<u8> {
    let mut key = attempts_from(number);
    key.extend_from_slice(version.as_bytes());
    key
}

/// The part table.
#[derive(Debug)]
pub struct PartTable {
    pub counters: BucketCounters,
}

impl Schema for PartTable {
    const ID: TableId = table_ids::PART;
    const NAME: &'static str = "part";
    const REPLICATION: Replication = Replication::Sharded;
    const COLLECTION: Collection = Collection::Late;
    type Row = PartRow;

    fn placement(row: &PartRow) -> Placement {
        row.upload.into()
    }

    fn sort_key(row: &PartRow) -> Vec<u8> {
        match &row.entry {
            PartEntry::Ended(_) => ended_key(),
            PartEntry::Attempt(attempt) => attempt_key(attempt.number, &attempt.version),
        }
    }

    fn grows(row: &PartRow) -> bool {
        matches!(&row.entry, PartEntry::Attempt(Attempt { state: AttemptState::Pending { .. }, .. }))
    }

    fn admit(&self, tx: &mut RowTransaction<'_, '_>, row: &mut PartRow, how: Admit<'_>) -> Result<Admission, TableError> {
        let PartEntry::Attempt(attempt) = &row.entry else { return Ok(Admission::Merge) };
        let (placement, key) = (Self::placement(row), Self::sort_key(row));
        let present = tx.row::<PartTable>(&placement, &key)?;
        let is_gone = |row: PartRow| matches!(row.entry, PartEntry::Attempt(attempt) if attempt.state.is_gone());
        if attempt.state.is_gone() {
            return Ok(Admission::Merge);
        }
        let end = tx.row::<PartTable>(&placement, &ended_key())?;
        let gone_here = present.is_some_and(is_gone);
        match (how.mode, end) {
            (Mode::Commit, _) if gone_here => Ok(Admission::Answer(Refusal::NoSuchUpload.verdict())),
            (Mode::Commit, Some(_)) => Ok(Admission::Answer(Refusal::NoSuchUpload.verdict())),
            (Mode::Commit, None) => match finished_later(tx, &placement, attempt)? {
                Some(newest) => Ok(Admission::Answer(Verdict::Behind(newest))),
                None => Ok(Admission::Merge),
            },
            (Mode::Replicate, Some(end)) if !gone_here => {
                // A copy that was nowhere to be found when the end was carried out: that is done once more.
                tx.enqueue(&PartTable::entry(&end, Mode::Replicate))?;
                Ok(Admission::Merge)
            }
            _ => Ok(Admission::Merge),
        }
    }

    fn changed(&self, tx: &mut RowTransaction<'_, '_>, old: Option<&PartRow>, new: Option<&PartRow>) -> Result<(), TableError> {
        let Some(row) = new.or(old) else { return Ok(()) };
        let counts = |row: Option<&PartRow>| row.map_or_else(Counts::default, PartRow::counts);
        self.counters.add(tx, &row.bucket, &counts(new).minus(&counts(old)))?;
        if let Some(version) = released_version(old, new) {
            tx.enqueue(&VersionTable::entry(&VersionRow::deleted(version), Mode::Replicate))?;
        }
        Ok(())
    }

    fn dropped(&self, tx: &mut RowTransaction<'_, '_>, row: &PartRow) -> Result<(), TableError> {
        Ok(self.counters.add(tx, &row.bucket, &Counts::default().minus(&row.counts()))?)
    }

    fn derive_anew(&self, tx: &mut RowTransaction<'_, '_>, _placement: &Placement, by: ReplacedBy) -> Result<(), TableError> {
        match by {
            ReplacedBy::Itself => Ok(()),
            ReplacedBy::Others => Ok(self.counters.doubt(tx)?),
        }
    }

    fn is_collectable(row: &PartRow) -> bool {
        match &row.entry {
            PartEntry::Ended(_) => true,
            PartEntry::Attempt(attempt) => attempt.state.is_gone(),
        }
    }
}

/// When the newest attempt at the part of a finishing one was finished, if this one would not be the newest.
fn finished_later(
    tx: &RowTransaction<'_, '_>,
    placement: &Placement,
    attempt: &Attempt,
) -> Result<Option<Timestamp>, TableError> {
    let AttemptState::Stored(stored) = &attempt.state else { return Ok(None) };
    let rows = tx.rows_with_prefix::<PartTable>(placement, &attempts_from(attempt.number))?;
    let others = rows.into_iter().filter(|row| match &row.entry {
        PartEntry::Attempt(other) => other.version != attempt.version,
        PartEntry::Ended(_) => false,
    });
    let newest = newest_parts(others).pop().map(|part| part.stored.timestamp);
    Ok(newest.filter(|newest| *newest >= stored.timestamp))
}

/// The content that is released because its attempt was given up.
fn released_version(old: Option<&PartRow>, new: Option<&PartRow>) -> Option<VersionId> {
    let was_gone = match old.map(|row| &row.entry) {
        Some(PartEntry::Attempt(attempt)) => attempt.state.is_gone(),
        Some(PartEntry::Ended(_)) | None => false,
    };
    match &new?.entry {
        PartEntry::Attempt(Attempt { version, state: AttemptState::Gone(Fate::Released), .. }) if !was_gone => Some(*version),
        _ => None,
    }
}

/// What becomes of an attempt that is found when the upload has ended. `taken`: the parts that the object took over.
pub fn fate(attempt: &Attempt, taken: &BTreeSet<VersionId>) -> Fate {
    if taken.contains(&attempt.version) { Fate::Taken } else { Fate::Released }
}

/// A finished part of an open upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub number: u32,
    pub version: VersionId,
    pub stored: StoredPart,
}

/// The newest finished attempt of each part, in the order of their numbers.
pub fn newest_parts(rows: impl IntoIterator<Item = PartRow>) -> Vec<Part> {
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    for row in rows {
        let PartEntry::Attempt(Attempt { number, version, state: AttemptState::Stored(stored) }) = row.entry else { continue };
        let newer = |part: &Part| (part.stored.timestamp, part.version) < (stored.timestamp, version);
        if parts.get(&number).is_none_or(newer) {
            parts.insert(number, Part { number, version, stored });
        }
    }
    parts.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use garage_table::Schema;
    use garage_types::crdt::Crdt;
    use garage_types::{BucketId, NodeId, Timestamp, UploadId, VersionId};
    use proptest::prelude::{prop, proptest};

    use super::{
        Attempt, AttemptState, Fate, Outcome, PartEntry, PartRow, PartTable, StoredPart, fate, newest_parts, released_version,
    };
    use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind};

    fn row(entry: PartEntry) -> PartRow {
        PartRow { upload: UploadId::from_bytes([1; 32]), bucket: BucketId::from_bytes([2; 32]), entry }
    }

    fn attempt(number: u32, version: u8, state: AttemptState) -> PartRow {
        row(PartEntry::Attempt(Attempt { number, version: VersionId::from_bytes([version; 32]), state }))
    }

    fn pending() -> AttemptState {
        AttemptState::Pending { coordinator: NodeId::from_bytes([3; 32]), incarnation: 1 }
    }

    fn stored(millis: u64) -> AttemptState {
        let checksum =
            Checksum { algorithm: ChecksumAlgorithm::Crc32, value: "AAAAAA==".to_owned(), kind: ChecksumKind::FullObject };
        AttemptState::Stored(StoredPart { timestamp: Timestamp::from_millis(millis), size: 5, etag: "e".to_owned(), checksum })
    }

    fn any_row(kind: usize) -> PartRow {
        match kind {
            0 => attempt(1, 1, pending()),
            1 => attempt(1, 1, stored(7)),
            4 => attempt(1, 1, stored(8)),
            2 => attempt(1, 1, AttemptState::Gone(Fate::Released)),
            _ => attempt(1, 1, AttemptState::Gone(Fate::Taken)),
        }
    }

    fn any_end(kind: usize) -> PartRow {
        let version = |byte| VersionId::from_bytes([byte; 32]);
        row(PartEntry::Ended([Outcome::Aborted, Outcome::Completed(version(1)), Outcome::Completed(version(2))][kind % 3]))
    }

    proptest! {
        #[test]
        fn rows_merge_alike_in_any_order(kinds in prop::array::uniform3(0usize..5)) {
            for [a, b, c] in [kinds.map(any_row), kinds.map(any_end)] {
                let join = |x: &PartRow, y: &PartRow| { let mut out = x.clone(); out.merge(y); out };
                assert_eq!(join(&a, &b), join(&b, &a));
                assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
                assert_eq!(join(&a, &a), a);
            }
        }
    }

    #[test]
    fn rows_round_trip() {
        for row in (0..4).map(any_row).chain((0..3).map(any_end)) {
            assert_eq!(PartTable::decode(&garage_types::codec::encode(&row)).unwrap(), row);
        }
    }

    #[test]
    fn the_end_sorts_before_all_attempts_and_those_by_number() {
        let keys = [any_end(0), attempt(1, 9, pending()), attempt(2, 1, pending()), attempt(300, 0, pending())];
        assert!(keys.map(|row| PartTable::sort_key(&row)).is_sorted());
    }

    #[test]
    fn an_attempt_is_released_once_and_never_when_taken() {
        let open = attempt(1, 1, stored(1));
        let (released, taken) = (any_row(2), any_row(3));
        assert_eq!(released_version(Some(&open), Some(&released)), Some(VersionId::from_bytes([1; 32])));
        assert_eq!(released_version(None, Some(&released)), Some(VersionId::from_bytes([1; 32])));
        assert_eq!(released_version(Some(&open), Some(&taken)), None);
        assert_eq!(released_version(Some(&released), Some(&taken)), None);
        assert_eq!(released_version(Some(&released), Some(&released)), None);
    }

    #[test]
    fn what_the_object_did_not_take_is_released() {
        let PartEntry::Attempt(attempt) = attempt(1, 1, stored(1)).entry else { panic!("an attempt") };
        assert_eq!(fate(&attempt, &[VersionId::from_bytes([1; 32])].into()), Fate::Taken);
        assert_eq!(fate(&attempt, &[VersionId::from_bytes([2; 32])].into()), Fate::Released);
        assert_eq!(fate(&attempt, &BTreeSet::new()), Fate::Released);
    }

    #[test]
    fn the_newest_finished_attempt_of_each_part_counts() {
        let gone = AttemptState::Gone(Fate::Released);
        let rows = [
            attempt(2, 1, stored(5)),
            attempt(1, 2, stored(9)),
            attempt(1, 3, stored(4)),
            attempt(3, 4, pending()),
            attempt(4, 5, gone),
        ];
        let newest: Vec<_> = newest_parts(rows).into_iter().map(|part| (part.number, part.version.as_bytes()[0])).collect();
        assert_eq!(newest, [(1, 2), (2, 1)]);
    }
}
