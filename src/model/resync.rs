//! Resync: brings single blocks to where they should be, and removes those that nothing needs.
//!
//! A shell around the pure rules of [`garage_block::resync`]. Must stay true: a block is removed under its lock, after its count was
//! read again, and only if every owner of every live layout version has answered; bytes from elsewhere are stored only under
//! the lock and while this node refers to them, so that nothing is left behind that no entry of the queue will find.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use garage_block::rate::ByteRate;
use garage_block::resync::{Answer, Decision, Duty, Judgement, OnDisk, Refs, decide, judge};
use garage_block::{BlockError, Examined, LockedBlock};
use garage_db::{DbError, Transaction};
use garage_rpc::endpoint::Message;
use garage_rpc::error::RpcError;
use garage_table::TableError;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BlockHash, NodeId, Placement, Timestamp, chain};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::background::BackgroundSettings;
use crate::block_need::{ASKED_MAX, AskNeeds, GiveBlock, Need};
use crate::block_ref::RefCount;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::resync_queue::{Queued, Reason};

/// Blocks looked at in one go.
pub(crate) const RESYNC_BATCH: usize = 100;
/// No block is moved after this in one go; the others wait for the next. Short, because other owners fetch what they need by themselves
/// meanwhile: what was asked about them longer ago would be moved twice.
const MOVING_MAX: Duration = Duration::from_millis(250);
/// Blocks that nothing needs, removed at once: each of them waits for the disk and the database, and those of one time are synced together.
const REMOVED_AT_ONCE: usize = 16;
/// The longest time after which a block is looked at again that had to stay because an owner was silent or could not say.
const SILENT_MS_MAX: u64 = 10 * 60 * 1000;
/// The shortest such time; and the time when all owners answered and one does not know yet what another does: a few blocks for a short
/// while.
const DISAGREED_MS: u64 = 20 * 1000;

/// What resync keeps in memory.
pub(crate) struct Resync {
    /// Blocks that a worker is busy with.
    claimed: Mutex<BTreeSet<BlockHash>>,
    /// Something was queued that is due now, or a setting changed.
    pub(crate) wake: Notify,
    rate: Option<Mutex<ByteRate>>,
    moved: Mutex<Moved>,
    /// Since the node started.
    total: Mutex<MovedInAll>,
    began: Instant,
}

/// Blocks that this node fetched, or gave to others, since it started: those that turned out not to be needed as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MovedInAll {
    pub blocks: u64,
    /// As stored, and as they crossed the network.
    pub bytes: u64,
}

/// Blocks moved since resync last had nothing to move.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    since: Option<Timestamp>,
    blocks: u64,
    bytes: u64,
}

impl Resync {
    pub(crate) fn new(settings: &BackgroundSettings) -> Self {
        Resync {
            claimed: Mutex::default(),
            wake: Notify::new(),
            rate: settings.resync_bandwidth_limit.map(|limit| Mutex::new(ByteRate::new(limit.get()))),
            moved: Mutex::default(),
            total: Mutex::default(),
            began: Instant::now(),
        }
    }
}

/// Blocks still to be moved to or from this node, and how fast that goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlocksToMove {
    /// Blocks that this node should have and perhaps has not.
    pub fetch: u64,
    /// Blocks that other nodes should have instead of this one.
    pub hand_over: u64,
    /// Blocks whose last try failed.
    pub failed: u64,
    /// Of all those to be moved, estimated from the blocks moved so far.
    pub bytes_left: u64,
    /// Since there was something to move; `None` while nothing has been.
    pub bytes_per_second: Option<u64>,
    /// Estimated.
    pub seconds_left: Option<u64>,
    pub moved: MovedInAll,
}

/// What came of a look at a block.
enum Outcome {
    Settled,
    Again(Timestamp, Reason),
    Failed(ModelError),
    /// It waits for its next try, which is in the queue too.
    NotYet,
    /// Out of time: it is still the first in the queue.
    Untouched,
}

/// What becomes of an entry of the queue, which is taken off first.
enum Change {
    Drop,
    Settle { again: Option<Queued> },
    Fail(String),
}

/// What is known about a block on this node.
struct Facts {
    disk: OnDisk,
    refs: Refs,
    duty: Duty,
}

/// Holds the claims on blocks until it is dropped.
struct Claims<'a> {
    resync: &'a Resync,
    queued: Vec<Queued>,
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let mut claimed = lock(&self.resync.claimed);
        for queued in &self.queued {
            claimed.remove(&queued.block);
        }
    }
}

impl Garage {
    /// Looks at the blocks whose time has come. Returns how many there were, at most a batch.
    ///
    /// A block that fails is put off, so that it holds up no other.
    ///
    /// # Errors
    /// [`ModelError::Table`]: the queue itself cannot be read or written.
    pub async fn resync_due(&self) -> Result<usize, ModelError> {
        let claims = self.claim_due().await?;
        let outcomes = self.settle_blocks(&claims.queued).await?;
        let moving = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Untouched | Outcome::Again(_, Reason::HandOver)));
        if claims.queued.is_empty() && !moving {
            *lock(&self.0.resync.moved) = Moved::default();
        }
        self.record(&claims.queued, outcomes).await?;
        Ok(claims.queued.len())
    }

    async fn claim_due(&self) -> Result<Claims<'_>, ModelError> {
        let busy = lock(&self.0.resync.claimed).len();
        // Those of other workers are passed over.
        let due = self.due_blocks(self.0.clock.now(), RESYNC_BATCH + 2 * busy).await?;
        let mut claimed = lock(&self.0.resync.claimed);
        let queued = due.into_iter().filter(|queued| claimed.insert(queued.block)).take(RESYNC_BATCH).collect();
        drop(claimed);
        Ok(Claims { resync: &self.0.resync, queued })
    }

    async fn settle_blocks(&self, queued: &[Queued]) -> Result<Vec<Outcome>, ModelError> {
        let waiting = self.waiting_for_next_try(queued).await?;
        let mut to_ask = Vec::new();
        for queued in queued.iter().filter(|queued| !waiting.contains(&queued.block)) {
            // An error shows again below, where it is recorded.
            if let Ok(facts) = self.facts(queued.block).await
                && decide(facts.disk, facts.refs, facts.duty, self.0.clock.now()) == Decision::AskOwners
            {
                to_ask.push(queued.block);
            }
        }
        let answers = self.ask_owners(&to_ask).await;
        // A block with answers moves only if somebody needs it.
        let only_leaves = |block: &BlockHash| {
            answers.get(block).is_some_and(|said| said.iter().all(|(_owner, answer)| *answer != Answer::Needed))
        };
        let leaving: Vec<Queued> = queued.iter().copied().filter(|queued| only_leaves(&queued.block)).collect();
        let answers = &answers;
        let removals = leaving.into_iter().map(|queued| async move { (queued.block, self.settled(queued, answers).await) });
        let mut removed: BTreeMap<BlockHash, Outcome> = stream::iter(removals).buffered(REMOVED_AT_ONCE).collect().await;
        let began = Instant::now();
        let mut outcomes = Vec::with_capacity(queued.len());
        for queued in queued {
            outcomes.push(if let Some(outcome) = removed.remove(&queued.block) {
                outcome
            } else if waiting.contains(&queued.block) {
                Outcome::NotYet
            } else if began.elapsed() > MOVING_MAX {
                Outcome::Untouched
            } else {
                self.settled(*queued, answers).await
            });
        }
        Ok(outcomes)
    }

    async fn settled(&self, queued: Queued, answers: &BTreeMap<BlockHash, Vec<(NodeId, Answer)>>) -> Outcome {
        let answers = answers.get(&queued.block).map(Vec::as_slice);
        self.settle_block(&queued, answers).await.unwrap_or_else(Outcome::Failed)
    }

    /// Blocks that failed and whose next try has not come.
    async fn waiting_for_next_try(&self, queued: &[Queued]) -> Result<BTreeSet<BlockHash>, ModelError> {
        let (trees, now) = (self.0.local.block_trees, self.0.clock.now());
        let blocks: Vec<BlockHash> = queued.iter().map(|queued| queued.block).collect();
        let read = move |tx: &garage_db::Snapshot<'_>| {
            let mut waiting = BTreeSet::new();
            for block in blocks {
                if trees.failure(tx, &block)?.is_some_and(|failure| !failure.failures.is_due(now)) {
                    waiting.insert(block);
                }
            }
            Ok::<_, DbError>(waiting)
        };
        Ok(self.0.local.tables.db().read(read).await.map_err(TableError::Db)?)
    }

    async fn settle_block(&self, queued: &Queued, answers: Option<&[(NodeId, Answer)]>) -> Result<Outcome, ModelError> {
        let block = queued.block;
        // Held until it is decided and done: a reference that arrives meanwhile waits, and finds the block gone or staying.
        let locked = self.0.local.blocks.blocks.lock(block).await;
        let mut facts = self.facts(block).await?;
        let mut unreadable = None;
        if (facts.disk, facts.refs, facts.duty) == (OnDisk::Present, Refs::Held, Duty::Replica)
            && !is_planted(Bug::UnreadableBelieved)
        {
            // Somebody had a reason to queue it: whether there is a file does not settle that.
            (facts.disk, unreadable) = match locked.examine().await? {
                Examined::Good => (OnDisk::Present, None),
                Examined::Absent => (OnDisk::Absent, None),
                Examined::Unreadable(reason) => (OnDisk::Unreadable, Some(reason)),
            };
        }
        let now = self.0.clock.now();
        match (decide(facts.disk, facts.refs, facts.duty, now), answers) {
            (Decision::Nothing, _) => Ok(Outcome::Settled),
            (Decision::WaitUntil(until), _) => Ok(Outcome::Again(until, Reason::Released)),
            (Decision::ForgetCounter, _) => {
                self.forget_count(block).await?;
                Ok(Outcome::Settled)
            }
            (Decision::Fetch, _) => {
                // Nothing is changed before the bytes are here; the lock is taken again then.
                drop(locked);
                tracing::debug!(node = %self.0.cluster.node_id().short(), %block, disk = ?facts.disk, "a block is missing here");
                self.fetch_missing(block, unreadable).await
            }
            // The facts changed since the owners were, or were not, asked.
            (Decision::AskOwners, None) => Ok(Outcome::Again(now, queued.reason)),
            (Decision::AskOwners, Some(answers)) => self.carry_out(locked, queued.reason, &facts, answers).await,
        }
    }

    /// What the owners' answers make of a block that is here.
    async fn carry_out(
        &self,
        locked: LockedBlock,
        queued_for: Reason,
        facts: &Facts,
        answers: &[(NodeId, Answer)],
    ) -> Result<Outcome, ModelError> {
        let (block, now) = (locked.hash(), self.0.clock.now());
        let said: Vec<Answer> = answers.iter().map(|(_node, answer)| *answer).collect();
        let unneeded = if queued_for == Reason::Unreferenced { Reason::Unreferenced } else { Reason::Released };
        let reason = if facts.duty == Duty::NotReplica { Reason::HandOver } else { unneeded };
        let is_silent = said.iter().any(|answer| matches!(answer, Answer::CannotSay | Answer::Unreachable));
        let kept = Outcome::Again(now.plus_millis(if is_silent { silent_ms(facts.refs, now) } else { DISAGREED_MS }), reason);
        let release_delay_ms = self.0.local.block_trees.release_delay_ms;
        // Nobody is to have it, so there is nothing to be moved. A node that has left is not empty before it is gone all the same.
        let is_member = self.0.cluster.layout().all_nodes().contains(&self.0.cluster.node_id());
        let waiting = if is_member { unneeded } else { reason };
        let held_here = facts.refs == Refs::Held;
        let judgement = if is_planted(Bug::DeletesReferencedBlock) {
            Judgement::Released { released_for_ms: u64::MAX }
        } else {
            judge(facts.duty, held_here, &said)
        };
        match judgement {
            Judgement::Push => {
                // Reading takes the lock when it finds the copy corrupt.
                drop(locked);
                let needy = answers.iter().filter(|(_node, answer)| *answer == Answer::Needed).map(|(node, _answer)| *node);
                self.give(block, needy.collect()).await?;
                Ok(Outcome::Again(now, Reason::HandOver))
            }
            Judgement::Keep => Ok(kept),
            _gone if !self.0.background.may_delete.may_delete_blocks() => Ok(kept),
            // The database that was lost may have known it.
            _gone if self.0.local.tables.lacks_rows() && self.reference_count(block).await?.is_none() => Ok(kept),
            Judgement::Released { released_for_ms } if released_for_ms < release_delay_ms => {
                Ok(Outcome::Again(now.plus_millis(release_delay_ms - released_for_ms), waiting))
            }
            Judgement::Released { .. } if facts.refs.released_until().is_some_and(|until| now < until) => {
                Ok(Outcome::Again(now.plus_millis(release_delay_ms), waiting))
            }
            Judgement::Released { .. } => {
                locked.remove().await?;
                tracing::debug!(%block, "deleted a block that nothing refers to any more");
                self.forget_count(block).await?;
                Ok(Outcome::Settled)
            }
            Judgement::HandedOver => {
                locked.remove().await?;
                tracing::debug!(%block, "deleted a block that its owners have");
                self.forget_count(block).await?;
                Ok(Outcome::Settled)
            }
        }
    }

    async fn facts(&self, block: BlockHash) -> Result<Facts, ModelError> {
        let store = &self.0.local.blocks.blocks;
        let is_owner = self.0.cluster.layout().is_owner(self.0.cluster.node_id(), Placement::from(block));
        Ok(Facts {
            disk: if store.contains(block).await? { OnDisk::Present } else { OnDisk::Absent },
            refs: self.references(block).await?,
            duty: if is_owner { Duty::Replica } else { Duty::NotReplica },
        })
    }

    async fn references(&self, block: BlockHash) -> Result<Refs, ModelError> {
        let count = self.reference_count(block).await?;
        Ok(match count {
            Some(RefCount { count: 1.., .. }) if !is_planted(Bug::DeletesReferencedBlock) => Refs::Held,
            Some(RefCount { released_at, .. }) => {
                Refs::Released { until: released_at.plus_millis(self.0.local.block_trees.release_delay_ms) }
            }
            None => Refs::Released { until: Timestamp::ZERO },
        })
    }

    /// The references to a block that this node counts.
    ///
    /// # Errors
    /// [`ModelError::Damaged`] when the count cannot be read.
    pub async fn reference_count(&self, block: BlockHash) -> Result<Option<RefCount>, ModelError> {
        let tree = self.0.local.block_trees.counts;
        let read = move |tx: &garage_db::Snapshot<'_>| tx.get(tree, block.as_bytes());
        let bytes: Option<Vec<u8>> = self.0.local.tables.db().read(read).await.map_err(TableError::Db)?;
        let damaged = || ModelError::Damaged(format!("the count of references to block {block}"));
        bytes.map(|bytes| RefCount::decode(&bytes).ok_or_else(damaged)).transpose()
    }

    async fn forget_count(&self, block: BlockHash) -> Result<(), ModelError> {
        let tree = self.0.local.block_trees.counts;
        let forget = move |tx: &mut Transaction<'_>| {
            let count = tx.get(tree, block.as_bytes())?.as_deref().and_then(RefCount::decode);
            if count.is_some_and(|count| count.count == 0) { tx.remove(tree, block.as_bytes()) } else { Ok::<_, DbError>(()) }
        };
        Ok(self.0.local.tables.db().write(forget).await.map_err(TableError::Db)?)
    }

    /// Asks all other owners about blocks; every block has an answer of each of its owners.
    async fn ask_owners(&self, blocks: &[BlockHash]) -> BTreeMap<BlockHash, Vec<(NodeId, Answer)>> {
        let (layout, own) = (self.0.cluster.layout(), self.0.cluster.node_id());
        let mut by_owner: BTreeMap<NodeId, Vec<BlockHash>> = BTreeMap::new();
        let mut answers: BTreeMap<BlockHash, Vec<(NodeId, Answer)>> = BTreeMap::new();
        for block in blocks {
            answers.insert(*block, Vec::new());
            let owners: BTreeSet<NodeId> = layout.write_sets(Placement::from(*block)).into_iter().flatten().collect();
            for owner in owners.into_iter().filter(|owner| *owner != own) {
                by_owner.entry(owner).or_default().push(*block);
            }
        }
        let version = layout.version();
        let calls = by_owner.into_iter().flat_map(|(owner, blocks)| {
            let chunks: Vec<Vec<BlockHash>> = blocks.chunks(ASKED_MAX).map(<[BlockHash]>::to_vec).collect();
            chunks.into_iter().map(move |blocks| async move {
                let reply = self.0.cluster.call(owner, AskNeeds { layout: version, blocks: blocks.clone() }).await;
                (owner, blocks, reply.map(|reply| reply.needs))
            })
        });
        for (owner, blocks, reply) in join_all(calls).await {
            let said: Vec<Answer> = answers_of(owner, blocks.len(), reply);
            for (block, answer) in blocks.into_iter().zip(said) {
                answers.entry(block).or_default().push((owner, answer));
            }
        }
        answers
    }

    /// Gets a block that this node should have. `unreadable`: why the file that is here is no copy.
    async fn fetch_missing(&self, block: BlockHash, unreadable: Option<BlockError>) -> Result<Outcome, ModelError> {
        let stored = match (self.0.blocks.fetch(block).await, unreadable) {
            (Ok(stored), _) => stored,
            (Err(error), None) => return Err(error),
            (Err(error), Some(here)) => {
                return Err(ModelError::BlockUnreadable { hash: block, here: Box::new(here), source: Box::new(error) });
            }
        };
        let bytes = u64::from(stored.stored_len());
        let locked = self.0.local.blocks.blocks.lock(block).await;
        if self.references(block).await? != Refs::Held {
            // The last reference went meanwhile, and has queued the block.
            drop(locked);
            self.moved(bytes).await;
            return Ok(Outcome::Settled);
        }
        // It may have come, or be readable again, meanwhile. Where another error says nothing about the file, it stays.
        if !matches!(locked.examine().await?, Examined::Good) {
            locked.write(stored).await?;
        }
        drop(locked);
        tracing::debug!(%block, bytes, "fetched a block that was missing here");
        self.moved(bytes).await;
        Ok(Outcome::Settled)
    }

    /// Sends a block to owners that need it.
    async fn give(&self, block: BlockHash, owners: Vec<NodeId>) -> Result<(), ModelError> {
        let stored = self.0.local.blocks.blocks.read_stored(block).await?;
        for owner in owners {
            let give = GiveBlock { hash: block, encoding: stored.encoding(), plain_len: stored.plain_len() };
            let message = Message::with_data(give, stored.bytes().clone());
            let reply = self.0.cluster.mesh().call(owner, message, self.0.cluster.timeouts().bulk).await;
            let given = reply.map_err(|source| ModelError::BlockUnavailable { hash: block, source: Box::new(source) })?.body;
            tracing::debug!(%block, node = %owner, ?given, "gave a block to its new owner");
            self.moved(u64::from(stored.stored_len())).await;
        }
        Ok(())
    }

    /// Counts bytes that crossed the network, and waits as long as the limit demands.
    async fn moved(&self, bytes: u64) {
        let resync = &self.0.resync;
        {
            let mut moved = lock(&resync.moved);
            moved.since.get_or_insert(self.0.clock.now());
            moved.blocks += 1;
            moved.bytes += bytes;
        }
        {
            let mut total = lock(&resync.total);
            total.blocks += 1;
            total.bytes += bytes;
        }
        if let Some(rate) = &resync.rate {
            let wait = lock(rate).pay(bytes, resync.began.elapsed());
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes settled blocks off the queue, and puts back those to be looked at again, in one transaction.
    async fn record(&self, queued: &[Queued], outcomes: Vec<Outcome>) -> Result<(), ModelError> {
        let (trees, now) = (self.0.local.block_trees, self.0.clock.now());
        let mut changes: Vec<(Queued, Change)> = Vec::with_capacity(queued.len());
        let (mut settled, mut failed) = (Vec::new(), Vec::new());
        for (queued, outcome) in queued.iter().zip(outcomes) {
            let change = match outcome {
                Outcome::Untouched => continue,
                Outcome::NotYet => Change::Drop,
                Outcome::Settled => Change::Settle { again: None },
                Outcome::Again(due, reason) => Change::Settle { again: Some(Queued::new(due, queued.block, reason)) },
                Outcome::Failed(error) => {
                    let message = chain(&error).to_string();
                    tracing::warn!(block = %queued.block, error = message, "a block could not be looked after; trying again later");
                    Change::Fail(message)
                }
            };
            match change {
                Change::Drop => {}
                Change::Settle { .. } => settled.push(queued.block),
                Change::Fail(_) => failed.push(*queued),
            }
            changes.push((*queued, change));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let write = move |tx: &mut Transaction<'_>| {
            changes.iter().try_for_each(|(queued, change)| {
                trees.dequeue(tx, queued)?;
                match change {
                    Change::Drop => Ok(()),
                    Change::Settle { again } => {
                        trees.succeeded(tx, &queued.block)?;
                        again.as_ref().map_or(Ok(()), |again| trees.enqueue(tx, again))
                    }
                    Change::Fail(message) => trees.failed(tx, queued, message, now),
                }
            })
        };
        self.0.local.tables.db().write::<_, DbError>(write).await.map_err(TableError::Db)?;
        let known = &self.0.local.blocks.failed;
        settled.iter().for_each(|block| known.forget(block));
        failed.iter().for_each(|queued| known.failed(queued.block, queued.reason));
        Ok(())
    }

    /// How much is still to be moved to and from this node.
    ///
    /// # Errors
    /// [`ModelError::Table`].
    pub async fn blocks_to_move(&self) -> Result<BlocksToMove, ModelError> {
        let counts = self.resync_queue_counts().await?;
        let moved = *lock(&self.0.resync.moved);
        let left = counts.fetch + counts.hand_over;
        let average = moved.bytes.checked_div(moved.blocks).unwrap_or(self.0.settings.block_size as u64);
        let elapsed_ms = moved.since.map(|since| self.0.clock.now().as_millis().saturating_sub(since.as_millis()));
        let bytes_per_second = elapsed_ms.map(|elapsed| moved.bytes.saturating_mul(1000) / elapsed.max(1000));
        let bytes_left = left.saturating_mul(average);
        Ok(BlocksToMove {
            fetch: counts.fetch,
            hand_over: counts.hand_over,
            failed: counts.failed,
            bytes_left,
            bytes_per_second,
            seconds_left: bytes_per_second.and_then(|rate| bytes_left.checked_div(rate)),
            moved: *lock(&self.0.resync.total),
        })
    }
}

/// When a block is asked about again whose owner was silent or could not say: soon at first, then after as long again as it has waited to
/// be removed.
fn silent_ms(refs: Refs, now: Timestamp) -> u64 {
    let waited_ms = refs.released_until().map(|until| now.as_millis().saturating_sub(until.as_millis()));
    waited_ms.unwrap_or(SILENT_MS_MAX).clamp(DISAGREED_MS, SILENT_MS_MAX)
}

/// One answer a block, whatever came back.
fn answers_of(owner: NodeId, blocks: usize, reply: Result<Vec<Need>, RpcError>) -> Vec<Answer> {
    match reply {
        Ok(needs) if needs.len() == blocks => needs.into_iter().map(Answer::from).collect(),
        Ok(_another_number) => vec![Answer::CannotSay; blocks],
        Err(error) => {
            tracing::debug!(node = %owner, %error, "an owner cannot be asked about blocks; they stay");
            vec![Answer::Unreachable; blocks]
        }
    }
}

/// Every change under these locks is one assignment or insertion.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use garage_block::resync::Refs;
    use garage_types::Timestamp;

    use super::silent_ms;

    #[test]
    fn an_owner_that_was_silent_is_asked_again_soon_and_one_that_stays_silent_ever_more_seldom() {
        let until = Timestamp::from_millis(1_000_000);
        let asked_after = |waited_ms| silent_ms(Refs::Released { until }, until.plus_millis(waited_ms));
        assert_eq!([0, 20_000, 40_000, 80_000].map(asked_after), [20_000, 20_000, 40_000, 80_000]);
        assert_eq!([599_999, 700_000, u64::MAX / 2].map(asked_after), [599_999, 600_000, 600_000]);
        assert_eq!(silent_ms(Refs::Held, until), 600_000, "nobody counts how long it has waited to be handed over");
    }
}
