use std::path::{Path, PathBuf};
use std::sync::Arc;

use garage_types::clock::ManualClock;
use garage_types::codec::encode;
use garage_types::disk::{Access, replace_atomically};
use garage_types::memory_disk::MemoryDisk;
use garage_types::offload::Inline;
use garage_types::{Disk, NodeId, Placement};

use super::{LAYOUT_FILE, LayoutManager, LayoutSetup, Leftovers};
use crate::layout::error::LayoutError;
use crate::layout::history::LayoutHistory;
use crate::layout::standing::StartFacts;
use crate::layout::version::NodeRole;

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn path() -> PathBuf {
    Path::new("/").join(LAYOUT_FILE)
}

async fn open(n: u8, replication_factor: usize, disk: &MemoryDisk) -> Result<LayoutManager, LayoutError> {
    LayoutManager::open(LayoutSetup {
        me: node(n),
        replication_factor,
        metadata_dir: PathBuf::from("/"),
        disk: Arc::new(disk.clone()),
        offload: Arc::new(Inline),
        clock: Arc::new(ManualClock::default()),
        start: StartFacts { recorded_start: Some(1), previous_start: 1, was_rebuilding: false, was_accepted: false },
        leftovers: Leftovers::Impossible,
    })
    .await
}

fn role(zone: &str) -> NodeRole {
    NodeRole { zone: zone.to_owned(), capacity: Some(1 << 30), tags: vec!["tag".to_owned()] }
}

#[tokio::test]
async fn a_single_node_goes_from_no_layout_to_one_and_to_the_next_at_once() {
    let manager = open(1, 1, &MemoryDisk::new()).await.unwrap();
    let place = Placement::from_bytes([0xAB; 32]);
    let empty = manager.current();
    assert!(empty.is_empty() && empty.read_nodes(place).is_empty() && empty.write_sets(place).is_empty());
    assert_eq!((empty.version(), empty.replication_factor(), empty.live_versions().len()), (0, 1, 0));
    manager.stage_role(node(1), role("here")).await.unwrap();
    manager.apply(1).await.unwrap();
    let first = manager.current();
    assert_eq!((first.read_nodes(place), first.write_sets(place)), (&[node(1)][..], vec![vec![node(1)]]));
    assert!(first.is_owner(node(1), place) && !first.is_owner(node(2), place));
    assert_eq!((first.partition_bits(), first.partitions_of(node(1)).len()), (8, 256));
    manager.stage_role(node(1), role("there")).await.unwrap();
    manager.apply(2).await.unwrap();
    let second = manager.current();
    assert_eq!(second.live_versions().iter().map(|key| key.number).collect::<Vec<_>>(), [2]);
    assert_eq!(second.role(node(1)).unwrap().zone, "there");
    assert_eq!(first.version(), 1, "a view does not change");
}

#[tokio::test]
async fn what_was_published_survives_a_power_cut() {
    let disk = MemoryDisk::new();
    let manager = open(1, 1, &disk).await.unwrap();
    manager.stage_role(node(1), role("here")).await.unwrap();
    disk.crash();
    let manager = open(1, 1, &disk).await.unwrap();
    assert!(!manager.current().history().staging().is_empty());
    manager.apply(1).await.unwrap();
    disk.crash();
    let again = open(1, 1, &disk).await.unwrap();
    assert_eq!(again.current().history(), manager.current().history());
}

#[tokio::test]
async fn a_layout_that_could_not_be_saved_is_not_published() {
    let disk = MemoryDisk::new();
    let manager = open(1, 1, &disk).await.unwrap();
    manager.stage_role(node(1), role("here")).await.unwrap();
    let watched = manager.watch();
    disk.set_capacity(Some(0));
    assert!(matches!(manager.apply(1).await, Err(LayoutError::File(_))));
    assert!(manager.current().is_empty() && !watched.has_changed());
    disk.set_capacity(None);
    manager.apply(1).await.unwrap();
    assert_eq!(manager.current().version(), 1);
}

#[tokio::test]
async fn a_state_file_that_cannot_be_used_stops_the_node() {
    let disk = MemoryDisk::new();
    replace_atomically(&disk, &path(), &encode(&LayoutHistory::new(3)), Access::Everyone).unwrap();
    assert!(matches!(open(1, 1, &disk).await, Err(LayoutError::ReplicationFactor { found: 3, configured: 1 })));
    replace_atomically(&disk, &path(), b"lay1 and then nonsense", Access::Everyone).unwrap();
    assert!(matches!(open(1, 1, &disk).await, Err(LayoutError::Decode { .. })));
    assert_eq!(disk.read(&path()).unwrap(), b"lay1 and then nonsense", "it was left as it is");
}

#[tokio::test]
async fn a_version_is_acknowledged_when_the_last_write_that_ignores_it_has_ended() {
    let manager = Arc::new(open(1, 1, &MemoryDisk::new()).await.unwrap());
    manager.stage_role(node(1), role("here")).await.unwrap();
    manager.apply(1).await.unwrap();
    let permits = [manager.begin_write(), manager.begin_write()];
    manager.stage_role(node(1), role("there")).await.unwrap();
    manager.apply(2).await.unwrap();
    let newer = manager.begin_write();
    assert_eq!(manager.current().live_versions().len(), 2, "writes by version 1 are running");
    assert_eq!((permits[0].layout().version(), newer.layout().version()), (1, 2));

    let mut watched = manager.watch();
    let background = tokio::spawn({
        let manager = manager.clone();
        async move { manager.acknowledge_as_writes_end().await }
    });
    let [first, last] = permits;
    drop(first);
    tokio::task::yield_now().await;
    assert_eq!(manager.current().live_versions().len(), 2);
    drop(last);
    while manager.current().live_versions().len() > 1 {
        watched.changed().await;
    }
    assert_eq!(manager.current().history().min_ack(), 2, "the write by version 2 holds nothing up");
    background.abort();
}

#[tokio::test]
async fn writers_whom_nobody_asks_are_answered_for_and_refused_once_a_newer_layout_is_known() {
    let manager = open(1, 1, &MemoryDisk::new()).await.unwrap();
    let (member, stranger) = (node(1), node(7));
    manager.stage_role(member, role("here")).await.unwrap();
    manager.apply(1).await.unwrap();
    let vouch = manager.admit(stranger, 1).expect("there is no newer layout");
    manager.stage_role(member, role("there")).await.unwrap();
    manager.apply(2).await.unwrap();
    assert_eq!(manager.current().history().min_ack(), 1, "the stranger's write is being stored");
    assert!(manager.admit(stranger, 1).is_none());
    assert!(manager.admit(stranger, 2).is_some() && manager.admit(member, 1).is_some());
    drop(vouch);
    manager.revert().await.unwrap();
    assert_eq!(manager.current().history().min_ack(), 2);
}

#[tokio::test]
async fn a_role_that_not_everyone_has_heard_of_lets_no_older_write_in() {
    let manager = open(1, 1, &MemoryDisk::new()).await.unwrap();
    for (number, joining) in [(1, node(1)), (2, node(2)), (3, node(3))] {
        manager.stage_role(joining, role("here")).await.unwrap();
        manager.apply(number).await.unwrap();
    }
    assert_eq!(manager.current().live_versions().len(), 3, "the others have acknowledged nothing");
    assert!(manager.admit(node(2), 1).is_some(), "who knows of version 2 waits for its members");
    assert!(manager.admit(node(3), 1).is_none(), "who knows of version 2 only does not ask the members of version 3");
    assert!(manager.admit(node(3), 2).is_some());
}

#[tokio::test]
async fn two_nodes_learn_from_each_other_and_write_to_both_versions_meanwhile() {
    let (one, two) = (open(1, 1, &MemoryDisk::new()).await.unwrap(), open(2, 1, &MemoryDisk::new()).await.unwrap());
    one.stage_role(node(1), role("here")).await.unwrap();
    one.apply(1).await.unwrap();
    one.stage_role(node(2), role("there")).await.unwrap();
    one.stage_removal(node(1)).await.unwrap();
    one.apply(2).await.unwrap();
    let place = Placement::from_bytes([1; 32]);
    let merged = two.merge_remote((**one.current().history()).clone()).await.unwrap();
    assert_eq!(merged.new_versions.len(), 2);
    let layout = two.current();
    assert_eq!(layout.write_sets(place), [[node(1)], [node(2)]]);
    assert_eq!(layout.full_copy_sets(), [[node(1)], [node(2)]]);
    assert_eq!(layout.read_nodes(place), [node(1)]);
    assert_eq!((layout.all_nodes().len(), layout.storage_nodes()), (2, &[node(2)][..]));
    one.merge_remote((**two.current().history()).clone()).await.unwrap();
    two.merge_remote((**one.current().history()).clone()).await.unwrap();
    let second = two.current().live_versions()[1];
    for manager in [&one, &two] {
        manager.mark_synced(second).await.unwrap();
    }
    for (to, from) in [(&one, &two), (&two, &one), (&one, &two)] {
        to.merge_remote((**from.current().history()).clone()).await.unwrap();
    }
    for manager in [&one, &two] {
        assert_eq!(manager.current().live_versions(), [second]);
        assert_eq!(manager.current().read_nodes(place), [node(2)]);
        assert_eq!(manager.current().past_nodes(place), [node(1)], "its blocks may still be there only");
    }
    assert!(!two.merge_remote((**one.current().history()).clone()).await.unwrap().anything_changed);
}
