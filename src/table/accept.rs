//! Declaring a rebuilding node's own database whole, because nobody else has anything better: every database was lost or restored at once.
//!
//! The rows that the rebuilding set aside come back with the epochs that they were under. From then on the node serves, as one that may
//! not have held every tombstone that others have collected: what it has and an owner at a later epoch lacks is set aside
//! again. Once it has been compared with every owner that is there, it is a node like any other.
//!
//! Must stay true: once begun, an acceptance is finished before anything is served, also after a crash.

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction, Snapshot, Transaction};
use garage_types::{Timestamp, chain};

use crate::epochs::Slot;
use crate::error::TableError;
use crate::set_aside::{Reason, SetAside, position};
use crate::starts::{ACCEPTED, ACCEPTING, REBUILDING, SET_ASIDE_AT, first_rows};
use crate::store::TableStore;
use crate::sync::session::entry;
use crate::sync::wire::KeyedRow;
use crate::wire::{EPOCH_OF_OWNER, TableId, Verdict};

/// Rows brought back in one transaction.
const BATCH: usize = 500;

impl TableStore {
    /// Brings back what the present rebuilding set aside, and records that this node is whole. Returns how many rows came back.
    ///
    /// # Errors
    /// [`TableError`]; to be called again then, which the next start does.
    pub async fn accept_database(&self) -> Result<u64, TableError> {
        let state = self.0.state;
        self.db().write::<_, DbError>(move |tx| tx.insert(state, ACCEPTING, &[1])).await?;
        self.bring_epochs_back().await?;
        let mut brought_back = 0;
        if let Some(at) = self.set_aside_at().await? {
            while let Some(page) = Some(self.restored_page(at).await?).filter(|page| !page.is_empty()) {
                brought_back += page.len() as u64;
                self.bring_back(page).await?;
            }
        }
        let epochs = self.0.epochs_aside;
        let record = move |tx: &mut Transaction<'_>| {
            for (key, _epoch) in first_rows(tx, epochs, usize::MAX)? {
                tx.remove(epochs, &key)?;
            }
            for gone in [REBUILDING, SET_ASIDE_AT, ACCEPTING] {
                tx.remove(state, gone)?;
            }
            tx.insert(state, ACCEPTED, &[1])
        };
        self.db().write::<_, DbError>(record).await?;
        Ok(brought_back)
    }

    /// Whether an acceptance was begun and has not ended.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn is_accepting(&self) -> Result<bool, TableError> {
        let state = self.0.state;
        Ok(self.db().read(move |tx: &Snapshot<'_>| tx.get(state, ACCEPTING)).await?.is_some())
    }

    /// Records that an accepted database has been compared with the others'.
    ///
    /// # Errors
    /// The metadata engine's.
    pub(crate) async fn record_settled(&self) -> Result<(), TableError> {
        let state = self.0.state;
        Ok(self.db().write(move |tx| tx.remove(state, ACCEPTED)).await?)
    }

    /// How many rows the present rebuilding set aside: what [`Self::accept_database`] would bring back.
    ///
    /// # Errors
    /// The metadata engine's.
    pub async fn rows_to_bring_back(&self) -> Result<u64, TableError> {
        let Some(at) = self.set_aside_at().await? else { return Ok(0) };
        let tree = self.0.set_aside.0;
        let read = move |tx: &Snapshot<'_>| {
            let mut count = 0;
            let from = position(Timestamp::from_millis(at), Reason::Restored, None, &[]);
            tx.range(tree, (Bound::Included(from.as_slice()), Bound::Unbounded), Direction::Forward, &mut |position, _row| {
                if !position.starts_with(&from) {
                    return ControlFlow::Break(());
                }
                count += 1;
                ControlFlow::Continue(())
            })?;
            Ok::<_, DbError>(count)
        };
        Ok(self.db().read(read).await?)
    }

    /// Milliseconds since 1970 when the present rebuilding set rows aside.
    async fn set_aside_at(&self) -> Result<Option<u64>, TableError> {
        let state = self.0.state;
        let at: Option<Vec<u8>> = self.db().read(move |tx: &Snapshot<'_>| tx.get(state, SET_ASIDE_AT)).await?;
        at.map(|bytes| Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| TableError::DamagedState)?))).transpose()
    }

    async fn restored_page(&self, at: u64) -> Result<Vec<SetAside>, TableError> {
        let at = Timestamp::from_millis(at);
        let page = self.set_aside_page(Some(position(at, Reason::Restored, None, &[])), BATCH).await?;
        Ok(page.into_iter().take_while(|aside| (aside.at, aside.reason) == (at, Reason::Restored)).collect())
    }

    async fn bring_back(&self, page: Vec<SetAside>) -> Result<(), TableError> {
        let (kept, tree) = (self.0.set_aside, self.0.set_aside.0);
        let (mut entries, mut unreadable) = (Vec::with_capacity(page.len()), Vec::new());
        for aside in page {
            let position = aside.position();
            if let Err(error) = self.0.table(aside.table).and_then(|local| local.rules.is_collectable(&aside.row)) {
                tracing::error!(row = aside.id(), error = %chain(&error), "a row cannot be read and is not brought back: it stays set aside");
                unreadable.push(aside);
                continue;
            }
            let row = KeyedRow { key: aside.key.into(), row: aside.row.into() };
            entries.push((position, entry(aside.table, row, EPOCH_OF_OWNER)?));
        }
        self.transact(move |tx| {
            for aside in &unreadable {
                kept.keep(tx.raw(), (aside.at, Reason::Unknown), aside.table, &aside.key, &aside.row)?;
                tx.raw().remove(tree, &aside.position())?;
            }
            for (position, entry) in &entries {
                match tx.apply(entry)? {
                    Verdict::Won => tx.raw().remove(tree, position)?,
                    verdict => unreachable!("copies are merged, never refused, but the answer was {verdict:?}"),
                }
            }
            Ok::<_, TableError>(())
        })
        .await
    }

    async fn bring_epochs_back(&self) -> Result<(), TableError> {
        let (aside, epochs) = (self.0.epochs_aside, self.0.epochs);
        let raised = self
            .db()
            .write(move |tx| {
                let mut raised = Vec::new();
                for (key, epoch) in first_rows(tx, aside, usize::MAX)? {
                    let (Ok([table, slot]), Ok(epoch)) = (<[u8; 2]>::try_from(key), <[u8; 8]>::try_from(epoch)) else {
                        return Err(TableError::DamagedState);
                    };
                    let (table, slot, epoch) = (TableId(table), Slot(slot), u64::from_be_bytes(epoch));
                    epochs.raise(tx, table, slot, epoch)?;
                    raised.push((table, slot, epoch));
                }
                Ok(raised)
            })
            .await?;
        for (table, slot, epoch) in raised {
            self.learn_epoch(table, slot, epoch);
        }
        Ok(())
    }
}
