//! Repairs put right what is wrong and leave alone what only looks so.

use std::collections::BTreeMap;

use garage_db::{DbError, Transaction};
use garage_model::Garage;
use garage_model::block_ref::{BlockRefRow, BlockRefTable, RefCount};
use garage_model::complete::{ListedPart, ListedWhole};
use garage_model::copy::CopyObject;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::get::Object;
use garage_model::multipart::{CreateUpload, PutPart, UploadName};
use garage_model::part::Part;
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::repair::{Repair, SECOND_LOOK_MS};
use garage_model::upload::{SimpleUpload, UploadRow, UploadState, UploadTable};
use garage_model::upload_end::CompleteUpload;
use garage_model::version::{Backlink, Piece, Segment, VersionContent, VersionRow, VersionTable};
use garage_table::Schema;
use garage_table::wire::{Mode, Write};
use garage_types::codec::Unknown;
use garage_types::{BlockHash, BucketId, ObjectKey, Timestamp, UploadId, VersionId};
use garage_worker::registry::State;

use crate::blocks_world::{Cluster, body, store, until};

fn key(key: &str) -> ObjectKey {
    ObjectKey::parse(key).unwrap()
}

async fn one_node() -> (Cluster, BucketId) {
    let cluster = Cluster::of(1, 1).await;
    cluster.lay_out(&[0]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    (cluster, bucket)
}

/// Runs a repair to its end; returns what it says of its progress.
async fn repair(cluster: &Cluster, repair: Repair) -> String {
    let garage = cluster.garage(0);
    let id = garage.start_repair(repair);
    until(async || {
        let info = garage.workers().info(id).unwrap();
        assert_eq!(info.errors, 0, "{:?}", info.last_error);
        matches!(info.state, State::Idle | State::Done)
    })
    .await;
    cluster.clock.advance_millis(SECOND_LOOK_MS);
    until(async || {
        let info = garage.workers().info(id).unwrap();
        assert_eq!(info.errors, 0, "{:?}", info.last_error);
        info.state == State::Done
    })
    .await;
    garage.workers().info(id).unwrap().status.progress.unwrap()
}

async fn object(garage: &Garage, bucket: BucketId, name: &str) -> Object {
    garage.object(bucket, &key(name)).await.unwrap()
}

/// Rows that list blocks for a version that nothing has.
async fn list_for_nobody(garage: &Garage, bucket: BucketId, name: &str, version: VersionId) {
    let backlink = Backlink { bucket, key: key(name) };
    let pieces = vec![Piece::Block { hash: BlockHash::of(b"x"), length: 1 }];
    let row = VersionRow { version, content: VersionContent::Segment(Segment::listing(0, backlink, pieces)) };
    let entries = vec![VersionTable::entry(&row, Mode::Replicate)];
    garage.local().tables.write(Write { layout: 1, entries }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn versions_that_belong_to_nobody_are_released_and_those_of_objects_and_uploads_stay() {
    let (cluster, bucket) = one_node().await;
    let garage = cluster.garage(0);
    store(garage, bucket, "object", body(1, 3).0).await;
    let create = CreateUpload { bucket, key: key("parts"), headers: BTreeMap::new(), checksum: None, owner: None };
    let upload = UploadName { bucket, key: key("parts"), id: garage.create_multipart(create).await.unwrap() };
    let put = PutPart { upload: upload.clone(), number: 1, checksum: None };
    garage.upload_part(put, Box::new(InMemory::new(body(2, 3).0))).await.unwrap();
    // One under the key of an object, one under a key that has nothing.
    for (name, digit) in [("object", 7), ("nothing", 8)] {
        list_for_nobody(garage, bucket, name, VersionId::from_bytes([digit; 32])).await;
    }
    assert_eq!(repair(&cluster, Repair::Versions).await, "4 (2)");
    let (content, _blocks) = body(1, 3);
    assert_eq!(object(garage, bucket, "object").await.meta.size, content.len() as u64);
    assert_eq!(garage.list_parts(&upload, 0, 10).await.unwrap().parts.len(), 1);
    while garage.send_queue().await.unwrap() > 0 {}
    cluster.clock.advance_millis(3_600_000);
    cluster.resync(0).await;
    for block in body(1, 3).1.into_iter().chain(body(2, 3).1) {
        assert_eq!(cluster.holders(block).await, [0]);
    }
    for kind in [Repair::MultipartUploads, Repair::BlockRefs, Repair::BlockCounts] {
        assert!(repair(&cluster, kind).await.ends_with("(0)"), "{kind:?}");
    }
}

/// A completion that broke off listed the parts, and claimed nothing; the next one made an object of them.
#[tokio::test(start_paused = true)]
async fn parts_on_a_list_that_belongs_to_nobody_stay_in_their_object() {
    let (cluster, bucket) = one_node().await;
    let garage = cluster.garage(0);
    let create = CreateUpload { bucket, key: key("parts"), headers: BTreeMap::new(), checksum: None, owner: None };
    let upload = UploadName { bucket, key: key("parts"), id: garage.create_multipart(create).await.unwrap() };
    let put = PutPart { upload: upload.clone(), number: 1, checksum: None };
    let part = garage.upload_part(put, Box::new(InMemory::new(body(2, 3).0))).await.unwrap();
    let listed = garage.list_parts(&upload, 0, 10).await.unwrap().parts;
    let piece = |part: &Part| Piece::Part { number: 1, version: part.version, length: part.stored.size, checksum: None };
    let backlink = Backlink { bucket, key: key("parts") };
    let list = Segment::listing(0, backlink, listed.iter().map(piece).collect());
    let row = VersionRow { version: VersionId::from_bytes([7; 32]), content: VersionContent::Segment(list) };
    let entries = vec![VersionTable::entry(&row, Mode::Replicate)];
    garage.local().tables.write(Write { layout: 1, entries }).await.unwrap();
    let parts = vec![ListedPart { number: 1, etag: part.etag, checksums: Vec::new() }];
    let whole = ListedWhole { parts, size: None, checksum: None, kind: None };
    let complete = CompleteUpload { upload, whole, preconditions: Preconditions::default() };
    garage.complete_multipart(complete).await.unwrap();
    assert!(repair(&cluster, Repair::Versions).await.ends_with("(1)"));
    while garage.send_queue().await.unwrap() > 0 {}
    cluster.clock.advance_millis(3_600_000);
    cluster.resync(0).await;
    for block in body(2, 3).1 {
        assert_eq!(cluster.holders(block).await, [0]);
    }
    assert_eq!(repair(&cluster, Repair::Versions).await, "3 (0)");
}

#[tokio::test(start_paused = true)]
async fn references_of_versions_that_nothing_lists_are_released_and_those_of_open_uploads_stay() {
    let (cluster, bucket) = one_node().await;
    let garage = cluster.garage(0);
    store(garage, bucket, "object", body(1, 3).0).await;
    let refer = async |digit: u8| {
        let row = BlockRefRow::live(body(1, 3).1[0], VersionId::from_bytes([digit; 32]));
        let entries = vec![BlockRefTable::entry(&row, Mode::Replicate)];
        garage.local().tables.write(Write { layout: 1, entries }).await.unwrap();
    };
    let mut upload = UploadRow {
        bucket,
        shard: 0,
        key: key("slow"),
        id: UploadId::from_bytes([9; 32]),
        started: Timestamp::ZERO,
        state: UploadState::Aborted,
    };
    // One of an upload that has listed nothing yet, one of nothing at all.
    upload.state = UploadState::Simple(SimpleUpload {
        version: VersionId::from_bytes([7; 32]),
        coordinator: cluster.machines[0].id(),
        incarnation: 1,
        unknown: Unknown::new(),
    });
    let entries = vec![UploadTable::entry(&upload, Mode::Commit)];
    garage.local().tables.write(Write { layout: 1, entries }).await.unwrap();
    refer(7).await;
    refer(8).await;
    assert_eq!(repair(&cluster, Repair::BlockRefs).await, "5 (1)");
    let info = garage.block_info(body(1, 3).1[0]).await.unwrap();
    let deleted: Vec<bool> = info.references.iter().filter(|row| row.deleted).map(|row| row.deleted).collect();
    assert_eq!((info.references.len(), deleted.len(), info.references_counted), (3, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn counts_that_are_wrong_or_gone_are_made_anew() {
    let (cluster, bucket) = one_node().await;
    let garage = cluster.garage(0);
    let (content, blocks) = body(3, 3);
    store(garage, bucket, "object", content).await;
    let counts = garage.local().block_trees.counts;
    let [gone, wrong, damaged] = [blocks[0], blocks[1], blocks[2]];
    let stray = BlockHash::of(b"nothing refers to it");
    let break_them = move |tx: &mut Transaction<'_>| {
        let count = |count| RefCount { count, released_at: Timestamp::ZERO }.encode();
        tx.remove(counts, gone.as_bytes())?;
        tx.insert(counts, wrong.as_bytes(), &count(7))?;
        tx.insert(counts, damaged.as_bytes(), b"short")?;
        tx.insert(counts, stray.as_bytes(), &count(1))
    };
    garage.local().tables.db().write::<_, DbError>(break_them).await.unwrap();
    assert!(repair(&cluster, Repair::BlockCounts).await.ends_with("(4)"));
    for block in blocks {
        assert_eq!(garage.reference_count(block).await.unwrap().map(|count| count.count), Some(1));
    }
    assert_eq!(garage.reference_count(stray).await.unwrap().map(|count| count.count), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_copy_by_reference_fetches_what_its_owners_lost_and_fails_when_nobody_has_it() {
    let cluster = Cluster::of(3, 3).await;
    cluster.lay_out(&[0, 1, 2]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let (content, blocks) = body(4, 2);
    store(cluster.garage(0), bucket, "a", content).await;
    for block in &blocks {
        until(async || cluster.holders(*block).await == [0, 1, 2]).await;
        for machine in [0, 1] {
            cluster.garage(machine).local().blocks.blocks.remove(*block).await.unwrap();
        }
    }
    let copy = async |to: &str| {
        let garage = cluster.garage(0);
        let put = PutObject {
            bucket,
            key: key(to),
            headers: BTreeMap::new(),
            checksum: ChecksumAlgorithm::Crc64Nvme,
            owner: None,
            preconditions: Preconditions::default(),
        };
        garage.copy_object(CopyObject { source: object(garage, bucket, "a").await, put, checksum: None }).await
    };
    copy("b").await.unwrap();
    for block in &blocks {
        assert!(cluster.holders(*block).await.len() >= 2, "at a write quorum again");
        for machine in 0..3 {
            cluster.garage(machine).local().blocks.blocks.remove(*block).await.unwrap();
        }
    }
    let error = copy("c").await.unwrap_err();
    assert!(error.to_string().contains("could not be had from any node"), "{error}");
}
