//! A table as its coordinator sees it: typed rows, quorums, merging and reading back.
//!
//! Must stay true: replies that differ are written back to a write quorum before the answer is given, so that reads never go back;
//! only an owner's `Won` counts towards a commit; a merged page ends at the smallest last key of any truncated reply.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::TryFutureExt;
use futures_util::future::{join_all, try_join_all};
use garage_rpc::cluster::Cluster;
use garage_rpc::error::{ErrorCode, RpcError};
use garage_rpc::layout::ClusterLayout;
use garage_rpc::quorum::{NodeError, NodeReply, QuorumError, Quorums, WriteQuorum};
use garage_types::codec;
use garage_types::crdt::Crdt;
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Placement, Timestamp, chain};
use serde_bytes::ByteBuf;

use crate::damage::placement_of;
use crate::epochs::Slot;
use crate::error::TableError;
use crate::heard::{Committed, Extent, Heard};
use crate::schema::{Replication, Schema};
use crate::store::TableStore;
use crate::wire::{AskEpoch, Entry, EpochIs, Found, Mode, Order, Page, Projection, Range, Read, TableId, Verdict, Write};

/// How often a range is read anew because rows were superseded meanwhile.
const RANGE_ATTEMPTS_MAX: usize = 16;

/// One table, through the nodes that own its rows. Cheap to clone.
pub struct Table<S> {
    store: TableStore,
    cluster: Cluster,
    schema: PhantomData<fn() -> S>,
}

impl<S> Clone for Table<S> {
    fn clone(&self) -> Self {
        Table { store: self.store.clone(), cluster: self.cluster.clone(), schema: PhantomData }
    }
}

/// Which rows of a placement are wanted, in which order.
#[derive(Clone, Debug)]
pub struct Query {
    pub from: Vec<u8>,
    /// Exclusive; `None`: to the end of the placement.
    pub to: Option<Vec<u8>>,
    pub order: Order,
    pub limit: u32,
    pub projection: Projection,
}

/// Rows in the order asked for, tombstones included.
#[derive(Clone, Debug)]
pub struct Rows<R> {
    pub rows: Vec<R>,
    /// Sort key of the last position covered when there may be more; nothing is known beyond it.
    pub last: Option<Vec<u8>>,
    /// A new row is later than this: what was deleted before may be forgotten by some owners, and not by others.
    pub floor: Timestamp,
}

/// Rows of a page that are brought to other live layout versions' owners before they are shown.
const DIFFERING_MAX: usize = 16;

/// How often a row is sent again, or read again, because a collection went on meanwhile.
const STALE_TRIES: usize = 3;

/// The last try of a write.
struct Tried {
    verdict: Verdict,
    heard: Arc<Heard>,
    /// Whether an earlier try may have stored it somewhere.
    earlier: Extent,
}

/// Why one owner did not store a row.
#[derive(Debug, thiserror::Error)]
enum NotWon {
    #[error("the owner answered {0:?}")]
    Verdict(Verdict),
    #[error(transparent)]
    Rpc(RpcError),
}

// What is done seldom is boxed: otherwise each read and write, and each request that has some, is as large as all that it might have to do.
impl<S: Schema> Table<S> {
    pub fn new(store: TableStore, cluster: Cluster) -> Self {
        Table { store, cluster, schema: PhantomData }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub fn store(&self) -> &TableStore {
        &self.store
    }

    /// One row as a read quorum knows it.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn get(&self, placement: Placement, sort_key: Vec<u8>) -> Result<Option<S::Row>, TableError> {
        let mut tries_left = STALE_TRIES;
        loop {
            match self.get_once(placement, sort_key.clone()).await {
                // What was read may be of before a collection: read again, under the epoch learned meanwhile.
                Err(TableError::StaleEpoch { .. }) if tries_left > 0 => tries_left -= 1,
                result => return result,
            }
        }
    }

    /// The row of a local key, as a read quorum knows it.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn get_by_local_key(&self, key: &[u8]) -> Result<Option<S::Row>, TableError> {
        let placement = placement_of(S::ID, key)?;
        self.get(placement, key[placement.as_bytes().len()..].to_vec()).await
    }

    async fn get_once(&self, placement: Placement, sort_key: Vec<u8>) -> Result<Option<S::Row>, TableError> {
        let layout = self.cluster.layout();
        let read = Read { layout: layout.version(), table: S::ID, placement, sort_key: ByteBuf::from(sort_key) };
        // Known before the rows are read: what is read back is never stamped with a later epoch than its copies had.
        let epoch = self.store.known_epoch(S::ID, &placement);
        let mut replies = self.ask(placement, |node| self.call(node, read.clone())).await?;
        if replies.iter().any(|reply| reply.reply.row.is_some()) {
            replies.extend(self.ask_other_versions(placement, &replies, |node| self.call(node, read.clone())).await);
        }
        let mut merged: Option<S::Row> = None;
        for reply in &replies {
            if let Some(row) = &reply.reply.row {
                merge_into(&mut merged, S::decode(row)?);
            }
        }
        let Some(row) = merged else { return Ok(None) };
        if replies.len() > 1 && !is_planted(Bug::NoReadBack) {
            let bytes = codec::encode(&row);
            if replies.iter().any(|reply| reply.reply.row.as_ref().is_none_or(|copy| copy.as_slice() != bytes)) {
                Box::pin(self.read_back(placement, vec![Entry { epoch, ..S::entry(&row, Mode::Replicate) }])).await?;
            }
        }
        Ok(Some(row))
    }

    /// One row of a full-copy table: this node's copy, or what a quorum knows when there is none here.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn get_here_first(&self, placement: Placement, sort_key: Vec<u8>) -> Result<Option<S::Row>, TableError> {
        match self.get_here(placement, sort_key.clone()).await {
            Ok(None) | Err(TableError::Rebuilding | TableError::DamagedRow { .. }) => {
                Box::pin(self.get(placement, sort_key)).await
            }
            here => here,
        }
    }

    /// One row of a full-copy table as this node alone knows it.
    ///
    /// # Errors
    /// [`TableError::Rebuilding`] when the node has not all it should have, [`TableError::DamagedRow`] when its copy is damaged.
    pub async fn get_here(&self, placement: Placement, sort_key: Vec<u8>) -> Result<Option<S::Row>, TableError> {
        let layout = self.cluster.layout().version();
        let Found { row } = self.store.read(Read { layout, table: S::ID, placement, sort_key: sort_key.into() }).await?;
        row.map(|row| S::decode(&row)).transpose()
    }

    /// Rows of one placement as this node alone knows them; `None` when it is no owner of them, or has not all it should have as it was
    /// stored.
    ///
    /// For rows that never change once they are complete, where the caller can tell whether they are.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn range_here(&self, placement: Placement, query: Query) -> Result<Option<Rows<S::Row>>, TableError> {
        let layout = self.cluster.layout();
        if !layout.read_nodes(placement).contains(&self.cluster.node_id()) {
            return Ok(None);
        }
        let page = match self.store.range(range_request::<S>(layout.version(), placement, &query)).await {
            Ok(page) => page,
            Err(TableError::Rebuilding | TableError::DamagedRow { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let last = page.rows.last().filter(|_| page.truncated).map(|row| row.sort_key.to_vec());
        let rows = page.rows.iter().map(|row| S::decode(&row.row)).collect::<Result<_, TableError>>()?;
        Ok(Some(Rows { rows, last, floor: page.floor }))
    }

    /// Commits one row at a write quorum of its owners.
    ///
    /// # Errors
    /// [`TableError`]; the row may then be stored at some of them.
    pub async fn commit(&self, row: &S::Row) -> Result<Verdict, TableError> {
        self.write(S::placement(row), vec![S::entry(row, Mode::Commit)]).await
    }

    /// Commits one row at every owner of every live layout version: afterwards none of them knows better.
    ///
    /// # Errors
    /// [`TableError`], also while one owner cannot be reached; the row may then be stored at some of them.
    pub async fn commit_at_all(&self, row: &S::Row) -> Result<Verdict, TableError> {
        self.write_to(S::placement(row), vec![S::entry(row, Mode::Commit)], Some(WriteQuorum::All)).await
    }

    /// Merges one row into what a write quorum of its owners has, whatever that is.
    ///
    /// # Errors
    /// [`TableError`]; the row may then be stored at some of them.
    pub async fn merge(&self, row: &S::Row) -> Result<(), TableError> {
        match self.write(S::placement(row), vec![S::entry(row, Mode::Replicate)]).await? {
            Verdict::Won => Ok(()),
            verdict => unreachable!("copies are merged, never refused, but an owner answered {verdict:?}"),
        }
    }

    /// Stores rows of one placement, of this and other tables, in one transaction at each owner.
    ///
    /// `Won` when a write quorum of every live layout version's owners said so. For rows that the caller has just made, or deletions:
    /// they are sent under the newest epoch known, and again when an owner knows a newer one.
    ///
    /// # Errors
    /// [`TableError`]; the rows may then be stored at some of the owners.
    pub async fn write(&self, placement: Placement, entries: Vec<Entry>) -> Result<Verdict, TableError> {
        self.write_to(placement, entries, None).await
    }

    /// As [`Self::write`], and tells whether a commit that did not win may be stored anywhere all the same.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn commit_heard(&self, placement: Placement, entries: Vec<Entry>) -> Result<Committed, TableError> {
        let Tried { verdict, heard, earlier } = self.write_until_heard(placement, entries, None).await?;
        let extent = match (&verdict, earlier) {
            (Verdict::Won, _) | (_, Extent::Perhaps) => Extent::Perhaps,
            (_, Extent::Nowhere) => heard.extent().await,
        };
        Ok(Committed { verdict, extent })
    }

    /// `quorum`: the usual one unless given.
    async fn write_to(
        &self,
        placement: Placement,
        entries: Vec<Entry>,
        quorum: Option<WriteQuorum>,
    ) -> Result<Verdict, TableError> {
        Ok(self.write_until_heard(placement, entries, quorum).await?.verdict)
    }

    /// Sends rows under the newest epoch known, and again when an owner knows a newer one.
    ///
    /// A row that some owner may have stored at an earlier try is sent again only while an owner still has it, as seen after the newer
    /// epoch was known. Otherwise it might have been seen, deleted and collected meanwhile, and would come back under the newer epoch.
    async fn write_until_heard(
        &self,
        placement: Placement,
        mut entries: Vec<Entry>,
        quorum: Option<WriteQuorum>,
    ) -> Result<Tried, TableError> {
        let mut tries_left = STALE_TRIES;
        let mut earlier = Extent::Nowhere;
        loop {
            for entry in &mut entries {
                entry.epoch = self.store.known_epoch(entry.table, &placement);
            }
            if earlier == Extent::Perhaps && !Box::pin(self.are_stored_somewhere(placement, &entries)).await? {
                return Err(TableError::PerhapsForgotten);
            }
            let heard = Arc::new(Heard::default());
            match self.write_once(placement, entries.clone(), quorum, Some(&heard)).await {
                Err(TableError::StaleEpoch { .. }) if tries_left > 0 => {
                    tries_left -= 1;
                    if heard.extent().await == Extent::Perhaps {
                        earlier = Extent::Perhaps;
                    }
                }
                Ok(verdict) => return Ok(Tried { verdict, heard, earlier }),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether each of the rows that is no deletion is at some owner, as it is or merged with more.
    async fn are_stored_somewhere(&self, placement: Placement, entries: &[Entry]) -> Result<bool, TableError> {
        let layout = self.cluster.layout();
        let (sets, _quorum) = self.owners(&layout, placement)?;
        let owners: BTreeSet<NodeId> = sets.into_iter().flatten().collect();
        for entry in entries {
            if self.store.is_collectable(entry.table, &entry.row)? {
                continue;
            }
            let (table, sort_key) = (entry.table, entry.sort_key.clone());
            let read = Read { layout: layout.version(), table, placement, sort_key };
            let answers = join_all(owners.iter().map(|owner| self.call(*owner, read.clone()))).await;
            let mut is_stored = false;
            for found in answers.into_iter().filter_map(|answer| answer.ok().and_then(|found| found.row)) {
                is_stored |= self.store.merge(table, &found, &entry.row)? == found.as_slice();
            }
            if !is_stored {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As [`Self::write`], under the epochs that the entries say. After [`TableError::StaleEpoch`] the newer one is known.
    async fn write_once(
        &self,
        placement: Placement,
        entries: Vec<Entry>,
        quorum: Option<WriteQuorum>,
        heard: Option<&Arc<Heard>>,
    ) -> Result<Verdict, TableError> {
        let permit = self.cluster.begin_write();
        let (sets, usual) = self.owners(permit.layout(), placement)?;
        let quorum = quorum.unwrap_or(usual);
        let tables: Vec<TableId> = entries.iter().map(|entry| entry.table).collect();
        let write = Write { layout: permit.layout().version(), entries };
        let attempt = |node| {
            let call = Box::pin(self.call(node, write.clone()));
            let hearing = heard.map(|heard| heard.begin(self.cluster.mesh().is_up(node) || node == self.cluster.node_id()));
            let (spawn, missed) = (self.cluster.spawn().clone(), self.cluster.missed().clone());
            async move {
                let answer = match hearing {
                    None => call.await,
                    Some(hearing) => hearing.listen(&*spawn, call).await,
                };
                match answer {
                    Ok(Verdict::Won) => Ok(()),
                    Ok(verdict) => Err(NotWon::Verdict(verdict)),
                    Err(error) => {
                        missed.add(node);
                        Err(NotWon::Rpc(error))
                    }
                }
            }
        };
        let result = self.cluster.write(&permit, &sets, quorum, attempt).await;
        match result {
            Ok(_all_won) => Ok(Verdict::Won),
            Err(error) => {
                let stale = stale_at(&error);
                let verdict = refusal(error);
                match (verdict, stale) {
                    (Err(TableError::Quorum(_)), Some(node)) => Err(Box::pin(self.learn_epochs(node, placement, &tables)).await?),
                    (verdict, _) => verdict,
                }
            }
        }
    }

    /// Learns the epochs of an owner that refused a row for being sent under an old one.
    async fn learn_epochs(&self, node: NodeId, placement: Placement, tables: &[TableId]) -> Result<TableError, TableError> {
        let slot = Slot::of(&placement);
        let ask = |table: &TableId| {
            let asking = self.call(node, AskEpoch { table: *table, slot });
            asking.map_err(move |error| TableError::Peer { node, source: error })
        };
        let answers = try_join_all(tables.iter().map(ask)).await?;
        let mut stale = TableError::StaleEpoch { caller: 0, current: 0 };
        for (table, EpochIs { epoch: current }) in tables.iter().zip(answers) {
            let caller = self.store.known_epoch(*table, &placement);
            if caller < current {
                stale = TableError::StaleEpoch { caller, current };
            }
            self.store.learn_epoch(*table, slot, current);
        }
        Ok(stale)
    }

    /// Rows of one placement as a read quorum knows them.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn range(&self, placement: Placement, query: Query) -> Result<Rows<S::Row>, TableError> {
        if let Some(rows) = self.try_range(placement, &query).await? {
            return Ok(rows);
        }
        // Whole rows are written back as they were read, so that nothing can vanish in between.
        let summarised = query.projection == Projection::Summary;
        let query = Query { projection: Projection::Whole, ..query };
        for _attempt in 0..RANGE_ATTEMPTS_MAX {
            if let Some(Rows { rows, last, floor }) = self.try_range(placement, &query).await? {
                let rows = if summarised { rows.into_iter().map(S::summary).collect() } else { rows };
                return Ok(Rows { rows, last, floor });
            }
        }
        Err(TableError::Unsettled)
    }

    /// `None` when a row was superseded, or its tombstone collected, while it was read back: what is there now has to be seen.
    async fn try_range(&self, placement: Placement, query: &Query) -> Result<Option<Rows<S::Row>>, TableError> {
        let layout = self.cluster.layout().version();
        let range = range_request::<S>(layout, placement, query);
        // Known before the rows are read, as in `get`.
        let epoch = self.store.known_epoch(S::ID, &placement);
        let replies = self.ask(placement, |node| self.call(node, range.clone())).await?;
        let floor = replies.iter().map(|reply| reply.reply.floor).max().unwrap_or(Timestamp::ZERO);
        let MergedPage { rows: merged, last } = self.merge_with_other_versions(placement, &range, replies).await?;
        if query.projection == Projection::Whole {
            let differing = merged.iter().filter(|row| row.differs);
            let entries: Vec<Entry> = differing.map(|row| Entry { epoch, ..S::entry(&row.row, Mode::Replicate) }).collect();
            if !entries.is_empty() && !is_planted(Bug::NoReadBack) {
                match Box::pin(self.read_back(placement, entries)).await {
                    Err(TableError::StaleEpoch { .. }) => return Ok(None),
                    result => result?,
                }
            }
            return Ok(Some(Rows { rows: merged.into_iter().map(|row| row.row).collect(), last, floor }));
        }
        let mut rows = Vec::with_capacity(merged.len());
        for row in merged {
            if row.differs {
                // Written back whole, not as the summary a listing sees.
                let Some(whole) = Box::pin(self.get(placement, row.sort_key)).await? else { return Ok(None) };
                rows.push(S::summary(whole));
            } else {
                rows.push(row.row);
            }
        }
        Ok(Some(Rows { rows, last, floor }))
    }

    /// Joins the owners' pages with those of other live versions' owners, unless these are only about to receive their rows: what many rows
    /// lack there comes with the layout change, and a page is not the place to bring it.
    async fn merge_with_other_versions(
        &self,
        placement: Placement,
        range: &Range,
        mut replies: Vec<NodeReply<Page>>,
    ) -> Result<MergedPage<S::Row>, TableError> {
        let page = merge_pages::<S>(&replies, range.order)?;
        let more = self.ask_other_versions(placement, &replies, |node| self.call(node, range.clone())).await;
        if page.rows.is_empty() || more.is_empty() {
            return Ok(page);
        }
        replies.extend(more);
        let joined = merge_pages::<S>(&replies, range.order)?;
        Ok(if joined.rows.iter().filter(|row| row.differs).count() > DIFFERING_MAX { page } else { joined })
    }

    async fn ask<T, F>(&self, placement: Placement, call: impl Fn(NodeId) -> F) -> Result<Vec<NodeReply<T>>, TableError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RpcError>> + Send + 'static,
    {
        let layout = self.cluster.layout();
        if layout.is_empty() {
            return Err(TableError::NoLayout);
        }
        let (nodes, quorum) = match S::REPLICATION {
            Replication::Sharded => (layout.read_nodes(placement).to_vec(), self.cluster.quorums().read),
            Replication::FullCopy => {
                let nodes = layout.read_members().to_vec();
                let quorum = nodes.len() - nodes.len() / 2;
                (nodes, quorum)
            }
        };
        self.cluster.read(nodes, quorum, call).await.map_err(|error| TableError::Quorum(Box::new(error)))
    }

    /// While several layout versions are live, what owners of the others say, until a write quorum of each has answered.
    ///
    /// Equal replies of the version that reads go by do not show that a row is at a write quorum of the next one: a write that broke off
    /// may have reached the former only. A reader that answers with it unseen there would see it vanish once reads go by the latter. Where
    /// too few of a version's owners are connected, reads go on without them.
    async fn ask_other_versions<T, F>(
        &self,
        placement: Placement,
        replies: &[NodeReply<T>],
        call: impl Fn(NodeId) -> F,
    ) -> Vec<NodeReply<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RpcError>> + Send + 'static,
    {
        let layout = self.cluster.layout();
        let Quorums { read, write } = self.cluster.quorums();
        let mut more: Vec<NodeReply<T>> = Vec::new();
        // In the other modes a read is one node's word.
        let sets = match S::REPLICATION {
            Replication::Sharded if read + write > layout.replication_factor() => layout.write_sets(placement),
            Replication::Sharded | Replication::FullCopy => return more,
        };
        if sets.len() < 2 {
            return more;
        }
        for set in sets {
            let has_answered = |node: &NodeId| replies.iter().chain(&more).any(|reply| reply.node == *node);
            let (answered, rest): (Vec<NodeId>, Vec<NodeId>) = set.into_iter().partition(has_answered);
            let missing = write.saturating_sub(answered.len());
            let me = self.cluster.node_id();
            let connected: Vec<NodeId> =
                rest.into_iter().filter(|node| *node == me || self.cluster.mesh().is_up(*node)).collect();
            if missing > 0 && connected.len() >= missing {
                match self.cluster.read(connected, missing, &call).await {
                    Ok(theirs) => more.extend(theirs),
                    Err(error) => {
                        let error = chain(&error);
                        tracing::debug!(table = S::NAME, error, "owners by another layout version do not say what they have");
                    }
                }
            }
        }
        more
    }

    fn owners(&self, layout: &ClusterLayout, placement: Placement) -> Result<(Vec<Vec<NodeId>>, WriteQuorum), TableError> {
        if layout.is_empty() {
            return Err(TableError::NoLayout);
        }
        Ok(match S::REPLICATION {
            Replication::Sharded => {
                let mut sets = layout.write_sets(placement);
                if is_planted(Bug::WritesToNewOwnersOnly) {
                    sets.drain(..sets.len() - 1);
                }
                if is_planted(Bug::WritesToOldOwnersOnly) {
                    sets.truncate(1);
                }
                (sets, WriteQuorum::Count(self.cluster.quorums().write))
            }
            Replication::FullCopy => (layout.full_copy_sets(), WriteQuorum::Majority),
        })
    }

    async fn read_back(&self, placement: Placement, entries: Vec<Entry>) -> Result<(), TableError> {
        let written = if is_planted(Bug::ReadBackUnderNewEpoch) {
            self.write(placement, entries).await?
        } else {
            self.write_once(placement, entries, None, None).await?
        };
        match written {
            Verdict::Won => Ok(()),
            verdict => unreachable!("copies are merged, never refused, but an owner answered {verdict:?}"),
        }
    }

    fn call<R: garage_rpc::endpoint::Request>(
        &self,
        node: NodeId,
        request: R,
    ) -> impl Future<Output = Result<R::Reply, RpcError>> + Send + 'static {
        let cluster = self.cluster.clone();
        async move { cluster.call(node, request).await }
    }
}

fn range_request<S: Schema>(layout: u64, placement: Placement, query: &Query) -> Range {
    Range {
        layout,
        table: S::ID,
        placement,
        from: query.from.clone().into(),
        to: query.to.clone().map(Into::into),
        order: query.order,
        limit: query.limit,
        projection: query.projection,
    }
}

/// An owner that refused because of an old epoch.
fn stale_at(error: &QuorumError<NotWon>) -> Option<NodeId> {
    let is_stale = |error: &NotWon| matches!(error, NotWon::Rpc(error) if error.code == ErrorCode::StaleEpoch);
    error.errors.iter().find(|failed| is_stale(&failed.error)).map(|failed| failed.node)
}

/// What a failed commit means: behind and refused are answers, too few answers is an error.
fn refusal(error: QuorumError<NotWon>) -> Result<Verdict, TableError> {
    let QuorumError { needed, reached, of, errors } = error;
    let mut answer: Option<Verdict> = None;
    let mut failures = Vec::new();
    for NodeError { node, error } in errors {
        match error {
            NotWon::Rpc(error) => failures.push(NodeError { node, error }),
            NotWon::Verdict(verdict) => answer = Some(strongest(answer, verdict)),
        }
    }
    match answer {
        Some(verdict) => Ok(verdict),
        None => Err(TableError::Quorum(Box::new(QuorumError { needed, reached, of, errors: failures }))),
    }
}

fn strongest(answer: Option<Verdict>, verdict: Verdict) -> Verdict {
    match (answer, verdict) {
        (Some(Verdict::Behind(a)), Verdict::Behind(b)) => Verdict::Behind(a.max(b)),
        (Some(refused @ Verdict::Refused(_)), _) => refused,
        (_, verdict) => verdict,
    }
}

fn merge_into<R: Crdt>(merged: &mut Option<R>, row: R) {
    match merged {
        Some(present) => present.merge(&row),
        None => *merged = Some(row),
    }
}

pub(crate) struct MergedRow<R> {
    pub(crate) sort_key: Vec<u8>,
    row: R,
    /// Not every owner that answered had this row as it is now.
    differs: bool,
}

pub(crate) struct MergedPage<R> {
    pub(crate) rows: Vec<MergedRow<R>>,
    pub(crate) last: Option<Vec<u8>>,
}

/// Joins the owners' pages. Beyond the first end of a truncated page some owner's rows are unknown, so the merged page ends there.
pub(crate) fn merge_pages<S: Schema>(replies: &[NodeReply<Page>], order: Order) -> Result<MergedPage<S::Row>, TableError> {
    let ends = replies.iter().filter(|reply| reply.reply.truncated).filter_map(|reply| reply.reply.rows.last());
    let ends = ends.map(|row| row.sort_key.to_vec());
    let last = match order {
        Order::Forward if is_planted(Bug::PageCutTooLate) => ends.max(),
        Order::Forward => ends.min(),
        Order::Backward => ends.max(),
    };
    let covered = |key: &[u8]| match (&last, order) {
        (None, _) => true,
        (Some(last), Order::Forward) => key <= last.as_slice(),
        (Some(last), Order::Backward) => key >= last.as_slice(),
    };
    // One copy was asked: in consistent mode that is where every copy has all that was acknowledged, so that there is nothing to write
    // back. Weaker modes leave differences to the comparison in the background.
    if let [only] = replies {
        let decode = |row: &crate::wire::RangeRow| {
            Ok(MergedRow { sort_key: row.sort_key.to_vec(), row: S::decode(&row.row)?, differs: false })
        };
        return Ok(MergedPage { rows: only.reply.rows.iter().map(decode).collect::<Result<_, TableError>>()?, last });
    }
    let mut joined: BTreeMap<Vec<u8>, Vec<&ByteBuf>> = BTreeMap::new();
    for row in replies.iter().flat_map(|reply| &reply.reply.rows).filter(|row| covered(&row.sort_key)) {
        joined.entry(row.sort_key.to_vec()).or_default().push(&row.row);
    }
    let mut rows = Vec::with_capacity(joined.len());
    for (sort_key, copies) in joined {
        let mut merged = None;
        for copy in &copies {
            merge_into(&mut merged, S::decode(copy)?);
        }
        let Some(row) = merged else { continue };
        let differs = copies.len() < replies.len() || copies.iter().any(|copy| copy != &copies[0]);
        rows.push(MergedRow { sort_key, row, differs });
    }
    if order == Order::Backward {
        rows.reverse();
    }
    Ok(MergedPage { rows, last })
}

/// The table's local half, for components that only need this node's rows.
impl<S: Schema> Table<S> {
    /// How often this node's copy of the table has changed since the start.
    pub fn generation(&self) -> Arc<std::sync::atomic::AtomicU64> {
        self.store.generation(S::ID)
    }
}
