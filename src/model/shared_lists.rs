//! Long lists that many readers of one object go through, each at its own pace: all of them go through the same one.
//!
//! What a version lists never changes, so readers that come later find the same. A list is kept as long as somebody reads it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use garage_types::VersionId;

/// Shorter ones are not worth looking for.
const SHARED_LEN_MIN: usize = 32;

pub(crate) struct SharedLists<T>(Mutex<State<T>>);

struct State<T> {
    lists: HashMap<VersionId, Weak<Vec<T>>>,
    /// Lists that nobody reads any more are forgotten when there are so many in all.
    forget_at: usize,
}

impl<T: PartialEq> SharedLists<T> {
    pub(crate) fn new() -> Self {
        SharedLists(Mutex::new(State { lists: HashMap::new(), forget_at: SHARED_LEN_MIN }))
    }

    /// The list that others have of this version, if it is the same.
    pub(crate) fn share(&self, version: VersionId, list: Vec<T>) -> Arc<Vec<T>> {
        if list.len() < SHARED_LEN_MIN {
            return Arc::new(list);
        }
        // Every change under this lock is whole before anything can panic.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = state.lists.get(&version).and_then(Weak::upgrade).filter(|known| **known == list) {
            return same;
        }
        if state.lists.len() >= state.forget_at {
            state.lists.retain(|_version, list| list.strong_count() > 0);
            state.forget_at = SHARED_LEN_MIN.max(2 * state.lists.len());
        }
        let list = Arc::new(list);
        state.lists.insert(version, Arc::downgrade(&list));
        list
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garage_types::VersionId;

    use super::{SHARED_LEN_MIN, SharedLists};

    #[test]
    fn readers_of_one_version_share_its_list_while_somebody_reads_it() {
        let lists = SharedLists::new();
        let version = |n: usize| VersionId::from_bytes([n as u8; 32]);
        let long = vec![7; SHARED_LEN_MIN];
        let first = lists.share(version(0), long.clone());
        assert!(Arc::ptr_eq(&first, &lists.share(version(0), long.clone())));
        assert!(!Arc::ptr_eq(&first, &lists.share(version(1), long.clone())));
        let other = lists.share(version(0), vec![8; SHARED_LEN_MIN]);
        assert_eq!(*other, [8; SHARED_LEN_MIN], "one that is not the same, such as one of a damaged row, is nobody else's");
        for n in 2..100 {
            drop(lists.share(version(n), long.clone()));
        }
        let state = lists.0.lock().unwrap();
        assert!(state.lists.len() <= SHARED_LEN_MIN && state.lists.contains_key(&version(0)));
    }
}
