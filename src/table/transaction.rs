//! Transactions over rows: every change of a row passes through here, so that digests and the list of tombstones follow it.

use std::ops::{Bound, ControlFlow};

use garage_db::{Direction, Transaction};
use garage_types::planted::{Bug, is_planted};
use garage_types::{Placement, Room, Timestamp};

use crate::digest::RowDigest;
use crate::epochs::Slot;
use crate::error::TableError;
use crate::queue;
use crate::rows;
use crate::schema::{Schema, local_key};
use crate::store::Inner;
use crate::wire::{Entry, TableId, Verdict};

/// A transaction over the rows of this node and any local tree, with the queue of cascaded deletions.
pub struct RowTransaction<'a, 'tx> {
    pub(crate) tx: &'a mut Transaction<'tx>,
    pub(crate) inner: &'a Inner,
    pub(crate) now: Timestamp,
}

impl<'tx> RowTransaction<'_, 'tx> {
    /// Time of the request at this node, the same however often the transaction runs.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// What is known of this node's disks.
    pub fn room(&self) -> &Room {
        self.inner.db().room()
    }

    /// The engine's transaction, for local trees.
    pub fn raw(&mut self) -> &mut Transaction<'tx> {
        self.tx
    }

    pub(crate) fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        self.inner.table(table)?.rows.get(&*self.tx, key)
    }

    /// Writes a row, and with it what is kept about it. `old`: the row as it is now.
    pub(crate) fn put(&mut self, table: TableId, key: &[u8], old: Option<&[u8]>, row: &[u8]) -> Result<(), TableError> {
        let local = self.inner.table(table)?;
        local.rows.insert(self.tx, key, row)?;
        local.segments(table, self.inner.digests).changed(self.tx, key, old, Some(row))
    }

    /// Lists a row as a tombstone to be collected.
    pub(crate) fn bury(&mut self, table: TableId, key: &[u8]) -> Result<(), TableError> {
        Ok(self.inner.graves.add(self.tx, table, key, self.now)?)
    }

    /// Removes a row, and with it what is kept about it.
    pub(crate) fn remove(&mut self, table: TableId, key: &[u8], old: &[u8]) -> Result<(), TableError> {
        let local = self.inner.table(table)?;
        local.rows.remove(self.tx, key)?;
        local.segments(table, self.inner.digests).changed(self.tx, key, Some(old), None)
    }

    /// Applies a row as if it had been sent here; for effects on tables placed like the row that causes them.
    ///
    /// # Errors
    /// [`TableError`]; the transaction must then be given up.
    pub fn apply(&mut self, entry: &Entry) -> Result<Verdict, TableError> {
        let rules = self.inner.table(entry.table)?.rules.clone();
        rules.apply(self, entry)
    }

    /// The time that new rows of a placement must be later than: that of the latest tombstone which was collected near it.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn floor(&self, table: TableId, placement: &Placement) -> Result<Timestamp, TableError> {
        self.inner.floors.get(&*self.tx, table, Slot::of(placement))
    }

    /// One row of this node.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn row<S: Schema>(&self, placement: &Placement, sort_key: &[u8]) -> Result<Option<S::Row>, TableError> {
        self.get(S::ID, &local_key(placement, sort_key))?.as_deref().map(S::decode).transpose()
    }

    /// The rows of this node whose sort key starts with `prefix`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn rows_with_prefix<S: Schema>(&self, placement: &Placement, prefix: &[u8]) -> Result<Vec<S::Row>, TableError> {
        let from = local_key(placement, prefix);
        let to = garage_types::sort_key::after_prefix(&from);
        let bounds = (Bound::Included(from.as_slice()), to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let mut rows = Vec::new();
        self.inner.table(S::ID)?.rows.range(&*self.tx, bounds, Direction::Forward, &mut |_key, value| {
            rows.push(S::decode(value));
            ControlFlow::Continue(())
        })?;
        rows.into_iter().collect()
    }

    /// Calls `visit` with every row of a placement; `None`: it is there, and damaged.
    ///
    /// # Errors
    /// [`TableError`]; not for damaged rows.
    pub fn each_under<S: Schema>(&self, placement: &Placement, visit: &mut impl FnMut(Option<S::Row>)) -> Result<(), TableError> {
        let from = local_key(placement, &[]);
        let to = garage_types::sort_key::after_prefix(&from);
        let bounds = (Bound::Included(from.as_slice()), to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let rows = &self.inner.table(S::ID)?.rows;
        let mut failed = None;
        self.tx.range(rows.raw(), bounds, Direction::Forward, &mut |key, stored| {
            let row = match rows.check(key, stored) {
                Ok((row, _frame)) => S::decode(row).map(Some),
                Err(TableError::DamagedRow { .. }) => Ok(None),
                Err(error) => Err(error),
            };
            match row {
                Ok(row) => visit(row),
                Err(error) => failed = Some(error),
            }
            if failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Removes a superseded row of this node, with the effects of its going.
    ///
    /// Only for rows whose absence another row of the same placement proves: anything else must become a tombstone.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_superseded<S: Schema>(&mut self, schema: &S, row: &S::Row) -> Result<(), TableError> {
        let key = local_key(&S::placement(row), &S::sort_key(row));
        if let Some(old) = self.get(S::ID, &key)? {
            self.remove(S::ID, &key, &old)?;
        }
        schema.changed(self, Some(row), None)
    }

    /// Queues a row, which must be a deletion, to be sent to its owners.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn enqueue(&mut self, entry: &Entry) -> Result<(), TableError> {
        if is_planted(Bug::LostQueueRow) {
            return Ok(());
        }
        let key = queue::key_of(entry);
        Ok(self.tx.insert(self.inner.queue, &key, &rows::seal(&key, &queue::encode(entry)))?)
    }

    /// Refuses what was sent under an epoch that this owner has left behind.
    pub(crate) fn check_epoch(&self, entry: &Entry) -> Result<(), TableError> {
        let current = self.inner.epochs.get(&*self.tx, entry.table, Slot::of(&entry.placement))?;
        if entry.epoch < current && !is_planted(Bug::EpochIgnored) {
            Err(TableError::StaleEpoch { caller: entry.epoch, current })
        } else {
            Ok(())
        }
    }

    /// Takes a row off this node without its meaning being undone elsewhere: other nodes have it, or nobody needs it any more. Only
    /// if it is still `expected`.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) fn drop_row(&mut self, table: TableId, key: &[u8], expected: RowDigest) -> Result<Dropped, TableError> {
        let Some(row) = self.get(table, key)? else { return Ok(Dropped::Absent) };
        if RowDigest::of(key, &row) != expected {
            return Ok(Dropped::Changed);
        }
        self.remove(table, key, &row)?;
        let rules = self.inner.table(table)?.rules.clone();
        rules.dropped(self, &row)?;
        Ok(Dropped::Gone)
    }
}

/// What became of a row that was to be taken off this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    Gone,
    Absent,
    /// It is another one by now, and stays.
    Changed,
}
