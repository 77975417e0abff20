//! Digests of sets of rows, so that replicas find out cheaply where they differ.
//!
//! A row's digest is a 128-bit hash of its key and value; a set's digest is the sum of its rows' digests and their number, so that it
//! is kept up to date as rows come and go, in any order. It guards against faults, not against forgery: replicas are authenticated.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

thread_local! {
    /// A key with the hash of its value. Every row that is read is hashed, so this is not allocated for each.
    static NAMED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Digest of one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowDigest(pub u128);

impl RowDigest {
    /// `key`: the local key, placement and sort key.
    pub fn of(key: &[u8], value: &[u8]) -> Self {
        NAMED.with_borrow_mut(|named| {
            named.clear();
            named.extend_from_slice(key);
            // Of a fixed length, so that no byte wanders between key and value unseen.
            named.extend_from_slice(&XxHash3_128::oneshot(value).to_be_bytes());
            RowDigest(XxHash3_128::oneshot(named))
        })
    }
}

/// Digest of a set of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SetDigest {
    #[serde(rename = "n")]
    pub rows: u64,
    #[serde(rename = "s")]
    pub sum: u128,
}

impl SetDigest {
    pub const ENCODED_LENGTH: usize = 24;

    pub fn add(&mut self, row: RowDigest) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(row.0);
    }

    pub fn remove(&mut self, row: RowDigest) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(row.0);
    }

    #[must_use]
    pub fn plus(self, other: SetDigest) -> SetDigest {
        SetDigest { rows: self.rows.wrapping_add(other.rows), sum: self.sum.wrapping_add(other.sum) }
    }

    #[must_use]
    pub fn minus(self, other: SetDigest) -> SetDigest {
        SetDigest { rows: self.rows.wrapping_sub(other.rows), sum: self.sum.wrapping_sub(other.sum) }
    }

    pub fn encode(&self) -> [u8; Self::ENCODED_LENGTH] {
        let mut bytes = [0; Self::ENCODED_LENGTH];
        bytes[..8].copy_from_slice(&self.rows.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sum.to_be_bytes());
        bytes
    }

    /// `None` when the bytes are not a digest.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (rows, sum) = bytes.split_first_chunk::<8>()?;
        Some(SetDigest { rows: u64::from_be_bytes(*rows), sum: u128::from_be_bytes(sum.try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::{RowDigest, SetDigest};

    #[test]
    fn a_sets_digest_does_not_depend_on_the_order_of_changes() {
        let [a, b] = [RowDigest::of(b"a", b"1"), RowDigest::of(b"b", b"2")];
        let (mut one, mut other) = (SetDigest::default(), SetDigest::default());
        one.add(a);
        one.add(b);
        other.add(b);
        other.add(b);
        other.add(a);
        assert_ne!(one, other);
        other.remove(b);
        assert_eq!(one, other);
        assert_eq!(SetDigest::decode(&one.encode()), Some(one));
    }

    #[test]
    fn key_and_value_are_told_apart() {
        assert_ne!(RowDigest::of(b"ab", b"c"), RowDigest::of(b"a", b"bc"));
    }
}
