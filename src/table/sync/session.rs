//! One range of this node and of one other, brought together step by step.
//!
//! Must stay true: rows are taken in by merging, with all their effects; what this node sends is stamped with the epoch that was in
//! force here when it was read; rows that may be left over from an earlier time, and that a collection may have forgotten elsewhere,
//! are set aside instead of being offered.

use garage_rpc::cluster::Cluster;
use garage_rpc::endpoint::Message;
use garage_rpc::error::{ErrorCode, RpcError};
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Placement};
use serde_bytes::ByteBuf;

use super::plan::Part;
use super::wire::{AskDigests, Exchange, Exchanged, KeyedRow, Named, PIECES_MAX, REPLY_BYTES_MAX, Scope};
use crate::epochs::Slot;
use crate::error::TableError;
use crate::segments::KeyRange;
use crate::set_aside::Reason;
use crate::store::TableStore;
use crate::wire::{Entry, Mode, TableId, Verdict, Write};

/// Ranges with at most this many rows on both sides are exchanged without being cut further.
const LEAF_ROWS: u64 = 1024;
/// Rows named in one exchange.
const PAGE_ROWS: usize = 512;
/// Rows sent in one transaction.
const SENT_AT_ONCE: usize = 256;

/// What a session has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    pub received: u64,
    pub sent: u64,
    pub set_aside: u64,
    /// Rows that went from this node because every owner has them.
    pub dropped: u64,
}

impl Moved {
    pub fn add(&mut self, other: Moved) {
        self.received += other.received;
        self.sent += other.sent;
        self.set_aside += other.set_aside;
        self.dropped += other.dropped;
    }
}

/// What a session works with.
#[derive(Clone)]
pub struct Surroundings {
    pub store: TableStore,
    pub cluster: Cluster,
    /// The oldest layout version that was live when the round was planned. A peer that has retired it refuses: what this node took
    /// itself for then may be what it is no longer, and its rows may be what the others have forgotten since.
    pub layout: u64,
}

/// A range, as one node compares it with another.
pub struct Session {
    around: Surroundings,
    table: TableId,
    peer: NodeId,
    part: Part,
    /// Ranges still to be compared; the last is next.
    left: Vec<Task>,
    /// The newest epoch that the other was at.
    pub epoch_seen: u64,
    pub moved: Moved,
}

enum Task {
    Compare(KeyRange),
    Exchange(KeyRange),
}

/// Whether a session has more to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    More,
    Finished,
}

impl Surroundings {
    pub(super) async fn call<R: garage_rpc::endpoint::Request>(&self, node: NodeId, request: R) -> Result<R::Reply, TableError> {
        let timeout = self.cluster.timeouts().bulk;
        let reply = self.cluster.mesh().call(node, Message::from(request), timeout).await;
        reply.map(|reply| reply.body).map_err(|source| TableError::Peer { node, source })
    }
}

impl Session {
    /// For a range whose digests are known to differ.
    pub fn new(around: Surroundings, table: TableId, range: KeyRange, peer: NodeId, part: Part) -> Self {
        Session { around, table, peer, part, left: vec![Task::Compare(range)], epoch_seen: 0, moved: Moved::default() }
    }

    /// Does one call's worth of work.
    ///
    /// # Errors
    /// [`TableError`]; the range counts as not compared then.
    pub async fn step(&mut self) -> Result<Progress, TableError> {
        match self.left.pop() {
            None => return Ok(Progress::Finished),
            Some(Task::Compare(range)) => self.compare(range).await?,
            Some(Task::Exchange(range)) => {
                if let Some(rest) = self.exchange(range).await? {
                    self.left.push(Task::Exchange(rest));
                }
            }
        }
        Ok(if self.left.is_empty() { Progress::Finished } else { Progress::More })
    }

    /// Finds the pieces of a range that differ.
    async fn compare(&mut self, range: KeyRange) -> Result<(), TableError> {
        let own = self.around.store.range_digest(self.table, range.clone()).await?;
        if own.rows == 0 {
            self.left.push(Task::Exchange(range));
            return Ok(());
        }
        let ask =
            AskDigests { layout: self.around.layout, table: self.table, ranges: vec![range.clone().into()], pieces: PIECES_MAX };
        let reply = self.around.call(self.peer, ask).await?;
        let floors = reply.floors.into_iter().map(|floor| (Slot::of_key(&range.from), floor)).collect();
        self.around.store.raise_floors(self.table, floors).await?;
        let Some(pieces) = reply.ranges.into_iter().next().filter(|pieces| !pieces.is_empty()) else {
            let source = RpcError::new(ErrorCode::Internal, "a range was asked for, and its digest is missing from the reply");
            return Err(TableError::Peer { node: self.peer, source });
        };
        let only_piece = pieces.len() <= 1;
        let mut from = range.from;
        for piece in pieces {
            let end = piece.to.map(ByteBuf::into_vec);
            let part = KeyRange { from: std::mem::replace(&mut from, end.clone().unwrap_or_default()), to: end };
            let own = self.around.store.range_digest(self.table, part.clone()).await?;
            if own != piece.digest {
                let small = own.rows.saturating_add(piece.digest.rows) <= LEAF_ROWS;
                self.left.push(if small || only_piece { Task::Exchange(part) } else { Task::Compare(part) });
            }
        }
        Ok(())
    }

    /// Exchanges the first page of a range; returns what is left of it.
    async fn exchange(&mut self, range: KeyRange) -> Result<Option<KeyRange>, TableError> {
        let page = self.around.store.named_page(self.table, range.clone(), PAGE_ROWS).await?;
        let end = page.until.clone().or_else(|| range.to.clone());
        let asked = KeyRange { from: range.from.clone(), to: end };
        let exchange = Exchange {
            layout: self.around.layout,
            table: self.table,
            range: asked.into(),
            named: page.named,
            scope: Scope::Both,
        };
        let mut reply = self.around.call(self.peer, exchange).await?;
        self.epoch_seen = self.epoch_seen.max(reply.epoch);
        let until = reply.until.take().map(ByteBuf::into_vec);
        self.take_in(&mut reply, &range.from).await?;
        self.answer_wants(reply, &range.from).await?;
        let rest = until.or(page.until);
        Ok(rest.map(|from| KeyRange { from, to: range.to }))
    }

    async fn take_in(&mut self, reply: &mut Exchanged, from: &[u8]) -> Result<(), TableError> {
        let rows = std::mem::take(&mut reply.rows);
        let count = rows.len() as u64;
        self.around.store.absorb(self.table, Slot::of_key(from), rows, reply.epoch, self.part).await?;
        self.moved.received += count;
        Ok(())
    }

    async fn answer_wants(&mut self, reply: Exchanged, from: &[u8]) -> Result<(), TableError> {
        let Exchanged { epoch, missing, different, .. } = reply;
        let own_epoch = self.around.store.epoch(self.table, Slot::of_key(from)).await?;
        match self.part {
            Part::Rebuilder => Ok(()),
            Part::Returner | Part::Leaver if own_epoch < epoch && !is_planted(Bug::ForgottenRowsOffered) => {
                let reason = if self.part == Part::Leaver { Reason::Left } else { Reason::Returned };
                let set_aside = self.around.store.set_aside(self.table, missing, reason).await?;
                self.moved.set_aside += set_aside;
                // What the other has under the same key cannot have been forgotten: the merged rows are as new as its own.
                self.send(different, Some(epoch)).await
            }
            Part::Owner | Part::Newcomer | Part::Returner | Part::Leaver => {
                let epoch = is_planted(Bug::ForgottenRowsOffered).then_some(epoch.max(own_epoch));
                self.send(missing, epoch).await?;
                self.send(different, epoch).await
            }
        }
    }

    /// Sends rows as they are now, under the epoch they are read with, or under `epoch`.
    async fn send(&mut self, keys: Vec<ByteBuf>, epoch: Option<u64>) -> Result<(), TableError> {
        for keys in keys.chunks(SENT_AT_ONCE) {
            let mut left = keys.to_vec();
            while !left.is_empty() {
                let read = self.around.store.rows_now(self.table, std::mem::take(&mut left), REPLY_BYTES_MAX).await?;
                left = read.left;
                let count = read.rows.len() as u64;
                let epoch = epoch.unwrap_or(read.epoch);
                send_rows(&self.around, self.peer, self.table, read.rows, epoch).await?;
                self.moved.sent += count;
            }
        }
        Ok(())
    }
}

/// Sends copies of rows to one node, in one transaction there.
pub(super) async fn send_rows(
    around: &Surroundings,
    peer: NodeId,
    table: TableId,
    rows: Vec<KeyedRow>,
    epoch: u64,
) -> Result<(), TableError> {
    if rows.is_empty() {
        return Ok(());
    }
    let entries = rows.into_iter().map(|row| entry(table, row, epoch)).collect::<Result<_, _>>()?;
    match around.call(peer, Write { layout: around.layout, entries }).await? {
        Verdict::Won => Ok(()),
        verdict => {
            let source = RpcError::new(ErrorCode::Internal, format!("copies of rows were answered {verdict:?}"));
            Err(TableError::Peer { node: peer, source })
        }
    }
}

/// A stored row as a copy on its way.
pub(crate) fn entry(table: TableId, row: KeyedRow, epoch: u64) -> Result<Entry, TableError> {
    let (placement, sort_key) = row.key.split_first_chunk::<32>().ok_or(TableError::ShortKey { table })?;
    Ok(Entry {
        table,
        placement: Placement::from_bytes(*placement),
        sort_key: ByteBuf::from(sort_key.to_vec()),
        row: row.row,
        mode: Mode::Replicate,
        condition: None,
        epoch,
        is_compared: true,
    })
}

/// Rows of this node by name.
pub struct Page {
    pub named: Vec<Named>,
    /// Where the next page begins; `None` at the range's end.
    pub until: Option<Vec<u8>>,
}

/// Rows read together with the epoch in force.
pub struct RowsNow {
    pub epoch: u64,
    pub rows: Vec<KeyedRow>,
    /// Keys not read yet, because the bytes were enough.
    pub left: Vec<ByteBuf>,
}
