//! The object table: one row per version of an object.
//!
//! In a bucket without versioning every version is the null version, and at most one null row of a key exists: storing a newer
//! one removes the older in the same transaction. The newer row is itself the proof that the older is dead (an owner that holds it
//! refuses whatever is older), so no tombstone is needed for what it superseded; a deletion leaves one tombstone row, the newest.
//! These rules read rows only, never the bucket's configuration, so owners cannot disagree.
//!
//! Must stay true: a commit is answered `Won` only when nothing at least as new is known for its key; a row's content is released
//! in the transaction that removes the row, and a version id occurs in one row only.

use std::collections::BTreeMap;
use std::fmt;

use garage_db::Snapshot;
use garage_table::error::TableError;
use garage_table::schema::{Admission, Admit, Belongings, Origin, ReplacedBy};
use garage_table::segments::KeyRange;
use garage_table::transaction::RowTransaction;
use garage_table::wire::{Entry, Mode, TableId, Verdict};
use garage_table::{Replication, Schema};
use garage_types::codec::{self, Format, Unknown};
use garage_types::crdt::Crdt;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BlockHash, BucketId, KeyId, ObjectKey, Placement, Timestamp, UploadId, VersionId, sort_key};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::bucket::Quotas;
use crate::closing::{ClosingMarks, Taking};
use crate::counters::{BucketCounters, Counts};
use crate::digest::Checksum;
use crate::table_ids;
use crate::unfinished::upload_of;
use crate::upload::{UploadState, UploadTable};
use crate::version::{VersionRow, VersionTable};

/// Where the rows of a key live: a bucket's index, or one shard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexShard {
    pub bucket: BucketId,
    pub shard: u16,
}

impl IndexShard {
    pub fn placement(&self) -> Placement {
        let mut bytes = self.bucket.as_bytes().to_vec();
        bytes.extend_from_slice(&self.shard.to_be_bytes());
        Placement::of(&bytes)
    }
}

/// Where a version's bytes are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// In the row itself.
    #[serde(rename = "i")]
    Inline(ByteBuf),
    /// In blocks listed by the version table; the first is named here so that reading it can begin at once.
    #[serde(rename = "b")]
    Blocks {
        #[serde(rename = "h")]
        first: BlockHash,
        #[serde(rename = "l")]
        first_length: u64,
    },
    /// In the parts of a multipart upload, listed by the version table.
    #[serde(rename = "p")]
    Parts {
        #[serde(rename = "n")]
        count: u32,
    },
    /// Left out of a listing's rows.
    #[serde(rename = "x")]
    NotShown,
}

/// Bytes are counted, not shown.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Content::Blocks { first, first_length } => {
                f.debug_struct("Blocks").field("first", first).field("first_length", first_length).finish()
            }
            Content::Parts { count } => f.debug_struct("Parts").field("count", count).finish(),
            Content::NotShown => f.write_str("NotShown"),
        }
    }
}

/// All that is known of one version's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObjectMeta {
    /// Bytes of content.
    #[serde(rename = "z")]
    pub size: u64,
    /// Without quotes.
    #[serde(rename = "e")]
    pub etag: String,
    #[serde(rename = "c")]
    pub content: Content,
    /// Lower-case names: `content-type` and its like, and `x-amz-meta-…`.
    #[serde(rename = "h", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
    /// The access key that wrote it.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<KeyId>,
    /// The multipart upload it was completed from, so that a repeated CompleteMultipartUpload is recognized.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadId>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ObjectState {
    #[serde(rename = "l")]
    Live(Box<ObjectMeta>),
    /// The current version is "deleted"; older versions stay (versioned buckets).
    #[serde(rename = "m")]
    DeleteMarker,
    #[serde(rename = "t")]
    Tombstone,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObjectRow {
    #[serde(rename = "b")]
    pub bucket: BucketId,
    #[serde(rename = "s", default)]
    pub shard: u16,
    #[serde(rename = "k")]
    pub key: ObjectKey,
    #[serde(rename = "t")]
    pub timestamp: Timestamp,
    #[serde(rename = "v")]
    pub version: VersionId,
    /// The null version: superseded by a newer null one.
    #[serde(rename = "n")]
    pub is_null: bool,
    #[serde(rename = "x")]
    pub state: ObjectState,
}

impl ObjectRow {
    pub fn index(&self) -> IndexShard {
        IndexShard { bucket: self.bucket, shard: self.shard }
    }

    pub fn live(&self) -> Option<&ObjectMeta> {
        match &self.state {
            ObjectState::Live(meta) => Some(meta),
            ObjectState::DeleteMarker | ObjectState::Tombstone => None,
        }
    }

    /// What this row adds to its bucket.
    pub(crate) fn counts(&self) -> Counts {
        self.live().map_or_else(Counts::default, |meta| Counts::of_object(meta.size))
    }

    /// Whether this row proves that the other, of the same key, is dead.
    pub(crate) fn supersedes(&self, other: &ObjectRow) -> bool {
        self.is_null && other.is_null && self.age() > other.age()
    }

    pub(crate) fn age(&self) -> (Timestamp, VersionId) {
        (self.timestamp, self.version)
    }
}

impl Format for ObjectRow {
    const TAG: &'static str = "obj1";
}

impl Crdt for ObjectRow {
    fn merge(&mut self, other: &Self) {
        // A version's content never changes once written; a tombstone wins.
        if other.state == ObjectState::Tombstone {
            self.state = ObjectState::Tombstone;
        }
    }
}

/// The prefix of the sort keys of all versions of a key.
pub fn key_prefix(key: &ObjectKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.as_str().len() + 1);
    sort_key::push_text(&mut out, key.as_str());
    out
}

/// What must hold for a commit, judged in the owner's transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The current version must exist and have one of these ETags (`*`: any).
    #[serde(rename = "m", default)]
    pub if_match: Option<Vec<String>>,
    /// The current version must not exist or have none of these ETags (`*`: must not exist).
    #[serde(rename = "n", default)]
    pub if_none_match: Option<Vec<String>>,
    #[serde(rename = "q", default)]
    pub quotas: Quotas,
}

impl Format for Condition {
    const TAG: &'static str = "cnd1";
}

/// Why an owner refused a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    #[serde(rename = "p")]
    PreconditionFailed,
    /// If-Match on a key that has no current version.
    #[serde(rename = "k")]
    NoSuchKey,
    #[serde(rename = "b")]
    NoSuchBucket,
    /// It is being looked whether the bucket can be deleted.
    #[serde(rename = "c")]
    BucketClosing,
    #[serde(rename = "u")]
    NoSuchUpload,
    /// The upload is being completed or aborted by another request.
    #[serde(rename = "w")]
    UploadBusy,
    #[serde(rename = "o")]
    QuotaObjects,
    #[serde(rename = "z")]
    QuotaBytes,
}

impl Format for Refusal {
    const TAG: &'static str = "ref1";
}

impl Refusal {
    pub fn verdict(self) -> Verdict {
        Verdict::Refused(codec::encode(&self).into())
    }
}

/// Judges a conditional write against the key's current version.
pub fn judge(condition: &Condition, current: Option<&ObjectMeta>) -> Option<Refusal> {
    let matches = |wanted: &[String], meta: &ObjectMeta| wanted.iter().any(|etag| etag == "*" || *etag == meta.etag);
    if let Some(wanted) = &condition.if_match {
        match current {
            None => return Some(Refusal::NoSuchKey),
            Some(meta) if !matches(wanted, meta) => return Some(Refusal::PreconditionFailed),
            Some(_) => {}
        }
    }
    if let (Some(unwanted), Some(meta)) = (&condition.if_none_match, current)
        && matches(unwanted, meta)
    {
        return Some(Refusal::PreconditionFailed);
    }
    None
}

/// Judges a write against the bucket's limits: `before` without it, `change` by it. What shrinks is never refused.
pub fn judge_quotas(quotas: &Quotas, before: &Counts, change: &Counts) -> Option<Refusal> {
    let exceeds = |limit: Option<u64>, before: i64, by: i64| {
        by > 0 && limit.is_some_and(|limit| u64::try_from(before.saturating_add(by)).is_ok_and(|after| after > limit))
    };
    if exceeds(quotas.objects_max, before.objects, change.objects) {
        Some(Refusal::QuotaObjects)
    } else if exceeds(quotas.size_bytes_max, before.bytes, change.bytes) {
        Some(Refusal::QuotaBytes)
    } else {
        None
    }
}

/// The object table.
#[derive(Debug)]
pub struct ObjectTable {
    pub counters: BucketCounters,
    pub marks: ClosingMarks,
}

/// Why an owner that keeps a closing mark does not take a copy that would be new there.
pub(crate) const BEING_DELETED: &str = "it is being looked whether the bucket can be deleted";

/// Why something new is not taken into a bucket.
pub(crate) fn refusal_of(taking: Taking) -> Option<Refusal> {
    match taking {
        Taking::Open => None,
        Taking::Closing => Some(Refusal::BucketClosing),
        Taking::Gone => Some(Refusal::NoSuchBucket),
    }
}

impl ObjectTable {
    /// The other rows of the key, newest first.
    fn siblings(tx: &RowTransaction<'_, '_>, row: &ObjectRow) -> Result<Vec<ObjectRow>, TableError> {
        let mut rows = tx.rows_with_prefix::<ObjectTable>(&row.index().placement(), &key_prefix(&row.key))?;
        rows.retain(|sibling| sibling.age() != row.age());
        Ok(rows)
    }

    /// Whether the content of a row was released because its write was given up.
    fn is_given_up(tx: &RowTransaction<'_, '_>, row: &ObjectRow) -> Result<bool, TableError> {
        if !row.live().is_some_and(|meta| matches!(meta.content, Content::Blocks { .. })) {
            return Ok(false);
        }
        let upload = UploadTable::key_of(&row.key, &upload_of(row.version));
        let upload = tx.row::<UploadTable>(&row.index().placement(), &upload)?;
        Ok(upload.is_some_and(|upload| upload.state == UploadState::Aborted))
    }

    /// Judges a copy of a live row that may be new to a bucket that is being, or was, deleted.
    fn judge_copy(&self, tx: &mut RowTransaction<'_, '_>, row: &mut ObjectRow, origin: Origin) -> Result<(), TableError> {
        let is_known = tx.row::<ObjectTable>(&row.index().placement(), &Self::sort_key(row))?.is_some();
        if is_known || is_planted(Bug::CopiesPassMark) {
            return Ok(());
        }
        match self.marks.taking(tx, row.bucket)? {
            Taking::Open => Ok(()),
            Taking::Closing if self.marks.keeps_out(tx, row.bucket, origin)? => Err(TableError::Withheld(BEING_DELETED)),
            Taking::Closing => Ok(()),
            Taking::Gone => {
                // Left by a write that failed, since a quorum has none. Who has it learns from this row that it is over.
                if let Some(entry) = released_content(Some(&*row), None) {
                    tx.enqueue(&entry)?;
                }
                row.state = ObjectState::Tombstone;
                Ok(())
            }
        }
    }

    fn refusal(
        &self,
        tx: &mut RowTransaction<'_, '_>,
        row: &ObjectRow,
        siblings: &[ObjectRow],
        condition: Option<&[u8]>,
    ) -> Result<Option<Refusal>, TableError> {
        if row.live().is_some()
            && let Some(refusal) = refusal_of(self.marks.taking(tx, row.bucket)?)
        {
            return Ok(Some(refusal));
        }
        let Some(condition) = condition else { return Ok(None) };
        let condition: Condition = codec::decode(condition).map_err(|source| TableError::Row { table: Self::NAME, source })?;
        let current = siblings.first().and_then(ObjectRow::live);
        if let Some(refusal) = judge(&condition, current) {
            return Ok(Some(refusal));
        }
        if condition.quotas == Quotas::default() {
            return Ok(None);
        }
        let before = self.counters.get(tx, &row.bucket)?;
        // The bytes of a completed upload were counted, and judged, as its parts.
        let is_completion = row.live().is_some_and(|meta| meta.upload.is_some());
        let before = if is_completion { before } else { before.with_open_parts() };
        let replaced = siblings.iter().filter(|sibling| sibling.is_null && row.is_null).map(ObjectRow::counts);
        let change = replaced.fold(row.counts(), |change, gone| change.minus(&gone));
        Ok(judge_quotas(&condition.quotas, &before, &change))
    }
}

impl Schema for ObjectTable {
    const ID: TableId = table_ids::OBJECT;
    const MAY_BE_GIVEN_UP: bool = true;
    const NAME: &'static str = "object";
    const REPLICATION: Replication = Replication::Sharded;
    type Row = ObjectRow;

    fn placement(row: &ObjectRow) -> Placement {
        row.index().placement()
    }

    fn sort_key(row: &ObjectRow) -> Vec<u8> {
        let mut key = key_prefix(&row.key);
        sort_key::push_newest_first(&mut key, row.timestamp);
        // Between equal timestamps the greater version id is the newer.
        key.extend(row.version.as_bytes().iter().map(|byte| !byte));
        key
    }

    fn shown(sort_key: &[u8]) -> String {
        sort_key::shown(sort_key)
    }

    fn grows(row: &ObjectRow) -> bool {
        matches!(row.state, ObjectState::Live(_))
    }

    fn admit(&self, tx: &mut RowTransaction<'_, '_>, row: &mut ObjectRow, how: Admit<'_>) -> Result<Admission, TableError> {
        let siblings = Self::siblings(tx, row)?;
        let newer = siblings.iter().filter(|sibling| sibling.age() > row.age());
        match how.mode {
            Mode::Commit => {
                let floor = Some(tx.floor(Self::ID, &Self::placement(row))?).filter(|floor| row.timestamp <= *floor);
                if let Some(newest) = newer.map(|sibling| sibling.timestamp).chain(floor).max() {
                    return Ok(Admission::Answer(Verdict::Behind(newest)));
                }
                if let Some(refusal) = self.refusal(tx, row, &siblings, how.condition)? {
                    return Ok(Admission::Answer(refusal.verdict()));
                }
            }
            Mode::Replicate => {
                if row.is_null && newer.filter(|sibling| sibling.is_null).count() > 0 {
                    // Superseded before it came. Perhaps no owner ever has it, and its writer ends before it says so.
                    // Sent once the newer row is known to a write quorum: without it, this one would be the object.
                    if let Some(mut entry) = released_content(Some(&*row), None) {
                        if is_planted(Bug::ReleasedOnArrival) {
                            entry.condition = Some(ByteBuf::new());
                        }
                        tx.enqueue(&entry)?;
                    }
                    return Ok(Admission::Answer(Verdict::Won));
                }
                if Self::is_given_up(tx, row)? {
                    // A copy from before all owners closed its upload, none of them having it.
                    return Ok(Admission::Answer(Verdict::Won));
                }
                if row.live().is_some() {
                    self.judge_copy(tx, row, how.origin)?;
                }
            }
        }
        if row.is_null {
            for older in siblings.iter().filter(|sibling| sibling.is_null && sibling.age() < row.age()) {
                tx.remove_superseded(self, older)?;
            }
        }
        Ok(Admission::Merge)
    }

    fn changed(
        &self,
        tx: &mut RowTransaction<'_, '_>,
        old: Option<&ObjectRow>,
        new: Option<&ObjectRow>,
    ) -> Result<(), TableError> {
        let Some(row) = new.or(old) else { return Ok(()) };
        let counts = |row: Option<&ObjectRow>| row.map_or_else(Counts::default, ObjectRow::counts);
        self.counters.add(tx, &row.bucket, &counts(new).minus(&counts(old)))?;
        if let Some(entry) = released_content(old, new) {
            tx.enqueue(&entry)?;
        }
        Ok(())
    }

    fn dropped(&self, tx: &mut RowTransaction<'_, '_>, row: &ObjectRow) -> Result<(), TableError> {
        Ok(self.counters.add(tx, &row.bucket, &Counts::default().minus(&row.counts()))?)
    }

    fn derive_anew(&self, tx: &mut RowTransaction<'_, '_>, _placement: &Placement, by: ReplacedBy) -> Result<(), TableError> {
        match by {
            ReplacedBy::Itself => Ok(()),
            ReplacedBy::Others => Ok(self.counters.doubt(tx)?),
        }
    }

    fn notes(&self, tx: &Snapshot<'_>, range: &KeyRange) -> Result<Vec<ByteBuf>, TableError> {
        self.marks.final_ones(tx, range)
    }

    fn keep_notes(&self, tx: &mut RowTransaction<'_, '_>, notes: &[ByteBuf]) -> Result<(), TableError> {
        self.marks.keep_told(tx, notes)
    }

    fn is_collectable(row: &ObjectRow) -> bool {
        row.state == ObjectState::Tombstone
    }

    fn written_at(row: &ObjectRow) -> Timestamp {
        row.timestamp
    }

    fn is_superseded(tx: &RowTransaction<'_, '_>, row: &ObjectRow) -> Result<bool, TableError> {
        Ok(Self::siblings(tx, row)?.iter().any(|sibling| sibling.supersedes(row)))
    }

    fn belongings(row: &ObjectRow) -> Vec<Belongings> {
        let is_listed = row.live().is_some_and(|meta| matches!(meta.content, Content::Blocks { .. } | Content::Parts { .. }));
        if is_listed { vec![VersionTable::all_of(row.version)] } else { Vec::new() }
    }

    fn summary(mut row: ObjectRow) -> ObjectRow {
        // What a listing shows, and what its conditions and limits ask: a thousand of these are a page.
        if let ObjectState::Live(meta) = &mut row.state {
            meta.content = Content::NotShown;
            meta.headers.clear();
        }
        row
    }
}

/// The deletion of the version that a row named and names no more.
pub fn released_content(old: Option<&ObjectRow>, new: Option<&ObjectRow>) -> Option<Entry> {
    let old = old?;
    let stored = !matches!(old.live()?.content, Content::Inline(_) | Content::NotShown);
    let gone = new.is_none_or(|new| new.live().is_none());
    (stored && gone).then(|| VersionTable::entry(&VersionRow::deleted(old.version), Mode::Replicate))
}

/// The current version among a key's rows, which come newest first.
pub fn current(rows: &[ObjectRow]) -> Option<&ObjectRow> {
    // Tombstones of single versions say nothing of the others; a null tombstone is the newest null row.
    let newest = rows.iter().find(|row| row.state != ObjectState::Tombstone || row.is_null)?;
    newest.live().map(|_meta| newest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_table::Schema;
    use garage_types::codec::Unknown;
    use garage_types::{BucketId, ObjectKey, Timestamp, VersionId};
    use serde_bytes::ByteBuf;

    use super::{
        Condition, Content, ObjectMeta, ObjectRow, ObjectState, ObjectTable, Refusal, judge, judge_quotas, released_content,
    };
    use crate::bucket::Quotas;
    use crate::counters::Counts;

    fn row(key: &str, time: u64, version: u8, state: ObjectState) -> ObjectRow {
        ObjectRow {
            bucket: BucketId::from_bytes([1; 32]),
            shard: 0,
            key: ObjectKey::parse(key).unwrap(),
            timestamp: Timestamp::from_millis(time),
            version: VersionId::from_bytes([version; 32]),
            is_null: true,
            state,
        }
    }

    fn meta(etag: &str, content: Content) -> ObjectMeta {
        ObjectMeta {
            size: 5,
            etag: etag.to_owned(),
            content,
            headers: BTreeMap::new(),
            checksum: None,
            owner: None,
            upload: None,
            unknown: Unknown::new(),
        }
    }

    #[test]
    fn a_row_shown_to_people_counts_the_bytes_of_its_content() {
        let row = row("a", 1, 9, ObjectState::Live(Box::new(meta("e", Content::Inline(ByteBuf::from(vec![7; 2500]))))));
        let shown = format!("{row:#?}");
        assert!(shown.contains("content: Inline(2500 bytes),") && shown.lines().count() < 40, "{shown}");
    }

    #[test]
    fn a_null_row_is_superseded_by_a_newer_null_row_only() {
        let (old, new) = (row("a", 1, 9, ObjectState::Tombstone), row("a", 2, 0, ObjectState::Tombstone));
        assert!(new.supersedes(&old) && !old.supersedes(&new) && !new.supersedes(&new));
        let named = ObjectRow { is_null: false, ..new.clone() };
        assert!(!named.supersedes(&old) && !new.supersedes(&ObjectRow { is_null: false, ..old }));
    }

    #[test]
    fn rows_sort_by_key_then_newest_first() {
        let key = |row: &ObjectRow| ObjectTable::sort_key(row);
        let a_old = row("a", 1, 9, ObjectState::Tombstone);
        let a_new = row("a", 2, 0, ObjectState::Tombstone);
        let a_tie = row("a", 2, 1, ObjectState::Tombstone);
        let ab = row("ab", 9, 0, ObjectState::Tombstone);
        assert!(key(&a_tie) < key(&a_new) && key(&a_new) < key(&a_old) && key(&a_old) < key(&ab));
    }

    #[test]
    fn the_content_is_released_when_its_row_goes_and_only_then() {
        let blocks = Content::Blocks { first: garage_types::BlockHash::of(b"x"), first_length: 1 };
        let live = row("a", 1, 1, ObjectState::Live(Box::new(meta("e", blocks))));
        let tombstone = ObjectRow { state: ObjectState::Tombstone, ..live.clone() };
        let inline = row("a", 1, 1, ObjectState::Live(Box::new(meta("e", Content::Inline(ByteBuf::new())))));
        assert!(released_content(Some(&live), None).is_some());
        assert!(released_content(Some(&live), Some(&tombstone)).is_some());
        assert!(released_content(Some(&live), Some(&live)).is_none());
        assert!(released_content(Some(&tombstone), None).is_none());
        assert!(released_content(Some(&inline), None).is_none());
        assert!(released_content(None, Some(&live)).is_none());
    }

    #[test]
    fn conditions_look_at_the_current_version() {
        let current = meta("abc", Content::NotShown);
        let if_match = |etag: &str| Condition { if_match: Some(vec![etag.to_owned()]), ..Condition::default() };
        let if_none_match = |etag: &str| Condition { if_none_match: Some(vec![etag.to_owned()]), ..Condition::default() };
        assert_eq!(judge(&if_match("abc"), Some(&current)), None);
        assert_eq!(judge(&if_match("*"), Some(&current)), None);
        assert_eq!(judge(&if_match("x"), Some(&current)), Some(Refusal::PreconditionFailed));
        assert_eq!(judge(&if_match("*"), None), Some(Refusal::NoSuchKey));
        assert_eq!(judge(&if_none_match("*"), Some(&current)), Some(Refusal::PreconditionFailed));
        assert_eq!(judge(&if_none_match("x"), Some(&current)), None);
        assert_eq!(judge(&if_none_match("*"), None), None);
    }

    #[test]
    fn quotas_refuse_growth_only() {
        let quotas = Quotas { size_bytes_max: Some(10), objects_max: Some(2) };
        let counts = |objects, bytes| Counts { objects, bytes, ..Counts::default() };
        assert_eq!(judge_quotas(&quotas, &counts(1, 5), &counts(1, 5)), None);
        assert_eq!(judge_quotas(&quotas, &counts(2, 5), &counts(1, 1)), Some(Refusal::QuotaObjects));
        assert_eq!(judge_quotas(&quotas, &counts(1, 5), &counts(0, 6)), Some(Refusal::QuotaBytes));
        assert_eq!(judge_quotas(&quotas, &counts(9, 99), &counts(0, -1)), None);
    }
}
