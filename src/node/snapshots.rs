//! Copies of the metadata database on the same machine, taken while it is in use: for the day when its files are damaged.
//!
//! Must stay true: what has a snapshot's name is whole and on stable storage; the newest two are kept, and a third only while it is
//! made; names are UTC times that never go back, so that their order is that of their making. A snapshot that does not fit leaves
//! nothing. What has a snapshot's name is known for old when it is put back: the node has counted a start since it was made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use garage_db::{Db, DbError};
use garage_http::dates::{iso8601_millis, parse_iso8601};
use garage_table::TableError;
use garage_table::starts::raise_recorded_start;
use garage_types::disk::{Disk, FileError};
use garage_types::offload::{Lost, offload};
use garage_types::size::format_binary;
use garage_types::{Clock, Offload, Timestamp, chain};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::state::{self, StateError};

/// How many are kept.
const KEPT: usize = 2;

/// What a directory that is not a snapshot yet, or any more, ends in.
const PARTIAL_SUFFIX: &str = ".partial";

/// Why there is no new snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("a snapshot may need {} and the file system of {} has only {} to spare", format_binary(*needed), path.display(), format_binary(*available))]
    NoRoom { path: PathBuf, needed: u64, available: u64 },
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the database cannot be told from its copy")]
    Tables(#[from] TableError),
    #[error("the work on snapshots was interrupted")]
    Lost(#[from] Lost),
}

/// What snapshots are made from.
pub struct SnapshotParts {
    pub db: Db,
    /// Of the database's files, to know how much a copy may need.
    pub database: PathBuf,
    /// Where this node's starts are counted.
    pub metadata_dir: PathBuf,
    /// Where snapshots go; made when missing.
    pub directory: PathBuf,
    /// Bytes that a snapshot leaves free.
    pub reserve_bytes: u64,
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub offload: Arc<dyn Offload>,
}

/// Takes snapshots, one at a time. Clones are one.
#[derive(Clone)]
pub struct Snapshots(Arc<Inner>);

struct Inner {
    parts: SnapshotParts,
    one_at_a_time: Mutex<()>,
}

impl Snapshots {
    pub fn new(parts: SnapshotParts) -> Self {
        Snapshots(Arc::new(Inner { parts, one_at_a_time: Mutex::new(()) }))
    }

    /// Takes a snapshot, removes those that are too many, and returns the path of the new one.
    ///
    /// # Errors
    /// [`SnapshotError`]; there is no new snapshot then, and none of the old ones is gone.
    pub async fn take(&self) -> Result<PathBuf, SnapshotError> {
        let _one_at_a_time = self.0.one_at_a_time.lock().await;
        let inner = self.0.clone();
        let path = offload(&*self.0.parts.offload, move || inner.prepare()).await??;
        let copy = unusable(&path);
        self.0.parts.db.snapshot_to(&copy).await?;
        let SnapshotParts { db, disk, offload: pool, metadata_dir, .. } = &self.0.parts;
        let outdated = outdate_copies(db, disk.clone(), &**pool, metadata_dir.clone()).await;
        let (inner, name) = (self.0.clone(), path.clone());
        let settle = move || match outdated {
            Ok(()) => inner.give_name(&copy, &name).map_err(SnapshotError::from),
            Err(error) => {
                // To give the space back.
                remove(&copy)?;
                Err(error)
            }
        };
        offload(&**pool, settle).await??;
        tracing::info!(path = %path.display(), "metadata snapshot made");
        let inner = self.0.clone();
        // The new one is there whatever happens to the old ones.
        if let Err(error) = offload(&*self.0.parts.offload, move || inner.remove_old()).await? {
            tracing::warn!(error = %chain(&error), "cannot remove old metadata snapshots");
        }
        Ok(path)
    }
}

impl Inner {
    /// Removes what a crash has left, and says what the next snapshot is called.
    fn prepare(&self) -> Result<PathBuf, SnapshotError> {
        let SnapshotParts { database, directory, reserve_bytes, disk, clock, .. } = &self.parts;
        garage_types::disk::create_directories(&**disk, directory)?;
        for name in names(directory)?.into_iter().filter(|name| is_left_over(name)) {
            remove(&directory.join(name))?;
        }
        let available = disk.space(directory).map_err(FileError::of("ask for the free space of", directory))?.available;
        let needed = allocated(database)?.saturating_add(*reserve_bytes);
        if available < needed {
            return Err(SnapshotError::NoRoom { path: directory.clone(), needed, available });
        }
        Ok(directory.join(next_name(&names(directory)?, clock.now())))
    }

    /// From now on the copy is a snapshot.
    fn give_name(&self, copy: &Path, name: &Path) -> Result<(), FileError> {
        fs::rename(copy, name).map_err(FileError::of("rename", copy))?;
        let directory = &self.parts.directory;
        self.parts.disk.sync_directory(directory).map_err(FileError::of("sync", directory))
    }

    fn remove_old(&self) -> Result<(), FileError> {
        let directory = &self.parts.directory;
        for name in superfluous(&names(directory)?) {
            let path = directory.join(&name);
            let leaving = unusable(&path);
            // First the name, so that a crash leaves nothing that looks whole.
            fs::rename(&path, &leaving).map_err(FileError::of("rename", &path))?;
            remove(&leaving)?;
        }
        Ok(())
    }
}

/// What a snapshot is called while it must not be put back.
fn unusable(snapshot: &Path) -> PathBuf {
    let mut name = snapshot.as_os_str().to_owned();
    name.push(PARTIAL_SUFFIX);
    PathBuf::from(name)
}

/// Makes every copy of the database taken until now older than the files beside it, as if the node had been started again: put back,
/// it is taken for what it is, and rebuilt from the other owners.
///
/// # Errors
/// [`SnapshotError`]; copies may then be taken for the database itself.
pub async fn outdate_copies(
    db: &Db,
    disk: Arc<dyn Disk>,
    pool: &dyn Offload,
    metadata_dir: PathBuf,
) -> Result<(), SnapshotError> {
    let next = {
        let (disk, metadata_dir) = (disk.clone(), metadata_dir.clone());
        offload(pool, move || state::next_start(&*disk, &metadata_dir)).await??
    };
    raise_recorded_start(db, next).await?;
    offload(pool, move || state::count_start(&*disk, &metadata_dir, next)).await??;
    Ok(())
}

fn is_snapshot(name: &str) -> bool {
    time_of(name).is_some()
}

/// Of a snapshot that was never finished, by the database or by us.
fn is_left_over(name: &str) -> bool {
    name.ends_with(PARTIAL_SUFFIX) && is_snapshot(name.trim_end_matches(PARTIAL_SUFFIX))
}

fn time_of(name: &str) -> Option<Timestamp> {
    parse_iso8601(name).ok().filter(|time| name_at(*time) == name)
}

/// `2024-03-15T12:13:52Z`
fn name_at(time: Timestamp) -> String {
    iso8601_millis(Timestamp::from_millis(time.as_secs() * 1000)).replace(".000Z", "Z")
}

/// Later than every name there is, whatever the clock says.
fn next_name(names: &[String], now: Timestamp) -> String {
    let newest = names.iter().filter_map(|name| time_of(name)).max();
    name_at(newest.map_or(now, |newest| now.max(newest.plus_millis(1000))))
}

/// The snapshots that go.
fn superfluous(names: &[String]) -> Vec<String> {
    let mut snapshots: Vec<&String> = names.iter().filter(|name| is_snapshot(name)).collect();
    snapshots.sort();
    let count = snapshots.len().saturating_sub(KEPT);
    snapshots.into_iter().take(count).cloned().collect()
}

fn names(directory: &Path) -> Result<Vec<String>, FileError> {
    let entries = fs::read_dir(directory).map_err(FileError::of("list", directory))?;
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string().ok());
    let names = entries.map(name).collect::<io::Result<Vec<_>>>().map_err(FileError::of("list", directory))?;
    // What is not UTF-8 is none of ours.
    Ok(names.into_iter().flatten().collect())
}

fn remove(path: &Path) -> Result<(), FileError> {
    fs::remove_dir_all(path).map_err(FileError::of("remove", path))
}

/// Bytes that the files in a directory take on their disk.
fn allocated(directory: &Path) -> Result<u64, FileError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |source| FileError { action: "measure", path: directory.to_owned(), source };
    let mut total = 0;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => total += allocated(&entry.path())?,
            Ok(metadata) => total += metadata.blocks() * 512,
            // Files of an engine come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(total)
}

/// Takes a snapshot every `interval`, for as long as the node runs.
pub async fn take_regularly(snapshots: Snapshots, interval: Duration) {
    let mut next = Instant::now();
    loop {
        // However long the last one took.
        next = (next + interval).max(Instant::now());
        tokio::time::sleep_until(next).await;
        if let Err(error) = snapshots.take().await {
            tracing::error!(error = %chain(&error), "no metadata snapshot was made");
        }
    }
}

#[cfg(test)]
#[path = "snapshots_tests.rs"]
mod tests;
