//! The list of tombstones to be collected, by the time at which they were made here.

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_types::Timestamp;
use garage_types::hash::blake2b;

use crate::epochs::Slot;
use crate::wire::TableId;

/// Key: table, slot, time (big-endian milliseconds), start of the hash of the row's local key. Value: that key.
#[derive(Clone, Copy, Debug)]
pub struct Graves(pub Tree);

/// One listed tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grave {
    /// Where it is listed.
    pub listed: Vec<u8>,
    /// The row's local key.
    pub key: Vec<u8>,
}

impl Graves {
    pub(crate) fn add(&self, tx: &mut Transaction<'_>, table: TableId, key: &[u8], now: Timestamp) -> Result<(), DbError> {
        let mut listed = prefix(table, Slot::of_key(key));
        listed.extend_from_slice(&now.as_millis().to_be_bytes());
        listed.extend_from_slice(&blake2b(key)[..16]);
        tx.insert(self.0, &listed, key)
    }

    /// The oldest tombstones of a slot that were made before `before`, at most `limit`, listed behind `after`.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn before(
        &self,
        rows: &Snapshot<'_>,
        table: TableId,
        slot: Slot,
        after: Option<Vec<u8>>,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<Grave>, DbError> {
        let low = prefix(table, slot);
        let mut high = low.clone();
        high.extend_from_slice(&before.as_millis().to_be_bytes());
        let mut found = Vec::new();
        let low = match &after {
            Some(after) => Bound::Excluded(after.as_slice()),
            None => Bound::Included(low.as_slice()),
        };
        let bounds = (low, Bound::Excluded(high.as_slice()));
        rows.range(self.0, bounds, Direction::Forward, &mut |listed, key| {
            found.push(Grave { listed: listed.to_vec(), key: key.to_vec() });
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(found)
    }

    /// The table and slot of the first tombstone listed in a slot behind `after`, or in any later one.
    ///
    /// # Errors
    /// The metadata engine's.
    pub fn next(
        &self,
        rows: &Snapshot<'_>,
        table: TableId,
        slot: Slot,
        after: Option<Vec<u8>>,
    ) -> Result<Option<(TableId, Slot)>, DbError> {
        // No tombstone is listed under the prefix alone.
        let low = after.unwrap_or_else(|| prefix(table, slot));
        let mut found = None;
        rows.range(self.0, (Bound::Excluded(low.as_slice()), Bound::Unbounded), Direction::Forward, &mut |listed, _key| {
            if let [table, slot, ..] = listed {
                found = Some((TableId(*table), Slot(*slot)));
            }
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}

fn prefix(table: TableId, slot: Slot) -> Vec<u8> {
    vec![table.0, slot.0]
}
