//! A commit that finds the disk full gets one more chance, with room that was kept for it.
//!
//! What must stay true: a transaction is repeated at most once for each relief, and only when nothing of it was kept.

use std::path::Path;
use std::sync::Arc;

use crate::engine::{AtOnce, ReadRows, Storage, Tree, WriteRows};
use crate::error::{DbError, Limit};

/// What [`Relief::give`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relieved {
    /// There is more room now.
    Yes,
    /// There was none to give.
    No,
}

/// Room on the metadata disk that was kept for this moment. Called on threads that may block.
pub trait Relief: Send + Sync + 'static {
    fn give(&self) -> Relieved;

    /// A transaction was committed: the time to see how much room is left. `reusable`: see [`crate::Db::reusable_bytes`].
    fn committed(&self, _reusable: &dyn Fn() -> u64) {}
}

/// An engine whose full disk can be relieved.
pub(crate) struct RelievedStorage {
    pub storage: Arc<dyn Storage>,
    pub relief: Arc<dyn Relief>,
}

impl RelievedStorage {
    fn attempt<T>(&self, mut act: impl FnMut() -> Result<T, DbError>) -> Result<T, DbError> {
        match act() {
            Err(DbError::Full { limit: Limit::Disk, .. }) if self.relief.give() == Relieved::Yes => act(),
            outcome => outcome,
        }
    }
}

impl Storage for RelievedStorage {
    fn name(&self) -> &'static str {
        self.storage.name()
    }

    fn open_tree(&self, name: &str) -> Result<Tree, DbError> {
        self.attempt(|| self.storage.open_tree(name))
    }

    fn tree_names(&self) -> Result<Vec<String>, DbError> {
        self.storage.tree_names()
    }

    fn read(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<(), DbError> {
        self.storage.read(body)
    }

    fn read_at_once(&self, body: &mut dyn FnMut(&dyn ReadRows)) -> Result<AtOnce, DbError> {
        self.storage.read_at_once(body)
    }

    fn write(&self, body: &mut dyn FnMut(&mut dyn WriteRows) -> Result<(), DbError>) -> Result<(), DbError> {
        self.attempt(|| self.storage.write(body))?;
        self.relief.committed(&|| self.storage.reusable_bytes().unwrap_or(0));
        Ok(())
    }

    fn sync(&self) -> Result<(), DbError> {
        self.attempt(|| self.storage.sync())
    }

    fn snapshot_to(&self, directory: &Path) -> Result<(), DbError> {
        // A snapshot that does not fit is not worth the room.
        self.storage.snapshot_to(directory)
    }

    fn reusable_bytes(&self) -> Result<u64, DbError> {
        self.storage.reusable_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use garage_types::Room;

    use super::{Relief, Relieved};
    use crate::{Db, DbError, MemoryEngine};

    /// Gives a number of times.
    struct Times(AtomicU32);

    impl Relief for Times {
        fn give(&self) -> Relieved {
            match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
                Ok(_left) => Relieved::Yes,
                Err(_none) => Relieved::No,
            }
        }
    }

    #[tokio::test]
    async fn commit_on_a_full_disk_is_repeated_while_there_is_relief() {
        let memory = MemoryEngine::new();
        let relief = Arc::new(Times(AtomicU32::new(1)));
        let db = Db::open_memory(memory.clone()).unwrap().with_relief(relief.clone(), Room::default()).unwrap();
        let tree = db.open_tree("rows").unwrap();
        let write = || db.write::<_, DbError>(move |transaction| transaction.insert(tree, b"key", b"1"));
        memory.fail_next_commits(1);
        write().await.unwrap();
        assert_eq!(relief.0.load(Ordering::SeqCst), 0);
        memory.fail_next_commits(1);
        assert!(write().await.unwrap_err().is_full(), "there is no more relief");
        write().await.unwrap();
    }

    #[tokio::test]
    async fn what_fails_for_other_reasons_costs_no_relief() {
        let relief = Arc::new(Times(AtomicU32::new(1)));
        let db = Db::open_memory(MemoryEngine::new()).unwrap().with_relief(relief.clone(), Room::default()).unwrap();
        let tree = db.open_tree("rows").unwrap();
        let refused = db.write::<(), DbError>(move |transaction| transaction.insert(tree, b"", b"1"));
        assert!(refused.await.is_err());
        assert_eq!(relief.0.load(Ordering::SeqCst), 1);
    }
}
