//! Rows of the full-copy tables kept decoded, because every request needs a key, a name and a bucket.
//!
//! Must stay true: an entry is used only while no commit has touched its table here since it was read.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Most entries kept; beyond that the cache starts anew.
const ENTRIES_MAX: usize = 10_000;

/// Decoded rows of one table, absent ones included.
pub struct RowCache<K, R> {
    generation: Arc<AtomicU64>,
    entries: Mutex<Entries<K, R>>,
}

struct Entries<K, R> {
    generation: u64,
    rows: HashMap<K, Option<Arc<R>>>,
}

/// Proof of when a row was read, so that a row read before a change is not kept after it.
#[derive(Clone, Copy, Debug)]
pub struct ReadAt(u64);

impl<K: Eq + Hash, R> RowCache<K, R> {
    /// `generation`: counts the commits that touched the table.
    pub fn new(generation: Arc<AtomicU64>) -> Self {
        RowCache { generation, entries: Mutex::new(Entries { generation: 0, rows: HashMap::new() }) }
    }

    /// The row as known (`Some(None)`: known to be absent), or `None` when it must be read.
    pub fn get(&self, key: &K) -> Option<Option<Arc<R>>> {
        let now = self.generation.load(Ordering::Acquire);
        let entries = self.entries.lock().expect("nothing panics while holding the cache");
        if entries.generation == now { entries.rows.get(key).cloned() } else { None }
    }

    /// To be taken before a row is read from the table.
    pub fn about_to_read(&self) -> ReadAt {
        ReadAt(self.generation.load(Ordering::Acquire))
    }

    pub fn put(&self, read_at: ReadAt, key: K, row: Option<Arc<R>>) {
        let now = self.generation.load(Ordering::Acquire);
        if read_at.0 != now {
            return;
        }
        let mut entries = self.entries.lock().expect("nothing panics while holding the cache");
        if entries.generation != now || entries.rows.len() >= ENTRIES_MAX {
            entries.rows.clear();
            entries.generation = now;
        }
        entries.rows.insert(key, row);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::RowCache;

    #[test]
    fn a_change_of_the_table_makes_entries_unknown_and_late_reads_are_not_kept() {
        let generation = Arc::new(AtomicU64::new(1));
        let cache = RowCache::new(generation.clone());
        let read_at = cache.about_to_read();
        cache.put(read_at, "a", Some(Arc::new(1)));
        assert_eq!(cache.get(&"a"), Some(Some(Arc::new(1))));
        generation.fetch_add(1, Ordering::SeqCst);
        assert_eq!(cache.get(&"a"), None);
        cache.put(read_at, "a", Some(Arc::new(1)));
        assert_eq!(cache.get(&"a"), None);
        cache.put(cache.about_to_read(), "b", None);
        assert_eq!(cache.get(&"b"), Some(None));
    }
}
