//! Rows that fail their checksums: finding them before anybody asks for them, and repairing them from the other owners.
//!
//! Must stay true: a damaged row counts as lost here, so nothing is read from it, merged into it or judged by it. Another copy takes its
//! place if it is, byte for byte, what this node had: the digest of the segment around the row still knows that. Otherwise as many other
//! owners as a consistent read needs have to say what they have. While neither is so, the row stays damaged, and is an error by its name;
//! where nobody else is to have it, until the operator gives it up.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use garage_db::{Direction, Snapshot};
use garage_rpc::cluster::Cluster;
use garage_rpc::error::RpcError;
use garage_rpc::quorum::{ConsistencyMode, Quorums};
use garage_types::{NodeId, Placement, chain};
use garage_worker::{Status, Step, StepError, Worker};
use serde_bytes::ByteBuf;

use crate::digest::{RowDigest, SetDigest};
use crate::error::TableError;
use crate::rows::{Frame, Unreadable, unseal};
use crate::schema::{ReplacedBy, Replication};
use crate::segments::{KeyRange, Rows, Segments};
use crate::set_aside::Reason;
use crate::store::TableStore;
use crate::transaction::RowTransaction;
use crate::wire::{Entry, Found, Mode, Read, TableId};

/// How long a row that cannot be repaired yet waits for the next try.
const RETRY_PERIOD: Duration = Duration::from_secs(60);

/// What came of giving damaged rows up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GivenUp {
    pub rows: u64,
    /// Of tables that do not bear it.
    pub kept: u64,
}

/// Where the check of all rows goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckPlace {
    table: TableId,
    bound: Vec<u8>,
}

/// What came of checking some rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedRows {
    pub rows: u64,
    pub damaged: u64,
    /// `None` at the end of the last table.
    pub next: Option<CheckPlace>,
}

/// A segment as its rows are.
struct Examined {
    bound: Vec<u8>,
    end: Option<Vec<u8>>,
    /// As it was kept up to date, row by row.
    recorded: SetDigest,
    /// Of the rows that can be read.
    actual: SetDigest,
    damaged: Vec<Vec<u8>>,
    /// Rows without a checksum of their own.
    unframed: Vec<Vec<u8>>,
}

fn examine(segments: &Segments, rows: &impl Rows, key: &[u8]) -> Result<Examined, TableError> {
    let (bound, recorded) = segments.segment_of(rows, key)?;
    let end = segments.end_of(rows, &bound)?;
    let (mut actual, mut damaged, mut unframed) = (SetDigest::default(), Vec::new(), Vec::new());
    let range = KeyRange { from: bound.clone(), to: end.clone() };
    rows.range(segments.rows.raw(), range.bounds(), Direction::Forward, &mut |key, stored| {
        match segments.rows.check(key, stored) {
            Ok((row, frame)) => {
                actual.add(RowDigest::of(key, row));
                if frame == Frame::None {
                    unframed.push(key.to_vec());
                }
            }
            // Remembered; or of a newer version, which nothing here may touch.
            Err(_unreadable) => damaged.push(key.to_vec()),
        }
        ControlFlow::Continue(())
    })?;
    Ok(Examined { bound, end, recorded, actual, damaged, unframed })
}

impl Examined {
    /// The digest that the row of `key` had, if it is the only one of the segment that is damaged.
    fn digest_of_damaged(&self, key: &[u8]) -> Option<RowDigest> {
        let SetDigest { rows, sum } = self.recorded.minus(self.actual);
        (self.damaged == [key] && rows == 1).then_some(RowDigest(sum))
    }
}

impl TableStore {
    /// Checks the rows of one segment, and gives those of earlier versions a checksum. `from`: what the call before returned.
    ///
    /// # Errors
    /// [`TableError`]; not for damaged rows, which are counted and left to [`RowRepair`].
    pub async fn check_some_rows(&self, from: Option<CheckPlace>) -> Result<CheckedRows, TableError> {
        let (digests, inner) = (self.0.digests, self.0.clone());
        let first = from.map_or_else(Vec::new, |place| [&[place.table.0], place.bound.as_slice()].concat());
        let read = move |tx: &Snapshot<'_>| {
            let mut found = None;
            tx.range(digests, (Bound::Included(first.as_slice()), Bound::Unbounded), Direction::Forward, &mut |key, _digest| {
                found = key.split_first().map(|(table, bound)| (TableId(*table), bound.to_vec()));
                ControlFlow::Break(())
            })?;
            let Some((table, bound)) = found else { return Ok(None) };
            let segments = inner.table(table)?.segments(table, digests);
            Ok::<_, TableError>(Some((table, examine(&segments, tx, &bound)?)))
        };
        let Some((table, examined)) = self.db().read(read).await? else {
            return Ok(CheckedRows { rows: 0, damaged: 0, next: None });
        };
        let (rows, damaged) = (examined.actual.rows, examined.damaged.len() as u64);
        let next = match &examined.end {
            Some(end) => Some(CheckPlace { table, bound: end.clone() }),
            None => table.0.checked_add(1).map(|next| CheckPlace { table: TableId(next), bound: Vec::new() }),
        };
        self.settle(table, examined).await?;
        Ok(CheckedRows { rows, damaged, next })
    }

    /// Gives the rows of a segment their checksums, and its digest the right value, where both are beyond doubt.
    async fn settle(&self, table: TableId, examined: Examined) -> Result<(), TableError> {
        let is_as_recorded = examined.recorded == examined.actual;
        if !examined.damaged.is_empty() || (is_as_recorded && examined.unframed.is_empty()) {
            return Ok(());
        }
        if !is_as_recorded && !examined.unframed.is_empty() {
            let name = self.name_of(table).unwrap_or_default();
            tracing::error!(
                table = name,
                from = self.name_of_row(table, &examined.bound),
                rows = examined.actual.rows,
                "rows of an earlier version do not add up to their digest: one of them, without a checksum, has changed on the disk"
            );
            return Ok(());
        }
        let segments = self.segments(table)?;
        self.transact(move |tx| {
            // As it is now, which may be another state than what was read.
            let now = examine(&segments, tx.raw(), &examined.bound)?;
            if !now.damaged.is_empty() || (now.recorded != now.actual && !now.unframed.is_empty()) {
                return Ok(());
            }
            for key in &now.unframed {
                if let Some(row) = segments.rows.get(tx.raw(), key)? {
                    segments.rows.insert(tx.raw(), key, &row)?;
                }
            }
            segments.correct(tx.raw(), &now.bound, now.recorded, now.actual)
        })
        .await
    }

    /// How many rows of this node are known to be damaged.
    pub fn damaged_rows(&self) -> u64 {
        self.0.damaged.len() as u64
    }

    /// The rows of a table known to be damaged, by their names; at most `limit`.
    pub fn damaged_rows_of(&self, table: TableId, limit: usize) -> Vec<String> {
        let first = self.0.damaged.next(Some(&(table, Vec::new())));
        let rows = std::iter::successors(first, |row| self.0.damaged.next(Some(row)));
        let of_table = rows.take_while(|(of, _key)| *of == table).take(limit);
        of_table.map(|(_table, key)| self.name_of_row(table, &key)).collect()
    }

    /// Removes the rows known to be damaged of tables that bear it, and sets aside what is stored in their places. Only for a node of whose
    /// rows nobody else is to have a copy.
    ///
    /// # Errors
    /// [`TableError`]; those that were removed before stay so.
    pub async fn give_up_damaged_rows(&self) -> Result<GivenUp, TableError> {
        let (mut done, mut at) = (GivenUp::default(), None);
        while let Some((table, key)) = self.0.damaged.next(at.as_ref()) {
            if self.0.table(table)?.rules.may_be_given_up() {
                let placement = placement_of(table, &key)?;
                let damaged = Asked { table, placement, epoch: self.known_epoch(table, &placement), key: key.clone() };
                self.repair_row(damaged, Vec::new(), Needed::GivenUp).await?;
                done.rows += 1;
            } else {
                done.kept += 1;
            }
            at = Some((table, key));
        }
        Ok(done)
    }

    /// Puts another copy in the place of a damaged row.
    async fn repair_row(&self, damaged: Asked, replies: Vec<Option<Vec<u8>>>, needed: Needed) -> Result<Repaired, TableError> {
        let segments = self.segments(damaged.table)?;
        let (table, key) = (damaged.table, damaged.key.clone());
        let at = self.0.clock.now();
        let repaired = self
            .transact(move |tx| {
                let stored: Option<Vec<u8>> = tx.raw().get(segments.rows.raw(), &damaged.key)?;
                let Some(stored) = stored.filter(|stored| unseal(&damaged.key, stored) == Err(Unreadable::Mismatch)) else {
                    return Ok::<_, TableError>(Repaired::Done);
                };
                let around = examine(&segments, tx.raw(), &damaged.key)?;
                let original = around.digest_of_damaged(&damaged.key);
                let is_original = |copy: &&Vec<u8>| Some(RowDigest::of(&damaged.key, copy)) == original;
                let copies: BTreeSet<&Vec<u8>> = replies.iter().flatten().collect();
                let agreed = match (replies.iter().all(Option::is_some), copies.len()) {
                    (true, 1) => copies.first().copied(),
                    _ => None,
                };
                match (copies.iter().copied().find(is_original), agreed) {
                    (Some(row), _) => {
                        segments.rows.insert(tx.raw(), &damaged.key, row)?;
                        tx.derive_anew(table, &damaged.key, ReplacedBy::Itself)?;
                    }
                    (None, _) if needed.is_more_than(replies.len()) => return Ok(Repaired::NotYet),
                    // Other rows of the segment are damaged too; all owners that were asked have the same.
                    (None, Some(row)) if original.is_none() => {
                        segments.rows.insert(tx.raw(), &damaged.key, row)?;
                        tx.derive_anew(table, &damaged.key, ReplacedBy::Others)?;
                    }
                    (None, _) => {
                        if needed == Needed::GivenUp {
                            let (aside, row) = (tx.inner.set_aside, segments.rows.name_of(&damaged.key));
                            tracing::warn!(
                                row,
                                "a damaged row is given up at the operator's word; what is stored in its place is set aside"
                            );
                            aside.keep(tx.raw(), (at, Reason::Damaged), table, &damaged.key, &stored)?;
                        }
                        tx.replace_damaged(&segments, &damaged.key, &copies)?;
                    }
                }
                let now = examine(&segments, tx.raw(), &damaged.key)?;
                if now.damaged.is_empty() {
                    segments.correct(tx.raw(), &now.bound, now.recorded, now.actual)?;
                }
                // What others know beyond it follows in the usual way.
                for row in copies {
                    let entry = damaged.entry(row.clone());
                    tx.check_epoch(&entry)?;
                    tx.apply(&entry)?;
                }
                Ok(Repaired::Done)
            })
            .await?;
        if repaired == Repaired::Done {
            self.0.damaged.forget(table, &key);
        }
        Ok(repaired)
    }
}

impl RowTransaction<'_, '_> {
    /// The merge of what others have takes the place of a row whose content nobody has any more. What followed from that is not undone,
    /// but for what can be worked out from the rows beside it.
    fn replace_damaged(&mut self, segments: &Segments, key: &[u8], copies: &BTreeSet<&Vec<u8>>) -> Result<(), TableError> {
        let table = segments.table;
        let rules = self.inner.table(table)?.rules.clone();
        tracing::error!(
            table = rules.name(),
            row = segments.rows.name_of(key),
            copies = copies.len(),
            "a damaged row was replaced by what others have of it, which is not what this node had: what was counted of it is counted anew"
        );
        let mut copies = copies.iter();
        match copies.next() {
            None => segments.rows.remove(self.raw(), key)?,
            Some(first) => {
                let merged = copies.try_fold((*first).clone(), |merged, copy| rules.merge(&merged, copy))?;
                segments.rows.insert(self.raw(), key, &merged)?;
                if rules.is_collectable(&merged)? {
                    self.bury(table, key)?;
                }
            }
        }
        self.derive_anew(table, key, ReplacedBy::Others)
    }

    /// See [`crate::schema::Schema::derive_anew`].
    fn derive_anew(&mut self, table: TableId, key: &[u8], by: ReplacedBy) -> Result<(), TableError> {
        let rules = self.inner.table(table)?.rules.clone();
        rules.derive_anew(self, &placement_of(table, key)?, by)
    }
}

/// A damaged row that others were asked for.
#[derive(Clone)]
struct Asked {
    table: TableId,
    key: Vec<u8>,
    placement: Placement,
    /// Known before anybody was asked.
    epoch: u64,
}

impl Asked {
    fn entry(&self, row: Vec<u8>) -> Entry {
        Entry {
            table: self.table,
            placement: self.placement,
            sort_key: ByteBuf::from(self.key[32..].to_vec()),
            row: ByteBuf::from(row),
            mode: Mode::Replicate,
            condition: None,
            epoch: self.epoch,
            is_compared: true,
        }
    }
}

/// What must be known before a row that nobody has as it was is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needed {
    /// The answers of so many other owners.
    Answers(usize),
    /// Nothing: it is the operator's word.
    GivenUp,
}

impl Needed {
    fn is_more_than(self, answers: usize) -> bool {
        matches!(self, Needed::Answers(needed) if answers < needed)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Repaired {
    Done,
    /// Too few other owners have answered.
    NotYet,
}

/// The worker that repairs damaged rows.
pub struct RowRepair {
    store: TableStore,
    cluster: Cluster,
    at: Option<(TableId, Vec<u8>)>,
    repaired: u64,
}

impl RowRepair {
    pub fn new(store: TableStore, cluster: Cluster) -> Self {
        RowRepair { store, cluster, at: None, repaired: 0 }
    }

    async fn work(&mut self) -> Result<Step, StepError> {
        let Some((table, key)) = self.store.0.damaged.next(self.at.as_ref()) else {
            self.at = None;
            return Ok(Step::Idle);
        };
        self.at = Some((table, key.clone()));
        match self.repair(table, key.clone()).await {
            Ok(Repaired::Done) => {
                self.repaired += 1;
                tracing::info!(
                    table = self.store.name_of(table),
                    row = self.store.name_of_row(table, &key),
                    "a damaged row is repaired"
                );
            }
            Ok(Repaired::NotYet) if self.cluster.layout().replication_factor() == 1 => {
                tracing::warn!(
                    table = self.store.name_of(table),
                    row = self.store.name_of_row(table, &key),
                    "a damaged row has no other copy: it is an error until a snapshot is put back, or, if it is an object's, until it is given up (garage repair --yes damaged-rows)"
                );
            }
            Ok(Repaired::NotYet) => {
                tracing::warn!(
                    table = self.store.name_of(table),
                    row = self.store.name_of_row(table, &key),
                    "a damaged row cannot be repaired yet: too few other owners of it answer"
                );
            }
            Err(error) => {
                tracing::warn!(
                    table = self.store.name_of(table),
                    row = self.store.name_of_row(table, &key),
                    error = %chain(&error),
                    "a damaged row cannot be repaired yet"
                );
            }
        }
        Ok(Step::Busy)
    }

    async fn repair(&self, table: TableId, key: Vec<u8>) -> Result<Repaired, TableError> {
        let placement = placement_of(table, &key)?;
        let (owners, quorum) = self.owners(table, placement)?;
        let me = self.cluster.node_id();
        let others: Vec<NodeId> = owners.into_iter().filter(|owner| *owner != me).collect();
        let asked = Asked { table, placement, epoch: self.store.known_epoch(table, &placement), key };
        let read =
            Read { layout: self.cluster.layout().version(), table, placement, sort_key: ByteBuf::from(asked.key[32..].to_vec()) };
        let answers = join_all(others.iter().map(|node| self.cluster.call(*node, read.clone()))).await;
        let copy = |answer: Result<Found, RpcError>| answer.ok().map(|found| found.row.map(ByteBuf::into_vec));
        let replies = answers.into_iter().filter_map(copy).collect();
        self.store.repair_row(asked, replies, Needed::Answers(quorum)).await
    }

    /// Who should have the row, and how many of them a consistent read asks.
    fn owners(&self, table: TableId, placement: Placement) -> Result<(Vec<NodeId>, usize), TableError> {
        let layout = self.cluster.layout();
        Ok(match self.store.replication_of(table)? {
            Replication::Sharded => {
                let quorums = Quorums::of(layout.replication_factor(), ConsistencyMode::Consistent);
                (layout.read_nodes(placement).to_vec(), quorums.read)
            }
            Replication::FullCopy => {
                let members = layout.read_members().to_vec();
                let majority = members.len() / 2 + 1;
                (members, majority)
            }
        })
    }
}

pub(crate) fn placement_of(table: TableId, key: &[u8]) -> Result<Placement, TableError> {
    let bytes = key.first_chunk::<32>().ok_or(TableError::ShortKey { table })?;
    Ok(Placement::from_bytes(*bytes))
}

impl Worker for RowRepair {
    fn name(&self) -> String {
        "Repair of damaged rows".to_owned()
    }

    fn status(&self) -> Status {
        Status {
            progress: Some(format!("{} repaired", self.repaired)),
            queue_length: Some(self.store.damaged_rows()),
            ..Status::default()
        }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        Box::pin(self.work())
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        let damaged = self.store.0.damaged.clone();
        Box::pin(async move {
            let retry = async {
                if damaged.len() == 0 {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(RETRY_PERIOD).await;
            };
            tokio::select! {
                () = damaged.changed() => {}
                () = retry => {}
            }
        })
    }
}
