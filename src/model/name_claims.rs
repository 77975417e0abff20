//! Claims of names: what a node has promised and accepted while a free name is being given to a bucket.
//!
//! Claimants of a name ask every node twice. First each node promises to take nothing of an earlier ballot, and tells the claim that it
//! has accepted, if any. Then a claimant asks for a claim to be accepted: its own, or the one of the highest ballot that it was told. A claim
//! that a majority accepted is chosen; any later claimant hears of it from a node of that majority, and carries it out instead of its own.
//!
//! Must stay true: a claim is no row and does not spread; the name's row is written only for a chosen claim. So two claimants of a free name
//! never both get it, and one that loses has nothing to take back. A claim whose claimant is gone is carried out by the next claimant
//! ([`crate::naming`]), or by a node that keeps it, within minutes.
//!
//! `base` is the timestamp of the row in which the name is free. As soon as a node has a later row, the claims before it are over there.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::{DbError, Transaction, Tree};
use garage_rpc::endpoint::{Caller, Class, Handler, Message, Request};
use garage_rpc::error::RpcError;
use garage_table::{TableError, TableStore, rows};
use garage_types::codec::{self, Format, Unknown};
use garage_types::{BucketId, KeyId, NodeId, Timestamp, VersionId, chain};
use serde::{Deserialize, Serialize};

use crate::alias::{AliasRow, AliasScope, AliasTable, key_of};

pub(crate) const TREE: &str = "name_claims";

/// Orders the attempts of claimants. No two attempts have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    #[serde(rename = "r")]
    pub round: u64,
    /// Made for this attempt.
    #[serde(rename = "i")]
    pub id: VersionId,
}

/// The bucket that comes into being with its first name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewBucket {
    /// The key that is granted everything.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<KeyId>,
}

/// "This name shall be this bucket's." Enough to carry it out without its claimant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NameClaim {
    #[serde(rename = "b")]
    pub bucket: BucketId,
    /// Of the name's row, and of a new bucket's.
    #[serde(rename = "t")]
    pub time: Timestamp,
    /// The node that makes it, and what it calls this work while it is at it.
    #[serde(rename = "c")]
    pub coordinator: NodeId,
    #[serde(rename = "w")]
    pub work: VersionId,
    /// `None`: the bucket exists already.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub makes: Option<NewBucket>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A claim, with the highest ballot under which a node accepted it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    #[serde(rename = "n")]
    pub ballot: Ballot,
    #[serde(rename = "c")]
    pub claim: NameClaim,
}

/// What one node knows of the claims of one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NameSlot {
    #[serde(rename = "o")]
    pub scope: AliasScope,
    #[serde(rename = "n")]
    pub name: String,
    #[serde(rename = "f")]
    pub base: Timestamp,
    #[serde(rename = "p")]
    pub promised: Ballot,
    /// When this node first heard of a claim, by its own clock.
    #[serde(rename = "s")]
    pub since: Timestamp,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Format for NameSlot {
    const TAG: &'static str = "nmc1";
}

/// A claimant's question. Without a claim it asks for the promise.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskName {
    #[serde(rename = "l")]
    pub layout: u64,
    #[serde(rename = "o")]
    pub scope: AliasScope,
    #[serde(rename = "n")]
    pub name: String,
    #[serde(rename = "f")]
    pub base: Timestamp,
    #[serde(rename = "i")]
    pub ballot: Ballot,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<NameClaim>,
}

/// A node's answer to a claimant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum NameAnswer {
    /// Nothing of an earlier ballot will be accepted; this was.
    #[serde(rename = "p")]
    Promised(Option<Accepted>),
    #[serde(rename = "a")]
    Accepted,
    /// Another claimant has a later ballot.
    #[serde(rename = "o")]
    Outbid(Ballot),
    /// The name was given since the row that the claimant has read.
    #[serde(rename = "x")]
    Passed,
}

impl Request for AskName {
    const ENDPOINT: &'static str = "name.claim/1";
    const CLASS: Class = Class::Metadata;
    type Reply = NameAnswer;
}

/// What a node answers, and what it knows afterwards; `None`: nothing new.
pub fn judge(slot: Option<NameSlot>, row: Option<&AliasRow>, ask: &AskName, now: Timestamp) -> (NameAnswer, Option<NameSlot>) {
    let is_later = |row: &AliasRow| row.bucket.timestamp() > ask.base || row.bucket.get().is_some();
    if row.is_some_and(is_later) || slot.as_ref().is_some_and(|slot| slot.base > ask.base) {
        return (NameAnswer::Passed, None);
    }
    // Claims from before the row that the claimant has read are over.
    let slot = slot.filter(|slot| slot.base == ask.base);
    if let Some(slot) = &slot
        && slot.promised > ask.ballot
    {
        return (NameAnswer::Outbid(slot.promised), None);
    }
    let mut slot = slot.unwrap_or_else(|| NameSlot {
        scope: ask.scope.clone(),
        name: ask.name.clone(),
        base: ask.base,
        promised: ask.ballot,
        since: now,
        accepted: None,
        unknown: Unknown::new(),
    });
    slot.promised = ask.ballot;
    let answer = match &ask.claim {
        None => NameAnswer::Promised(slot.accepted.clone()),
        Some(claim) => {
            slot.accepted = Some(Accepted { ballot: ask.ballot, claim: claim.clone() });
            NameAnswer::Accepted
        }
    };
    (answer, Some(slot))
}

/// The tree of what this node has promised and accepted, by the names' sort keys.
#[derive(Clone, Copy, Debug)]
pub struct NameClaims(pub Tree);

impl NameClaims {
    /// # Errors
    /// [`TableError`]: the engine's, or a slot that cannot be read.
    pub fn get(self, tx: &Transaction<'_>, key: &[u8]) -> Result<Option<NameSlot>, TableError> {
        let stored: Option<Vec<u8>> = tx.get(self.0, key)?;
        stored.map(|stored| read(key, &stored)).transpose()
    }

    fn keep(self, tx: &mut Transaction<'_>, key: &[u8], slot: &NameSlot) -> Result<(), DbError> {
        tx.insert(self.0, key, &rows::seal(key, &codec::encode(slot)))
    }

    /// The row of a name has changed: claims from before it are over.
    ///
    /// # Errors
    /// As [`NameClaims::get`].
    pub(crate) fn follow(self, tx: &mut Transaction<'_>, row: &AliasRow) -> Result<(), TableError> {
        let (_placement, key) = key_of(&row.scope, &row.name);
        if self.get(tx, &key)?.is_some_and(|slot| slot.base < row.bucket.timestamp()) {
            tx.remove(self.0, &key)?;
        }
        Ok(())
    }
}

/// A slot as it is kept.
///
/// # Errors
/// [`TableError::DamagedRow`], [`TableError::Row`].
fn read(key: &[u8], stored: &[u8]) -> Result<NameSlot, TableError> {
    let damaged = || TableError::DamagedRow { table: TREE, row: key.escape_ascii().to_string() };
    let bytes = rows::unsealed(key, stored).ok_or_else(damaged)?;
    codec::decode(bytes).map_err(|source| TableError::Row { table: TREE, source })
}

/// Some slots, by their keys.
pub(crate) struct SlotPage {
    pub slots: Vec<(Vec<u8>, NameSlot)>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<Vec<u8>>,
}

/// A node's side of claims.
#[derive(Clone)]
pub struct NameService {
    pub tables: TableStore,
    pub claims: NameClaims,
}

impl NameService {
    /// # Errors
    /// [`TableError`], also while this node's rows are not all there.
    pub async fn answer(&self, claimant: NodeId, ask: AskName) -> Result<NameAnswer, TableError> {
        let vouch = self.tables.admit_writer(claimant, ask.layout)?;
        self.tables.check_whole()?;
        let claims = self.claims;
        let answered = self.tables.transact_beside(move |tx| {
            let (placement, key) = key_of(&ask.scope, &ask.name);
            let row = tx.row::<AliasTable>(&placement, &key)?;
            let now = tx.now();
            let slot = claims.get(tx.raw(), &key)?;
            let (answer, slot) = judge(slot, row.as_ref(), &ask, now);
            if let Some(slot) = slot {
                claims.keep(tx.raw(), &key, &slot)?;
            }
            Ok::<_, TableError>(answer)
        });
        let answer = answered.await;
        drop(vouch);
        answer
    }

    /// What this node has promised and accepted, beginning behind a key: at most so many, and the last one's key if there may be more.
    ///
    /// # Errors
    /// [`TableError`]; not for a slot that cannot be read, which is left out.
    pub(crate) async fn page(&self, after: Option<Vec<u8>>, limit: usize) -> Result<SlotPage, TableError> {
        use std::ops::{Bound, ControlFlow};
        let tree = self.claims.0;
        let read_some = move |tx: &garage_db::Snapshot<'_>| {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut found = Vec::new();
            tx.range(tree, (from, Bound::Unbounded), garage_db::Direction::Forward, &mut |key, slot| {
                found.push((key.to_vec(), slot.to_vec()));
                if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok::<_, DbError>(found)
        };
        let found: Vec<(Vec<u8>, Vec<u8>)> = self.tables.db().read(read_some).await?;
        let next = found.last().filter(|_| found.len() == limit).map(|(key, _slot)| key.clone());
        let mut slots = Vec::with_capacity(found.len());
        for (key, stored) in found {
            match read(&key, &stored) {
                Ok(slot) => slots.push((key, slot)),
                Err(error) => tracing::error!(error = %chain(&error), "what was promised and accepted of a name cannot be read"),
            }
        }
        Ok(SlotPage { slots, next })
    }

    /// Forgets a promise, if it is still as it was.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) async fn forget(&self, key: Vec<u8>, known: NameSlot) -> Result<(), TableError> {
        let claims = self.claims;
        let forget = move |tx: &mut Transaction<'_>| {
            if claims.get(tx, &key)?.as_ref() == Some(&known) {
                tx.remove(claims.0, &key)?;
            }
            Ok::<_, TableError>(())
        };
        self.tables.db().write(forget).await
    }
}

impl Handler<AskName> for NameService {
    fn handle(&self, caller: Caller, request: Message<AskName>) -> BoxFuture<'static, Result<Message<NameAnswer>, RpcError>> {
        let service = self.clone();
        async move { Ok(service.answer(caller.node, request.body).await?.into()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use garage_types::codec::Unknown;
    use garage_types::crdt::Lww;
    use garage_types::{BucketId, NodeId, Timestamp, VersionId};

    use super::{Accepted, AskName, Ballot, NameAnswer, NameClaim, NameSlot, judge};
    use crate::alias::{AliasRow, AliasScope};

    const NOW: Timestamp = Timestamp::from_millis(50);

    fn ballot(round: u64, id: u8) -> Ballot {
        Ballot { round, id: VersionId::from_bytes([id; 32]) }
    }

    fn claim(byte: u8) -> NameClaim {
        NameClaim {
            bucket: BucketId::from_bytes([byte; 32]),
            time: Timestamp::from_millis(10),
            coordinator: NodeId::from_bytes([byte; 32]),
            work: VersionId::from_bytes([byte; 32]),
            makes: None,
            unknown: Unknown::new(),
        }
    }

    fn ask(base: u64, ballot: Ballot, claim: Option<NameClaim>) -> AskName {
        let base = Timestamp::from_millis(base);
        AskName { layout: 1, scope: AliasScope::Global, name: "n".to_owned(), base, ballot, claim }
    }

    fn row(time: u64, target: Option<BucketId>) -> AliasRow {
        let bucket = Lww::at(Timestamp::from_millis(time), target);
        AliasRow { scope: AliasScope::Global, name: "n".to_owned(), bucket }
    }

    /// The node's knowledge after these questions.
    fn after(asks: &[AskName]) -> Option<NameSlot> {
        asks.iter().fold(None, |slot, ask| judge(slot.clone(), None, ask, NOW).1.or(slot))
    }

    #[test]
    fn a_later_claimant_hears_of_the_claim_that_was_accepted() {
        let slot = after(&[ask(0, ballot(1, 1), None), ask(0, ballot(1, 1), Some(claim(1)))]);
        let (answer, _) = judge(slot, None, &ask(0, ballot(2, 2), None), NOW);
        assert_eq!(answer, NameAnswer::Promised(Some(Accepted { ballot: ballot(1, 1), claim: claim(1) })));
    }

    #[test]
    fn after_a_promise_nothing_of_an_earlier_ballot_is_accepted() {
        let slot = after(&[ask(0, ballot(2, 2), None)]);
        let (answer, slot) = judge(slot, None, &ask(0, ballot(1, 9), Some(claim(1))), NOW);
        assert_eq!((answer, slot), (NameAnswer::Outbid(ballot(2, 2)), None));
    }

    #[test]
    fn a_name_that_was_given_since_cannot_be_claimed() {
        let owner = Some(BucketId::from_bytes([7; 32]));
        for row in [row(5, owner), row(6, None)] {
            assert_eq!(judge(None, Some(&row), &ask(5, ballot(1, 1), None), NOW).0, NameAnswer::Passed);
        }
        let slot = after(&[ask(6, ballot(1, 1), None)]);
        assert_eq!(judge(slot, None, &ask(5, ballot(9, 1), None), NOW).0, NameAnswer::Passed);
    }

    #[test]
    fn claims_of_an_earlier_life_of_the_name_are_over() {
        let slot = after(&[ask(0, ballot(5, 1), None), ask(0, ballot(5, 1), Some(claim(1)))]);
        let (answer, slot) = judge(slot, Some(&row(6, None)), &ask(6, ballot(1, 2), None), NOW);
        assert_eq!(answer, NameAnswer::Promised(None));
        assert_eq!(slot.unwrap().promised, ballot(1, 2));
    }
}
