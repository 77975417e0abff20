//! What commits have replaced, for readers that began before them. Pure.
//!
//! Must stay true: a value is kept while a reader is at work that may need it, and no longer; a commit is noted before it is applied.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use sled::IVec;

use crate::engine::Direction;

/// A value that a commit replaced; `None` when there was no row.
type Before = Option<IVec>;

#[derive(Default)]
pub(crate) struct Versions {
    /// Of the last commit that readers see.
    sequence: u64,
    /// How many readers began after each commit.
    readers: BTreeMap<u64, usize>,
    /// For each key what the commits replaced, oldest first.
    replaced: BTreeMap<Vec<u8>, VecDeque<(u64, Before)>>,
    /// The keys of each commit that is still noted, oldest first.
    commits: VecDeque<(u64, Vec<Vec<u8>>)>,
}

impl Versions {
    /// A reader begins; it gives the number back to [`Versions::end`].
    pub(crate) fn begin(&mut self) -> u64 {
        *self.readers.entry(self.sequence).or_default() += 1;
        self.sequence
    }

    /// A reader has ended.
    pub(crate) fn end(&mut self, sequence: u64) {
        if let Some(count) = self.readers.get_mut(&sequence) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&sequence);
            }
        }
        self.forget();
    }

    /// What the next commit will replace.
    pub(crate) fn note(&mut self, rows: Vec<(Vec<u8>, Before)>) {
        let sequence = self.sequence + 1;
        let keys = rows.iter().map(|(key, _before)| key.clone()).collect();
        for (key, before) in rows {
            self.replaced.entry(key).or_default().push_back((sequence, before));
        }
        self.commits.push_back((sequence, keys));
    }

    /// The commit that was noted has been applied.
    pub(crate) fn commit(&mut self) {
        self.sequence += 1;
        self.forget();
    }

    /// The commit that was noted has failed.
    pub(crate) fn take_back(&mut self) {
        let Some((_sequence, keys)) = self.commits.pop_back() else { return };
        for key in keys {
            self.drop_version(&key, VecDeque::pop_back);
        }
    }

    fn drop_version(&mut self, key: &[u8], drop: impl FnOnce(&mut VecDeque<(u64, Before)>) -> Option<(u64, Before)>) {
        if let Some(versions) = self.replaced.get_mut(key) {
            drop(versions);
            if versions.is_empty() {
                self.replaced.remove(key);
            }
        }
    }

    /// Drops what no reader needs: a reader needs what was replaced after it began.
    fn forget(&mut self) {
        let oldest = self.readers.keys().next().copied().unwrap_or(self.sequence);
        while self.commits.front().is_some_and(|(sequence, _keys)| *sequence <= oldest)
            && let Some((_sequence, keys)) = self.commits.pop_front()
        {
            for key in keys {
                self.drop_version(&key, VecDeque::pop_front);
            }
        }
    }

    /// What a key had when the reader began, if that was replaced since.
    pub(crate) fn replaced(&self, key: &[u8], reader: u64) -> Option<Before> {
        visible(self.replaced.get(key)?, reader)
    }

    /// The first key of the range that was replaced since the reader began, and what it had.
    pub(crate) fn first_replaced(
        &self,
        range: &(Bound<Vec<u8>>, Bound<Vec<u8>>),
        direction: Direction,
        reader: u64,
    ) -> Option<(Vec<u8>, Before)> {
        let of_row = |(key, versions): (&Vec<u8>, &VecDeque<(u64, Before)>)| Some((key.clone(), visible(versions, reader)?));
        let mut rows = self.replaced.range::<Vec<u8>, _>((range.0.as_ref(), range.1.as_ref()));
        match direction {
            Direction::Forward => rows.find_map(of_row),
            Direction::Backward => rows.rev().find_map(of_row),
        }
    }
}

fn visible(versions: &VecDeque<(u64, Before)>, reader: u64) -> Option<Before> {
    versions.iter().find(|(sequence, _before)| *sequence > reader).map(|(_sequence, before)| before.clone())
}

#[cfg(test)]
mod tests {
    use super::Versions;

    fn change(versions: &mut Versions, before: Option<&[u8]>) {
        versions.note(vec![(b"key".to_vec(), before.map(Into::into))]);
        versions.commit();
    }

    #[test]
    fn reader_finds_what_the_first_commit_after_its_beginning_replaced() {
        let mut versions = Versions::default();
        let first = versions.begin();
        change(&mut versions, None);
        let second = versions.begin();
        change(&mut versions, Some(b"1"));
        assert_eq!(versions.replaced(b"key", first), Some(None));
        assert_eq!(versions.replaced(b"key", second), Some(Some(b"1".into())));
        assert_eq!(versions.replaced(b"other", first), None);
    }

    #[test]
    fn nothing_is_kept_that_no_reader_needs() {
        let mut versions = Versions::default();
        change(&mut versions, None);
        assert!(versions.replaced.is_empty() && versions.commits.is_empty());
        let [first, second] = [(); 2].map(|()| versions.begin());
        change(&mut versions, Some(b"1"));
        versions.end(first);
        assert_eq!(versions.replaced.len(), 1);
        versions.end(second);
        assert!(versions.replaced.is_empty() && versions.commits.is_empty() && versions.readers.is_empty());
    }

    #[test]
    fn commit_that_failed_has_replaced_nothing() {
        let mut versions = Versions::default();
        let reader = versions.begin();
        versions.note(vec![(b"key".to_vec(), None)]);
        versions.take_back();
        assert_eq!(versions.replaced(b"key", reader), None);
        assert!(versions.commits.is_empty());
    }
}
