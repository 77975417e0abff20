//! What closures see: a consistent [`Snapshot`], or a [`Transaction`] that may also write.

use std::ops::Bound;

use crate::bounds;
use crate::engine::{Direction, ReadRows, Tree, Visit};
use crate::error::DbError;
use crate::overlay::{Change, Overlay};

/// All trees as they were after one commit. Kept open only while a closure runs: a long reader makes the files of some engines grow,
/// so long ranges are read in pages, each with its own snapshot.
pub struct Snapshot<'s> {
    rows: &'s dyn ReadRows,
}

impl<'s> Snapshot<'s> {
    pub(crate) fn new(rows: &'s dyn ReadRows) -> Self {
        Snapshot { rows }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        self.get_with(tree, key, <[u8]>::to_vec)
    }

    /// What `found` makes of the value of a key, without copying it first.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn get_with<R>(&self, tree: Tree, key: &[u8], found: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, DbError> {
        get_with(self.rows, tree, key, found)
    }

    /// Visits the rows within `bounds` until `visit` breaks.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn range(
        &self,
        tree: Tree,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), DbError> {
        match bounds::check(bounds) {
            Some(bounds) => self.rows.range(tree, bounds, direction, visit),
            None => Ok(()),
        }
    }

    /// How many rows a tree has.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn count(&self, tree: Tree) -> Result<u64, DbError> {
        self.rows.count(tree)
    }
}

/// One closure's reads and writes. It sees its own writes and those of the transactions before it; its writes reach the engine
/// only if the closure succeeds.
pub struct Transaction<'t> {
    base: &'t dyn ReadRows,
    overlay: Overlay,
}

impl<'t> Transaction<'t> {
    pub(crate) fn new(base: &'t dyn ReadRows) -> Self {
        Transaction { base, overlay: Overlay::default() }
    }

    pub(crate) fn into_overlay(self) -> Overlay {
        self.overlay
    }

    /// The value of a key.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        match self.overlay.get(tree, key) {
            Some(Change::Inserted(value)) => Ok(Some(value.to_vec())),
            Some(Change::Removed) => Ok(None),
            None => get_with(self.base, tree, key, <[u8]>::to_vec),
        }
    }

    /// Visits the rows within `bounds` until `visit` breaks.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn range(
        &self,
        tree: Tree,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), DbError> {
        match bounds::check(bounds) {
            Some(bounds) => self.overlay.range(self.base, tree, bounds, direction, visit),
            None => Ok(()),
        }
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// [`DbError::KeyEmpty`], [`DbError::KeyTooLong`], [`DbError::ValueTooLong`].
    pub fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError> {
        bounds::check_key(key)?;
        bounds::check_value(value)?;
        self.overlay.insert(tree, key, value);
        Ok(())
    }

    /// Removes a key, which may be absent.
    ///
    /// # Errors
    /// None at present: engines report theirs when the closure has succeeded.
    pub fn remove(&mut self, tree: Tree, key: &[u8]) -> Result<(), DbError> {
        if bounds::may_exist(key) {
            self.overlay.remove(tree, key);
        }
        Ok(())
    }
}

fn get_with<R>(rows: &dyn ReadRows, tree: Tree, key: &[u8], found: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, DbError> {
    if !bounds::may_exist(key) {
        return Ok(None);
    }
    let mut found = Some(found);
    let mut result = None;
    rows.get(tree, key, &mut |value| result = found.take().map(|found| found(value)))?;
    Ok(result)
}
