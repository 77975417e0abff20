//! The queue of cascaded deletions: rows that follow from a change here and belong to other owners.
//!
//! Rows are queued in the transaction of the change that causes them, sent to their owners in the background and taken off once a
//! write quorum has them. Deletions only: losing none of them matters for space, never for data.

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction};
use garage_types::codec::{self, Format};
use serde::{Deserialize, Serialize};

use crate::error::TableError;
use crate::rows::{self, Unreadable};
use crate::store::TableStore;
use crate::wire::Entry;

/// What errors call the queue.
const QUEUE: &str = "queue";

#[derive(Serialize, Deserialize)]
struct Queued {
    #[serde(rename = "e")]
    entry: Entry,
}

impl Format for Queued {
    const TAG: &'static str = "que1";
}

/// One queued deletion.
#[derive(Clone, Debug)]
pub struct Item {
    key: Vec<u8>,
    stored: Vec<u8>,
    pub entry: Entry,
}

pub(crate) fn key_of(entry: &Entry) -> Vec<u8> {
    let mut key = vec![entry.table.0];
    key.extend_from_slice(entry.placement.as_bytes());
    key.extend_from_slice(&entry.sort_key);
    key
}

pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    codec::encode(&Queued { entry: entry.clone() })
}

impl TableStore {
    /// The first `limit` queued deletions behind `after`.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn queue_peek(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Vec<Item>, TableError> {
        let tree = self.queue_tree();
        let stored = self
            .db()
            .read(move |tx| {
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let mut stored = Vec::new();
                tx.range(tree, (from, Bound::Unbounded), Direction::Forward, &mut |key, value| {
                    stored.push((key.to_vec(), value.to_vec()));
                    if stored.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                Ok::<_, DbError>(stored)
            })
            .await?;
        let decode = |(key, stored): (Vec<u8>, Vec<u8>)| match rows::unseal(&key, &stored) {
            Ok((row, _frame)) => {
                let queued: Queued = codec::decode(row).map_err(|source| TableError::Row { table: QUEUE, source })?;
                Ok(Some(Item { key, stored, entry: queued.entry }))
            }
            Err(Unreadable::Newer { version }) => Err(TableError::NewerRow { table: QUEUE, version }),
            Err(Unreadable::Mismatch) => {
                // It keeps its place. What it would have released costs space; what it says now might be another row's deletion.
                tracing::error!(key = %key.escape_ascii(), "a queued deletion does not match its checksum and is not carried out");
                Ok(None)
            }
        };
        stored.into_iter().filter_map(|stored| decode(stored).transpose()).collect()
    }

    /// Takes deletions off the queue, except those queued anew with another content meanwhile.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn queue_remove(&self, items: Vec<Item>) -> Result<(), TableError> {
        let tree = self.queue_tree();
        self.db()
            .write(move |tx| {
                for item in &items {
                    if tx.get(tree, &item.key)?.as_deref() == Some(item.stored.as_slice()) {
                        tx.remove(tree, &item.key)?;
                    }
                }
                Ok::<_, DbError>(())
            })
            .await?;
        Ok(())
    }

    /// How many deletions wait to be sent.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn queue_len(&self) -> Result<u64, TableError> {
        let tree = self.queue_tree();
        Ok(self.db().read(move |tx| tx.count(tree)).await?)
    }

    /// Waits until something may have been queued.
    pub async fn queue_changed(&self) {
        self.queued().await;
    }
}

impl Item {
    /// Where to continue behind this item.
    pub fn position(&self) -> Vec<u8> {
        self.key.clone()
    }
}
