//! Converting a node's metadata to another engine, for the command line. Only while no daemon uses them.

use std::path::Path;

use garage_db::convert::{ConvertError, Place};
pub use garage_db::convert::{Phase, Progress, TreeSummary};
use garage_db::{DbError, Engine, EngineOptions};

use crate::state::{self, StateError};

/// What to convert.
#[derive(Clone, Debug)]
pub struct Conversion<'c> {
    /// An engine's name, and the directory of its database.
    pub from: (&'c str, &'c Path),
    pub to: (&'c str, &'c Path),
    /// Address space for an LMDB target in bytes.
    pub lmdb_map_size: Option<u64>,
}

/// Why nothing was converted.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    #[error(transparent)]
    Engine(#[from] DbError),
    #[error("stop the daemon first")]
    InUse(#[from] StateError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

/// Converts, holding the locks of the metadata directories that the two databases may lie in. Blocks.
///
/// # Errors
/// [`ConversionError`]; there is no target then.
pub fn convert(conversion: &Conversion<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Vec<TreeSummary>, ConversionError> {
    let place = |(engine, path): (&str, &Path)| -> Result<Place, DbError> {
        Ok(Place { engine: Engine::parse(engine)?, path: path.to_owned() })
    };
    let (from, to) = (place(conversion.from)?, place(conversion.to)?);
    let (source_dir, target_dir) = (parent(&from.path), parent(&to.path));
    let _source_lock = state::lock_existing(source_dir)?;
    // Locking the same file again would find it locked, by us.
    let _target_lock = if is_same(source_dir, target_dir) { None } else { state::lock_existing(target_dir)? };
    let options = EngineOptions { lmdb_map_size: conversion.lmdb_map_size, ..EngineOptions::default() };
    Ok(garage_db::convert::convert(&from, &to, &options, progress)?)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garage_db::{Db, DbError, Engine, EngineOptions};
    use garage_types::offload::Inline;

    use super::{Conversion, ConversionError, convert};
    use crate::real_disk::RealDisk;
    use crate::state;

    #[tokio::test]
    async fn metadata_in_use_are_not_converted() {
        let directory = tempfile::tempdir().unwrap();
        let meta = directory.path().join("meta");
        let [from, to] = ["db.lmdb", "db.redb"].map(|name| meta.join(name));
        let lock = state::lock(&RealDisk, &meta).unwrap();
        let db = Db::open(Engine::Lmdb, &from, &EngineOptions::default(), Arc::new(Inline)).unwrap();
        let tree = db.open_tree("rows").unwrap();
        db.write::<_, DbError>(move |transaction| transaction.insert(tree, b"key", b"value")).await.unwrap();
        db.close().await.unwrap();
        drop(db);

        let conversion = Conversion { from: ("lmdb", &from), to: ("redb", &to), lmdb_map_size: None };
        let error = convert(&conversion, &mut |_progress| {}).unwrap_err();
        assert!(matches!(error, ConversionError::InUse(_)), "{error}");
        assert!(!to.exists());
        drop(lock);
        assert_eq!(convert(&conversion, &mut |_progress| {}).unwrap()[0].rows, 1);
    }

    #[test]
    fn engine_that_is_not_built_in_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let conversion = Conversion { from: ("sqlite", directory.path()), to: ("lmdb", directory.path()), lmdb_map_size: None };
        let error = convert(&conversion, &mut |_progress| {}).unwrap_err();
        assert!(error.to_string().contains("there are: lmdb"), "{error}");
    }
}
