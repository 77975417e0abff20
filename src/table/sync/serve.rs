//! The answering side of a comparison: reads only.
//!
//! Must stay true: the epoch in a reply was in force when its rows were read, so it is read in the same snapshot, and so are the
//! notes that go with the rows; a node that is rebuilding offers nothing.

use std::ops::{Bound, ControlFlow};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{Direction, Snapshot};
use garage_rpc::endpoint::{Caller, Handler, Message};
use garage_rpc::error::{ErrorCode, RpcError};
use garage_types::planted::{Bug, is_planted};
use serde_bytes::ByteBuf;

use super::wire::{
    AskDigests, Digests, Exchange, Exchanged, KeyedRow, Named, PIECES_MAX, RANGES_MAX, REPLY_BYTES_MAX, ROWS_NAMED_MAX, Scope,
    WirePiece,
};
use crate::digest::RowDigest;
use crate::epochs::Slot;
use crate::error::TableError;
use crate::rows::RowTree;
use crate::segments::KeyRange;
use crate::store::TableStore;

impl TableStore {
    /// As [`TableStore::check_whole`], for comparisons.
    fn check_offers(&self) -> Result<(), TableError> {
        if is_planted(Bug::RebuildingOffersRows) { Ok(()) } else { self.check_whole() }
    }

    async fn digests(&self, request: AskDigests) -> Result<Digests, TableError> {
        self.check_layout(request.layout)?;
        self.check_offers()?;
        let segments = self.segments(request.table)?;
        let (epochs, floors) = (self.0.epochs, self.0.floors);
        let rules = self.0.table(request.table)?.rules.clone();
        let pieces = u64::from(request.pieces.clamp(1, PIECES_MAX));
        let read = move |tx: &Snapshot<'_>| {
            let mut ranges = Vec::with_capacity(request.ranges.len());
            let mut at = Vec::with_capacity(request.ranges.len());
            let mut above = Vec::with_capacity(request.ranges.len());
            let mut notes = Vec::new();
            for range in request.ranges {
                let slot = Slot::of_key(&range.from);
                at.push(epochs.get(tx, request.table, slot)?);
                above.push(floors.get(tx, request.table, slot)?);
                let range = range.into();
                notes.extend(rules.notes(tx, &range)?);
                let cut = segments.pieces(tx, &range, pieces)?;
                ranges.push(
                    cut.into_iter().map(|piece| WirePiece { to: piece.to.map(Into::into), digest: piece.digest }).collect(),
                );
            }
            Ok::<_, TableError>(Digests { ranges, epochs: at, floors: above, notes })
        };
        self.db().read(read).await
    }

    async fn exchange(&self, request: Exchange) -> Result<Exchanged, TableError> {
        self.check_layout(request.layout)?;
        self.check_offers()?;
        let rows = self.0.table(request.table)?.rows.clone();
        let epochs = self.0.epochs;
        let read = move |tx: &Snapshot<'_>| {
            let epoch = epochs.get(tx, request.table, Slot::of_key(&request.range.from))?;
            let mut exchanged = compare(tx, &rows, &request)?;
            exchanged.epoch = epoch;
            Ok::<_, TableError>(exchanged)
        };
        self.db().read(read).await
    }
}

fn compare(tx: &Snapshot<'_>, rows: &RowTree, request: &Exchange) -> Result<Exchanged, TableError> {
    let mut comparison = Comparison {
        named: request.named.as_slice(),
        scope: request.scope,
        bytes: 0,
        reply: Exchanged { epoch: 0, rows: Vec::new(), missing: Vec::new(), different: Vec::new(), until: None },
    };
    match request.scope {
        Scope::Both => {
            let range = KeyRange::from(request.range.clone());
            let bounds = (Bound::Included(range.from.as_slice()), range.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
            rows.range(tx, bounds, Direction::Forward, &mut |key, row| comparison.row(key, row))?;
        }
        Scope::Callers => {
            for named in &request.named {
                let found = rows.get(tx, &named.key)?;
                if let Some(row) = found
                    && comparison.row(&named.key, &row).is_break()
                {
                    break;
                }
            }
        }
    }
    Ok(comparison.end())
}

/// Goes through two sorted sequences: the rows named by the caller, and this node's.
struct Comparison<'c> {
    named: &'c [Named],
    scope: Scope,
    bytes: usize,
    reply: Exchanged,
}

impl Comparison<'_> {
    fn row(&mut self, key: &[u8], row: &[u8]) -> ControlFlow<()> {
        let before = self.named.partition_point(|named| named.key.as_slice() < key);
        let (missing, rest) = self.named.split_at(before);
        self.reply.missing.extend(missing.iter().map(|named| named.key.clone()));
        self.named = rest;
        if self.bytes >= REPLY_BYTES_MAX {
            self.reply.until = Some(ByteBuf::from(key.to_vec()));
            return ControlFlow::Break(());
        }
        match self.named.split_first() {
            Some((same, rest)) if same.key.as_slice() == key => {
                self.named = rest;
                if same.digest != RowDigest::of(key, row) {
                    self.reply.different.push(same.key.clone());
                    self.give(key, row);
                }
            }
            _ => self.give(key, row),
        }
        ControlFlow::Continue(())
    }

    fn give(&mut self, key: &[u8], row: &[u8]) {
        self.bytes += key.len() + row.len();
        self.reply.rows.push(KeyedRow { key: ByteBuf::from(key.to_vec()), row: ByteBuf::from(row.to_vec()) });
    }

    fn end(mut self) -> Exchanged {
        if self.reply.until.is_none() {
            self.reply.missing.extend(self.named.iter().map(|named| named.key.clone()));
        }
        debug_assert!(self.scope == Scope::Both || self.reply.rows.len() == self.reply.different.len());
        self.reply
    }
}

impl Handler<AskDigests> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<AskDigests>) -> BoxFuture<'static, Result<Message<Digests>, RpcError>> {
        let store = self.clone();
        async move {
            if request.body.ranges.len() > RANGES_MAX {
                return Err(RpcError::new(ErrorCode::BadRequest, format!("more than {RANGES_MAX} ranges in one call")));
            }
            Ok(store.digests(request.body).await?.into())
        }
        .boxed()
    }
}

impl Handler<Exchange> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<Exchange>) -> BoxFuture<'static, Result<Message<Exchanged>, RpcError>> {
        let store = self.clone();
        async move {
            let named = &request.body.named;
            if named.len() > ROWS_NAMED_MAX {
                return Err(RpcError::new(ErrorCode::BadRequest, format!("more than {ROWS_NAMED_MAX} rows in one call")));
            }
            if !named.is_sorted_by(|a, b| a.key < b.key) {
                return Err(RpcError::new(ErrorCode::BadRequest, "rows that are not sorted by key"));
            }
            Ok(store.exchange(request.body).await?.into())
        }
        .boxed()
    }
}
