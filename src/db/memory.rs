//! An engine in memory, for tests and the simulator. It knows which commits a power cut would take.
//!
//! Every change since the last durable commit is remembered with what it replaced: rolling these back is both the abort of a
//! transaction and the power cut. Readers share the trees; a tree is copied only when it is written while someone reads.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::engine::{AtOnce, Bounds, Direction, Durability, ReadRows, Storage, Tree, Visit, WriteRows};
use crate::error::{DbError, Limit};
use garage_types::Power;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Trees = Arc<Vec<Arc<Rows>>>;

/// What a disk answers that cannot read a sector, on Linux.
const EIO: i32 = 5;

/// What a change replaced.
struct Replaced {
    tree: Tree,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

#[derive(Default)]
struct State {
    names: Vec<String>,
    trees: Trees,
    unsynced: Vec<Replaced>,
    durability: Durability,
    failing_commits: u32,
    reads_fail: bool,
    power: Power,
}

/// A handle to a database in memory; clones share it. Its content outlives every [`crate::Db`] opened on it, as a disk would.
#[derive(Clone, Default)]
pub struct MemoryEngine(Arc<Mutex<State>>);

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MemoryEngine").finish_non_exhaustive()
    }
}

impl MemoryEngine {
    /// An empty database whose commits are durable.
    pub fn new() -> Self {
        Self::default()
    }

    /// The power goes: commits that are not on stable storage are gone. Trees stay, perhaps empty.
    pub fn crash(&self) {
        self.state().roll_back_to(0);
    }

    /// Brings everything committed to stable storage.
    pub fn sync(&self) {
        self.state().unsynced.clear();
    }

    /// Whether each further commit is durable, and with it all before it, or only after the next [`MemoryEngine::sync`].
    pub fn set_durability(&self, durability: Durability) {
        self.state().durability = durability;
    }

    /// The next `count` commits that change something fail with [`DbError::Full`].
    pub fn fail_next_commits(&self, count: u32) {
        self.state().failing_commits = count;
    }

    /// From now on reading fails as it does when the disk does not answer, within transactions as well; or works again.
    pub fn fail_reads(&self, fail: bool) {
        self.state().reads_fail = fail;
    }

    /// Flips one bit of a stored value, as a failing disk or memory does. `tree`: its name; `value`, `byte`: drawn by the caller, taken
    /// modulo what there is. Returns the key of the value; `None` when there is nothing to flip.
    pub fn flip_bit(&self, tree: &str, value: usize, byte: usize) -> Option<Vec<u8>> {
        let mut state = self.state();
        let index = state.names.iter().position(|name| name == tree)?;
        let rows = state.rows_mut(Tree(u32::try_from(index).ok()?)).ok()?;
        let nth = value.checked_rem(rows.len())?;
        let (key, bytes) = rows.iter_mut().nth(nth)?;
        let at = byte.checked_rem(bytes.len())?;
        bytes[at] ^= 1 << (byte % 8);
        Some(key.clone())
    }

    /// From now on every commit takes two steps of `power`: one until it is durable, and one until it is answered.
    pub fn run_on(&self, power: Power) {
        self.state().power = power;
    }

    /// A copy as it is now, which no longer follows this one.
    #[must_use]
    pub fn copy(&self) -> MemoryEngine {
        let state = self.state();
        let copy =
            State { names: state.names.clone(), trees: state.trees.clone(), durability: state.durability, ..State::default() };
        MemoryEngine(Arc::new(Mutex::new(copy)))
    }

    /// The content of another takes the place of this one's, as when a backup is put back. Not while a database is open on it.
    pub fn become_copy_of(&self, other: &MemoryEngine) {
        let copied = std::mem::take(&mut *other.copy().state());
        *self.state() = copied;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while holding the memory engine")
    }
}

impl State {
    fn roll_back_to(&mut self, length: usize) {
        while self.unsynced.len() > length
            && let Some(Replaced { tree, key, value }) = self.unsynced.pop()
        {
            let rows = self.rows_mut(tree).expect("a changed tree exists");
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
    }

    fn rows_mut(&mut self, tree: Tree) -> Result<&mut Rows, DbError> {
        let rows = Arc::make_mut(&mut self.trees).get_mut(tree.index()).ok_or(DbError::UnknownTree)?;
        Ok(Arc::make_mut(rows))
    }

    fn check_reads(&self) -> Result<(), DbError> {
        if self.reads_fail {
            let source = Arc::new(io::Error::from_raw_os_error(EIO));
            return Err(DbError::Engine { action: "read", source });
        }
        Ok(())
    }

    fn commit(&mut self, length_before: usize) -> Result<(), DbError> {
        if self.unsynced.len() > length_before && self.failing_commits > 0 {
            self.failing_commits -= 1;
            return Err(DbError::Full { limit: Limit::Disk, source: Arc::new(io::Error::from(io::ErrorKind::StorageFull)) });
        }
        let changes = self.unsynced.len() > length_before;
        if changes {
            self.power.step().map_err(no_power)?;
        }
        if self.durability == Durability::Synced {
            self.unsynced.clear();
        }
        // Durable by now, whether or not anybody hears of it.
        if changes { self.power.step().map_err(no_power) } else { Ok(()) }
    }
}

impl Storage for MemoryEngine {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        let mut state = self.state();
        let index = match state.names.iter().position(|known| known == name) {
            Some(index) => index,
            None => {
                state.names.push(name.to_owned());
                Arc::make_mut(&mut state.trees).push(Arc::default());
                state.names.len() - 1
            }
        };
        Ok(Tree(u32::try_from(index).expect("fewer than 2^32 trees")))
    }

    fn tree_names(&self) -> Result<Vec<String>, DbError> {
        let mut names = self.state().names.clone();
        names.sort();
        Ok(names)
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        let trees = {
            let state = self.state();
            if !state.power.is_on() {
                return Err(no_power(io::Error::other("the power is off")));
            }
            state.check_reads()?;
            state.trees.clone()
        };
        body(&trees);
        Ok(())
    }

    fn read_at_once(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<AtOnce, DbError> {
        self.read(body).map(|()| AtOnce::Done)
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        let mut state = self.state();
        let length_before = state.unsynced.len();
        let outcome = body(&mut *state).and_then(|()| state.commit(length_before));
        if outcome.is_err() {
            state.roll_back_to(length_before);
        }
        outcome
    }

    fn sync(&self) -> Result<(), DbError> {
        MemoryEngine::sync(self);
        Ok(())
    }

    fn snapshot_to(&self, _directory: &Path) -> Result<(), DbError> {
        Err(DbError::Unsupported { engine: self.name(), action: "copy itself to a directory" })
    }
}

impl ReadRows for Trees {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        if let Some(value) = rows(self, tree)?.get(key) {
            found(value);
        }
        Ok(())
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        let mut rows = rows(self, tree)?.range::<[u8], _>(bounds);
        while let Some((key, value)) = match direction {
            Direction::Forward => rows.next(),
            Direction::Backward => rows.next_back(),
        } && visit(key, value).is_continue()
        {}
        Ok(())
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        Ok(rows(self, tree)?.len() as u64)
    }
}

fn no_power(source: io::Error) -> DbError {
    DbError::Engine { action: "commit", source: Arc::new(source) }
}

fn rows(trees: &[Arc<Rows>], tree: Tree) -> Result<&Rows, DbError> {
    trees.get(tree.index()).map(|rows| &**rows).ok_or(DbError::UnknownTree)
}

impl ReadRows for State {
    fn get(&self, tree: Tree, key: &[u8], found: &mut dyn FnMut(&[u8])) -> Result<(), DbError> {
        self.check_reads()?;
        self.trees.get(tree, key, found)
    }

    fn range(&self, tree: Tree, bounds: Bounds<'_>, direction: Direction, visit: &mut Visit<'_>) -> Result<(), DbError> {
        self.check_reads()?;
        self.trees.range(tree, bounds, direction, visit)
    }

    fn count(&self, tree: Tree) -> Result<u64, DbError> {
        self.check_reads()?;
        self.trees.count(tree)
    }
}

impl WriteRows for State {
    fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) -> Result<(), DbError> {
        let replaced = self.rows_mut(tree)?.insert(key.to_vec(), value.to_vec());
        self.unsynced.push(Replaced { tree, key: key.to_vec(), value: replaced });
        Ok(())
    }

    fn remove(&mut self, tree: Tree, key: &[u8]) -> Result<(), DbError> {
        if let Some(replaced) = self.rows_mut(tree)?.remove(key) {
            self.unsynced.push(Replaced { tree, key: key.to_vec(), value: Some(replaced) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryEngine;
    use crate::{Db, DbError, Durability, Tree};

    async fn insert(db: &Db, tree: Tree, key: &'static [u8], value: &'static [u8]) -> Result<(), DbError> {
        db.write(move |transaction| transaction.insert(tree, key, value)).await
    }

    fn get(db: &Db, tree: Tree, key: &[u8]) -> Option<Vec<u8>> {
        db.read_blocking::<_, DbError>(|snapshot| snapshot.get(tree, key)).unwrap()
    }

    fn open(memory: &MemoryEngine) -> (Db, Tree) {
        let db = Db::open_memory(memory.clone()).unwrap();
        let tree = db.open_tree("rows").unwrap();
        (db, tree)
    }

    #[tokio::test]
    async fn crash_keeps_every_commit_of_a_synced_database() {
        let memory = MemoryEngine::new();
        let (db, tree) = open(&memory);
        insert(&db, tree, b"key", b"1").await.unwrap();
        memory.crash();
        let (db, tree) = open(&memory);
        assert_eq!(get(&db, tree, b"key").as_deref(), Some(&b"1"[..]));
    }

    #[tokio::test]
    async fn crash_loses_the_commits_of_an_unsynced_database_since_its_last_sync() {
        let memory = MemoryEngine::new();
        memory.set_durability(Durability::Unsynced);
        let (db, tree) = open(&memory);
        insert(&db, tree, b"replaced", b"1").await.unwrap();
        insert(&db, tree, b"removed", b"1").await.unwrap();
        memory.sync();
        insert(&db, tree, b"replaced", b"2").await.unwrap();
        insert(&db, tree, b"replaced", b"3").await.unwrap();
        insert(&db, tree, b"new", b"1").await.unwrap();
        db.write::<_, DbError>(move |transaction| transaction.remove(tree, b"removed")).await.unwrap();
        memory.crash();
        assert_eq!(get(&db, tree, b"replaced").as_deref(), Some(&b"1"[..]));
        assert_eq!(get(&db, tree, b"removed").as_deref(), Some(&b"1"[..]));
        assert_eq!(get(&db, tree, b"new"), None);
    }

    #[tokio::test]
    async fn durable_commit_makes_those_before_it_durable() {
        let memory = MemoryEngine::new();
        let (db, tree) = open(&memory);
        memory.set_durability(Durability::Unsynced);
        insert(&db, tree, b"first", b"1").await.unwrap();
        memory.set_durability(Durability::Synced);
        insert(&db, tree, b"second", b"1").await.unwrap();
        memory.crash();
        assert_eq!(get(&db, tree, b"first").as_deref(), Some(&b"1"[..]));
    }

    #[tokio::test]
    async fn closing_brings_everything_to_stable_storage() {
        let memory = MemoryEngine::new();
        memory.set_durability(Durability::Unsynced);
        let (db, tree) = open(&memory);
        insert(&db, tree, b"key", b"1").await.unwrap();
        db.close().await.unwrap();
        memory.crash();
        assert_eq!(get(&db, tree, b"key").as_deref(), Some(&b"1"[..]));
    }

    #[tokio::test]
    async fn failing_commits_are_full_and_leave_nothing_behind() {
        let memory = MemoryEngine::new();
        let (db, tree) = open(&memory);
        insert(&db, tree, b"key", b"1").await.unwrap();
        memory.fail_next_commits(2);
        assert!(insert(&db, tree, b"key", b"2").await.unwrap_err().is_full());
        assert_eq!(get(&db, tree, b"key").as_deref(), Some(&b"1"[..]));
        assert!(insert(&db, tree, b"other", b"2").await.unwrap_err().is_full());
        assert_eq!(get(&db, tree, b"other"), None);
        insert(&db, tree, b"key", b"3").await.unwrap();
        assert_eq!(get(&db, tree, b"key").as_deref(), Some(&b"3"[..]));
    }
}
