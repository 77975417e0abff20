//! Stories of a bucket whose deletion was decided by some owners, when the machine that carried it out died.
//!
//! Judged: an object that was acknowledged is there at the end.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_model::Garage;
use garage_model::bucket::{BucketRow, BucketTable};
use garage_model::closing::{Ask, AskClosing, ClosingAnswer, Step};
use garage_model::pipeline::InMemory;
use garage_rpc::layout::history::MissingData;
use garage_table::Schema;
use garage_table::wire::{Mode, Write};
use garage_types::crdt::Deletable;
use garage_types::{BucketId, NodeId, ObjectKey, VersionId};

use super::Stage;
use crate::cluster::network::Death;
use crate::workload::{body_of, put_of};

const PATIENCE: Duration = Duration::from_secs(45);
/// Until a machine that died is held to be down, and waited for no more.
const NOTICED_MS: u64 = 15_000;
/// Until owners carry on what a holder began who does not answer.
const SETTLED_MS: u64 = 13 * 60_000;
const WORK: VersionId = VersionId::from_bytes([66; 32]);

/// Two of three owners have decided, and the dead machine alone has the row that says that the bucket is gone. Both owners are replaced,
/// and clients write into the bucket before the machine returns.
pub(super) fn its_deciders_are_replaced(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [stays, one, other] = stage.shuffled()[..] else { return };
        let [new, newer, holder] = [0, 1, 2].map(|index| stage.roles + index);
        stage.fill(&[stays, one, other]).await;
        stage.stage_gateway(stays, holder).await;
        let number = stage.change_layout(stays, &[], &[]).await;
        stage.settled(number).await;
        let made = stage.machine(stays).run(PATIENCE, |garage| async move { garage.create_bucket("half").await }).await;
        let bucket = made.expect("the machine runs").expect("a bucket can be made");
        stage.pause(5_000, 6_000).await;
        for owner in [one, other] {
            decide(&stage, owner, bucket, stage.id(holder)).await;
        }
        only_says_that_it_is_gone(&stage, holder, bucket).await;
        let death = if stage.is_drawn(2) { Death::Reset } else { Death::Silent };
        stage.machine(holder).crash(death);
        stage.pause(NOTICED_MS, NOTICED_MS + 2_000).await;
        let number = stage.change_layout(stays, &[one, other], &[new, newer]).await;
        without(&stage, stays, number, holder).await;
        let mut stored = Vec::new();
        for key in ["a", "b", "c"] {
            if put(&stage, stage.some(&[stays, new, newer]), bucket, key).await {
                stored.push(key);
            }
            stage.pause(1, 500).await;
        }
        stage.machine(holder).restart().await;
        stage.pause(SETTLED_MS, SETTLED_MS + 60_000).await;
        for key in stored {
            look(&stage, stage.some(&[stays, new, newer]), bucket, key).await;
        }
    }
    .boxed()
}

/// One of three owners has decided, so the bucket stays: the others take objects. Then one of those is lost for good, and replaced.
pub(super) fn one_alone_has_decided(stage: Stage) -> BoxFuture<'static, ()> {
    async move {
        let [alone, stays, lost] = stage.shuffled()[..] else { return };
        let [new, holder] = [0, 1].map(|index| stage.roles + index);
        stage.fill(&[alone, stays, lost]).await;
        let made = stage.machine(stays).run(PATIENCE, |garage| async move { garage.create_bucket("half").await }).await;
        let bucket = made.expect("the machine runs").expect("a bucket can be made");
        stage.pause(5_000, 6_000).await;
        decide(&stage, alone, bucket, stage.id(holder)).await;
        stage.machine(holder).crash(Death::Silent);
        for key in ["a", "b", "c"] {
            assert!(put(&stage, stage.some(&[stays, lost]), bucket, key).await, "two of three owners take objects");
            stage.pause(1, 500).await;
        }
        stage.note(&format!("{lost} is lost"));
        stage.machine(lost).crash(Death::Silent);
        stage.pause(NOTICED_MS, NOTICED_MS + 2_000).await;
        let number = stage.change_layout(stays, &[lost], &[new]).await;
        // Until then the decision may be carried on, and keeps out what the others have.
        stage.pause(SETTLED_MS, SETTLED_MS + 60_000).await;
        without(&stage, stays, number, lost).await;
        stage.machine(holder).restart().await;
        stage.pause(SETTLED_MS, SETTLED_MS + 60_000).await;
        for key in ["a", "b", "c"] {
            look(&stage, stage.some(&[alone, stays, new]), bucket, key).await;
        }
        if !put(&stage, stage.some(&[alone, stays, new]), bucket, "d").await {
            stage.world.history.violation("half takes no objects, though nobody deletes it");
        }
    }
    .boxed()
}

/// The layout becomes the only one, though one machine is dead.
async fn without(stage: &Stage, through: usize, number: u64, dead: usize) {
    let layout = stage.machine(through).node().expect("it runs").layout;
    let dead = [stage.id(dead)].into_iter().collect();
    layout.skip_dead_nodes(number, dead, MissingData::Refuse).await.expect("a dead node can be skipped");
    stage.settled(number).await;
}

/// What the holder of a mark asks of an owner, up to the decision.
async fn decide(stage: &Stage, owner: usize, bucket: BucketId, holder: NodeId) {
    let garage = stage.machine(owner).garage().expect("it runs");
    let layout = garage.cluster().layout().version();
    for ask in [Ask::Close(Vec::new()), Ask::Decide] {
        let asked = AskClosing { layout, bucket, holder, work: WORK, ask, shards: 1 };
        let answer = garage.local().closing_service().answer(holder, asked).await.expect("an owner answers");
        assert!(matches!(answer, ClosingAnswer::Kept { step: Step::Closing | Step::Decided { .. }, live: 0 }), "{answer:?}");
    }
    stage.note(&format!("{owner} has decided that {bucket} is deleted"));
}

/// As when it dies while it tells the others.
async fn only_says_that_it_is_gone(stage: &Stage, holder: usize, bucket: BucketId) {
    let garage = stage.machine(holder).garage().expect("it runs");
    let row = BucketRow { id: bucket, state: Deletable::Deleted };
    let entries = vec![BucketTable::entry(&row, Mode::Replicate)];
    garage.local().tables.write(Write { layout: garage.cluster().layout().version(), entries }).await.expect("the row is stored");
    stage.note(&format!("{holder} alone knows that {bucket} is gone"));
}

/// Whether it was acknowledged.
async fn put(stage: &Stage, machine: usize, bucket: BucketId, key: &'static str) -> bool {
    let put = put_of(bucket, key, 0);
    let work =
        move |garage: Garage| async move { garage.put_object(put, Box::new(InMemory::new(Bytes::from_static(b"kept")))).await };
    let answer = stage.machine(machine).run(PATIENCE, work).await;
    stage.note(&format!("put {key} through {machine} -> {:?}", answer.as_ref().map(|stored| stored.as_ref().map(drop))));
    matches!(answer, Ok(Ok(_)))
}

async fn look(stage: &Stage, machine: usize, bucket: BucketId, key: &'static str) {
    let object_key = ObjectKey::parse(key).expect("it is a key");
    let work = move |garage: Garage| async move {
        garage.resolve_bucket(None, "half").await?;
        let object = garage.object(bucket, &object_key).await?;
        body_of(garage, object).await
    };
    let answer = stage.machine(machine).run(PATIENCE, work).await;
    if !matches!(&answer, Ok(Ok(body)) if body == "kept") {
        stage.world.history.violation(format!("{key} of half was acknowledged, and through {machine} there is {answer:?}"));
    }
}
