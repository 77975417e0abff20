//! A full disk: watches the disks, tells everything that stores, and keeps a ballast to let go of.
//!
//! Must stay true: below the reserve nothing is accepted that grows, while deletions go on; a commit that finds the disk full has
//! the ballast's room, once, until there is enough to make it again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use garage_db::{Db, DbError, Relief, Relieved};
use garage_types::disk::{Disk, FileError};
use garage_types::offload::{Lost, offload};
use garage_types::size::format_binary;
use garage_types::{Offload, Room, chain};

/// The file in the metadata directory that only takes up room.
const BALLAST: &str = "ballast";
const BALLAST_BYTES_MAX: u64 = 16 << 20;
/// What is left free, so that there is room to delete.
const RESERVE_BYTES_MAX: u64 = 64 << 20;
/// Of a small disk, at most this share is ballast, and as much reserve.
const SHARE: u64 = 16;
/// What a start may write before the database is open.
const START_BYTES: u64 = 1 << 20;

/// How often the disks are looked at, usually and when little is left.
const PERIOD: Duration = Duration::from_secs(1);
const PERIOD_NEAR: Duration = Duration::from_millis(100);

/// Bytes to leave free on a file system of `total` bytes.
pub fn reserve(total: u64) -> u64 {
    (total / SHARE).min(RESERVE_BYTES_MAX)
}

/// Why the disks could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("the work on the disks was interrupted")]
    Lost(#[from] Lost),
}

/// A file that gives its room back when a commit needs it.
pub struct Ballast {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    path: PathBuf,
    limits: Limits,
    /// Told as soon as a commit leaves too little.
    pub room: Room,
}

impl Ballast {
    /// The ballast of a metadata directory; made by [`keep_room`].
    ///
    /// # Errors
    /// [`FileError`] when the file system does not tell its size.
    pub fn of(disk: Arc<dyn Disk>, metadata_dir: &Path, room: Room) -> Result<Self, FileError> {
        let total = disk.space(metadata_dir).map_err(FileError::of("ask for the free space of", metadata_dir))?.total;
        let limits = Limits { reserve: reserve(total), ballast: (total / SHARE).min(BALLAST_BYTES_MAX) };
        Ok(Ballast { disk, directory: metadata_dir.to_owned(), path: metadata_dir.join(BALLAST), limits, room })
    }

    /// Lets the ballast go if a start might not find room for what it writes.
    ///
    /// # Errors
    /// [`FileError`] when the file system does not tell its space.
    pub fn make_way_for_start(&self) -> Result<(), FileError> {
        if self.space()? < START_BYTES {
            self.give();
        }
        Ok(())
    }

    fn space(&self) -> Result<u64, FileError> {
        let space = self.disk.space(&self.directory).map_err(FileError::of("ask for the free space of", &self.directory))?;
        Ok(space.available)
    }

    /// Whether it is there, in its full length.
    fn is_present(&self) -> Result<bool, FileError> {
        match self.disk.open(&self.path).and_then(|file| file.len()) {
            Ok(len) => Ok(len == self.limits.ballast),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::of("open", &self.path)(error)),
        }
    }

    fn make(&self) -> Result<(), FileError> {
        self.remove()?;
        let made = self.disk.preallocate(&self.path, self.limits.ballast).map_err(FileError::of("make", &self.path));
        let made = made.and_then(|()| self.disk.sync_file(&self.path).map_err(FileError::of("sync", &self.path)));
        if made.is_err() {
            self.remove()?;
        }
        made
    }

    /// Returns whether there was anything to remove.
    fn remove(&self) -> Result<bool, FileError> {
        match self.disk.remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(FileError::of("remove", &self.path)(error)),
        }
        // Some file systems give the room back only then.
        self.disk.sync_directory(&self.directory).map_err(FileError::of("sync", &self.directory))?;
        Ok(true)
    }
}

impl Relief for Ballast {
    fn give(&self) -> Relieved {
        match self.remove() {
            Ok(true) => {
                tracing::warn!(path = %self.path.display(), "the metadata disk is full: gave up the ballast");
                tell_of_metadata(&self.room, true);
                Relieved::Yes
            }
            Ok(false) => Relieved::No,
            Err(error) => {
                tracing::error!(error = %chain(&error), "the metadata disk is full, and its ballast stays");
                Relieved::No
            }
        }
    }

    fn committed(&self, reusable: &dyn Fn() -> u64) {
        match self.space() {
            Ok(available) if self.is_scarce_with(available, reusable) => tell_of_metadata(&self.room, true),
            Ok(_enough) => {}
            Err(error) => tracing::debug!(error = %chain(&error), "cannot see how full the metadata disk is"),
        }
    }
}

impl Ballast {
    /// As [`judge`] sees the metadata, without looking whether the ballast is there: it is until it has been given.
    fn is_scarce_with(&self, available: u64, reusable: &dyn Fn() -> u64) -> bool {
        available < self.limits.reserve && available.saturating_add(reusable()) < self.limits.reserve
    }
}

/// What the disks look like.
#[derive(Clone, Debug)]
struct Facts {
    /// Free bytes of the metadata's file system.
    metadata: u64,
    /// Bytes that the database will use before it grows.
    reusable: u64,
    ballast: bool,
    /// Free bytes, and the reserve, of each writable data directory.
    data: Vec<(u64, u64)>,
}

/// Sizes that do not change.
#[derive(Clone, Copy, Debug)]
struct Limits {
    reserve: u64,
    ballast: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Judgement {
    metadata_scarce: bool,
    data_free: u64,
    make_ballast: bool,
    /// Little enough that it is worth looking more often.
    near: bool,
}

fn judge(facts: &Facts, limits: Limits) -> Judgement {
    // While the ballast is gone its room has to be found as well.
    let missing = if facts.ballast { 0 } else { limits.ballast };
    let usable = facts.metadata.saturating_add(facts.reusable);
    let needed = limits.reserve + missing;
    Judgement {
        metadata_scarce: usable < needed,
        data_free: facts.data.iter().map(|(available, reserve)| available.saturating_sub(*reserve)).fold(0, u64::saturating_add),
        make_ballast: !facts.ballast && facts.metadata >= needed,
        near: usable < needed.saturating_mul(4),
    }
}

/// What is watched.
pub struct Watched {
    pub db: Db,
    pub ballast: Arc<Ballast>,
    /// Data directories that take new blocks.
    pub data: Vec<PathBuf>,
    pub disk: Arc<dyn Disk>,
    pub offload: Arc<dyn Offload>,
}

impl Watched {
    /// Looks at the disks once, and tells. Returns when to look again.
    ///
    /// # Errors
    /// [`RoomError`]; what was told before stays.
    pub async fn look(&self) -> Result<Duration, RoomError> {
        let reusable = self.db.reusable_bytes().await?;
        let (disk, data, ballast) = (self.disk.clone(), self.data.clone(), self.ballast.clone());
        let judged = offload(&*self.offload, move || -> Result<Judgement, FileError> {
            let of_data = |path: &PathBuf| {
                let space = disk.space(path).map_err(FileError::of("ask for the free space of", path))?;
                Ok((space.available, reserve(space.total)))
            };
            let data = data.iter().map(of_data).collect::<Result<_, FileError>>()?;
            let facts = Facts { metadata: ballast.space()?, reusable, ballast: ballast.is_present()?, data };
            let judgement = judge(&facts, ballast.limits);
            if judgement.make_ballast {
                ballast.make()?;
            }
            Ok(judgement)
        });
        let Judgement { metadata_scarce, data_free, near, .. } = judged.await??;
        tell_of_metadata(self.db.room(), metadata_scarce);
        tell_of_data(self.db.room(), data_free);
        Ok(if near { PERIOD_NEAR } else { PERIOD })
    }
}

fn tell_of_metadata(room: &Room, scarce: bool) {
    match (room.set_metadata_scarce(scarce), scarce) {
        (false, true) => tracing::error!("the metadata disk is nearly full: uploads are refused, reads and deletions go on"),
        (true, false) => tracing::info!("there is room for metadata again: uploads are accepted"),
        (true, true) | (false, false) => {}
    }
}

fn tell_of_data(room: &Room, free: u64) {
    match (room.set_data_free(free), free) {
        (1.., 0) => tracing::error!("the data disks are full up to their reserve: blocks are refused, reads and deletions go on"),
        (0, 1..) => tracing::info!(free = %format_binary(free), "there is room for blocks again"),
        (0, 0) | (1.., 1..) => {}
    }
}

/// Watches for as long as the node runs.
pub async fn keep_room(watched: Watched) {
    loop {
        let pause = watched.look().await.unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "cannot see how full the disks are");
            PERIOD
        });
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
