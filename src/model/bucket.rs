//! The bucket table: one row a bucket, on every node. Names live in the alias table, permissions in the keys' rows.

use garage_table::transaction::RowTransaction;
use garage_table::wire::TableId;
use garage_table::{Replication, Schema, TableError};
use garage_types::codec::{Format, Unknown};
use garage_types::crdt::{Crdt, Deletable, Lww};
use garage_types::{BucketId, Placement, Timestamp};
use serde::{Deserialize, Serialize};

use crate::closing::ClosingMarks;
use crate::table_ids;

/// Limits on what a bucket holds; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Quotas {
    #[serde(rename = "s")]
    pub size_bytes_max: Option<u64>,
    #[serde(rename = "n")]
    pub objects_max: Option<u64>,
}

/// What a bucket is, as long as it is not deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BucketState {
    #[serde(rename = "c")]
    pub created: Timestamp,
    /// Over how many index partitions the bucket's objects are spread.
    #[serde(rename = "h")]
    pub index_shards: u16,
    #[serde(rename = "q")]
    pub quotas: Lww<Quotas>,
    /// Until when no new object or upload is taken because a node of an earlier version checks whether the bucket can be deleted. Later
    /// versions have the owners keep a mark instead ([`crate::closing`]).
    #[serde(rename = "x")]
    pub closing_until: Lww<Option<Timestamp>>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Crdt for BucketState {
    fn merge(&mut self, other: &Self) {
        self.created = self.created.min(other.created);
        self.index_shards = self.index_shards.max(other.index_shards);
        self.quotas.merge(&other.quotas);
        self.closing_until.merge(&other.closing_until);
        for (name, value) in &other.unknown {
            self.unknown.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BucketRow {
    #[serde(rename = "b")]
    pub id: BucketId,
    #[serde(rename = "s")]
    pub state: Deletable<BucketState>,
}

impl BucketRow {
    pub fn new(id: BucketId, now: Timestamp) -> Self {
        let state = BucketState {
            created: now,
            index_shards: 1,
            quotas: Lww::at(now, Quotas::default()),
            closing_until: Lww::at(now, None),
            unknown: Unknown::new(),
        };
        BucketRow { id, state: Deletable::Present(state) }
    }
}

impl Format for BucketRow {
    const TAG: &'static str = "bkt1";
}

impl Crdt for BucketRow {
    fn merge(&mut self, other: &Self) {
        self.state.merge(&other.state);
    }
}

/// The bucket table.
#[derive(Debug)]
pub struct BucketTable {
    pub marks: ClosingMarks,
}

impl Schema for BucketTable {
    const ID: TableId = table_ids::BUCKET;
    const NAME: &'static str = "bucket";
    const REPLICATION: Replication = Replication::FullCopy;
    type Row = BucketRow;

    fn placement(row: &BucketRow) -> Placement {
        row.id.into()
    }

    fn sort_key(_row: &BucketRow) -> Vec<u8> {
        Vec::new()
    }

    fn changed(
        &self,
        tx: &mut RowTransaction<'_, '_>,
        _old: Option<&BucketRow>,
        new: Option<&BucketRow>,
    ) -> Result<(), TableError> {
        match new {
            Some(BucketRow { id, state: Deletable::Deleted }) => Ok(self.marks.forget(tx.raw(), *id)?),
            _ => Ok(()),
        }
    }
}
