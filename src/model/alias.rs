//! The alias table: the names of buckets. Global names are one namespace; local names belong to one access key.
//!
//! Must stay true: a row gives a name only to whom a majority of nodes has accepted for it ([`crate::name_claims`]), or takes it from its
//! bucket. Nodes of earlier versions commit rows instead; while a claim is under way here they are told that they are behind.

use garage_table::error::TableError;
use garage_table::schema::{Admission, Admit};
use garage_table::transaction::RowTransaction;
use garage_table::wire::{Mode, TableId, Verdict};
use garage_table::{Replication, Schema};
use garage_types::codec::Format;
use garage_types::crdt::{Crdt, Lww};
use garage_types::{BucketId, KeyId, Placement, Timestamp, sort_key};
use serde::{Deserialize, Serialize};

use crate::name_claims::NameClaims;
use crate::table_ids;

/// Whose name it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AliasScope {
    #[serde(rename = "g")]
    Global,
    #[serde(rename = "l")]
    Local(KeyId),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliasRow {
    #[serde(rename = "o")]
    pub scope: AliasScope,
    #[serde(rename = "n")]
    pub name: String,
    /// The bucket it names; `None` when it was given up.
    #[serde(rename = "b")]
    pub bucket: Lww<Option<BucketId>>,
}

impl Format for AliasRow {
    const TAG: &'static str = "als1";
}

impl Crdt for AliasRow {
    fn merge(&mut self, other: &Self) {
        self.bucket.merge(&other.bucket);
    }
}

/// The alias table.
#[derive(Debug)]
pub struct AliasTable {
    pub claims: NameClaims,
}

/// The key of a name: its placement and its sort key.
pub fn key_of(scope: &AliasScope, name: &str) -> (Placement, Vec<u8>) {
    let mut key = Vec::new();
    match scope {
        AliasScope::Global => key.push(b'g'),
        AliasScope::Local(id) => {
            key.push(b'l');
            sort_key::push_text(&mut key, id.as_str());
        }
    }
    sort_key::push_text(&mut key, name);
    (Placement::of(&key), key)
}

impl Schema for AliasTable {
    const ID: TableId = table_ids::ALIAS;
    const NAME: &'static str = "bucket_alias";
    const REPLICATION: Replication = Replication::FullCopy;
    type Row = AliasRow;

    fn placement(row: &AliasRow) -> Placement {
        key_of(&row.scope, &row.name).0
    }

    fn sort_key(row: &AliasRow) -> Vec<u8> {
        key_of(&row.scope, &row.name).1
    }

    fn shown(sort_key: &[u8]) -> String {
        match sort_key.split_first() {
            Some((b'g', name)) => sort_key::shown(name),
            Some((b'l', rest)) => match sort_key::split_text(rest) {
                Some((key, name)) => format!("{} of key {key}", sort_key::shown(name)),
                None => rest.escape_ascii().to_string(),
            },
            _ => sort_key.escape_ascii().to_string(),
        }
    }

    fn admit(&self, tx: &mut RowTransaction<'_, '_>, row: &mut AliasRow, how: Admit<'_>) -> Result<Admission, TableError> {
        if how.mode == Mode::Replicate {
            return Ok(Admission::Merge);
        }
        let (placement, key) = key_of(&row.scope, &row.name);
        let present = tx.row::<AliasTable>(&placement, &key)?;
        let free_since = present.as_ref().map_or(Timestamp::ZERO, |row| row.bucket.timestamp());
        let is_claimed = self.claims.get(tx.raw(), &key)?.is_some_and(|slot| slot.base >= free_since);
        if is_claimed && row.bucket.get().is_some() {
            return Ok(Admission::Answer(Verdict::Behind(free_since)));
        }
        let Some(present) = present else { return Ok(Admission::Merge) };
        let taken = present.bucket.get().is_some_and(|owner| Some(owner) != *row.bucket.get());
        if taken && row.bucket.get().is_some() {
            let owner = present.bucket.get().map(|id| id.as_bytes().to_vec()).unwrap_or_default();
            return Ok(Admission::Answer(Verdict::Refused(owner.into())));
        }
        if present.bucket.timestamp() >= row.bucket.timestamp() && present.bucket != row.bucket {
            return Ok(Admission::Answer(Verdict::Behind(present.bucket.timestamp())));
        }
        Ok(Admission::Merge)
    }

    fn changed(
        &self,
        tx: &mut RowTransaction<'_, '_>,
        _old: Option<&AliasRow>,
        new: Option<&AliasRow>,
    ) -> Result<(), TableError> {
        match new {
            Some(row) => self.claims.follow(tx.raw(), row),
            None => Ok(()),
        }
    }
}
