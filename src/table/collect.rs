//! Collecting tombstones without clocks.
//!
//! For one slot of one table, the first of its owners asks all of them (1) to hold the tombstones, durably, and when all do, (2) to
//! move to the next epoch, durably, from where on they refuse every row sent under the earlier one; and when all have, (3) to drop the
//! tombstones. Whatever was on its way before, in whatever buffer, is refused, so nothing late brings back what was deleted. With the
//! epoch the owners raise a floor of time, to the latest of the tombstones: the third step may reach some owners only, and a write that
//! a slow clock times before a tombstone which one owner still has must not be acknowledged by the others ([`crate::epochs::FloorTree`]).
//!
//! Must stay true: no owner drops a tombstone before every owner has moved on; no owner moves on before every owner holds it; all steps
//! are refused by an owner that knows another layout than the asker, or whose rows are not all there. Collections only take place
//! while one layout version is live: then every owner is one that reads ask. How old a tombstone is decides when to try, nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{Snapshot, Transaction};
use garage_rpc::cluster::Cluster;
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::RpcError;
use garage_rpc::layout::{ClusterLayout, Standing, VersionKey};
use garage_types::planted::{Bug, is_planted};
use garage_types::{Clock, NodeId, Placement, Timestamp, chain};
use garage_worker::{Status, Step, StepError, Worker};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::digest::RowDigest;
use crate::epochs::Slot;
use crate::error::TableError;
use crate::graves::Grave;
use crate::schema::Collection;
use crate::store::TableStore;
use crate::sync::session::entry;
use crate::sync::wire::{KeyedRow, Named};
use crate::wire::TableId;

/// Tombstones collected together.
const PAGE: usize = 500;

/// How old tombstones are when their collection is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CollectAfter {
    pub soon: Duration,
    pub late: Duration,
}

impl Default for CollectAfter {
    fn default() -> Self {
        CollectAfter { soon: Duration::from_secs(3600), late: Duration::from_secs(24 * 3600) }
    }
}

/// "Hold these tombstones."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HoldTombstones {
    #[serde(rename = "l")]
    layout: VersionKey,
    #[serde(rename = "t")]
    table: TableId,
    #[serde(rename = "s")]
    slot: Slot,
    #[serde(rename = "r")]
    rows: Vec<KeyedRow>,
}

/// The owner holds them, and is at this epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TombstonesHeld {
    #[serde(rename = "e")]
    epoch: u64,
}

impl Request for HoldTombstones {
    const ENDPOINT: &'static str = "table.gc_hold/1";
    const CLASS: Class = Class::Bulk;
    type Reply = TombstonesHeld;
}

/// "Refuse from now on what was sent before this epoch."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdvanceEpoch {
    #[serde(rename = "l")]
    layout: VersionKey,
    #[serde(rename = "t")]
    table: TableId,
    #[serde(rename = "s")]
    slot: Slot,
    #[serde(rename = "e")]
    epoch: u64,
    /// The time of the latest tombstone that is about to be dropped. Nodes before this field was known do not send it.
    #[serde(rename = "f", default)]
    floor: Timestamp,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpochAdvanced {}

impl Request for AdvanceEpoch {
    const ENDPOINT: &'static str = "table.gc_advance/1";
    const CLASS: Class = Class::Bulk;
    type Reply = EpochAdvanced;
}

/// "Drop these tombstones: every owner has moved on."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropTombstones {
    #[serde(rename = "t")]
    table: TableId,
    #[serde(rename = "r")]
    rows: Vec<Named>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TombstonesDropped {}

impl Request for DropTombstones {
    const ENDPOINT: &'static str = "table.gc_drop/1";
    const CLASS: Class = Class::Bulk;
    type Reply = TombstonesDropped;
}

impl TableStore {
    async fn hold(&self, request: HoldTombstones) -> Result<TombstonesHeld, TableError> {
        self.check_may_collect()?;
        self.check_same_layout(request.layout)?;
        let HoldTombstones { table, slot, rows, .. } = request;
        let (rules, now) = (self.0.table(table)?.rules.clone(), self.0.clock.now());
        for row in &rows {
            if Slot::of_key(&row.key) != slot || !rules.is_collectable(&row.row)? {
                return Err(TableError::NotATombstone { table });
            }
            // The floor that follows would be ahead of every right clock, and cannot be taken back.
            if rules.written_at(&row.row)? > now {
                return Err(TableError::FutureTombstone { table });
            }
        }
        let epochs = self.0.epochs;
        let entries = rows.into_iter().map(|row| entry(table, row, 0)).collect::<Result<Vec<_>, _>>()?;
        self.transact(move |tx| {
            for entry in &entries {
                tx.apply(entry)?;
            }
            Ok(TombstonesHeld { epoch: epochs.get(&*tx.raw(), table, slot)? })
        })
        .await
    }

    async fn advance(&self, request: AdvanceEpoch) -> Result<EpochAdvanced, TableError> {
        self.check_may_collect()?;
        self.check_same_layout(request.layout)?;
        let AdvanceEpoch { table, slot, epoch, floor, .. } = request;
        self.raise(table, slot, epoch, floor).await?;
        Ok(EpochAdvanced {})
    }

    fn check_same_layout(&self, asked: VersionKey) -> Result<(), TableError> {
        match self.0.layouts.live().as_slice() {
            [only] if *only == asked => Ok(()),
            _ => Err(TableError::OtherLayout { asked: asked.number }),
        }
    }

    /// The due tombstones of a slot behind `after`, as they are now; those that are none any more are struck off the list.
    async fn due_tombstones(&self, place: Place, before: Timestamp) -> Result<Due, TableError> {
        let Place { table, slot, after } = place;
        let rows = self.0.table(table)?.rows.clone();
        let graves = self.0.graves;
        let read = move |tx: &Snapshot<'_>| {
            let listed = graves.before(tx, table, slot, after, before, PAGE)?;
            let mut due = Due { tombstones: Vec::new(), settled: Vec::new(), last: None };
            if listed.len() == PAGE {
                due.last = listed.last().map(|grave| grave.listed.clone());
            }
            for grave in listed {
                match rows.get(tx, &grave.key)? {
                    Some(row) => due.tombstones.push((grave, row)),
                    None => due.settled.push(grave),
                }
            }
            Ok::<_, TableError>(due)
        };
        let mut due = self.db().read(read).await?;
        let rules = self.0.table(table)?.rules.clone();
        let mut tombstones = Vec::with_capacity(due.tombstones.len());
        for (grave, row) in std::mem::take(&mut due.tombstones) {
            match rules.is_collectable(&row)? {
                // One that a clock ahead has timed later waits: the floor must not be beyond what new writes have.
                true if rules.written_at(&row)? > before => {}
                true => tombstones.push((grave, row)),
                false => due.settled.push(grave),
            }
        }
        due.tombstones = tombstones;
        self.unlist(std::mem::take(&mut due.settled)).await?;
        Ok(due)
    }

    /// The table and slot of the first tombstone listed from a place on.
    async fn next_listed(&self, place: &Place) -> Result<Option<(TableId, Slot)>, TableError> {
        let (graves, after) = (self.0.graves, place.after.clone());
        let (table, slot) = (place.table, place.slot);
        self.db().read(move |tx| Ok(graves.next(tx, table, slot, after)?)).await
    }

    /// When the latest of some tombstones was written.
    fn latest(&self, table: TableId, tombstones: &[(Grave, Vec<u8>)]) -> Result<Timestamp, TableError> {
        if is_planted(Bug::FloorNotRaised) {
            return Ok(Timestamp::ZERO);
        }
        let rules = self.0.table(table)?.rules.clone();
        tombstones.iter().try_fold(Timestamp::ZERO, |latest, (_grave, row)| Ok(latest.max(rules.written_at(row)?)))
    }

    async fn unlist(&self, settled: Vec<Grave>) -> Result<(), TableError> {
        if settled.is_empty() {
            return Ok(());
        }
        let tree = self.0.graves.0;
        let strike = move |tx: &mut Transaction<'_>| settled.iter().try_for_each(|grave| tx.remove(tree, &grave.listed));
        Ok(self.db().write(strike).await?)
    }

    /// How many tombstones wait to be collected.
    ///
    /// # Errors
    /// [`TableError`].
    pub async fn tombstones_listed(&self) -> Result<u64, TableError> {
        let tree = self.0.graves.0;
        Ok(self.db().read(move |tx| tx.count(tree)).await?)
    }
}

struct Due {
    tombstones: Vec<(Grave, Vec<u8>)>,
    settled: Vec<Grave>,
    /// Where to go on; `None` at the end.
    last: Option<Vec<u8>>,
}

/// Where the collector is.
#[derive(Clone, Debug)]
struct Place {
    table: TableId,
    slot: Slot,
    after: Option<Vec<u8>>,
}

/// The worker that collects where this node is the first owner.
pub struct Collector {
    store: TableStore,
    cluster: Cluster,
    clock: Arc<dyn Clock>,
    after: CollectAfter,
    tables: Vec<(TableId, Collection)>,
    place: Option<Place>,
    collected: u64,
}

impl Collector {
    pub fn new(store: TableStore, cluster: Cluster, clock: Arc<dyn Clock>, after: CollectAfter) -> Self {
        let tables = store.collected_tables();
        Collector { store, cluster, clock, after, tables, place: None, collected: 0 }
    }

    async fn work(&mut self) -> Result<Step, StepError> {
        let place = self.place.take().or_else(|| self.first_place());
        let Some(place) = self.seek(place).await? else { return Ok(Step::Idle) };
        self.place = Some(place.clone());
        let age = match self.tables.iter().find(|(table, _)| *table == place.table) {
            Some((_, Collection::Late)) => self.after.late,
            Some((_, Collection::Soon)) | None => self.after.soon,
        };
        let before = self.clock.now().minus_millis(age.as_millis() as u64);
        let due = self.store.due_tombstones(place.clone(), before).await?;
        let (table, slot) = (place.table, place.slot);
        self.place = match due.last {
            Some(last) => Some(Place { after: Some(last), ..place }),
            None => self.next_place(place),
        };
        let count = due.tombstones.len() as u64;
        if count > 0 {
            match self.collect(table, slot, due.tombstones).await {
                Ok(Collected::All) => self.collected += count,
                Ok(Collected::NotOurs) => {}
                // Rows that deletions left behind wait; they cost space only.
                Err(error) => tracing::debug!(?table, ?slot, error = %chain(&error), "tombstones are not collected yet"),
            }
        }
        Ok(if self.place.is_some() { Step::Busy } else { Step::Idle })
    }

    /// The first place from `place` on where tombstones are listed, due or not: most slots have none.
    async fn seek(&self, mut place: Option<Place>) -> Result<Option<Place>, TableError> {
        while let Some(from) = place {
            let Some((table, slot)) = self.store.next_listed(&from).await? else { return Ok(None) };
            let found = if (table, slot) == (from.table, from.slot) { from } else { Place { table, slot, after: None } };
            if self.tables.iter().any(|(collected, _)| *collected == table) {
                return Ok(Some(found));
            }
            place = self.next_place(found);
        }
        Ok(None)
    }

    fn first_place(&self) -> Option<Place> {
        self.tables.first().map(|(table, _)| Place { table: *table, slot: Slot(0), after: None })
    }

    fn next_place(&self, place: Place) -> Option<Place> {
        if let Some(slot) = place.slot.0.checked_add(1) {
            return Some(Place { slot: Slot(slot), after: None, ..place });
        }
        let later = self.tables.iter().find(|(table, _)| *table > place.table);
        later.map(|(table, _)| Place { table: *table, slot: Slot(0), after: None })
    }

    async fn collect(&self, table: TableId, slot: Slot, tombstones: Vec<(Grave, Vec<u8>)>) -> Result<Collected, TableError> {
        let layout = self.cluster.layout();
        let [version] = layout.live_versions() else { return Ok(Collected::NotOurs) };
        let mut owners = owners_of(&layout, slot);
        if is_planted(Bug::CollectedWithoutAllOwners) {
            owners.retain(|owner| self.cluster.mesh().is_up(*owner));
        }
        let is_first = owners.first() == Some(&self.cluster.node_id());
        let is_whole = self.cluster.layout_manager().standing().get() == Standing::Whole;
        if !is_first || !is_whole || !owners.iter().all(|owner| self.cluster.mesh().is_up(*owner)) {
            return Ok(Collected::NotOurs);
        }
        let rows: Vec<KeyedRow> = tombstones.iter().map(|(grave, row)| keyed(grave, row)).collect();
        let hold = HoldTombstones { layout: *version, table, slot, rows };
        let holders = if is_planted(Bug::TombstonesNotHeld) { &owners[..1] } else { &owners };
        let held = self.ask_all(holders, hold).await?;
        let epoch = held.iter().map(|held| held.epoch).max().unwrap_or(0) + 1;
        let floor = self.store.latest(table, &tombstones)?;
        if !is_planted(Bug::EpochNotAdvanced) {
            self.ask_all(&owners, AdvanceEpoch { layout: *version, table, slot, epoch, floor }).await?;
        }
        let named = tombstones.iter().map(|(grave, row)| named(grave, row)).collect();
        self.ask_all(&owners, DropTombstones { table, rows: named }).await?;
        self.store.unlist(tombstones.into_iter().map(|(grave, _)| grave).collect()).await?;
        Ok(Collected::All)
    }

    async fn ask_all<R: Request + Clone>(&self, owners: &[NodeId], request: R) -> Result<Vec<R::Reply>, TableError> {
        let calls = owners.iter().map(|owner| {
            let (cluster, request, node) = (&self.cluster, request.clone(), *owner);
            async move { cluster.call(node, request).await.map_err(|source| TableError::Peer { node, source }) }
        });
        futures_util::future::try_join_all(calls).await
    }
}

enum Collected {
    All,
    /// Another node is to collect them, or nobody at present.
    NotOurs,
}

fn keyed(grave: &Grave, row: &[u8]) -> KeyedRow {
    KeyedRow { key: ByteBuf::from(grave.key.clone()), row: ByteBuf::from(row.to_vec()) }
}

fn named(grave: &Grave, row: &[u8]) -> Named {
    Named { key: ByteBuf::from(grave.key.clone()), digest: RowDigest::of(&grave.key, row) }
}

/// Every node that owns part of a slot, by ascending id.
fn owners_of(layout: &ClusterLayout, slot: Slot) -> Vec<NodeId> {
    let mut placement = [0; 32];
    placement[0] = slot.0;
    let mut owners = Vec::new();
    for second in 0..=u8::MAX {
        placement[1] = second;
        owners.extend(layout.write_sets(Placement::from_bytes(placement)).into_iter().flatten());
        if layout.partition_bits() <= 8 {
            break;
        }
    }
    owners.sort_unstable();
    owners.dedup();
    owners
}

impl Worker for Collector {
    fn name(&self) -> String {
        "Tombstone collection".to_owned()
    }

    fn status(&self) -> Status {
        Status { tranquility: Some(1), progress: Some(format!("{} collected", self.collected)), ..Status::default() }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        Box::pin(self.work())
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(self.after.soon.max(Duration::from_secs(1))))
    }
}

impl Handler<HoldTombstones> for TableStore {
    fn handle(
        &self,
        _caller: Caller,
        request: Message<HoldTombstones>,
    ) -> BoxFuture<'static, Result<Message<TombstonesHeld>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.hold(request.body).await?.into()) }.boxed()
    }
}

impl Handler<AdvanceEpoch> for TableStore {
    fn handle(
        &self,
        _caller: Caller,
        request: Message<AdvanceEpoch>,
    ) -> BoxFuture<'static, Result<Message<EpochAdvanced>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.advance(request.body).await?.into()) }.boxed()
    }
}

impl Handler<DropTombstones> for TableStore {
    fn handle(
        &self,
        _caller: Caller,
        request: Message<DropTombstones>,
    ) -> BoxFuture<'static, Result<Message<TombstonesDropped>, RpcError>> {
        let store = self.clone();
        async move {
            store.drop_rows(request.body.table, request.body.rows).await?;
            Ok(TombstonesDropped {}.into())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use garage_rpc::layout::VersionKey;
    use garage_rpc::layout::version::LayoutDigest;
    use garage_types::Timestamp;
    use serde::{Deserialize, Serialize};

    use super::AdvanceEpoch;
    use crate::epochs::Slot;
    use crate::sync::wire::Digests;
    use crate::wire::{Page, TableId};

    /// As nodes of the versions before the floor write it.
    #[derive(Serialize, Deserialize)]
    struct OlderAdvance {
        l: VersionKey,
        t: TableId,
        s: Slot,
        e: u64,
    }

    #[derive(Serialize)]
    struct OlderPage {
        n: Vec<()>,
        x: bool,
    }

    #[derive(Serialize)]
    struct OlderDigests {
        r: Vec<()>,
        e: Vec<u64>,
    }

    fn reread<T: for<'a> Deserialize<'a>>(value: &impl Serialize) -> T {
        rmp_serde::from_slice(&rmp_serde::to_vec_named(value).unwrap()).unwrap()
    }

    #[test]
    fn nodes_that_know_no_floor_raise_none_and_understand_those_that_do() {
        let (layout, table, slot) = (VersionKey { number: 3, digest: LayoutDigest::from_bytes([7; 32]) }, TableId(4), Slot(5));
        let older: AdvanceEpoch = reread(&OlderAdvance { l: layout, t: table, s: slot, e: 6 });
        assert_eq!((older.epoch, older.floor), (6, Timestamp::ZERO));
        let newer: OlderAdvance = reread(&AdvanceEpoch { floor: Timestamp::from_millis(7), ..older });
        assert_eq!((newer.l, newer.t, newer.s, newer.e), (layout, table, slot, 6));
        let page: Page = reread(&OlderPage { n: Vec::new(), x: true });
        assert_eq!((page.truncated, page.floor), (true, Timestamp::ZERO));
        let digests: Digests = reread(&OlderDigests { r: Vec::new(), e: vec![1] });
        assert_eq!((digests.epochs, digests.floors, digests.notes), (vec![1], Vec::new(), Vec::new()));
    }
}
