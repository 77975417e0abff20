//! Closing marks: an owner of a bucket's index that keeps one takes nothing new into the bucket.
//!
//! Who deletes a bucket has its mark kept by a write quorum of the owners of every index shard, in every live layout, and holds the layout
//! meanwhile: any write needs an owner that keeps the mark. Each of them answers for emptiness only under the mark, by its counters. A
//! deletion that found all of a quorum empty makes the mark final there ([`Step::Decided`]) before the bucket's row says that it is deleted.
//!
//! Must stay true: a mark has one holder, and only its holder moves it or takes it away. It does not expire. When its holder is known to be
//! gone, a mark that is not final is dropped by the owner that keeps it, since nothing was decided by it; a final one may be one of a
//! quorum, so the deletion is carried on by another holder, under whom it stays final. The mark goes in the transaction that stores
//! the deletion of the bucket.

use std::ops::{Bound, ControlFlow};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::RpcError;
use garage_table::transaction::RowTransaction;
use garage_table::wire::{Order, Projection, Range};
use garage_table::{Schema, TableError, TableStore};
use garage_types::codec::{self, Format, Unknown};
use garage_types::crdt::Deletable;
use garage_types::planted::{Bug, is_planted};
use garage_types::{BucketId, NodeId, ObjectKey, Timestamp, VersionId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::bucket::BucketTable;
use crate::counters::BucketCounters;
use crate::object::{IndexShard, ObjectRow, ObjectTable};

/// Rows of an index read together to find a live one.
const PAGE: u32 = 1000;
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
    },
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
    #[serde(flatten)]
    pub unknown: Unknown,
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
            let AskClosing { bucket, holder, work, .. } = *asked;
            (kept(step), Change::Keep(Mark { bucket, holder, work, step, since: now, unknown: Unknown::new() }))
        }
        (Ask::Decide, _, Some(own)) if live == 0 && own.step == Step::Closing => {
            let step = Step::Decided { under: asked.layout };
            (kept(step), Change::Keep(Mark { step, ..own.clone() }))
        }
        (Ask::Decide, _, Some(own)) => (kept(own.step), Change::Nothing),
        (Ask::Open, Some(_), None) if is_planted(Bug::MarkClearedByOther) => (ClosingAnswer::Open, Change::Drop),
        (Ask::Open, _, Some(own)) if own.step != Step::Closing => (kept(own.step), Change::Nothing),
        (Ask::Open | Ask::Reopen, _, Some(_)) => (ClosingAnswer::Open, Change::Drop),
        (Ask::Decide | Ask::Open | Ask::Reopen, _, None) => (ClosingAnswer::Open, Change::Nothing),
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
        tx.get(self.0, bucket.as_bytes())?.as_deref().map(decode).transpose()
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

    /// The bucket is deleted: its row says so from here on.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn forget(self, tx: &mut Transaction<'_>, bucket: BucketId) -> Result<(), DbError> {
        tx.remove(self.0, bucket.as_bytes())
    }
}

fn decode(bytes: &[u8]) -> Result<Mark, TableError> {
    codec::decode(bytes).map_err(|source| TableError::Row { table: "bucket_closing", source })
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
                return Ok(ClosingAnswer::Gone);
            }
            if matches!(asked.ask, Ask::Close(_) | Ask::Decide) && counters.is_doubted(tx)? {
                return Err(TableError::Withheld("its counters are being set right"));
            }
            let live = u64::try_from(counters.get(tx, &asked.bucket)?.objects).unwrap_or(0);
            let mark = marks.get(tx.raw(), asked.bucket)?;
            let (answer, change) = judge(mark.as_ref(), live, &asked, tx.now());
            if is_planted(Bug::EmptinessWithoutMark) && matches!(asked.ask, Ask::Close(_) | Ask::Decide) {
                return Ok(ClosingAnswer::Kept { step: Step::Closing, live });
            }
            let key = asked.bucket.as_bytes();
            match change {
                Change::Nothing => {}
                Change::Keep(mark) => tx.raw().insert(marks.0, key, &codec::encode(&mark))?,
                Change::Drop => tx.raw().remove(marks.0, key)?,
            }
            Ok::<_, TableError>(answer)
        });
        let answer = answered.await;
        drop(vouch);
        answer
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

    /// Every mark that this node keeps. There are as many as buckets that are being deleted.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn kept(&self) -> Result<Vec<Mark>, TableError> {
        let tree = self.marks.0;
        let read = move |tx: &Snapshot<'_>| {
            let mut found = Vec::new();
            tx.range(tree, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |_bucket, mark| {
                found.push(mark.to_vec());
                ControlFlow::Continue(())
            })?;
            Ok::<_, DbError>(found)
        };
        let found: Vec<Vec<u8>> = self.tables.db().read(read).await?;
        found.iter().map(|mark| decode(mark)).collect()
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

    use super::{Ask, AskClosing, Change, ClosingAnswer, Mark, Step, judge};

    const NOW: Timestamp = Timestamp::from_millis(1);
    const LAYOUT: u64 = 1;
    const DECIDED: Step = Step::Decided { under: LAYOUT };

    fn work(byte: u8) -> VersionId {
        VersionId::from_bytes([byte; 32])
    }

    fn asked(by: u8, ask: Ask) -> AskClosing {
        let bucket = BucketId::from_bytes([9; 32]);
        AskClosing { layout: LAYOUT, bucket, holder: NodeId::from_bytes([by; 32]), work: work(by), ask }
    }

    fn mark(by: u8, step: Step) -> Mark {
        let AskClosing { bucket, holder, work, .. } = asked(by, Ask::Decide);
        Mark { bucket, holder, work, step, since: NOW, unknown: Unknown::new() }
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
