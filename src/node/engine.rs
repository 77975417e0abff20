//! Which metadata database the daemon opens, and where: the engine that the configuration names, in the directory of that engine.
//!
//! Must stay true: a node whose metadata lie in another engine's files does not start with an empty database of the new one; they
//! have to be converted, or moved away, first.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use garage_db::{Db, DbError, Durability, Engine, EngineOptions, Relief, Relieved};
use garage_types::config::Config;
use garage_types::disk::{Disk, FileError};
use garage_types::{Offload, Room, chain};

/// The engines of this build, by their names in the configuration.
pub const BUILT_IN: &[&str] = Engine::BUILT_IN;

/// An engine that is there when it was asked for at the build.
const OPTIONAL: &str = "sled";

/// Why the configured database is not opened.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("db_engine cannot be used")]
    Unknown(#[source] DbError),
    #[error(
        "db_engine is {OPTIONAL}, which this build does not have: build garage with `--features {OPTIONAL}`, with which `garage convert-db` also moves such a database to another engine; or write one of {}",
        BUILT_IN.join(", ")
    )]
    NotInThisBuild,
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "db_engine is {wanted}, but the metadata are in {}, which is {found}'s: convert them with `garage convert-db -a {found} -i {} -b {wanted} -o {}`, or set db_engine = \"{found}\"",
        at.display(), at.display(), path.display()
    )]
    Elsewhere { wanted: &'static str, path: PathBuf, found: &'static str, at: PathBuf },
}

/// The engine that a configuration names, its directory, and how to open it.
pub struct Chosen {
    pub engine: Engine,
    pub path: PathBuf,
    pub options: EngineOptions,
}

/// What the configuration says about the database. Looks at the disk, changes nothing.
///
/// # Errors
/// [`EngineError`].
pub fn choose(disk: &dyn Disk, config: &Config) -> Result<Chosen, EngineError> {
    let engine = match Engine::parse(&config.db_engine) {
        Err(_not_built_in) if config.db_engine == OPTIONAL => return Err(EngineError::NotInThisBuild),
        parsed => parsed.map_err(EngineError::Unknown)?,
    };
    let path = config.metadata_dir.join(engine.directory_name());
    let exists = |path: &PathBuf| disk.kind(path).map(|kind| kind.is_some()).map_err(FileError::of("look at", path));
    if !exists(&path)? {
        for other in Engine::ALL.iter().filter(|other| **other != engine) {
            let at = config.metadata_dir.join(other.directory_name());
            if exists(&at)? {
                return Err(EngineError::Elsewhere { wanted: engine.name(), path, found: other.name(), at });
            }
        }
    }
    let sync = if config.metadata_fsync { Durability::Synced } else { Durability::Unsynced };
    Ok(Chosen { engine, path, options: EngineOptions { sync, lmdb_map_size: Some(config.lmdb_map_size) } })
}

impl Chosen {
    /// Opens the database, with `relief` for a full disk, and tells the operator what the engine does not promise.
    ///
    /// # Errors
    /// [`DbError`].
    pub fn open(&self, relief: Arc<dyn Relief>, room: Room, offload: Arc<dyn Offload>) -> Result<Db, DbError> {
        if let Some(caution) = self.engine.caution() {
            tracing::warn!(engine = self.engine.name(), "{caution}");
        }
        let open = || Db::open(self.engine, &self.path, &self.options, offload.clone());
        let db = match open() {
            Err(error) if error.is_full() && relief.give() == Relieved::Yes => open()?,
            outcome => outcome?,
        };
        db.with_relief(relief, room)
    }
}

/// How much an unsynced database may lose when the power goes, or the process is killed.
const UNSYNCED_MAX: Duration = Duration::from_secs(1);

/// Syncs a database that does not do so by itself, again and again.
pub async fn sync_regularly(db: Db) {
    loop {
        tokio::time::sleep(UNSYNCED_MAX).await;
        if let Err(error) = db.sync().await {
            tracing::error!(error = %chain(&error), "cannot sync the metadata database");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use garage_types::config::{Config, Overrides};
    use garage_types::memory_disk::MemoryDisk;
    use garage_types::{chain, disk};

    use super::{BUILT_IN, EngineError, choose};

    fn config(engine: &str) -> Config {
        let text = format!(
            "metadata_dir = \"/m\"\ndata_dir = \"/d\"\nreplication_factor = 1\nrpc_bind_addr = \"[::]:1\"\ndb_engine = \"{engine}\"\n[s3_api]\ns3_region = \"g\""
        );
        Config::resolve(&text, &Overrides::default(), &Overrides::default()).unwrap().config
    }

    #[test]
    fn each_engine_has_a_directory_of_its_own() {
        let disk = MemoryDisk::new();
        assert_eq!(choose(&disk, &config("lmdb")).unwrap().path, Path::new("/m/db.lmdb"));
        assert_eq!(choose(&disk, &config("redb")).unwrap().path, Path::new("/m/db.redb"));
    }

    #[test]
    fn metadata_of_another_engine_are_not_passed_over() {
        let disk = MemoryDisk::new();
        disk::create_directories(&disk, Path::new("/m/db.lmdb")).unwrap();
        let error = choose(&disk, &config("redb")).err().unwrap();
        assert!(matches!(&error, EngineError::Elsewhere { found: "lmdb", .. }), "{error}");
        assert!(error.to_string().contains("garage convert-db -a lmdb -i /m/db.lmdb -b redb -o /m/db.redb"), "{error}");
        disk::create_directories(&disk, Path::new("/m/db.redb")).unwrap();
        assert!(choose(&disk, &config("redb")).is_ok(), "both are there: the configuration decides");
    }

    #[test]
    fn engine_that_is_not_built_in_is_refused_with_those_that_are() {
        let error = |engine: &str| chain(&choose(&MemoryDisk::new(), &config(engine)).err().unwrap());
        assert!(error("sqlite").contains("there are: lmdb, redb"), "{}", error("sqlite"));
        if !BUILT_IN.contains(&"sled") {
            assert!(error("sled").contains("--features sled"), "{}", error("sled"));
        }
    }
}
