//! One lock per block, so that "is it there? then refer to it" and "nothing refers to it? then delete it" exclude each other.
//!
//! The table holds only the locks that someone has or waits for. Locks are fair: first come, first served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use garage_types::BlockHash;

type Table = Mutex<HashMap<BlockHash, Arc<tokio::sync::Mutex<()>>>>;

#[derive(Default)]
pub(crate) struct Locks(Arc<Table>);

/// Holds the lock of one block until it is dropped.
pub(crate) struct Guard {
    // Dropped in this order: released first, then forgotten by the table.
    _held: tokio::sync::OwnedMutexGuard<()>,
    _place: Place,
}

/// A place in the table, of a holder or of one who waits.
struct Place {
    table: Arc<Table>,
    hash: BlockHash,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Locks {
    pub(crate) async fn lock(&self, hash: BlockHash) -> Guard {
        let place = self.place(hash);
        let held = place.lock.clone().lock_owned().await;
        Guard { _held: held, _place: place }
    }

    fn place(&self, hash: BlockHash) -> Place {
        let mut table = self.0.lock().expect("nothing panics while holding the table");
        let lock = table.entry(hash).or_default().clone();
        Place { table: self.0.clone(), hash, lock }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.table.lock().expect("nothing panics while holding the table");
        // The table's own and ours: new ones are only handed out under the table's lock, which we hold.
        if Arc::strong_count(&self.lock) == 2 {
            table.remove(&self.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use garage_types::BlockHash;

    use super::Locks;

    const A: BlockHash = BlockHash::from_bytes([1; 32]);
    const B: BlockHash = BlockHash::from_bytes([2; 32]);

    #[tokio::test]
    async fn one_holder_per_block_and_no_trace_afterwards() {
        let locks = Locks::default();
        let first = locks.lock(A).await;
        let _other = locks.lock(B).await;
        let mut second = Box::pin(locks.lock(A));
        assert!((&mut second).now_or_never().is_none());
        let cancelled = Box::pin(locks.lock(A));
        drop(cancelled);
        drop(first);
        drop(second.await);
        assert_eq!(locks.0.lock().unwrap().len(), 1, "only B is left");
    }
}
