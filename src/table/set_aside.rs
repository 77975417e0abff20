//! Rows that this node has taken out of its tables without anybody having deleted them, kept for the operator.
//!
//! Must stay true: nothing of it is offered, read or counted by itself; only an operator's word brings a row back, or lets it go. What the
//! tables turn out to have anyway is forgotten.

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_types::Timestamp;
use garage_types::hash::blake2b;

use crate::error::TableError;
use crate::store::TableStore;
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
    /// Set aside by a version that did not say why.
    Unknown,
}

impl Reason {
    fn code(self) -> u8 {
        match self {
            Reason::Left => b'l',
            Reason::Returned => b'b',
            Reason::Restored => b'r',
            Reason::Unknown => b'u',
        }
    }

    fn of(code: u8) -> Self {
        match code {
            b'l' => Reason::Left,
            b'b' => Reason::Returned,
            b'r' => Reason::Restored,
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
        tx.insert(self.0, &position(at, reason, Some(table), key), row)
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
                page.extend(SetAside::decode(position, row));
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

    /// Of some rows behind `after`, forgets those that say nothing which this node's tables do not have. Returns where to go on.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn forget_what_is_known(&self, after: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, TableError> {
        let page = self.set_aside_page(after, BATCH).await?;
        let next = page.last().filter(|_| page.len() == BATCH).map(SetAside::position);
        let mut known = Vec::new();
        for aside in page {
            let Ok(local) = self.0.table(aside.table) else { continue };
            let (rules, rows, key) = (local.rules.clone(), local.rows, aside.key.clone());
            let present: Option<Vec<u8>> = self.db().read_at_once(move |tx| tx.get(rows, &key)).await?;
            if let Some(present) = present
                && rules.merge(&present, &aside.row)? == present
            {
                known.push(aside.position());
            }
        }
        if !known.is_empty() {
            self.forget_set_aside(known).await?;
        }
        Ok(next)
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
        for reason in [Reason::Left, Reason::Returned, Reason::Restored, Reason::Unknown] {
            let aside =
                SetAside { at: Timestamp::from_millis(7), reason, table: TableId(3), key: b"key".to_vec(), row: b"row".to_vec() };
            assert_eq!(SetAside::decode(&aside.position(), b"row"), Some(aside.clone()));
            assert_eq!(aside.id().len(), 16);
        }
        assert_eq!(SetAside::decode(b"short", b"row"), None);
    }
}
