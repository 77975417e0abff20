//! Rows that this node has taken out of its tables without anybody having deleted them, kept for the operator.
//!
//! Must stay true: nothing of it is offered, read or counted by itself; only an operator's word brings a row back, or lets it go. What the
//! tables turn out to have anyway, or to have superseded, is forgotten: the tables of a node that is whole, and only where that is certain.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_types::Timestamp;
use garage_types::hash::blake2b;

use crate::error::TableError;
use crate::rows;
use crate::schema::Rules;
use crate::store::TableStore;
use crate::transaction::RowTransaction;
use crate::wire::TableId;

/// Rows compared in one transaction.
const BATCH: usize = 500;

/// Why a row was set aside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// This node handed a range over, and the owners had collected tombstones since it was one of them.
    Left,
    /// This node became an owner again, or its old database was accepted, and the others had collected tombstones meanwhile.
    Returned,
    /// The database was older than the node's files, and was rebuilt from the other owners.
    Restored,
    /// It did not match its checksum, nobody else had it, and the operator gave it up: the row is what was stored, frame and all, and is
    /// not to be taken for one.
    Damaged,
    /// Set aside by a version that did not say why.
    Unknown,
}

impl Reason {
    fn code(self) -> u8 {
        match self {
            Reason::Left => b'l',
            Reason::Returned => b'b',
            Reason::Restored => b'r',
            Reason::Damaged => b'd',
            Reason::Unknown => b'u',
        }
    }

    fn of(code: u8) -> Self {
        match code {
            b'l' => Reason::Left,
            b'b' => Reason::Returned,
            b'r' => Reason::Restored,
            b'd' => Reason::Damaged,
            _ => Reason::Unknown,
        }
    }
}

/// One row that was set aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// [`Timestamp::ZERO`] when it is not known.
    pub at: Timestamp,
    pub reason: Reason,
    pub table: TableId,
    /// Its local key: placement, then sort key.
    pub key: Vec<u8>,
    pub row: Vec<u8>,
}

impl SetAside {
    /// Where it is kept; rows set aside together lie together.
    pub fn position(&self) -> Vec<u8> {
        position(self.at, self.reason, Some(self.table), &self.key)
    }

    /// 16 hexadecimal digits by which people name it.
    pub fn id(&self) -> String {
        hex::encode(&blake2b(&self.position())[..8])
    }

    fn decode(position: &[u8], row: &[u8]) -> Option<Self> {
        let (at, rest) = position.split_first_chunk::<8>()?;
        let ([reason, table], key) = rest.split_first_chunk::<2>()?;
        Some(SetAside {
            at: Timestamp::from_millis(u64::from_be_bytes(*at)),
            reason: Reason::of(*reason),
            table: TableId(*table),
            key: key.to_vec(),
            row: row.to_vec(),
        })
    }
}

/// Without a table: what all positions of that time and reason begin with.
pub(crate) fn position(at: Timestamp, reason: Reason, table: Option<TableId>, key: &[u8]) -> Vec<u8> {
    let mut position = at.as_millis().to_be_bytes().to_vec();
    position.push(reason.code());
    position.extend(table.map(|table| table.0));
    position.extend_from_slice(key);
    position
}

/// The tree of rows set aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetAsideTree(pub Tree);

impl SetAsideTree {
    pub(crate) fn keep(
        &self,
        tx: &mut Transaction<'_>,
        (at, reason): (Timestamp, Reason),
        table: TableId,
        key: &[u8],
        row: &[u8],
    ) -> Result<(), DbError> {
        let position = position(at, reason, Some(table), key);
        tx.insert(self.0, &position, &rows::seal(&position, row))
    }

    /// Keeps what is stored in the place of a row and is not the row: it does not match its checksum here either.
    pub(crate) fn keep_damaged(
        &self,
        tx: &mut Transaction<'_>,
        (at, reason): (Timestamp, Reason),
        table: TableId,
        key: &[u8],
        stored: &[u8],
    ) -> Result<(), DbError> {
        tx.insert(self.0, &position(at, reason, Some(table), key), stored)
    }
}

impl TableStore {
    /// Some rows that were set aside, behind the position `after`, oldest first; the last page is short.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn set_aside_page(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<SetAside>, TableError> {
        let tree = self.0.set_aside.0;
        let read = move |tx: &Snapshot<'_>| {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut page = Vec::new();
            tx.range(tree, (from, Bound::Unbounded), Direction::Forward, &mut |position, row| {
                match rows::unseal(position, row) {
                    Ok((row, _frame)) => page.extend(SetAside::decode(position, row)),
                    Err(_unreadable) => {
                        tracing::error!(position = %position.escape_ascii(), "a row that was set aside does not match its checksum");
                    }
                }
                if page.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok::<_, TableError>(page)
        };
        self.db().read(read).await
    }

    /// Lets go of rows that were set aside, whose positions these are.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn forget_set_aside(&self, positions: Vec<Vec<u8>>) -> Result<(), TableError> {
        let tree = self.0.set_aside.0;
        let forget = move |tx: &mut Transaction<'_>| positions.iter().try_for_each(|position| tx.remove(tree, position));
        Ok(self.db().write(forget).await?)
    }

    /// How many rows were set aside on this node.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn set_aside_count(&self) -> Result<u64, TableError> {
        let tree = self.0.set_aside.0;
        Ok(self.db().read(move |tx| tx.count(tree)).await?)
    }

    /// Of some rows behind `after`, forgets those that say nothing which this node's tables do not have, those that these supersede with
    /// certainty, and deletions. Returns where to go on. Only for a node whose tables are whole.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn forget_what_is_known(&self, after: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, TableError> {
        let page = self.set_aside_page(after, BATCH).await?;
        let next = page.last().filter(|_| page.len() == BATCH).map(SetAside::position);
        if page.is_empty() {
            return Ok(None);
        }
        let rules: BTreeMap<TableId, Arc<dyn Rules>> =
            self.0.tables.iter().map(|(table, local)| (*table, local.rules.clone())).collect();
        let sort_out = move |tx: &mut RowTransaction<'_, '_>| {
            let (mut known, mut superseded) = (Vec::new(), Vec::new());
            for aside in &page {
                let Some(rules) = rules.get(&aside.table).filter(|_| aside.reason != Reason::Damaged) else { continue };
                if rules.is_collectable(&aside.row).is_err() {
                    // Of another version: it stays for the operator.
                    continue;
                }
                let present = tx.get(aside.table, &aside.key)?;
                let is_known = match &present {
                    Some(present) => rules.merge(present, &aside.row)? == *present,
                    // Whoever missed it, among whole tables, has forgotten it.
                    None => rules.is_collectable(&aside.row)?,
                };
                if is_known {
                    known.push(aside.position());
                } else if rules.is_superseded(tx, &aside.row)? {
                    superseded.push(aside.clone());
                }
            }
            Ok::<_, TableError>((known, superseded))
        };
        let (known, superseded) = self.transact(sort_out).await?;
        if !known.is_empty() {
            self.forget_set_aside(known).await?;
        }
        for aside in superseded {
            self.forget_superseded(aside).await?;
        }
        Ok(next)
    }

    /// Lets go of a row that is superseded, and before it of what was set aside together with it and belongs to it alone: what is left
    /// after a crash is still found by its owner.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn forget_superseded(&self, aside: SetAside) -> Result<(), TableError> {
        let mut gone = Vec::new();
        self.forget_with_belongings(aside, &mut gone).await?;
        self.forget_set_aside(gone).await
    }

    /// Adds the positions to `gone`, which is carried out whenever it is long.
    fn forget_with_belongings<'a>(
        &'a self,
        owner: SetAside,
        gone: &'a mut Vec<Vec<u8>>,
    ) -> BoxFuture<'a, Result<(), TableError>> {
        Box::pin(async move {
            for belongings in self.0.table(owner.table)?.rules.belongings(&owner.row)? {
                let prefix = position(owner.at, owner.reason, Some(belongings.table), &belongings.key());
                let mut after = None;
                while let Some(theirs) = self.set_aside_under(prefix.clone(), after).await? {
                    after = Some(theirs.position());
                    self.forget_with_belongings(theirs, gone).await?;
                }
            }
            gone.push(owner.position());
            if gone.len() >= BATCH {
                self.forget_set_aside(std::mem::take(gone)).await?;
            }
            Ok(())
        })
    }

    /// The first row behind the position `after` whose position begins with `prefix`.
    async fn set_aside_under(&self, prefix: Vec<u8>, after: Option<Vec<u8>>) -> Result<Option<SetAside>, TableError> {
        let tree = self.0.set_aside.0;
        let read = move |tx: &Snapshot<'_>| {
            let from = after.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
            let mut found = None;
            tx.range(tree, (from, Bound::Unbounded), Direction::Forward, &mut |position, row| {
                if position.starts_with(&prefix)
                    && let Ok((row, _frame)) = rows::unseal(position, row)
                {
                    found = SetAside::decode(position, row);
                }
                ControlFlow::Break(())
            })?;
            Ok::<_, TableError>(found)
        };
        self.db().read(read).await
    }

    /// Takes over what versions that did not say when and why have set aside.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn adopt_older_set_aside(&self) -> Result<(), TableError> {
        let (older, tree) = (self.0.older_set_aside, self.0.set_aside);
        let adopt = move |tx: &mut Transaction<'_>| {
            let mut some = Vec::new();
            tx.range(older, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, row| {
                some.push((key.to_vec(), row.to_vec()));
                if some.len() < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            for (stored, row) in &some {
                if let Some((table, key)) = stored.split_first() {
                    tree.keep(tx, (Timestamp::ZERO, Reason::Unknown), TableId(*table), key, row)?;
                }
                tx.remove(older, stored)?;
            }
            Ok::<_, DbError>(some.len())
        };
        while self.db().write(adopt).await? > 0 {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use super::{Reason, SetAside};
    use crate::wire::TableId;

    #[test]
    fn what_is_set_aside_is_found_by_its_position_and_keeps_when_and_why() {
        for reason in [Reason::Left, Reason::Returned, Reason::Restored, Reason::Damaged, Reason::Unknown] {
            let aside =
                SetAside { at: Timestamp::from_millis(7), reason, table: TableId(3), key: b"key".to_vec(), row: b"row".to_vec() };
            assert_eq!(SetAside::decode(&aside.position(), b"row"), Some(aside.clone()));
            assert_eq!(aside.id().len(), 16);
        }
        assert_eq!(SetAside::decode(b"short", b"row"), None);
    }
}
