//! Blocks find their way to their owners, and leave only when no owner needs them.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt;
use garage_block::{Compression, StoredBlock};
use garage_model::put::Preconditions;
use garage_model::resync_queue::{Queued, Reason};
use garage_model::{Garage, ModelError};
use garage_types::memory_disk::FailingCall;
use garage_types::planted::{Bug, plant};
use garage_types::{BlockHash, BucketId, Clock, ObjectKey};

use crate::blocks_world::{Cluster, Machine, body, store, try_store, until};

const HOUR_MS: u64 = 3_600_000;
/// Blocks that others own come up for handing over within this time.
const SPREAD_MS: u64 = 5_000;

async fn fetch(garage: &Garage, bucket: BucketId, key: &str) -> Result<Bytes, ModelError> {
    let object = garage.object(bucket, &ObjectKey::parse(key).unwrap()).await?;
    let mut stream = garage.read_object(&object, 0..object.meta.size).await?;
    let mut body = Vec::new();
    while let Some(bytes) = stream.next().await {
        body.extend_from_slice(&bytes?);
    }
    Ok(body.into())
}

async fn delete(cluster: &Cluster, bucket: BucketId, key: &str) {
    cluster.garage(0).delete_object(bucket, &ObjectKey::parse(key).unwrap(), Preconditions::default()).await.unwrap();
}

/// Sends queued deletions until no machine that is up has any.
async fn settle_queues(cluster: &Cluster, machines: &[usize]) {
    until(async || {
        let mut left = 0;
        for machine in machines {
            let garage = cluster.garage(*machine);
            drop(garage.send_queue().await);
            left += garage.local().tables.queue_len().await.unwrap();
        }
        left == 0
    })
    .await;
}

async fn three_nodes() -> (Cluster, BucketId) {
    let cluster = Cluster::of(3, 3).await;
    cluster.lay_out(&[0, 1, 2]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    (cluster, bucket)
}

/// Also the copy that the background part of the write brings.
async fn until_everywhere(cluster: &Cluster, block: BlockHash, machines: &[usize]) {
    until(async || cluster.holders(block).await == machines).await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_a_node_lost_is_read_elsewhere_and_fetched_again() {
    let (cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(1, 3);
    store(cluster.garage(0), bucket, "a", content.clone()).await;
    for block in &blocks {
        until_everywhere(&cluster, *block, &[0, 1, 2]).await;
        cluster.garage(1).local().blocks.blocks.remove(*block).await.unwrap();
    }
    assert_eq!(fetch(cluster.garage(1), bucket, "a").await.unwrap(), content, "the others have it");
    assert_eq!(cluster.garage(1).blocks_to_move().await.unwrap().fetch, 3, "the reads have queued what they missed");
    cluster.resync(1).await;
    for block in &blocks {
        assert_eq!(cluster.holders(*block).await, [0, 1, 2]);
    }
    let left = cluster.garage(1).blocks_to_move().await.unwrap();
    assert_eq!((left.fetch, left.failed), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stored_block_is_not_queued() {
    let (cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(1, 3);
    store(cluster.garage(0), bucket, "a", content).await;
    for block in &blocks {
        until_everywhere(&cluster, *block, &[0, 1, 2]).await;
    }
    for machine in 0..3 {
        let counts = cluster.garage(machine).resync_queue_counts().await.unwrap();
        assert_eq!(counts, Default::default(), "machine {machine}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_block_stays_while_an_owner_cannot_be_asked_and_goes_afterwards() {
    let (mut cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(2, 1);
    store(cluster.garage(0), bucket, "a", content).await;
    until_everywhere(&cluster, blocks[0], &[0, 1, 2]).await;
    cluster.take_down(2).await;
    delete(&cluster, bucket, "a").await;
    settle_queues(&cluster, &[0, 1]).await;
    cluster.clock.advance_millis(HOUR_MS);
    cluster.resync(0).await;
    cluster.resync(1).await;
    assert_eq!(cluster.holders(blocks[0]).await, [0, 1, 2], "machine 2 is silent");
    cluster.bring_back(2).await;
    cluster.clock.advance_millis(HOUR_MS);
    cluster.resync(0).await;
    cluster.resync(1).await;
    assert_eq!(cluster.holders(blocks[0]).await, [0, 1, 2], "machine 2 did not hear of the deletion and still refers to it");
    cluster.copy_references(0, 2).await;
    cluster.clock.advance_millis(5 * 60 * 1000);
    cluster.resync(0).await;
    assert_eq!(cluster.holders(blocks[0]).await, [0, 1, 2], "machine 2 released it less than ten minutes ago");
    cluster.clock.advance_millis(HOUR_MS);
    for machine in 0..3 {
        cluster.resync(machine).await;
    }
    assert!(cluster.holders(blocks[0]).await.is_empty());
    for machine in 0..3 {
        let counts = cluster.garage(machine).resync_queue_counts().await.unwrap();
        assert_eq!(counts, Default::default(), "nothing is left to do on machine {machine}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_on_the_word_of_a_node_whose_database_is_new_nor_by_it() {
    let (mut cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(5, 1);
    store(cluster.garage(0), bucket, "a", content).await;
    until_everywhere(&cluster, blocks[0], &[0, 1, 2]).await;
    delete(&cluster, bucket, "a").await;
    settle_queues(&cluster, &[0, 1, 2]).await;
    cluster.take_down(2).await;
    cluster.bring_back_without_metadata(2).await;
    // To the new database every block is superfluous.
    cluster.garage(2).queue_misplaced_blocks().await.unwrap();
    for _round in 0..3 {
        cluster.clock.advance_millis(HOUR_MS);
        for machine in 0..3 {
            cluster.resync(machine).await;
        }
    }
    assert_eq!(cluster.holders(blocks[0]).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_gives_its_blocks_to_the_new_owners_before_it_lets_go() {
    let cluster = Cluster::of(4, 2).await;
    cluster.lay_out(&[0, 1]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let (content, blocks) = body(3, 8);
    store(cluster.garage(0), bucket, "a", content).await;
    for block in &blocks {
        until_everywhere(&cluster, *block, &[0, 1]).await;
    }
    cluster.lay_out(&[2, 3]).await;
    for (from, to) in [(0, 2), (0, 3)] {
        cluster.copy_references(from, to).await;
    }
    cluster.finish_layout_change().await;
    // The bytes are still with the owners of before.
    let block = cluster.garage(2).local().blocks.blocks.contains(blocks[0]).await.unwrap();
    assert!(!block);
    cluster.garage(2).queue_misplaced_blocks().await.unwrap();
    cluster.garage(0).queue_misplaced_blocks().await.unwrap();
    // One fetches what it needs, another is given it.
    cluster.resync(2).await;
    for block in &blocks {
        assert_eq!(cluster.holders(*block).await, [0, 1, 2]);
    }
    cluster.clock.advance_millis(SPREAD_MS);
    cluster.resync(0).await;
    for block in &blocks {
        assert_eq!(cluster.holders(*block).await, [1, 2, 3], "given to 3, then dropped by 0");
    }
    cluster.take_down(3).await;
    cluster.garage(1).queue_misplaced_blocks().await.unwrap();
    cluster.clock.advance_millis(SPREAD_MS);
    cluster.resync(1).await;
    for block in &blocks {
        assert_eq!(cluster.holders(*block).await, [1, 2, 3], "kept while an owner is silent");
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_that_nobody_needs_any_more_is_not_counted_as_still_to_be_handed_over() {
    let cluster = Cluster::of(4, 2).await;
    cluster.lay_out(&[0, 1]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let (content, blocks) = body(6, 8);
    store(cluster.garage(0), bucket, "a", content).await;
    for block in &blocks {
        until_everywhere(&cluster, *block, &[0, 1]).await;
    }
    delete(&cluster, bucket, "a").await;
    settle_queues(&cluster, &[0, 1]).await;
    cluster.lay_out(&[0, 1, 2, 3]).await;
    cluster.finish_layout_change().await;
    cluster.garage(0).queue_misplaced_blocks().await.unwrap();
    let queued = cluster.garage(0).resync_queue_counts().await.unwrap();
    assert!(queued.hand_over > 0, "some have other owners now: {queued:?}");
    cluster.clock.advance_millis(SPREAD_MS);
    cluster.resync(0).await;
    let waiting = cluster.garage(0).resync_queue_counts().await.unwrap();
    assert!(waiting.hand_over == 0 && waiting.released >= queued.hand_over, "{waiting:?}");
    cluster.clock.advance_millis(HOUR_MS);
    cluster.resync(0).await;
    for block in &blocks {
        assert!(!cluster.holders(*block).await.contains(&0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_that_nobody_has_is_listed_with_its_failures_and_tried_again_later_and_on_command() {
    let (cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(4, 1);
    store(cluster.garage(0), bucket, "a", content).await;
    until_everywhere(&cluster, blocks[0], &[0, 1, 2]).await;
    let stored = cluster.garage(1).local().blocks.blocks.read_stored(blocks[0]).await.unwrap();
    for machine in 0..3 {
        cluster.garage(machine).local().blocks.blocks.remove(blocks[0]).await.unwrap();
    }
    assert!(matches!(fetch(cluster.garage(0), bucket, "a").await, Err(ModelError::BlockUnavailable { .. })));
    cluster.resync(0).await;
    let failed = cluster.garage(0).failed_blocks().await.unwrap();
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].block, failed[0].references, failed[0].failure.failures.count), (blocks[0], 1, 1));
    assert!(failed[0].failure.message.contains("could not be had"), "{}", failed[0].failure.message);
    cluster.clock.advance_millis(59_000);
    cluster.resync(0).await;
    assert_eq!(cluster.garage(0).failed_blocks().await.unwrap()[0].failure.failures.count, 1, "not before a minute is over");
    cluster.clock.advance_millis(1_000);
    cluster.resync(0).await;
    assert_eq!(cluster.garage(0).failed_blocks().await.unwrap()[0].failure.failures.count, 2);
    cluster.garage(1).local().blocks.blocks.write(blocks[0], stored).await.unwrap();
    assert_eq!(cluster.garage(0).retry_blocks(None).await.unwrap(), 1);
    cluster.resync(0).await;
    assert!(cluster.garage(0).failed_blocks().await.unwrap().is_empty());
    assert_eq!(cluster.holders(blocks[0]).await, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_failed_is_not_listed_any_more_once_it_was_read_or_written_here() {
    let (cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(25, 2);
    store(cluster.garage(0), bucket, "a", content.clone()).await;
    let local = &cluster.garage(0).local().blocks.blocks;
    let mut removed = Vec::new();
    for block in &blocks {
        until_everywhere(&cluster, *block, &[0, 1, 2]).await;
        removed.push(local.read_stored(*block).await.unwrap());
        for machine in 0..3 {
            cluster.garage(machine).local().blocks.blocks.remove(*block).await.unwrap();
        }
        fetch(cluster.garage(0), bucket, "a").await.unwrap_err();
        cluster.garage(0).queue_blocks(vec![Queued::new(cluster.clock.now(), *block, Reason::Fetch)]).await.unwrap();
    }
    cluster.resync(0).await;
    assert_eq!(cluster.garage(0).failed_blocks().await.unwrap().len(), 2);
    // As a disk that comes back.
    local.write(blocks[0], removed[0].clone()).await.unwrap();
    fetch(cluster.garage(0), bucket, "a").await.unwrap_err();
    let failed = cluster.garage(0).failed_blocks().await.unwrap();
    assert!(failed.len() == 1 && failed[0].block == blocks[1], "{failed:?}");
    store(cluster.garage(1), bucket, "again", content).await;
    until(async || cluster.garage(0).failed_blocks().await.unwrap().is_empty()).await;
    cluster.resync(0).await;
    let left = cluster.garage(0).blocks_to_move().await.unwrap();
    assert_eq!((left.fetch, left.failed), (0, 0), "and resync has nothing to do");
}

/// Where a machine has the file of a block.
fn file_of(machine: &Machine, block: BlockHash) -> PathBuf {
    let is_its = |path: &PathBuf| path.ends_with(block.to_string());
    machine.disk.files().into_iter().find(is_its).expect("the machine has the block")
}

/// Whether blocks on bad sectors are good again once a read has met them.
async fn are_fetched_again(bug: Option<Bug>) -> bool {
    let (cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(7, 3);
    store(cluster.garage(0), bucket, "a", content.clone()).await;
    for block in &blocks {
        until_everywhere(&cluster, *block, &[0, 1, 2]).await;
        cluster.machines[1].disk.spoil(&file_of(&cluster.machines[1], *block));
    }
    assert_eq!(fetch(cluster.garage(1), bucket, "a").await.unwrap(), content, "the others have it");
    assert_eq!(cluster.garage(1).blocks_to_move().await.unwrap().fetch, 3, "the reads have queued what they could not read");
    plant(bug);
    cluster.resync(1).await;
    plant(None);
    assert!(cluster.garage(1).failed_blocks().await.unwrap().is_empty());
    let store = &cluster.garage(1).local().blocks.blocks;
    let mut good = true;
    for block in &blocks {
        good &= store.verify(*block).await.is_ok();
    }
    good
}

#[tokio::test(start_paused = true)]
async fn a_block_on_a_bad_sector_is_fetched_again_once_a_read_has_met_it() {
    assert!(are_fetched_again(None).await);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_believed_to_be_good_because_it_is_there_is_noticed() {
    assert!(!are_fetched_again(Some(Bug::UnreadableBelieved)).await);
}

#[tokio::test(start_paused = true)]
async fn an_only_copy_on_a_bad_sector_is_listed_with_the_reason_and_left_alone() {
    let cluster = Cluster::of(1, 1).await;
    cluster.lay_out(&[0]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let (content, blocks) = body(8, 1);
    store(cluster.garage(0), bucket, "a", content).await;
    let file = file_of(&cluster.machines[0], blocks[0]);
    cluster.machines[0].disk.spoil(&file);
    fetch(cluster.garage(0), bucket, "a").await.unwrap_err();
    cluster.resync(0).await;
    let failed = cluster.garage(0).failed_blocks().await.unwrap();
    assert_eq!((failed.len(), failed[0].block), (1, blocks[0]));
    assert!(failed[0].failure.message.contains("os error 5"), "{}", failed[0].failure.message);
    assert_eq!(file_of(&cluster.machines[0], blocks[0]), file);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_cannot_be_opened_for_want_of_descriptors_is_neither_fetched_nor_rewritten() {
    let (cluster, bucket) = three_nodes().await;
    let (content, blocks) = body(9, 1);
    store(cluster.garage(0), bucket, "a", content.clone()).await;
    until_everywhere(&cluster, blocks[0], &[0, 1, 2]).await;
    let (disk, syncs) = (&cluster.machines[1].disk, cluster.machines[1].disk.syncs());
    // Linux's EMFILE.
    disk.failing(Some((FailingCall::Open, 24)));
    assert_eq!(fetch(cluster.garage(1), bucket, "a").await.unwrap(), content, "the others have it");
    cluster.resync(1).await;
    let failed = cluster.garage(1).failed_blocks().await.unwrap();
    assert!(failed.len() == 1 && failed[0].failure.message.contains("os error 24"), "{failed:?}");
    disk.failing(None);
    cluster.garage(1).retry_blocks(None).await.unwrap();
    cluster.resync(1).await;
    assert!(cluster.garage(1).failed_blocks().await.unwrap().is_empty());
    assert_eq!((cluster.garage(1).blocks_to_move().await.unwrap().moved.blocks, disk.syncs()), (0, syncs));
}

#[tokio::test(start_paused = true)]
async fn a_disk_unmounted_while_the_node_runs_loses_nothing_and_is_used_again_when_it_is_back() {
    let (cluster, bucket) = three_nodes().await;
    let (kept, blocks) = body(21, 2);
    store(cluster.garage(0), bucket, "kept", kept.clone()).await;
    let (deleted, released) = body(22, 1);
    store(cluster.garage(0), bucket, "a", deleted).await;
    for block in blocks.iter().chain(&released) {
        until_everywhere(&cluster, *block, &[0, 1, 2]).await;
    }
    delete(&cluster, bucket, "a").await;
    settle_queues(&cluster, &[0, 1, 2]).await;
    let (data, away) = (Path::new("/data"), Path::new("/away"));
    let disk = &cluster.machines[1].disk;
    disk.exchange(data, away);
    let files = disk.files();
    assert_eq!(fetch(cluster.garage(1), bucket, "kept").await.unwrap(), kept, "the others have it");
    assert_eq!(cluster.garage(1).blocks_to_move().await.unwrap().fetch, 0, "nothing is missing");
    let (stored, _blocks) = body(23, 2);
    store(cluster.garage(1), bucket, "new", stored.clone()).await;
    cluster.clock.advance_millis(HOUR_MS);
    cluster.resync(1).await;
    let failed = cluster.garage(1).failed_blocks().await.unwrap();
    let released_is_listed = failed.iter().any(|failed| failed.block == released[0]);
    assert!(released_is_listed && failed[0].failure.message.contains("not the directory that was opened"), "{failed:?}");
    assert!(cluster.garage(1).reference_count(released[0]).await.unwrap().is_some(), "it is not forgotten");
    assert_eq!(disk.files(), files);
    disk.exchange(data, away);
    cluster.garage(1).retry_blocks(None).await.unwrap();
    cluster.resync(1).await;
    assert!(cluster.garage(1).failed_blocks().await.unwrap().is_empty());
    assert!(cluster.garage(1).reference_count(released[0]).await.unwrap().is_none(), "its file is deleted");
    for block in &blocks {
        cluster.garage(1).local().blocks.blocks.verify(*block).await.unwrap();
    }
    assert_eq!(fetch(cluster.garage(1), bucket, "new").await.unwrap(), stored);
}

#[tokio::test(start_paused = true)]
async fn a_write_without_its_only_directory_fails_as_one_that_may_be_repeated() {
    let cluster = Cluster::of(1, 1).await;
    cluster.lay_out(&[0]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    cluster.machines[0].disk.exchange(Path::new("/data"), Path::new("/away"));
    let (content, _blocks) = body(24, 1);
    let refused = try_store(cluster.garage(0), bucket, "a", content).await.unwrap_err();
    assert!(matches!(refused, ModelError::BlockNotStored { .. }) && !refused.is_full(), "{refused:?}");
}

/// A node hands a block over to one that has a file of it from earlier: on a bad sector, or (`failing`) on a disk that is out of order for a
/// while. Whether the new owner has a good copy once the other has let go.
async fn is_handed_over(failing: Option<(FailingCall, i32)>, bug: Option<Bug>) -> bool {
    let cluster = Cluster::of(2, 1).await;
    cluster.lay_out(&[0]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let (content, blocks) = body(10, 1);
    store(cluster.garage(0), bucket, "a", content).await;
    let stored = cluster.garage(0).local().blocks.blocks.read_stored(blocks[0]).await.unwrap();
    let new_owner = &cluster.garage(1).local().blocks.blocks;
    new_owner.write(blocks[0], stored).await.unwrap();
    cluster.lay_out(&[1]).await;
    cluster.copy_references(0, 1).await;
    cluster.finish_layout_change().await;
    cluster.garage(0).queue_misplaced_blocks().await.unwrap();
    let disk = &cluster.machines[1].disk;
    match failing {
        None => disk.spoil(&file_of(&cluster.machines[1], blocks[0])),
        failing => disk.failing(failing),
    }
    plant(bug);
    cluster.clock.advance_millis(SPREAD_MS);
    cluster.resync(0).await;
    if failing.is_some() {
        assert_eq!(cluster.holders(blocks[0]).await, [0, 1], "the new owner cannot say whether it has the block");
        disk.failing(None);
        cluster.clock.advance_millis(HOUR_MS);
        cluster.resync(0).await;
    }
    plant(None);
    assert_eq!(cluster.holders(blocks[0]).await, [1]);
    new_owner.verify(blocks[0]).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn the_last_copy_that_can_be_read_is_kept_until_its_new_owner_has_read_its_own() {
    assert!(is_handed_over(None, None).await);
    // Linux's ENOMEM.
    assert!(is_handed_over(Some((FailingCall::Read, 12)), None).await);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_says_that_it_has_what_it_has_not_read_is_noticed() {
    assert!(!is_handed_over(None, Some(Bug::HasItUnread)).await);
}

#[tokio::test(start_paused = true)]
async fn of_a_block_no_more_than_the_part_that_is_wanted_is_sent() {
    let cluster = Cluster::of(2, 2).await;
    cluster.lay_out(&[0, 1]).await;
    let bucket = cluster.garage(0).create_bucket("pictures").await.unwrap();
    let (content, blocks) = body(11, 1);
    store(cluster.garage(0), bucket, "a", content).await;
    until_everywhere(&cluster, blocks[0], &[0, 1]).await;
    for machine in 0..2 {
        cluster.garage(machine).local().blocks.blocks.remove(blocks[0]).await.unwrap();
    }
    // Who receives the whole notices by its hash that it is another; who receives a part cannot, and relies on the sender's checksums.
    let other = body(12, 1).0;
    let another = StoredBlock::compress(other.clone().into(), Compression::Off).unwrap();
    cluster.garage(0).local().blocks.blocks.write(blocks[0], another).await.unwrap();
    let garage = cluster.garage(1);
    let object = garage.object(bucket, &ObjectKey::parse("a").unwrap()).await.unwrap();
    let mut part = garage.read_object(&object, 5..9).await.unwrap();
    assert_eq!(part.next().await.unwrap().unwrap(), other[5..9]);
    assert!(matches!(garage.read_object(&object, 0..64).await.map(|_stream| ()), Err(ModelError::BlockUnavailable { .. })));
}
