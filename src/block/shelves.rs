//! All data directories together: which copy answers, where a new one goes. Everything here blocks.
//!
//! What must stay true: a copy is removed or set aside only under its block's lock; only a copy that was read and does not match its
//! checksums is set aside, for a failed call says nothing about the file; a copy in a secondary directory is removed only once the
//! primary has the block durably; nothing is changed in a directory that is not the one that was opened, and a block is missing only if
//! none of its directories is such a one. Others stand in for it when blocks are written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use garage_types::disk::FileError;
use garage_types::{BlockHash, Disk};

use crate::directories::{DirectoryLayout, Slice, Usage};
use crate::directory::{BlockDirectory, Removed, Replaced};
use crate::error::{BlockError, CopyError, Exchanged, PlaceError};
use crate::open::{OpenDirectories, OpenError, StoreOptions, open_directories, save_layout};
use crate::store::{DirectorySpace, Examined, Forgotten, Page, Relocated, Written};
use crate::stored::StoredBlock;

/// Directories listed for one page at most, so that a page over a sparse store ends too.
const LISTED_PER_PAGE: usize = 256;

pub(crate) struct Shelves {
    disk: Arc<dyn Disk>,
    metadata_dir: PathBuf,
    /// In the order in which the layout counts them.
    directories: Vec<BlockDirectory>,
    /// Those that take new blocks.
    writable: Vec<u16>,
    layout: RwLock<Arc<DirectoryLayout>>,
    /// Blocks that another directory took, or was asked to take, for one that was not there.
    stood_in: AtomicU64,
    lacks_blocks: bool,
}

/// The directories of one block.
struct Places<'a> {
    primary: &'a BlockDirectory,
    secondaries: Vec<&'a BlockDirectory>,
}

impl Shelves {
    pub(crate) fn open(disk: Arc<dyn Disk>, options: &StoreOptions) -> Result<Self, OpenError> {
        let OpenDirectories { layout, lacks_blocks } = open_directories(&*disk, options)?;
        let directory =
            |path: &Path| BlockDirectory::open(disk.clone(), path.to_owned(), options.durability, options.reserve_bytes);
        let is_writable = |place: &u16| matches!(options.directories[usize::from(*place)].usage, Usage::Writable { .. });
        Ok(Shelves {
            directories: layout.directories().map(directory).collect::<Result<_, FileError>>()?,
            writable: (0..).take(options.directories.len()).filter(is_writable).collect(),
            stood_in: AtomicU64::new(0),
            layout: RwLock::new(Arc::new(layout)),
            metadata_dir: options.metadata_dir.clone(),
            lacks_blocks,
            disk,
        })
    }

    pub(crate) fn lacks_blocks(&self) -> bool {
        self.lacks_blocks
    }

    pub(crate) fn contains(&self, hash: BlockHash) -> Result<bool, BlockError> {
        self.search(hash, |directory| match directory.contains(hash) {
            // Others go by what is said here: the file has to be this node's.
            Ok(true) => Ok(directory.check()?),
            Ok(false) => Err(CopyError::Absent),
            Err(source) => Err(CopyError::Io(source)),
        })
        .map(|()| true)
        .or_else(|error| if matches!(error, BlockError::Missing { .. }) { Ok(false) } else { Err(error) })
    }

    /// What the first copy that is there says; one that cannot be read lets the next answer. A damaged one ends the search, for
    /// [`Shelves::search_setting_aside`] to go on: it must not stay unnoticed behind a good one.
    pub(crate) fn search<T>(
        &self,
        hash: BlockHash,
        extract: impl Fn(&BlockDirectory) -> Result<T, CopyError>,
    ) -> Result<T, BlockError> {
        let places = self.places(hash);
        let mut worst = BlockError::Missing { hash };
        // The primary once more at the end: a block may have moved there while we looked at the others.
        let again = places.secondaries.first().map(|_| places.primary);
        for directory in places.all().chain(again) {
            match directory.ask(&extract) {
                Ok(value) => return Ok(value),
                Err(CopyError::Absent) => {}
                Err(error @ (CopyError::Damaged(_) | CopyError::OutOfRange { .. })) => {
                    return Err(error.of_block(hash, directory.path(hash)));
                }
                Err(error) => worst = error.of_block(hash, directory.path(hash)),
            }
        }
        Err(worst)
    }

    /// As [`Shelves::search`], under the block's lock: a copy that is still bad is set aside.
    pub(crate) fn search_setting_aside<T>(
        &self,
        hash: BlockHash,
        extract: impl Fn(&BlockDirectory) -> Result<T, CopyError>,
    ) -> Result<T, BlockError> {
        let mut worst = BlockError::Missing { hash };
        for directory in self.places(hash).all() {
            match directory.ask(&extract) {
                Ok(value) => return Ok(value),
                Err(CopyError::Absent) => {}
                Err(CopyError::Damaged(damage)) => {
                    // A file system that lets nothing be renamed any more does not keep another directory from answering.
                    worst = match directory.set_aside(hash, &damage) {
                        Ok(()) => CopyError::Damaged(damage).of_block(hash, directory.path(hash)),
                        Err(error) => error.of_block(hash),
                    };
                }
                Err(error) => worst = error.of_block(hash, directory.path(hash)),
            }
        }
        Err(worst)
    }

    /// Reads the block and recomputes its hash, under the block's lock.
    pub(crate) fn examine(&self, hash: BlockHash) -> Result<Examined, BlockError> {
        match self.search_setting_aside(hash, |directory| directory.verify(hash)) {
            Ok(()) => Ok(Examined::Good),
            Err(BlockError::Missing { .. } | BlockError::Corrupt { .. }) => Ok(Examined::Absent),
            Err(error) if error.is_of_disk() => Ok(Examined::Unreadable(error)),
            Err(error) => Err(error),
        }
    }

    /// Stores a block, or keeps the good copy that is there. Where its primary directory is not the one that was opened, another takes it.
    /// Under the block's lock.
    pub(crate) fn write(&self, hash: BlockHash, block: &StoredBlock) -> Result<Written, BlockError> {
        let places = self.places(hash);
        match places.primary.check() {
            Ok(()) => write_to_primary(&places, hash, block),
            Err(PlaceError::Exchanged(exchanged)) => self.write_elsewhere(hash, block, exchanged),
            Err(error @ PlaceError::File(_)) => Err(error.of_block(hash)),
        }
    }

    /// Stores a block in a directory that stands in for its primary one; fails as `exchanged` says if none can.
    fn write_elsewhere(&self, hash: BlockHash, block: &StoredBlock, exchanged: Exchanged) -> Result<Written, BlockError> {
        self.add_stand_ins(hash)?;
        // Held until the block is there: nobody forgets meanwhile where it is.
        let layout = self.layout.read().expect("nothing panics while holding the layout");
        self.stood_in.fetch_add(1, Ordering::Relaxed);
        let mut free = Vec::new();
        for place in &layout.slice(hash).secondaries {
            let directory = &self.directories[usize::from(*place)];
            match directory.check() {
                Ok(()) => {}
                Err(PlaceError::Exchanged(_also)) => continue,
                Err(error @ PlaceError::File(_)) => return Err(error.of_block(hash)),
            }
            let replaced = match examine(directory, hash)? {
                Copy::Good(_) => {
                    directory.make_durable(hash).map_err(|source| BlockError::Io { hash, source })?;
                    return Ok(Written::AlreadyPresent);
                }
                Copy::Absent => Replaced::Nothing,
                Copy::Unreadable(_reason) => Replaced::Unreadable,
            };
            if self.writable.contains(place) {
                free.push((directory, replaced));
            }
        }
        for (directory, replaced) in free {
            match directory.write(hash, block, replaced) {
                Err(BlockError::Full { .. }) => {}
                written => return written.map(|()| Written::New),
            }
        }
        Err(exchanged.into())
    }

    /// Has the block looked for in every writable directory, from now on and after a restart too, until all blocks were relocated.
    fn add_stand_ins(&self, hash: BlockHash) -> Result<(), BlockError> {
        if self.layout.read().expect("nothing panics while holding the layout").has_stand_ins(hash, &self.writable) {
            return Ok(());
        }
        let mut layout = self.layout.write().expect("nothing panics while holding the layout");
        let with = layout.with_stand_ins(layout.slice(hash).primary, &self.writable);
        self.save(&with)?;
        *layout = Arc::new(with);
        Ok(())
    }

    /// Moves the first good copy to the primary directory. Under the block's lock.
    pub(crate) fn relocate(&self, hash: BlockHash) -> Result<Relocated, BlockError> {
        let places = self.places(hash);
        let io = |source| BlockError::Io { hash, source };
        // All of them, for the block may be where nothing can be found.
        places.all().try_for_each(BlockDirectory::check).map_err(|error| error.of_block(hash))?;
        // Without another copy there is nothing to compare or to remove, so that the usual case reads nothing.
        let mut elsewhere = false;
        for directory in &places.secondaries {
            elsewhere |= directory.contains(hash).map_err(io)?;
        }
        if !elsewhere && places.primary.contains(hash).map_err(io)? {
            return Ok(Relocated::InPlace);
        }
        let mut failure = BlockError::Missing { hash };
        let replaced = match examine(places.primary, hash)? {
            Copy::Good(_) => {
                places.primary.make_durable(hash).map_err(io)?;
                remove_leftovers(&places, hash);
                return Ok(Relocated::InPlace);
            }
            Copy::Absent => Replaced::Nothing,
            Copy::Unreadable(reason) => {
                failure = reason.of_block(hash);
                Replaced::Unreadable
            }
        };
        for directory in &places.secondaries {
            match examine(directory, hash)? {
                Copy::Good(block) => {
                    places.primary.write(hash, &block, replaced)?;
                    remove_leftovers(&places, hash);
                    return Ok(Relocated::Moved);
                }
                Copy::Absent => {}
                Copy::Unreadable(reason) => failure = reason.of_block(hash),
            }
        }
        Err(failure)
    }

    /// Removes every copy. Under the block's lock.
    pub(crate) fn remove(&self, hash: BlockHash) -> Result<Removed, BlockError> {
        let mut removed = Removed::WasAbsent;
        for directory in self.places(hash).all() {
            if directory.remove(hash).map_err(|error| error.of_block(hash))? == Removed::Yes {
                removed = Removed::Yes;
            }
        }
        Ok(removed)
    }

    /// See [`crate::LocalStore::page`].
    pub(crate) fn page(&self, from: BlockHash, limit: usize) -> Result<Page, BlockError> {
        let page = self.collect_page(from, limit).map_err(|source| BlockError::Directory { source })?;
        // What another directory has, or lacks, is no list of this node's blocks.
        self.directories.iter().try_for_each(BlockDirectory::check).map_err(PlaceError::of_directory)?;
        Ok(page)
    }

    fn collect_page(&self, from: BlockHash, limit: usize) -> Result<Page, FileError> {
        let mut hashes: Vec<BlockHash> = Vec::new();
        let mut listed = 0;
        let [from_first, from_second, ..] = *from.as_bytes();
        for first in self.prefixes(None)?.split_off(&from_first) {
            let lowest = if first == from_first { from_second } else { 0 };
            listed += 1;
            for second in self.prefixes(Some(first))?.split_off(&lowest) {
                if listed >= LISTED_PER_PAGE || hashes.len() >= limit {
                    return Ok(Page { hashes, next: Some(first_hash([first, second])) });
                }
                listed += 1;
                let mut here = BTreeSet::new();
                for directory in &self.directories {
                    directory.list([first, second], &mut here)?;
                }
                hashes.extend(here.split_off(&from));
            }
        }
        Ok(Page { hashes, next: None })
    }

    fn prefixes(&self, first: Option<u8>) -> Result<BTreeSet<u8>, FileError> {
        let mut found = BTreeSet::new();
        self.directories.iter().try_for_each(|directory| directory.list_prefixes(first, &mut found))?;
        Ok(found)
    }

    /// Whether the block's primary directory would take `len` bytes more.
    pub(crate) fn check_space(&self, hash: BlockHash, len: u64) -> Result<(), BlockError> {
        self.places(hash).primary.check_space(hash, len)
    }

    pub(crate) fn space(&self) -> Result<Vec<DirectorySpace>, BlockError> {
        let spaces = self.directories.iter().map(|directory| {
            let space = directory.disk_space().map_err(|source| BlockError::Directory { source })?;
            Ok(DirectorySpace { path: directory.root().to_owned(), space })
        });
        spaces.collect()
    }

    /// See [`crate::LocalStore::exchanged`].
    pub(crate) fn exchanged(&self) -> Result<Vec<PathBuf>, BlockError> {
        let mut exchanged = Vec::new();
        for directory in &self.directories {
            match directory.check() {
                Ok(()) => {}
                Err(PlaceError::Exchanged(Exchanged { path })) => exchanged.push(path),
                Err(error @ PlaceError::File(_)) => return Err(error.of_directory()),
            }
        }
        Ok(exchanged)
    }

    /// See [`crate::LocalStore::stood_in`].
    pub(crate) fn stood_in(&self) -> u64 {
        self.stood_in.load(Ordering::Relaxed)
    }

    /// See [`crate::LocalStore::forget_secondaries`].
    pub(crate) fn forget_secondaries(&self, stood_in: u64) -> Result<Forgotten, BlockError> {
        let mut layout = self.layout.write().expect("nothing panics while holding the layout");
        if self.stood_in() != stood_in {
            return Ok(Forgotten::None);
        }
        let without = layout.forget_secondaries();
        self.save(&without)?;
        *layout = Arc::new(without);
        Ok(Forgotten::All)
    }

    fn save(&self, layout: &DirectoryLayout) -> Result<(), BlockError> {
        save_layout(&*self.disk, &self.metadata_dir, layout).map_err(|source| BlockError::Directory { source })
    }

    fn places(&self, hash: BlockHash) -> Places<'_> {
        let layout = self.layout.read().expect("nothing panics while holding the layout").clone();
        let Slice { primary, secondaries } = layout.slice(hash);
        let directory = |place: u16| &self.directories[usize::from(place)];
        Places { primary: directory(*primary), secondaries: secondaries.iter().copied().map(directory).collect() }
    }
}

impl<'a> Places<'a> {
    fn all(&self) -> impl Iterator<Item = &'a BlockDirectory> {
        std::iter::once(self.primary).chain(self.secondaries.iter().copied())
    }
}

/// What one directory has of a block.
enum Copy {
    Absent,
    Good(StoredBlock),
    /// The disk did not answer. The file may be as good as ever: descriptors or memory ran out, or a permission is missing. Or it is
    /// damaged and cannot be set aside.
    Unreadable(PlaceError),
}

/// Reads the copy in a directory; one that was read and does not match its checksums is set aside. Under the block's lock. Who goes by
/// what it says has checked the directory.
fn examine(directory: &BlockDirectory, hash: BlockHash) -> Result<Copy, BlockError> {
    match directory.read(hash) {
        Ok(block) => Ok(Copy::Good(block)),
        Err(CopyError::Absent) => Ok(Copy::Absent),
        Err(CopyError::Damaged(damage)) => Ok(match directory.set_aside(hash, &damage) {
            Ok(()) => Copy::Absent,
            Err(reason) => Copy::Unreadable(reason),
        }),
        Err(CopyError::Io(reason)) => Ok(Copy::Unreadable(reason.into())),
        Err(CopyError::Exchanged(reason)) => Ok(Copy::Unreadable(reason.into())),
        Err(error @ (CopyError::NewerFormat { .. } | CopyError::OutOfRange { .. })) => {
            Err(error.of_block(hash, directory.path(hash)))
        }
    }
}

/// As [`Shelves::write`], with a primary directory that was checked. A copy that cannot be read stays where it is until the new one,
/// whole and synced, takes its name.
fn write_to_primary(places: &Places<'_>, hash: BlockHash, block: &StoredBlock) -> Result<Written, BlockError> {
    let io = |source| BlockError::Io { hash, source };
    let replaced = match examine(places.primary, hash)? {
        Copy::Good(_) => {
            places.primary.make_durable(hash).map_err(io)?;
            remove_leftovers(places, hash);
            return Ok(Written::AlreadyPresent);
        }
        Copy::Absent => Replaced::Nothing,
        Copy::Unreadable(reason) => {
            tracing::warn!(%hash, reason = &reason as &dyn std::error::Error, "a new copy replaces a block file that cannot be read");
            Replaced::Unreadable
        }
    };
    let mut elsewhere = None;
    for directory in &places.secondaries {
        if elsewhere.is_none() && matches!(examine(directory, hash)?, Copy::Good(_)) {
            elsewhere = Some(directory);
        }
    }
    match (places.primary.write(hash, block, replaced), elsewhere) {
        (Ok(()), _) => remove_leftovers(places, hash),
        // It stays where it is until there is room.
        (Err(BlockError::Full { .. }), Some(directory)) => {
            directory.check().map_err(|error| error.of_block(hash))?;
            directory.make_durable(hash).map_err(io)?;
        }
        (Err(error), _) => return Err(error),
    }
    Ok(if elsewhere.is_some() { Written::AlreadyPresent } else { Written::New })
}

/// Removes copies that the primary directory makes superfluous. One that stays does no harm: the next move tries again.
fn remove_leftovers(places: &Places<'_>, hash: BlockHash) {
    for directory in &places.secondaries {
        match directory.remove(hash) {
            // That of an exchanged directory was logged once for all.
            Ok(Removed::Yes | Removed::WasAbsent) | Err(PlaceError::Exchanged(_)) => {}
            Err(error @ PlaceError::File(_)) => {
                tracing::warn!(%hash, error = &error as &dyn std::error::Error, "a copy outside the primary data directory stays behind");
            }
        }
    }
}

fn first_hash(prefix: [u8; 2]) -> BlockHash {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&prefix);
    BlockHash::from_bytes(bytes)
}
