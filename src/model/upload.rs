//! The upload table: writes that are not finished. In the same partition as the key, so that an owner finishes the upload in the
//! transaction that makes the object visible.
//!
//! Must stay true: an upload ends once. `Done` is only written together with the object row; a commit finds `Aborted` and is
//! refused; an abort finds `Done` and changes nothing. Only an abort releases the version's content.

use garage_table::error::TableError;
use garage_table::schema::{Admission, Admit};
use garage_table::store::RowTransaction;
use garage_table::wire::{Mode, TableId};
use garage_table::{Replication, Schema};
use garage_types::codec::{Format, Unknown};
use garage_types::crdt::Crdt;
use garage_types::{BucketId, NodeId, ObjectKey, Placement, Timestamp, UploadId, VersionId, sort_key};
use serde::{Deserialize, Serialize};

use crate::counters::{BucketCounters, Counts};
use crate::object::{IndexShard, Refusal, bucket_takes_writes};
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum UploadState {
    #[serde(rename = "s")]
    Simple(SimpleUpload),
    /// Given up; what was stored for it is released.
    #[serde(rename = "a")]
    Aborted,
    /// Finished: its object row was written.
    #[serde(rename = "d")]
    Done,
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
    #[must_use]
    pub fn with_state(&self, state: UploadState) -> Self {
        UploadRow { state, ..self.clone() }
    }

    fn index(&self) -> IndexShard {
        IndexShard { bucket: self.bucket, shard: self.shard }
    }

    fn counts(&self) -> Counts {
        match &self.state {
            UploadState::Simple(_) => Counts { uploads: 1, ..Counts::default() },
            UploadState::Aborted | UploadState::Done => Counts::default(),
        }
    }
}

impl UploadState {
    fn rank(&self) -> u8 {
        match self {
            UploadState::Simple(_) => 0,
            UploadState::Aborted => 1,
            UploadState::Done => 2,
        }
    }
}

impl Format for UploadRow {
    const TAG: &'static str = "upl1";
}

impl Crdt for UploadRow {
    fn merge(&mut self, other: &Self) {
        if other.state.rank() > self.state.rank() {
            self.state = other.state.clone();
        }
    }
}

/// The upload table.
#[derive(Debug)]
pub struct UploadTable {
    pub counters: BucketCounters,
}

impl Schema for UploadTable {
    const ID: TableId = table_ids::UPLOAD;
    const NAME: &'static str = "upload";
    const REPLICATION: Replication = Replication::Sharded;
    type Row = UploadRow;

    fn placement(row: &UploadRow) -> Placement {
        row.index().placement()
    }

    fn sort_key(row: &UploadRow) -> Vec<u8> {
        let mut key = Vec::with_capacity(row.key.as_str().len() + 33);
        sort_key::push_text(&mut key, row.key.as_str());
        key.extend_from_slice(row.id.as_bytes());
        key
    }

    fn admit(&self, tx: &mut RowTransaction<'_, '_>, row: &mut UploadRow, how: Admit<'_>) -> Result<Admission, TableError> {
        if how.mode == Mode::Replicate {
            return Ok(Admission::Merge);
        }
        let present = tx.row::<UploadTable>(&row.index().placement(), &Self::sort_key(row))?.map(|row| row.state);
        let refused = match (&present, &row.state) {
            (None, UploadState::Simple(_)) => !bucket_takes_writes(tx, row.bucket)?,
            (Some(UploadState::Aborted), UploadState::Done) => true,
            (Some(UploadState::Done), UploadState::Aborted) => true,
            _ => false,
        };
        if refused { Ok(Admission::Answer(refusal_for(&row.state).verdict())) } else { Ok(Admission::Merge) }
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
        if let Some(version) = released_version(old, new) {
            tx.enqueue(&VersionTable::entry(&VersionRow::deleted(version), Mode::Replicate))?;
        }
        Ok(())
    }
}

fn refusal_for(state: &UploadState) -> Refusal {
    match state {
        UploadState::Simple(_) => Refusal::NoSuchBucket,
        UploadState::Aborted | UploadState::Done => Refusal::NoSuchUpload,
    }
}

/// The version that is released because its upload was given up.
fn released_version(old: Option<&UploadRow>, new: Option<&UploadRow>) -> Option<VersionId> {
    match (&old?.state, &new?.state) {
        (UploadState::Simple(simple), UploadState::Aborted) => Some(simple.version),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use garage_types::codec::Unknown;
    use garage_types::{BucketId, NodeId, ObjectKey, Timestamp, UploadId, VersionId};

    use super::{SimpleUpload, UploadRow, UploadState, released_version};

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
    }
}
