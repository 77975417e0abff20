//! Uploads in parts and copies: what they make is whole, and what they leave is released.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_channel::oneshot;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use garage_model::bucket::Quotas;
use garage_model::complete::{ListedPart, ListedWhole};
use garage_model::copy::CopyObject;
use garage_model::digest::{ChecksumAlgorithm, Expected};
use garage_model::error::SourceError;
use garage_model::multipart::{CreateUpload, PutPart, UploadName};
use garage_model::object::{Content, ObjectMeta, ObjectRow, ObjectState, ObjectTable};
use garage_model::part::Part;
use garage_model::pipeline::{InMemory, Source};
use garage_model::put::{Preconditions, PutObject, Written};
use garage_model::upload_end::CompleteUpload;
use garage_model::version::{Backlink, Piece, Segment, VersionContent, VersionRow, VersionTable};
use garage_model::{Garage, ModelError};
use garage_table::Schema;
use garage_table::wire::{Mode, Write};
use garage_types::codec::Unknown;
use garage_types::{BucketId, Disk, ObjectKey, VersionId};

use crate::world::World;

fn key(text: &str) -> ObjectKey {
    ObjectKey::parse(text).unwrap()
}

async fn begin(garage: &Garage, bucket: BucketId, text: &str) -> UploadName {
    let create = CreateUpload { bucket, key: key(text), headers: BTreeMap::new(), checksum: None, owner: None };
    UploadName { bucket, key: key(text), id: garage.create_multipart(create).await.unwrap() }
}

async fn part(garage: &Garage, upload: &UploadName, number: u32, body: &[u8]) -> Result<ListedPart, ModelError> {
    let put = PutPart { upload: upload.clone(), number, checksum: None };
    let written = garage.upload_part(put, Box::new(InMemory::new(body.to_vec()))).await?;
    Ok(ListedPart { number, etag: written.etag, checksums: Vec::new() })
}

async fn complete(garage: &Garage, upload: &UploadName, parts: &[ListedPart]) -> Result<Written, ModelError> {
    complete_if(garage, upload, parts, Preconditions::default()).await
}

async fn complete_if(
    garage: &Garage,
    upload: &UploadName,
    parts: &[ListedPart],
    preconditions: Preconditions,
) -> Result<Written, ModelError> {
    let whole = ListedWhole { parts: parts.to_vec(), ..ListedWhole::default() };
    garage.complete_multipart(CompleteUpload { upload: upload.clone(), whole, preconditions }).await
}

fn put(bucket: BucketId, text: &str) -> PutObject {
    PutObject {
        bucket,
        key: key(text),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    }
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

fn blocks(world: &World) -> usize {
    world.disk.files().iter().filter(|path| path.starts_with("/data") && path.components().count() == 5).count()
}

/// Carries out all that is queued, and deletes the blocks that nothing needs.
async fn settle(world: &World, garage: &Garage) {
    while garage.send_queue().await.unwrap() > 0 {}
    world.clock.advance_millis(3_600_000);
    while garage.resync_due().await.unwrap() > 0 {}
}

fn body(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|index| (index / 7) as u8 ^ seed).collect()
}

#[tokio::test(start_paused = true)]
async fn a_completed_upload_keeps_what_it_took_and_releases_the_rest() {
    let world = World::new(1);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    part(&garage, &upload, 3, &body(1, 300)).await.unwrap();
    part(&garage, &upload, 9, &body(2, 300)).await.unwrap();
    let listed = part(&garage, &upload, 3, &body(3, 300)).await.unwrap();
    assert_eq!(garage.list_parts(&upload, 0, 10).await.unwrap().parts.len(), 2);
    assert_eq!(garage.list_parts(&upload, 3, 10).await.unwrap().parts.len(), 1);
    assert!(garage.list_parts(&upload, 0, 1).await.unwrap().truncated);
    let written = complete(&garage, &upload, std::slice::from_ref(&listed)).await.unwrap();
    assert!(written.etag.ends_with("-1"));
    assert_eq!(complete(&garage, &upload, std::slice::from_ref(&listed)).await.unwrap(), written, "repeated");
    settle(&world, &garage).await;
    assert_eq!(fetch(&garage, bucket, "k").await, body(3, 300));
    assert_eq!(blocks(&world), 5, "those of the part that was taken");
    let object = garage.object(bucket, &key("k")).await.unwrap();
    assert_eq!(garage.object_parts(&object).await.unwrap()[0].number, 3);
    assert!(matches!(garage.abort_multipart(&upload).await, Err(ModelError::NoSuchUpload)));
    assert!(matches!(part(&garage, &upload, 4, b"late").await, Err(ModelError::NoSuchUpload)));
    garage.delete_object(bucket, &key("k"), Preconditions::default()).await.unwrap();
    settle(&world, &garage).await;
    assert_eq!(blocks(&world), 0);
    let counts = garage.bucket_counts(bucket).await.unwrap();
    assert_eq!((counts.uploads, counts.multipart_uploads, counts.multipart_bytes, counts.bytes), (0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_aborted_upload_leaves_nothing() {
    let world = World::new(2);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    let listed = part(&garage, &upload, 1, &body(1, 300)).await.unwrap();
    assert_eq!(garage.bucket_counts(bucket).await.unwrap().multipart_bytes, 300);
    garage.abort_multipart(&upload).await.unwrap();
    assert!(matches!(garage.abort_multipart(&upload).await, Err(ModelError::NoSuchUpload)));
    assert!(matches!(complete(&garage, &upload, &[listed]).await, Err(ModelError::NoSuchUpload)));
    settle(&world, &garage).await;
    assert_eq!(blocks(&world), 0);
    assert_eq!(garage.bucket_counts(bucket).await.unwrap().multipart_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_is_refused_leaves_the_parts_to_the_next() {
    let world = World::new(3);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    garage.put_object(put(bucket, "k"), Box::new(InMemory::new(b"old".to_vec()))).await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    let listed = [part(&garage, &upload, 1, &body(1, 300)).await.unwrap()];
    let absent = Preconditions { if_match: None, if_none_match: Some(vec!["*".to_owned()]) };
    assert!(matches!(complete_if(&garage, &upload, &listed, absent).await, Err(ModelError::PreconditionFailed)));
    settle(&world, &garage).await;
    complete(&garage, &upload, &listed).await.unwrap();
    settle(&world, &garage).await;
    assert_eq!(fetch(&garage, bucket, "k").await, body(1, 300));
}

#[tokio::test(start_paused = true)]
async fn uploads_survive_power_cuts() {
    let world = World::new(4);
    let node = world.start().await;
    let bucket = node.garage.create_bucket("pictures").await.unwrap();
    let upload = begin(&node.garage, bucket, "k").await;
    let listed = part(&node.garage, &upload, 1, &body(1, 300)).await.unwrap();
    world.cut_power();
    let node = world.start().await;
    node.garage.reap_uploads().await.unwrap();
    complete(&node.garage, &upload, &[listed]).await.unwrap();
    world.cut_power();
    let garage = world.start().await.garage;
    garage.reap_uploads().await.unwrap();
    settle(&world, &garage).await;
    assert_eq!(fetch(&garage, bucket, "k").await, body(1, 300));
}

#[tokio::test(start_paused = true)]
async fn of_two_completions_at_once_at_most_one_goes_on_and_the_object_stays_whole() {
    for seed in 0..20 {
        let world = World::new(seed);
        let garage = world.start().await.garage;
        let bucket = garage.create_bucket("pictures").await.unwrap();
        let upload = begin(&garage, bucket, "k").await;
        let listed = [part(&garage, &upload, 1, &body(1, 300)).await.unwrap()];
        let (a, b, c) = futures_util::join!(
            complete(&garage, &upload, &listed),
            complete(&garage, &upload, &listed),
            garage.abort_multipart(&upload)
        );
        settle(&world, &garage).await;
        if a.is_ok() || b.is_ok() {
            assert!(c.is_err(), "seed {seed}");
            assert_eq!(fetch(&garage, bucket, "k").await, body(1, 300), "seed {seed}");
        } else {
            assert!(garage.object(bucket, &key("k")).await.is_err(), "seed {seed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_completion_retried_while_the_first_goes_on_waits_for_it_and_answers_the_same() {
    for seed in 0..40 {
        let world = World::new(seed);
        let garage = world.start().await.garage;
        let bucket = garage.create_bucket("pictures").await.unwrap();
        let upload = begin(&garage, bucket, "k").await;
        let listed = [part(&garage, &upload, 1, &body(1, 300)).await.unwrap()];
        let retry = async {
            // Later by a few polls of the first, another number for each seed.
            for _poll in 0..seed {
                tokio::task::yield_now().await;
            }
            complete(&garage, &upload, &listed).await
        };
        let (first, retried) = futures_util::join!(complete(&garage, &upload, &listed), retry);
        let first = first.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(retried.unwrap_or_else(|error| panic!("seed {seed}: {error}")), first, "seed {seed}");
        settle(&world, &garage).await;
        assert_eq!(fetch(&garage, bucket, "k").await, body(1, 300), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_a_whole_object_is_taken_by_reference_and_outlives_it() {
    let world = World::new(9);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let source = garage.put_object(put(bucket, "source"), Box::new(InMemory::new(body(1, 300)))).await.unwrap();
    let object = garage.object(bucket, &key("source")).await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    // Begun twice: the second replaces the first, whose references are released.
    let mut listed = Vec::new();
    for _attempt in 0..2 {
        let copied = PutPart { upload: upload.clone(), number: 1, checksum: None };
        let written = garage.upload_part_copy(copied, &object, 0..300).await.unwrap();
        assert_eq!((&written.etag, &written.checksum), (&source.etag, source.checksum.as_ref().unwrap()));
        listed = vec![ListedPart { number: 1, etag: written.etag, checksums: Vec::new() }];
    }
    garage.delete_object(bucket, &key("source"), Preconditions::default()).await.unwrap();
    settle(&world, &garage).await;
    complete(&garage, &upload, &listed).await.unwrap();
    settle(&world, &garage).await;
    assert_eq!(fetch(&garage, bucket, "k").await, body(1, 300));
    garage.delete_object(bucket, &key("k"), Preconditions::default()).await.unwrap();
    settle(&world, &garage).await;
    assert_eq!(blocks(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_bucket_takes_its_open_uploads_with_it() {
    let world = World::new(7);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    let listed = part(&garage, &upload, 1, &body(1, 300)).await.unwrap();
    garage.put_object(put(bucket, "object"), Box::new(InMemory::new(b"x".to_vec()))).await.unwrap();
    assert!(matches!(garage.delete_bucket(bucket).await, Err(ModelError::BucketNotEmpty)));
    part(&garage, &upload, 2, b"still open").await.unwrap();
    garage.delete_object(bucket, &key("object"), Preconditions::default()).await.unwrap();
    garage.delete_bucket(bucket).await.unwrap();
    assert!(complete(&garage, &upload, &[listed]).await.is_err());
    settle(&world, &garage).await;
    assert_eq!(blocks(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn uploads_are_given_up_by_age() {
    let world = World::new(8);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let old = begin(&garage, bucket, "old").await;
    part(&garage, &old, 1, &body(1, 300)).await.unwrap();
    let until = garage.clock().now();
    world.clock.advance_millis(1);
    let young = begin(&garage, bucket, "young").await;
    assert_eq!(garage.abort_uploads_begun_until(bucket, until).await.unwrap(), 1);
    assert!(matches!(garage.list_parts(&old, 0, 1).await, Err(ModelError::NoSuchUpload)));
    part(&garage, &young, 1, b"goes on").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_empty_part_alone_makes_an_empty_object() {
    let world = World::new(5);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    let listed = part(&garage, &upload, 1, b"").await.unwrap();
    assert_eq!(complete(&garage, &upload, &[listed]).await.unwrap().size, 0);
    assert_eq!(fetch(&garage, bucket, "k").await, Bytes::new());
}

#[tokio::test(start_paused = true)]
async fn a_copy_outlives_its_source_and_shares_its_blocks() {
    let world = World::new(6);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    garage.put_object(put(bucket, "blocks"), Box::new(InMemory::new(body(1, 300)))).await.unwrap();
    garage.put_object(put(bucket, "inline"), Box::new(InMemory::new(b"small".to_vec()))).await.unwrap();
    let upload = begin(&garage, bucket, "parts").await;
    let listed = part(&garage, &upload, 1, &body(2, 300)).await.unwrap();
    complete(&garage, &upload, &[listed]).await.unwrap();
    let before = blocks(&world);
    for source in ["blocks", "inline", "parts"] {
        let object = garage.object(bucket, &key(source)).await.unwrap();
        let copy = CopyObject { source: object.clone(), put: put(bucket, &format!("copy of {source}")), checksum: None };
        assert_eq!(garage.copy_object(copy).await.unwrap().etag, object.meta.etag);
        garage.delete_object(bucket, &key(source), Preconditions::default()).await.unwrap();
    }
    settle(&world, &garage).await;
    assert_eq!(blocks(&world), before);
    assert_eq!(fetch(&garage, bucket, "copy of blocks").await, body(1, 300));
    assert_eq!(fetch(&garage, bucket, "copy of inline").await, &b"small"[..]);
    assert_eq!(fetch(&garage, bucket, "copy of parts").await, body(2, 300));
    let object = garage.object(bucket, &key("copy of parts")).await.unwrap();
    let onto_itself = CopyObject { source: object.clone(), put: put(bucket, "copy of parts"), checksum: None };
    garage.copy_object(onto_itself).await.unwrap();
    let upload = begin(&garage, bucket, "part copy").await;
    let copied = PutPart { upload: upload.clone(), number: 1, checksum: None };
    let object = garage.object(bucket, &key("copy of parts")).await.unwrap();
    let written = garage.upload_part_copy(copied, &object, 10..290).await.unwrap();
    complete(&garage, &upload, &[ListedPart { number: 1, etag: written.etag, checksums: Vec::new() }]).await.unwrap();
    settle(&world, &garage).await;
    assert_eq!(fetch(&garage, bucket, "copy of parts").await, body(2, 300));
    assert_eq!(fetch(&garage, bucket, "part copy").await, body(2, 300)[10..290]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_an_upload_in_parts_that_is_overwritten_gets_all_of_it_or_an_error() {
    let world = World::new(10);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    // Through the front door its parts would be of 5 MiB at least.
    let upload = begin(&garage, bucket, "k").await;
    for number in 1..=20 {
        part(&garage, &upload, number, &body(number as u8, 300)).await.unwrap();
    }
    let parts = garage.list_parts(&upload, 0, 100).await.unwrap().parts;
    let piece = |part: &Part| Piece::Part { number: part.number, version: part.version, length: 300, checksum: None };
    let segment = Segment::listing(0, Backlink { bucket, key: key("k") }, parts.iter().map(piece).collect());
    let version = VersionId::from_bytes([7; 32]);
    let listed = VersionRow { version, content: VersionContent::Segment(segment) };
    let meta = ObjectMeta {
        size: 20 * 300,
        etag: "e-20".to_owned(),
        content: Content::Parts { count: 20 },
        headers: BTreeMap::new(),
        checksum: None,
        owner: None,
        upload: Some(upload.id),
        unknown: Unknown::new(),
    };
    let state = ObjectState::Live(Box::new(meta));
    let timestamp = garage.clock().now();
    let row = ObjectRow { bucket, shard: 0, key: key("k"), timestamp, version, is_null: true, state };
    for entry in [VersionTable::entry(&listed, Mode::Replicate), ObjectTable::entry(&row, Mode::Commit)] {
        garage.local().tables.write(Write { layout: 1, entries: vec![entry] }).await.unwrap();
    }
    let object = garage.object(bucket, &key("k")).await.unwrap();
    let (mut prompt, mut late) = (
        garage.read_object(&object, 0..object.meta.size).await.unwrap(),
        garage.read_object(&object, 0..object.meta.size).await.unwrap(),
    );
    let mut bytes = prompt.next().await.unwrap().unwrap().to_vec();
    let mut length_late = late.next().await.unwrap().unwrap().len() as u64;
    // The lists are looked up beside, although neither reader has taken more than a block.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    garage.put_object(put(bucket, "k"), Box::new(InMemory::new(b"new".to_vec()))).await.unwrap();
    while garage.send_queue().await.unwrap() > 0 {}
    world.clock.advance_millis(599_000);
    while garage.resync_due().await.unwrap() > 0 {}
    while let Some(next) = prompt.next().await {
        bytes.extend_from_slice(&next.unwrap());
    }
    let whole: Vec<u8> = (1..=20).flat_map(|number| body(number, 300)).collect();
    assert!(bytes == whole, "{} of {} bytes", bytes.len(), whole.len());
    // Past the delay its blocks are gone, and the other reader is told.
    settle(&world, &garage).await;
    let mut error = None;
    while let Some(next) = late.next().await {
        match next {
            Ok(bytes) => length_late += bytes.len() as u64,
            Err(failed) => {
                error = Some(failed);
                break;
            }
        }
    }
    assert!(error.is_some() && length_late < object.meta.size, "{length_late} bytes, {error:?}");
}

/// A status once sent cannot be taken back.
#[tokio::test(start_paused = true)]
async fn a_read_whose_first_bytes_cannot_be_had_fails_before_anything_is_sent() {
    let world = World::new(9);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    garage.put_object(put(bucket, "whole"), Box::new(InMemory::new(body(1, 300)))).await.unwrap();
    garage.put_object(put(bucket, "small"), Box::new(InMemory::new(body(2, 50)))).await.unwrap();
    let upload = begin(&garage, bucket, "parts").await;
    let listed = part(&garage, &upload, 1, &body(3, 300)).await.unwrap();
    complete(&garage, &upload, &[listed]).await.unwrap();
    for path in world.disk.files().iter().filter(|path| path.starts_with("/data") && path.components().count() == 5) {
        world.disk.remove_file(path).unwrap();
    }
    for name in ["whole", "small", "parts"] {
        let object = garage.object(bucket, &key(name)).await.unwrap();
        let size = object.meta.size;
        assert!(!matches!(object.meta.content, Content::Inline(_)), "{name} has no blocks to lose");
        for range in [0..size, 0..1, size - 1..size, size / 2..size] {
            let read = garage.read_object(&object, range.clone()).await.map(|_stream| ());
            assert!(matches!(read, Err(ModelError::BlockUnavailable { .. })), "{name} {range:?}: {read:?}");
        }
    }
}

/// A body whose second half comes only when it is let go.
struct Halting {
    halves: Vec<Vec<u8>>,
    go_on: Option<oneshot::Receiver<()>>,
}

impl Source for Halting {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, SourceError>>> {
        async move {
            if self.halves.len() == 1
                && let Some(go_on) = self.go_on.take()
            {
                go_on.await.expect("the test lets it go on");
            }
            self.halves.pop().map(|half| Ok(half.into()))
        }
        .boxed()
    }

    fn expected(&mut self) -> Result<Expected, SourceError> {
        Ok(Expected::default())
    }
}

/// Clocks stand still here, so that it is not by them that parts are told apart.
#[tokio::test(start_paused = true)]
async fn of_two_overlapping_uploads_of_a_part_the_one_answered_last_is_the_part() {
    let world = World::new(10);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    // By chance the right one of two that ended at the same time would be chosen every other time.
    for number in 1..=12 {
        let (go, go_on) = oneshot::channel();
        let halting = Halting { halves: vec![body(1, 100), body(2, 100)], go_on: Some(go_on) };
        let put = PutPart { upload: upload.clone(), number, checksum: None };
        let quick = async {
            let quick = part(&garage, &upload, number, &body(3, 100)).await.unwrap();
            go.send(()).unwrap();
            quick
        };
        let (slow, quick) = futures_util::join!(garage.upload_part(put, Box::new(halting)), quick);
        let slow = slow.unwrap();
        assert_ne!(slow.etag, quick.etag);
        let newest = garage.list_parts(&upload, number - 1, 1).await.unwrap().parts;
        assert_eq!(newest[0].stored.etag, slow.etag, "part {number}");
        let last = [ListedPart { number, etag: slow.etag, checksums: Vec::new() }];
        if number == 12 {
            assert!(complete(&garage, &upload, &[quick]).await.is_err(), "the part that was replaced");
            complete(&garage, &upload, &last).await.unwrap();
        }
    }
    assert_eq!(fetch(&garage, bucket, "k").await, [body(2, 100), body(1, 100)].concat());
    settle(&world, &garage).await;
    garage.delete_object(bucket, &key("k"), Preconditions::default()).await.unwrap();
    settle(&world, &garage).await;
    assert_eq!(blocks(&world), 0);
}

/// A body of which nobody may read a byte.
struct Unread(u64);

impl Source for Unread {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<Bytes, SourceError>>> {
        panic!("a body was read that could only be refused")
    }

    fn announced(&self) -> Option<u64> {
        Some(self.0)
    }

    fn expected(&mut self) -> Result<Expected, SourceError> {
        Ok(Expected::default())
    }
}

#[tokio::test(start_paused = true)]
async fn open_parts_count_towards_the_limit_and_what_exceeds_it_is_refused_unread() {
    let world = World::new(11);
    let garage = world.start().await.garage;
    let bucket = garage.create_bucket("pictures").await.unwrap();
    garage.set_quotas(bucket, Quotas { size_bytes_max: Some(500), objects_max: None }).await.unwrap();
    let upload = begin(&garage, bucket, "k").await;
    let listed = part(&garage, &upload, 1, &body(1, 300)).await.unwrap();
    let another = PutPart { upload: upload.clone(), number: 2, checksum: None };
    let refused = garage.upload_part(another.clone(), Box::new(Unread(201))).await;
    assert!(matches!(refused, Err(ModelError::QuotaBytes)), "{refused:?}");
    let refused = garage.put_object(put(bucket, "object"), Box::new(Unread(201))).await;
    assert!(matches!(refused, Err(ModelError::QuotaBytes)), "{refused:?}");
    // Without a length it is judged once it is known.
    let refused = part(&garage, &upload, 2, &body(2, 201)).await;
    assert!(matches!(refused, Err(ModelError::QuotaBytes)), "{refused:?}");
    let refused = garage.put_object(put(bucket, "object"), Box::new(InMemory::new(body(2, 201)))).await;
    assert!(matches!(refused, Err(ModelError::QuotaBytes)), "{refused:?}");
    garage.put_object(put(bucket, "object"), Box::new(InMemory::new(body(2, 200)))).await.unwrap();

    // A completion only moves what was counted before, and its bytes are not counted twice for a moment.
    complete(&garage, &upload, &[listed]).await.unwrap();
    garage.put_object(put(bucket, "object"), Box::new(InMemory::new(body(3, 199)))).await.unwrap();
    let next = begin(&garage, bucket, "next").await;
    part(&garage, &next, 1, b"x").await.unwrap();
    assert!(matches!(part(&garage, &next, 2, b"x").await, Err(ModelError::QuotaBytes)));
    garage.abort_multipart(&next).await.unwrap();
    garage.put_object(put(bucket, "object"), Box::new(InMemory::new(body(4, 200)))).await.unwrap();
    settle(&world, &garage).await;
    let counts = garage.bucket_counts(bucket).await.unwrap();
    assert_eq!((counts.objects, counts.bytes, counts.multipart_bytes), (2, 500, 0));
}
