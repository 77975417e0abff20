//! Closing marks, step by step, on one node: who may keep them, how long, and what they keep out.

use std::time::Duration;

use garage_model::closing::{Ask, AskClosing, ClosingAnswer, Step};
use garage_model::list_uploads::UploadsQuery;
use garage_model::multipart::CreateUpload;
use garage_model::object::{Content, ObjectMeta, ObjectRow, ObjectState, ObjectTable};
use garage_model::pipeline::InMemory;
use garage_model::upload::{SimpleUpload, UploadRow, UploadState, UploadTable};
use garage_model::{Garage, ModelError};
use garage_table::Schema;
use garage_table::error::TableError;
use garage_table::wire::{Entry, Mode, Verdict, Write};
use garage_types::codec::Unknown;
use garage_types::planted::{Bug, plant};
use garage_types::{BucketId, NodeId, ObjectKey, UploadId, VersionId};

use crate::cluster::Cluster;
use crate::cluster::network::Death;
use crate::scenario::setup_of;
use crate::workload::put_of;
use crate::world::World;

fn work(byte: u8) -> VersionId {
    VersionId::from_bytes([byte; 32])
}

async fn ask(garage: &Garage, bucket: BucketId, by: u8, ask: Ask) -> ClosingAnswer {
    ask_for(garage, garage.cluster().node_id(), bucket, by, ask).await
}

async fn ask_for(garage: &Garage, holder: NodeId, bucket: BucketId, by: u8, ask: Ask) -> ClosingAnswer {
    let asked = AskClosing { layout: garage.cluster().layout().version(), bucket, holder, work: work(by), ask, shards: 1 };
    garage.local().closing_service().answer(garage.cluster().node_id(), asked).await.unwrap()
}

/// A copy of another owner's object, as anti-entropy, a reader or an overlapped write brings it.
fn copy_in(garage: &Garage, bucket: BucketId) -> ObjectRow {
    let meta = ObjectMeta {
        size: 1,
        etag: "e".to_owned(),
        content: Content::Inline(b"x".to_vec().into()),
        headers: std::collections::BTreeMap::new(),
        checksum: None,
        owner: None,
        upload: None,
        unknown: Unknown::new(),
    };
    ObjectRow {
        bucket,
        shard: 0,
        key: ObjectKey::parse("copied").unwrap(),
        timestamp: garage.clock().now(),
        version: work(77),
        is_null: true,
        state: ObjectState::Live(Box::new(meta)),
    }
}

async fn store(garage: &Garage, entries: Vec<Entry>) -> Result<Verdict, TableError> {
    garage.local().tables.write(Write { layout: garage.cluster().layout().version(), entries }).await
}

async fn copy_arrives(garage: &Garage, bucket: BucketId) -> Result<Verdict, TableError> {
    store(garage, vec![ObjectTable::entry(&copy_in(garage, bucket), Mode::Replicate)]).await
}

async fn put(garage: &Garage, bucket: BucketId, key: &str) -> Result<(), ModelError> {
    garage.put_object(put_of(bucket, key, 0), Box::new(InMemory::new(vec![7; 300]))).await.map(drop)
}

/// Owners look for what was left by others. The time is virtual.
async fn owners_look() {
    tokio::time::sleep(Duration::from_secs(130)).await;
}

#[tokio::test(start_paused = true)]
async fn a_mark_keeps_everything_new_out_until_its_holder_takes_it_back() {
    let world = World::new(1);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    assert_eq!(ask(&garage, bucket, 1, Ask::Close(Vec::new())).await, ClosingAnswer::Kept { step: Step::Closing, live: 0 });
    // However long that takes.
    world.clock.advance_millis(48 * 3_600_000);
    assert!(matches!(put(&garage, bucket, "k").await, Err(ModelError::BucketClosing)));
    assert!(matches!(copy_arrives(&garage, bucket).await, Err(TableError::Withheld(_))));
    let create = CreateUpload {
        bucket,
        key: ObjectKey::parse("k").unwrap(),
        headers: std::collections::BTreeMap::new(),
        checksum: None,
        owner: None,
    };
    let begun = garage.create_multipart(create).await;
    assert!(matches!(begun, Err(ModelError::BucketClosing)));
    assert_eq!(ask(&garage, bucket, 2, Ask::Reopen).await, ClosingAnswer::Open);
    assert!(matches!(put(&garage, bucket, "k").await, Err(ModelError::BucketClosing)), "another's mark was cleared");
    assert_eq!(ask(&garage, bucket, 1, Ask::Open).await, ClosingAnswer::Open);
    put(&garage, bucket, "k").await.unwrap();
    copy_arrives(&garage, bucket).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deletion_takes_over_the_mark_of_one_that_is_gone_and_a_full_bucket_stays_open() {
    let world = World::new(2);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    put(&garage, bucket, "k").await.unwrap();
    // This node says that it works on nothing of that kind.
    ask(&garage, bucket, 1, Ask::Close(Vec::new())).await;
    assert!(matches!(garage.delete_bucket(bucket).await, Err(ModelError::BucketNotEmpty)));
    put(&garage, bucket, "other").await.unwrap();
    for key in ["k", "other"] {
        let key = ObjectKey::parse(key).unwrap();
        garage.delete_object(bucket, &key, garage_model::put::Preconditions::default()).await.unwrap();
    }
    ask(&garage, bucket, 1, Ask::Close(Vec::new())).await;
    garage.delete_bucket(bucket).await.unwrap();
    assert!(matches!(put(&garage, bucket, "k").await, Err(ModelError::NoSuchBucket(_))));
    garage.create_bucket("pictures").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_mark_whose_holder_died_for_good_does_not_close_the_bucket_for_ever() {
    let world = World::new(4);
    let node = world.start().await;
    node.start_workers();
    let garage = &node.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let dead = NodeId::from_bytes([66; 32]);
    ask_for(garage, dead, bucket, 1, Ask::Close(Vec::new())).await;
    assert!(matches!(garage.delete_bucket(bucket).await, Err(ModelError::Conflict(_))), "it may be at work all the same");
    world.clock.advance_millis(11 * 60_000);
    owners_look().await;
    put(garage, bucket, "k").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_was_decided_is_carried_out_when_its_holder_is_gone() {
    let world = World::new(5);
    let node = world.start().await;
    node.start_workers();
    let garage = &node.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    ask(garage, bucket, 1, Ask::Close(Vec::new())).await;
    let decided = ask(garage, bucket, 1, Ask::Decide).await;
    let layout = garage.cluster().layout().version();
    assert!(matches!(decided, ClosingAnswer::Kept { step: Step::Decided { under, .. }, live: 0 } if under == layout));
    assert_eq!(ask(garage, bucket, 1, Ask::Open).await, decided, "who was told may have deleted the bucket's row already");
    owners_look().await;
    assert!(matches!(garage.resolve_bucket(None, "pictures").await, Err(ModelError::NoSuchBucket(_))));
    assert_eq!(ask(garage, bucket, 2, Ask::Close(Vec::new())).await, ClosingAnswer::Gone);
}

#[tokio::test(start_paused = true)]
async fn nothing_live_comes_into_a_bucket_that_was_deleted() {
    let world = World::new(6);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let object = copy_in(&garage, bucket);
    let node = garage.cluster().node_id();
    let simple = SimpleUpload { version: object.version, coordinator: node, incarnation: 1, unknown: Unknown::new() };
    let begun = UploadRow {
        bucket,
        shard: 0,
        key: object.key.clone(),
        id: UploadId::from_bytes([77; 32]),
        started: garage.clock().now(),
        state: UploadState::Simple(simple),
    };
    assert_eq!(store(&garage, vec![UploadTable::entry(&begun, Mode::Commit)]).await.unwrap(), Verdict::Won);
    garage.delete_bucket(bucket).await.unwrap();
    // As a write that another has overtaken ends: its object is a copy, the end of its upload is judged.
    let done = begun.with_state(UploadState::Done);
    let ends = vec![ObjectTable::entry(&object, Mode::Replicate), UploadTable::entry(&done, Mode::Commit)];
    assert!(matches!(store(&garage, ends).await.unwrap(), Verdict::Refused(_)));
    assert_eq!(copy_arrives(&garage, bucket).await.unwrap(), Verdict::Won);
    assert!(matches!(garage.object(bucket, &object.key).await, Err(ModelError::NoSuchKey)));
}

/// A bucket whose mark one deletion has, when another gives its own back that it did not get. Returns whether the bucket stays closed.
async fn stays_closed_when_another_gives_up(last: &Ask, bug: Option<Bug>) -> bool {
    let world = World::new(7);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    ask(&garage, bucket, 1, Ask::Close(Vec::new())).await;
    ask(&garage, bucket, 1, last.clone()).await;
    plant(bug);
    assert!(matches!(ask(&garage, bucket, 2, Ask::Close(Vec::new())).await, ClosingAnswer::Others(_)));
    ask(&garage, bucket, 2, Ask::Open).await;
    plant(None);
    matches!(put(&garage, bucket, "k").await, Err(ModelError::BucketClosing))
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_another_clears_is_noticed() {
    for last in [Ask::Close(Vec::new()), Ask::Decide] {
        assert!(stays_closed_when_another_gives_up(&last, None).await);
        assert!(!stays_closed_when_another_gives_up(&last, Some(Bug::MarkClearedByOther)).await);
    }
}

/// Whether nothing comes in after an owner has said that the bucket is empty, until the bucket is deleted.
async fn is_shut_once_it_is_said_to_be_empty(bug: Option<Bug>) -> bool {
    let world = World::new(8);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    plant(bug);
    for asked in [Ask::Close(Vec::new()), Ask::Decide] {
        assert!(matches!(ask(&garage, bucket, 1, asked).await, ClosingAnswer::Kept { live: 0, .. }));
    }
    plant(None);
    put(&garage, bucket, "k").await.is_err()
}

#[tokio::test(start_paused = true)]
async fn emptiness_without_a_mark_is_noticed() {
    assert!(is_shut_once_it_is_said_to_be_empty(None).await);
    assert!(!is_shut_once_it_is_said_to_be_empty(Some(Bug::EmptinessWithoutMark)).await);
}

/// Whether a copy is kept out; the planted bug lets it pass.
async fn a_copy_is_kept_out(bug: Option<Bug>) -> bool {
    let world = World::new(3);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    ask(&garage, bucket, 1, Ask::Close(Vec::new())).await;
    plant(bug);
    let arrived = copy_arrives(&garage, bucket).await;
    plant(None);
    arrived.is_err()
}

#[tokio::test(start_paused = true)]
async fn copies_that_pass_the_mark_are_noticed() {
    assert!(a_copy_is_kept_out(None).await);
    assert!(!a_copy_is_kept_out(Some(Bug::CopiesPassMark)).await);
}

/// A deletion that cannot be carried on, since an owner is down: what others have uploaded to the bucket stays.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_takes_no_uploads_with_it() {
    let cluster = Cluster::start(9, 3, 3, setup_of(3, None)).await;
    let garage = |number: usize| cluster.machines[number].garage().expect("it runs");
    let bucket = garage(0).create_bucket("pictures").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let gone = NodeId::from_bytes([66; 32]);
    for asked in [Ask::Close(Vec::new()), Ask::Decide] {
        ask_for(&garage(0), gone, bucket, 1, asked).await;
    }
    put(&garage(1), bucket, "k").await.unwrap();
    let key = ObjectKey::parse("parts").unwrap();
    let create =
        CreateUpload { bucket, key: key.clone(), headers: std::collections::BTreeMap::new(), checksum: None, owner: None };
    let id = garage(1).create_multipart(create).await.unwrap();
    cluster.machines[2].crash(Death::Reset);
    // The holder of the mark has been silent for long.
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert!(garage(1).delete_bucket(bucket).await.is_err());
    cluster.machines[2].restart().await;
    cluster.until("all are connected", Cluster::is_connected).await;
    let uploads = garage(1).list_uploads(bucket, &UploadsQuery { limit: 10, ..UploadsQuery::default() }).await.unwrap();
    assert_eq!(uploads.items.len(), 1, "{id:?}");
}
