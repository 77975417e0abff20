//! Digests of ranges of a table, kept in the transactions that change the rows.
//!
//! The keys of a table are cut into segments of some hundred rows; a tree holds each segment's digest under its lower bound. A range's
//! digest is the sum of the segments within it and of the rows of the two it cuts. Boundaries differ between nodes, which does not
//! matter: digests are compared for ranges that one side names and the other adds up.
//!
//! Must stay true: a segment's digest is that of exactly the rows between its bound and the next; every table with rows has a segment
//! with an empty bound.

use std::ops::{Bound, ControlFlow};

use garage_db::{DbError, Direction, Snapshot, Transaction, Tree};
use garage_types::Placement;

use crate::digest::{RowDigest, SetDigest};
use crate::error::TableError;
use crate::rows::RowTree;
use crate::wire::TableId;

/// A segment of more rows is cut in two.
const SEGMENT_ROWS_MAX: u64 = 512;

/// A range of local keys; `to` is exclusive, `None` is the end of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    pub from: Vec<u8>,
    pub to: Option<Vec<u8>>,
}

impl KeyRange {
    pub const ALL: KeyRange = KeyRange { from: Vec::new(), to: None };

    /// Whether the rows of a placement begin in this range.
    pub fn contains(&self, placement: &Placement) -> bool {
        let key = placement.as_bytes().as_slice();
        self.from.as_slice() <= key && self.to.as_deref().is_none_or(|to| key < to)
    }

    pub(crate) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        (Bound::Included(&self.from), self.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded))
    }
}

/// Where a table's rows and digests are.
#[derive(Clone, Debug)]
pub struct Segments {
    pub table: TableId,
    pub rows: RowTree,
    pub digests: Tree,
}

/// A range's part with its digest; it begins where the one before ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    pub to: Option<Vec<u8>>,
    pub digest: SetDigest,
}

/// A digest that cannot be read counts as that of no rows: it differs from the other owner's, so the rows are compared one by one, and
/// the scrub, which counts them, sets it right.
fn decoded(stored: &[u8]) -> SetDigest {
    SetDigest::decode(stored).unwrap_or_default()
}

/// Called with each key and value; `Break` ends the range.
type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// Reading trees, within a transaction or on a snapshot.
pub trait Rows {
    /// # Errors
    /// The metadata engine's.
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError>;

    /// # Errors
    /// The metadata engine's.
    fn range(
        &self,
        tree: Tree,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), DbError>;
}

impl Rows for Snapshot<'_> {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        Snapshot::get(self, tree, key)
    }

    fn range(
        &self,
        tree: Tree,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), DbError> {
        Snapshot::range(self, tree, bounds, direction, visit)
    }
}

impl Rows for Transaction<'_> {
    fn get(&self, tree: Tree, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        Transaction::get(self, tree, key)
    }

    fn range(
        &self,
        tree: Tree,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), DbError> {
        Transaction::range(self, tree, bounds, direction, visit)
    }
}

impl Segments {
    /// Records that the row of `key` changed from `old` to `new`; `None` is no row. The row itself must be written already.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn changed(
        &self,
        tx: &mut Transaction<'_>,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<(), TableError> {
        let (bound, mut digest) = self.segment_of(tx, key)?;
        if let Some(old) = old {
            digest.remove(RowDigest::of(key, old));
        }
        if let Some(new) = new {
            digest.add(RowDigest::of(key, new));
        }
        if digest.rows == 0 && !bound.is_empty() {
            // The segment before takes over the range, which has no rows.
            return Ok(tx.remove(self.digests, &self.stored_key(&bound))?);
        }
        tx.insert(self.digests, &self.stored_key(&bound), &digest.encode())?;
        if digest.rows > SEGMENT_ROWS_MAX { self.split(tx, &bound, digest) } else { Ok(()) }
    }

    /// The digest of a range.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn digest(&self, rows: &impl Rows, range: &KeyRange) -> Result<SetDigest, TableError> {
        Ok(self.pieces(rows, range, 1)?.iter().fold(SetDigest::default(), |sum, piece| sum.plus(piece.digest)))
    }

    /// Cuts a range into at most `parts` (at least one) pieces with about as many rows each.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn pieces(&self, rows: &impl Rows, range: &KeyRange, parts: u64) -> Result<Vec<Piece>, TableError> {
        let segments = self.within(rows, range)?;
        let total: u64 = segments.iter().map(|piece| piece.digest.rows).sum();
        let wanted = (total / parts.max(1)).max(1);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut current = SetDigest::default();
        for segment in segments {
            current = current.plus(segment.digest);
            let is_last = segment.to == range.to;
            if is_last || (current.rows > wanted && pieces.len() as u64 + 1 < parts) {
                pieces.push(Piece { to: segment.to, digest: std::mem::take(&mut current) });
            }
        }
        Ok(pieces)
    }

    /// The segments of a range, the first and the last cut to it. The last piece ends where the range does.
    fn within(&self, rows: &impl Rows, range: &KeyRange) -> Result<Vec<Piece>, TableError> {
        if range.to.as_ref().is_some_and(|to| *to <= range.from) {
            return Ok(vec![Piece { to: range.to.clone(), digest: SetDigest::default() }]);
        }
        let (first, first_digest) = self.segment_of(rows, &range.from)?;
        let mut inner: Vec<(Vec<u8>, SetDigest)> = vec![(first, first_digest)];
        let low = self.stored_key(&range.from);
        let high = match &range.to {
            Some(to) => Some(self.stored_key(to)),
            None => self.table.0.checked_add(1).map(|next| vec![next]),
        };
        let bounds = (Bound::Excluded(low.as_slice()), high.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        rows.range(self.digests, bounds, Direction::Forward, &mut |key, value| {
            inner.push((key[1..].to_vec(), decoded(value)));
            ControlFlow::Continue(())
        })?;
        let after_last = self.bound_after(rows, high.as_deref())?;
        let mut pieces = Vec::with_capacity(inner.len());
        for index in 0..inner.len() {
            let (bound, digest) = &inner[index];
            let next = inner.get(index + 1).map(|(bound, _)| bound.clone());
            let is_last = next.is_none();
            let starts_inside = *bound >= range.from;
            // The last segment may reach beyond the range.
            let ends_inside = !is_last || range.to.is_none() || (after_last.is_some() && after_last == range.to);
            let piece = KeyRange {
                from: if starts_inside { bound.clone() } else { range.from.clone() },
                to: if is_last { range.to.clone() } else { next },
            };
            let digest = if starts_inside && ends_inside { *digest } else { self.counted(rows, &piece)? };
            pieces.push(Piece { to: piece.to, digest });
        }
        Ok(pieces)
    }

    /// The first bound at or behind a stored key: where the last segment before it ends.
    fn bound_after(&self, rows: &impl Rows, stored: Option<&[u8]>) -> Result<Option<Vec<u8>>, DbError> {
        let Some(stored) = stored else { return Ok(None) };
        let mut found = None;
        rows.range(self.digests, (Bound::Included(stored), Bound::Unbounded), Direction::Forward, &mut |key, _value| {
            found = (key[0] == self.table.0).then(|| key[1..].to_vec());
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The digest of a range, from its rows.
    fn counted(&self, rows: &impl Rows, range: &KeyRange) -> Result<SetDigest, TableError> {
        let mut digest = SetDigest::default();
        self.rows.range(rows, range.bounds(), Direction::Forward, &mut |key, value| {
            digest.add(RowDigest::of(key, value));
            ControlFlow::Continue(())
        })?;
        Ok(digest)
    }

    /// The segment a key belongs to: its bound and digest.
    pub(crate) fn segment_of(&self, rows: &impl Rows, key: &[u8]) -> Result<(Vec<u8>, SetDigest), DbError> {
        let (low, high) = (vec![self.table.0], self.stored_key(key));
        let mut found = (Vec::new(), SetDigest::default());
        let bounds = (Bound::Included(low.as_slice()), Bound::Included(high.as_slice()));
        rows.range(self.digests, bounds, Direction::Backward, &mut |key, value| {
            found = (key[1..].to_vec(), decoded(value));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Where the segment that begins at `bound` ends; `None`: with the table.
    ///
    /// # Errors
    /// The metadata engine's.
    pub(crate) fn end_of(&self, rows: &impl Rows, bound: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        self.bound_after(rows, Some(&self.after(bound)))
    }

    /// Replaces the digest of the segment that begins at `bound`, if it is not what the rows say.
    ///
    /// # Errors
    /// The metadata engine's.
    pub(crate) fn correct(
        &self,
        tx: &mut Transaction<'_>,
        bound: &[u8],
        recorded: SetDigest,
        actual: SetDigest,
    ) -> Result<(), TableError> {
        if recorded == actual {
            return Ok(());
        }
        let key = self.stored_key(bound);
        if actual.rows == 0 && !bound.is_empty() {
            return Ok(tx.remove(self.digests, &key)?);
        }
        Ok(tx.insert(self.digests, &key, &actual.encode())?)
    }

    /// A segment with a damaged row is not cut before that is repaired: where its digest would belong is not known.
    fn split(&self, tx: &mut Transaction<'_>, bound: &[u8], digest: SetDigest) -> Result<(), TableError> {
        let end = self.end_of(tx, bound)?;
        let range = KeyRange { from: bound.to_vec(), to: end };
        let mut before: Vec<u8> = Vec::new();
        let mut middle = None;
        let (mut seen, mut upper) = (0, SetDigest::default());
        let seen_all = self.rows.range(&*tx, range.bounds(), Direction::Forward, &mut |key, value| {
            seen += 1;
            if seen > SEGMENT_ROWS_MAX / 2 {
                if middle.is_none() {
                    middle = Some(separator(&before, key));
                }
                upper.add(RowDigest::of(key, value));
            } else {
                before = key.to_vec();
            }
            ControlFlow::Continue(())
        });
        match seen_all {
            Err(TableError::DamagedRow { .. }) => return Ok(()),
            seen_all => seen_all?,
        }
        let Some(middle) = middle else { return Ok(()) };
        tx.insert(self.digests, &self.stored_key(bound), &digest.minus(upper).encode())?;
        Ok(tx.insert(self.digests, &self.stored_key(&middle), &upper.encode())?)
    }

    /// Whether the table has a segment.
    ///
    /// # Errors
    /// The metadata engine's.
    pub(crate) fn has_any(&self, rows: &impl Rows) -> Result<bool, DbError> {
        Ok(!self.first_stored(rows, 1)?.is_empty())
    }

    /// Removes some segments of the table. Returns how many.
    ///
    /// # Errors
    /// The metadata engine's.
    pub(crate) fn clear(&self, tx: &mut Transaction<'_>, limit: usize) -> Result<usize, TableError> {
        let stored = self.first_stored(tx, limit)?;
        stored.iter().try_for_each(|key| tx.remove(self.digests, key))?;
        Ok(stored.len())
    }

    /// The first keys of the table's segments in the tree of digests.
    fn first_stored(&self, rows: &impl Rows, limit: usize) -> Result<Vec<Vec<u8>>, DbError> {
        let mut found: Vec<Vec<u8>> = Vec::new();
        let from = self.stored_key(&[]);
        rows.range(self.digests, (Bound::Included(&from), Bound::Unbounded), Direction::Forward, &mut |key, _digest| {
            if key.first() != Some(&self.table.0) {
                return ControlFlow::Break(());
            }
            found.push(key.to_vec());
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(found)
    }

    /// Adds up the segments of a table anew, from its rows: for a database that has none yet.
    ///
    /// `after`: the last row's key of the call before. Returns the last key seen, `None` at the end.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn build(&self, tx: &mut Transaction<'_>, after: Option<&[u8]>, limit: usize) -> Result<Option<Vec<u8>>, TableError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found: Vec<(Vec<u8>, RowDigest)> = Vec::new();
        self.rows.range(&*tx, (from, Bound::Unbounded), Direction::Forward, &mut |key, value| {
            found.push((key.to_vec(), RowDigest::of(key, value)));
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let mut bound = match after {
            None => Vec::new(),
            Some(after) => match found.first() {
                Some((first, _)) => separator(after, first),
                None => return Ok(None),
            },
        };
        let mut chunks = found.chunks(SEGMENT_ROWS_MAX as usize / 2).peekable();
        while let Some(chunk) = chunks.next() {
            let mut digest = SetDigest::default();
            chunk.iter().for_each(|(_, row)| digest.add(*row));
            tx.insert(self.digests, &self.stored_key(&bound), &digest.encode())?;
            if let (Some((last, _)), Some([(next, _), ..])) = (chunk.last(), chunks.peek()) {
                bound = separator(last, next);
            }
        }
        let is_end = found.len() < limit;
        Ok(if is_end { None } else { found.pop().map(|(key, _)| key) })
    }

    fn stored_key(&self, bound: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + bound.len());
        key.push(self.table.0);
        key.extend_from_slice(bound);
        key
    }

    /// The smallest stored key behind that of `bound`.
    fn after(&self, bound: &[u8]) -> Vec<u8> {
        let mut key = self.stored_key(bound);
        key.push(0);
        key
    }
}

/// The shortest bound above `before` and not above `key`, which must be the greater.
fn separator(before: &[u8], key: &[u8]) -> Vec<u8> {
    let common = before.iter().zip(key).take_while(|(a, b)| a == b).count();
    key[..(common + 1).min(key.len())].to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_db::{Db, MemoryEngine};
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};
    use proptest::test_runner::Config;

    use super::{KeyRange, Segments, separator};
    use crate::digest::{RowDigest, SetDigest};
    use crate::error::TableError;
    use crate::rows::{Damaged, RowTree};
    use crate::wire::TableId;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn open() -> (Db, Segments) {
        let db = Db::open_memory(MemoryEngine::new()).unwrap();
        let rows = RowTree::new(db.open_tree("rows").unwrap(), TableId(3), ("rows", |key| hex::encode(key)), Damaged::default());
        let segments = Segments { table: TableId(3), rows, digests: db.open_tree("digests").unwrap() };
        (db, segments)
    }

    async fn set(db: &Db, segments: &Segments, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let segments = segments.clone();
        let write = move |tx: &mut garage_db::Transaction<'_>| {
            for (key, value) in &changes {
                let old = segments.rows.get(&*tx, key)?;
                match value {
                    Some(value) => segments.rows.insert(tx, key, value)?,
                    None => segments.rows.remove(tx, key)?,
                }
                if old != *value {
                    segments.changed(tx, key, old.as_deref(), value.as_deref())?;
                }
            }
            Ok::<_, TableError>(())
        };
        db.write(write).await.unwrap();
    }

    fn expected(model: &Model, range: &KeyRange) -> SetDigest {
        let mut digest = SetDigest::default();
        let inside = model.iter().filter(|(key, _)| **key >= range.from && range.to.as_ref().is_none_or(|to| *key < to));
        inside.for_each(|(key, value)| digest.add(RowDigest::of(key, value)));
        digest
    }

    fn key_of(number: u16) -> Vec<u8> {
        // Few leading bytes, so that bounds are shortened and ranges cut segments.
        vec![1 + (number >> 12) as u8, (number >> 6) as u8 & 63, number as u8 & 63, (number % 7) as u8]
    }

    async fn check(db: &Db, segments: &Segments, model: &Model, range: KeyRange) {
        let (segments, asked) = (segments.clone(), range.clone());
        let (digest, pieces) = db
            .read(move |tx| Ok::<_, TableError>((segments.digest(tx, &asked)?, segments.pieces(tx, &asked, 5)?)))
            .await
            .unwrap();
        assert_eq!(digest, expected(model, &range), "{range:?}");
        assert!(pieces.len() <= 5 && pieces.last().unwrap().to == range.to);
        let mut from = range.from.clone();
        for piece in pieces {
            let part = KeyRange { from: from.clone(), to: piece.to.clone() };
            assert_eq!(piece.digest, expected(model, &part), "{part:?} of {range:?}");
            from = piece.to.unwrap_or_default();
        }
    }

    proptest! {
        #![proptest_config(Config { cases: 24, ..Config::default() })]
        #[test]
        fn digests_are_those_of_the_rows(
            changes in vec((any::<u16>(), any::<Option<u8>>()), 0..4000), clears in vec(any::<(u16, u16)>(), 0..3),
            ranges in vec((any::<u16>(), any::<Option<u16>>()), 8),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (db, segments) = open();
                let mut model = Model::new();
                let changes: Vec<_> = changes.into_iter().map(|(key, value)| (key_of(key), value.map(|byte| vec![byte]))).collect();
                for batch in changes.chunks(500) {
                    for (key, value) in batch {
                        match value {
                            Some(value) => model.insert(key.clone(), value.clone()),
                            None => model.remove(key),
                        };
                    }
                    set(&db, &segments, batch.to_vec()).await;
                }
                for (from, to) in clears {
                    let (from, to) = (key_of(from.min(to)), key_of(from.max(to)));
                    let gone: Vec<Vec<u8>> = model.range(from.min(to.clone())..to).map(|(key, _)| key.clone()).collect();
                    gone.iter().for_each(|key| drop(model.remove(key)));
                    set(&db, &segments, gone.into_iter().map(|key| (key, None)).collect()).await;
                }
                check(&db, &segments, &model, KeyRange::ALL).await;
                for (from, to) in ranges {
                    check(&db, &segments, &model, KeyRange { from: key_of(from), to: to.map(key_of) }).await;
                }
                // Built anew they say the same.
                let built = Segments { digests: db.open_tree("again").unwrap(), ..segments.clone() };
                let mut after: Option<Vec<u8>> = None;
                loop {
                    let (built, from) = (built.clone(), after.clone());
                    after = db.write(move |tx| built.build(tx, from.as_deref(), 300)).await.unwrap();
                    if after.is_none() { break }
                }
                check(&db, &built, &model, KeyRange::ALL).await;
                check(&db, &built, &model, KeyRange { from: vec![3], to: Some(vec![9, 7]) }).await;
            });
        }
    }

    #[test]
    fn separators_are_short_and_between() {
        assert_eq!(separator(b"abcde", b"abd"), b"abd");
        assert_eq!(separator(b"abcde", b"abdzzzz"), b"abd");
        assert_eq!(separator(b"ab", b"abc"), b"abc");
    }
}
