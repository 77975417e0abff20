//! Sets of what is there for the time being, counted: whoever adds something holds it there until it lets go.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is there at this moment. Clones are one set.
#[derive(Clone, Debug)]
pub struct Presence<K>(Arc<Mutex<HashMap<K, usize>>>);

/// Keeps something there until it is dropped.
#[derive(Debug)]
pub struct Stay<K: Copy + Eq + Hash> {
    set: Presence<K>,
    of: K,
}

impl<K> Default for Presence<K> {
    fn default() -> Self {
        Presence(Arc::default())
    }
}

impl<K: Copy + Eq + Hash> Presence<K> {
    pub fn add(&self, of: K) -> Stay<K> {
        *self.lock().entry(of).or_default() += 1;
        Stay { set: self.clone(), of }
    }

    pub fn contains(&self, of: &K) -> bool {
        self.lock().contains_key(of)
    }

    /// Nothing that is done under the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Stay<K> {
    fn drop(&mut self) {
        let mut set = self.set.lock();
        if let Some(count) = set.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                set.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Presence;

    #[test]
    fn something_is_there_until_the_last_who_added_it_lets_go() {
        let set = Presence::default();
        let (first, second) = (set.add(7), set.add(7));
        drop(first);
        assert!(set.contains(&7));
        drop(second);
        assert!(!set.contains(&7) && set.lock().is_empty());
    }
}
