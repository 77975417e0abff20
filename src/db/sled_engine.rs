//! sled 0.34, for those who ask for it (cargo feature `sled`).
//!
//! All trees share one of sled's, each key behind the number of its tree: so a batch, which sled applies atomically to one tree, is
//! a transaction over all of ours. Sled has no snapshots: what a commit replaces is kept in memory (`sled_versions.rs`) for as long
//! as a reader is at work that began before.
//!
//! What must stay true: one writer at a time; what a commit will replace is noted before it is applied; readers ask sled first and
//! the notes afterwards.
//!
//! What it does not do: sled's flush asks the kernel to start writing and does not wait for the disk, so a power cut may take what
//! was acknowledged ([`CAUTION`]); and after an error of the disk it answers nothing more until the daemon is started again.

use std::fs;
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sled::{Batch, Db, IVec};

use crate::copy::copy_all;
use crate::engine::{Bounds, Direction, Durability, ReadRows, Storage, Tree, Visit, WriteRows};
use crate::error::{DbError, Limit};
use crate::files::{create_directories, io_error, is_full, sync_directory};
use crate::overlay::{Change, Overlay};
use crate::sled_versions::Versions;

/// What an operator has to know.
pub(crate) const CAUTION: &str = "sled does not wait for the disk when it flushes: a power cut may lose acknowledged writes; and after a full disk it works again only when the daemon is restarted. Its last release is of 2021. Consider `garage convert-db` to lmdb or redb";

/// Memory for pages: sled uses several times what it is given.
const CACHE_BYTES: u64 = 64 << 20;

/// The number before our own rows: names of trees and how many rows they have.
const OWN: [u8; 4] = [0xff; 4];
const NAME: u8 = b'n';
const COUNT: u8 = b'c';

/// An open sled database.
pub(crate) struct SledEngine {
    sync: Durability,
    db: Db,
    /// Held while writing.
    writing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the number in [`Tree`].
    names: Vec<String>,
    /// Rows of each tree after the last commit.
    counts: Arc<Vec<u64>>,
    versions: Versions,
}

/// How often, and how far apart, an opening that finds the lock taken is tried again.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

impl SledEngine {
    /// Opens the database in the directory `path`, which is created when missing.
    pub(crate) fn open(path: &Path, sync: Durability) -> Result<Self, DbError> {
        create_directories(path)?;
        // Sled makes its files readable by everyone.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io_error("restrict", path))?;
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let db = open_unlocked(path, &config)?;
        sync_directory(path)?;
        let state = read_state(&db)?;
        Ok(SledEngine { sync, db, writing: Mutex::new(()), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, tree: Tree) -> Result<(), DbError> {
        if tree.index() < self.state().names.len() { Ok(()) } else { Err(DbError::UnknownTree) }
    }

    fn flush(&self) -> Result<(), DbError> {
        self.db.flush().map(|_bytes| ()).map_err(of_sled("flush"))
    }

    /// Applies the changes of a transaction as one batch. Called by the one writer.
    fn commit(&self, overlay: &Overlay, counts: Vec<u64>) -> Result<(), DbError> {
        let mut batch = Batch::default();
        let mut replaced = Vec::new();
        for (tree, key, change) in overlay.changes() {
            let key = full_key(tree, key);
            replaced.push((key.clone(), self.db.get(&key).map_err(of_sled("read"))?));
            match change {
                Change::Inserted(value) => batch.insert(key, value),
                Change::Removed => batch.remove(key),
            }
        }
        if replaced.is_empty() {
            return Ok(());
        }
        let before = self.state().counts.clone();
        for (number, (count, _before)) in counts.iter().zip(&*before).enumerate().filter(|(_number, (now, before))| now != before)
        {
            batch.insert(own_key(COUNT, &number_bytes(number)), &count.to_be_bytes());
        }
        self.state().versions.note(replaced);
        let applied = self.db.apply_batch(batch).map_err(of_sled("commit"));
        let mut state = self.state();
        match applied {
            Ok(()) => {
                state.versions.commit();
                state.counts = Arc::new(counts);
            }
            Err(error) => {
                state.versions.take_back();
                return Err(error);
            }
        }
        drop(state);
        if self.sync == Durability::Synced { self.flush() } else { Ok(()) }
    }
}

fn number_bytes(number: usize) -> [u8; 4] {
    u32::try_from(number).expect("fewer than 2^32 trees").to_be_bytes()
}

fn full_key(tree: Tree, key: &[u8]) -> Vec<u8> {
    [&tree.0.to_be_bytes(), key].concat()
}

fn own_key(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&OWN, &[kind][..], rest].concat()
}

fn full_bounds(tree: Tree, bounds: Bounds<'_>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let lower = match bounds.0 {
        Bound::Unbounded => Bound::Included(full_key(tree, b"")),
        lower => lower.map(|key| full_key(tree, key)),
    };
    let upper = match bounds.1 {
        Bound::Unbounded => Bound::Excluded(full_key(Tree(tree.0 + 1), b"")),
        upper => upper.map(|key| full_key(tree, key)),
    };
    (lower, upper)
}

/// What our own rows say.
fn read_state(db: &Db) -> Result<State, DbError> {
    let mut names = Vec::new();
    for row in db.scan_prefix(own_key(NAME, b"")) {
        let (key, number) = row.map_err(of_sled("list the trees"))?;
        let number = <[u8; 4]>::try_from(&*number).map_err(|_length| damaged("number of a tree"))?;
        let name =
            key.get(OWN.len() + 1..).and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(|| damaged("name of a tree"))?;
        names.push((u32::from_be_bytes(number) as usize, name.to_owned()));
    }
    names.sort();
    if names.iter().enumerate().any(|(index, (number, _name))| index != *number) {
        return Err(damaged("list of trees"));
    }
    let count = |index: usize| -> Result<u64, DbError> {
        let row = db.get(own_key(COUNT, &number_bytes(index))).map_err(of_sled("count"))?;
        let Some(row) = row else { return Ok(0) };
        Ok(u64::from_be_bytes(<[u8; 8]>::try_from(&*row).map_err(|_length| damaged("number of rows"))?))
    };
    let counts = (0..names.len()).map(count).collect::<Result<_, _>>()?;
    let names = names.into_iter().map(|(_number, name)| name).collect();
    Ok(State { names, counts: Arc::new(counts), versions: Versions::default() })
}

fn damaged(what: &str) -> DbError {
    of_sled("open the database")(sled::Error::ReportableBug(format!("the {what} cannot be read")))
}

/// Sled lets go of its lock a moment after a database was dropped, on a thread of its own: that moment is waited for.
fn open_unlocked(path: &Path, config: &sled::Config) -> Result<sled::Db, DbError> {
    let mut tries_left = LOCK_TRIES;
    loop {
        match config.open().map_err(|error| of_opening(path, error)) {
            Err(DbError::AlreadyOpen { .. }) if tries_left > 0 => {
                tries_left -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            result => return result,
        }
    }
}

fn of_opening(path: &Path, error: sled::Error) -> DbError {
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            DbError::AlreadyOpen { path: path.to_owned() }
        }
        sled::Error::Io(error) => io_error("open the database in", path)(error),
        error => DbError::Io { action: "open the database in", path: path.to_owned(), source: Arc::new(error) },
    }
}

/// For `map_err`: what sled says, with what callers treat differently told apart.
fn of_sled(action: &'static str) -> impl FnOnce(sled::Error) -> DbError {
    move |error| match error {
        sled::Error::Io(cause) if is_full(&cause) => DbError::Full { limit: Limit::Disk, source: Arc::new(cause) },
        error => DbError::Engine { action, source: Arc::new(error) },
    }
}

impl Storage for SledEngine {
    fn name(&self) -> &'static str {
        "sled"
    }

    fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        let _one_at_a_time = self.writing();
        let known = self.state().names.clone();
        let tree = |index: usize| Tree(u32::try_from(index).expect("fewer than 2^32 trees"));
        if let Some(index) = known.iter().position(|known| known == name) {
            return Ok(tree(index));
        }
        let number = number_bytes(known.len());
        self.db.insert(own_key(NAME, name.as_bytes()), &number).map_err(of_sled("create a tree"))?;
        self.flush()?;
        let mut state = self.state();
        state.names.push(name.to_owned());
        Arc::make_mut(&mut state.counts).push(0);
        Ok(tree(known.len()))
    }

    fn tree_names(&self) -> Result<Vec<String>, DbError> {
        let mut names = self.state().names.clone();
        names.sort();
        Ok(names)
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        body(&Reading::begin(self));
        Ok(())
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        let _one_at_a_time = self.writing();
        let counts = (*self.state().counts).clone();
        let mut rows = Writing { engine: self, overlay: Overlay::default(), counts };
        body(&mut rows)?;
        self.commit(&rows.overlay, rows.counts)
    }

    fn sync(&self) -> Result<(), DbError> {
        self.flush()
    }

    fn snapshot_to(&self, directory: &Path) -> Result<(), DbError> {
        let target = SledEngine::open(directory, Durability::Unsynced)?;
        copy_all(self, &target, &mut |_rows| {})?;
        target.flush()
    }
}

/// The rows as they were when the reader began.
struct Reading<'e> {
    engine: &'e SledEngine,
    sequence: u64,
    counts: Arc<Vec<u64>>,
}

impl<'e> Reading<'e> {
    fn begin(engine: &'e SledEngine) -> Self {
        let mut state = engine.state();
        Reading { engine, sequence: state.versions.begin(), counts: state.counts.clone() }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.engine.state().versions.end(self.sequence);
    }
}

fn next(rows: &mut sled::Iter, direction: Direction) -> Result<Option<(IVec, IVec)>, DbError> {
    let row = match direction {
        Direction::Forward => rows.next(),
        Direction::Backward => rows.next_back(),
    };
    row.transpose().map_err(of_sled("read"))
}

impl ReadRows for Reading<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        self.engine.check(tree)?;
        let key = full_key(tree, key);
        let now = self.engine.db.get(&key).map_err(of_sled("read"))?;
        let value = self.engine.state().versions.replaced(&key, self.sequence).unwrap_or(now);
        if let Some(value) = value {
            found(&value);
        }
        Ok(())
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        self.engine.check(tree)?;
        let mut left = full_bounds(tree, bounds);
        let mut rows = self.engine.db.range::<Vec<u8>, _>(left.clone());
        let mut current = next(&mut rows, direction)?;
        loop {
            // Asked for after `current` was read: a commit in between is noted.
            let replaced = self.engine.state().versions.first_replaced(&left, direction, self.sequence);
            let is_nearer = |key: &[u8], than: &[u8]| match direction {
                Direction::Forward => key < than,
                Direction::Backward => key > than,
            };
            let (key, value) = match (&current, replaced) {
                (None, None) => return Ok(()),
                (Some((row, _)), Some((key, value))) if is_nearer(&key, row) => (key, value),
                (None, Some((key, value))) => (key, value),
                (Some((row, now)), replaced) => {
                    let row = row.to_vec();
                    let value = match replaced {
                        Some((key, value)) if key == row => value,
                        _ => Some(now.clone()),
                    };
                    current = next(&mut rows, direction)?;
                    (row, value)
                }
            };
            if let Some(value) = value
                && visit(&key[OWN.len()..], &value).is_break()
            {
                return Ok(());
            }
            match direction {
                Direction::Forward => left.0 = Bound::Excluded(key),
                Direction::Backward => left.1 = Bound::Excluded(key),
            }
        }
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        self.counts.get(tree.index()).copied().ok_or(DbError::UnknownTree)
    }
}

/// What is committed, read by the one who may change it.
struct Committed<'e>(&'e SledEngine);

impl ReadRows for Committed<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        if let Some(value) = self.0.db.get(full_key(tree, key)).map_err(of_sled("read"))? {
            found(&value);
        }
        Ok(())
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        let mut rows = self.0.db.range::<Vec<u8>, _>(full_bounds(tree, bounds));
        while let Some((key, value)) = next(&mut rows, direction)?
            && visit(&key[OWN.len()..], &value).is_continue()
        {}
        Ok(())
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        self.0.state().counts.get(tree.index()).copied().ok_or(DbError::UnknownTree)
    }
}

/// A transaction: applied when it has succeeded.
struct Writing<'e> {
    engine: &'e SledEngine,
    overlay: Overlay,
    counts: Vec<u64>,
}

impl Writing<'_> {
    /// Whether there is a row with that key, and the counter of the tree.
    fn look(&mut self, tree: Tree, key: &[u8]) -> Result<(bool, &mut u64), DbError> {
        let mut exists = false;
        self.get(tree, key, &mut |_value| exists = true)?;
        let count = self.counts.get_mut(tree.index()).ok_or(DbError::UnknownTree)?;
        Ok((exists, count))
    }
}

impl ReadRows for Writing<'_> {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        self.engine.check(tree)?;
        match self.overlay.get(tree, key) {
            Some(Change::Inserted(value)) => found(value),
            Some(Change::Removed) => {}
            None => Committed(self.engine).get(tree, key, found)?,
        }
        Ok(())
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        self.engine.check(tree)?;
        self.overlay.range(&Committed(self.engine), tree, bounds, direction, visit)
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        self.counts.get(tree.index()).copied().ok_or(DbError::UnknownTree)
    }
}

impl WriteRows for Writing<'_> {
    fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError> {
        let (exists, count) = self.look(tree, key)?;
        *count += u64::from(!exists);
        self.overlay.insert(tree, key, value);
        Ok(())
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> Result<(), DbError> {
        let (exists, count) = self.look(tree, key)?;
        if exists {
            *count -= 1;
            self.overlay.remove(tree, key);
        }
        Ok(())
    }
}
