//! Keeps the layout of one node: on disk, and published to everyone who places something.
//!
//! Invariants: what is published was saved before; this node acknowledges a version only when no write that ignores it is running (writes
//! hold a [`WritePermit`]), and when no row is left here from an earlier role in what the version gives it. All changes run one after
//! another on the blocking pool, as they compute and sync files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use arc_swap::ArcSwap;
use garage_types::codec::{decode, encode};
use garage_types::disk::{Access, read_state, replace_atomically};
use garage_types::offload::{Offload, offload};
use garage_types::planted::{Bug, is_planted};
use garage_types::{Clock, Disk, NodeId};
use garage_worker::{Changes as ToldChanges, Watch};
use tokio::sync::Notify;

use super::error::LayoutError;
use super::history::{Conflict, LayoutHistory, Merged, MissingData, OlderWrites, Preview, Skipped, resolve};
use super::report::Report;
use super::standing::{SharedStanding, Standing, StartFacts, at_start, with_layout};
use super::version::{LayoutParameters, NodeRole, VersionKey};
use super::view::ClusterLayout;

/// The state file's name in the metadata directory.
pub const LAYOUT_FILE: &str = "cluster_layout";

/// The layout of this node.
pub struct LayoutManager {
    clock: Arc<dyn Clock>,
    offload: Arc<dyn Offload>,
    shared: Arc<Shared>,
}

/// A write in progress, and the layout it goes by. Held until the last of its calls has ended: the version that follows is only
/// acknowledged then.
pub struct WritePermit {
    layout: Arc<ClusterLayout>,
    _generation: Arc<Generation>,
}

impl WritePermit {
    pub fn layout(&self) -> &Arc<ClusterLayout> {
        &self.layout
    }
}

/// All writes that know the same live versions.
struct Generation {
    ended: Arc<Notify>,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

struct Shared {
    me: NodeId,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Held through a whole change, on a thread that may block.
    changes: Mutex<Changes>,
    published: RwLock<Published>,
    current: ArcSwap<ClusterLayout>,
    changed: ToldChanges,
    writes_ended: Arc<Notify>,
    standing: SharedStanding,
}

struct Changes {
    history: Arc<LayoutHistory>,
    leftovers: Leftovers,
    /// Superseded generations, some of whose writes may still be running.
    draining: Vec<Weak<Generation>>,
}

/// What new writes start from. One lock over both, so that no write can slip in between a new layout and its generation.
struct Published {
    layout: Arc<ClusterLayout>,
    generation: Arc<Generation>,
}

/// Whether rows from an earlier role may be among this node's, so that it must not promise yet to have what it is given anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leftovers {
    /// There are no rows.
    Impossible,
    /// They are sorted out for these live versions; see [`LayoutManager::sorted_out`].
    SortedOutFor(BTreeSet<VersionKey>),
}

/// What a manager is made from.
pub struct LayoutSetup {
    pub me: NodeId,
    pub replication_factor: usize,
    pub metadata_dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub offload: Arc<dyn Offload>,
    pub clock: Arc<dyn Clock>,
    pub start: StartFacts,
    pub leftovers: Leftovers,
}

impl LayoutManager {
    /// Reads the state file. That there is none means that this node has no layout yet.
    ///
    /// # Errors
    /// [`LayoutError::ReplicationFactor`] when the stored layout was made for another replication factor; [`LayoutError::File`],
    /// [`LayoutError::Decode`] when the file is there and cannot be read.
    pub async fn open(setup: LayoutSetup) -> Result<Self, LayoutError> {
        let LayoutSetup { me, replication_factor, metadata_dir, disk, offload: pool, clock, start, leftovers } = setup;
        let path = metadata_dir.join(LAYOUT_FILE);
        let load = {
            let (disk, path) = (disk.clone(), path.clone());
            move || load(&*disk, &path, replication_factor)
        };
        let history = Arc::new(offload(&*pool, load).await.map_err(LayoutError::Interrupted)??);
        warn_of_conflicts(&history.conflicts());
        let layout = Arc::new(ClusterLayout::of(history.clone()));
        let writes_ended = Arc::new(Notify::new());
        let generation = Arc::new(Generation { ended: writes_ended.clone() });
        let standing = SharedStanding::new(at_start(start, &history, me));
        let shared = Shared {
            me,
            disk,
            path,
            changes: Mutex::new(Changes { history, leftovers, draining: Vec::new() }),
            current: ArcSwap::new(layout.clone()),
            changed: ToldChanges::default(),
            published: RwLock::new(Published { layout, generation }),
            writes_ended,
            standing,
        };
        let manager = LayoutManager { clock, offload: pool, shared: Arc::new(shared) };
        // No write survived the restart: versions that were waiting for one move on.
        manager.change(|_| Ok(())).await?;
        Ok(manager)
    }

    /// How far this node's own rows can be trusted.
    pub fn standing(&self) -> &SharedStanding {
        &self.shared.standing
    }

    /// The rebuilding is over: this node has every row it must have.
    ///
    /// # Errors
    /// Those of saving.
    pub async fn rebuilt(&self) -> Result<(), LayoutError> {
        self.shared.standing.set(Standing::Whole);
        self.change(|_| Ok(())).await
    }

    /// An operator declared this node's database whole, and its rows are back.
    pub fn accepted(&self) {
        self.shared.standing.set(Standing::Accepted);
    }

    /// The layout now, for reading. Writes take a [`WritePermit`] instead.
    pub fn current(&self) -> Arc<ClusterLayout> {
        self.shared.current.load_full()
    }

    /// Tells of every change: of versions, of staged changes, of trackers.
    pub fn watch(&self) -> Watch {
        self.shared.changed.watch()
    }

    /// Begins a write.
    pub fn begin_write(&self) -> WritePermit {
        let published = self.shared.published.read().unwrap_or_else(PoisonError::into_inner);
        WritePermit { layout: published.layout.clone(), _generation: published.generation.clone() }
    }

    /// Admits a write to this node that `writer` coordinates by the layout with number `version`, and answers for it as long as the
    /// permit is held: this node acknowledges no newer layout meanwhile. That is needed for writers without a role, whom nobody asks
    /// for an acknowledgement. `None` when a newer layout is known here already and not everyone who knows it asks the writer: those
    /// who receive rows for that layout may have been here, and the write would not reach them.
    pub fn admit(&self, writer: NodeId, version: u64) -> Option<WritePermit> {
        let permit = self.begin_write();
        let layout = permit.layout();
        let is_awaited = version >= layout.version() || layout.history().awaits(writer, version);
        (is_awaited || is_planted(Bug::StrangersAdmitted)).then_some(permit)
    }

    /// Prepares a role; see [`LayoutHistory::stage_role`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn stage_role(&self, node: NodeId, role: NodeRole) -> Result<(), LayoutError> {
        let now = self.clock.now();
        self.change(move |history| history.stage_role(now, node, role)).await
    }

    /// Prepares a removal; see [`LayoutHistory::stage_removal`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn stage_removal(&self, node: NodeId) -> Result<(), LayoutError> {
        let now = self.clock.now();
        self.change(move |history| history.stage_removal(now, node)).await
    }

    /// Prepares parameters; see [`LayoutHistory::stage_parameters`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn stage_parameters(&self, parameters: LayoutParameters) -> Result<(), LayoutError> {
        let now = self.clock.now();
        self.change(move |history| history.stage_parameters(now, parameters)).await
    }

    /// Drops what is staged.
    ///
    /// # Errors
    /// Those of saving.
    pub async fn revert(&self) -> Result<(), LayoutError> {
        self.change(|history| {
            history.revert();
            Ok(())
        })
        .await
    }

    /// Computes what [`Self::apply`] would make.
    ///
    /// # Errors
    /// As [`LayoutHistory::preview`].
    pub async fn preview(&self) -> Result<Preview, LayoutError> {
        let history = self.current().history().clone();
        offload(&*self.offload, move || history.preview()).await.map_err(LayoutError::Interrupted)?
    }

    /// Makes the staged changes the next version; see [`LayoutHistory::apply`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn apply(&self, number: u64) -> Result<Report, LayoutError> {
        self.change(move |history| history.apply(number)).await
    }

    /// Ends a conflict in favour of the layout whose digest begins with `prefix`; see [`resolve::chosen`] and
    /// [`LayoutHistory::resolve`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn resolve(&self, prefix: String) -> Result<VersionKey, LayoutError> {
        self.change(move |history| {
            let chosen = resolve::chosen(&history.conflicts(), &prefix)?;
            history.resolve(chosen)?;
            Ok(chosen)
        })
        .await
    }

    /// Moves on without dead nodes; see [`LayoutHistory::skip_dead_nodes`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn skip_dead_nodes(
        &self,
        number: u64,
        dead: BTreeSet<NodeId>,
        missing: MissingData,
    ) -> Result<Skipped, LayoutError> {
        self.change(move |history| history.skip_dead_nodes(number, &dead, missing)).await
    }

    /// Records that this node has all metadata of versions up to `key`; see [`LayoutHistory::mark_synced`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn mark_synced(&self, key: VersionKey) -> Result<(), LayoutError> {
        let me = self.shared.me;
        self.change(move |history| history.mark_synced(me, key)).await
    }

    /// Records that this node has no row left from an earlier role in what these live versions give it, and acknowledges them where
    /// nothing else is waited for.
    ///
    /// # Errors
    /// Those of saving.
    pub async fn sorted_out(&self, live: Vec<VersionKey>) -> Result<(), LayoutError> {
        let shared = self.shared.clone();
        let record = move || {
            if let Leftovers::SortedOutFor(sorted) = &mut shared.lock().leftovers {
                *sorted = live.into_iter().collect();
            }
            shared.change(|_| Ok(()))
        };
        offload(&*self.offload, record).await.map_err(LayoutError::Interrupted)?
    }

    /// Records that this node has nothing to move for `key`; see [`LayoutHistory::mark_blocks_verified`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn mark_blocks_verified(&self, key: VersionKey) -> Result<(), LayoutError> {
        let me = self.shared.me;
        self.change(move |history| history.mark_blocks_verified(me, key)).await
    }

    /// Takes in what another node knows; see [`LayoutHistory::merge`].
    ///
    /// # Errors
    /// As there, and those of saving.
    pub async fn merge_remote(&self, remote: LayoutHistory) -> Result<Merged, LayoutError> {
        let merged = self.change(move |history| history.merge(&remote)).await?;
        warn_of_conflicts(&merged.new_conflicts);
        Ok(merged)
    }

    /// Acknowledges new versions as the writes that ignore them end. Never returns; the node's wiring runs it in the background.
    pub async fn acknowledge_as_writes_end(&self) {
        loop {
            self.shared.writes_ended.notified().await;
            if let Err(error) = self.change(|_| Ok(())).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot acknowledge the layout; the next change tries again"
                );
            }
        }
    }

    /// Runs one change; once this returns it is on stable storage and published. On an error nothing has changed.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut LayoutHistory) -> Result<T, LayoutError> + Send + 'static,
    ) -> Result<T, LayoutError> {
        let shared = self.shared.clone();
        offload(&*self.offload, move || shared.change(change)).await.map_err(LayoutError::Interrupted)?
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut LayoutHistory) -> Result<T, LayoutError>) -> Result<T, LayoutError> {
        let mut changes = self.lock();
        let mut next = (*changes.history).clone();
        let outcome = change(&mut next)?;
        self.commit(&mut changes, next)?;
        // Publishing a version may have ended the last writes that ignored it, and each step may allow the next.
        loop {
            let mut next = (*changes.history).clone();
            self.judge_fresh(&next);
            match self.standing.get() {
                Standing::Whole => {
                    let waits_for = changes.waits_for(&next);
                    next.advance(self.me, waits_for);
                }
                // Its word is worth nothing yet.
                Standing::Fresh | Standing::Rebuilding | Standing::Accepted => next.retire_synced(),
            }
            if next == *changes.history {
                return Ok(outcome);
            }
            self.commit(&mut changes, next)?;
        }
    }

    /// A new database is judged by the first layout that names this node.
    fn judge_fresh(&self, history: &LayoutHistory) {
        if self.standing.get() == Standing::Fresh {
            match with_layout(history, self.me) {
                Standing::Fresh => {}
                standing => {
                    if standing == Standing::Rebuilding {
                        tracing::warn!(node = %self.me, "the layout counts on rows that this node's new database lacks; rebuilding from the other owners");
                    }
                    self.standing.set(standing);
                }
            }
        }
    }

    /// A change that panicked left the history as it was.
    fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves, then publishes.
    fn commit(&self, changes: &mut Changes, next: LayoutHistory) -> Result<(), LayoutError> {
        if next == *changes.history {
            return Ok(());
        }
        replace_atomically(&*self.disk, &self.path, &encode(&next), Access::Everyone)?;
        let next = Arc::new(next);
        let layout = Arc::new(ClusterLayout::of(next.clone()));
        let before = std::mem::replace(&mut changes.history, next);
        let known: BTreeSet<VersionKey> = before.live().map(|version| version.key()).collect();
        let has_new_version = layout.live_versions().iter().any(|key| !known.contains(key));
        {
            let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
            published.layout = layout.clone();
            if has_new_version {
                let generation = Arc::new(Generation { ended: self.writes_ended.clone() });
                let superseded = std::mem::replace(&mut published.generation, generation);
                changes.draining.push(Arc::downgrade(&superseded));
            }
        }
        self.current.store(layout);
        self.changed.tell();
        Ok(())
    }
}

impl Changes {
    /// What the acknowledgement of the live versions waits for.
    fn waits_for(&mut self, next: &LayoutHistory) -> OlderWrites {
        match &self.leftovers {
            Leftovers::SortedOutFor(sorted) if !next.live().all(|version| sorted.contains(&version.key())) => {
                OlderWrites::Running
            }
            Leftovers::SortedOutFor(_) | Leftovers::Impossible => self.older_writes(),
        }
    }

    fn older_writes(&mut self) -> OlderWrites {
        self.draining.retain(|generation| generation.strong_count() > 0);
        if self.draining.is_empty() { OlderWrites::Done } else { OlderWrites::Running }
    }
}

fn warn_of_conflicts(conflicts: &[Conflict]) {
    for Conflict { number, digests } in conflicts {
        tracing::error!(number, ?digests, "different layouts have one number; choose one with `garage layout resolve`");
    }
}

/// The layouts that a metadata directory remembers, without opening them for changes; none when there is no file.
///
/// # Errors
/// As [`LayoutManager::open`].
pub fn stored(disk: &dyn Disk, metadata_dir: &Path, replication_factor: usize) -> Result<LayoutHistory, LayoutError> {
    load(disk, &metadata_dir.join(LAYOUT_FILE), replication_factor)
}

fn load(disk: &dyn Disk, path: &Path, replication_factor: usize) -> Result<LayoutHistory, LayoutError> {
    let Some(bytes) = read_state(disk, path)? else { return Ok(LayoutHistory::new(replication_factor)) };
    let history: LayoutHistory = decode(&bytes).map_err(|source| LayoutError::Decode { path: path.to_owned(), source })?;
    let found = history.replication_factor();
    if found != replication_factor {
        return Err(LayoutError::ReplicationFactor { found, configured: replication_factor });
    }
    Ok(history)
}

#[cfg(test)]
mod tests;
