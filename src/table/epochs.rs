//! Garbage collection epochs: one number for each table and slot of the hash space, which only grows.
//!
//! Every row on its way to an owner says under which epoch it was sent. An owner that has moved on refuses it: its sender may not know
//! of a deletion whose tombstone is gone by now. Owners keep their epochs in the database ([`EpochTree`]); what a coordinator has
//! heard of others' is remembered in memory ([`Known`]) and may be behind, never ahead of what all owners have confirmed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use garage_db::{DbError, Transaction, Tree};
use garage_types::{Placement, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::TableError;
use crate::wire::TableId;

/// A slice of the hash space whose tombstones are collected together: those placements that begin with this byte. Independent of the
/// layout's partitions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u8);

impl Slot {
    pub fn of(placement: &Placement) -> Self {
        Slot(placement.as_bytes()[0])
    }

    /// The slot of a local key; keys begin with their placement.
    pub fn of_key(key: &[u8]) -> Self {
        Slot(key.first().copied().unwrap_or(0))
    }
}

/// This node's epochs.
#[derive(Clone, Copy, Debug)]
pub struct EpochTree(pub Tree);

impl EpochTree {
    /// # Errors
    /// The metadata engine's; [`TableError::DamagedEpoch`]: a number that cannot be read is not taken for zero.
    pub fn get(&self, tx: &impl Get, table: TableId, slot: Slot) -> Result<u64, TableError> {
        match tx.get(self.0, &[table.0, slot.0])? {
            None => Ok(0),
            Some(bytes) => match <[u8; 8]>::try_from(bytes) {
                Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
                Err(_) => Err(TableError::DamagedEpoch { table, slot }),
            },
        }
    }

    /// Moves to `epoch` unless this node is there or beyond already.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn raise(&self, tx: &mut Transaction<'_>, table: TableId, slot: Slot, epoch: u64) -> Result<(), TableError> {
        if self.get(&*tx, table, slot)? < epoch {
            tx.insert(self.0, &[table.0, slot.0], &epoch.to_be_bytes())?;
        }
        Ok(())
    }
}

/// For each table and slot the time of the latest tombstone that was collected from it: a new write is later than that.
///
/// A tombstone may stay at one owner after the others have dropped it. A write that is timed before it, by a clock that is behind, would
/// be accepted by those others, and buried when they hear of the tombstone again.
#[derive(Clone, Copy, Debug)]
pub struct FloorTree(pub Tree);

impl FloorTree {
    /// [`Timestamp::ZERO`] when nothing was collected.
    ///
    /// # Errors
    /// As [`EpochTree::get`].
    pub fn get(&self, tx: &impl Get, table: TableId, slot: Slot) -> Result<Timestamp, TableError> {
        match tx.get(self.0, &[table.0, slot.0])? {
            None => Ok(Timestamp::ZERO),
            Some(bytes) => match <[u8; 8]>::try_from(bytes) {
                Ok(bytes) => Ok(Timestamp::from_millis(u64::from_be_bytes(bytes))),
                Err(_) => Err(TableError::DamagedEpoch { table, slot }),
            },
        }
    }

    /// Raises the floor to `floor` unless it is there or higher.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn raise(&self, tx: &mut Transaction<'_>, table: TableId, slot: Slot, floor: Timestamp) -> Result<(), TableError> {
        if self.get(&*tx, table, slot)? < floor {
            tx.insert(self.0, &[table.0, slot.0], &floor.as_millis().to_be_bytes())?;
        }
        Ok(())
    }
}

/// Reading one value, within a transaction or on a snapshot.
pub trait Get {
    /// # Errors
    /// The metadata engine's.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError>;
}

impl Get for Transaction<'_> {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        Transaction::get(self, tree, key)
    }
}

impl Get for garage_db::Snapshot<'_> {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        garage_db::Snapshot::get(self, tree, key)
    }
}

/// The epochs that this node stamps what it sends with.
#[derive(Debug)]
pub struct Known(BTreeMap<TableId, Box<[AtomicU64]>>);

impl Known {
    pub fn new(tables: impl Iterator<Item = TableId>) -> Self {
        Known(tables.map(|table| (table, (0..=u8::MAX).map(|_slot| AtomicU64::new(0)).collect())).collect())
    }

    pub fn get(&self, table: TableId, slot: Slot) -> u64 {
        self.0.get(&table).map_or(0, |slots| slots[usize::from(slot.0)].load(Ordering::Acquire))
    }

    pub fn raise(&self, table: TableId, slot: Slot, epoch: u64) {
        if let Some(slots) = self.0.get(&table) {
            slots[usize::from(slot.0)].fetch_max(epoch, Ordering::AcqRel);
        }
    }
}
