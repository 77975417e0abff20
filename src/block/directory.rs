//! The block files of one data directory. Everything here blocks; [`crate::LocalStore`] calls it off the async threads.
//!
//! What must stay true, with [`Durability::Synced`]: a name in its place always has its whole content behind it, whatever was cut when;
//! when [`BlockDirectory::write`] has returned, both are on stable storage. With `Unsynced` a power cut may leave a name with a
//! part of its content or none: reading it is [`CopyError::Damaged`], never other bytes.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use garage_types::disk::{Access, DiskFile, DiskSpace, FileError, FileKind};
use garage_types::{BlockHash, Disk};

use crate::error::{BlockError, CopyError, Damage, PlaceError, is_full};
use crate::file::{self, Header};
use crate::open::Durability;
use crate::opened::Opened;
use crate::prefixes::{Prefixes, byte_of, leaf};
use crate::space::{Admission, Space};
use crate::stored::{Encoding, StoredBlock};

/// Where files are written before they get their name; emptied at start.
pub(crate) const TEMPORARY: &str = "tmp";

pub(crate) struct BlockDirectory {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    opened: Opened,
    durability: Durability,
    reserve_bytes: u64,
    prefixes: Prefixes,
    space: Space,
    next_temporary: AtomicU64,
}

/// Whether a file was there to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    Yes,
    WasAbsent,
}

/// What lies under a block's name when a new copy takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    Nothing,
    /// A file that could not be read just now.
    Unreadable,
}

impl BlockDirectory {
    /// A directory that was prepared.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        root: PathBuf,
        durability: Durability,
        reserve_bytes: u64,
    ) -> Result<Self, FileError> {
        let opened = Opened::of(&*disk, &root)?;
        let (prefixes, space, next_temporary) = (Prefixes::new(), Space::default(), AtomicU64::new(0));
        Ok(BlockDirectory { disk, root, opened, durability, reserve_bytes, prefixes, space, next_temporary })
    }

    /// Whether this is still the directory that was opened.
    pub(crate) fn check(&self) -> Result<(), PlaceError> {
        self.opened.check(&*self.disk)
    }

    /// What `extract` says, unless it has no answer and this is not the directory that was opened: that says nothing about the block.
    pub(crate) fn ask<T>(&self, extract: impl Fn(&BlockDirectory) -> Result<T, CopyError>) -> Result<T, CopyError> {
        match extract(self) {
            Ok(answer) => Ok(answer),
            Err(error) => {
                self.check()?;
                Err(error)
            }
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, hash: BlockHash) -> PathBuf {
        leaf(&self.root, hash).join(hash.to_string())
    }

    pub(crate) fn contains(&self, hash: BlockHash) -> Result<bool, FileError> {
        let path = self.path(hash);
        Ok(self.disk.kind(&path).map_err(FileError::of("look at", &path))? == Some(FileKind::File))
    }

    /// The whole block, checked against its checksums.
    pub(crate) fn read(&self, hash: BlockHash) -> Result<StoredBlock, CopyError> {
        let (path, opened, file_len) = self.open_block(hash)?;
        // Before anything of that size is allocated.
        file::header_len(file_len)?;
        let content = read_at(&*opened, &path, 0..file_len)?;
        Ok(file::decode(content.into(), hash)?)
    }

    /// Recomputes the block's hash. Also whether it is of this directory, for who goes by there being a copy.
    pub(crate) fn verify(&self, hash: BlockHash) -> Result<(), CopyError> {
        self.read(hash)?.verify(hash)?;
        Ok(self.check()?)
    }

    /// A range of the plain content, checked against the checksums of what had to be read for it.
    pub(crate) fn read_range(&self, hash: BlockHash, range: &Range<u64>) -> Result<Bytes, CopyError> {
        let (path, opened, file_len) = self.open_block(hash)?;
        let header = read_at(&*opened, &path, 0..file::header_len(file_len)? as u64)?;
        let header = file::parse_header(&header, file_len, hash)?;
        let wanted = within(range, header.plain_len)?;
        match header.encoding {
            Encoding::Raw => read_chunks(&*opened, &path, &header, wanted),
            Encoding::Zstd => {
                let content = read_at(&*opened, &path, 0..file_len)?;
                let plain = file::decode(content.into(), hash)?.plain()?;
                // Copied: a part that somebody keeps must not keep the whole.
                Ok(Bytes::copy_from_slice(&plain[wanted.start as usize..wanted.end as usize]))
            }
        }
    }

    /// Stores a block under its name. The caller holds the block's lock, has found no good copy here, and has checked the directory. A
    /// failure leaves what was there.
    pub(crate) fn write(&self, hash: BlockHash, block: &StoredBlock, replaced: Replaced) -> Result<(), BlockError> {
        let header = file::encode_header(hash, block);
        self.admit(hash, (header.len() + block.bytes().len()) as u64)?;
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.root.join(TEMPORARY).join(format!("{hash}.{number}"));
        let created = self.create(&temporary, &[&header, block.bytes()]);
        created.and_then(|()| self.put_in_place(&temporary, hash, replaced)).map_err(|error| {
            self.clean_up(&temporary);
            self.failed_write(hash, error)
        })
    }

    /// Makes sure that a copy found here survives a power cut: the process that wrote it may have been killed half-way. The caller has
    /// checked the directory.
    pub(crate) fn make_durable(&self, hash: BlockHash) -> Result<(), FileError> {
        if self.durability == Durability::Unsynced {
            return Ok(());
        }
        let path = self.path(hash);
        self.prefixes.ensure(&*self.disk, &self.root, hash, self.durability)?;
        self.disk.sync_file(&path).map_err(FileError::of("sync", &path))?;
        self.sync_leaf(hash)
    }

    /// Removes a block, and a corrupt copy of it that was set aside.
    pub(crate) fn remove(&self, hash: BlockHash) -> Result<Removed, PlaceError> {
        self.check()?;
        let block = remove_if_present(&*self.disk, &self.path(hash))?;
        let corrupt = remove_if_present(&*self.disk, &self.aside(hash))?;
        if block == Removed::Yes || corrupt == Removed::Yes {
            self.space.forget();
            self.sync_leaf(hash)?;
        }
        Ok(block)
    }

    /// Renames a copy whose bytes do not match its checksums, so that it is not found any more, and logs why. The caller holds the
    /// block's lock.
    pub(crate) fn set_aside(&self, hash: BlockHash, reason: &Damage) -> Result<(), PlaceError> {
        self.check()?;
        let path = self.path(hash);
        tracing::error!(%hash, path = %path.display(), reason = reason as &dyn std::error::Error, "corrupt block set aside");
        self.disk.rename(&path, &self.aside(hash)).map_err(FileError::of("set aside", &path))?;
        Ok(self.sync_leaf(hash)?)
    }

    /// Adds the hashes of all blocks whose first two bytes are `prefix`.
    pub(crate) fn list(&self, prefix: [u8; 2], into: &mut BTreeSet<BlockHash>) -> Result<(), FileError> {
        let directory = self.root.join(format!("{:02x}/{:02x}", prefix[0], prefix[1]));
        for entry in list_if_present(&*self.disk, &directory)? {
            let hash: Option<BlockHash> = entry.name.to_str().and_then(|name| name.parse().ok());
            let hash = hash.filter(|hash| hash.as_bytes().starts_with(&prefix) && hash.to_string().as_str() == entry.name);
            into.extend(hash.filter(|_| entry.kind == FileKind::File));
        }
        Ok(())
    }

    /// Adds the bytes after which the directories are named: those below `first`, or the first-level ones.
    pub(crate) fn list_prefixes(&self, first: Option<u8>, into: &mut BTreeSet<u8>) -> Result<(), FileError> {
        let directory = first.map_or_else(|| self.root.clone(), |first| self.root.join(format!("{first:02x}")));
        let entries = list_if_present(&*self.disk, &directory)?;
        into.extend(entries.iter().filter(|entry| entry.kind == FileKind::Directory).filter_map(|entry| byte_of(&entry.name)));
        Ok(())
    }

    pub(crate) fn disk_space(&self) -> Result<DiskSpace, FileError> {
        self.disk.space(&self.root).map_err(FileError::of("ask for the free space of", &self.root))
    }

    /// Whether `len` bytes would be accepted now; they are not counted as written.
    pub(crate) fn check_space(&self, hash: BlockHash, len: u64) -> Result<(), BlockError> {
        self.admission(hash, self.space.check(&*self.disk, &self.root, len, self.reserve_bytes))
    }

    fn admit(&self, hash: BlockHash, len: u64) -> Result<(), BlockError> {
        self.admission(hash, self.space.admit(&*self.disk, &self.root, len, self.reserve_bytes))
    }

    fn admission(&self, hash: BlockHash, answer: Result<Admission, FileError>) -> Result<(), BlockError> {
        match answer {
            Ok(Admission::Granted) => Ok(()),
            Ok(Admission::BelowReserve) => Err(BlockError::Full { directory: self.root.clone(), source: None }),
            Err(source) => Err(BlockError::Io { hash, source }),
        }
    }

    fn open_block(&self, hash: BlockHash) -> Result<(PathBuf, Box<dyn DiskFile>, u64), CopyError> {
        let path = self.path(hash);
        let opened = self.disk.open(&path).map_err(CopyError::io("open", &path))?;
        let file_len = opened.len().map_err(CopyError::io("ask for the length of", &path))?;
        Ok((path, opened, file_len))
    }

    fn create(&self, temporary: &Path, parts: &[&[u8]]) -> Result<(), FileError> {
        self.disk.create(temporary, parts, Access::OwnerOnly).map_err(FileError::of("write", temporary))?;
        match self.durability {
            Durability::Synced => self.disk.sync_file(temporary).map_err(FileError::of("sync", temporary)),
            Durability::Unsynced => Ok(()),
        }
    }

    fn put_in_place(&self, temporary: &Path, hash: BlockHash, replaced: Replaced) -> Result<(), FileError> {
        let path = self.path(hash);
        self.prefixes.ensure(&*self.disk, &self.root, hash, self.durability)?;
        self.disk.rename(temporary, &path).map_err(FileError::of("rename to", &path))?;
        self.sync_leaf(hash).inspect_err(|_| {
            // The new name is not known to be durable. It is taken back, so that no later write takes it for a good copy; not so where it
            // replaced another file, since this copy is then the only one.
            if replaced == Replaced::Nothing {
                self.clean_up(&path);
            }
        })
    }

    fn sync_leaf(&self, hash: BlockHash) -> Result<(), FileError> {
        let leaf = leaf(&self.root, hash);
        match self.durability {
            Durability::Synced => self.disk.sync_directory(&leaf).map_err(FileError::of("sync", &leaf)),
            Durability::Unsynced => Ok(()),
        }
    }

    fn failed_write(&self, hash: BlockHash, source: FileError) -> BlockError {
        self.prefixes.forget(hash);
        if is_full(&source.source) {
            self.space.forget();
            BlockError::Full { directory: self.root.clone(), source: Some(source) }
        } else {
            BlockError::Io { hash, source }
        }
    }

    fn clean_up(&self, path: &Path) {
        if let Err(error) = remove_if_present(&*self.disk, path) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a file of a failed write stays behind");
        }
    }

    fn aside(&self, hash: BlockHash) -> PathBuf {
        leaf(&self.root, hash).join(format!("{hash}.corrupted"))
    }
}

fn within(range: &Range<u64>, plain_len: u32) -> Result<Range<u32>, CopyError> {
    if range.start > range.end || range.end > u64::from(plain_len) {
        return Err(CopyError::OutOfRange { end: range.end, plain_len });
    }
    // Both are at most the plain length, a u32.
    Ok(range.start as u32..range.end as u32)
}

fn read_chunks(opened: &dyn DiskFile, path: &Path, header: &Header, wanted: Range<u32>) -> Result<Bytes, CopyError> {
    let span = header.span(wanted);
    let chunks = read_at(opened, path, span.in_file)?;
    header.verify_chunks(span.first, &chunks)?;
    if span.wanted.len() < chunks.len() / 4 * 3 {
        // Copied: a part that somebody keeps must not keep the whole.
        return Ok(Bytes::copy_from_slice(&chunks[span.wanted]));
    }
    Ok(Bytes::from(chunks).slice(span.wanted))
}

fn read_at(opened: &dyn DiskFile, path: &Path, range: Range<u64>) -> Result<Vec<u8>, CopyError> {
    let mut buffer = vec![0; (range.end - range.start) as usize];
    match opened.read_exact_at(&mut buffer, range.start) {
        Ok(()) => Ok(buffer),
        // It became shorter since we asked for its length: nobody shortens block files.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(CopyError::Damaged(file::FormatError::FileLength { file_len: range.end }.into()))
        }
        Err(error) => Err(CopyError::Io(FileError::of("read", path)(error))),
    }
}

fn remove_if_present(disk: &dyn Disk, path: &Path) -> Result<Removed, FileError> {
    match disk.remove_file(path) {
        Ok(()) => Ok(Removed::Yes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Removed::WasAbsent),
        Err(error) => Err(FileError::of("remove", path)(error)),
    }
}

fn list_if_present(disk: &dyn Disk, path: &Path) -> Result<Vec<garage_types::disk::DirectoryEntry>, FileError> {
    match disk.list(path) {
        Ok(entries) => Ok(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(FileError::of("list", path)(error)),
    }
}
