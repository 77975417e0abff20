//! What was acknowledged is there after a power cut, and nothing that was deleted comes back.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::list::{ListItem, ListQuery};
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::{Garage, ModelError};
use garage_table::wire::{Verdict, Write};
use garage_types::{BucketId, ObjectKey, Random};

use crate::world::World;

fn put(bucket: BucketId, key: &str) -> PutObject {
    PutObject {
        bucket,
        key: ObjectKey::parse(key).unwrap(),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    }
}

async fn store(garage: &Garage, bucket: BucketId, key: &str, body: Vec<u8>) -> Result<(), ModelError> {
    garage.put_object(put(bucket, key), Box::new(InMemory::new(body))).await.map(drop)
}

async fn fetch(garage: &Garage, bucket: BucketId, key: &str) -> Option<Bytes> {
    let object = match garage.object(bucket, &ObjectKey::parse(key).unwrap()).await {
        Ok(object) => object,
        Err(ModelError::NoSuchKey) => return None,
        Err(error) => panic!("{key}: {error}"),
    };
    let mut stream = garage.read_object(&object, 0..object.meta.size).await.unwrap();
    let mut body = Vec::new();
    while let Some(bytes) = stream.next().await {
        body.extend_from_slice(&bytes.unwrap());
    }
    Some(body.into())
}

async fn listed(garage: &Garage, bucket: BucketId) -> Vec<String> {
    let query = ListQuery { limit: 1000, ..ListQuery::default() };
    let listing = garage.list_objects(bucket, &query).await.unwrap();
    let key = |item: ListItem| match item {
        ListItem::Object(listed) => listed.key.to_string(),
        ListItem::CommonPrefix(prefix) => panic!("no delimiter was given, but {prefix} was grouped"),
    };
    listing.items.into_iter().map(key).collect()
}

/// Writes, overwrites and deletes by a seed, cutting the power now and then, and compares with what was acknowledged.
async fn run(seed: u64) {
    let world = World::new(seed);
    let mut node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    let mut acknowledged: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for step in 0..60 {
        world.clock.advance_millis(world.random.below(3));
        let key = format!("key{}", world.random.below(6));
        match world.random.below(10) {
            0..6 => {
                let mut body = vec![0; world.random.below(400) as usize];
                world.random.fill(&mut body);
                store(&node.garage, bucket, &key, body.clone()).await.unwrap();
                acknowledged.insert(key, body);
            }
            6..8 => {
                node.garage
                    .delete_object(bucket, &ObjectKey::parse(key.as_str()).unwrap(), Preconditions::default())
                    .await
                    .unwrap();
                acknowledged.remove(&key);
            }
            8 => {
                node.garage.send_queue().await.unwrap();
                world.clock.advance_millis(world.random.below(2) * 11 * 60 * 1000);
                node.garage.resync_due().await.unwrap();
            }
            _ => {
                world.cut_power();
                node = world.start().await;
                node.garage.reap_uploads().await.unwrap();
            }
        }
        assert_eq!(
            listed(&node.garage, bucket).await,
            acknowledged.keys().cloned().collect::<Vec<_>>(),
            "seed {seed}, step {step}"
        );
        for (key, body) in &acknowledged {
            assert_eq!(
                fetch(&node.garage, bucket, key).await.as_deref(),
                Some(body.as_slice()),
                "seed {seed}, step {step}: {key}"
            );
        }
        let counts = node.garage.bucket_counts(bucket).await.unwrap();
        let bytes: usize = acknowledged.values().map(Vec::len).sum();
        assert_eq!((counts.objects, counts.bytes), (acknowledged.len() as i64, bytes as i64), "seed {seed}, step {step}");
        assert_eq!(counts.uploads, 0, "seed {seed}, step {step}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_survives_power_cuts_and_what_was_deleted_stays_deleted() {
    for seed in 0..40 {
        run(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn blocks_that_nothing_refers_to_are_deleted_after_their_delay_and_not_before() {
    let world = World::new(1);
    let node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    let blocks = || world.disk.files().iter().filter(|path| path.starts_with("/data") && path.components().count() == 5).count();
    store(&node.garage, bucket, "a", vec![1; 200]).await.unwrap();
    // Three blocks are alike and stored once; the last is shorter.
    assert_eq!(blocks(), 2);
    store(&node.garage, bucket, "b", vec![1; 200]).await.unwrap();
    assert_eq!(blocks(), 2);
    node.garage.delete_object(bucket, &ObjectKey::parse("a").unwrap(), Preconditions::default()).await.unwrap();
    node.garage.send_queue().await.unwrap();
    world.clock.advance_millis(3_600_000);
    node.garage.resync_due().await.unwrap();
    assert_eq!(blocks(), 2, "the other object still needs them");
    node.garage.delete_object(bucket, &ObjectKey::parse("b").unwrap(), Preconditions::default()).await.unwrap();
    while node.garage.send_queue().await.unwrap() > 0 {}
    world.clock.advance_millis(599_000);
    node.garage.resync_due().await.unwrap();
    assert_eq!(blocks(), 2, "the delay is not over");
    world.clock.advance_millis(2_000);
    node.garage.resync_due().await.unwrap();
    assert_eq!(blocks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_content_of_many_rows_is_released_row_by_row_even_when_the_power_goes_in_between() {
    let world = World::new(6);
    let mut node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    let blocks = || world.disk.files().iter().filter(|path| path.starts_with("/data") && path.components().count() == 5).count();
    // 2100 blocks in three rows; of seven kinds, so that little is stored.
    let body = (0..2100 * 64).map(|index| (index / 64 % 7) as u8).collect();
    store(&node.garage, bucket, "k", body).await.unwrap();
    assert_eq!(blocks(), 7);
    node.garage.delete_object(bucket, &ObjectKey::parse("k").unwrap(), Preconditions::default()).await.unwrap();
    let tables = &node.garage.local().tables;
    let [version] = &tables.queue_peek(None, 10).await.unwrap()[..] else { panic!("the version alone is queued") };
    // What its owner does when it is told, before anything else of the queue is sent.
    let layout = node.garage.cluster().layout().version();
    let told = Write { layout, entries: vec![version.entry.clone()] };
    assert_eq!(tables.write(told).await.unwrap(), Verdict::Won);
    assert_eq!(tables.queue_len().await.unwrap(), 1 + 3, "a row each, not a block each");
    let row = tables.queue_peek(None, 2).await.unwrap().pop().unwrap();
    assert_eq!(tables.write(Write { layout, entries: vec![row.entry] }).await.unwrap(), Verdict::Won);
    assert_eq!(tables.queue_len().await.unwrap(), 1 + 3 + 7);
    world.cut_power();
    node = world.start().await;
    while node.garage.send_queue().await.unwrap() > 0 {}
    world.clock.advance_millis(3_600_000);
    while node.garage.resync_due().await.unwrap() > 0 {}
    assert_eq!(blocks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_body_breaks_off_leaves_nothing_behind() {
    let world = World::new(2);
    let node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    let wrong = garage_model::digest::Expected { length: Some(1), ..Default::default() };
    let body = InMemory::new(vec![3; 500]).expecting(wrong);
    let result = node.garage.put_object(put(bucket, "k"), Box::new(body)).await;
    assert!(matches!(result, Err(ModelError::Mismatch(_))), "{result:?}");
    assert_eq!(fetch(&node.garage, bucket, "k").await, None);
    assert!(node.garage.unfinished_uploads(bucket).await.unwrap().is_empty());
    while node.garage.send_queue().await.unwrap() > 0 {}
    world.clock.advance_millis(3_600_000);
    node.garage.resync_due().await.unwrap();
    let files = world.disk.files();
    assert!(!files.iter().any(|path| path.starts_with("/data") && path.components().count() == 5), "{files:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_begun_after_anothers_acknowledgement_wins_even_when_the_clock_went_back() {
    let world = World::new(3);
    let node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    for size in [10, 200] {
        store(&node.garage, bucket, "k", vec![1; size]).await.unwrap();
        world.clock.set(garage_types::Timestamp::from_millis(1_000));
        store(&node.garage, bucket, "k", vec![2; size]).await.unwrap();
        assert_eq!(fetch(&node.garage, bucket, "k").await.as_deref(), Some(&vec![2; size][..]));
        world.clock.advance_millis(1_700_000_000_000);
    }
    while node.garage.send_queue().await.unwrap() > 0 {}
    world.clock.advance_millis(3_600_000);
    node.garage.resync_due().await.unwrap();
    assert_eq!(fetch(&node.garage, bucket, "k").await.as_deref(), Some(&[2; 200][..]), "its blocks stay");
}

#[tokio::test(start_paused = true)]
async fn a_block_whose_count_is_damaged_is_kept_and_holds_up_no_other() {
    let world = World::new(4);
    let node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    let blocks = || world.disk.files().iter().filter(|path| path.starts_with("/data") && path.components().count() == 5).count();
    let (first, second) = (vec![1; 60], vec![2; 60]);
    let damaged = garage_types::BlockHash::of(&first);
    for (key, body) in [("a", first), ("b", second)] {
        store(&node.garage, bucket, key, body).await.unwrap();
        node.garage.delete_object(bucket, &ObjectKey::parse(key).unwrap(), Preconditions::default()).await.unwrap();
    }
    while node.garage.send_queue().await.unwrap() > 0 {}
    let counts = node.garage.local().block_trees.counts;
    let damage = move |tx: &mut garage_db::Transaction<'_>| tx.insert(counts, damaged.as_bytes(), b"short");
    node.garage.local().tables.db().write::<_, garage_db::DbError>(damage).await.unwrap();
    for _round in 0..3 {
        world.clock.advance_millis(3_600_000);
        node.garage.resync_due().await.unwrap();
    }
    assert_eq!(blocks(), 1, "the sound one went, the other stays");
}
