//! Rows as the metadata engine keeps them: each behind a tag and a checksum over its key and its bytes.
//!
//! The engines' pages carry no checksums, so a bit that flips on the disk or in memory would be answered as if it had been stored. Every
//! read of a row passes through [`RowTree`], which verifies the checksum and remembers what failed, for [`crate::damage`] to repair.
//!
//! ```text
//! 0   1   0xC1, which begins neither MessagePack nor the ASCII tag of a row
//! 1   2   version of this frame, 1, and its complement (so that a flipped bit is damage and not "a newer version")
//! 3   8   the last 8 bytes of the row's digest (XXH3, 128 bits), big-endian
//! 11      the row: its own format tag, then MessagePack
//! ```
//!
//! Rows of versions before this one have no frame; they begin with a lower-case letter, into which no single flipped bit turns 0xC1.
//! What nodes send each other, and the digests by which they compare, are of the row without its frame.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Mutex, MutexGuard};

use garage_db::{DbError, Direction, Transaction, Tree};
use garage_types::planted::{Bug, is_planted};
use tokio::sync::Notify;

use crate::digest::RowDigest;
use crate::error::TableError;
use crate::segments::Rows;
use crate::wire::TableId;

const FRAME_BEGINS: u8 = 0xC1;
const VERSION: u8 = 1;
const FRAME: [u8; 3] = [FRAME_BEGINS, VERSION, !VERSION];
const FRAME_LENGTH: usize = FRAME.len() + CHECKSUM_LENGTH;
const CHECKSUM_LENGTH: usize = 8;

/// Damaged rows that are remembered at the same time; those beyond are found again by the next read or scrub.
const REMEMBERED_MAX: usize = 10_000;

/// Why stored bytes are not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unreadable {
    /// They are not what was stored under their key.
    Mismatch,
    /// A newer version of this program wrote them.
    Newer { version: u8 },
}

/// How a row was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    Checked,
    /// Written by a version that stored no checksums.
    None,
}

/// The row in its frame.
pub fn seal(key: &[u8], row: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(FRAME_LENGTH + row.len());
    stored.extend_from_slice(&FRAME);
    stored.extend_from_slice(&checksum(key, row));
    stored.extend_from_slice(row);
    stored
}

/// The row that was stored.
///
/// # Errors
/// [`Unreadable`].
pub(crate) fn unseal<'s>(key: &[u8], stored: &'s [u8]) -> Result<(&'s [u8], Frame), Unreadable> {
    match stored.strip_prefix(&FRAME).and_then(<[u8]>::split_first_chunk::<CHECKSUM_LENGTH>) {
        Some((expected, row)) if *expected == checksum(key, row) || is_planted(Bug::DamagedRowsBelieved) => {
            Ok((row, Frame::Checked))
        }
        None if stored.first().is_some_and(u8::is_ascii_lowercase) => Ok((stored, Frame::None)),
        _ => match *stored {
            [FRAME_BEGINS, version, complement, ..] if version == !complement && version != VERSION => {
                Err(Unreadable::Newer { version })
            }
            _ => Err(Unreadable::Mismatch),
        },
    }
}

/// What [`seal`] was given; also of a version that stored it without a checksum. `None`: it is not what was stored.
pub fn unsealed<'s>(key: &[u8], stored: &'s [u8]) -> Option<&'s [u8]> {
    unseal(key, stored).ok().map(|(row, _frame)| row)
}

fn checksum(key: &[u8], row: &[u8]) -> [u8; CHECKSUM_LENGTH] {
    let RowDigest(digest) = RowDigest::of(key, row);
    (digest as u64).to_be_bytes()
}

/// The rows of one table.
#[derive(Clone, Debug)]
pub struct RowTree {
    tree: Tree,
    table: TableId,
    name: &'static str,
    shown: Shown,
    damaged: Damaged,
}

/// See [`crate::schema::Schema::shown`].
pub(crate) type Shown = fn(&[u8]) -> String;

/// Called with each key and row; `Break` ends the range.
type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// Called with each key and what reading its row gave; `Break` ends the range.
type VisitAll<'v> = dyn FnMut(&[u8], Result<&[u8], TableError>) -> ControlFlow<()> + 'v;

impl RowTree {
    pub(crate) fn new(tree: Tree, table: TableId, (name, shown): (&'static str, Shown), damaged: Damaged) -> Self {
        RowTree { tree, table, name, shown, damaged }
    }

    /// A row as people find it: its placement in hexadecimal digits, then its sort key.
    pub(crate) fn name_of(&self, key: &[u8]) -> String {
        let (placement, sort_key) = key.split_at_checked(32).unwrap_or((key, &[]));
        format!("{}/{}", hex::encode(placement), (self.shown)(sort_key))
    }

    /// The tree itself, for what needs no row: counting, and looking at keys.
    pub(crate) fn raw(&self) -> Tree {
        self.tree
    }

    pub(crate) fn get(&self, rows: &impl Rows, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        let Some(mut stored) = rows.get(self.tree, key)? else { return Ok(None) };
        let frame_length = stored.len() - self.check(key, &stored)?.0.len();
        stored.drain(..frame_length);
        Ok(Some(stored))
    }

    pub(crate) fn range(
        &self,
        rows: &impl Rows,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), TableError> {
        let mut failed = None;
        self.range_of_all(rows, bounds, direction, &mut |key, row| match row {
            Ok(row) => visit(key, row),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// As [`Self::range`], for callers that decide themselves what a row that cannot be read means.
    pub(crate) fn range_of_all(
        &self,
        rows: &impl Rows,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut VisitAll<'_>,
    ) -> Result<(), TableError> {
        let check = &mut |key: &[u8], stored: &[u8]| visit(key, self.check(key, stored).map(|(row, _frame)| row));
        Ok(rows.range(self.tree, bounds, direction, check)?)
    }

    pub(crate) fn insert(&self, tx: &mut Transaction<'_>, key: &[u8], row: &[u8]) -> Result<(), DbError> {
        tx.insert(self.tree, key, &seal(key, row))
    }

    pub(crate) fn remove(&self, tx: &mut Transaction<'_>, key: &[u8]) -> Result<(), DbError> {
        tx.remove(self.tree, key)
    }

    /// The row within what is stored; one that is damaged is remembered.
    pub(crate) fn check<'s>(&self, key: &[u8], stored: &'s [u8]) -> Result<(&'s [u8], Frame), TableError> {
        unseal(key, stored).map_err(|unreadable| match unreadable {
            Unreadable::Mismatch => {
                let row = self.name_of(key);
                if self.damaged.add(self.table, key) {
                    tracing::error!(table = self.name, row, "a row of the metadata database does not match its checksum");
                }
                TableError::DamagedRow { table: self.name, row }
            }
            Unreadable::Newer { version } => TableError::NewerRow { table: self.name, version },
        })
    }
}

/// The rows of this node that failed their checksums and are not repaired yet. Clones share it.
#[derive(Clone, Default, Debug)]
pub(crate) struct Damaged(Arc<Remembered>);

#[derive(Default, Debug)]
struct Remembered {
    rows: Mutex<BTreeSet<(TableId, Vec<u8>)>>,
    changed: Notify,
}

impl Damaged {
    /// Returns whether it is new here.
    fn add(&self, table: TableId, key: &[u8]) -> bool {
        let mut rows = self.rows();
        let is_new = rows.len() < REMEMBERED_MAX && rows.insert((table, key.to_vec()));
        drop(rows);
        if is_new {
            self.0.changed.notify_one();
        }
        is_new
    }

    pub(crate) fn forget(&self, table: TableId, key: &[u8]) {
        self.rows().remove(&(table, key.to_vec()));
        self.0.changed.notify_one();
    }

    /// The first damaged row behind `after`.
    pub(crate) fn next(&self, after: Option<&(TableId, Vec<u8>)>) -> Option<(TableId, Vec<u8>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.rows().range((from, Bound::Unbounded)).next().cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.rows().len()
    }

    /// Resolves when a row was added or forgotten since the last time.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn rows(&self) -> MutexGuard<'_, BTreeSet<(TableId, Vec<u8>)>> {
        self.0.rows.lock().expect("nothing panics while holding the damaged rows")
    }
}

#[cfg(test)]
mod tests {
    use super::{FRAME_LENGTH, Frame, Unreadable, seal, unseal};

    #[test]
    fn a_row_comes_back_from_its_frame() {
        let stored = seal(b"key", b"obj1...");
        assert_eq!(stored.len(), FRAME_LENGTH + 7);
        assert_eq!(unseal(b"key", &stored), Ok((&b"obj1..."[..], Frame::Checked)));
    }

    #[test]
    fn every_flipped_bit_and_every_other_key_is_noticed() {
        let stored = seal(b"key", b"obj1...");
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(b"key", &flipped), Err(Unreadable::Mismatch), "bit {bit}");
        }
        for length in 0..stored.len() {
            assert_eq!(unseal(b"key", &stored[..length]), Err(Unreadable::Mismatch), "{length} bytes");
        }
        assert_eq!(unseal(b"kex", &stored), Err(Unreadable::Mismatch));
    }

    #[test]
    fn a_newer_frame_is_no_damage() {
        let mut stored = seal(b"key", b"obj1...");
        (stored[1], stored[2]) = (2, !2);
        assert_eq!(unseal(b"key", &stored), Err(Unreadable::Newer { version: 2 }));
    }

    #[test]
    fn rows_of_earlier_versions_are_read_as_they_are() {
        assert_eq!(unseal(b"key", b"obj1\x81"), Ok((&b"obj1\x81"[..], Frame::None)));
    }
}
