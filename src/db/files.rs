//! The few operations an engine needs on the directories around its files, each with the path in its error.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::error::{DbError, Limit};

/// For `map_err`: names the action and the path; a full disk is told apart.
pub(crate) fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DbError + 'a {
    move |source| match is_full(&source) {
        true => DbError::Full { limit: Limit::Disk, source: Arc::new(source) },
        false => DbError::Io { action, path: path.to_owned(), source: Arc::new(source) },
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Creates a directory and those above it that are missing; each is durable in its parent.
pub(crate) fn create_directories(path: &Path) -> Result<(), DbError> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    create_directories(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error("create directory", path)(error)),
        _ => {}
    }
    sync_directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// Brings the names in a directory to stable storage.
pub(crate) fn sync_directory(path: &Path) -> Result<(), DbError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error("sync", path))
}
