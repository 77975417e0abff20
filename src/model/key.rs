//! The access key table: one row a key, on every node, with everything the key may do.

use std::fmt;

use garage_table::wire::TableId;
use garage_table::{Replication, Schema};
use garage_types::codec::{Format, Unknown};
use garage_types::crdt::{Crdt, Deletable, Lww, LwwMap};
use garage_types::{BucketId, KeyId, Placement, Secret, Timestamp};
use serde::{Deserialize, Serialize};

use crate::table_ids;

/// What a key may do with one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Permissions {
    #[serde(rename = "r")]
    pub read: bool,
    #[serde(rename = "w")]
    pub write: bool,
    #[serde(rename = "o")]
    pub owner: bool,
}

impl Permissions {
    pub const NONE: Permissions = Permissions { read: false, write: false, owner: false };
    pub const ALL: Permissions = Permissions { read: true, write: true, owner: true };

    pub fn any(self) -> bool {
        self.read || self.write || self.owner
    }
}

impl fmt::Display for Permissions {
    /// `RWO`, with a space for what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (allowed, letter) in [(self.read, "R"), (self.write, "W"), (self.owner, "O")] {
            f.write_str(if allowed { letter } else { " " })?;
        }
        Ok(())
    }
}

/// What a key is, as long as it is not deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyState {
    #[serde(rename = "k")]
    pub secret: Secret,
    #[serde(rename = "c")]
    pub created: Timestamp,
    #[serde(rename = "n")]
    pub name: Lww<String>,
    /// `None`: never.
    #[serde(rename = "e")]
    pub expiration: Lww<Option<Timestamp>>,
    #[serde(rename = "a")]
    pub may_create_buckets: Lww<bool>,
    #[serde(rename = "b")]
    pub buckets: LwwMap<BucketId, Permissions>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl KeyState {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expiration.get().is_some_and(|end| end <= now)
    }

    pub fn permissions(&self, bucket: &BucketId) -> Permissions {
        self.buckets.get(bucket).copied().unwrap_or_default()
    }
}

impl Crdt for KeyState {
    fn merge(&mut self, other: &Self) {
        self.created = self.created.min(other.created);
        self.name.merge(&other.name);
        self.expiration.merge(&other.expiration);
        self.may_create_buckets.merge(&other.may_create_buckets);
        self.buckets.merge(&other.buckets);
        for (name, value) in &other.unknown {
            self.unknown.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyRow {
    #[serde(rename = "i")]
    pub id: KeyId,
    #[serde(rename = "s")]
    pub state: Deletable<KeyState>,
}

impl KeyRow {
    pub fn new(id: KeyId, secret: Secret, name: &str, now: Timestamp) -> Self {
        let state = KeyState {
            secret,
            created: now,
            name: Lww::at(now, name.to_owned()),
            expiration: Lww::at(now, None),
            may_create_buckets: Lww::at(now, false),
            buckets: LwwMap::new(),
            unknown: Unknown::new(),
        };
        KeyRow { id, state: Deletable::Present(state) }
    }
}

impl Format for KeyRow {
    const TAG: &'static str = "key1";
}

impl Crdt for KeyRow {
    fn merge(&mut self, other: &Self) {
        self.state.merge(&other.state);
    }
}

/// The access key table.
#[derive(Debug, Default)]
pub struct KeyTable;

/// Where the row of a key lives.
pub fn placement_of(id: &KeyId) -> Placement {
    Placement::of(id.as_str().as_bytes())
}

impl Schema for KeyTable {
    const ID: TableId = table_ids::KEY;
    const NAME: &'static str = "key";
    const REPLICATION: Replication = Replication::FullCopy;
    type Row = KeyRow;

    fn placement(row: &KeyRow) -> Placement {
        placement_of(&row.id)
    }

    fn sort_key(_row: &KeyRow) -> Vec<u8> {
        Vec::new()
    }
}
