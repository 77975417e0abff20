//! A node whose disk is full, or lets nothing be written: what grows is refused by its cause, everything else goes on.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::{Garage, ModelError};
use garage_s3::error::{Code, S3Error};
use garage_types::memory_disk::FailingCall;
use garage_types::{BucketId, ObjectKey};

use crate::world::World;

const LARGE: usize = 300;
const SMALL: usize = 3;

fn key(name: &str) -> ObjectKey {
    ObjectKey::parse(name).unwrap()
}

async fn store(garage: &Garage, bucket: BucketId, name: &str, length: usize) -> Result<(), ModelError> {
    let put = PutObject {
        bucket,
        key: key(name),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    };
    garage.put_object(put, Box::new(InMemory::new(vec![7; length]))).await.map(drop)
}

async fn length(garage: &Garage, bucket: BucketId, name: &str) -> usize {
    let object = garage.object(bucket, &key(name)).await.unwrap();
    let mut stream = garage.read_object(&object, 0..object.meta.size).await.unwrap();
    let mut length = 0;
    while let Some(bytes) = stream.next().await {
        length += bytes.unwrap().len();
    }
    length
}

#[tokio::test(start_paused = true)]
async fn full_data_disk_refuses_blocks_and_serves_the_rest() {
    let world = World::new(1);
    let node = world.start().await;
    let garage = &node.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    store(garage, bucket, "before", LARGE).await.unwrap();
    world.disk.set_capacity(Some(0));
    let error = store(garage, bucket, "large", LARGE + 1).await.unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(garage.bucket_counts(bucket).await.unwrap().uploads, 0, "the refused one is given up");
    store(garage, bucket, "small", SMALL).await.unwrap();
    assert_eq!(length(garage, bucket, "before").await, LARGE);
    garage.delete_object(bucket, &key("before"), Preconditions::default()).await.unwrap();
    world.disk.set_capacity(None);
    store(garage, bucket, "large", LARGE + 1).await.unwrap();
    assert_eq!(length(garage, bucket, "large").await, LARGE + 1);
}

#[tokio::test(start_paused = true)]
async fn a_data_directory_that_lets_nothing_be_written_is_named_as_the_cause() {
    const EACCES: i32 = 13;
    const EROFS: i32 = 30;
    let world = World::new(1);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    store(&garage, bucket, "before", LARGE).await.unwrap();
    for errno in [EACCES, EROFS] {
        world.disk.failing(Some((FailingCall::Write, errno)));
        let reply = S3Error::from(store(&garage, bucket, "large", LARGE + 1).await.unwrap_err());
        assert_eq!(reply.code, Code::ServiceUnavailable);
        assert_eq!(reply.message, "The storage nodes cannot write this object now.");
        assert_eq!(length(&garage, bucket, "before").await, LARGE);
    }
    world.disk.failing(None);
    store(&garage, bucket, "large", LARGE + 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn metadata_below_the_reserve_take_deletions_only() {
    let world = World::new(2);
    let node = world.start().await;
    let garage = &node.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    for name in ["one", "two"] {
        store(garage, bucket, name, LARGE).await.unwrap();
    }
    let room = garage.local().tables.db().room();
    room.set_metadata_scarce(true);
    for length in [SMALL, LARGE] {
        let error = store(garage, bucket, "one", length).await.unwrap_err();
        assert!(error.is_full(), "{error}");
    }
    assert_eq!(length(garage, bucket, "one").await, LARGE, "what was there stays");
    garage.delete_object(bucket, &key("two"), Preconditions::default()).await.unwrap();
    assert!(matches!(garage.object(bucket, &key("two")).await, Err(ModelError::NoSuchKey)));
    room.set_metadata_scarce(false);
    store(garage, bucket, "two", SMALL).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn commit_that_finds_the_disk_full_is_told_and_leaves_nothing() {
    let world = World::new(3);
    let node = world.start().await;
    let garage = &node.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    world.engine.fail_next_commits(1);
    let error = store(garage, bucket, "small", SMALL).await.unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(matches!(garage.object(bucket, &key("small")).await, Err(ModelError::NoSuchKey)));
    store(garage, bucket, "small", SMALL).await.unwrap();
}
