//! Moving a database to another engine, while nothing else uses it.
//!
//! What must stay true: the source is not changed; the target has its name only when it is whole, compared row by row with what was
//! read from the source, and on stable storage.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::copy::{copy_all, make_whole, summary};
use crate::engine::{Engine, EngineOptions, Storage};
use crate::error::DbError;
use crate::open_storage;

pub use crate::copy::TreeSummary;

/// A database and its engine.
#[derive(Clone, Debug)]
pub struct Place {
    pub engine: Engine,
    /// The directory of the database's files.
    pub path: PathBuf,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Copying,
    Comparing,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    pub rows: u64,
    pub rows_total: u64,
}

/// Why a database was not converted; there is no target then.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("both databases would be of the engine {0}: nothing to convert")]
    SameEngine(&'static str),
    #[error("there is no {engine} database in {}", path.display())]
    NoSource { engine: &'static str, path: PathBuf },
    #[error("{} exists already: give the name of a directory that does not", path.display())]
    TargetExists { path: PathBuf },
    #[error("the source cannot be opened")]
    Source(#[source] DbError),
    #[error("the rows cannot be copied")]
    Copy(#[from] DbError),
    #[error("tree {name} differs from the source after copying: {copied} rows of {read}; the copy was removed")]
    Differs { name: String, read: u64, copied: u64 },
}

/// Copies all trees of `from` into a new database at `to`. `options` are the target's; `progress` is called now and then. Blocks.
///
/// # Errors
/// [`ConvertError`].
pub fn convert(
    from: &Place,
    to: &Place,
    options: &EngineOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TreeSummary>, ConvertError> {
    if from.engine == to.engine {
        return Err(ConvertError::SameEngine(from.engine.name()));
    }
    // Opening would make one.
    let main_file = from.path.join(from.engine.main_file());
    if !main_file.is_file() {
        return Err(ConvertError::NoSource { engine: from.engine.name(), path: from.path.clone() });
    }
    if is_occupied(&to.path) {
        return Err(ConvertError::TargetExists { path: to.path.clone() });
    }
    let source_options = EngineOptions { lmdb_map_size: options.lmdb_map_size, ..EngineOptions::default() };
    let source = open_storage(from.engine, &from.path, &source_options).map_err(ConvertError::Source)?;
    convert_through(&*source, &to.path, |path| open_storage(to.engine, path, options), progress)
}

/// Whether there is anything that a database would have to replace or live with.
fn is_occupied(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_not_a_directory) => path.symlink_metadata().is_ok(),
    }
}

fn convert_through(
    source: &dyn Storage,
    to: &Path,
    open: impl FnOnce(&Path) -> Result<Arc<dyn Storage>, DbError>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TreeSummary>, ConvertError> {
    let rows_total = rows_of(source)?;
    make_whole(to, |partial| {
        let target = open(partial)?;
        let target = &*target;
        let read = copy_all(source, target, &mut counted(Phase::Copying, rows_total, progress))?;
        target.sync()?;
        let copied = summary(target, &mut counted(Phase::Comparing, rows_total, progress))?;
        match first_difference(&read, &copied) {
            Some(difference) => Err(difference),
            None => Ok(copied),
        }
    })
}

/// Adds up the rows that are reported page by page.
fn counted(phase: Phase, rows_total: u64, progress: &mut dyn FnMut(Progress)) -> impl FnMut(u64) {
    let mut rows = 0;
    move |more| {
        rows += more;
        progress(Progress { phase, rows, rows_total });
    }
}

fn first_difference(read: &[TreeSummary], copied: &[TreeSummary]) -> Option<ConvertError> {
    let differs = |tree: &&TreeSummary| !copied.contains(tree);
    let tree = read.iter().find(differs).or_else(|| copied.iter().find(|tree| !read.contains(tree)))?;
    let rows = |trees: &[TreeSummary]| trees.iter().find(|other| other.name == tree.name).map_or(0, |tree| tree.rows);
    Some(ConvertError::Differs { name: tree.name.clone(), read: rows(read), copied: rows(copied) })
}

fn rows_of(storage: &dyn Storage) -> Result<u64, DbError> {
    let trees = storage.tree_names()?;
    let trees: Vec<_> = trees.iter().map(|name| storage.open_tree(name)).collect::<Result<_, _>>()?;
    let mut total = Ok(0);
    storage.read(&mut |rows| total = trees.iter().map(|tree| rows.count(*tree)).sum())?;
    total
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
