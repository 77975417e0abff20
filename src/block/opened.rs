//! Whether a data directory is still the one that was opened: its disk may be unmounted, or exchanged, while the node runs.
//!
//! What must stay true: nothing is written, renamed or removed in another directory, and what such a directory lacks says nothing about
//! a block. It is told by its marker: file systems give their root directories the same inode number, and a disk in the slot of
//! another its device number. Nobody writes the marker while the node runs, this node neither.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use garage_types::Disk;
use garage_types::disk::{FileError, FileIdentity};

use crate::error::{Exchanged, PlaceError};
use crate::open::MARKER;

/// A data directory as it was opened.
pub(crate) struct Opened {
    root: PathBuf,
    marker: PathBuf,
    content: Vec<u8>,
    seen: Mutex<Seen>,
}

/// The marker as last found, and whether the directory was there when last looked at.
#[derive(Clone, Copy)]
struct Seen {
    identity: FileIdentity,
    presence: Presence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Here,
    Exchanged,
}

/// What the identity of the file in the marker's place says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// The same directory if the content is the same, too: its file system was mounted again, or numbers its files anew.
    PerhapsSame,
    Another,
}

fn judge(known: FileIdentity, found: Option<FileIdentity>) -> Verdict {
    match found {
        Some(found) if found == known => Verdict::Same,
        Some(found) if found.modified_ns == known.modified_ns => Verdict::PerhapsSame,
        // Also a marker that an operator wrote into an empty directory: only a start looks for the blocks that it lacks.
        Some(_) | None => Verdict::Another,
    }
}

impl Opened {
    /// A directory whose marker was read and accepted.
    pub(crate) fn of(disk: &dyn Disk, root: &Path) -> Result<Self, FileError> {
        let marker = root.join(MARKER);
        let content = disk.read(&marker).map_err(FileError::of("read", &marker))?;
        let identity = disk.identity(&marker).map_err(FileError::of("look at", &marker))?;
        Ok(Opened { root: root.to_owned(), marker, content, seen: Mutex::new(Seen { identity, presence: Presence::Here }) })
    }

    /// Looks whether the directory is there, and logs when that has changed.
    pub(crate) fn check(&self, disk: &dyn Disk) -> Result<(), PlaceError> {
        let known = self.seen().identity;
        let found = if_there(disk.identity(&self.marker)).map_err(FileError::of("look at", &self.marker))?;
        let is_same = match judge(known, found) {
            Verdict::Same => true,
            Verdict::PerhapsSame => self.has_its_content(disk)?,
            Verdict::Another => false,
        };
        match found.filter(|_| is_same) {
            Some(identity) => {
                self.note(Seen { identity, presence: Presence::Here });
                Ok(())
            }
            None => {
                self.note(Seen { identity: known, presence: Presence::Exchanged });
                Err(Exchanged { path: self.root.clone() }.into())
            }
        }
    }

    fn has_its_content(&self, disk: &dyn Disk) -> Result<bool, FileError> {
        let content = if_there(disk.read(&self.marker)).map_err(FileError::of("read", &self.marker))?;
        Ok(content.as_ref() == Some(&self.content))
    }

    fn note(&self, now: Seen) {
        let before = std::mem::replace(&mut *self.seen(), now);
        match (before.presence, now.presence) {
            (Presence::Here, Presence::Exchanged) => tracing::error!(
                path = %self.root.display(),
                "this is not the data directory that was opened: its disk is not mounted, or another one is. Nothing is written or deleted there until the right one is back; to use this one, restart the node"
            ),
            (Presence::Exchanged, Presence::Here) => {
                tracing::warn!(path = %self.root.display(), "the data directory that was opened is back, and used again");
            }
            (Presence::Here, Presence::Here) | (Presence::Exchanged, Presence::Exchanged) => {}
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nothing panics while holding what was seen")
    }
}

/// `None` where nothing can have the path.
fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use garage_types::disk::FileIdentity;

    use super::{Verdict, judge};

    #[test]
    fn a_marker_is_known_again_after_a_remount_and_not_taken_for_one_written_later() {
        let known = FileIdentity { device: 1, inode: 12, modified_ns: 7 };
        assert_eq!(judge(known, Some(known)), Verdict::Same);
        assert_eq!(judge(known, Some(FileIdentity { device: 2, ..known })), Verdict::PerhapsSame);
        assert_eq!(judge(known, Some(FileIdentity { inode: 13, ..known })), Verdict::PerhapsSame);
        assert_eq!(judge(known, Some(FileIdentity { modified_ns: 8, ..known })), Verdict::Another, "a disk in the same slot");
        assert_eq!(judge(known, None), Verdict::Another, "the bare mount point");
    }
}
