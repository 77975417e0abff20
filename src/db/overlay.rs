//! The changes of one closure, kept apart from the engine until it has succeeded.
//!
//! Pure. What must stay true: reading through an overlay gives what reading the engine would give once the overlay is applied.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::engine::{Bounds, Direction, ReadRows, Tree, Visit, WriteRows};
use crate::error::DbError;

/// What an overlay says about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change<'o> {
    Inserted(&'o [u8]),
    Removed,
}

/// Changed keys of each tree; `None` is a removed key.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    trees: BTreeMap<Tree, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl Overlay {
    pub(crate) fn insert(&mut self, tree: Tree, key: &[u8], value: &[u8]) {
        self.trees.entry(tree).or_default().insert(key.to_vec(), Some(value.to_vec()));
    }

    pub(crate) fn remove(&mut self, tree: Tree, key: &[u8]) {
        self.trees.entry(tree).or_default().insert(key.to_vec(), None);
    }

    /// The change of a key; `None` when the engine's own row is to be read.
    pub(crate) fn get(&self, tree: Tree, key: &[u8]) -> Option<Change<'_>> {
        self.trees.get(&tree)?.get(key).map(change)
    }

    /// Visits the rows of `base` as they will be once the overlay is applied. `bounds` must be in order.
    pub(crate) fn range(
        &self,
        base: &dyn ReadRows,
        tree: Tree,
        bounds: Bounds<'_>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), DbError> {
        let Some(changes) = self.trees.get(&tree) else {
            return base.range(tree, bounds, direction, visit);
        };
        let changes = changes.range::<[u8], _>(bounds).map(|(key, value)| (key.as_slice(), change(value)));
        let base = |visit: &mut Visit<'_>| base.range(tree, bounds, direction, visit);
        match direction {
            Direction::Forward => merge(changes, |a, b| a.cmp(b), base, visit),
            Direction::Backward => merge(changes.rev(), |a, b| b.cmp(a), base, visit),
        }
    }

    /// All changes, in the order of trees and keys.
    #[cfg(feature = "sled")]
    pub(crate) fn changes(&self) -> impl Iterator<Item = (Tree, &[u8], Change<'_>)> {
        self.trees
            .iter()
            .flat_map(|(tree, changes)| changes.iter().map(move |(key, value)| (*tree, key.as_slice(), change(value))))
    }

    /// Writes the changes to the engine's transaction and returns the bytes of keys and values written.
    pub(crate) fn apply(&self, rows: &mut dyn WriteRows) -> Result<usize, DbError> {
        let mut bytes = 0;
        for (tree, changes) in &self.trees {
            for (key, value) in changes {
                match value {
                    Some(value) => rows.insert(*tree, key, value)?,
                    None => rows.remove(*tree, key)?,
                }
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            }
        }
        Ok(bytes)
    }
}

fn change(value: &Option<Vec<u8>>) -> Change<'_> {
    match value {
        Some(value) => Change::Inserted(value),
        None => Change::Removed,
    }
}

/// Visits the rows of `base` and the `changes`, both sorted by `order`, as one sorted sequence in which a change hides the row of
/// the same key.
fn merge<'o>(
    changes: impl Iterator<Item = (&'o [u8], Change<'o>)>,
    order: impl Fn(&[u8], &[u8]) -> Ordering,
    base: impl FnOnce(&mut Visit<'_>) -> Result<(), DbError>,
    visit: &mut Visit<'_>,
) -> Result<(), DbError> {
    let mut changes = changes.peekable();
    let mut flow = ControlFlow::Continue(());
    base(&mut |key, value| {
        flow = loop {
            match changes.next_if(|(changed, _)| order(changed, key).is_le()) {
                Some((changed, change)) if changed == key => break visit_change(changed, change, visit),
                Some((changed, change)) => {
                    if visit_change(changed, change, visit).is_break() {
                        break ControlFlow::Break(());
                    }
                }
                None => break visit(key, value),
            }
        };
        flow
    })?;
    while flow.is_continue()
        && let Some((changed, change)) = changes.next()
    {
        flow = visit_change(changed, change, visit);
    }
    Ok(())
}

fn visit_change(key: &[u8], change: Change<'_>, visit: &mut Visit<'_>) -> ControlFlow<()> {
    match change {
        Change::Inserted(value) => visit(key, value),
        Change::Removed => ControlFlow::Continue(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::{Bound, ControlFlow, RangeBounds};

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

    use super::{Change, Overlay};
    use crate::bounds;
    use crate::engine::{Direction, Storage, Tree};
    use crate::memory::MemoryEngine;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn engine_with(rows: &Model) -> (MemoryEngine, Tree) {
        let engine = MemoryEngine::new();
        let tree = engine.open_tree("rows").unwrap();
        engine.write(&mut |transaction| rows.iter().try_for_each(|(key, value)| transaction.insert(tree, key, value))).unwrap();
        (engine, tree)
    }

    fn overlay_of(tree: Tree, changes: &[(Vec<u8>, Option<Vec<u8>>)]) -> Overlay {
        let mut overlay = Overlay::default();
        for (key, value) in changes {
            match value {
                Some(value) => overlay.insert(tree, key, value),
                None => overlay.remove(tree, key),
            }
        }
        overlay
    }

    fn changed(rows: &Model, changes: &[(Vec<u8>, Option<Vec<u8>>)]) -> Model {
        let mut model = rows.clone();
        for (key, value) in changes {
            match value {
                Some(value) => model.insert(key.clone(), value.clone()),
                None => model.remove(key),
            };
        }
        model
    }

    /// Few enough keys that rows, changes and bounds often meet.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0_u8), Just(1), Just(255)], 1..4)
    }

    fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
        prop_oneof![Just(Bound::Unbounded), key().prop_map(Bound::Included), key().prop_map(Bound::Excluded)]
    }

    fn rows() -> impl Strategy<Value = Model> {
        btree_map(key(), vec(any::<u8>(), 0..3), 0..20)
    }

    fn changes() -> impl Strategy<Value = Vec<(Vec<u8>, Option<Vec<u8>>)>> {
        vec((key(), proptest::option::of(vec(any::<u8>(), 0..3))), 0..20)
    }

    fn direction() -> impl Strategy<Value = Direction> {
        prop_oneof![Just(Direction::Forward), Just(Direction::Backward)]
    }

    fn borrowed(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
        bound.as_ref().map(Vec::as_slice)
    }

    proptest! {
        #[test]
        fn range_through_an_overlay_gives_what_the_engine_gives_once_it_is_applied(
            rows in rows(), changes in changes(), lower in bound(), upper in bound(), direction in direction(), limit in 1_usize..30,
        ) {
            let (engine, tree) = engine_with(&rows);
            let overlay = overlay_of(tree, &changes);
            let mut seen = Vec::new();
            if let Some(bounds) = bounds::check((borrowed(&lower), borrowed(&upper))) {
                engine.read(&mut |base| {
                    overlay.range(base, tree, bounds, direction, &mut |key, value| {
                        seen.push((key.to_vec(), value.to_vec()));
                        if seen.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    }).unwrap();
                }).unwrap();
            }

            let is_within = |key: &[u8]| RangeBounds::<[u8]>::contains(&(borrowed(&lower), borrowed(&upper)), key);
            let mut expected: Vec<_> = changed(&rows, &changes).into_iter().filter(|(key, _)| is_within(key)).collect();
            if direction == Direction::Backward {
                expected.reverse();
            }
            expected.truncate(limit);
            assert_eq!(seen, expected);
        }

        #[test]
        fn applied_overlay_leaves_exactly_the_changed_rows(rows in rows(), changes in changes()) {
            let (engine, tree) = engine_with(&rows);
            let overlay = overlay_of(tree, &changes);
            engine.write(&mut |transaction| overlay.apply(transaction).map(|_bytes| ())).unwrap();
            let mut left = Model::new();
            engine.read(&mut |base| {
                base.range(tree, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, value| {
                    left.insert(key.to_vec(), value.to_vec());
                    ControlFlow::Continue(())
                }).unwrap();
            }).unwrap();
            assert_eq!(left, changed(&rows, &changes));
        }
    }

    #[test]
    fn last_change_of_a_key_counts() {
        let tree = Tree(0);
        let mut overlay = Overlay::default();
        assert_eq!(overlay.get(tree, b"key"), None);
        overlay.insert(tree, b"key", b"first");
        overlay.insert(tree, b"key", b"second");
        assert_eq!(overlay.get(tree, b"key"), Some(Change::Inserted(b"second")));
        overlay.remove(tree, b"key");
        assert_eq!(overlay.get(tree, b"key"), Some(Change::Removed));
        assert_eq!(overlay.get(Tree(1), b"key"), None);
    }
}
