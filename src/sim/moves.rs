//! Layout changes move every row to where reads will look for it; a node whose database is lost or old gets all of it back.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use garage_db::MemoryEngine;
use garage_model::block_ref::BlockRefTable;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::moving::{Counted, Stray};
use garage_model::object::ObjectTable;
use garage_model::pipeline::InMemory;
use garage_model::put::{Preconditions, PutObject};
use garage_model::set_aside::describe;
use garage_model::upload::UploadTable;
use garage_model::version::VersionTable;
use garage_model::{Garage, ModelError};
use garage_rpc::layout::{NodeRole, Standing};
use garage_rpc::quorum::ConsistencyMode;
use garage_table::Schema;
use garage_table::set_aside::{Reason, SetAside};
use garage_types::disk::{Access, Disk};
use garage_types::{BucketId, ObjectKey};

use crate::checks::rows;
use crate::cluster::Cluster;
use crate::cluster::machine::{Machine, Setup, Sizes, data_dir};
use crate::cluster::network::Death;
use crate::losses::block_files;

fn in_virtual_time<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

fn setup() -> Setup {
    Setup {
        replication_factor: 3,
        consistency: ConsistencyMode::Consistent,
        data_durability: garage_block::Durability::Synced,
        metadata_durability: garage_db::Durability::Synced,
        sizes: Sizes::SMALL,
    }
}

fn garage(cluster: &Cluster, machine: usize) -> Garage {
    cluster.machines[machine].garage().expect("it runs")
}

async fn put(garage: &Garage, bucket: BucketId, key: &str, body: &[u8]) -> Result<(), ModelError> {
    let put = PutObject {
        bucket,
        key: ObjectKey::parse(key).unwrap(),
        headers: BTreeMap::new(),
        checksum: ChecksumAlgorithm::Crc64Nvme,
        owner: None,
        preconditions: Preconditions::default(),
    };
    garage.put_object(put, Box::new(InMemory::new(body.to_vec()))).await.map(drop)
}

async fn get(garage: &Garage, bucket: BucketId, key: &str) -> Result<Bytes, ModelError> {
    let object = garage.object(bucket, &ObjectKey::parse(key).unwrap()).await?;
    let mut stream = garage.read_object(&object, 0..object.meta.size).await?;
    let mut body = Vec::new();
    while let Some(bytes) = stream.next().await {
        body.extend_from_slice(&bytes?);
    }
    Ok(body.into())
}

/// Bodies of a few bytes and of several blocks.
fn body(number: usize) -> Vec<u8> {
    vec![number as u8; if number.is_multiple_of(2) { 9 } else { 300 }]
}

async fn fill(cluster: &Cluster, machine: usize, bucket: BucketId, numbers: std::ops::Range<usize>) {
    for number in numbers {
        put(&garage(cluster, machine), bucket, &format!("k{number:03}"), &body(number)).await.unwrap();
    }
}

async fn is_all_there(cluster: &Cluster, machines: &[usize], bucket: BucketId, numbers: std::ops::Range<usize>) {
    for machine in machines {
        for number in numbers.clone() {
            let key = format!("k{number:03}");
            let found = get(&garage(cluster, *machine), bucket, &key).await;
            assert_eq!(found.unwrap_or_else(|error| panic!("{key} through {machine}: {error}")), body(number));
        }
    }
}

/// A cluster of `machines`, the first three of which have a role, and a bucket.
async fn three_of(machines: usize, seed: u64) -> (Cluster, BucketId) {
    let cluster = Cluster::start(seed, machines, 3, setup()).await;
    let bucket = garage(&cluster, 0).create_bucket("pictures").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    (cluster, bucket)
}

fn role(zone: usize) -> NodeRole {
    NodeRole { zone: format!("zone{zone}"), capacity: Some(1 << 30), tags: Vec::new() }
}

fn is_settled(cluster: &Cluster, number: u64) -> bool {
    cluster.machines.iter().filter_map(|machine| machine.node()).all(|node| {
        let layout = node.layout.current();
        layout.version() == number && layout.live_versions().len() == 1
    })
}

/// The rows of every sharded table that machines have, equal at all owners and nowhere else.
async fn rows_of<S: Schema>(machine: &Machine) -> Vec<String>
where
    S::Row: std::fmt::Debug,
{
    let mut found: Vec<String> = rows::<S>(machine).await.iter().map(|row| format!("{row:?}")).collect();
    found.sort();
    found
}

async fn has_equal_rows(one: &Machine, other: &Machine) {
    assert_eq!(rows_of::<ObjectTable>(one).await, rows_of::<ObjectTable>(other).await);
    assert_eq!(rows_of::<VersionTable>(one).await, rows_of::<VersionTable>(other).await);
}

#[test]
fn a_node_that_takes_anothers_place_has_every_row_before_reads_go_there_and_the_old_one_is_emptied() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(4, 1).await;
        fill(&cluster, 0, bucket, 0..30).await;
        let layout = cluster.machines[1].node().unwrap().layout;
        layout.stage_role(cluster.machines[3].id, role(3)).await.unwrap();
        layout.stage_removal(cluster.machines[2].id).await.unwrap();
        layout.apply(2).await.unwrap();
        // Work goes on meanwhile.
        fill(&cluster, 0, bucket, 30..50).await;
        is_all_there(&cluster, &[0, 1, 3], bucket, 0..50).await;
        cluster.until("the old layout is retired", |cluster| is_settled(cluster, 2)).await;
        has_equal_rows(&cluster.machines[0], &cluster.machines[3]).await;
        is_all_there(&cluster, &[0, 1, 3], bucket, 0..50).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(rows_of::<ObjectTable>(&cluster.machines[2]).await.is_empty(), "the removed node has handed its rows over");
        cluster.machines[2].crash(Death::Reset);
        is_all_there(&cluster, &[0, 1, 3], bucket, 0..50).await;
    });
}

#[test]
fn a_node_that_left_is_needed_until_all_owners_have_every_block_that_it_held() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(4, 5).await;
        fill(&cluster, 0, bucket, 0..20).await;
        let layout = cluster.machines[1].node().unwrap().layout;
        layout.stage_role(cluster.machines[3].id, role(3)).await.unwrap();
        layout.stage_removal(cluster.machines[2].id).await.unwrap();
        layout.apply(2).await.unwrap();
        cluster.until("the old layout is retired", |cluster| is_settled(cluster, 2)).await;
        // Without this owner nothing may go.
        cluster.machines[1].crash(Death::Reset);
        tokio::time::sleep(Duration::from_secs(300)).await;
        let left = garage(&cluster, 2).moving().await.unwrap();
        assert_eq!(left.counted, Counted::All);
        assert!(left.blocks.hand_over > 0 && left.blocks.bytes_left > 0 && left.partitions > 0, "{left:?}");
        assert_eq!(left.stray_blocks, Stray::NotLookedFor);
        cluster.machines[1].restart().await;
        for _ in 0..60 {
            if garage(&cluster, 2).moving().await.unwrap().stray_blocks == Stray::None {
                break;
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        let left = garage(&cluster, 2).moving().await.unwrap();
        let settled = (left.blocks.hand_over, left.blocks.fetch, left.stray_blocks, left.partitions, left.queued_deletions);
        assert_eq!(settled, (0, 0, Stray::None, 0, 0));
        // A node that owns something is never said to be empty.
        assert_eq!(garage(&cluster, 0).moving().await.unwrap().stray_blocks, Stray::NotLookedFor);
        cluster.machines[2].crash(Death::Reset);
        is_all_there(&cluster, &[0, 1, 3], bucket, 0..20).await;
        cluster.machines[0].crash(Death::Reset);
        is_all_there(&cluster, &[1, 3], bucket, 0..20).await;
    });
}

#[test]
fn a_node_that_left_and_lost_its_database_then_still_hands_its_blocks_over() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(4, 6).await;
        fill(&cluster, 0, bucket, 0..20).await;
        let layout = cluster.machines[1].node().unwrap().layout;
        layout.stage_role(cluster.machines[3].id, role(3)).await.unwrap();
        layout.stage_removal(cluster.machines[2].id).await.unwrap();
        layout.apply(2).await.unwrap();
        cluster.until("the old layout is retired", |cluster| is_settled(cluster, 2)).await;
        // Without this owner nothing may go.
        cluster.machines[1].crash(Death::Reset);
        let left = &cluster.machines[2];
        left.crash(Death::Reset);
        left.engine.become_copy_of(&MemoryEngine::new());
        left.restart().await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(!block_files(left).is_empty(), "an owner that does not answer may lack them");
        cluster.machines[1].restart().await;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(if block_files(left).is_empty() { 0 } else { 60 })).await;
        }
        assert!(block_files(left).is_empty(), "its blocks are handed over within an hour");
        left.crash(Death::Reset);
        cluster.machines[0].crash(Death::Reset);
        is_all_there(&cluster, &[1, 3], bucket, 0..20).await;
    });
}

#[test]
fn a_node_whose_database_is_lost_is_asked_nothing_until_it_has_all_of_it_back() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(3, 2).await;
        fill(&cluster, 0, bucket, 0..20).await;
        let machine = &cluster.machines[1];
        machine.crash(Death::Reset);
        machine.engine.become_copy_of(&MemoryEngine::new());
        fill(&cluster, 0, bucket, 20..30).await;
        // With another node away, too few are left to rebuild from, and to read from.
        cluster.machines[2].crash(Death::Reset);
        machine.restart().await;
        let standing = || machine.node().unwrap().layout.standing().get();
        assert_eq!(standing(), Standing::Rebuilding);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(standing(), Standing::Rebuilding);
        // Not the rebuilding of a rebuilding, later on.
        machine.crash(Death::Reset);
        machine.restart().await;
        assert_eq!(standing(), Standing::Rebuilding);
        assert!(get(&garage(&cluster, 0), bucket, "k001").await.is_err(), "an empty replica must not answer");
        cluster.machines[2].restart().await;
        cluster.until("the node is rebuilt", |_| standing() == Standing::Whole).await;
        has_equal_rows(&cluster.machines[0], machine).await;
        is_all_there(&cluster, &[0, 1, 2], bucket, 0..30).await;
        // It stays so.
        machine.crash(Death::Reset);
        machine.restart().await;
        assert_eq!(standing(), Standing::Whole);
    });
}

#[test]
fn a_bucket_that_could_not_be_made_leaves_no_trace() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(3, 8).await;
        for machine in &cluster.machines[1..] {
            machine.crash(Death::Reset);
        }
        garage(&cluster, 0).create_bucket("holidays").await.expect_err("no quorum is there");
        for machine in &cluster.machines[1..] {
            machine.restart().await;
        }
        cluster.until("all are connected", Cluster::is_connected).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        for machine in 0..3 {
            let buckets: Vec<BucketId> =
                garage(&cluster, machine).buckets().await.unwrap().into_iter().map(|bucket| bucket.id).collect();
            assert_eq!(buckets, [bucket], "on {machine}");
        }
        let made = garage(&cluster, 2).create_bucket("holidays").await.unwrap();
        assert_eq!(garage(&cluster, 2).resolve_bucket(None, "holidays").await.unwrap().id, made);
    });
}

#[test]
fn a_start_that_fails_does_not_make_the_database_old() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(3, 5).await;
        fill(&cluster, 0, bucket, 0..3).await;
        let machine = &cluster.machines[1];
        machine.crash(Death::Reset);
        // Its disk is not mounted.
        let marker = data_dir().join(garage_block::MARKER);
        let content = machine.disk.read(&marker).unwrap();
        machine.disk.remove_file(&marker).unwrap();
        assert!(machine.try_start().await.is_err());
        machine.disk.create(&marker, &[&content], Access::Everyone).unwrap();
        machine.restart().await;
        assert_eq!(machine.node().unwrap().layout.standing().get(), Standing::Whole);
    });
}

#[test]
fn a_node_put_back_to_an_old_database_forgets_it_and_learns_what_is() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(3, 3).await;
        fill(&cluster, 0, bucket, 0..10).await;
        let machine = &cluster.machines[1];
        tokio::time::sleep(Duration::from_secs(5)).await;
        let backup = machine.snapshot().await.unwrap();
        let delete = async |number: usize| {
            let key = ObjectKey::parse(format!("k{number:03}")).unwrap();
            garage(&cluster, 0).delete_object(bucket, &key, Preconditions::default()).await.unwrap();
        };
        delete(9).await;
        tokio::time::sleep(Duration::from_secs(900)).await;
        assert_eq!(rows_of::<ObjectTable>(&cluster.machines[0]).await.len(), 9, "one deletion is forgotten");
        for number in 0..5 {
            delete(number).await;
        }
        fill(&cluster, 0, bucket, 5..8).await;
        machine.crash(Death::Reset);
        machine.engine.become_copy_of(&backup);
        machine.restart().await;
        let old = set_aside(&cluster, 1).await;
        assert!(old.iter().filter(|row| row.table == ObjectTable::ID).count() == 10, "all of it, until the node is rebuilt");
        let standing = || machine.node().unwrap().layout.standing().get();
        cluster.until("the node is rebuilt", |_| standing() == Standing::Whole).await;
        has_equal_rows(&cluster.machines[0], machine).await;
        is_all_there(&cluster, &[0, 1, 2], bucket, 5..9).await;
        assert!(matches!(get(&garage(&cluster, 1), bucket, "k000").await, Err(ModelError::NoSuchKey)));
        // With an owner away, no deletion is forgotten.
        cluster.machines[2].crash(Death::Reset);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let aside = set_aside(&cluster, 1).await;
        // What was overwritten or is known as deleted waits for no decision; of the deletion that was forgotten nobody can tell.
        let left: Vec<_> = aside.iter().map(|row| (row.table, describe(row).unwrap().subject)).collect();
        let of = |table| left.iter().filter(|row| row.0 == table).count();
        assert!(left.iter().any(|row| row.0 == ObjectTable::ID && row.1.starts_with("object k009")), "{left:?}");
        assert_eq!((of(ObjectTable::ID), of(VersionTable::ID), left.len() - of(BlockRefTable::ID)), (1, 1, 2), "{left:?}");
        // The others do not come back, should an operator be quicker.
        let quick: Vec<SetAside> = old.into_iter().filter(|row| row.table != UploadTable::ID && !aside.contains(row)).collect();
        let done = garage(&cluster, 1).merge_set_aside(quick).await.unwrap();
        assert_eq!(done.merged, 0, "{done:?}");
        // Content alone waits for its object.
        let (objects, others): (Vec<_>, Vec<_>) = aside.into_iter().partition(|row| row.table == ObjectTable::ID);
        let done = garage(&cluster, 1).merge_set_aside(others).await.unwrap();
        assert_eq!((done.merged, done.superseded), (0, 0), "{done:?}");
        let done = garage(&cluster, 1).merge_set_aside(objects).await.unwrap();
        assert_eq!((done.merged, done.superseded, done.unused), (0, 0, 1), "{done:?}");
        assert!(matches!(get(&garage(&cluster, 1), bucket, "k000").await, Err(ModelError::NoSuchKey)));
        has_equal_rows(&cluster.machines[0], machine).await;
    });
}

async fn set_aside(cluster: &Cluster, machine: usize) -> Vec<SetAside> {
    garage(cluster, machine).local().tables.set_aside_page(None, 10_000).await.unwrap()
}

#[test]
fn databases_put_back_all_at_once_are_accepted_and_what_was_forgotten_since_comes_back_on_an_operators_word_only() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(3, 6).await;
        fill(&cluster, 0, bucket, 0..10).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let early = cluster.machines[1].engine.copy();
        let key = ObjectKey::parse("k000").unwrap();
        garage(&cluster, 0).delete_object(bucket, &key, Preconditions::default()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(900)).await;
        assert_eq!(rows_of::<ObjectTable>(&cluster.machines[0]).await.len(), 9, "the deletion is forgotten");
        fill(&cluster, 0, bucket, 10..12).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let copies = [cluster.machines[0].engine.copy(), early, cluster.machines[2].engine.copy()];
        // A start that the copies do not know of.
        for machine in &cluster.machines {
            machine.crash(Death::Reset);
            machine.restart().await;
        }
        cluster.until("all are connected", Cluster::is_connected).await;
        fill(&cluster, 0, bucket, 12..13).await;
        for machine in &cluster.machines {
            machine.crash(Death::Reset);
        }
        // One row of a copy has rotted: that keeps nobody from accepting the others.
        assert!(copies[1].flip_bit("object:rows", 3, 200).is_some());
        for (machine, copy) in cluster.machines.iter().zip(&copies) {
            machine.engine.become_copy_of(copy);
            machine.restart().await;
        }
        let are = |standing| cluster.machines.iter().all(|machine| machine.node().unwrap().layout.standing().get() == standing);
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert!(are(Standing::Rebuilding), "they wait for each other");
        for machine in &cluster.machines {
            let node = machine.node().unwrap();
            assert!(node.garage.local().tables.accept_database().await.unwrap() > 0);
            node.layout.accepted();
            node.sync.request();
        }
        is_all_there(&cluster, &[0, 1, 2], bucket, 1..10).await;
        cluster.until("they are compared", |_| are(Standing::Whole)).await;
        for machine in &cluster.machines[1..] {
            has_equal_rows(&cluster.machines[0], machine).await;
        }
        is_all_there(&cluster, &[0, 1, 2], bucket, 1..12).await;
        for gone in ["k000", "k012"] {
            assert!(matches!(get(&garage(&cluster, 1), bucket, gone).await, Err(ModelError::NoSuchKey)), "{gone}");
        }
        let aside = set_aside(&cluster, 1).await;
        assert!(aside.iter().any(|row| row.table == ObjectTable::ID && row.reason == Reason::Returned), "{}", aside.len());
        let done = garage(&cluster, 1).merge_set_aside(aside).await.unwrap();
        assert!(done.merged > 0, "{done:?}");
        is_all_there(&cluster, &[0, 1, 2], bucket, 0..12).await;
    });
}

#[test]
fn a_clock_that_was_years_ahead_does_not_move_all_later_writes_there() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(3, 7).await;
        fill(&cluster, 0, bucket, 0..3).await;
        // The first of the owners collects what it deleted.
        let first = cluster.machines.iter().min_by_key(|machine| machine.id).expect("there are three");
        let right = cluster.machines.iter().find(|machine| machine.id != first.id).expect("there are three").number;
        first.clock.set_off_by_ms(3 * 365 * 86_400_000);
        let key = ObjectKey::parse("k000").unwrap();
        garage(&cluster, first.number).delete_object(bucket, &key, Preconditions::default()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(900)).await;
        first.clock.set_off_by_ms(0);
        put(&garage(&cluster, right), bucket, "k001", b"after").await.unwrap();
        let object = garage(&cluster, right).object(bucket, &ObjectKey::parse("k001").unwrap()).await.unwrap();
        assert!(object.timestamp < garage(&cluster, right).clock().now().plus_millis(3_600_000), "{:?}", object.timestamp);
    });
}

#[test]
fn what_was_deleted_leaves_nothing_behind_once_every_owner_knows() {
    in_virtual_time(async {
        let (cluster, bucket) = three_of(3, 4).await;
        fill(&cluster, 0, bucket, 0..10).await;
        cluster.machines[2].crash(Death::Reset);
        let key = |number: usize| ObjectKey::parse(format!("k{number:03}")).unwrap();
        for number in 0..10 {
            garage(&cluster, 0).delete_object(bucket, &key(number), Preconditions::default()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(rows_of::<ObjectTable>(&cluster.machines[0]).await.len(), 10, "one owner does not know yet");
        cluster.machines[2].restart().await;
        cluster.until("all are connected", Cluster::is_connected).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        for machine in &cluster.machines {
            assert_eq!(rows_of::<ObjectTable>(machine).await, Vec::<String>::new(), "machine {}", machine.number);
            assert_eq!(rows_of::<VersionTable>(machine).await, Vec::<String>::new(), "machine {}", machine.number);
            assert_eq!(rows_of::<BlockRefTable>(machine).await, Vec::<String>::new(), "machine {}", machine.number);
            assert_eq!(rows_of::<UploadTable>(machine).await, Vec::<String>::new(), "machine {}", machine.number);
            let tables = machine.garage().unwrap().local().tables.clone();
            assert_eq!(tables.tombstones_listed().await.unwrap(), 0, "machine {}", machine.number);
        }
        // Nodes that have forgotten the deletion take new rows as before.
        fill(&cluster, 1, bucket, 0..10).await;
        is_all_there(&cluster, &[0, 1, 2], bucket, 0..10).await;
    });
}
