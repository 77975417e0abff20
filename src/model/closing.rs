//! Closing marks: an owner of a bucket's index that keeps one takes nothing new into the bucket.
//!
//! Who deletes a bucket has its mark kept by a write quorum of the owners of every index shard, in every live layout, and holds the layout
//! meanwhile: any write needs an owner that keeps the mark. Each of them answers for emptiness only under the mark, by its counters. A
//! deletion that found all of a quorum empty makes the mark final there ([`Step::Decided`]) before the bucket's row says that it is deleted.
//!
//! Must stay true: a mark has one holder, and only its holder moves it or takes it away. It does not expire. When its holder is known to be
//! gone, a mark that is not final is dropped by the owner that keeps it, since nothing was decided by it; a final one may be one of a
//! quorum, so the deletion is carried on by another holder, under whom it stays final. Who compares its rows of the index with an owner's
//! learns of a final mark there, and keeps it too: so it outlives changes of the layout, and databases, as the rows do. The mark goes in
//! the transaction that stores the deletion of the bucket.

use std::ops::{Bound, ControlFlow};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::RpcError;
use garage_table::schema::Origin;
use garage_table::segments::KeyRange;
use garage_table::transaction::RowTransaction;
use garage_table::wire::{Order, Projection, Range};
use garage_table::{Schema, TableError, TableStore, rows};
use garage_types::codec::{self, Format, Unknown};
use garage_types::crdt::Deletable;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BucketId, NodeId, ObjectKey, Timestamp, VersionId, chain};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::bucket::BucketTable;
use crate::counters::BucketCounters;
use crate::object::{IndexShard, ObjectRow, ObjectTable};

pub(crate) const TREE: &str = "bucket_closing";

/// Rows of an index read together to find a live one.
const PAGE: u32 = 1000;
/// A decision that is carried out is over long before.
const UNDECIDED_MS: u64 = 10 * 60_000;
/// Keys that an owner names of those it takes to be there.
const KEYS_MAX: usize = 16;

/// How far a deletion has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// It is being looked whether the bucket is empty.
    #[serde(rename = "c")]
    Closing,
    /// It was empty here: the bucket may be deleted already.
    #[serde(rename = "d")]
    Decided {
        /// The version of the layout that the first holder knew who decided here.
        #[serde(rename = "l")]
        under: u64,
        /// When, by this owner's clock; it stays under later holders.
        #[serde(rename = "a", default)]
        at: Timestamp,
    },
    /// Another owner said, when its rows were compared with this one's, that it was decided there.
    #[serde(rename = "t")]
    Told,
}

/// What an owner keeps of a bucket that is being deleted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    #[serde(rename = "b")]
    pub bucket: BucketId,
    #[serde(rename = "c")]
    pub holder: NodeId,
    /// What the holder calls this deletion while it is at it.
    #[serde(rename = "w")]
    pub work: VersionId,
    #[serde(rename = "s")]
    pub step: Step,
    #[serde(rename = "t")]
    pub since: Timestamp,
    /// Of the bucket's index.
    #[serde(rename = "n", default = "one")]
    pub shards: u16,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Shards of an index of which nothing is said.
fn one() -> u16 {
    1
}

impl Format for Mark {
    const TAG: &'static str = "bcl1";
}

/// What the holder of a mark asks of an owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ask {
    /// Keep the mark, also in the place of those whose holders are gone; say what is in the bucket.
    #[serde(rename = "c")]
    Close(Vec<VersionId>),
    /// Make the mark final, if the bucket is empty.
    #[serde(rename = "d")]
    Decide,
    /// Keep it no longer, unless it is final.
    #[serde(rename = "o")]
    Open,
    /// Keep it no longer: it is final at so few owners that nothing was decided.
    #[serde(rename = "r")]
    Reopen,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskClosing {
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "b")]
    pub bucket: BucketId,
    #[serde(rename = "c")]
    pub holder: NodeId,
    #[serde(rename = "w")]
    pub work: VersionId,
    #[serde(rename = "a")]
    pub ask: Ask,
    /// Of the bucket's index.
    #[serde(rename = "n", default = "one")]
    pub shards: u16,
}

/// An owner's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClosingAnswer {
    /// The mark is kept.
    #[serde(rename = "k")]
    Kept {
        #[serde(rename = "s")]
        step: Step,
        /// Live objects counted here.
        #[serde(rename = "n")]
        live: u64,
    },
    /// Another's mark is kept.
    #[serde(rename = "x")]
    Others(Box<Mark>),
    /// The mark is not, or no longer, kept.
    #[serde(rename = "o")]
    Open,
    /// The bucket is deleted.
    #[serde(rename = "g")]
    Gone,
}

impl Request for AskClosing {
    const ENDPOINT: &'static str = "bucket.closing/1";
    const CLASS: Class = Class::Metadata;
    type Reply = ClosingAnswer;
}

/// "Which keys do you take to be live?" A few are named.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskLive {
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "b")]
    pub bucket: BucketId,
    #[serde(rename = "h")]
    pub shard: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LiveKeys {
    #[serde(rename = "k")]
    pub keys: Vec<ObjectKey>,
}

impl Request for AskLive {
    const ENDPOINT: &'static str = "bucket.live/1";
    const CLASS: Class = Class::Metadata;
    type Reply = LiveKeys;
}

/// What an owner does with its mark.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Nothing,
    Keep(Mark),
    Drop,
}

/// `live`: objects counted here.
fn judge(mark: Option<&Mark>, live: u64, asked: &AskClosing, now: Timestamp) -> (ClosingAnswer, Change) {
    let own = mark.filter(|mark| mark.work == asked.work);
    let kept = |step| ClosingAnswer::Kept { step, live };
    match (&asked.ask, mark, own) {
        (Ask::Close(_), _, Some(own)) => (kept(own.step), Change::Nothing),
        (Ask::Close(gone), Some(other), None) if !gone.contains(&other.work) => {
            (ClosingAnswer::Others(Box::new(other.clone())), Change::Nothing)
        }
        (Ask::Close(_), before, None) => {
            // What was final stays so under its next holder.
            let step = before.map_or(Step::Closing, |mark| mark.step);
            let AskClosing { bucket, holder, work, shards, .. } = *asked;
            (kept(step), Change::Keep(Mark { bucket, holder, work, step, since: now, shards, unknown: Unknown::new() }))
        }
        (Ask::Decide, _, Some(own)) if live == 0 && !matches!(own.step, Step::Decided { .. }) => {
            let step = Step::Decided { under: asked.layout, at: now };
            (kept(step), Change::Keep(Mark { step, ..own.clone() }))
        }
        (Ask::Decide, _, Some(own)) => (kept(own.step), Change::Nothing),
        (Ask::Open, Some(_), None) if is_planted(Bug::MarkClearedByOther) => (ClosingAnswer::Open, Change::Drop),
        (Ask::Open, _, Some(own)) if own.step != Step::Closing => (kept(own.step), Change::Nothing),
        (Ask::Open | Ask::Reopen, _, Some(_)) => (ClosingAnswer::Open, Change::Drop),
        (Ask::Decide | Ask::Open | Ask::Reopen, _, None) => (ClosingAnswer::Open, Change::Nothing),
    }
}

/// What an owner with the mark `own` keeps from now on when another says that `theirs` is final; `None`: what it had.
fn told_mark(own: Option<Mark>, theirs: Mark) -> Option<Mark> {
    match own {
        None => Some(Mark { step: Step::Told, ..theirs }),
        // Whoever holds it here goes on, and learns that it may be decided.
        Some(own) if own.step == Step::Closing => Some(Mark { step: Step::Told, ..own }),
        Some(_) => None,
    }
}

/// Whether a bucket takes new objects and uploads here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    Open,
    /// It is being deleted, or perhaps not: ask again.
    Closing,
    Gone,
}

/// The tree of the marks that this node keeps, by bucket.
#[derive(Clone, Copy, Debug)]
pub struct ClosingMarks(pub Tree);

impl ClosingMarks {
    fn get(self, tx: &Transaction<'_>, bucket: BucketId) -> Result<Option<Mark>, TableError> {
        let stored: Option<Vec<u8>> = tx.get(self.0, bucket.as_bytes())?;
        stored.map(|stored| read(bucket.as_bytes(), &stored)).transpose()
    }

    fn keep(self, tx: &mut Transaction<'_>, mark: &Mark) -> Result<(), DbError> {
        let bucket = mark.bucket.as_bytes();
        tx.insert(self.0, bucket, &rows::seal(bucket, &codec::encode(mark)))
    }

    /// Whether a copy that would be new to this node is kept out because its bucket is being deleted. Copies by which owners make their
    /// rows equal count for no write. They come in where this node was only told of the decision, since it needs what the others had
    /// before; and where the decision has come to nothing for so long that it may be one of too few.
    ///
    /// # Errors
    /// [`TableError`]: what is stored cannot be read.
    pub(crate) fn keeps_out(self, tx: &mut RowTransaction<'_, '_>, bucket: BucketId, origin: Origin) -> Result<bool, TableError> {
        let now = tx.now();
        let step = self.get(tx.raw(), bucket)?.map(|mark| mark.step);
        Ok(match (origin, step) {
            (Origin::Comparison, Some(Step::Told)) => false,
            (Origin::Comparison, Some(Step::Decided { at, .. })) => now < at.plus_millis(UNDECIDED_MS),
            (Origin::Comparison, Some(Step::Closing) | None) | (Origin::Request, _) => true,
        })
    }

    /// Whether a bucket takes new objects and uploads here.
    ///
    /// # Errors
    /// [`TableError`]: what is stored cannot be read.
    pub fn taking(self, tx: &mut RowTransaction<'_, '_>, bucket: BucketId) -> Result<Taking, TableError> {
        let row = tx.row::<BucketTable>(&bucket.into(), &[])?;
        if let Some(row) = &row {
            let Deletable::Present(state) = &row.state else { return Ok(Taking::Gone) };
            // As nodes of earlier versions mark a bucket that they delete.
            if state.closing_until.get().is_some_and(|until| until > tx.now()) {
                return Ok(Taking::Closing);
            }
        }
        Ok(if self.get(tx.raw(), bucket)?.is_some() { Taking::Closing } else { Taking::Open })
    }

    /// The final marks of buckets with index rows in this range.
    ///
    /// # Errors
    /// [`TableError`]: the marks cannot be read.
    pub(crate) fn final_ones(self, tx: &Snapshot<'_>, range: &KeyRange) -> Result<Vec<ByteBuf>, TableError> {
        if is_planted(Bug::FinalMarkKeptBack) {
            return Ok(Vec::new());
        }
        let concerns = |mark: &Mark| {
            let mut placements = (0..mark.shards).map(|shard| IndexShard { bucket: mark.bucket, shard }.placement());
            mark.step != Step::Closing && placements.any(|placement| range.contains(&placement))
        };
        Ok(self.all(tx)?.iter().filter(|mark| concerns(mark)).map(|mark| codec::encode(mark).into()).collect())
    }

    /// Keeps the final marks that another owner named.
    ///
    /// # Errors
    /// [`TableError`]: a mark cannot be read, or not be kept.
    pub(crate) fn keep_told(self, tx: &mut RowTransaction<'_, '_>, told: &[ByteBuf]) -> Result<(), TableError> {
        for mark in told {
            let theirs = decode(mark)?;
            let bucket = theirs.bucket;
            let row = tx.row::<BucketTable>(&bucket.into(), &[])?;
            if row.is_some_and(|row| row.state == Deletable::Deleted) {
                continue;
            }
            let own = self.get(tx.raw(), bucket)?;
            if let Some(mark) = told_mark(own, theirs) {
                self.keep(tx.raw(), &mark)?;
            }
        }
        Ok(())
    }

    /// Every mark that this node keeps and can read. There are as many as buckets that are being deleted.
    fn all(self, tx: &Snapshot<'_>) -> Result<Vec<Mark>, DbError> {
        let mut found = Vec::new();
        tx.range(self.0, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |bucket, stored| {
            match read(bucket, stored) {
                Ok(mark) => found.push(mark),
                Err(error) => {
                    tracing::error!(bucket = hex::encode(bucket), error = %chain(&error), "a closing mark cannot be read: the bucket takes nothing new here");
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The bucket is deleted: its row says so from here on.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn forget(self, tx: &mut Transaction<'_>, bucket: BucketId) -> Result<(), DbError> {
        tx.remove(self.0, bucket.as_bytes())
    }
}

/// As others send it.
fn decode(bytes: &[u8]) -> Result<Mark, TableError> {
    codec::decode(bytes).map_err(|source| TableError::Row { table: TREE, source })
}

/// As this node keeps it.
fn read(bucket: &[u8], stored: &[u8]) -> Result<Mark, TableError> {
    let damaged = || TableError::DamagedRow { table: TREE, row: hex::encode(bucket) };
    decode(rows::unsealed(bucket, stored).ok_or_else(damaged)?)
}

/// An owner's side of closing.
#[derive(Clone)]
pub struct ClosingService {
    pub tables: TableStore,
    pub marks: ClosingMarks,
    pub counters: BucketCounters,
}

impl ClosingService {
    /// # Errors
    /// [`TableError`], also while this node's rows are not all there.
    pub async fn answer(&self, caller: NodeId, asked: AskClosing) -> Result<ClosingAnswer, TableError> {
        let vouch = self.tables.admit_writer(caller, asked.layout)?;
        self.tables.check_whole()?;
        let (marks, counters) = (self.marks, self.counters);
        let answered = self.tables.transact_beside(move |tx| {
            let row = tx.row::<BucketTable>(&asked.bucket.into(), &[])?;
            if row.is_some_and(|row| row.state == Deletable::Deleted) {
                return Ok(Some(ClosingAnswer::Gone));
            }
            let live = counters.get(tx, &asked.bucket)?.objects.unsigned_abs();
            if matches!(asked.ask, Ask::Close(_) | Ask::Decide) && counters.is_doubted(tx)? {
                return Ok(None);
            }
            let mark = marks.get(tx.raw(), asked.bucket)?;
            let (answer, change) = judge(mark.as_ref(), live, &asked, tx.now());
            if is_planted(Bug::EmptinessWithoutMark) && matches!(asked.ask, Ask::Close(_) | Ask::Decide) {
                return Ok(Some(ClosingAnswer::Kept { step: Step::Closing, live }));
            }
            match change {
                Change::Nothing => {}
                Change::Keep(mark) => marks.keep(tx.raw(), &mark)?,
                Change::Drop => marks.forget(tx.raw(), asked.bucket)?,
            }
            Ok::<_, TableError>(Some(answer))
        });
        let answer = answered.await;
        drop(vouch);
        answer?.ok_or(TableError::Withheld("the bucket's counters are being set right"))
    }

    /// Asked only where the counters say that there are some, so that an index of nothing but tombstones is never walked.
    async fn live_keys(&self, asked: AskLive) -> Result<LiveKeys, TableError> {
        let placement = IndexShard { bucket: asked.bucket, shard: asked.shard }.placement();
        let mut from = ByteBuf::new();
        loop {
            let range = Range {
                layout: asked.layout,
                table: ObjectTable::ID,
                placement,
                from,
                to: None,
                order: Order::Forward,
                limit: PAGE,
                projection: Projection::Summary,
            };
            let page = self.tables.range(range).await?;
            let mut keys: Vec<ObjectKey> = Vec::new();
            for row in &page.rows {
                let row: ObjectRow = ObjectTable::decode(&row.row)?;
                if row.live().is_some() && keys.len() < KEYS_MAX && keys.last() != Some(&row.key) {
                    keys.push(row.key);
                }
            }
            match page.rows.last().filter(|_| page.truncated && keys.is_empty()) {
                Some(last) => {
                    from = last.sort_key.clone();
                    from.push(0);
                }
                None => return Ok(LiveKeys { keys }),
            }
        }
    }

    /// Every mark that this node keeps.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn kept(&self) -> Result<Vec<Mark>, TableError> {
        let marks = self.marks;
        Ok(self.tables.db().read(move |tx: &Snapshot<'_>| marks.all(tx)).await?)
    }

    /// Keeps a mark no longer whose holder is gone, if it is still as it was.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn drop_mark(&self, known: Mark) -> Result<(), TableError> {
        let marks = self.marks;
        let drop_mark = move |tx: &mut Transaction<'_>| {
            if marks.get(tx, known.bucket)?.as_ref() == Some(&known) {
                marks.forget(tx, known.bucket)?;
            }
            Ok::<_, TableError>(())
        };
        self.tables.db().write(drop_mark).await
    }
}

impl Handler<AskClosing> for ClosingService {
    fn handle(
        &self,
        caller: Caller,
        request: Message<AskClosing>,
    ) -> BoxFuture<'static, Result<Message<ClosingAnswer>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.answer(caller.node, request.body).await?.into()) }.boxed()
    }
}

impl Handler<AskLive> for ClosingService {
    fn handle(&self, _caller: Caller, request: Message<AskLive>) -> BoxFuture<'static, Result<Message<LiveKeys>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.live_keys(request.body).await?.into()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use garage_types::codec::Unknown;
    use garage_types::{BucketId, NodeId, Timestamp, VersionId};

    use super::{Ask, AskClosing, Change, ClosingAnswer, Mark, Step, judge, told_mark};

    const NOW: Timestamp = Timestamp::from_millis(1);
    const LAYOUT: u64 = 1;
    const DECIDED: Step = Step::Decided { under: LAYOUT, at: NOW };

    fn work(byte: u8) -> VersionId {
        VersionId::from_bytes([byte; 32])
    }

    fn asked(by: u8, ask: Ask) -> AskClosing {
        let bucket = BucketId::from_bytes([9; 32]);
        AskClosing { layout: LAYOUT, bucket, holder: NodeId::from_bytes([by; 32]), work: work(by), ask, shards: 1 }
    }

    fn mark(by: u8, step: Step) -> Mark {
        let AskClosing { bucket, holder, work, shards, .. } = asked(by, Ask::Decide);
        Mark { bucket, holder, work, step, since: NOW, shards, unknown: Unknown::new() }
    }

    #[test]
    fn a_second_deletion_gets_no_mark_and_clears_none() {
        let first = mark(1, Step::Closing);
        let others = ClosingAnswer::Others(Box::new(first.clone()));
        assert_eq!(judge(Some(&first), 0, &asked(2, Ask::Close(Vec::new())), NOW), (others, Change::Nothing));
        for ask in [Ask::Open, Ask::Reopen, Ask::Decide] {
            assert_eq!(judge(Some(&first), 0, &asked(2, ask), NOW), (ClosingAnswer::Open, Change::Nothing));
        }
    }

    #[test]
    fn only_an_owner_that_is_empty_under_the_mark_decides() {
        let own = mark(1, Step::Closing);
        assert_eq!(judge(None, 0, &asked(1, Ask::Decide), NOW).0, ClosingAnswer::Open);
        let (answer, change) = judge(Some(&own), 3, &asked(1, Ask::Decide), NOW);
        assert_eq!((answer, change), (ClosingAnswer::Kept { step: Step::Closing, live: 3 }, Change::Nothing));
        assert_eq!(judge(Some(&own), 0, &asked(1, Ask::Decide), NOW).1, Change::Keep(mark(1, DECIDED)));
    }

    #[test]
    fn who_is_told_of_a_final_mark_keeps_it_and_decides_only_when_empty() {
        let told = |by| mark(by, Step::Told);
        assert_eq!(told_mark(None, mark(1, DECIDED)), Some(told(1)));
        assert_eq!(told_mark(Some(mark(2, Step::Closing)), mark(1, DECIDED)), Some(told(2)));
        assert_eq!(told_mark(Some(mark(2, DECIDED)), mark(1, DECIDED)), None);
        assert_eq!(judge(Some(&told(1)), 0, &asked(1, Ask::Decide), NOW).1, Change::Keep(mark(1, DECIDED)));
        let kept = |live| (ClosingAnswer::Kept { step: Step::Told, live }, Change::Nothing);
        assert_eq!(judge(Some(&told(1)), 3, &asked(1, Ask::Decide), NOW), kept(3));
        assert_eq!(judge(Some(&told(1)), 0, &asked(1, Ask::Open), NOW), kept(0));
    }

    #[test]
    fn what_was_final_stays_so_under_its_next_holder() {
        let gone = mark(1, DECIDED);
        // Whoever judges later what the first holder has decided needs the layout that this one knew.
        let later = AskClosing { layout: LAYOUT + 1, ..asked(2, Ask::Close(vec![work(1)])) };
        let (answer, change) = judge(Some(&gone), 0, &later, NOW);
        let kept = ClosingAnswer::Kept { step: DECIDED, live: 0 };
        assert_eq!((answer, change), (kept.clone(), Change::Keep(mark(2, DECIDED))));
        let again = AskClosing { ask: Ask::Decide, ..later };
        assert_eq!(judge(Some(&mark(2, DECIDED)), 0, &again, NOW).0, kept);
    }
}
