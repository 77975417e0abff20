//! Writes whose end is in doubt, told step by step: what some owner may have stored is kept, what nobody can finish any more is released,
//! whoever served the write and whoever of them is gone.

use std::collections::BTreeMap;

use garage_model::ModelError;
use garage_model::block_ref::{BlockRefRow, BlockRefTable};
use garage_model::digest::ChecksumAlgorithm;
use garage_model::fresh_refs::{Origin, PartName};
use garage_model::object::{Content, ObjectMeta, ObjectRow, ObjectState, ObjectTable};
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::upload::{Claim, Completion, MultipartUpload, Purpose, SimpleUpload, UploadRow, UploadState, UploadTable};
use garage_model::version::{Backlink, Piece, Segment, VersionContent, VersionRow, VersionTable};
use garage_rpc::quorum::ConsistencyMode;
use garage_table::Schema;
use garage_table::wire::{EPOCH_OF_OWNER, Entry, Mode, Projection, Verdict, Write};
use garage_types::codec::{self, Unknown};
use garage_types::planted::{Bug, plant};
use garage_types::{BlockHash, BucketId, NodeId, ObjectKey, Timestamp, UploadId, VersionId};

use crate::blocks_world::Cluster;

const BLOCK: BlockHash = BlockHash::from_bytes([5; 32]);
const VERSION: VersionId = VersionId::from_bytes([6; 32]);

/// Three machines with three copies, whose background work is done by hand.
async fn three() -> (Cluster, BucketId) {
    let cluster = Cluster::of(3, 3).await;
    cluster.lay_out(&[0, 1, 2]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    (cluster, bucket)
}

fn key() -> ObjectKey {
    ObjectKey::parse("k").unwrap()
}

fn upload(bucket: BucketId, coordinator: NodeId) -> UploadRow {
    let simple = SimpleUpload { version: VERSION, coordinator, incarnation: 1, unknown: Unknown::new() };
    let id = UploadId::from_bytes(*VERSION.as_bytes());
    UploadRow { bucket, shard: 0, key: key(), id, started: Timestamp::ZERO, state: UploadState::Simple(simple) }
}

fn object(bucket: BucketId, time: Timestamp) -> ObjectRow {
    let meta = ObjectMeta {
        size: 5,
        etag: "e".to_owned(),
        content: Content::Blocks { first: BLOCK, first_length: 5 },
        headers: BTreeMap::new(),
        checksum: None,
        owner: None,
        upload: None,
        unknown: Unknown::new(),
    };
    let state = ObjectState::Live(Box::new(meta));
    ObjectRow { bucket, shard: 0, key: key(), timestamp: time, version: VERSION, is_null: true, state }
}

/// What a write sends to each owner when all it has stored is durable.
fn commit(cluster: &Cluster, upload: &UploadRow) -> Vec<Entry> {
    let object = object(upload.bucket, cluster.garage(0).clock().now());
    let done = upload.with_state(UploadState::Done);
    vec![ObjectTable::entry(&object, Mode::Commit), UploadTable::entry(&done, Mode::Commit)]
}

async fn send(cluster: &Cluster, machine: usize, entries: Vec<Entry>) -> Verdict {
    let layout = cluster.garage(machine).cluster().layout().version();
    cluster.garage(machine).local().tables.write(Write { layout, entries }).await.unwrap()
}

/// The rows of a write up to its commit, at every owner.
async fn prepare(cluster: &Cluster, upload: &UploadRow) {
    let backlink = Backlink { bucket: upload.bucket, key: key() };
    let segment = Segment::listing(0, backlink, vec![Piece::Block { hash: BLOCK, length: 5 }]);
    let listed = VersionRow { version: VERSION, content: VersionContent::Segment(segment) };
    for machine in 0..3 {
        for entry in [
            UploadTable::entry(upload, Mode::Commit),
            VersionTable::entry(&listed, Mode::Replicate),
            BlockRefTable::entry(&BlockRefRow::live(BLOCK, VERSION), Mode::Replicate),
        ] {
            assert_eq!(send(cluster, machine, vec![entry]).await, Verdict::Won);
        }
    }
}

async fn references(cluster: &Cluster, machine: usize) -> usize {
    let info = cluster.garage(machine).block_info(BLOCK).await.unwrap();
    info.references.iter().filter(|reference| !reference.deleted).count()
}

async fn send_queues(cluster: &Cluster) {
    for _round in 0..4 {
        for machine in 0..3 {
            while cluster.garage(machine).send_queue().await.unwrap() > 0 {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_write_that_no_owner_has_is_released_and_cannot_be_finished_any_more() {
    let (cluster, bucket) = three().await;
    // Its coordinator runs, and does not know of it: it was an earlier run, or a request that has failed.
    let upload = upload(bucket, cluster.machines[0].id());
    prepare(&cluster, &upload).await;
    assert_eq!(cluster.garage(1).reap_uploads().await.unwrap(), 1);
    for machine in 0..3 {
        let verdict = send(&cluster, machine, commit(&cluster, &upload)).await;
        assert!(matches!(verdict, Verdict::Refused(_)), "machine {machine}: {verdict:?}");
    }
    send_queues(&cluster).await;
    for machine in 0..3 {
        assert_eq!(references(&cluster, machine).await, 0, "machine {machine}");
    }
    assert_eq!(cluster.garage(1).reap_uploads().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_one_owner_has_stored_is_never_released() {
    let (cluster, bucket) = three().await;
    let upload = upload(bucket, cluster.machines[0].id());
    prepare(&cluster, &upload).await;
    assert_eq!(send(&cluster, 2, commit(&cluster, &upload)).await, Verdict::Won);
    for machine in [0, 1, 2, 0] {
        cluster.garage(machine).reap_uploads().await.unwrap();
        send_queues(&cluster).await;
    }
    assert_eq!(references(&cluster, 0).await, 1);
    let read = cluster.garage(2).object(bucket, &key()).await.unwrap();
    assert_eq!(read.version, VERSION);
    // The read has brought it to a write quorum: it stays, whoever of them is asked.
    assert_eq!(cluster.garage(0).object(bucket, &key()).await.unwrap().version, VERSION);
}

#[tokio::test(start_paused = true)]
async fn a_write_in_doubt_waits_for_the_owner_that_is_away() {
    let (mut cluster, bucket) = three().await;
    let upload = upload(bucket, cluster.machines[0].id());
    prepare(&cluster, &upload).await;
    assert_eq!(send(&cluster, 2, commit(&cluster, &upload)).await, Verdict::Won);
    cluster.take_down(2).await;
    assert_eq!(cluster.garage(1).reap_uploads().await.unwrap(), 0);
    assert_eq!(references(&cluster, 0).await, 1);
    cluster.bring_back(2).await;
    cluster.garage(1).reap_uploads().await.unwrap();
    send_queues(&cluster).await;
    assert_eq!(references(&cluster, 0).await, 1);
    assert_eq!(cluster.garage(2).object(bucket, &key()).await.unwrap().version, VERSION);
}

#[tokio::test(start_paused = true)]
async fn what_its_coordinator_works_on_is_left_alone() {
    let (cluster, bucket) = three().await;
    let upload = upload(bucket, cluster.machines[0].id());
    prepare(&cluster, &upload).await;
    let working = cluster.garage(0).local().working.on(VERSION);
    assert_eq!(cluster.garage(1).reap_uploads().await.unwrap(), 0);
    drop(working);
    assert_eq!(cluster.garage(1).reap_uploads().await.unwrap(), 1);
}

/// Stores a reference at every owner as if it had come with its block.
async fn refer(cluster: &Cluster, origin: &Origin) {
    for machine in 0..3 {
        let row = BlockRefTable::entry(&BlockRefRow::live(BLOCK, VERSION), Mode::Replicate);
        let entry = Entry { epoch: EPOCH_OF_OWNER, condition: Some(codec::encode(origin).into()), ..row };
        assert_eq!(send(cluster, machine, vec![entry]).await, Verdict::Won);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reference_that_nothing_leads_to_is_released_once_its_write_is_over() {
    for part in [None, Some(PartName { upload: UploadId::from_bytes([9; 32]), number: 1 })] {
        let (cluster, bucket) = three().await;
        let backlink = Backlink { bucket, key: key() };
        refer(&cluster, &Origin { coordinator: cluster.machines[0].id(), backlink, part }).await;
        let working = cluster.garage(0).local().working.on(VERSION);
        for (minutes, left) in [(10, 1), (10, 1), (20, 1), (0, 1)] {
            cluster.clock.advance_millis(minutes * 60_000);
            cluster.garage(1).look_at_fresh_references().await.unwrap();
            assert_eq!(references(&cluster, 1).await, left, "{part:?}");
        }
        drop(working);
        cluster.clock.advance_millis(20 * 60_000);
        cluster.garage(1).look_at_fresh_references().await.unwrap();
        send_queues(&cluster).await;
        for machine in 0..3 {
            assert_eq!(references(&cluster, machine).await, 0, "{part:?}, machine {machine}");
        }
    }
}

/// Whether a reference stays whose object this node alone has not heard of, where reads ask one copy.
async fn what_the_others_know_of_stays(bug: Option<Bug>) -> bool {
    let cluster = Cluster::in_mode(ConsistencyMode::Degraded, 3, 3).await;
    cluster.lay_out(&[0, 1, 2]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let origin = Origin { coordinator: cluster.machines[0].id(), backlink: Backlink { bucket, key: key() }, part: None };
    refer(&cluster, &origin).await;
    let stored = ObjectTable::entry(&object(bucket, cluster.garage(0).clock().now()), Mode::Replicate);
    for machine in [0, 2] {
        assert_eq!(send(&cluster, machine, vec![stored.clone()]).await, Verdict::Won);
    }
    cluster.clock.advance_millis(20 * 60_000);
    plant(bug);
    cluster.garage(1).look_at_fresh_references().await.unwrap();
    plant(None);
    references(&cluster, 1).await == 1
}

#[tokio::test(start_paused = true)]
async fn what_is_released_by_the_word_of_one_copy_is_noticed() {
    assert!(what_the_others_know_of_stays(None).await);
    assert!(!what_the_others_know_of_stays(Some(Bug::ReleasedByOneCopy)).await);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_comes_after_its_reference_was_released_and_forgotten_is_released_again() {
    let (cluster, bucket) = three().await;
    let origin = Origin { coordinator: cluster.machines[0].id(), backlink: Backlink { bucket, key: key() }, part: None };
    let upload = upload(bucket, cluster.machines[0].id());
    prepare(&cluster, &upload).await;
    cluster.garage(1).reap_uploads().await.unwrap();
    send_queues(&cluster).await;
    assert_eq!(references(&cluster, 1).await, 0);
    cluster.collect_tombstones().await;
    // Held up somewhere until now.
    refer(&cluster, &origin).await;
    assert_eq!(references(&cluster, 1).await, 1, "nothing knows of its release any more");
    cluster.clock.advance_millis(20 * 60_000);
    cluster.garage(1).look_at_fresh_references().await.unwrap();
    assert_eq!(references(&cluster, 1).await, 0);
}

fn completing(bucket: BucketId, coordinator: NodeId, time: Timestamp) -> UploadRow {
    let completion = Completion { timestamp: time, size: 5, etag: "e-1".to_owned(), checksum: None, parts: 1 };
    let claim = Claim { purpose: Purpose::Complete(completion), coordinator, incarnation: 1, withdrawn: false };
    let multipart = MultipartUpload { claims: BTreeMap::from([(VERSION, claim)]), ..MultipartUpload::default() };
    let state = UploadState::Multipart(Box::new(multipart));
    UploadRow { bucket, shard: 0, key: key(), id: UploadId::from_bytes([9; 32]), started: time, state }
}

#[tokio::test(start_paused = true)]
async fn a_completion_whose_coordinator_owns_nothing_of_it_is_carried_out_by_the_owners() {
    let cluster = Cluster::of(4, 3).await;
    // The fourth machine serves requests and stores nothing.
    cluster.lay_out(&[0, 1, 2]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let row = completing(bucket, cluster.machines[3].id(), cluster.garage(0).clock().now());
    let piece = Piece::Part { number: 1, version: VersionId::from_bytes([7; 32]), length: 5, checksum: None };
    let segment = Segment::listing(0, Backlink { bucket, key: key() }, vec![piece]);
    let listed = VersionRow { version: VERSION, content: VersionContent::Segment(segment) };
    for machine in 0..3 {
        for entry in [UploadTable::entry(&row, Mode::Replicate), VersionTable::entry(&listed, Mode::Replicate)] {
            assert_eq!(send(&cluster, machine, vec![entry]).await, Verdict::Won);
        }
    }
    cluster.garage(1).reap_uploads().await.unwrap();
    assert_eq!(cluster.garage(0).object(bucket, &key()).await.unwrap().version, VERSION);
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_one_owner_has_stored_is_not_taken_back_for_another_claim() {
    let (cluster, bucket) = three().await;
    let own = cluster.machines[0].id();
    let row = completing(bucket, own, cluster.garage(0).clock().now());
    let piece = Piece::Part { number: 1, version: VersionId::from_bytes([7; 32]), length: 5, checksum: None };
    let segment = Segment::listing(0, Backlink { bucket, key: key() }, vec![piece]);
    let listed = VersionRow { version: VERSION, content: VersionContent::Segment(segment) };
    for machine in 0..3 {
        for entry in [UploadTable::entry(&row, Mode::Replicate), VersionTable::entry(&listed, Mode::Replicate)] {
            assert_eq!(send(&cluster, machine, vec![entry]).await, Verdict::Won);
        }
    }
    // One owner has the object; another has a later claim that nobody withdrew.
    let mut stored = object(bucket, cluster.garage(0).clock().now());
    if let ObjectState::Live(meta) = &mut stored.state {
        (meta.content, meta.upload) = (Content::Parts { count: 1 }, Some(row.id));
    }
    let done = row.with_state(UploadState::Completed { version: VERSION });
    let entries = vec![ObjectTable::entry(&stored, Mode::Commit), UploadTable::entry(&done, Mode::Commit)];
    assert_eq!(send(&cluster, 2, entries).await, Verdict::Won);
    let claim = Claim { purpose: Purpose::Abort, coordinator: own, incarnation: 1, withdrawn: false };
    let other = MultipartUpload { claims: [(VersionId::from_bytes([8; 32]), claim)].into(), ..MultipartUpload::default() };
    let other = row.with_state(UploadState::Multipart(Box::new(other)));
    assert_eq!(send(&cluster, 1, vec![UploadTable::entry(&other, Mode::Replicate)]).await, Verdict::Won);
    for machine in [1, 0] {
        cluster.garage(machine).reap_uploads().await.unwrap();
    }
    let read = cluster.garage(2).object(bucket, &key()).await.unwrap();
    assert_eq!(cluster.garage(2).object_parts(&read).await.unwrap().len(), 1, "its list is whole");
}

async fn put(cluster: &Cluster, machine: usize, bucket: BucketId, body: Vec<u8>) -> Result<Timestamp, ModelError> {
    let put = PutObject {
        bucket,
        key: key(),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    };
    let written = cluster.garage(machine).put_object(put, Box::new(InMemory::new(body))).await?;
    Ok(written.timestamp)
}

/// Two owners know of a later write, which a reader of the third and another, before it came there, would not see.
async fn overlapped(cluster: &Cluster, bucket: BucketId) -> ObjectRow {
    let state = ObjectState::Tombstone;
    let later = ObjectRow { state, ..object(bucket, cluster.garage(0).clock().now().plus_millis(60_000)) };
    for machine in [1, 2] {
        let entries = vec![ObjectTable::entry(&later, Mode::Commit)];
        assert_eq!(send(cluster, machine, entries).await, Verdict::Won);
    }
    later
}

#[tokio::test(start_paused = true)]
async fn a_small_write_that_some_owner_may_have_shown_is_not_repeated_above_what_came_in_between() {
    let (cluster, bucket) = three().await;
    let later = overlapped(&cluster, bucket).await;
    // The first machine stores it, and might have shown it before the later write came.
    let result = put(&cluster, 0, bucket, vec![1; 10]).await;
    assert!(matches!(result, Err(ModelError::Overtaken)), "{result:?}");
    let newest = cluster.garage(0).object_rows(bucket, &key(), Projection::Whole).await.unwrap().remove(0);
    assert_eq!(newest, later);
    // By now every owner knows the later one: none of them stores the next try before it has the right time.
    assert!(put(&cluster, 0, bucket, vec![1; 10]).await.unwrap() > later.timestamp);
}

#[tokio::test(start_paused = true)]
async fn a_write_in_blocks_knows_what_was_acknowledged_before_it_and_is_later() {
    let (cluster, bucket) = three().await;
    let later = overlapped(&cluster, bucket).await;
    assert!(put(&cluster, 0, bucket, vec![1; 300]).await.unwrap() > later.timestamp);
    assert_eq!(cluster.garage(1).object(bucket, &key()).await.unwrap().meta.size, 300);
}
