//! A node whose database is another than the one that its blocks were written under keeps those it does not know, where nobody else has
//! its rows; and a damaged row stays, until an operator says otherwise.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt;
use garage_db::MemoryEngine;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::list::ListQuery;
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::{Garage, ModelError};
use garage_table::damage::GivenUp;
use garage_table::set_aside::Reason;
use garage_types::disk::Disk;
use garage_types::random::SeededRandom;
use garage_types::{BucketId, ObjectKey, Random};

use crate::world::World;

const DAY_MS: u64 = 24 * 3_600_000;

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

async fn store(garage: &Garage, bucket: BucketId, text: &str, seed: u64) -> Vec<u8> {
    let mut body = vec![0; 300];
    SeededRandom::new(seed).fill(&mut body);
    let put = PutObject {
        bucket,
        key: key(text),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    };
    garage.put_object(put, Box::new(InMemory::new(body.clone()))).await.unwrap();
    body
}

async fn fetch(garage: &Garage, bucket: BucketId, text: &str) -> Bytes {
    let object = garage.object(bucket, &key(text)).await.unwrap();
    let mut stream = garage.read_object(&object, 0..object.meta.size).await.unwrap();
    let mut body = Vec::new();
    while let Some(bytes) = stream.next().await {
        body.extend_from_slice(&bytes.unwrap());
    }
    body.into()
}

fn block_files(world: &World) -> usize {
    let is_block = |path: &std::path::PathBuf| path.starts_with("/data") && path.components().count() == 5;
    world.disk.files().into_iter().filter(is_block).count()
}

/// Whatever a node does by itself, and what an operator orders to have its files compared with its rows, for some days.
async fn look_at_all_files(world: &World, garage: &Garage) {
    for _day in 0..3 {
        garage.queue_uncounted_files().await.unwrap();
        garage.queue_misplaced_blocks().await.unwrap();
        while garage.send_queue().await.unwrap() > 0 {}
        world.clock.advance_millis(DAY_MS);
        while garage.resync_due().await.unwrap() > 0 {}
    }
}

/// What a machine had.
struct Lost {
    engine: MemoryEngine,
    bucket: BucketId,
    body: Vec<u8>,
}

/// Takes what is lost from a machine that is off.
type Lose = fn(&World);

fn lose_database(world: &World) {
    world.engine.become_copy_of(&MemoryEngine::new());
}

/// The new node is another one, to which nothing says that the blocks are not its own.
fn lose_metadata_directory(world: &World) {
    lose_database(world);
    for path in world.disk.files() {
        if path.starts_with("/meta") || path.ends_with("garage-marker") {
            world.disk.remove_file(&path).unwrap();
        }
    }
}

/// A node with an object in some blocks loses something and is started again. Returns it, the number of blocks, and what was lost.
async fn loses(lose: Lose, world: &World) -> (Garage, usize, Lost) {
    let node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    let body = store(&node.garage, bucket, "old", 1).await;
    world.cut_power();
    let lost = Lost { engine: world.engine.copy(), bucket, body };
    let kept = block_files(world);
    assert!(kept > 1);
    lose(world);
    let node = world.start().await;
    assert!(node.garage.local().tables.lacks_rows());
    let other = node.garage.create_bucket("others").await.unwrap();
    store(&node.garage, other, "new", 2).await;
    node.garage.delete_object(other, &key("new"), Preconditions::default()).await.unwrap();
    look_at_all_files(world, &node.garage).await;
    assert_eq!(block_files(world), kept, "only what the new database knows of is given back");
    assert_eq!(node.garage.unreferenced_blocks().await.unwrap(), kept as u64);
    (node.garage, kept, lost)
}

async fn stay_until_given_up(lose: Lose) {
    let world = World::new(1);
    let (_garage, kept, _lost) = loses(lose, &world).await;
    // The next start remembers it.
    world.cut_power();
    let node = world.start().await;
    look_at_all_files(&world, &node.garage).await;
    assert_eq!(block_files(&world), kept);
    assert!(node.garage.local().tables.give_up_lost_rows().await.unwrap());
    look_at_all_files(&world, &node.garage).await;
    assert_eq!(block_files(&world), 0, "the operator has given the lost database up");
    assert_eq!(node.garage.unreferenced_blocks().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_blocks_of_a_lost_database_stay_until_an_operator_gives_them_up() {
    stay_until_given_up(lose_database).await;
}

#[tokio::test(start_paused = true)]
async fn the_blocks_of_a_lost_metadata_directory_stay_until_an_operator_gives_them_up() {
    stay_until_given_up(lose_metadata_directory).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_database_that_turns_up_finds_its_blocks() {
    let world = World::new(1);
    let (_garage, _kept, lost) = loses(lose_database, &world).await;
    world.cut_power();
    world.engine.become_copy_of(&lost.engine);
    let node = world.start().await;
    assert_eq!(fetch(&node.garage, lost.bucket, "old").await, lost.body);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_that_nobody_else_has_is_an_error_until_an_operator_gives_it_up() {
    let world = World::new(1);
    let garage = world.start().await.garage;
    let tables = garage.local().tables.clone();
    let bucket = garage.create_bucket("pictures").await.unwrap();
    store(&garage, bucket, "a", 1).await;
    let whole = store(&garage, bucket, "b", 2).await;
    // Behind the frame of the first of them.
    world.engine.flip_bit("object:rows", 0, 24).unwrap();
    let all = ListQuery { limit: 10, ..ListQuery::default() };
    assert!(garage.object(bucket, &key("a")).await.is_err());
    assert!(garage.list_objects(bucket, &all).await.is_err());
    assert_eq!(tables.damaged_rows(), 1);

    assert_eq!(tables.give_up_damaged_rows().await.unwrap(), GivenUp { rows: 1, kept: 0 });
    assert_eq!(tables.damaged_rows(), 0);
    garage.settle_counters().await.unwrap();
    let listed = garage.list_objects(bucket, &all).await.unwrap();
    assert_eq!(listed.items.len(), 1, "{listed:?}");
    assert_eq!(fetch(&garage, bucket, "b").await, whole);
    assert_eq!(garage.bucket_counts(bucket).await.unwrap().objects, 1);
    assert!(matches!(garage.object(bucket, &key("a")).await, Err(ModelError::NoSuchKey)));
    assert_eq!(tables.check_some_rows(None).await.unwrap().damaged, 0);

    // What is left of it is not taken for a row.
    let aside = tables.set_aside_page(None, 10).await.unwrap();
    assert_eq!((aside.len(), aside[0].reason), (1, Reason::Damaged));
    let name = tables.name_of_row(aside[0].table, &aside[0].key);
    assert!(name.contains("/a ("), "the object's own name: {name}");
    let merged = garage.merge_set_aside(aside.clone()).await.unwrap();
    assert_eq!((merged.merged, merged.unused, merged.damaged), (0, 1, 1));
    assert_eq!(tables.set_aside_page(None, 10).await.unwrap(), aside);
    tables.forget_set_aside(vec![aside[0].position()]).await.unwrap();
    assert_eq!(tables.set_aside_count().await.unwrap(), 0);
    // The key takes the next object like any other.
    let again = store(&garage, bucket, "a", 3).await;
    assert_eq!(fetch(&garage, bucket, "a").await, again);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_that_keeps_blocks_is_not_given_up() {
    let world = World::new(1);
    let garage = world.start().await.garage;
    let tables = garage.local().tables.clone();
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let body = store(&garage, bucket, "a", 1).await;
    world.engine.flip_bit("block_ref:rows", 0, 24).unwrap();
    let (mut next, mut damaged) = (None, 0);
    loop {
        let checked = tables.check_some_rows(next).await.unwrap();
        damaged += checked.damaged;
        next = checked.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(damaged, 1);
    assert_eq!(tables.give_up_damaged_rows().await.unwrap(), GivenUp { rows: 0, kept: 1 });
    look_at_all_files(&world, &garage).await;
    assert_eq!(fetch(&garage, bucket, "a").await, body);
}

/// Whether a list for people shows the other row, and names the damaged one; lists that are decided by fail.
async fn the_others_are_listed(tree: &str) {
    let world = World::new(1);
    let garage = world.start().await.garage;
    for name in ["films", "pictures"] {
        garage.create_bucket(name).await.unwrap();
    }
    world.engine.flip_bit(tree, 0, 24).unwrap();
    let strict = (garage.buckets().await.is_err(), garage.aliases().await.is_err());
    assert!(strict.0 != strict.1, "one of them has the damaged row: {strict:?}");
    let (buckets, aliases) = (garage.readable_buckets().await.unwrap(), garage.readable_aliases().await.unwrap());
    let damaged = garage.damaged_list_rows(10);
    assert_eq!((buckets.len() + aliases.len(), damaged.len()), (3, 1), "{damaged:?}");
    assert_eq!(format!("{}:rows", damaged[0].table), tree);
    let missing = ["films", "pictures"].into_iter().find(|name| damaged[0].row.contains(name));
    if let Some(name) = missing {
        assert!(garage.resolve_bucket(None, name).await.is_err(), "nobody knows what the name means");
        assert!(garage.create_bucket(name).await.is_err(), "it may be taken");
        assert!(aliases.iter().all(|alias| alias.name != name));
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_name_hides_no_other_from_lists() {
    the_others_are_listed("bucket_alias:rows").await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_bucket_hides_no_other_from_lists() {
    the_others_are_listed("bucket:rows").await;
}
