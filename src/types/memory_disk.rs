//! A disk in memory that knows what was synced, for tests and the simulator.
//!
//! The model is strict: after [`MemoryDisk::crash`] a file has its last synced content, and a name exists only if its directory was
//! synced since the name came to be. Rename is atomic; a removed name comes back unless the directory was synced. Real disks may keep
//! more than they must: after [`MemoryDisk::crash_keeping`] some of what was not synced is there all the same. With a [`Power`] of its
//! own, a disk stops before any of its steps. While it is [`MemoryDisk::failing`], one kind of call answers an error and changes nothing.
//! A file with a bad sector ([`MemoryDisk::spoil`]) can be opened and never be read again; another file that takes its name can. Disks
//! are mounted elsewhere by [`MemoryDisk::exchange`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Access, DirectoryEntry, Disk, DiskFile, DiskSpace, FileIdentity, FileKind};
use crate::power::Power;
use crate::random::Random;

type FileNumber = u64;

/// "Input/output error".
const EIO: i32 = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    File(FileNumber),
    Directory,
}

#[derive(Clone)]
struct NameChange {
    path: PathBuf,
    name: Option<Name>,
    /// Made in one step with the change before it.
    is_joined: bool,
}

#[derive(Clone, Default)]
struct Content {
    written: Arc<Vec<u8>>,
    synced: Arc<Vec<u8>>,
}

/// The calls that fail together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailingCall {
    /// Opening a file, or reading it whole: descriptors or memory ran out, or a permission is missing.
    Open,
    /// Reading from a file that is open.
    Read,
    /// Creating or overwriting a file.
    Write,
    /// Syncing a file or a directory.
    Sync,
    Rename,
    Remove,
    /// Asking what a path names, which file it is, or which names a directory has.
    Look,
}

impl FailingCall {
    pub const ALL: [FailingCall; 7] = [Self::Open, Self::Read, Self::Write, Self::Sync, Self::Rename, Self::Remove, Self::Look];
}

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, Name>,
    synced_names: BTreeMap<PathBuf, Name>,
    contents: BTreeMap<FileNumber, Content>,
    /// Changes of names that no sync of their directory has covered, in their order.
    unsynced: Vec<NameChange>,
    next_file: FileNumber,
    power: Power,
    failing: Option<(FailingCall, i32)>,
    spoilt: BTreeSet<FileNumber>,
    capacity: Option<u64>,
    syncs: u64,
}

/// An in-memory file system with the root `/` and the directory `.`.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// The power goes: everything that was not synced is gone. Open files keep what they had.
    pub fn crash(&self) {
        self.crash_with(&mut |_choices| 0);
    }

    /// As [`MemoryDisk::crash`], but of the unsynced changes of names as many as chance will have it, from the first on, have reached
    /// the disk, and of each unsynced content nothing, the beginning, or all.
    pub fn crash_keeping(&self, random: &dyn Random) {
        self.crash_with(&mut |choices| random.below(choices as u64) as usize);
    }

    /// `choose`: a number below the one given; 0 loses as much as can be.
    fn crash_with(&self, choose: &mut dyn FnMut(usize) -> usize) {
        let mut state = self.state();
        let mut kept = choose(state.unsynced.len() + 1);
        while kept > 0 && state.unsynced.get(kept).is_some_and(|change| change.is_joined) {
            kept -= 1;
        }
        let changes = std::mem::take(&mut state.unsynced);
        for NameChange { path, name, .. } in changes.into_iter().take(kept) {
            match name {
                Some(name) => state.synced_names.insert(path, name),
                None => state.synced_names.remove(&path),
            };
        }
        state.names = state.synced_names.clone();
        for content in state.contents.values_mut() {
            if content.written == content.synced {
                continue;
            }
            let kept = match choose(3) {
                0 => content.synced.to_vec(),
                1 => content.written.get(..choose(content.written.len() + 1)).unwrap_or_default().to_vec(),
                _ => content.written.to_vec(),
            };
            content.written = Arc::new(kept);
            content.synced = content.written.clone();
        }
    }

    /// From now on the disk runs on `power`.
    pub fn run_on(&self, power: Power) {
        self.state().power = power;
    }

    /// Bytes all files may hold together; creating more answers `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// From now on every call of this kind answers the error with this number (`errno`) and does nothing else; `None`: no call fails.
    pub fn failing(&self, failing: Option<(FailingCall, i32)>) {
        self.state().failing = failing;
    }

    /// Flips one bit of a file, synced or not: bit rot.
    ///
    /// # Panics
    /// When there is no such file or it is shorter.
    pub fn flip_bit(&self, path: &Path, byte: usize) {
        let mut state = self.state();
        let number = state.file(path).expect("the file exists");
        let content = state.contents.get_mut(&number).expect("a named file has content");
        for copy in [&mut content.written, &mut content.synced] {
            if let Some(byte) = Arc::make_mut(copy).get_mut(byte) {
                *byte ^= 1;
            }
        }
    }

    /// From now on reading what this file holds answers an I/O error, for ever: a bad sector.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn spoil(&self, path: &Path) {
        let mut state = self.state();
        let number = state.file(path).expect("the file exists");
        state.spoilt.insert(number);
    }

    /// Each of two directories, with all that is below it, gets the place of the other, as disks that are mounted the other way round; one
    /// that does not exist leaves nothing in the other's place. This is no change of names that a crash might undo.
    pub fn exchange(&self, first: &Path, second: &Path) {
        let mut state = self.state();
        let moved = |path: &PathBuf| {
            let to = |from: &Path, to: &Path| path.strip_prefix(from).ok().map(|rest| to.join(rest).components().collect());
            to(first, second).or_else(|| to(second, first)).unwrap_or_else(|| path.clone())
        };
        state.names = state.names.iter().map(|(path, name)| (moved(path), *name)).collect();
        state.synced_names = state.synced_names.iter().map(|(path, name)| (moved(path), *name)).collect();
        for change in &mut state.unsynced {
            change.path = moved(&change.path);
        }
    }

    /// How often a file or directory was synced, to count what an operation costs.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// All files, with their paths.
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.state();
        state.names.iter().filter(|(_, name)| **name != Name::Directory).map(|(path, _)| path.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while holding the disk")
    }

    /// For reading, which takes power and leaves no trace.
    fn powered(&self, call: FailingCall) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        state.check(call)?;
        if state.power.is_on() { Ok(state) } else { Err(io::Error::other("the power is off")) }
    }

    /// For a change, which is made whole or not at all.
    fn step(&self, call: FailingCall) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        state.check(call)?;
        state.power.step()?;
        Ok(state)
    }
}

impl State {
    /// Whether calls of this kind work.
    fn check(&self, call: FailingCall) -> io::Result<()> {
        match self.failing {
            Some((failing, errno)) if failing == call => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    fn check_sectors(&self, number: FileNumber) -> io::Result<()> {
        if self.spoilt.contains(&number) { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn file(&self, path: &Path) -> io::Result<FileNumber> {
        match self.names.get(path) {
            Some(Name::File(number)) => Ok(*number),
            Some(Name::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn set_name(&mut self, path: &Path, name: Option<Name>) {
        match name {
            Some(name) => self.names.insert(path.to_owned(), name),
            None => self.names.remove(path),
        };
        self.unsynced.push(NameChange { path: path.to_owned(), name, is_joined: false });
    }

    fn is_directory(&self, path: &Path) -> bool {
        is_root(path) || self.names.get(path) == Some(&Name::Directory)
    }

    fn parent_exists(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.is_directory(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn used(&self) -> u64 {
        let files = self.names.values().filter_map(|name| match name {
            Name::File(number) => self.contents.get(number),
            Name::Directory => None,
        });
        files.map(|content| content.written.len() as u64).sum()
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/") || path == Path::new(".")
}

fn is_directly_in(path: &Path, directory: &Path) -> bool {
    match path.parent() {
        Some(parent) => {
            parent == directory || (is_root(parent) && is_root(directory) && parent.has_root() == directory.has_root())
        }
        None => false,
    }
}

impl Disk for MemoryDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.powered(FailingCall::Open)?;
        let number = state.file(path)?;
        state.check_sectors(number)?;
        Ok(state.contents[&number].written.to_vec())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.powered(FailingCall::Open)?;
        let number = state.file(path)?;
        let content = state.contents[&number].written.clone();
        Ok(Box::new(OpenFile { disk: self.clone(), number, content }))
    }

    fn create(&self, path: &Path, parts: &[&[u8]], _access: Access) -> io::Result<()> {
        let mut state = self.step(FailingCall::Write)?;
        state.parent_exists(path)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut content = parts.concat();
        let room = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
        let full = content.len() as u64 > room;
        if full {
            content.truncate(room as usize);
        }
        let number = state.next_file;
        state.next_file += 1;
        state.contents.insert(number, Content { written: Arc::new(content), synced: Arc::default() });
        state.set_name(path, Some(Name::File(number)));
        if full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn overwrite(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut state = self.step(FailingCall::Write)?;
        let number = state.file(path)?;
        let Some(file) = state.contents.get_mut(&number) else { return Err(io::ErrorKind::NotFound.into()) };
        let written = Arc::make_mut(&mut file.written);
        written.resize(written.len().max(content.len()), 0);
        written[..content.len()].copy_from_slice(content);
        Ok(())
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step(FailingCall::Sync)?;
        let number = state.file(path)?;
        state.syncs += 1;
        if let Some(content) = state.contents.get_mut(&number) {
            content.synced = content.written.clone();
        }
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step(FailingCall::Sync)?;
        if !state.is_directory(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.syncs += 1;
        let State { names, synced_names, unsynced, .. } = &mut *state;
        unsynced.retain(|change| !is_directly_in(&change.path, path));
        synced_names.retain(|name, _| !is_directly_in(name, path) || names.contains_key(name));
        for (name, what) in names.iter().filter(|(name, _)| is_directly_in(name, path)) {
            synced_names.insert(name.clone(), *what);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.step(FailingCall::Rename)?;
        state.parent_exists(to)?;
        let number = state.file(from)?;
        state.set_name(from, None);
        state.set_name(to, Some(Name::File(number)));
        if let Some(change) = state.unsynced.last_mut() {
            change.is_joined = true;
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.step(FailingCall::Remove)?;
        state.file(path)?;
        state.set_name(path, None);
        Ok(())
    }

    fn create_directory(&self, path: &Path) -> io::Result<bool> {
        let mut state = self.step(FailingCall::Write)?;
        if state.is_directory(path) {
            return Ok(false);
        }
        state.parent_exists(path)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.set_name(path, Some(Name::Directory));
        Ok(true)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
        let state = self.powered(FailingCall::Look)?;
        if !state.is_directory(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.names.iter().filter(|(name, _)| is_directly_in(name, path));
        Ok(inside
            .map(|(name, what)| DirectoryEntry {
                name: name.file_name().map(OsString::from).unwrap_or_default(),
                kind: if *what == Name::Directory { FileKind::Directory } else { FileKind::File },
            })
            .collect())
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        let state = self.powered(FailingCall::Look)?;
        if is_root(path) {
            return Ok(Some(FileKind::Directory));
        }
        Ok(state.names.get(path).map(|name| match name {
            Name::File(_) => FileKind::File,
            Name::Directory => FileKind::Directory,
        }))
    }

    fn identity(&self, path: &Path) -> io::Result<FileIdentity> {
        let number = self.powered(FailingCall::Look)?.file(path)?;
        Ok(FileIdentity { device: 0, inode: number, modified_ns: number.into() })
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        let state = self.powered(FailingCall::Look)?;
        let total = state.capacity.unwrap_or(1 << 50);
        Ok(DiskSpace { total, available: total.saturating_sub(state.used()) })
    }
}

struct OpenFile {
    disk: MemoryDisk,
    number: FileNumber,
    content: Arc<Vec<u8>>,
}

impl DiskFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.state();
        state.check(FailingCall::Read)?;
        state.check_sectors(self.number)?;
        drop(state);
        let start = usize::try_from(offset).ok();
        let source = start.and_then(|start| self.content.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::MemoryDisk;
    use crate::disk::{Access, Disk, create_directories, read_state, replace_atomically};

    #[test]
    fn what_was_not_synced_is_lost_in_a_crash() {
        let disk = MemoryDisk::new();
        create_directories(&disk, Path::new("/d")).unwrap();
        disk.create(Path::new("/d/a"), &[b"x"], Access::Everyone).unwrap();
        disk.create(Path::new("/d/b"), &[b"y"], Access::Everyone).unwrap();
        disk.sync_file(Path::new("/d/a")).unwrap();
        disk.sync_directory(Path::new("/d")).unwrap();
        disk.create(Path::new("/d/c"), &[b"z"], Access::Everyone).unwrap();
        disk.sync_file(Path::new("/d/c")).unwrap();
        disk.remove_file(Path::new("/d/a")).unwrap();
        disk.crash();
        assert_eq!(disk.read(Path::new("/d/a")).unwrap(), b"x", "the removal was not synced");
        assert_eq!(disk.read(Path::new("/d/b")).unwrap(), b"", "the content was not synced");
        assert_eq!(disk.read(Path::new("/d/c")).unwrap_err().kind(), io::ErrorKind::NotFound, "the name was not synced");
    }

    #[test]
    fn a_state_file_is_the_old_or_the_new_one_wherever_the_power_goes() {
        let disk = MemoryDisk::new();
        create_directories(&disk, Path::new("/d")).unwrap();
        let path = Path::new("/d/state");
        assert!(read_state(&disk, path).unwrap().is_none());
        replace_atomically(&disk, path, b"old", Access::OwnerOnly).unwrap();
        disk.crash();
        assert_eq!(read_state(&disk, path).unwrap().unwrap(), b"old");
        disk.set_capacity(Some(5));
        assert!(replace_atomically(&disk, path, b"new content", Access::OwnerOnly).is_err());
        assert_eq!(read_state(&disk, path).unwrap().unwrap(), b"old");
        disk.set_capacity(None);
        replace_atomically(&disk, path, b"new", Access::OwnerOnly).unwrap();
        disk.crash();
        assert_eq!(read_state(&disk, path).unwrap().unwrap(), b"new");
    }
}
