//! Refuses writes before a disk is full, without asking the file system each time.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use garage_types::Disk;
use garage_types::disk::FileError;
use tokio::time::Instant;

/// A reading older than this is taken anew.
const FRESH: Duration = Duration::from_secs(1);
/// So is one after which this many bytes were written.
const WRITTEN_MAX: u64 = 64 << 20;

/// The free space of one data directory, as last read, less what was written since.
#[derive(Default)]
pub(crate) struct Space(Mutex<Option<Reading>>);

#[derive(Clone, Copy)]
struct Reading {
    taken: Instant,
    available: u64,
    written_since: u64,
}

/// Whether bytes may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Granted,
    BelowReserve,
}

impl Space {
    /// Admits `len` bytes more if `reserve` stay free after them, and counts them as written.
    pub(crate) fn admit(&self, disk: &dyn Disk, path: &Path, len: u64, reserve: u64) -> Result<Admission, FileError> {
        let mut slot = self.0.lock().expect("nothing panics while holding the reading");
        let reading = current(*slot, disk, path, len)?;
        let reading = slot.insert(reading);
        let admission = reading.admission(len, reserve);
        if admission == Admission::Granted {
            reading.written_since = reading.written_since.saturating_add(len);
        }
        Ok(admission)
    }

    /// As [`Space::admit`], but nothing is counted.
    pub(crate) fn check(&self, disk: &dyn Disk, path: &Path, len: u64, reserve: u64) -> Result<Admission, FileError> {
        let mut slot = self.0.lock().expect("nothing panics while holding the reading");
        let reading = current(*slot, disk, path, len)?;
        let reading = slot.insert(reading);
        Ok(reading.admission(len, reserve))
    }

    /// What was read is not true any more: ask again next time.
    pub(crate) fn forget(&self) {
        *self.0.lock().expect("nothing panics while holding the reading") = None;
    }
}

impl Reading {
    fn admission(&self, len: u64, reserve: u64) -> Admission {
        let needed = self.written_since.saturating_add(len).saturating_add(reserve);
        if needed > self.available { Admission::BelowReserve } else { Admission::Granted }
    }
}

/// The last reading while it is fresh enough for `len` bytes more, else a new one.
fn current(last: Option<Reading>, disk: &dyn Disk, path: &Path, len: u64) -> Result<Reading, FileError> {
    let taken = Instant::now();
    let is_fresh = |reading: &Reading| {
        taken.duration_since(reading.taken) < FRESH && reading.written_since.saturating_add(len) <= WRITTEN_MAX
    };
    match last.filter(is_fresh) {
        Some(reading) => Ok(reading),
        None => {
            let available = disk.space(path).map_err(FileError::of("ask for the free space of", path))?.available;
            Ok(Reading { taken, available, written_since: 0 })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use garage_types::Disk;
    use garage_types::disk::Access;
    use garage_types::memory_disk::MemoryDisk;

    use super::{Admission, FRESH, Space};

    #[tokio::test(start_paused = true)]
    async fn the_reserve_stays_free_and_readings_are_renewed() {
        let disk = MemoryDisk::new();
        disk.set_capacity(Some(1000));
        let space = Space::default();
        let admit = |len| space.admit(&disk, Path::new("/"), len, 100).unwrap();
        assert_eq!(admit(600), Admission::Granted);
        assert_eq!(admit(301), Admission::BelowReserve);
        assert_eq!(admit(300), Admission::Granted);
        disk.create(Path::new("/other"), &[&[0; 500]], Access::Everyone).unwrap();
        assert_eq!(admit(1), Admission::BelowReserve, "as far as is known");
        tokio::time::advance(FRESH).await;
        assert_eq!(admit(401), Admission::BelowReserve);
        assert_eq!(admit(400), Admission::Granted);
        disk.remove_file(Path::new("/other")).unwrap();
        space.forget();
        assert_eq!(admit(900), Admission::Granted);
    }
}
