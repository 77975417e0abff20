//! Opening the data directories at start: markers, the recorded layout, left-over temporary files.
//!
//! What must stay true: a directory that was in use and has no marker any more is an error (its disk is not mounted), never a first
//! start; nothing is changed anywhere before every directory has been looked at.

use std::path::{Path, PathBuf};

use garage_types::codec::{DecodeError, decode, encode};
use garage_types::disk::{Access, FileError, FileKind, create_directories, read_state, replace_atomically};
use garage_types::{Disk, NodeId};

use crate::directories::{DataDirectory, DirectoriesError, DirectoryLayout, Found};
use crate::directory::TEMPORARY;

/// Names the node a data directory belongs to.
pub const MARKER: &str = "garage-marker";

/// The state file with the [`DirectoryLayout`], in the metadata directory.
pub const LAYOUT_FILE: &str = "data_layout";

/// Whether writes reach stable storage before they are acknowledged (`data_fsync`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Synced,
    /// A power cut may take or damage what was written in the last minute or so; damage is noticed when it is read.
    Unsynced,
}

/// How blocks are kept on this node.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub node: NodeId,
    pub metadata_dir: PathBuf,
    pub directories: Vec<DataDirectory>,
    pub durability: Durability,
    /// Writes that would leave fewer bytes than this free on the disk are refused.
    pub reserve_bytes: u64,
    pub reads_in_flight_max: usize,
    pub writes_in_flight_max: usize,
}

/// Data directories that cannot be used as they are.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the data directory {} was in use but its file {MARKER} is missing: is its disk mounted? \
         If the disk was replaced by an empty one, write {node} into that file",
        path.display()
    )]
    MarkerMissing { path: PathBuf, node: NodeId },
    #[error(
        "the data directory {} belongs to node {owner}, this is node {node}: give the node its own metadata_dir, with its node_key. \
         If that is lost for good, write {node} into the file {MARKER} in the directory",
        path.display()
    )]
    OtherNode { path: PathBuf, owner: NodeId, node: NodeId },
    #[error("the file {} does not contain a node id", path.display())]
    MarkerMalformed { path: PathBuf },
    #[error("the data directories cannot be used as configured")]
    Directories(#[from] DirectoriesError),
    #[error("cannot read {}", path.display())]
    Layout {
        path: PathBuf,
        #[source]
        source: DecodeError,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("opening the data directories was interrupted")]
    Lost(#[from] garage_types::offload::Lost),
}

/// The data directories, ready for use.
pub(crate) struct OpenDirectories {
    pub layout: DirectoryLayout,
    /// Blocks that were here may be gone: an operator said of a directory in use that it is empty, or took one out of the configuration.
    pub lacks_blocks: bool,
}

/// Checks and prepares all data directories, and saves their layout.
pub(crate) fn open_directories(disk: &dyn Disk, options: &StoreOptions) -> Result<OpenDirectories, OpenError> {
    let state_file = options.metadata_dir.join(LAYOUT_FILE);
    let previous = read_layout(disk, &state_file)?;
    let found = options
        .directories
        .iter()
        .map(|directory| look_at(disk, &directory.path, options.node, previous.as_ref()))
        .collect::<Result<Vec<Found>, OpenError>>()?;
    let layout = DirectoryLayout::update(previous.as_ref(), &options.directories, &found)?;

    let mut lacks_blocks = false;
    for directory in layout.directories() {
        if previous.as_ref().is_some_and(|previous| previous.names(directory)) && !was_prepared(disk, directory)? {
            tracing::warn!(path = %directory.display(), "data directory was made anew by an operator: what it had is fetched from other nodes");
            lacks_blocks = true;
        }
        prepare(disk, directory, options.node)?;
    }
    if previous.as_ref() != Some(&layout) {
        save_layout(disk, &options.metadata_dir, &layout)?;
    }
    for gone in previous.iter().flat_map(DirectoryLayout::directories).filter(|path| !layout.names(path)) {
        tracing::warn!(path = %gone.display(), "data directory is not configured any more: blocks in it are fetched from other nodes, and those that nobody else has cannot be read until it is back");
        lacks_blocks = true;
    }
    Ok(OpenDirectories { layout, lacks_blocks })
}

/// Replaces the recorded layout.
pub(crate) fn save_layout(disk: &dyn Disk, metadata_dir: &Path, layout: &DirectoryLayout) -> Result<(), FileError> {
    replace_atomically(disk, &metadata_dir.join(LAYOUT_FILE), &encode(layout), Access::OwnerOnly)
}

fn read_layout(disk: &dyn Disk, path: &Path) -> Result<Option<DirectoryLayout>, OpenError> {
    let Some(bytes) = read_state(disk, path)? else { return Ok(None) };
    match decode(&bytes) {
        Ok(layout) => Ok(Some(layout)),
        Err(source) => Err(OpenError::Layout { path: path.to_owned(), source }),
    }
}

/// What the marker says about a directory; the rule of which this module is the guard.
fn look_at(disk: &dyn Disk, directory: &Path, node: NodeId, previous: Option<&DirectoryLayout>) -> Result<Found, OpenError> {
    let path = directory.join(MARKER);
    let recorded = previous.is_some_and(|layout| layout.names(directory));
    let Some(content) = read_state(disk, &path)? else {
        return if recorded { Err(OpenError::MarkerMissing { path: directory.to_owned(), node }) } else { Ok(Found::Nothing) };
    };
    let owner: Option<NodeId> = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    match owner {
        Some(owner) if owner == node => Ok(Found::MaybeBlocks),
        Some(owner) => Err(OpenError::OtherNode { path: directory.to_owned(), owner, node }),
        None => Err(OpenError::MarkerMalformed { path }),
    }
}

/// Whether this node made the directory ready: an operator who declares one to be empty writes the marker only.
fn was_prepared(disk: &dyn Disk, directory: &Path) -> Result<bool, FileError> {
    let entries = disk.list(directory).map_err(FileError::of("list", directory))?;
    Ok(entries.iter().any(|entry| entry.kind == FileKind::Directory && entry.name == TEMPORARY))
}

/// Makes the directory, its marker and an empty directory for temporary files.
fn prepare(disk: &dyn Disk, directory: &Path, node: NodeId) -> Result<(), FileError> {
    create_directories(disk, directory)?;
    let marker = directory.join(MARKER);
    if read_state(disk, &marker)?.is_none() {
        replace_atomically(disk, &marker, format!("{node}\n").as_bytes(), Access::Everyone)?;
    }
    let temporary = directory.join(TEMPORARY);
    create_directories(disk, &temporary)?;
    for entry in disk.list(&temporary).map_err(FileError::of("list", &temporary))? {
        let path = temporary.join(entry.name);
        if entry.kind == FileKind::File {
            disk.remove_file(&path).map_err(FileError::of("remove", &path))?;
        }
    }
    Ok(())
}
