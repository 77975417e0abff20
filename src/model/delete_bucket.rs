//! Deleting a bucket: the holder's side of [`crate::closing`], and the end of marks whose holder is gone.
//!
//! Must stay true: the bucket's row says "deleted" only after a write quorum of the owners of every index shard, in every live layout, has
//! decided so under this deletion's mark. The layout is held until then, so that none of these layouts is given up meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use garage_rpc::error::RpcError;
use garage_rpc::layout::WritePermit;
use garage_rpc::quorum::{ConsistencyMode, NodeError, QuorumError, Quorums, WriteQuorum};
use garage_table::TableError;
use garage_types::crdt::Deletable;
use garage_types::{BucketId, NodeId, VersionId, chain};
use tokio::time::Instant;

use crate::bucket::BucketRow;
use crate::closing::{Ask, AskClosing, AskLive, ClosingAnswer, Mark, Step};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::key::Permissions;
use crate::object::IndexShard;
use crate::unfinished::{Counted, Outcome};
use crate::working::Activity;

/// Takings over, and looks at objects that only some owners have, before the client is asked to come again.
const ATTEMPTS_MAX: usize = 4;

/// How long an owner keeps a mark whose holder does not answer. Nothing is lost when the holder is at work all the same: without the mark
/// of a quorum it cannot decide, and its deletion fails.
const SILENT_MS: u64 = 10 * 60_000;

/// Within how long the owners that keep a final mark begin to carry it on.
const SETTLED_WITHIN_MS: u64 = 10_000;

/// A deletion under way.
struct Deletion {
    bucket: BucketId,
    shards: u16,
    work: VersionId,
    permit: Arc<WritePermit>,
    /// The owners of each shard, in each live layout.
    sets: Vec<Vec<NodeId>>,
    quorum: usize,
}

/// An owner that keeps the mark.
struct Keeper {
    node: NodeId,
    step: Step,
    /// Objects that it has counted.
    live: u64,
}

/// Owners that keep the mark.
struct Kept {
    keepers: Vec<Keeper>,
    /// Whether an earlier holder may have decided.
    may_be_decided: bool,
}

/// Why an owner does not count.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error("the owner answered {0:?}")]
    Answer(ClosingAnswer),
    #[error(transparent)]
    Rpc(RpcError),
}

fn being_deleted() -> ModelError {
    ModelError::Conflict("the bucket is being deleted by another request at this moment; try again".to_owned())
}

impl Garage {
    /// Deletes an empty bucket, its names and the permissions on it. Open multipart uploads go with it: they are no objects, and
    /// hardly any client lists them to find out why a bucket without objects cannot be deleted.
    ///
    /// # Errors
    /// [`ModelError::BucketNotEmpty`]; [`ModelError::NoSuchBucket`]; [`ModelError::Conflict`] while another request deletes it, or while an
    /// upload is being completed; [`ModelError::Table`] when too few owners answered: it may then be deleted later.
    pub async fn delete_bucket(&self, id: BucketId) -> Result<(), ModelError> {
        self.certain().delete_bucket_for_certain(id).await
    }

    async fn delete_bucket_for_certain(&self, id: BucketId) -> Result<(), ModelError> {
        let missing = || ModelError::NoSuchBucket(id.to_string());
        let row = self.0.buckets.get(id.into(), Vec::new()).await?.ok_or_else(missing)?;
        let Deletable::Present(state) = &row.state else { return Err(missing()) };
        let work = VersionId::random(&*self.0.random);
        let working = self.0.local.working.on(work);
        let deletion = self.deletion(id, state.index_shards, work)?;
        let deleted = self.delete_under_mark(&deletion).await;
        drop((working, deletion));
        deleted
    }

    fn deletion(&self, bucket: BucketId, shards: u16, work: VersionId) -> Result<Deletion, ModelError> {
        let permit = self.0.cluster.begin_write();
        if permit.layout().is_empty() {
            return Err(TableError::NoLayout.into());
        }
        let sets_of = |shard| permit.layout().write_sets(IndexShard { bucket, shard }.placement());
        let sets = (0..shards).flat_map(sets_of).collect();
        // Whatever the mode: what is judged here is deleted for good.
        let quorum = Quorums::of(permit.layout().replication_factor(), ConsistencyMode::Consistent).write;
        Ok(Deletion { bucket, shards, work, permit, sets, quorum })
    }

    async fn delete_under_mark(&self, deletion: &Deletion) -> Result<(), ModelError> {
        let kept = self.close_bucket(deletion).await?;
        // Where it may be decided, nothing can have come in since.
        if !kept.may_be_decided
            && let Err(error) = self.check_empty(deletion, kept.keepers).await
        {
            self.open_bucket(deletion, Ask::Reopen).await;
            return Err(error);
        }
        let began = Instant::now();
        self.decide(deletion).await?;
        // They are others': not before it is certain that their bucket goes. But before it goes, since nothing leads to their parts then.
        self.abort_all_uploads(deletion.bucket).await?;
        // An owner that lost its database, and the mark, is whole again after two time-outs at the earliest.
        if began.elapsed() > self.0.cluster.timeouts().metadata {
            self.decide(deletion).await?;
        }
        self.forget_bucket(deletion.bucket).await
    }

    /// Has the mark kept by a write quorum everywhere.
    async fn close_bucket(&self, deletion: &Deletion) -> Result<Kept, ModelError> {
        let mut gone: Vec<VersionId> = Vec::new();
        for _attempt in 0..ATTEMPTS_MAX {
            let failed = match self.ask_keepers(deletion, Ask::Close(gone.clone())).await {
                Ok(keepers) => return Ok(self.kept(deletion, keepers).await),
                Err(failed) => failed,
            };
            let others = match others_of(failed) {
                Ok(others) => others,
                Err(error) => {
                    self.open_bucket(deletion, Ask::Open).await;
                    return Err(match error {
                        ModelError::NoSuchBucket(_) => ModelError::NoSuchBucket(deletion.bucket.to_string()),
                        error => error,
                    });
                }
            };
            let at_work = self.who_is_at_work(others.iter().map(|mark| (mark.holder, mark.work))).await;
            if others.iter().any(|mark| self.is_held(mark, at_work.activity(mark.holder, mark.work))) {
                break;
            }
            gone.extend(others.iter().map(|mark| mark.work));
        }
        self.open_bucket(deletion, Ask::Open).await;
        Err(being_deleted())
    }

    /// Whether the holder of a mark is, or may be, still at it.
    fn is_held(&self, mark: &Mark, activity: Activity) -> bool {
        match activity {
            Activity::Working => true,
            Activity::Unknown => self.0.clock.now() < mark.since.plus_millis(SILENT_MS),
            Activity::Over => false,
        }
    }

    /// Where some owner has decided, every owner is asked: only together they show that no quorum had.
    async fn kept(&self, deletion: &Deletion, keepers: Vec<Keeper>) -> Kept {
        if keepers.iter().all(|keeper| keeper.step == Step::Closing) {
            return Kept { keepers, may_be_decided: false };
        }
        match self.ask_so_many_keepers(deletion, Ask::Close(Vec::new()), WriteQuorum::All).await {
            Ok(all) => Kept { may_be_decided: !deletion.is_undecided(&all), keepers: all },
            Err(error) => {
                tracing::debug!(bucket = %deletion.bucket, error = %chain(&error), "not every owner says how far the deletion has come");
                Kept { keepers, may_be_decided: true }
            }
        }
    }

    /// # Errors
    /// [`ModelError::BucketNotEmpty`] when an object is there as a quorum knows it.
    async fn check_empty(&self, deletion: &Deletion, mut keepers: Vec<Keeper>) -> Result<(), ModelError> {
        for _attempt in 0..ATTEMPTS_MAX {
            if keepers.iter().all(|keeper| keeper.live == 0) {
                return Ok(());
            }
            // An owner that missed deletions counts what is not there any more; it learns of them as the keys are read.
            for &Keeper { node, .. } in keepers.iter().filter(|keeper| keeper.live > 0) {
                for shard in 0..deletion.shards {
                    let layout = deletion.permit.layout().version();
                    let ask = AskLive { layout, bucket: deletion.bucket, shard };
                    let live = self.0.cluster.call(node, ask).await.map_err(|source| TableError::Peer { node, source })?;
                    for key in live.keys {
                        match self.object(deletion.bucket, &key).await {
                            Err(ModelError::NoSuchKey) => {}
                            Ok(_object) => return Err(ModelError::BucketNotEmpty),
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            keepers = self.ask_keepers(deletion, Ask::Close(Vec::new())).await.map_err(too_few)?;
        }
        Err(ModelError::Conflict("the bucket's objects are changing at this moment; try again".to_owned()))
    }

    /// # Errors
    /// [`ModelError::Table`]: the deletion may be carried on by the owners that have decided.
    async fn decide(&self, deletion: &Deletion) -> Result<(), ModelError> {
        self.ask_keepers(deletion, Ask::Decide).await.map_err(too_few).map(drop)
    }

    /// Takes this deletion's mark back, where it is kept. An owner that is not reached drops it once it has asked this node.
    async fn open_bucket(&self, deletion: &Deletion, ask: Ask) {
        if let Err(error) = self.ask_keepers(deletion, ask).await {
            tracing::debug!(bucket = %deletion.bucket, error = %chain(&error), "not every owner was told that the bucket stays");
        }
    }

    /// Asks every owner; those of a quorum that agree are returned.
    async fn ask_keepers(&self, deletion: &Deletion, ask: Ask) -> Result<Vec<Keeper>, QuorumError<NotKept>> {
        self.ask_so_many_keepers(deletion, ask, WriteQuorum::Count(deletion.quorum)).await
    }

    async fn ask_so_many_keepers(
        &self,
        deletion: &Deletion,
        ask: Ask,
        quorum: WriteQuorum,
    ) -> Result<Vec<Keeper>, QuorumError<NotKept>> {
        let asked = AskClosing {
            layout: deletion.permit.layout().version(),
            bucket: deletion.bucket,
            holder: self.0.cluster.node_id(),
            work: deletion.work,
            ask,
            shards: deletion.shards,
        };
        let call = |node| {
            let (cluster, asked) = (self.0.cluster.clone(), asked.clone());
            async move {
                let must_be_empty = asked.ask == Ask::Decide;
                let is_open = matches!(asked.ask, Ask::Open | Ask::Reopen);
                match cluster.call(node, asked).await {
                    Ok(ClosingAnswer::Kept { step, live }) if !must_be_empty || live == 0 => Ok(Keeper { node, step, live }),
                    Ok(ClosingAnswer::Open) if is_open => Ok(Keeper { node, step: Step::Closing, live: 0 }),
                    Ok(answer) => Err(NotKept::Answer(answer)),
                    Err(error) => Err(NotKept::Rpc(error)),
                }
            }
        };
        let replies = self.0.cluster.write(&deletion.permit, &deletion.sets, quorum, call).await?;
        Ok(replies.into_iter().map(|answer| answer.reply).collect())
    }

    /// Deletes the row, the names and the permissions of a bucket whose deletion was decided.
    async fn forget_bucket(&self, id: BucketId) -> Result<(), ModelError> {
        self.0.buckets.merge(&BucketRow { id, state: Deletable::Deleted }).await?;
        for alias in self.aliases().await?.into_iter().filter(|alias| alias.bucket == id) {
            self.free_alias(&alias).await?;
        }
        for key in self.keys().await?.into_iter().filter(|key| key.state.permissions(&id).any()) {
            self.set_permissions(&key.id, id, Permissions::NONE).await?;
        }
        tracing::info!(bucket = %id, "bucket deleted");
        Ok(())
    }

    /// Ends the marks that this node keeps and whose holder is gone.
    ///
    /// # Errors
    /// [`ModelError::Table`]: the marks cannot be read.
    pub(crate) async fn settle_closing(&self) -> Result<Counted, ModelError> {
        let mut counted = Counted::default();
        let marks = self.0.local.closing_service().kept().await?;
        if marks.is_empty() {
            return Ok(counted);
        }
        let at_work = self.who_is_at_work(marks.iter().map(|mark| (mark.holder, mark.work))).await;
        for mark in marks {
            let bucket = mark.bucket;
            let activity = at_work.activity(mark.holder, mark.work);
            counted.add(self.settle_mark(mark, activity).await, || format!("the deletion of bucket {bucket}"));
        }
        Ok(counted)
    }

    async fn settle_mark(&self, mark: Mark, activity: Activity) -> Result<Outcome, ModelError> {
        if self.is_held(&mark, activity) {
            return Ok(Outcome::Waits);
        }
        if mark.step != Step::Closing {
            // Other owners find the same at the same time, and would keep each other from it.
            tokio::time::sleep(Duration::from_millis(self.0.random.below(SETTLED_WITHIN_MS))).await;
            if !self.0.local.closing_service().kept().await?.contains(&mark) {
                return Ok(Outcome::Settled);
            }
        }
        match mark.step {
            Step::Closing => {
                self.0.local.closing_service().drop_mark(mark).await?;
                Ok(Outcome::Settled)
            }
            Step::Decided { .. } | Step::Told => match self.delete_bucket(mark.bucket).await {
                Ok(()) | Err(ModelError::NoSuchBucket(_)) => Ok(Outcome::Settled),
                Err(ModelError::BucketNotEmpty) => {
                    // The owners were told that nothing was decided; this node may be none any more.
                    self.0.local.closing_service().drop_mark(mark).await?;
                    Ok(Outcome::Settled)
                }
                Err(error) => Err(error),
            },
        }
    }
}

impl Deletion {
    /// Whether these owners, which are all, do not show that an earlier holder had decided: then it counts what is in the bucket. If one
    /// had, nothing came in since, because every owner has the mark or was told of it. An earlier holder may have known fewer sets than
    /// there are now, so those of later layouts say nothing about it.
    fn is_undecided(&self, keepers: &[Keeper]) -> bool {
        let decided = |keeper: &Keeper| match keeper.step {
            Step::Closing | Step::Told => None,
            Step::Decided { under, .. } => Some((keeper.node, under)),
        };
        let decided: BTreeMap<NodeId, u64> = keepers.iter().filter_map(decided).collect();
        let Some(first) = decided.values().min() else { return true };
        let mut sets = self.sets_until(*first).peekable();
        let is_quorum = |set: Vec<NodeId>| set.iter().filter(|node| decided.contains_key(node)).count() >= self.quorum;
        sets.peek().is_none() || !sets.all(is_quorum)
    }

    fn sets_until(&self, layout: u64) -> impl Iterator<Item = Vec<NodeId>> {
        let sets_of = move |shard| {
            let placement = IndexShard { bucket: self.bucket, shard }.placement();
            self.permit.layout().write_sets_until(placement, layout)
        };
        (0..self.shards).flat_map(sets_of)
    }
}

/// The marks of others that were in the way, or what else was.
fn others_of(error: QuorumError<NotKept>) -> Result<Vec<Mark>, ModelError> {
    let mut others = Vec::new();
    for NodeError { error, .. } in &error.errors {
        match error {
            NotKept::Answer(ClosingAnswer::Others(mark)) => others.push(Mark::clone(mark)),
            NotKept::Answer(ClosingAnswer::Gone) => return Err(ModelError::NoSuchBucket(String::new())),
            NotKept::Answer(ClosingAnswer::Kept { .. } | ClosingAnswer::Open) | NotKept::Rpc(_) => {}
        }
    }
    if others.is_empty() { Err(too_few(error)) } else { Ok(others) }
}

fn too_few(error: QuorumError<NotKept>) -> ModelError {
    let QuorumError { needed, reached, of, errors } = error;
    let failure = |failed: NodeError<NotKept>| match failed.error {
        NotKept::Rpc(error) => Some(NodeError { node: failed.node, error }),
        NotKept::Answer(_) => None,
    };
    let answered = errors.iter().all(|failed| matches!(failed.error, NotKept::Answer(_)));
    if answered && !errors.is_empty() {
        return being_deleted();
    }
    let errors = errors.into_iter().filter_map(failure).collect();
    TableError::Quorum(Box::new(QuorumError { needed, reached, of, errors })).into()
}
