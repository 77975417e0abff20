//! Judgements, and the ballast on a simulated disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use garage_db::{Db, DbError, MemoryEngine, Relief, Relieved};
use garage_types::disk::{Access, create_directories};
use garage_types::memory_disk::MemoryDisk;
use garage_types::offload::Inline;
use garage_types::{Disk, Room};

use super::{Ballast, Facts, Judgement, Limits, Watched, judge, reserve};

const LIMITS: Limits = Limits { reserve: 100, ballast: 10 };

fn facts(metadata: u64) -> Facts {
    Facts { metadata, reusable: 0, ballast: true, data: vec![(1000, 100)] }
}

#[test]
fn what_grows_is_refused_below_the_reserve_only() {
    let plenty = Judgement { metadata_scarce: false, data_free: 900, make_ballast: false, near: false };
    assert_eq!(judge(&facts(1000), LIMITS), plenty);
    assert_eq!(judge(&facts(100), LIMITS), Judgement { near: true, ..plenty });
    assert_eq!(judge(&facts(99), LIMITS), Judgement { near: true, metadata_scarce: true, ..plenty });
    let reusing = Facts { reusable: 1, ..facts(99) };
    assert!(!judge(&reusing, LIMITS).metadata_scarce, "the database will not grow yet");
    let data = |data: [(u64, u64); 2]| judge(&Facts { data: data.into(), ..facts(1000) }, LIMITS).data_free;
    assert_eq!((data([(99, 100), (103, 100)]), data([(99, 100), (0, 100)])), (3, 0));
}

#[test]
fn ballast_is_made_again_when_the_reserve_is_left_after_it() {
    let without = |metadata| judge(&Facts { ballast: false, ..facts(metadata) }, LIMITS);
    assert!(without(109).metadata_scarce && !without(109).make_ballast);
    assert!(!without(110).metadata_scarce && without(110).make_ballast);
    let reusing = judge(&Facts { ballast: false, reusable: 110, ..facts(0) }, LIMITS);
    assert!(!reusing.metadata_scarce && !reusing.make_ballast, "what the database reuses is no room for a file");
}

#[test]
fn small_disks_keep_a_share() {
    assert_eq!(reserve(64 << 20), 4 << 20);
    assert_eq!(reserve(1 << 40), 64 << 20);
}

/// A disk of 1600 bytes: 100 of reserve and of ballast.
fn watched() -> (MemoryDisk, MemoryEngine, Watched) {
    let disk = MemoryDisk::new();
    disk.set_capacity(Some(1600));
    create_directories(&disk, Path::new("/m")).unwrap();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let ballast = Arc::new(Ballast::of(shared.clone(), Path::new("/m"), Room::default()).unwrap());
    let memory = MemoryEngine::new();
    let db = Db::open_memory(memory.clone()).unwrap().with_relief(ballast.clone(), ballast.room.clone()).unwrap();
    let watched = Watched { db, ballast, data: vec![PathBuf::from("/m")], disk: shared, offload: Arc::new(Inline) };
    (disk, memory, watched)
}

#[tokio::test]
async fn ballast_goes_when_a_commit_needs_it_and_returns_with_the_room() {
    let (disk, memory, watched) = watched();
    let tree = watched.db.open_tree("rows").unwrap();
    watched.look().await.unwrap();
    assert_eq!(disk.read(Path::new("/m/ballast")).unwrap().len(), 100);
    assert!(!watched.db.room().is_metadata_scarce());

    disk.create(Path::new("/m/other"), &[&[0; 1500]], Access::Everyone).unwrap();
    memory.fail_next_commits(1);
    watched.db.write::<_, DbError>(move |tx| tx.insert(tree, b"key", b"")).await.unwrap();
    assert!(disk.read(Path::new("/m/ballast")).is_err(), "given up for the commit");
    watched.look().await.unwrap();
    assert!(watched.db.room().is_metadata_scarce());
    assert!(disk.read(Path::new("/m/ballast")).is_err(), "no room yet");
    memory.fail_next_commits(1);
    let refused = watched.db.write::<_, DbError>(move |tx| tx.insert(tree, b"key", b"")).await;
    assert!(refused.unwrap_err().is_full());

    disk.remove_file(Path::new("/m/other")).unwrap();
    watched.look().await.unwrap();
    assert!(!watched.db.room().is_metadata_scarce());
    assert_eq!(disk.read(Path::new("/m/ballast")).unwrap().len(), 100);
}

#[tokio::test]
async fn half_written_ballast_is_made_anew() {
    let (disk, _memory, watched) = watched();
    disk.create(Path::new("/m/ballast"), &[&[0; 40]], Access::OwnerOnly).unwrap();
    watched.look().await.unwrap();
    assert_eq!(disk.read(Path::new("/m/ballast")).unwrap().len(), 100);
}

#[test]
fn start_on_a_full_disk_gives_the_ballast_up() {
    let disk = MemoryDisk::new();
    create_directories(&disk, Path::new("/m")).unwrap();
    disk.set_capacity(Some(1 << 20));
    let ballast = Ballast::of(Arc::new(disk.clone()), Path::new("/m"), Room::default()).unwrap();
    ballast.make().unwrap();
    ballast.make_way_for_start().unwrap();
    assert!(disk.read(Path::new("/m/ballast")).is_err());
    assert_eq!(ballast.give(), Relieved::No, "there is but one");
}
