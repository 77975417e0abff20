//! Emptying a range that this node does not own any more.
//!
//! Must stay true: a row goes only after every owner has been seen to hold it, or something that settles it, and only if it is still
//! the row they were asked about.

use garage_types::NodeId;
use garage_types::planted::{Bug, is_planted};
use serde_bytes::ByteBuf;

use super::plan::Part;
use super::session::{Moved, Progress, Surroundings, send_rows};
use super::wire::{Exchange, Exchanged, Named, REPLY_BYTES_MAX, Scope};
use crate::epochs::Slot;
use crate::error::TableError;
use crate::segments::KeyRange;
use crate::set_aside::Reason;
use crate::wire::TableId;

/// Rows handed over together.
const PAGE_ROWS: usize = 256;

/// One range on its way out.
pub struct Leave {
    around: Surroundings,
    table: TableId,
    owners: Vec<NodeId>,
    left: Option<KeyRange>,
    pub moved: Moved,
}

impl Leave {
    pub fn new(around: Surroundings, table: TableId, range: KeyRange, owners: Vec<NodeId>) -> Self {
        Leave { around, table, owners, left: Some(range), moved: Moved::default() }
    }

    /// Hands over one page.
    ///
    /// # Errors
    /// [`TableError`]: an owner could not be asked or told; the page stays.
    pub async fn step(&mut self) -> Result<Progress, TableError> {
        let Some(range) = self.left.take() else { return Ok(Progress::Finished) };
        let page = self.around.store.named_page(self.table, range.clone(), PAGE_ROWS).await?;
        if !page.named.is_empty() {
            for owner in self.owners.clone() {
                self.hand_over(owner, &range, &page.named).await?;
            }
            self.moved.dropped += self.around.store.drop_rows(self.table, page.named).await?;
        }
        self.left = page.until.map(|from| KeyRange { from, to: range.to });
        Ok(if self.left.is_some() { Progress::More } else { Progress::Finished })
    }

    async fn hand_over(&mut self, owner: NodeId, range: &KeyRange, named: &[Named]) -> Result<(), TableError> {
        let mut named = named;
        while !named.is_empty() {
            let exchange = Exchange {
                layout: self.around.layout,
                table: self.table,
                range: range.clone().into(),
                named: named.to_vec(),
                scope: Scope::Callers,
            };
            let Exchanged { epoch, rows, missing, different, until } = self.around.call(owner, exchange).await?;
            let slot = Slot::of_key(&range.from);
            let own_epoch = self.around.store.epoch(self.table, slot).await?;
            self.around.store.absorb(self.table, slot, rows, epoch.max(own_epoch), Part::Leaver).await?;
            if own_epoch < epoch && is_planted(Bug::ForgottenRowsOffered) {
                self.send(owner, missing, Some(epoch)).await?;
                self.send(owner, different, Some(epoch)).await?;
            } else if own_epoch < epoch {
                // Owners have forgotten deletions since this node was one of them: what they lack may be what was deleted.
                self.moved.set_aside += self.around.store.set_aside(self.table, missing, Reason::Left).await?;
                self.send(owner, different, Some(epoch)).await?;
            } else {
                self.send(owner, missing, None).await?;
                self.send(owner, different, None).await?;
            }
            named = match until {
                Some(until) => &named[named.partition_point(|row| row.key < until)..],
                None => &[],
            };
        }
        Ok(())
    }

    async fn send(&mut self, owner: NodeId, mut keys: Vec<ByteBuf>, epoch: Option<u64>) -> Result<(), TableError> {
        while !keys.is_empty() {
            let read = self.around.store.rows_now(self.table, std::mem::take(&mut keys), REPLY_BYTES_MAX).await?;
            keys = read.left;
            self.moved.sent += read.rows.len() as u64;
            send_rows(&self.around, owner, self.table, read.rows, epoch.unwrap_or(read.epoch)).await?;
        }
        Ok(())
    }
}
