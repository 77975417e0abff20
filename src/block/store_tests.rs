//! The store on a disk in memory that can lose power, rot, fill up and fail.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use garage_types::codec::DecodeError;
use garage_types::disk::{Access, DirectoryEntry, Disk, DiskFile, DiskSpace, FileIdentity, FileKind};
use garage_types::memory_disk::{FailingCall, MemoryDisk};
use garage_types::offload::Inline;
use garage_types::random::SeededRandom;
use garage_types::{BlockHash, NodeId, Random};
use proptest::prelude::{any, prop_assert_eq, proptest};

use crate::directories::{DataDirectory, Usage};
use crate::{
    BlockError, Compression, Durability, Examined, Exchanged, Forgotten, LocalStore, OpenError, Relocated, Removed, StoreOptions,
    StoredBlock, Written,
};

const NODE: NodeId = NodeId::from_bytes([9; 32]);
const ZSTD: Compression = Compression::Zstd { level: 1 };
const FIRST: BlockHash = BlockHash::from_bytes([0; 32]);

fn options(directories: Vec<DataDirectory>) -> StoreOptions {
    StoreOptions {
        node: NODE,
        metadata_dir: "/meta".into(),
        directories,
        durability: Durability::Synced,
        reserve_bytes: 0,
        reads_in_flight_max: 4,
        writes_in_flight_max: 4,
    }
}

fn writable(path: &str) -> DataDirectory {
    DataDirectory { path: path.into(), usage: Usage::Writable { capacity: 1 } }
}

fn new_disk() -> MemoryDisk {
    let disk = MemoryDisk::new();
    garage_types::disk::create_directories(&disk, Path::new("/meta")).unwrap();
    disk
}

async fn open(disk: &MemoryDisk, options: StoreOptions) -> Result<LocalStore, OpenError> {
    LocalStore::open(Arc::new(disk.clone()), Arc::new(Inline), options).await
}

async fn open_one(disk: &MemoryDisk) -> LocalStore {
    open(disk, options(vec![writable("/a")])).await.unwrap()
}

fn noise(seed: u64, len: usize) -> Bytes {
    let mut plain = vec![0; len];
    SeededRandom::new(seed).fill(&mut plain);
    plain.into()
}

fn raw(plain: &Bytes) -> (BlockHash, StoredBlock) {
    (BlockHash::of(plain), StoredBlock::compress(plain.clone(), Compression::Off).unwrap())
}

fn path_in(directory: &str, hash: BlockHash) -> PathBuf {
    let hex = hash.to_string();
    Path::new(directory).join(&hex[..2]).join(&hex[2..4]).join(&hex)
}

/// A memory disk that fails every call after the first few: the moment at which the power goes.
struct Failing {
    disk: MemoryDisk,
    left: AtomicU64,
}

impl Failing {
    fn step(&self) -> io::Result<()> {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        before.map(drop).map_err(|_| io::Error::other("the power is gone"))
    }
}

impl Disk for Failing {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.step().and_then(|()| self.disk.read(path))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.step().and_then(|()| self.disk.open(path))
    }
    fn create(&self, path: &Path, parts: &[&[u8]], access: Access) -> io::Result<()> {
        self.step().and_then(|()| self.disk.create(path, parts, access))
    }
    fn sync_file(&self, path: &Path) -> io::Result<()> {
        self.step().and_then(|()| self.disk.sync_file(path))
    }
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step().and_then(|()| self.disk.sync_directory(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step().and_then(|()| self.disk.rename(from, to))
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step().and_then(|()| self.disk.remove_file(path))
    }
    fn create_directory(&self, path: &Path) -> io::Result<bool> {
        self.step().and_then(|()| self.disk.create_directory(path))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
        self.step().and_then(|()| self.disk.list(path))
    }
    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        self.step().and_then(|()| self.disk.kind(path))
    }
    fn identity(&self, path: &Path) -> io::Result<FileIdentity> {
        self.step().and_then(|()| self.disk.identity(path))
    }
    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        self.step().and_then(|()| self.disk.space(path))
    }
}

/// Writes blocks (two of the same first byte) until the power goes after `steps` calls, or is cut right after the last acknowledgement;
/// what is there after a restart is whole, and what was acknowledged is there. Tells whether everything was acknowledged.
async fn survives_power_cut_after(steps: u64, durability: Durability) -> bool {
    let disk = new_disk();
    let options = StoreOptions { durability, ..options(vec![writable("/a")]) };
    open(&disk, options.clone()).await.unwrap();
    let failing = Failing { disk: disk.clone(), left: AtomicU64::new(u64::MAX) };
    let failing = Arc::new(failing);
    let store = LocalStore::open(failing.clone(), Arc::new(Inline), options.clone()).await.unwrap();
    failing.left.store(steps, Ordering::SeqCst);
    let blocks: Vec<Bytes> = (0..3).map(|seed| noise(seed, 70_000)).chain([noise(0, 70_000)]).collect();
    let mut acknowledged = Vec::new();
    for plain in &blocks {
        let (hash, block) = raw(plain);
        acknowledged.extend(store.write(hash, block).await.ok().map(|_| hash));
    }
    disk.crash();
    let store = open(&disk, options).await.unwrap();
    for plain in &blocks {
        let hash = BlockHash::of(plain);
        match (store.read(hash).await, durability) {
            (Ok(content), _) => assert_eq!(content, plain, "after {steps} steps"),
            (Err(BlockError::Missing { .. }), Durability::Synced) => {
                assert!(!acknowledged.contains(&hash), "lost after {steps} steps");
            }
            (Err(BlockError::Missing { .. } | BlockError::Corrupt { .. }), Durability::Unsynced) => {}
            (Err(error), _) => panic!("after {steps} steps: {error:?}"),
        }
        // And the store can go on from there.
        let (hash, block) = raw(plain);
        store.write(hash, block).await.unwrap();
        assert_eq!(store.read(hash).await.unwrap(), plain);
    }
    acknowledged.len() == blocks.len()
}

#[tokio::test]
async fn wherever_the_power_goes_blocks_are_whole_and_acknowledged_ones_are_there() {
    for durability in [Durability::Synced, Durability::Unsynced] {
        let mut steps = 0;
        while !survives_power_cut_after(steps, durability).await {
            steps += 1;
        }
        assert!(steps > 10, "{steps} steps are too few for a write");
    }
}

#[tokio::test]
async fn a_block_left_unsynced_by_a_killed_process_is_made_durable_by_the_next_write() {
    let disk = new_disk();
    let (hash, block) = raw(&noise(1, 1000));
    let unsynced = StoreOptions { durability: Durability::Unsynced, ..options(vec![writable("/a")]) };
    open(&disk, unsynced).await.unwrap().write(hash, block.clone()).await.unwrap();
    let store = open_one(&disk).await;
    assert_eq!(store.write(hash, block).await.unwrap(), Written::AlreadyPresent);
    disk.crash();
    assert_eq!(open_one(&disk).await.read(hash).await.unwrap(), noise(1, 1000));
}

#[tokio::test]
async fn a_write_in_known_directories_costs_two_syncs() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let (hash, block) = raw(&noise(1, 1000));
    store.write(hash, block.clone()).await.unwrap();
    store.remove(hash).await.unwrap();
    let before = disk.syncs();
    store.write(hash, block).await.unwrap();
    assert_eq!(disk.syncs() - before, 2, "the file and its directory");
}

#[tokio::test]
async fn blocks_are_written_read_and_removed() {
    let store = open_one(&new_disk()).await;
    let plain = Bytes::from(vec![b'x'; 200_000]);
    let hash = BlockHash::of(&plain);
    assert!(matches!(store.read(hash).await, Err(BlockError::Missing { .. })));
    let block = StoredBlock::compress(plain.clone(), ZSTD).unwrap();
    assert_eq!(store.write(hash, block.clone()).await.unwrap(), Written::New);
    assert_eq!(store.write(hash, block.clone()).await.unwrap(), Written::AlreadyPresent);
    assert_eq!(store.read(hash).await.unwrap(), plain);
    assert_eq!(store.read_stored(hash).await.unwrap(), block);
    assert_eq!(store.read_range(hash, 5..199_999).await.unwrap(), plain.slice(5..199_999));
    store.verify(hash).await.unwrap();
    assert!(store.contains(hash).await.unwrap());
    assert_eq!(store.remove(hash).await.unwrap(), Removed::Yes);
    assert_eq!(store.remove(hash).await.unwrap(), Removed::WasAbsent);
    assert!(!store.contains(hash).await.unwrap());
}

#[tokio::test]
async fn a_rotten_block_is_set_aside_and_can_be_written_again() {
    for byte in [0, 20, 60, 5000, 65_700, 70_000] {
        let disk = new_disk();
        let store = open_one(&disk).await;
        let (hash, block) = raw(&noise(1, 70_000));
        store.write(hash, block.clone()).await.unwrap();
        disk.flip_bit(&path_in("/a", hash), byte);
        assert!(matches!(store.read(hash).await, Err(BlockError::Corrupt { .. })), "byte {byte}");
        assert!(matches!(store.read(hash).await, Err(BlockError::Missing { .. })));
        let aside = PathBuf::from(format!("{}.corrupted", path_in("/a", hash).display()));
        assert!(disk.files().contains(&aside));
        assert_eq!(store.page(FIRST, 10).await.unwrap().hashes, []);
        assert_eq!(store.write(hash, block).await.unwrap(), Written::New);
        assert_eq!(store.read(hash).await.unwrap(), noise(1, 70_000));
        store.remove(hash).await.unwrap();
        assert!(!disk.files().contains(&aside), "it goes with the block");
    }
}

#[tokio::test]
async fn a_write_replaces_a_rotten_copy() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let (hash, block) = raw(&noise(1, 1000));
    store.write(hash, block.clone()).await.unwrap();
    disk.flip_bit(&path_in("/a", hash), 500);
    assert_eq!(store.write(hash, block).await.unwrap(), Written::New);
    assert_eq!(store.read(hash).await.unwrap(), noise(1, 1000));
}

/// Linux's EIO, ENOMEM, EACCES and EMFILE.
const ERRNOS: [i32; 4] = [5, 12, 13, 24];

#[tokio::test]
async fn a_copy_that_cannot_be_read_is_not_damaged() {
    for errno in ERRNOS {
        for call in FailingCall::ALL {
            let disk = new_disk();
            let store = open_one(&disk).await;
            let plain = noise(1, 1000);
            let (hash, block) = raw(&plain);
            store.write(hash, block.clone()).await.unwrap();
            disk.failing(Some((call, errno)));
            // Whatever these answer, the copy is what it was.
            drop(store.write(hash, block.clone()).await);
            drop(store.read(hash).await);
            drop(store.verify(hash).await);
            let locked = store.lock(hash).await;
            drop(locked.relocate().await);
            drop(locked);
            disk.failing(None);
            assert_eq!(store.read(hash).await.unwrap(), plain, "{call:?} answered {errno}");
            let corrupted = |path: &PathBuf| path.to_string_lossy().ends_with(".corrupted");
            assert!(!disk.files().iter().any(corrupted), "{call:?} answered {errno}");
            store.write(hash, block).await.unwrap();
            disk.crash();
            assert_eq!(disk.read(&path_in("/a", hash)).unwrap().len(), 1056, "{call:?} answered {errno}");
        }
    }
}

#[tokio::test]
async fn a_file_on_a_bad_sector_is_no_copy_and_stays_until_another_takes_its_place() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let plain = noise(1, 1000);
    let (hash, block) = raw(&plain);
    store.write(hash, block.clone()).await.unwrap();
    assert!(matches!(store.lock(hash).await.examine().await, Ok(Examined::Good)));
    disk.failing(Some((FailingCall::Open, 24)));
    let examined = store.lock(hash).await.examine().await;
    assert!(matches!(examined, Err(BlockError::Io { .. })), "no descriptor says nothing about the file: {examined:?}");
    disk.failing(None);
    disk.spoil(&path_in("/a", hash));
    assert!(matches!(store.read(hash).await, Err(BlockError::Io { .. })));
    assert!(matches!(store.lock(hash).await.examine().await, Ok(Examined::Unreadable(_))));
    assert_eq!(disk.files().iter().filter(|path| path.ends_with(hash.to_string())).count(), 1, "nothing was done to it");
    assert_eq!(store.write(hash, block).await.unwrap(), Written::New);
    assert!(matches!(store.lock(hash).await.examine().await, Ok(Examined::Good)));
    assert_eq!(store.read(hash).await.unwrap(), plain);
}

#[tokio::test]
async fn a_damaged_copy_that_cannot_be_set_aside_lets_another_directory_answer() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let plain = noise(1, 1000);
    let (hash, block) = raw(&plain);
    store.write(hash, block).await.unwrap();
    drop(store);
    let old = DataDirectory { path: "/a".into(), usage: Usage::ReadOnly };
    let store = open(&disk, options(vec![old, writable("/b")])).await.unwrap();
    // The same copy in both directories.
    let content = disk.read(&path_in("/a", hash)).unwrap();
    store.lock(hash).await.relocate().await.unwrap();
    disk.create(&path_in("/a", hash), &[&content], Access::OwnerOnly).unwrap();
    disk.flip_bit(&path_in("/b", hash), 500);
    // Linux's EROFS.
    disk.failing(Some((FailingCall::Rename, 30)));
    assert_eq!(store.read(hash).await.unwrap(), plain);
    assert_eq!(store.read_range(hash, 1..9).await.unwrap(), plain.slice(1..9));
    store.verify(hash).await.unwrap();
    disk.flip_bit(&path_in("/a", hash), 500);
    let error = store.read(hash).await.unwrap_err();
    assert!(matches!(error, BlockError::Io { .. }), "no copy is good, and none could be set aside: {error:?}");
}

#[tokio::test]
async fn a_new_copy_takes_the_place_of_one_that_cannot_be_opened() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let (hash, block) = raw(&noise(1, 1000));
    store.write(hash, block.clone()).await.unwrap();
    disk.failing(Some((FailingCall::Open, 5)));
    assert_eq!(store.write(hash, block).await.unwrap(), Written::New);
    disk.failing(None);
    disk.crash();
    assert_eq!(store.read(hash).await.unwrap(), noise(1, 1000));
}

#[tokio::test]
async fn verification_notices_content_that_is_not_that_of_the_hash() {
    let store = open_one(&new_disk()).await;
    let wrong = BlockHash::from_bytes([5; 32]);
    store.write(wrong, raw(&noise(1, 1000)).1).await.unwrap();
    assert!(store.read(wrong).await.is_ok(), "checksums cannot tell");
    assert!(matches!(store.verify(wrong).await, Err(BlockError::Corrupt { .. })));
    assert!(!store.contains(wrong).await.unwrap());
}

#[tokio::test]
async fn a_range_of_a_raw_block_needs_only_its_chunks() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let plain = noise(1, 300_000);
    let (hash, block) = raw(&plain);
    store.write(hash, block).await.unwrap();
    disk.flip_bit(&path_in("/a", hash), 290_000);
    assert_eq!(store.read_range(hash, 10..200_000).await.unwrap(), plain.slice(10..200_000));
    assert!(matches!(store.read_range(hash, 0..300_000).await, Err(BlockError::Corrupt { .. })));
}

#[tokio::test]
async fn a_range_beyond_the_block_is_refused() {
    let store = open_one(&new_disk()).await;
    let (hash, block) = raw(&noise(1, 1000));
    store.write(hash, block).await.unwrap();
    for range in [0..1001, 1001..1001, 5..u64::MAX] {
        let refused = store.read_range(hash, range).await;
        assert!(matches!(refused, Err(BlockError::OutOfRange { plain_len: 1000, .. })), "{refused:?}");
    }
    assert_eq!(store.read_range(hash, 1000..1000).await.unwrap(), Bytes::new());
    assert!(store.contains(hash).await.unwrap(), "nothing was wrong with it");
}

#[tokio::test]
async fn a_block_in_a_newer_format_is_left_alone() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let (hash, block) = raw(&noise(1, 1000));
    store.write(hash, block.clone()).await.unwrap();
    let path = path_in("/a", hash);
    let mut content = disk.read(&path).unwrap();
    (content[4], content[5]) = (2, !2);
    disk.remove_file(&path).unwrap();
    disk.create(&path, &[&content], Access::OwnerOnly).unwrap();
    assert!(matches!(store.read(hash).await, Err(BlockError::NewerFormat { version: 2, .. })));
    assert!(matches!(store.write(hash, block).await, Err(BlockError::NewerFormat { .. })));
    assert_eq!(disk.read(&path).unwrap(), content);
}

#[tokio::test]
async fn below_the_reserve_writes_are_refused_and_reads_go_on() {
    let disk = new_disk();
    disk.set_capacity(Some(100_000));
    let store = open(&disk, StoreOptions { reserve_bytes: 50_000, ..options(vec![writable("/a")]) }).await.unwrap();
    let (hash, block) = raw(&noise(1, 20_000));
    store.write(hash, block.clone()).await.unwrap();
    let (other, large) = raw(&noise(2, 30_000));
    assert!(matches!(store.check_space(other, 30_000).await, Err(BlockError::Full { source: None, .. })));
    assert!(matches!(store.write(other, large).await, Err(BlockError::Full { source: None, .. })));
    assert_eq!(store.read(hash).await.unwrap(), noise(1, 20_000));
    assert_eq!(store.write(hash, block).await.unwrap(), Written::AlreadyPresent, "it needs no room");
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_write_keeps_no_part_of_it() {
    let disk = new_disk();
    // The disk in memory says how much is free; here the file system has less than it said.
    struct Boaster(MemoryDisk);
    let store = {
        impl Disk for Boaster {
            fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
                Ok(DiskSpace { total: u64::MAX, available: u64::MAX })
            }
            fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
                self.0.read(path)
            }
            fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
                self.0.open(path)
            }
            fn create(&self, path: &Path, parts: &[&[u8]], access: Access) -> io::Result<()> {
                self.0.create(path, parts, access)
            }
            fn sync_file(&self, path: &Path) -> io::Result<()> {
                self.0.sync_file(path)
            }
            fn sync_directory(&self, path: &Path) -> io::Result<()> {
                self.0.sync_directory(path)
            }
            fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
                self.0.rename(from, to)
            }
            fn remove_file(&self, path: &Path) -> io::Result<()> {
                self.0.remove_file(path)
            }
            fn create_directory(&self, path: &Path) -> io::Result<bool> {
                self.0.create_directory(path)
            }
            fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
                self.0.list(path)
            }
            fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
                self.0.kind(path)
            }
            fn identity(&self, path: &Path) -> io::Result<FileIdentity> {
                self.0.identity(path)
            }
        }
        let disk = Arc::new(Boaster(disk.clone()));
        LocalStore::open(disk, Arc::new(Inline), options(vec![writable("/a")])).await.unwrap()
    };
    let before = disk.files();
    disk.set_capacity(Some(20_000));
    let (hash, block) = raw(&noise(1, 30_000));
    assert!(matches!(store.write(hash, block).await, Err(BlockError::Full { source: Some(_), .. })));
    assert_eq!(disk.files(), before);
}

#[tokio::test]
async fn left_over_temporary_files_are_removed_at_start() {
    let disk = new_disk();
    open_one(&disk).await;
    disk.create(Path::new("/a/tmp/left"), &[b"over"], Access::OwnerOnly).unwrap();
    open_one(&disk).await;
    assert!(!disk.files().contains(&PathBuf::from("/a/tmp/left")));
}

#[tokio::test]
async fn an_unmounted_disk_is_an_error_and_not_a_first_start() {
    let disk = new_disk();
    open(&disk, options(vec![writable("/a"), writable("/b")])).await.unwrap();
    disk.remove_file(Path::new("/b/garage-marker")).unwrap();
    let missing = open(&disk, options(vec![writable("/a"), writable("/b")])).await;
    assert!(matches!(missing, Err(OpenError::MarkerMissing { path, .. }) if path == Path::new("/b")));
    let files = disk.files();
    assert!(!files.contains(&PathBuf::from("/b/garage-marker")), "nothing was changed");
    // The way out that the message offers.
    disk.create(Path::new("/b/garage-marker"), &[NODE.to_string().as_bytes()], Access::Everyone).unwrap();
    assert!(
        !open(&disk, options(vec![writable("/a"), writable("/b")])).await.unwrap().lacks_blocks(),
        "it was mounted after all"
    );
    // The same on an empty disk.
    let empty = new_disk();
    for directory in ["/a", "/b"] {
        empty.create_directory(Path::new(directory)).unwrap();
    }
    for path in ["/meta/data_layout", "/a/garage-marker", "/b/garage-marker"] {
        empty.create(Path::new(path), &[&disk.read(Path::new(path)).unwrap()], Access::Everyone).unwrap();
    }
    assert!(open(&empty, options(vec![writable("/a"), writable("/b")])).await.unwrap().lacks_blocks());
    assert!(!open(&empty, options(vec![writable("/a"), writable("/b")])).await.unwrap().lacks_blocks());
}

#[tokio::test]
async fn blocks_are_missed_where_a_directory_in_use_is_made_anew_or_left_out() {
    let disk = new_disk();
    let opened = async |directories| open(&disk, options(directories)).await.unwrap().lacks_blocks();
    assert!(!opened(vec![writable("/a")]).await, "a first start");
    assert!(!opened(vec![writable("/a"), writable("/b")]).await, "one more");
    assert!(!opened(vec![writable("/a"), writable("/b")]).await);
    assert!(opened(vec![writable("/a")]).await, "one less");
    assert!(!opened(vec![writable("/a")]).await, "that was noticed before");
}

#[tokio::test]
async fn the_disk_of_another_node_is_refused() {
    let disk = new_disk();
    open_one(&disk).await;
    let node = NodeId::from_bytes([8; 32]);
    let other = open(&disk, StoreOptions { node, ..options(vec![writable("/a")]) }).await;
    let Err(error @ OpenError::OtherNode { owner: NODE, .. }) = other else { panic!() };
    assert!(error.to_string().contains("node_key") && error.to_string().contains("garage-marker"), "{error}");
}

#[tokio::test]
async fn a_damaged_layout_file_is_an_error() {
    let disk = new_disk();
    open_one(&disk).await;
    disk.flip_bit(Path::new("/meta/data_layout"), 0);
    let damaged = open(&disk, options(vec![writable("/a")])).await;
    assert!(matches!(damaged, Err(OpenError::Layout { source: DecodeError::Tag { .. }, .. })));
}

#[tokio::test]
async fn blocks_are_found_after_the_directories_changed_and_move_one_by_one() {
    let disk = new_disk();
    let blocks: Vec<Bytes> = (0..60).map(|seed| noise(seed, 100)).collect();
    let store = open_one(&disk).await;
    for plain in &blocks {
        let (hash, block) = raw(plain);
        store.write(hash, block).await.unwrap();
    }
    let read_only = DataDirectory { path: "/a".into(), usage: Usage::ReadOnly };
    let store = open(&disk, options(vec![read_only, writable("/b")])).await.unwrap();
    for (index, plain) in blocks.iter().enumerate() {
        let (hash, block) = raw(plain);
        assert_eq!(store.read(hash).await.unwrap(), plain);
        match index % 3 {
            0 => assert_eq!(store.write(hash, block).await.unwrap(), Written::AlreadyPresent),
            1 => assert_eq!(store.remove(hash).await.unwrap(), Removed::Yes),
            _ => assert_eq!(store.lock(hash).await.relocate().await.unwrap(), Relocated::Moved),
        }
        assert!(!disk.files().contains(&path_in("/a", hash)));
        assert_eq!(disk.files().contains(&path_in("/b", hash)), index % 3 != 1);
    }
    assert_eq!(store.forget_secondaries(store.stood_in()).await.unwrap(), Forgotten::All);
    disk.crash();
    let store = open(&disk, options(vec![writable("/b")])).await.unwrap();
    for plain in blocks.iter().step_by(3) {
        assert_eq!(store.read(BlockHash::of(plain)).await.unwrap(), plain);
    }
}

#[tokio::test]
async fn a_good_copy_elsewhere_answers_for_a_rotten_one() {
    let disk = new_disk();
    let (hash, block) = raw(&noise(1, 1000));
    open(&disk, options(vec![writable("/b")])).await.unwrap().write(hash, block).await.unwrap();
    let read_only = DataDirectory { path: "/b".into(), usage: Usage::ReadOnly };
    let store = open(&disk, options(vec![writable("/a"), read_only])).await.unwrap();
    let damaged = path_in("/a", hash);
    garage_types::disk::create_directories(&disk, damaged.parent().unwrap()).unwrap();
    disk.create(&damaged, &[b"not a block"], Access::OwnerOnly).unwrap();
    assert_eq!(store.read(hash).await.unwrap(), noise(1, 1000));
    assert!(!disk.files().contains(&damaged), "it is set aside all the same");
    assert_eq!(store.lock(hash).await.relocate().await.unwrap(), Relocated::Moved);
    assert_eq!(store.read(hash).await.unwrap(), noise(1, 1000));
}

#[tokio::test]
async fn a_full_primary_directory_leaves_the_copy_where_it_is() {
    let disk = new_disk();
    let (hash, block) = raw(&noise(1, 1000));
    open_one(&disk).await.write(hash, block.clone()).await.unwrap();
    let read_only = DataDirectory { path: "/a".into(), usage: Usage::ReadOnly };
    let options = StoreOptions { reserve_bytes: u64::MAX, ..options(vec![read_only, writable("/b")]) };
    let store = open(&disk, options).await.unwrap();
    assert_eq!(store.write(hash, block).await.unwrap(), Written::AlreadyPresent);
    assert_eq!(store.read(hash).await.unwrap(), noise(1, 1000));
    assert!(matches!(store.lock(hash).await.relocate().await, Err(BlockError::Full { .. })));
}

/// A directory of another node, with one block.
async fn foreign(disk: &MemoryDisk, path: &str, plain: &Bytes) -> BlockHash {
    garage_types::disk::create_directories(disk, Path::new("/other")).unwrap();
    let other =
        StoreOptions { node: NodeId::from_bytes([8; 32]), metadata_dir: "/other".into(), ..options(vec![writable(path)]) };
    let (hash, block) = raw(plain);
    open(disk, other).await.unwrap().write(hash, block).await.unwrap();
    hash
}

fn is_exchanged<T>(answer: Result<T, BlockError>) -> bool {
    matches!(answer, Err(BlockError::Exchanged(Exchanged { path })) if path == Path::new("/a"))
}

#[tokio::test]
async fn in_an_exchanged_directory_nothing_is_changed_believed_or_missed() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let (own, block) = raw(&noise(1, 1000));
    store.write(own, block.clone()).await.unwrap();
    let other = foreign(&disk, "/b", &noise(2, 1000)).await;
    disk.flip_bit(&path_in("/b", other), 500);
    // Another node's directory, and the bare mount point.
    for place in ["/b", "/empty"] {
        disk.exchange(Path::new("/a"), Path::new(place));
        let before = (disk.files(), disk.syncs());
        for hash in [own, other] {
            assert!(is_exchanged(store.read(hash).await), "{place}");
            assert!(is_exchanged(store.read_range(hash, 0..1000).await), "{place}");
            assert!(is_exchanged(store.verify(hash).await), "{place}");
            assert!(is_exchanged(store.contains(hash).await), "{place}");
            assert!(is_exchanged(store.lock(hash).await.examine().await), "{place}");
            assert!(is_exchanged(store.write(hash, block.clone()).await), "{place}");
            assert!(is_exchanged(store.remove(hash).await), "{place}");
            assert!(is_exchanged(store.lock(hash).await.relocate().await), "{place}");
        }
        assert!(is_exchanged(store.page(FIRST, 10).await), "{place}");
        assert_eq!(store.exchanged().await.unwrap(), [PathBuf::from("/a")]);
        assert_eq!((disk.files(), disk.syncs()), before, "{place}");
        disk.exchange(Path::new("/a"), Path::new(place));
        assert_eq!(store.exchanged().await.unwrap(), [] as [PathBuf; 0]);
        assert_eq!(store.read(own).await.unwrap(), noise(1, 1000));
        assert_eq!(store.write(own, block.clone()).await.unwrap(), Written::AlreadyPresent);
    }
    assert_eq!(store.remove(own).await.unwrap(), Removed::Yes);
}

#[tokio::test]
async fn a_good_copy_in_an_exchanged_directory_is_read_and_not_taken_for_a_copy_of_this_node() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let plain = noise(1, 1000);
    let hash = foreign(&disk, "/b", &plain).await;
    disk.exchange(Path::new("/a"), Path::new("/b"));
    assert_eq!(store.read(hash).await.unwrap(), plain);
    assert!(is_exchanged(store.verify(hash).await));
    assert!(is_exchanged(store.contains(hash).await));
    assert!(is_exchanged(store.write(hash, raw(&plain).1).await));
}

#[tokio::test]
async fn a_directory_mounted_again_is_used_again() {
    let disk = new_disk();
    let store = open_one(&disk).await;
    let (hash, block) = raw(&noise(1, 1000));
    let marker = Path::new("/a/garage-marker");
    disk.exchange(Path::new("/a"), Path::new("/away"));
    assert!(is_exchanged(store.write(hash, block.clone()).await));
    disk.create_directory(Path::new("/a")).unwrap();
    disk.create(marker, &[NODE.to_string().as_bytes()], Access::Everyone).unwrap();
    assert!(is_exchanged(store.write(hash, block.clone()).await), "only a restart knows what an empty disk lacks");
    disk.exchange(Path::new("/a"), Path::new("/away"));
    assert_eq!(store.write(hash, block).await.unwrap(), Written::New);
}

#[tokio::test]
async fn another_directory_stands_in_for_an_exchanged_one_until_blocks_are_moved_back() {
    let disk = new_disk();
    let directories =
        vec![writable("/a"), writable("/b"), writable("/c"), DataDirectory { path: "/d".into(), usage: Usage::ReadOnly }];
    let store = open(&disk, options(directories.clone())).await.unwrap();
    disk.exchange(Path::new("/a"), Path::new("/away"));
    let blocks: Vec<Bytes> = (0..60).map(|seed| noise(seed, 100)).collect();
    for plain in &blocks {
        let (hash, block) = raw(plain);
        assert_eq!(store.write(hash, block.clone()).await.unwrap(), Written::New);
        assert_eq!(store.write(hash, block).await.unwrap(), Written::AlreadyPresent);
        assert_eq!(store.read(hash).await.unwrap(), plain);
        store.verify(hash).await.unwrap();
    }
    let taken = store.stood_in();
    assert!(taken > 0);
    for place in ["/b", "/c"] {
        let in_place = |plain: &&Bytes| disk.files().contains(&path_in(place, BlockHash::of(plain)));
        assert!(blocks.iter().filter(in_place).count() >= 15, "they share them");
    }
    disk.exchange(Path::new("/a"), Path::new("/away"));
    assert_eq!(store.forget_secondaries(0).await.unwrap(), Forgotten::None, "the caller began before they were written");
    disk.crash();
    drop(store);
    let store = open(&disk, options(directories)).await.unwrap();
    let mut moved = 0;
    for plain in &blocks {
        assert_eq!(store.read(BlockHash::of(plain)).await.unwrap(), plain, "they are found after a restart");
        let locked = store.lock(BlockHash::of(plain)).await;
        moved += u64::from(locked.relocate().await.unwrap() == Relocated::Moved);
    }
    assert_eq!(2 * moved, taken, "each was written twice");
    assert_eq!(store.forget_secondaries(store.stood_in()).await.unwrap(), Forgotten::All);
    for plain in &blocks {
        assert_eq!(store.read(BlockHash::of(plain)).await.unwrap(), plain);
    }
}

#[tokio::test]
async fn a_write_that_finds_no_room_in_the_others_says_that_the_directory_is_exchanged() {
    let disk = new_disk();
    let reserved = StoreOptions { reserve_bytes: u64::MAX, ..options(vec![writable("/a"), writable("/b")]) };
    let store = open(&disk, reserved).await.unwrap();
    disk.exchange(Path::new("/a"), Path::new("/away"));
    let (mut exchanged, mut full) = (0, 0);
    for seed in 0..20 {
        let (hash, block) = raw(&noise(seed, 100));
        match store.write(hash, block).await {
            Err(BlockError::Exchanged(_)) => exchanged += 1,
            Err(BlockError::Full { .. }) => full += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(exchanged > 0 && full > 0);
}

#[tokio::test]
async fn pages_list_every_block_once_and_in_order() {
    let disk = new_disk();
    let store = open(&disk, options(vec![writable("/a"), writable("/b")])).await.unwrap();
    let mut all = Vec::new();
    for seed in 0..500 {
        let (hash, block) = raw(&noise(seed, 10));
        store.write(hash, block).await.unwrap();
        all.push(hash);
    }
    all.sort();
    for limit in [1, 7, 1000] {
        let (mut found, mut next) = (Vec::new(), Some(FIRST));
        while let Some(from) = next {
            let page = store.page(from, limit).await.unwrap();
            found.extend(page.hashes);
            next = page.next;
        }
        assert_eq!(found, all, "pages of {limit}");
    }
    let later = store.page(all[400], 1).await.unwrap();
    assert_eq!(later.hashes[0], all[400], "it goes on from any hash");
}

#[tokio::test]
async fn concurrent_writes_of_one_block_store_it_once() {
    let store = open_one(&new_disk()).await;
    let (hash, block) = raw(&noise(1, 1000));
    let written = join_all((0..10).map(|_| store.write(hash, block.clone()))).await;
    let new = written.into_iter().filter(|written| *written.as_ref().unwrap() == Written::New);
    assert_eq!(new.count(), 1);
}

#[tokio::test]
async fn who_holds_the_lock_excludes_writers_and_removers_but_not_readers() {
    let store = open_one(&new_disk()).await;
    let (hash, block) = raw(&noise(1, 1000));
    store.write(hash, block.clone()).await.unwrap();
    let locked = store.lock(hash).await;
    let mut write = Box::pin(store.write(hash, block.clone()));
    assert!((&mut write).now_or_never().is_none());
    assert!(store.remove(hash).now_or_never().is_none());
    assert!(store.read(hash).now_or_never().is_some());
    assert_eq!(locked.remove().await.unwrap(), Removed::Yes);
    drop(locked);
    assert_eq!(write.await.unwrap(), Written::New);
}

proptest! {
    #[test]
    fn every_range_is_that_of_the_content(len in 0..200_000_usize, a in any::<u64>(), b in any::<u64>(), compressible in any::<bool>()) {
        let plain = if compressible { Bytes::from_iter((0..len).map(|i| (i / 1000) as u8)) } else { noise(7, len) };
        let (a, b) = (a % (len as u64 + 1), b % (len as u64 + 1));
        let range = a.min(b)..a.max(b);
        let expected = plain.slice(range.start as usize..range.end as usize);
        let run = async {
            let store = open_one(&new_disk()).await;
            let hash = BlockHash::of(&plain);
            store.write(hash, StoredBlock::compress(plain.clone(), ZSTD).unwrap()).await.unwrap();
            store.read_range(hash, range).await.unwrap()
        };
        // On this disk nothing has to be waited for.
        prop_assert_eq!(run.now_or_never().unwrap(), expected);
    }
}
