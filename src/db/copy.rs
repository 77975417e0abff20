//! All rows of one database into another, whatever their engines: for snapshots of engines that have no copy of their own, and for
//! moving to another engine.
//!
//! What must stay true: what is copied is one consistent view of the source; memory is bounded by a page of rows; the target is
//! whole only once a function of this module has said so, and each of them gives it its name only then.

use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use garage_types::chain;

use crate::engine::{Direction, ReadRows, Storage, Tree};
use crate::error::DbError;
use crate::files::{create_directories, io_error, sync_directory};

/// Rows written by one transaction end with the first that brings it to this many bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Added to the name of a copy that is not finished.
const PARTIAL_SUFFIX: &str = ".partial";

/// A copied tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeSummary {
    pub name: String,
    pub rows: u64,
    /// Of all keys and values in their order.
    pub digest: [u8; 32],
}

/// Rows collected for one transaction of the target.
#[derive(Default)]
struct Page {
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Page {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.rows.push((key.to_vec(), value.to_vec()));
        self.bytes += key.len() + value.len();
    }

    /// Writes the rows, durably as the target is set up, and empties the page.
    fn write(&mut self, target: &dyn Storage, tree: Tree) -> Result<(), DbError> {
        target.write(&mut |rows| self.rows.iter().try_for_each(|(key, value)| rows.insert(tree, key, value)))?;
        *self = Page::default();
        Ok(())
    }
}

/// Copies all trees, in the order of their names. `copied` is called with the number of rows of each page.
///
/// # Errors
/// Whatever either engine reports; the target is then incomplete.
pub(crate) fn copy_all(
    source: &dyn Storage,
    target: &dyn Storage,
    copied: &mut dyn FnMut(u64),
) -> Result<Vec<TreeSummary>, DbError> {
    let names = source.tree_names()?;
    let trees: Vec<(String, Tree, Tree)> = names
        .into_iter()
        .map(|name| Ok((name.clone(), source.open_tree(&name)?, target.open_tree(&name)?)))
        .collect::<Result<_, DbError>>()?;
    let mut outcome = Ok(Vec::new());
    source.read(&mut |rows| {
        let copy = |(name, from, to): &(String, Tree, Tree)| {
            let digest = copy_tree(rows, *from, target, *to, copied)?;
            Ok(TreeSummary { name: name.clone(), rows: digest.rows, digest: digest.finish() })
        };
        outcome = trees.iter().map(copy).collect();
    })?;
    outcome
}

fn copy_tree(
    rows: &dyn ReadRows,
    from: Tree,
    target: &dyn Storage,
    to: Tree,
    copied: &mut dyn FnMut(u64),
) -> Result<Digest, DbError> {
    let mut digest = Digest::default();
    let mut page = Page::default();
    let mut failure = None;
    rows.range(from, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, value| {
        digest.add(key, value);
        page.push(key, value);
        if page.bytes < PAGE_BYTES_MAX {
            return ControlFlow::Continue(());
        }
        copied(page.rows.len() as u64);
        match page.write(target, to) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    copied(page.rows.len() as u64);
    page.write(target, to)?;
    Ok(digest)
}

/// What a database has, read row by row. `read` is called now and then with the number of rows since the last time.
///
/// # Errors
/// What the engine reports.
pub(crate) fn summary(storage: &dyn Storage, read: &mut dyn FnMut(u64)) -> Result<Vec<TreeSummary>, DbError> {
    let trees: Vec<(String, Tree)> = storage
        .tree_names()?
        .into_iter()
        .map(|name| storage.open_tree(&name).map(|tree| (name, tree)))
        .collect::<Result<_, DbError>>()?;
    let mut outcome = Ok(Vec::new());
    storage.read(&mut |rows| {
        let summarize = |(name, tree): &(String, Tree)| {
            let mut digest = Digest::default();
            rows.range(*tree, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, value| {
                digest.add(key, value);
                if digest.rows.is_multiple_of(REPORTED_ROWS) {
                    read(REPORTED_ROWS);
                }
                ControlFlow::Continue(())
            })?;
            read(digest.rows % REPORTED_ROWS);
            Ok(TreeSummary { name: name.clone(), rows: digest.rows, digest: digest.finish() })
        };
        outcome = trees.iter().map(summarize).collect();
    })?;
    outcome
}

/// How often [`summary`] says how far it is.
const REPORTED_ROWS: u64 = 4096;

/// Counts and digests the rows of a tree.
struct Digest {
    state: blake2b_simd::State,
    rows: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Digest { state: blake2b_simd::Params::new().hash_length(32).to_state(), rows: 0 }
    }
}

impl Digest {
    /// With the lengths, so that no byte can move from a key to its value.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        for part in [key, value] {
            self.state.update(&(part.len() as u64).to_le_bytes());
            self.state.update(part);
        }
        self.rows += 1;
    }

    fn finish(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.state.finalize().as_bytes());
        digest
    }
}

/// Has `make` fill a directory and gives it the name `directory` once everything in it is on stable storage.
///
/// # Errors
/// [`DbError::Io`] when `directory` is there and not empty; what `make` and the file system report. Nothing is left then.
pub(crate) fn make_whole<T, E: From<DbError>>(directory: &Path, make: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    refuse_occupied(directory)?;
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_directories(parent)?;
    let mut partial = directory.as_os_str().to_owned();
    partial.push(PARTIAL_SUFFIX);
    let partial = PathBuf::from(partial);
    remove_all(&partial)?;
    let made = make(&partial).and_then(|made| {
        sync_all(&partial)?;
        fs::rename(&partial, directory).map_err(io_error("rename", &partial))?;
        Ok(made)
    });
    match made {
        Ok(made) => {
            sync_directory(parent)?;
            Ok(made)
        }
        Err(error) => {
            // To give the space back; should that fail too, the next attempt removes it.
            if let Err(left) = remove_all(&partial) {
                tracing::warn!(error = %chain(&left), "an unfinished copy of the metadata is left behind");
            }
            Err(error)
        }
    }
}

fn refuse_occupied(directory: &Path) -> Result<(), DbError> {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(io_error("copy the database to", directory)(io::ErrorKind::AlreadyExists.into())),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("look at", directory)(error)),
    }
}

/// Brings a directory and everything in it to stable storage.
fn sync_all(path: &Path) -> Result<(), DbError> {
    for entry in fs::read_dir(path).map_err(io_error("list", path))? {
        let entry = entry.map_err(io_error("list", path))?;
        let (child, kind) = (entry.path(), entry.file_type().map_err(io_error("look at", path))?);
        match kind.is_dir() {
            true => sync_all(&child)?,
            false => File::open(&child).and_then(|file| file.sync_all()).map_err(io_error("sync", &child))?,
        }
    }
    sync_directory(path)
}

/// Removes a directory and everything in it, if it is there.
///
/// # Errors
/// What the file system reports.
pub(crate) fn remove_all(path: &Path) -> Result<(), DbError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}
