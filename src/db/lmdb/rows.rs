//! Rows within one transaction of LMDB.

use heed::{RoTxn, RwTxn, WithoutTls};

use super::environment::{Rows, of_lmdb};
use crate::engine::{Bounds, Direction, ReadRows, Tree, Visit, WriteRows};
use crate::error::DbError;

/// A snapshot.
pub(super) struct Reading<'e> {
    pub(super) trees: &'e [Rows],
    pub(super) txn: RoTxn<'e, WithoutTls>,
}

/// A write transaction.
pub(super) struct Writing<'e> {
    pub(super) trees: &'e [Rows],
    pub(super) txn: RwTxn<'e>,
}

fn rows(trees: &[Rows], tree: Tree) -> Result<Rows, DbError> {
    trees.get(tree.index()).copied().ok_or(DbError::UnknownTree)
}

fn get(rows: Rows, txn: &RoTxn<'_>, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
    if let Some(value) = rows.get(txn, key).map_err(of_lmdb("read"))? {
        found(value);
    }
    Ok(())
}

fn range(rows: Rows, txn: &RoTxn<'_>, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
    match direction {
        Direction::Forward => visit_all(rows.range(txn, &bounds).map_err(of_lmdb("read"))?, visit),
        Direction::Backward => visit_all(rows.rev_range(txn, &bounds).map_err(of_lmdb("read"))?, visit),
    }
}

fn visit_all<'t>(rows: impl Iterator<Item = heed::Result<(&'t [u8], &'t [u8])>>, visit: &mut Visit<'_>) -> Result<(), DbError> {
    for row in rows {
        let (key, value) = row.map_err(of_lmdb("read"))?;
        if visit(key, value).is_break() {
            break;
        }
    }
    Ok(())
}

impl ReadRows for Reading<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        get(rows(self.trees, tree)?, &self.txn, key, found)
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        range(rows(self.trees, tree)?, &self.txn, bounds, direction, visit)
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        rows(self.trees, tree)?.len(&self.txn).map_err(of_lmdb("count"))
    }
}

impl ReadRows for Writing<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        get(rows(self.trees, tree)?, &self.txn, key, found)
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        range(rows(self.trees, tree)?, &self.txn, bounds, direction, visit)
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        rows(self.trees, tree)?.len(&self.txn).map_err(of_lmdb("count"))
    }
}

impl WriteRows for Writing<'_> {
    fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError> {
        rows(self.trees, tree)?.put(&mut self.txn, key, value).map_err(of_lmdb("insert"))
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> Result<(), DbError> {
        rows(self.trees, tree)?.delete(&mut self.txn, key).map(|_existed| ()).map_err(of_lmdb("remove"))
    }
}
