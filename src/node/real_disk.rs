//! The machine's own file system.
//!
//! The daemon's implementation of [`Disk`]; all calls block. Nothing is synced unless asked for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use garage_types::disk::{Access, DirectoryEntry, Disk, DiskFile, DiskSpace, FileIdentity, FileKind};

/// The file system as the operating system shows it. Symbolic links are followed: a data directory may be one.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(File::open(path)?)))
    }

    fn create(&self, path: &Path, parts: &[&[u8]], access: Access) -> io::Result<()> {
        let mode = match access {
            Access::Everyone => 0o644,
            Access::OwnerOnly => 0o600,
        };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        write_all_vectored(&mut file, &mut slices)
    }

    fn preallocate(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => write_zeros(file, len),
            reserved => Ok(reserved?),
        }
    }

    fn overwrite(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.write_all_at(content, 0)
    }

    fn sync_file(&self, path: &Path) -> io::Result<()> {
        // A descriptor opened for reading will do: what failed to be written since the file was created is reported to it.
        File::open(path)?.sync_all()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<bool> {
        match fs::DirBuilder::new().mode(0o755).create(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            let kind = entry.file_type()?;
            // A link counts as what it leads to; one that leads nowhere is a file, so that it can be removed.
            let is_directory = kind.is_dir() || (kind.is_symlink() && entry.path().is_dir());
            let kind = if is_directory { FileKind::Directory } else { FileKind::File };
            Ok(DirectoryEntry { name: entry.file_name(), kind })
        };
        fs::read_dir(path)?.map(entry).collect()
    }

    fn kind(&self, path: &Path) -> io::Result<Option<FileKind>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(if metadata.is_dir() { FileKind::Directory } else { FileKind::File })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn identity(&self, path: &Path) -> io::Result<FileIdentity> {
        let found = fs::metadata(path)?;
        let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Ok(FileIdentity { device: found.dev(), inode: found.ino(), modified_ns })
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(DiskSpace {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// For file systems that cannot reserve room.
fn write_zeros(mut file: File, len: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(len), &mut file).map(|_copied| ())
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// All parts in one system call where the system takes them at once.
fn write_all_vectored(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Empty ones at the front would look like a write of nothing.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use garage_block::{
        BlockError, Compression, DataDirectory, Durability, LocalStore, StoreOptions, StoredBlock, Usage, Written,
    };
    use garage_types::disk::{Access, Disk, FileKind};
    use garage_types::offload::Inline;
    use garage_types::{BlockHash, NodeId};

    use super::RealDisk;

    #[test]
    fn it_does_what_a_disk_promises() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let disk = RealDisk;
        assert_eq!(disk.kind(&path).unwrap(), None);
        disk.create(&path, &[b"", b"ab", b"", b"cd", b""], Access::OwnerOnly).unwrap();
        assert_eq!(disk.create(&path, &[], Access::OwnerOnly).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        disk.sync_file(&path).unwrap();
        disk.sync_directory(folder.path()).unwrap();
        assert_eq!(disk.read(&path).unwrap(), b"abcd");
        let opened = disk.open(&path).unwrap();
        disk.rename(&path, &folder.path().join("other")).unwrap();
        let mut buffer = [0; 2];
        opened.read_exact_at(&mut buffer, 1).unwrap();
        assert_eq!((&buffer, opened.len().unwrap()), (b"bc", 4));
        assert_eq!(opened.read_exact_at(&mut buffer, 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let inside = folder.path().join("directory");
        assert!(disk.create_directory(&inside).unwrap());
        assert!(!disk.create_directory(&inside).unwrap());
        assert_eq!(disk.create_directory(&path.join("x")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut entries = disk.list(folder.path()).unwrap();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let entries: Vec<_> = entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.kind)).collect();
        assert_eq!(entries, [("directory", FileKind::Directory), ("other", FileKind::File)]);
        disk.remove_file(&folder.path().join("other")).unwrap();
        assert_eq!(disk.read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let space = disk.space(folder.path()).unwrap();
        assert!(0 < space.available && space.available <= space.total);
    }

    #[tokio::test]
    async fn blocks_live_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            node: NodeId::from_bytes([1; 32]),
            metadata_dir: folder.path().to_owned(),
            directories: vec![DataDirectory { path: folder.path().join("data"), usage: Usage::Writable { capacity: 1 } }],
            durability: Durability::Synced,
            reserve_bytes: 0,
            reads_in_flight_max: 2,
            writes_in_flight_max: 2,
        };
        let store = LocalStore::open(Arc::new(RealDisk), Arc::new(Inline), options.clone()).await.unwrap();
        let plain = Bytes::from_iter((0..300_000_u32).map(|i| (i % 253) as u8));
        let hash = BlockHash::of(&plain);
        for compression in [Compression::Off, Compression::Zstd { level: 3 }] {
            let block = StoredBlock::compress(plain.clone(), compression).unwrap();
            assert_eq!(store.write(hash, block).await.unwrap(), Written::New);
            assert_eq!(store.read_range(hash, 100_000..250_000).await.unwrap(), plain.slice(100_000..250_000));
            let store = LocalStore::open(Arc::new(RealDisk), Arc::new(Inline), options.clone()).await.unwrap();
            assert_eq!(store.read(hash).await.unwrap(), plain);
            let hex = hash.to_string();
            let path = folder.path().join("data").join(&hex[..2]).join(&hex[2..4]).join(&hex);
            shorten(&path);
            assert!(matches!(store.read(hash).await, Err(BlockError::Corrupt { .. })));
            assert!(!store.contains(hash).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_directory_exchanged_while_in_use_is_left_alone_until_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let open = async |node: u8, name: &str| {
            let options = StoreOptions {
                node: NodeId::from_bytes([node; 32]),
                metadata_dir: at(&format!("{name}-meta")),
                directories: vec![DataDirectory { path: at(name), usage: Usage::Writable { capacity: 1 } }],
                durability: Durability::Synced,
                reserve_bytes: 0,
                reads_in_flight_max: 2,
                writes_in_flight_max: 2,
            };
            std::fs::create_dir_all(&options.metadata_dir).unwrap();
            LocalStore::open(Arc::new(RealDisk), Arc::new(Inline), options).await.unwrap()
        };
        let plain = Bytes::from_static(b"a block that both nodes have");
        let only_here = Bytes::from_static(b"a block that one node has");
        let raw = |plain: &Bytes| StoredBlock::compress(plain.clone(), Compression::Off).unwrap();
        let (both, here) = (BlockHash::of(&plain), BlockHash::of(&only_here));
        let (store, other) = (open(1, "data").await, open(2, "foreign").await);
        store.write(both, raw(&plain)).await.unwrap();
        store.write(here, raw(&only_here)).await.unwrap();
        other.write(both, raw(&plain)).await.unwrap();
        std::fs::create_dir(at("bare")).unwrap();
        for place in ["foreign", "bare"] {
            std::fs::rename(at("data"), at("away")).unwrap();
            std::fs::rename(at(place), at("data")).unwrap();
            let is_exchanged = |answer: Result<(), BlockError>| matches!(answer, Err(BlockError::Exchanged(_)));
            assert!(is_exchanged(store.read(here).await.map(drop)), "{place}: it is not missing");
            assert!(is_exchanged(store.write(here, raw(&only_here)).await.map(drop)), "{place}");
            assert!(is_exchanged(store.remove(both).await.map(drop)), "{place}");
            std::fs::rename(at("data"), at(place)).unwrap();
            std::fs::rename(at("away"), at("data")).unwrap();
            assert_eq!(other.read(both).await.unwrap(), plain, "{place}: the other node's copy is untouched");
        }
        assert_eq!(std::fs::read_dir(at("bare")).unwrap().count(), 0);
        assert_eq!(other.page(BlockHash::from_bytes([0; 32]), 10).await.unwrap().hashes, [both]);
        assert_eq!(store.read(here).await.unwrap(), only_here);
        assert_eq!(store.write(here, raw(&only_here)).await.unwrap(), Written::AlreadyPresent);
        assert_eq!(store.remove(both).await.unwrap(), garage_block::Removed::Yes);
    }

    #[tokio::test]
    async fn a_marker_with_another_inode_number_is_known_by_its_time_and_content() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let options = StoreOptions {
            node: NodeId::from_bytes([1; 32]),
            metadata_dir: folder.path().to_owned(),
            directories: vec![DataDirectory { path: data.clone(), usage: Usage::Writable { capacity: 1 } }],
            durability: Durability::Synced,
            reserve_bytes: 0,
            reads_in_flight_max: 2,
            writes_in_flight_max: 2,
        };
        let store = LocalStore::open(Arc::new(RealDisk), Arc::new(Inline), options).await.unwrap();
        let marker = data.join("garage-marker");
        let written = std::fs::metadata(&marker).unwrap().modified().unwrap();
        let content = std::fs::read(&marker).unwrap();
        let replace = |content: &[u8], modified: std::time::SystemTime| {
            let other = data.join("other");
            std::fs::write(&other, content).unwrap();
            std::fs::File::options().write(true).open(&other).unwrap().set_modified(modified).unwrap();
            std::fs::rename(&other, &marker).unwrap();
        };
        replace(&content, written);
        assert!(store.exchanged().await.unwrap().is_empty());
        replace(b"another node", written);
        assert_eq!(store.exchanged().await.unwrap(), std::slice::from_ref(&data));
        replace(&content, written + std::time::Duration::from_millis(1));
        assert_eq!(store.exchanged().await.unwrap(), std::slice::from_ref(&data));
        replace(&content, written);
        assert!(store.exchanged().await.unwrap().is_empty());
    }

    fn shorten(path: &Path) {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    }
}
