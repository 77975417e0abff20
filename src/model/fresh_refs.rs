//! References to blocks whose contents are not known to be settled: a local tree of those that came with a write, by the time at which
//! they are looked at.
//!
//! A reference is stored before the list that names it, and beside the row that tells of its write. When the node that serves
//! the write dies in between, or a message comes after all of it was given up, nothing else leads to the reference. So each is looked at
//! until its content is settled one way or the other ([`crate::fresh_contents`]).

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_table::TableError;
use garage_types::codec::{self, Format};
use garage_types::{BlockHash, NodeId, Timestamp, UploadId, VersionId};
use serde::{Deserialize, Serialize};

use crate::version::Backlink;

/// After how long a reference is looked at, and again after as long while its content is not settled.
pub const LOOK_AFTER_MS: u64 = 15 * 60 * 1000;

/// Whose write a reference came with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    #[serde(rename = "c")]
    pub coordinator: NodeId,
    #[serde(rename = "l")]
    pub backlink: Backlink,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub part: Option<PartName>,
}

/// The part of a multipart upload that a content is an attempt at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartName {
    #[serde(rename = "u")]
    pub upload: UploadId,
    #[serde(rename = "n")]
    pub number: u32,
}

impl Format for Origin {
    const TAG: &'static str = "org1";
}

/// A reference whose content is not known to be settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreshReference {
    pub block: BlockHash,
    pub version: VersionId,
    pub arrived: Timestamp,
    pub origin: Origin,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(rename = "t")]
    arrived: Timestamp,
    #[serde(rename = "o")]
    origin: Origin,
}

impl Format for Stored {
    const TAG: &'static str = "frf1";
}

/// Key: when it is due (big-endian milliseconds), version, block; so that those of one content are together.
#[derive(Clone, Copy, Debug)]
pub struct FreshReferences(pub Tree);

/// A fresh reference with its place in the tree.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    pub key: Vec<u8>,
    pub reference: FreshReference,
}

fn key_of(due: Timestamp, reference: &FreshReference) -> Vec<u8> {
    let mut key = due.as_millis().to_be_bytes().to_vec();
    key.extend_from_slice(reference.version.as_bytes());
    key.extend_from_slice(reference.block.as_bytes());
    key
}

fn decode(key: &[u8], value: &[u8]) -> Result<FreshReference, TableError> {
    let Stored { arrived, origin } = codec::decode(value).map_err(|source| TableError::Row { table: "fresh_refs", source })?;
    let version = key.get(8..40).and_then(VersionId::from_slice);
    let block = key.get(40..).and_then(BlockHash::from_slice);
    let (version, block) = version.zip(block).ok_or(TableError::DamagedState)?;
    Ok(FreshReference { block, version, arrived, origin })
}

impl FreshReferences {
    /// # Errors
    /// The metadata engine's.
    pub fn add(&self, tx: &mut Transaction<'_>, reference: &FreshReference) -> Result<(), DbError> {
        self.add_at(tx, reference.arrived.plus_millis(LOOK_AFTER_MS), reference)
    }

    pub(crate) fn add_at(&self, tx: &mut Transaction<'_>, due: Timestamp, reference: &FreshReference) -> Result<(), DbError> {
        let stored = Stored { arrived: reference.arrived, origin: reference.origin.clone() };
        tx.insert(self.0, &key_of(due, reference), &codec::encode(&stored))
    }

    /// The first of those that are due, at most `limit`.
    pub(crate) fn due(&self, tx: &Snapshot<'_>, now: Timestamp, limit: usize) -> Result<Vec<Due>, TableError> {
        let high = now.next().as_millis().to_be_bytes();
        let mut found = Vec::new();
        let bounds = (Bound::Unbounded, Bound::Excluded(high.as_slice()));
        tx.range(self.0, bounds, Direction::Forward, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        found.into_iter().map(|(key, value)| Ok(Due { reference: decode(&key, &value)?, key })).collect()
    }
}

#[cfg(test)]
mod tests {
    use garage_types::codec;
    use garage_types::{BlockHash, BucketId, NodeId, ObjectKey, Timestamp, UploadId, VersionId};

    use super::{FreshReference, Origin, PartName, Stored, decode, key_of};
    use crate::version::Backlink;

    #[test]
    fn a_fresh_reference_is_read_as_it_was_written_and_sorts_by_its_due_time() {
        let origin = Origin {
            coordinator: NodeId::from_bytes([1; 32]),
            backlink: Backlink { bucket: BucketId::from_bytes([2; 32]), key: ObjectKey::parse("k").unwrap() },
            part: Some(PartName { upload: UploadId::from_bytes([3; 32]), number: 7 }),
        };
        let reference = FreshReference {
            block: BlockHash::from_bytes([4; 32]),
            version: VersionId::from_bytes([5; 32]),
            arrived: Timestamp::from_millis(9),
            origin: origin.clone(),
        };
        let key = key_of(Timestamp::from_millis(300), &reference);
        let value = codec::encode(&Stored { arrived: reference.arrived, origin });
        assert_eq!(decode(&key, &value).unwrap(), reference);
        assert!(key_of(Timestamp::from_millis(299), &reference) < key);
        assert!(decode(&key[1..], &value).is_err());
    }
}
