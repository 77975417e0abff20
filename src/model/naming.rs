//! Giving names to buckets: the claimant's side of [`crate::name_claims`], and the end of claims whose claimant is gone.
//!
//! Must stay true: the row of a name is written only for a claim that a majority of every live layout's nodes has accepted; before it,
//! the bucket and its owner's permission are at a majority, so that whoever sees the name may use the bucket.

use std::time::Duration;

use garage_rpc::error::RpcError;
use garage_rpc::layout::WritePermit;
use garage_rpc::quorum::{NodeError, QuorumError, WriteQuorum};
use garage_table::TableError;
use garage_types::codec::Unknown;
use garage_types::crdt::{Deletable, Lww};
use garage_types::planted::{Bug, is_planted};
use garage_types::{BucketId, KeyId, Timestamp, VersionId};
use tokio::time::Instant;

use crate::alias::{AliasRow, AliasScope, key_of};
use crate::bucket::BucketRow;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::key::{Permissions, placement_of};
use crate::name_claims::{Accepted, AskName, Ballot, NameAnswer, NameClaim, NameService, NameSlot, NewBucket, SlotPage};
use crate::unfinished::{Counted, Outcome, PAGE};
use crate::working::Activity;

/// How often a claimant tries again when others came in between.
const ATTEMPTS_MAX: u64 = 16;
/// Between two attempts a claimant waits up to this long, times the attempts so far, so that one of several comes through.
const PAUSE_MS: u64 = 50;

/// What a name is wanted for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub bucket: BucketId,
    /// `None`: the bucket exists already.
    pub makes: Option<NewBucket>,
}

/// A name and whose it is.
#[derive(Clone, Copy, Debug)]
struct Name<'a> {
    scope: &'a AliasScope,
    name: &'a str,
}

impl Name<'_> {
    fn row(&self, time: Timestamp, target: Option<BucketId>) -> AliasRow {
        AliasRow { scope: self.scope.clone(), name: self.name.to_owned(), bucket: Lww::at(time, target) }
    }

    fn is_taken_by(&self, bucket: BucketId) -> ModelError {
        ModelError::BucketNameTaken { name: self.name.to_owned(), bucket: Some(bucket) }
    }
}

/// When a claim that is made was begun.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Begun {
    Now,
    /// By somebody who is gone, when the name was free as of a row of this time.
    WhenFreeSince(Timestamp),
}

impl Begun {
    /// Whether the name has had another row since, so that whoever began has nothing to claim any more.
    fn is_over(self, row: Option<&AliasRow>) -> bool {
        match self {
            Begun::Now => false,
            Begun::WhenFreeSince(base) => row.is_some_and(|row| row.bucket.timestamp() > base && row.bucket.get().is_none()),
        }
    }
}

/// How one attempt ended.
enum Attempt {
    /// A majority accepted this claim, ours or another's.
    Chosen(NameClaim),
    Outbid(Ballot),
    /// The name was given meanwhile.
    Passed,
}

/// Why a node does not count.
#[derive(Debug, thiserror::Error)]
enum NotAgreed {
    #[error("the node answered {0:?}")]
    Answer(NameAnswer),
    #[error(transparent)]
    Rpc(RpcError),
}

impl Garage {
    /// Gives a bucket a name that is free, or already the bucket's.
    ///
    /// # Errors
    /// [`ModelError::BucketNameTaken`]; [`ModelError::Conflict`] when others kept claiming it; [`ModelError::Table`] when too few nodes
    /// answered: the claim may then be carried out later.
    pub(crate) async fn claim_name(&self, scope: &AliasScope, name: &str, wanted: Wanted) -> Result<(), ModelError> {
        self.claim_as(Name { scope, name }, wanted, Begun::Now).await
    }

    async fn claim_as(&self, name: Name<'_>, wanted: Wanted, begun: Begun) -> Result<(), ModelError> {
        let work = VersionId::random(&*self.0.random);
        let working = self.0.local.working.on(work);
        let claimed = self.claim_until_given(name, wanted, begun, work).await;
        drop(working);
        claimed
    }

    async fn claim_until_given(&self, name: Name<'_>, wanted: Wanted, begun: Begun, work: VersionId) -> Result<(), ModelError> {
        let mut round = 1;
        for attempt in 1..=ATTEMPTS_MAX {
            let row = self.row_of(name).await?;
            if begun.is_over(row.as_ref()) {
                return Err(ModelError::Conflict(format!("the name {} was given and freed again meanwhile", name.name)));
            }
            let base = match row {
                None => Timestamp::ZERO,
                Some(row) => match *row.bucket.get() {
                    None => row.bucket.timestamp(),
                    Some(owner) if owner == wanted.bucket => return Ok(()),
                    Some(owner) if self.is_deleted(owner).await? => {
                        // Its deletion did not come as far as its names.
                        self.give_up_name(name, &row).await?;
                        continue;
                    }
                    Some(owner) => {
                        if attempt > 1 {
                            self.lose(name, &row).await?;
                        }
                        return Err(name.is_taken_by(owner));
                    }
                },
            };
            // Held to the end: who joins the cluster meanwhile has to be told as well.
            let permit = self.0.cluster.begin_write();
            let began = Instant::now();
            let claim = NameClaim {
                bucket: wanted.bucket,
                time: base.next().max(self.0.clock.now()),
                coordinator: self.0.cluster.node_id(),
                work,
                makes: wanted.makes.clone(),
                unknown: Unknown::new(),
            };
            let ballot = Ballot { round, id: VersionId::random(&*self.0.random) };
            match self.attempt(&permit, name, base, ballot, claim).await? {
                Attempt::Chosen(claim) => {
                    self.write_bucket_of(&claim).await?;
                    // A node that lost its database, and what it had accepted, is whole again after two time-outs at the earliest.
                    if began.elapsed() > self.0.cluster.timeouts().metadata {
                        round += 1;
                        continue;
                    }
                    let row = name.row(claim.time, Some(claim.bucket));
                    self.0.aliases.merge(&row).await?;
                    if claim.bucket == wanted.bucket {
                        return Ok(());
                    }
                    self.lose(name, &row).await?;
                    return Err(name.is_taken_by(claim.bucket));
                }
                Attempt::Outbid(other) => round = other.round + 1,
                Attempt::Passed => {}
            }
            drop(permit);
            tokio::time::sleep(Duration::from_millis(self.0.random.below(PAUSE_MS * attempt))).await;
        }
        let message = format!("the name {} is being given to another bucket at this moment; try again", name.name);
        Err(ModelError::Conflict(message))
    }

    /// Another claimant got the name.
    async fn lose(&self, name: Name<'_>, row: &AliasRow) -> Result<(), ModelError> {
        if is_planted(Bug::LoserErasesName) {
            self.0.aliases.merge(&name.row(row.bucket.timestamp().next(), None)).await?;
        }
        Ok(())
    }

    async fn row_of(&self, name: Name<'_>) -> Result<Option<AliasRow>, ModelError> {
        let (placement, key) = key_of(name.scope, name.name);
        Ok(self.0.aliases.get(placement, key).await?)
    }

    async fn is_deleted(&self, bucket: BucketId) -> Result<bool, ModelError> {
        let row = self.0.buckets.get(bucket.into(), Vec::new()).await?;
        Ok(row.is_some_and(|row| row.state == Deletable::Deleted))
    }

    /// Frees a name that a row gives to a bucket. Whoever frees it of the same row writes the same; a row that came since stays.
    async fn give_up_name(&self, name: Name<'_>, row: &AliasRow) -> Result<(), ModelError> {
        Ok(self.0.aliases.merge(&name.row(row.bucket.timestamp().next(), None)).await?)
    }

    /// Frees a name, if it is this bucket's.
    ///
    /// # Errors
    /// [`ModelError::NoSuchBucket`] when it is not.
    pub async fn unset_alias(&self, scope: &AliasScope, name: &str, bucket: BucketId) -> Result<(), ModelError> {
        let name = Name { scope, name };
        match self.row_of(name).await? {
            Some(row) if *row.bucket.get() == Some(bucket) => self.give_up_name(name, &row).await,
            _ => Err(ModelError::NoSuchBucket(name.name.to_owned())),
        }
    }

    /// Asks for promises, then for one claim to be accepted.
    async fn attempt(
        &self,
        permit: &std::sync::Arc<WritePermit>,
        name: Name<'_>,
        base: Timestamp,
        ballot: Ballot,
        claim: NameClaim,
    ) -> Result<Attempt, ModelError> {
        let layout = permit.layout().version();
        let ask = |claim| AskName { layout, scope: name.scope.clone(), name: name.name.to_owned(), base, ballot, claim };
        let promises = match self.ask_all(permit, ask(None)).await? {
            Ok(promises) => promises,
            Err(ended) => return Ok(ended),
        };
        let accepted = promises.into_iter().filter_map(|answer| match answer {
            NameAnswer::Promised(accepted) => accepted,
            NameAnswer::Accepted | NameAnswer::Outbid(_) | NameAnswer::Passed => None,
        });
        let latest: Option<Accepted> = accepted.max_by_key(|accepted| accepted.ballot);
        let latest = latest.filter(|_| !is_planted(Bug::ClaimOverlooked));
        let claim = latest.map_or(claim, |accepted| accepted.claim);
        match self.ask_all(permit, ask(Some(claim.clone()))).await? {
            Ok(_accepted) => Ok(Attempt::Chosen(claim)),
            Err(ended) => Ok(ended),
        }
    }

    /// The answers of a majority that agrees, or what keeps it from agreeing.
    async fn ask_all(
        &self,
        permit: &std::sync::Arc<WritePermit>,
        ask: AskName,
    ) -> Result<Result<Vec<NameAnswer>, Attempt>, ModelError> {
        if permit.layout().is_empty() {
            return Err(TableError::NoLayout.into());
        }
        let call = |node| {
            let (cluster, ask) = (self.0.cluster.clone(), ask.clone());
            async move {
                match cluster.call(node, ask).await {
                    Ok(answer @ (NameAnswer::Promised(_) | NameAnswer::Accepted)) => Ok(answer),
                    Ok(answer) => Err(NotAgreed::Answer(answer)),
                    Err(error) => Err(NotAgreed::Rpc(error)),
                }
            }
        };
        let sets = permit.layout().full_copy_sets();
        match self.0.cluster.write(permit, &sets, WriteQuorum::Majority, call).await {
            Ok(answers) => Ok(Ok(answers.into_iter().map(|answer| answer.reply).collect())),
            Err(error) => ended_by(error).map(Err),
        }
    }

    /// The rows that a claim needs to be there before its name is.
    async fn write_bucket_of(&self, claim: &NameClaim) -> Result<(), ModelError> {
        let Some(NewBucket { owner }) = &claim.makes else { return Ok(()) };
        let row = BucketRow::new(claim.bucket, claim.time);
        let bucket = async { Ok::<_, ModelError>(self.0.buckets.merge(&row).await?) };
        let grant = async {
            match owner {
                Some(key) => self.grant_new_bucket(key, claim).await,
                None => Ok(()),
            }
        };
        futures_util::future::try_join(bucket, grant).await.map(drop)
    }

    /// Grants a key everything on a bucket that was made for it, unless something was said of it since. A key that is gone gets nothing.
    async fn grant_new_bucket(&self, key: &KeyId, claim: &NameClaim) -> Result<(), ModelError> {
        let Some(mut row) = self.0.keys.get(placement_of(key), Vec::new()).await? else { return Ok(()) };
        let Deletable::Present(state) = &mut row.state else { return Ok(()) };
        if state.buckets.timestamp(&claim.bucket).is_none() {
            state.buckets.update(claim.time, claim.bucket, Permissions::ALL);
        }
        Ok(self.0.keys.merge(&row).await?)
    }

    pub(crate) fn name_service(&self) -> NameService {
        self.0.local.name_service()
    }

    /// Ends the claims that this node keeps and nobody works on.
    ///
    /// # Errors
    /// [`ModelError::Table`]: the claims cannot be read.
    pub(crate) async fn settle_names(&self) -> Result<Counted, ModelError> {
        let mut counted = Counted::default();
        let mut after = None;
        loop {
            let SlotPage { slots, next } = self.name_service().page(after, PAGE).await?;
            let claims = slots.iter().filter_map(|(_key, slot)| slot.accepted.as_ref());
            let at_work = self.who_is_at_work(claims.map(|accepted| (accepted.claim.coordinator, accepted.claim.work))).await;
            for (key, slot) in slots {
                let name = slot.name.clone();
                let activity = slot.accepted.as_ref().map(|accepted| {
                    let claim = &accepted.claim;
                    at_work.activity(claim.coordinator, claim.work)
                });
                counted.add(self.settle_name(key, slot, activity).await, || format!("the claim of the name {name}"));
            }
            match next {
                Some(next) => after = Some(next),
                None => return Ok(counted),
            }
        }
    }

    async fn settle_name(&self, key: Vec<u8>, slot: NameSlot, activity: Option<Activity>) -> Result<Outcome, ModelError> {
        let name = Name { scope: &slot.scope, name: &slot.name };
        match (&slot.accepted, activity) {
            (Some(_), Some(Activity::Working)) => Ok(Outcome::Waits),
            (Some(accepted), _) => {
                let begun = Begun::WhenFreeSince(slot.base);
                if begun.is_over(self.row_of(name).await?.as_ref()) {
                    self.name_service().forget(key, slot).await?;
                    return Ok(Outcome::Settled);
                }
                let wanted = Wanted { bucket: accepted.claim.bucket, makes: accepted.claim.makes.clone() };
                match self.claim_as(name, wanted, begun).await {
                    Ok(()) | Err(ModelError::BucketNameTaken { .. }) => Ok(Outcome::Settled),
                    Err(error) => Err(error),
                }
            }
            // A promise without a claim binds nobody; its claimant has long given up.
            (None, _) if self.is_long_ago(slot.since) => {
                self.name_service().forget(key, slot).await?;
                Ok(Outcome::Settled)
            }
            (None, _) => Ok(Outcome::Settled),
        }
    }
}

/// What an attempt that no majority agreed to means: an answer of other claimants, or too few answers.
fn ended_by(error: QuorumError<NotAgreed>) -> Result<Attempt, ModelError> {
    let QuorumError { needed, reached, of, errors } = error;
    let mut outbid: Option<Ballot> = None;
    let mut failures = Vec::new();
    for NodeError { node, error } in errors {
        match error {
            NotAgreed::Answer(NameAnswer::Outbid(ballot)) => outbid = outbid.max(Some(ballot)),
            NotAgreed::Answer(_) => return Ok(Attempt::Passed),
            NotAgreed::Rpc(error) => failures.push(NodeError { node, error }),
        }
    }
    match outbid {
        Some(ballot) => Ok(Attempt::Outbid(ballot)),
        None => Err(TableError::Quorum(Box::new(QuorumError { needed, reached, of, errors: failures })).into()),
    }
}

#[cfg(test)]
mod tests {
    use garage_types::crdt::Lww;
    use garage_types::{BucketId, Timestamp};

    use super::Begun;
    use crate::alias::{AliasRow, AliasScope};

    /// A name is given to a bucket, and taken from it again, while a node that had accepted a claim of it was away.
    #[test]
    fn a_claim_that_was_left_over_is_carried_out_only_while_the_name_is_as_free_as_it_was() {
        let row = |time, target| {
            let bucket = Lww::at(Timestamp::from_millis(time), target);
            AliasRow { scope: AliasScope::Global, name: "n".to_owned(), bucket }
        };
        let given = Some(BucketId::from_bytes([7; 32]));
        let left_over = Begun::WhenFreeSince(Timestamp::from_millis(5));
        assert!(left_over.is_over(Some(&row(7, None))));
        // Free as it was; or given, which the claim itself finds.
        assert!(!left_over.is_over(None) && !left_over.is_over(Some(&row(5, None))) && !left_over.is_over(Some(&row(6, given))));
        assert!(!Begun::Now.is_over(Some(&row(7, None))));
    }
}
