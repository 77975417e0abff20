//! The worker that keeps this node's rows equal to the other owners': now and then, after layout changes, when told to, and with a
//! peer that comes up or did not take a write. It also moves partitions: what a new layout version asks for is received, what it takes
//! away is handed over; and it rebuilds a node whose database was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use garage_rpc::cluster::Cluster;
use garage_rpc::layout::gossip::{newly_met, some_of};
use garage_rpc::layout::{ClusterLayout, Standing, VersionKey};
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Random, chain};
use garage_worker::{Status, Step, StepError, Watch, Worker};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::leave::Leave;
use super::plan::{OwnRows, Part};
use super::round::{Extent, Job, Round, UnitIndex};
use super::session::{Moved, Progress, Session, Surroundings};
use super::tenure::Tenures;
use super::wire::AskDigests;
use crate::epochs::Slot;
use crate::error::TableError;
use crate::schema::Replication;
use crate::set_aside::Reason;
use crate::store::TableStore;
use crate::wire::TableId;

/// Between two rounds when nothing happens: at least this, at most three times this.
const PERIOD: Duration = Duration::from_secs(10 * 60);
/// How long a peer that did not take a write is left alone before its rows are compared.
const MISSED_REST: Duration = Duration::from_secs(60);
/// Before a round is repeated that had to succeed and did not.
const RETRY: Duration = Duration::from_secs(5);
/// It takes twice as long each time, up to some five minutes.
const RETRY_DOUBLINGS_MAX: u32 = 6;
/// With how many nodes tables that every node has are compared when nothing happened: whoever lacks a row soon meets one who has it.
const FULL_COPIES_COMPARED: usize = 5;
/// In calls: writes that were under way when this node started have ended by then, those included that were sent a second time.
const LATE_WRITE_CALLS: u32 = 2;

/// Lets others ask for a round.
#[derive(Clone, Debug, Default)]
pub struct SyncControl(Arc<Control>);

#[derive(Debug, Default)]
struct Control {
    wanted: AtomicBool,
    notify: Notify,
}

impl SyncControl {
    /// Asks for a full round, as soon as the present one is over.
    pub fn request(&self) {
        self.0.wanted.store(true, Ordering::Release);
        self.0.notify.notify_one();
    }

    fn take(&self) -> bool {
        self.0.wanted.swap(false, Ordering::AcqRel)
    }
}

/// See the module.
pub struct SyncWorker {
    around: Surroundings,
    tables: Vec<(TableId, Replication)>,
    random: Arc<dyn Random>,
    control: SyncControl,
    layouts: Watch,
    links: Watch,
    /// The peers connected when the links last changed; see [`Mesh::arrivals`](garage_rpc::mesh::Mesh::arrivals).
    met: BTreeMap<NodeId, u64>,
    /// Peers that have come up, or have missed a write, since the last round began.
    arrived: BTreeSet<NodeId>,
    /// When those that have missed a write are compared.
    missed_at: Option<Instant>,
    /// Live versions that the last round was made for.
    seen: Vec<VersionKey>,
    next_at: Instant,
    round: Option<Round>,
    round_began: Instant,
    started: Instant,
    active: Option<Active>,
    moved: Moved,
    rounds: u64,
    /// Rows of an earlier time that were set aside, and may be among those that the other owners give this node.
    leftovers: u64,
    /// Rounds in a row that did not reach everybody who is there.
    retries: u32,
    /// How far the rows set aside were compared with this node's tables, since its start or its rebuilding; `None` when that is over.
    known_after: Option<Option<Vec<u8>>>,
}

/// What is under way.
enum Active {
    Session { unit: UnitIndex, peer: NodeId, session: Box<Session> },
    Leave { unit: UnitIndex, leave: Box<Leave> },
}

impl SyncWorker {
    pub fn new(store: TableStore, cluster: Cluster, random: Arc<dyn Random>, control: SyncControl) -> Self {
        control.request();
        SyncWorker {
            tables: store.tables(),
            layouts: cluster.layout_manager().watch(),
            links: cluster.mesh().watch(),
            around: Surroundings { store, cluster, layout: 0 },
            random,
            control,
            met: BTreeMap::new(),
            arrived: BTreeSet::new(),
            missed_at: None,
            seen: Vec::new(),
            next_at: Instant::now(),
            round: None,
            round_began: Instant::now(),
            started: Instant::now(),
            active: None,
            moved: Moved::default(),
            rounds: 0,
            leftovers: 0,
            retries: 0,
            // What an earlier run did not come to.
            known_after: Some(None),
        }
    }

    fn me(&self) -> NodeId {
        self.around.cluster.node_id()
    }

    /// Whether the cluster waits for what a round brings.
    fn is_awaited(&self, layout: &ClusterLayout) -> bool {
        let standing = self.around.cluster.layout_manager().standing().get();
        matches!(standing, Standing::Rebuilding | Standing::Accepted) || layout.history().version_to_sync(self.me()).is_some()
    }

    async fn begin_if_due(&mut self) -> Result<Progress, TableError> {
        let layout = self.around.cluster.layout();
        let is_new = self.seen != layout.live_versions();
        let is_wanted = self.control.take() || is_new;
        let due = Instant::now() >= self.next_at;
        if !is_wanted && !due && self.arrived.is_empty() {
            return Ok(Progress::Finished);
        }
        let standing = self.around.cluster.layout_manager().standing().get();
        if layout.is_empty() || standing == Standing::Fresh {
            self.next_at = Instant::now() + PERIOD;
            return Ok(Progress::Finished);
        }
        let own = match standing {
            Standing::Rebuilding => OwnRows::Rebuilding,
            Standing::Accepted => OwnRows::Accepted,
            Standing::Fresh | Standing::Whole => OwnRows::Whole,
        };
        let tenures = self.around.store.tenures().await?;
        let tenures = if own == OwnRows::Whole { self.sort_out_leftovers(&layout, tenures).await? } else { tenures };
        self.seen = layout.live_versions().to_vec();
        self.around.layout = self.seen.first().map_or(0, |key| key.number);
        let mut round = Round::new(&layout, self.me(), (own, &tenures), &self.tables);
        let arrived = std::mem::take(&mut self.arrived);
        if !is_wanted && !due {
            round.restrict_to(&arrived);
        } else if !is_wanted && self.retries == 0 && !self.is_awaited(&layout) {
            let others = layout.all_nodes().iter().copied().filter(|node| *node != self.me()).collect();
            round.spare_full_copies(&some_of(others, FULL_COPIES_COMPARED, &*self.random).into_iter().collect());
        }
        tracing::debug!(node = %self.me().short(), jobs = round.jobs.len(), ?own, "comparing all rows with the other owners");
        self.round = Some(round);
        self.round_began = Instant::now();
        Ok(Progress::More)
    }

    /// Sets aside what this node has from an earlier time in slices that the layout gives it, which it then acknowledges. Returns what
    /// is recorded by then.
    async fn sort_out_leftovers(&mut self, layout: &ClusterLayout, tenures: Tenures) -> Result<Tenures, TableError> {
        let me = self.me();
        let leftovers = tenures.leftovers(layout, me);
        let kept = self.around.store.set_slices_aside(leftovers, Reason::Returned).await?;
        self.leftovers += kept;
        if kept > 0 {
            tracing::warn!(node = %me, rows = kept, "this node owns partitions again that it owned long ago: the rows it had kept of them are set aside, and fetched anew from the other owners");
        }
        let sorted = tenures.without_leftovers(layout, me);
        if sorted != tenures {
            self.around.store.record_tenures(&sorted).await?;
        }
        let live = layout.live_versions().to_vec();
        self.around.cluster.layout_manager().sorted_out(live).await.map_err(TableError::Layout)?;
        Ok(sorted)
    }

    /// Whether the present round compares all that counts on the rows which this node lost. A write that began before may still wait
    /// for a second owner, who stores it after this node asked for its rows: with the answer of the lost database that is a quorum.
    fn is_after_late_writes(&self) -> bool {
        let ended = self.started + self.around.cluster.timeouts().metadata * LATE_WRITE_CALLS;
        self.round_began >= ended || is_planted(Bug::LateWritesMissed)
    }

    /// Gives a round up that was planned for other layout versions than those that are live by now.
    fn give_up_if_outdated(&mut self) {
        if self.round.is_some() && self.seen != self.around.cluster.layout().live_versions() {
            self.round = None;
            self.active = None;
            self.control.request();
        }
    }

    async fn work(&mut self) -> Result<Step, StepError> {
        // Until its tables are whole, what is set aside may be all there is.
        let is_whole = self.around.cluster.layout_manager().standing().get() == Standing::Whole;
        if let Some(after) = self.known_after.take_if(|_after| is_whole) {
            self.known_after = self.around.store.forget_what_is_known(after).await?.map(Some);
            return Ok(Step::Busy);
        }
        self.give_up_if_outdated();
        if self.round.is_none() {
            // What was asked for is not forgotten because it could not begin.
            match self.begin_if_due().await.inspect_err(|_error| self.control.request())? {
                Progress::More => {}
                Progress::Finished => return Ok(Step::Idle),
            }
        }
        if let Some(active) = self.active.take() {
            self.go_on(active).await;
            return Ok(Step::Busy);
        }
        let Some(round) = &mut self.round else { return Ok(Step::Idle) };
        match round.jobs.pop_front() {
            Some(job) => self.start(job).await,
            None => self.finish().await?,
        }
        Ok(Step::Busy)
    }

    async fn start(&mut self, job: Job) {
        match job {
            Job::Roots { peer, units } => {
                if let Err(error) = self.compare_roots(peer, &units).await {
                    self.failed(peer, &error);
                }
            }
            Job::Session { peer, unit } => {
                let Some(round) = &self.round else { return };
                let (table, plan) = round.unit(unit);
                let session = Session::new(self.around.clone(), table, plan.range.clone(), peer, plan.part);
                self.active = Some(Active::Session { unit, peer, session: Box::new(session) });
            }
            Job::Leave { unit } => {
                let Some(round) = &self.round else { return };
                let (table, plan) = round.unit(unit);
                let leave = Leave::new(self.around.clone(), table, plan.range.clone(), plan.peers.clone());
                self.active = Some(Active::Leave { unit, leave: Box::new(leave) });
            }
        }
    }

    async fn go_on(&mut self, active: Active) {
        match active {
            Active::Session { unit, peer, mut session } => match session.step().await {
                Ok(Progress::More) => self.active = Some(Active::Session { unit, peer, session }),
                Ok(Progress::Finished) => {
                    self.moved.add(session.moved);
                    if let Err(error) = self.session_done(unit, peer, session.epoch_seen).await {
                        self.failed(peer, &error);
                    }
                }
                Err(error) => {
                    self.moved.add(session.moved);
                    self.failed(peer, &error);
                }
            },
            Active::Leave { unit, mut leave } => match leave.step().await {
                Ok(Progress::More) => self.active = Some(Active::Leave { unit, leave }),
                Ok(Progress::Finished) => self.moved.add(leave.moved),
                Err(error) => {
                    self.moved.add(leave.moved);
                    let Some(round) = &mut self.round else { return };
                    round.failures += 1;
                    let (table, plan) = round.unit(unit);
                    let range = hex::encode(&plan.range.from);
                    tracing::info!(?table, range, error = %chain(&error), "rows that belong to other nodes could not be handed over yet");
                }
            },
        }
    }

    async fn session_done(&mut self, unit: UnitIndex, peer: NodeId, epoch: u64) -> Result<(), TableError> {
        let Some(round) = &mut self.round else { return Ok(()) };
        round.done(unit, peer);
        let (table, plan) = round.unit(unit);
        if plan.part == Part::Returner && round.is_satisfied(unit) {
            // Its own rows have been sorted out by now.
            let slot = Slot::of_key(&plan.range.from);
            self.around.store.raise_epoch(table, slot, epoch).await?;
        }
        Ok(())
    }

    /// Finds out which of these ranges differ from a peer's.
    async fn compare_roots(&mut self, peer: NodeId, units: &[UnitIndex]) -> Result<(), TableError> {
        let Some(round) = &self.round else { return Ok(()) };
        let Some((table, _)) = units.first().map(|unit| round.unit(*unit)) else { return Ok(()) };
        let ranges: Vec<_> = units.iter().map(|unit| round.unit(*unit).1.range.clone()).collect();
        let ask =
            AskDigests { layout: self.around.layout, table, ranges: ranges.iter().cloned().map(Into::into).collect(), pieces: 1 };
        let theirs = self.around.call(peer, ask).await?;
        let slots = ranges.iter().map(|range| Slot::of_key(&range.from));
        self.around.store.raise_floors(table, slots.zip(theirs.floors).collect()).await?;
        self.around.store.keep_notes(table, theirs.notes).await?;
        let own = self.around.store.range_digests(table, ranges.clone()).await?;
        let mut behind = Vec::new();
        let Some(round) = &mut self.round else { return Ok(()) };
        let epochs = theirs.epochs.into_iter().chain(std::iter::repeat(0));
        for (((unit, own), pieces), epoch) in units.iter().zip(own).zip(theirs.ranges).zip(epochs) {
            // A reply without a digest proves nothing.
            if !pieces.is_empty() && pieces.iter().all(|piece| piece.digest == own) {
                round.done(*unit, peer);
                // With nothing to sort out, this node may follow at once.
                let slot = Slot::of_key(&round.unit(*unit).1.range.from);
                if self.around.store.known_slot_epoch(table, slot) < epoch {
                    behind.push((slot, epoch));
                }
            } else {
                round.jobs.push_front(Job::Session { peer, unit: *unit });
            }
        }
        for (slot, epoch) in behind {
            self.around.store.raise_epoch(table, slot, epoch).await?;
        }
        Ok(())
    }

    fn failed(&mut self, peer: NodeId, error: &TableError) {
        tracing::debug!(%peer, error = %chain(error), "rows could not be compared with a peer");
        if let Some(round) = &mut self.round {
            round.failures += 1;
            round.failed.insert(peer);
            // One that does not answer is not asked again in this round.
            if error.is_unreachable() {
                round
                    .jobs
                    .retain(|job| !matches!(job, Job::Roots { peer: to, .. } | Job::Session { peer: to, .. } if *to == peer));
            }
        }
    }

    async fn finish(&mut self) -> Result<(), TableError> {
        let Some(round) = self.round.take() else { return Ok(()) };
        self.rounds += 1;
        let layout = self.around.cluster.layout();
        let manager = self.around.cluster.layout_manager();
        let proof = round.proof(&layout);
        let failures = round.failures;
        tracing::debug!(node = %self.me().short(), failures, complete = proof.complete, moved = ?self.moved, "compared all rows");
        if proof.complete && self.seen == layout.live_versions() {
            let compared = Tenures::compared(&layout, self.me());
            if compared != self.around.store.tenures().await? {
                self.around.store.record_tenures(&compared).await?;
            }
            if std::mem::take(&mut self.leftovers) > 0 {
                self.known_after = Some(None);
            }
        }
        // A peer that is not connected is compared when it is again.
        let missed_some = round.failed.iter().any(|peer| self.around.cluster.mesh().is_up(*peer));
        // An operator may have declared the database whole meanwhile: then it is compared first.
        let is_rebuilding = round.own == OwnRows::Rebuilding && manager.standing().is_rebuilding();
        let is_rebuilt = is_rebuilding && proof.complete && self.is_after_late_writes();
        if is_rebuilt && !self.around.store.is_accepting().await? {
            self.around.store.record_rebuilt().await?;
            manager.rebuilt().await.map_err(TableError::Layout)?;
            tracing::info!(node = %self.me(), rows = self.moved.received, "the metadata is rebuilt; this node answers again");
            self.control.request();
            self.known_after = Some(None);
        } else if round.own == OwnRows::Accepted
            && proof.complete
            && !missed_some
            && manager.standing().get() == Standing::Accepted
        {
            self.around.store.record_settled().await?;
            manager.rebuilt().await.map_err(TableError::Layout)?;
            tracing::info!(node = %self.me(), "the accepted metadata are compared with the other owners'");
            self.control.request();
        } else if let Some(version) = proof.synced.filter(|_| round.own == OwnRows::Whole) {
            manager.mark_synced(version).await.map_err(TableError::Layout)?;
            tracing::info!(node = %self.me(), layout = version.number, "this node has all metadata of the layout");
        }
        if round.extent == Extent::SomePeers && !missed_some {
            return Ok(());
        }
        let rest = if self.is_awaited(&self.around.cluster.layout()) {
            RETRY
        } else if missed_some || round.failures > 0 && round.has_leavers() {
            let doublings = self.retries.min(RETRY_DOUBLINGS_MAX);
            self.retries = self.retries.saturating_add(1);
            RETRY * (1 << doublings)
        } else {
            self.retries = 0;
            PERIOD + Duration::from_millis(self.random.below(2 * PERIOD.as_millis() as u64))
        };
        self.next_at = Instant::now() + rest;
        Ok(())
    }
}

impl Worker for SyncWorker {
    fn name(&self) -> String {
        "Table sync".to_owned()
    }

    fn status(&self) -> Status {
        let Moved { received, sent, set_aside, dropped } = self.moved;
        let mut messages = vec![format!("rows received {received}, sent {sent}, handed over {dropped}, set aside {set_aside}")];
        if let Some(round) = &self.round
            && round.own == OwnRows::Rebuilding
        {
            messages.push("rebuilding this node's metadata from the other owners".to_owned());
        }
        Status {
            queue_length: Some(self.round.as_ref().map_or(0, |round| round.jobs.len() as u64)),
            progress: Some(format!("{} rounds", self.rounds)),
            messages,
            ..Status::default()
        }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        Box::pin(self.work())
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let standing = self.around.cluster.layout_manager().standing().clone();
            let cluster = self.around.cluster.clone();
            loop {
                let missed_at = self.missed_at;
                let compare_missed = async {
                    match missed_at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = self.control.0.notify.notified() => return,
                    () = standing.changed() => return self.control.request(),
                    () = tokio::time::sleep_until(self.next_at) => return,
                    () = compare_missed => {
                        self.missed_at = None;
                        let mut missed = cluster.missed().take();
                        if missed.remove(&cluster.node_id()) {
                            // What this node did not store itself, any of the others may have.
                            self.control.request();
                        }
                        // Those that are down are compared when they come up.
                        self.arrived.extend(missed.into_iter().filter(|peer| cluster.mesh().is_up(*peer)));
                        if !self.arrived.is_empty() {
                            return;
                        }
                    }
                    () = cluster.missed().added() => {
                        self.missed_at.get_or_insert_with(|| Instant::now() + MISSED_REST);
                    }
                    () = self.links.changed() => {
                        let before = std::mem::replace(&mut self.met, self.around.cluster.mesh().arrivals());
                        let arrived = newly_met(&before, &self.met);
                        if arrived.is_empty() {
                            continue;
                        }
                        self.arrived.extend(arrived);
                        // What the cluster waits for takes several peers in one round.
                        if self.is_awaited(&self.around.cluster.layout()) {
                            self.control.request();
                        }
                        return;
                    }
                    () = self.layouts.changed() => {
                        let layout = self.around.cluster.layout();
                        if self.seen != layout.live_versions() || self.is_awaited(&layout) {
                            return self.control.request();
                        }
                    }
                }
            }
        })
    }
}
