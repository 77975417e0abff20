//! The blocks of this node, over all its data directories.
//!
//! What must stay true: what was acknowledged as written is on stable storage (unless that was configured away) and found wherever its
//! slice may be; what is read passed its checksums; a copy that does not is set aside, so that it is fetched again. Writing, removing
//! and setting aside one block exclude each other ([`LocalStore::lock`]); reading needs no lock.
//!
//! Work handed to the disk is finished even if its caller goes away, and keeps the block's lock until then.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use garage_types::disk::DiskSpace;
use garage_types::offload::{Offload, offload};
use garage_types::{BlockHash, Disk};
use tokio::sync::Semaphore;

use crate::directory::{BlockDirectory, Removed};
use crate::error::{BlockError, CopyError};
use crate::locks::{Guard, Locks};
use crate::open::{OpenError, StoreOptions};
use crate::shelves::Shelves;
use crate::stored::StoredBlock;

/// The blocks of this node. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct LocalStore(Arc<Shared>);

struct Shared {
    offload: Arc<dyn Offload>,
    locks: Locks,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    shelves: Arc<Shelves>,
}

/// How a write was satisfied; the block is durable either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    New,
    /// A good copy was there already, and was kept.
    AlreadyPresent,
}

/// What [`LockedBlock::examine`] found.
#[derive(Debug)]
pub enum Examined {
    Good,
    /// No file, or one that did not match its checksums and is set aside now.
    Absent,
    /// There is a file, and the disk does not give back what it holds ([`BlockError::is_of_disk`]). It stays where it is.
    Unreadable(BlockError),
}

/// What [`LockedBlock::relocate`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relocated {
    Moved,
    InPlace,
}

/// What [`LocalStore::forget_secondaries`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    All,
    /// Meanwhile blocks were written outside their primary directories.
    None,
}

/// Some of the blocks on disk, in the order of their hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub hashes: Vec<BlockHash>,
    /// Where to go on; `None` at the end. A page may be empty and yet not be the last.
    pub next: Option<BlockHash>,
}

/// The space of one data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectorySpace {
    pub path: PathBuf,
    pub space: DiskSpace,
}

/// One block, of which the holder alone may change what is on disk.
///
/// Reading a block through the store while holding its lock can wait for ever: a corrupt copy is set aside under the lock.
pub struct LockedBlock {
    store: LocalStore,
    hash: BlockHash,
    guard: Arc<Guard>,
}

impl LocalStore {
    /// Opens the data directories: on a first start makes them, later checks that they are the ones in use; empties their `tmp`.
    ///
    /// # Errors
    /// [`OpenError`]; above all a disk that is not mounted or belongs to another node.
    pub async fn open(disk: Arc<dyn Disk>, offload_to: Arc<dyn Offload>, options: StoreOptions) -> Result<Self, OpenError> {
        let (reads, writes) = (Semaphore::new(options.reads_in_flight_max), Semaphore::new(options.writes_in_flight_max));
        let shelves = offload(&*offload_to, move || Shelves::open(disk, &options)).await??;
        Ok(LocalStore(Arc::new(Shared {
            offload: offload_to,
            locks: Locks::default(),
            reads: Arc::new(reads),
            writes: Arc::new(writes),
            shelves: Arc::new(shelves),
        })))
    }

    /// Whether blocks may be gone that were here: a directory was made anew by an operator, or taken out of the configuration, before
    /// this start.
    pub fn lacks_blocks(&self) -> bool {
        self.0.shelves.lacks_blocks()
    }

    /// Waits until nobody else changes this block. "Is it present? then commit a reference" and "is it unreferenced? then delete it"
    /// both hold the lock from the question to the end. Who takes several does so in the order of their hashes.
    pub async fn lock(&self, hash: BlockHash) -> LockedBlock {
        LockedBlock { store: self.clone(), hash, guard: Arc::new(self.0.locks.lock(hash).await) }
    }

    /// Stores a block whose content the caller knows to be that of `hash` ([`StoredBlock::verify`]). A good copy is kept. If the block's
    /// primary directory is not the one that was opened, another one takes it.
    ///
    /// # Errors
    /// [`BlockError::Full`], [`BlockError::Io`], [`BlockError::Exchanged`]; then nothing is stored.
    pub async fn write(&self, hash: BlockHash, block: StoredBlock) -> Result<Written, BlockError> {
        self.lock(hash).await.write(block).await
    }

    /// The plain content, checked against the checksums of its file.
    ///
    /// # Errors
    /// [`BlockError::Missing`]; [`BlockError::Corrupt`] when there were only bad copies, which are set aside now;
    /// [`BlockError::Exchanged`] when it may be in a directory that is not there.
    pub async fn read(&self, hash: BlockHash) -> Result<Bytes, BlockError> {
        self.read_with(hash, move |directory| Ok(directory.read(hash)?.plain()?)).await
    }

    /// A part of the plain content; of a raw block only that part is read and checked.
    ///
    /// # Errors
    /// As [`LocalStore::read`], and [`BlockError::OutOfRange`].
    pub async fn read_range(&self, hash: BlockHash, range: Range<u64>) -> Result<Bytes, BlockError> {
        self.read_with(hash, move |directory| directory.read_range(hash, &range)).await
    }

    /// The block as stored, to send it to a peer without decompressing it.
    ///
    /// # Errors
    /// As [`LocalStore::read`].
    pub async fn read_stored(&self, hash: BlockHash) -> Result<StoredBlock, BlockError> {
        self.read_with(hash, move |directory| directory.read(hash)).await
    }

    /// Reads the block and recomputes its hash. Only the copy that would be read is examined.
    ///
    /// # Errors
    /// As [`LocalStore::read`].
    pub async fn verify(&self, hash: BlockHash) -> Result<(), BlockError> {
        self.read_with(hash, move |directory| directory.verify(hash)).await
    }

    /// Whether there is a file for the block; its content is not looked at, so that "yes" does not mean that it can be read.
    ///
    /// # Errors
    /// [`BlockError::Io`], [`BlockError::Exchanged`].
    pub async fn contains(&self, hash: BlockHash) -> Result<bool, BlockError> {
        self.run(&self.0.reads, move |shelves| shelves.contains(hash)).await
    }

    /// Removes the block from every directory.
    ///
    /// # Errors
    /// [`BlockError::Io`], [`BlockError::Exchanged`]; some copies may be left.
    pub async fn remove(&self, hash: BlockHash) -> Result<Removed, BlockError> {
        self.lock(hash).await.remove().await
    }

    /// Blocks on disk from `from` on, in the order of their hashes; blocks that come or go meanwhile may be in it or not. A page ends after
    /// the prefix directory (of two hash bytes) with which it has `limit` hashes, or after many directories. The position in the hash space
    /// tells the progress.
    ///
    /// # Errors
    /// [`BlockError::Directory`], [`BlockError::Exchanged`].
    pub async fn page(&self, from: BlockHash, limit: usize) -> Result<Page, BlockError> {
        self.run(&self.0.reads, move |shelves| shelves.page(from, limit)).await
    }

    /// Whether this block, of `len` bytes, would find room now: to refuse an upload before its body is sent.
    ///
    /// # Errors
    /// [`BlockError::Full`], [`BlockError::Io`].
    pub async fn check_space(&self, hash: BlockHash, len: u64) -> Result<(), BlockError> {
        self.run(&self.0.reads, move |shelves| shelves.check_space(hash, len)).await
    }

    /// The space of each data directory.
    ///
    /// # Errors
    /// [`BlockError::Directory`].
    pub async fn space(&self) -> Result<Vec<DirectorySpace>, BlockError> {
        self.run(&self.0.reads, Shelves::space).await
    }

    /// The data directories that are not those that were opened: their disks were unmounted, or exchanged, while this node runs.
    ///
    /// # Errors
    /// [`BlockError::Directory`].
    pub async fn exchanged(&self) -> Result<Vec<PathBuf>, BlockError> {
        self.run(&self.0.reads, Shelves::exchanged).await
    }

    /// How many blocks were written, since this store was opened, to a directory that stood in for the primary one.
    pub fn stood_in(&self) -> u64 {
        self.0.shelves.stood_in()
    }

    /// Stops looking for blocks outside their primary directories. The caller has relocated every block since this store was opened, and
    /// asked [`LocalStore::stood_in`] before the first.
    ///
    /// # Errors
    /// [`BlockError::Directory`]: the layout could not be saved and stays as it was.
    pub async fn forget_secondaries(&self, stood_in: u64) -> Result<Forgotten, BlockError> {
        self.run(&self.0.writes, move |shelves| shelves.forget_secondaries(stood_in)).await
    }

    /// Reads from the first good copy. Only when one turns out bad, the lock is taken, so that no copy written meanwhile is set aside.
    async fn read_with<T: Send + 'static>(
        &self,
        hash: BlockHash,
        extract: impl Fn(&BlockDirectory) -> Result<T, CopyError> + Send + Sync + 'static,
    ) -> Result<T, BlockError> {
        let extract = Arc::new(extract);
        let first = extract.clone();
        let answer = self.run(&self.0.reads, move |shelves| Ok(shelves.search(hash, &*first))).await?;
        match answer {
            Err(BlockError::Corrupt { .. }) => {
                let guard = self.0.locks.lock(hash).await;
                self.run(&self.0.reads, move |shelves| {
                    let answer = shelves.search_setting_aside(hash, &*extract);
                    drop(guard);
                    answer
                })
                .await
            }
            answer => answer,
        }
    }

    /// Runs `work` off the async threads, within the limit of its lane.
    async fn run<T: Send + 'static>(
        &self,
        lane: &Arc<Semaphore>,
        work: impl FnOnce(&Shelves) -> Result<T, BlockError> + Send + 'static,
    ) -> Result<T, BlockError> {
        let permit = lane.clone().acquire_owned().await.expect("the lanes are never closed");
        let shelves = self.0.shelves.clone();
        let done = offload(&*self.0.offload, move || {
            let result = work(&shelves);
            drop(permit);
            result
        });
        done.await?
    }
}

impl LockedBlock {
    pub fn hash(&self) -> BlockHash {
        self.hash
    }

    /// As [`LocalStore::write`].
    ///
    /// # Errors
    /// As [`LocalStore::write`].
    pub async fn write(&self, block: StoredBlock) -> Result<Written, BlockError> {
        self.run(move |shelves, hash| shelves.write(hash, &block)).await
    }

    /// As [`LocalStore::contains`].
    ///
    /// # Errors
    /// As [`LocalStore::contains`].
    pub async fn contains(&self) -> Result<bool, BlockError> {
        self.run(|shelves, hash| shelves.contains(hash)).await
    }

    /// Reads the block and recomputes its hash: whether there is a good copy in any directory.
    ///
    /// # Errors
    /// [`BlockError`], when reading fails in a way that says nothing about the file.
    pub async fn examine(&self) -> Result<Examined, BlockError> {
        self.run(|shelves, hash| shelves.examine(hash)).await
    }

    /// As [`LocalStore::remove`].
    ///
    /// # Errors
    /// As [`LocalStore::remove`].
    pub async fn remove(&self) -> Result<Removed, BlockError> {
        self.run(|shelves, hash| shelves.remove(hash)).await
    }

    /// Moves the block to its primary directory if it is elsewhere.
    ///
    /// # Errors
    /// As [`LocalStore::read`] and [`LocalStore::write`].
    pub async fn relocate(&self) -> Result<Relocated, BlockError> {
        self.run(|shelves, hash| shelves.relocate(hash)).await
    }

    /// The lock is kept until the work is done, even if the caller goes away meanwhile.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shelves, BlockHash) -> Result<T, BlockError> + Send + 'static,
    ) -> Result<T, BlockError> {
        let (hash, guard) = (self.hash, self.guard.clone());
        self.store
            .run(&self.store.0.writes, move |shelves| {
                let result = work(shelves, hash);
                drop(guard);
                result
            })
            .await
    }
}
