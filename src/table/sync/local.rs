//! What a session does to this node's own rows.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use garage_db::{Direction, Snapshot, Transaction, Tree};
use garage_rpc::layout::ClusterLayout;
use garage_types::{NodeId, Timestamp};
use serde_bytes::ByteBuf;

use super::plan::{Part, slices_of_others};
use super::session::{Page, RowsNow, entry};
use super::wire::{KeyedRow, Named};
use crate::digest::{RowDigest, SetDigest};
use crate::epochs::Slot;
use crate::error::TableError;
use crate::schema::Replication;
use crate::segments::{KeyRange, Segments};
use crate::set_aside::Reason;
use crate::store::TableStore;
use crate::transaction::Dropped;
use crate::wire::TableId;

/// Rows set aside in one transaction.
const SET_ASIDE_AT_ONCE: usize = 500;

impl TableStore {
    pub(crate) fn segments(&self, table: TableId) -> Result<Segments, TableError> {
        Ok(self.0.table(table)?.segments(table, self.0.digests))
    }

    /// The digest of this node's rows in a range.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn range_digest(&self, table: TableId, range: KeyRange) -> Result<SetDigest, TableError> {
        let segments = self.segments(table)?;
        self.db().read(move |tx| segments.digest(tx, &range)).await
    }

    /// The digests of this node's rows in several ranges.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn range_digests(&self, table: TableId, ranges: Vec<KeyRange>) -> Result<Vec<SetDigest>, TableError> {
        let segments = self.segments(table)?;
        self.db().read(move |tx| ranges.iter().map(|range| segments.digest(tx, range)).collect()).await
    }

    pub(crate) async fn named_page(&self, table: TableId, range: KeyRange, limit: usize) -> Result<Page, TableError> {
        let rows = self.0.table(table)?.rows.clone();
        let read = move |tx: &Snapshot<'_>| {
            let mut page = Page { named: Vec::new(), until: None };
            let bounds = (Bound::Included(range.from.as_slice()), range.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
            rows.range(tx, bounds, Direction::Forward, &mut |key, row| {
                if page.named.len() >= limit {
                    page.until = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                page.named.push(Named { key: ByteBuf::from(key.to_vec()), digest: RowDigest::of(key, row) });
                ControlFlow::Continue(())
            })?;
            Ok(page)
        };
        self.db().read(read).await
    }

    /// Merges rows that another owner sent under `epoch` into this node's.
    ///
    /// # Errors
    /// [`TableError::StaleEpoch`]: this node has moved on meanwhile; nothing was merged.
    pub(crate) async fn absorb(
        &self,
        table: TableId,
        slot: Slot,
        rows: Vec<KeyedRow>,
        epoch: u64,
        part: Part,
    ) -> Result<(), TableError> {
        let own = self.epoch(table, slot).await?;
        if rows.is_empty() && epoch <= own {
            return Ok(());
        }
        let entries = rows.into_iter().map(|row| entry(table, row, epoch)).collect::<Result<Vec<_>, _>>()?;
        let epochs = self.0.epochs;
        self.transact(move |tx| {
            let current = epochs.get(&*tx.raw(), table, slot)?;
            if epoch < current {
                return Err(TableError::StaleEpoch { caller: epoch, current });
            }
            if follows_at_once(part) {
                epochs.raise(tx.raw(), table, slot, epoch)?;
            }
            for entry in &entries {
                tx.apply(entry)?;
            }
            Ok(())
        })
        .await?;
        if follows_at_once(part) {
            self.learn_epoch(table, slot, epoch);
        }
        Ok(())
    }

    /// Moves this node to an epoch that the other owners are at.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn raise_epoch(&self, table: TableId, slot: Slot, epoch: u64) -> Result<(), TableError> {
        self.raise(table, slot, epoch, Timestamp::ZERO).await
    }

    /// Moves this node to an epoch, and to the floor that goes with it.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn raise(&self, table: TableId, slot: Slot, epoch: u64, floor: Timestamp) -> Result<(), TableError> {
        let (epochs, floors) = (self.0.epochs, self.0.floors);
        let raise = move |tx: &mut Transaction<'_>| {
            floors.raise(tx, table, slot, floor)?;
            epochs.raise(tx, table, slot, epoch)
        };
        self.db().write(raise).await?;
        self.learn_epoch(table, slot, epoch);
        Ok(())
    }

    /// Takes over the floors of another owner's slots where they are higher than this node's.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn raise_floors(&self, table: TableId, slots: Vec<(Slot, Timestamp)>) -> Result<(), TableError> {
        let floors = self.0.floors;
        let lower = move |tx: &Snapshot<'_>| {
            let mut lower = Vec::new();
            for (slot, floor) in slots {
                if floors.get(tx, table, slot)? < floor {
                    lower.push((slot, floor));
                }
            }
            Ok::<_, TableError>(lower)
        };
        let lower = self.db().read(lower).await?;
        if lower.is_empty() {
            return Ok(());
        }
        self.db().write(move |tx| lower.iter().try_for_each(|(slot, floor)| floors.raise(tx, table, *slot, *floor))).await
    }

    /// Keeps what another owner said that goes with its rows.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn keep_notes(&self, table: TableId, notes: Vec<ByteBuf>) -> Result<(), TableError> {
        if notes.is_empty() {
            return Ok(());
        }
        let rules = self.0.table(table)?.rules.clone();
        self.transact_beside(move |tx| rules.keep_notes(tx, &notes)).await
    }

    pub(crate) async fn rows_now(&self, table: TableId, keys: Vec<ByteBuf>, bytes_max: usize) -> Result<RowsNow, TableError> {
        let Some(first) = keys.first() else { return Ok(RowsNow { epoch: 0, rows: Vec::new(), left: Vec::new() }) };
        let (rows, epochs, slot) = (self.0.table(table)?.rows.clone(), self.0.epochs, Slot::of_key(first));
        let read = move |tx: &Snapshot<'_>| {
            let mut now = RowsNow { epoch: epochs.get(tx, table, slot)?, rows: Vec::new(), left: Vec::new() };
            let mut bytes = 0;
            let mut keys = keys.into_iter();
            for key in keys.by_ref() {
                if let Some(row) = rows.get(tx, &key)? {
                    bytes += key.len() + row.len();
                    now.rows.push(KeyedRow { key, row: ByteBuf::from(row) });
                }
                if bytes >= bytes_max {
                    break;
                }
            }
            now.left = keys.collect();
            Ok(now)
        };
        self.db().read(read).await
    }

    /// Takes rows out of the table without anything following from it elsewhere, and keeps them in a tree of their own for the operator.
    /// Tombstones just go. Returns how many were kept.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn set_aside(&self, table: TableId, keys: Vec<ByteBuf>, reason: Reason) -> Result<u64, TableError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let (rules, aside) = (self.0.table(table)?.rules.clone(), self.0.set_aside);
        self.transact(move |tx| {
            let mut kept = 0;
            for key in &keys {
                let Some(row) = tx.get(table, key)? else { continue };
                if !rules.is_collectable(&row)? {
                    let now = tx.now();
                    aside.keep(tx.raw(), (now, reason), table, key, &row)?;
                    kept += 1;
                }
                tx.drop_row(table, key, RowDigest::of(key, &row))?;
            }
            Ok(kept)
        })
        .await
    }

    /// Sets aside every row of the sharded tables in these slices; see [`Self::set_aside`].
    ///
    /// # Errors
    /// [`TableError`]; what was set aside before stays so.
    pub(crate) async fn set_slices_aside(&self, slices: Vec<KeyRange>, reason: Reason) -> Result<u64, TableError> {
        let mut kept = 0;
        for (table, range) in self.occupied(slices).await? {
            loop {
                let page = self.named_page(table, range.clone(), SET_ASIDE_AT_ONCE).await?;
                let is_last = page.until.is_none();
                kept += self.set_aside(table, page.named.into_iter().map(|named| named.key).collect(), reason).await?;
                if is_last {
                    break;
                }
            }
        }
        Ok(kept)
    }

    /// The slices among these in which there are rows, by sharded table.
    async fn occupied(&self, slices: Vec<KeyRange>) -> Result<Vec<(TableId, KeyRange)>, TableError> {
        let sharded = self.0.tables.iter().filter(|(_, local)| local.rules.replication() == Replication::Sharded);
        let trees: Vec<(TableId, Tree)> = sharded.map(|(table, local)| (*table, local.rows.raw())).collect();
        let read = move |tx: &Snapshot<'_>| {
            let mut occupied = Vec::new();
            for (table, tree) in &trees {
                for slice in &slices {
                    tx.range(*tree, slice.bounds(), Direction::Forward, &mut |_key, _row| {
                        occupied.push((*table, slice.clone()));
                        ControlFlow::Break(())
                    })?;
                }
            }
            Ok(occupied)
        };
        self.db().read(read).await
    }

    /// Takes off this node the rows that are still as named. Returns how many went.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn drop_rows(&self, table: TableId, rows: Vec<Named>) -> Result<u64, TableError> {
        self.transact(move |tx| {
            let mut gone = 0;
            for named in &rows {
                gone += u64::from(tx.drop_row(table, &named.key, named.digest)? == Dropped::Gone);
            }
            Ok(gone)
        })
        .await
    }

    /// In how many partitions this node has rows that belong to other nodes.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn partitions_to_hand_over(&self, layout: &ClusterLayout, me: NodeId) -> Result<u64, TableError> {
        let slices = slices_of_others(layout, me);
        let sharded = self.0.tables.values().filter(|local| local.rules.replication() == Replication::Sharded);
        let trees: Vec<Tree> = sharded.map(|local| local.rows.raw()).collect();
        let read = move |tx: &Snapshot<'_>| {
            let mut with_rows = BTreeSet::new();
            for (partition, range) in &slices {
                for tree in &trees {
                    tx.range(*tree, range.bounds(), Direction::Forward, &mut |_key, _row| {
                        with_rows.insert(*partition);
                        ControlFlow::Break(())
                    })?;
                }
            }
            Ok(with_rows.len() as u64)
        };
        self.db().read(read).await
    }
}

/// Whether a node may move to another's epoch before its own rows are sorted out: it has held every tombstone collected so far, or
/// has no row from before.
fn follows_at_once(part: Part) -> bool {
    match part {
        Part::Owner | Part::Rebuilder | Part::Newcomer => true,
        Part::Returner | Part::Leaver => false,
    }
}
