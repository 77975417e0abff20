//! Whether a node whose metadata database is gone may begin with an empty one.
//!
//! With several copies it may: it rebuilds from the other owners. With one copy of everything nobody else has its rows, and an empty
//! database would answer that no object was ever stored. So the node does not start before its operator has decided.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use garage_rpc::layout::{LayoutError, LayoutHistory, manager};
use garage_types::NodeId;
use garage_types::disk::{Disk, FileError};

/// The file by which an operator gives up a database; it counts for one start.
const CONFIRMATION: &str = "database_lost";

/// Why a node does not begin with an empty database.
#[derive(Debug, thiserror::Error)]
pub enum LostError {
    #[error(
        "the metadata database {} is gone, and with one copy of everything no other node has what was in it: put it back, or a snapshot in its place ({}). If it is lost for good, create the file {}, and the next start begins with an empty one",
        database.display(), snapshots.display(), confirmation.display()
    )]
    Gone { database: PathBuf, snapshots: PathBuf, confirmation: PathBuf },
    #[error("the cluster layout cannot be opened")]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// The node that is about to open its database.
pub struct Starting<'a> {
    pub node: NodeId,
    /// The number of this start: 1 is the first.
    pub start: u64,
    pub replication_factor: usize,
    /// Its directory.
    pub database: &'a Path,
    /// The file in it that has the rows; see [`garage_db::Engine::main_file`].
    pub main_file: &'a str,
    pub metadata_dir: &'a Path,
    pub snapshots_dir: &'a Path,
}

/// Stops a node that has stored something and whose database is gone, where nobody else has its rows.
///
/// # Errors
/// [`LostError`].
pub fn refuse_to_begin_anew(disk: &dyn Disk, starting: &Starting<'_>) -> Result<(), LostError> {
    if starting.start == 1 || !is_gone(disk, &starting.database.join(starting.main_file))? {
        return Ok(());
    }
    let layout = manager::stored(disk, starting.metadata_dir, starting.replication_factor)?;
    if !has_the_only_copy(&layout, starting.node) {
        return Ok(());
    }
    let confirmation = starting.metadata_dir.join(CONFIRMATION);
    if disk.kind(&confirmation).map_err(FileError::of("look at", &confirmation))?.is_some() {
        tracing::warn!(node = %starting.node, "the operator gave the database up: this node begins with an empty one");
        return Ok(());
    }
    Err(LostError::Gone { database: starting.database.to_owned(), snapshots: starting.snapshots_dir.to_owned(), confirmation })
}

/// Forgets the operator's word once there is a database again.
///
/// # Errors
/// [`FileError`].
pub fn forget_confirmation(disk: &dyn Disk, metadata_dir: &Path) -> Result<(), FileError> {
    let path = metadata_dir.join(CONFIRMATION);
    match disk.remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(FileError::of("remove", &path)),
    }
}

/// Whether the file of the rows is missing or empty: engines take either for a database that is to be made.
fn is_gone(disk: &dyn Disk, main_file: &Path) -> Result<bool, FileError> {
    match disk.open(main_file).and_then(|file| file.len()) {
        Ok(length) => Ok(length == 0),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(FileError::of("look at", main_file)(error)),
    }
}

fn has_the_only_copy(layout: &LayoutHistory, node: NodeId) -> bool {
    layout.replication_factor() == 1 && layout.live().any(|version| version.storage_nodes().any(|member| member == node))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use garage_rpc::layout::{LayoutHistory, NodeRole};
    use garage_types::codec::encode;
    use garage_types::disk::{Access, Disk, create_directories};
    use garage_types::memory_disk::{FailingCall, MemoryDisk};
    use garage_types::{NodeId, Timestamp};

    use super::{LostError, Starting, forget_confirmation, has_the_only_copy, is_gone, refuse_to_begin_anew};

    const ME: NodeId = NodeId::from_bytes([1; 32]);

    /// `capacity`: `None` for a gateway. Beside this node there are as many others as there are copies.
    fn layout(replication_factor: usize, capacity: Option<u64>) -> LayoutHistory {
        let mut layout = LayoutHistory::new(replication_factor);
        let role = |capacity| NodeRole { zone: "z".to_owned(), capacity, tags: Vec::new() };
        layout.stage_role(Timestamp::ZERO, ME, role(capacity)).unwrap();
        for n in 0..replication_factor {
            let other = NodeId::from_bytes([u8::try_from(n + 2).unwrap(); 32]);
            layout.stage_role(Timestamp::ZERO, other, role(Some(1 << 30))).unwrap();
        }
        layout.apply(1).unwrap();
        layout
    }

    #[test]
    fn only_a_node_that_stores_the_only_copy_has_rows_that_nobody_else_has() {
        assert!(has_the_only_copy(&layout(1, Some(1 << 30)), ME));
        assert!(!has_the_only_copy(&layout(1, None), ME), "a gateway stores nothing of its own");
        assert!(!has_the_only_copy(&layout(3, Some(1 << 30)), ME));
        assert!(!has_the_only_copy(&LayoutHistory::new(1), ME), "nothing was ever stored");
    }

    #[test]
    fn database_that_is_gone_is_not_replaced_by_an_empty_one_unless_the_operator_says_so_and_once_only() {
        let disk = MemoryDisk::new();
        let starting = |start| Starting {
            node: ME,
            start,
            replication_factor: 1,
            database: Path::new("/db.lmdb"),
            main_file: "data.mdb",
            metadata_dir: Path::new("/"),
            snapshots_dir: Path::new("/snapshots"),
        };
        let may_begin = |start| refuse_to_begin_anew(&disk, &starting(start));
        may_begin(1).unwrap();
        may_begin(2).unwrap(); // There is no layout yet.
        let bytes = encode(&layout(1, Some(1 << 30)));
        disk.create(Path::new("/cluster_layout"), &[&bytes], Access::Everyone).unwrap();
        let error = may_begin(2).unwrap_err();
        assert!(matches!(error, LostError::Gone { .. }), "{error}");
        for part in ["/db.lmdb", "/snapshots", "/database_lost"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        create_directories(&disk, Path::new("/db.lmdb")).unwrap();
        let main_file = Path::new("/db.lmdb/data.mdb");
        assert!(is_gone(&disk, main_file).unwrap(), "an empty directory is no database");
        assert!(may_begin(2).is_err());
        disk.create(Path::new("/db.lmdb/lock.mdb"), &[b"readers"], Access::Everyone).unwrap();
        assert!(may_begin(2).is_err(), "the lock file is not the database");
        disk.create(main_file, &[], Access::Everyone).unwrap();
        assert!(may_begin(2).is_err(), "an empty file is no database");
        disk.failing(Some((FailingCall::Open, 13)));
        assert!(matches!(may_begin(2), Err(LostError::File(_))), "a file that cannot be opened is not gone");
        disk.failing(None);
        disk.create(Path::new("/database_lost"), &[], Access::Everyone).unwrap();
        may_begin(2).unwrap();
        forget_confirmation(&disk, Path::new("/")).unwrap();
        forget_confirmation(&disk, Path::new("/")).unwrap();
        assert!(may_begin(2).is_err());
        disk.remove_file(main_file).unwrap();
        disk.create(main_file, &[b"rows"], Access::Everyone).unwrap();
        may_begin(2).unwrap();
    }
}
