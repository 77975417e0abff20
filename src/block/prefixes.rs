//! The two levels of directories named after the first bytes of a hash, made when first needed.
//!
//! What must stay true: once [`Prefixes::ensure`] has returned, the names of both directories are on stable storage. Those that exist
//! when the process starts may not be: it was perhaps killed between making and syncing them. They are synced together, when the
//! first of them is used.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use garage_types::disk::{FileError, FileKind};
use garage_types::{BlockHash, Disk};

use crate::open::Durability;

/// Which prefix directories of one data directory are known to exist durably.
pub(crate) struct Prefixes(Vec<Mutex<Option<Known>>>);

/// The second-level directories known under a first-level one.
struct Known([bool; 256]);

impl Prefixes {
    pub(crate) fn new() -> Self {
        Prefixes((0..256).map(|_| Mutex::new(None)).collect())
    }

    /// Makes the directory for a block below `root`, and the one above it. Blocks while another thread does so for the same first byte.
    pub(crate) fn ensure(&self, disk: &dyn Disk, root: &Path, hash: BlockHash, durability: Durability) -> Result<(), FileError> {
        let [first, second, ..] = *hash.as_bytes();
        let leaf = leaf(root, hash);
        let above = leaf.parent().unwrap_or(root);
        let mut slot = self.0[usize::from(first)].lock().expect("nothing panics while holding the prefixes");
        let known = match &mut *slot {
            Some(known) => known,
            None => {
                disk.create_directory(above).map_err(FileError::of("create directory", above))?;
                let present = second_level(disk, above)?;
                sync(disk, root, durability)?;
                sync(disk, above, durability)?;
                slot.insert(present)
            }
        };
        if !known.0[usize::from(second)] {
            disk.create_directory(&leaf).map_err(FileError::of("create directory", &leaf))?;
            sync(disk, above, durability)?;
            known.0[usize::from(second)] = true;
        }
        Ok(())
    }

    /// Looks again next time: somebody may have removed the directories of this block.
    pub(crate) fn forget(&self, hash: BlockHash) {
        *self.0[usize::from(hash.as_bytes()[0])].lock().expect("nothing panics while holding the prefixes") = None;
    }
}

/// `<root>/<hex 1-2>/<hex 3-4>`.
pub(crate) fn leaf(root: &Path, hash: BlockHash) -> PathBuf {
    let [first, second, ..] = *hash.as_bytes();
    root.join(format!("{first:02x}/{second:02x}"))
}

/// The byte that a prefix directory is named after.
pub(crate) fn byte_of(name: &std::ffi::OsStr) -> Option<u8> {
    let name = name.to_str().filter(|name| name.len() == 2)?;
    let byte = u8::from_str_radix(name, 16).ok()?;
    (format!("{byte:02x}") == name).then_some(byte)
}

fn second_level(disk: &dyn Disk, above: &Path) -> Result<Known, FileError> {
    let mut known = Known([false; 256]);
    for entry in disk.list(above).map_err(FileError::of("list", above))? {
        if let (FileKind::Directory, Some(byte)) = (entry.kind, byte_of(&entry.name)) {
            known.0[usize::from(byte)] = true;
        }
    }
    Ok(known)
}

fn sync(disk: &dyn Disk, path: &Path, durability: Durability) -> Result<(), FileError> {
    match durability {
        Durability::Synced => disk.sync_directory(path).map_err(FileError::of("sync", path)),
        Durability::Unsynced => Ok(()),
    }
}
