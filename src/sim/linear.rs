//! Is there an order of all operations on one key that explains every answer? (Linearizability of a register.)
//!
//! Pure. A search in the order of time: of the operations that may come next (those that began before the first of the others
//! ended) one is taken that agrees with the value so far. A read that agrees is always taken at once. Writes of unknown outcome may
//! be left out; those that nobody saw are not even tried.

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What a key holds: a write, or nothing.
pub type Value = Option<u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Read(Value),
    Write(Value),
}

/// One operation. Times are places in the order of all beginnings and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub action: Action,
    pub begun: u64,
    /// `None`: a write of which nobody knows whether it happened, or when.
    pub ended: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Explained,
    /// The longest order found, and the operations that fit nowhere behind it.
    Impossible {
        stuck: Vec<Operation>,
    },
    /// Too many orders to try.
    GaveUp,
}

/// States tried before giving up.
const STATES_MAX: usize = 400_000;

/// Judges the operations on one key, which held nothing at first.
pub fn judge(operations: &[Operation]) -> Judgement {
    let operations = relevant(operations);
    let mut search = Search { operations: &operations, seen: HashSet::new(), best: 0, stuck: Vec::new() };
    let mut done = vec![0; operations.len().div_ceil(64)];
    match search.explain(&mut done, None, 0) {
        Step::Explained => Judgement::Explained,
        Step::DeadEnd => Judgement::Impossible { stuck: search.stuck },
        Step::GaveUp => Judgement::GaveUp,
    }
}

/// Without unknown writes that nobody saw; one that was seen has happened before the first who saw it was told.
fn relevant(operations: &[Operation]) -> Vec<Operation> {
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in operations {
        if let (Action::Read(Some(write)), Some(ended)) = (operation.action, operation.ended) {
            let first = seen.entry(write).or_insert(ended);
            *first = (*first).min(ended);
        }
    }
    let narrowed = |operation: &Operation| match (operation.action, operation.ended) {
        (Action::Write(Some(write)), None) => Some(Operation { ended: Some(*seen.get(&write)?), ..*operation }),
        _ => Some(*operation),
    };
    let mut relevant: Vec<Operation> = operations.iter().filter_map(narrowed).collect();
    relevant.sort_by_key(|operation| operation.begun);
    relevant
}

enum Step {
    Explained,
    DeadEnd,
    GaveUp,
}

struct Search<'a> {
    operations: &'a [Operation],
    seen: HashSet<(Vec<u64>, Value)>,
    best: usize,
    stuck: Vec<Operation>,
}

impl Search<'_> {
    fn explain(&mut self, done: &mut Vec<u64>, mut value: Value, mut count: usize) -> Step {
        let is_done = |done: &[u64], index: usize| done[index / 64] >> (index % 64) & 1 == 1;
        let mut taken = Vec::new();
        let candidates = loop {
            let waiting: Vec<usize> = (0..self.operations.len()).filter(|index| !is_done(done, *index)).collect();
            let Some(horizon) = waiting.iter().filter_map(|index| self.operations[*index].ended).min() else {
                return Step::Explained;
            };
            let next: Vec<usize> = waiting.into_iter().filter(|index| self.operations[*index].begun < horizon).collect();
            let fits = |index: &usize| self.operations[*index].action == Action::Read(value);
            let reads: Vec<usize> = next.iter().copied().filter(fits).collect();
            if reads.is_empty() {
                break next;
            }
            for index in reads {
                done[index / 64] |= 1 << (index % 64);
                taken.push(index);
                count += 1;
            }
        };
        let outcome = self.branch(done, &mut value, count, candidates);
        for index in taken {
            done[index / 64] &= !(1 << (index % 64));
        }
        outcome
    }

    fn branch(&mut self, done: &mut Vec<u64>, value: &mut Value, count: usize, candidates: Vec<usize>) -> Step {
        if self.seen.len() > STATES_MAX {
            return Step::GaveUp;
        }
        if !self.seen.insert((done.clone(), *value)) {
            return Step::DeadEnd;
        }
        if count >= self.best {
            self.best = count;
            self.stuck = candidates.iter().map(|index| self.operations[*index]).collect();
        }
        let mut tried = BTreeSet::new();
        for index in candidates {
            let operation = self.operations[index];
            let Action::Write(written) = operation.action else { continue };
            // Of unknown deletions one is as good as another.
            if operation.ended.is_none() && !tried.insert(written) {
                continue;
            }
            done[index / 64] |= 1 << (index % 64);
            let outcome = self.explain(done, written, count + 1);
            done[index / 64] &= !(1 << (index % 64));
            match outcome {
                Step::DeadEnd => {}
                found => return found,
            }
        }
        Step::DeadEnd
    }
}

#[cfg(test)]
mod tests {
    use super::{Action, Judgement, Operation, Value, judge};

    fn write(value: Value, begun: u64, ended: u64) -> Operation {
        Operation { action: Action::Write(value), begun, ended: Some(ended) }
    }

    fn unsure(value: Value, begun: u64) -> Operation {
        Operation { action: Action::Write(value), begun, ended: None }
    }

    fn read(value: Value, begun: u64, ended: u64) -> Operation {
        Operation { action: Action::Read(value), begun, ended: Some(ended) }
    }

    fn is_explained(operations: &[Operation]) -> bool {
        judge(operations) == Judgement::Explained
    }

    #[test]
    fn what_was_acknowledged_is_read_until_something_newer_is() {
        assert!(is_explained(&[write(Some(1), 0, 1), read(Some(1), 2, 3), write(None, 4, 5), read(None, 6, 7)]));
        assert!(!is_explained(&[write(Some(1), 0, 1), read(None, 2, 3)]));
        assert!(!is_explained(&[write(Some(1), 0, 1), write(Some(2), 2, 3), read(Some(1), 4, 5)]));
    }

    #[test]
    fn reads_do_not_go_back() {
        let overlapping = [write(Some(1), 0, 1), write(Some(2), 2, 9)];
        assert!(is_explained(&[&overlapping[..], &[read(Some(1), 3, 4), read(Some(2), 5, 6)]].concat()));
        assert!(!is_explained(&[&overlapping[..], &[read(Some(2), 3, 4), read(Some(1), 5, 6)]].concat()));
    }

    #[test]
    fn a_write_happens_once() {
        let overlapping = [write(Some(1), 0, 20), write(Some(2), 1, 21)];
        let reads = [read(Some(1), 2, 3), read(Some(2), 4, 5), read(Some(1), 6, 7)];
        assert!(!is_explained(&[&overlapping[..], &reads[..]].concat()));
    }

    #[test]
    fn a_write_of_unknown_outcome_happens_late_or_never_but_stays() {
        let start = [write(Some(1), 0, 1), unsure(Some(2), 2)];
        assert!(is_explained(&[&start[..], &[read(Some(1), 4, 5)]].concat()));
        assert!(is_explained(&[&start[..], &[read(Some(1), 4, 5), read(Some(2), 6, 7)]].concat()));
        assert!(!is_explained(&[&start[..], &[read(Some(2), 4, 5), read(Some(1), 6, 7)]].concat()));
        assert!(is_explained(&[write(Some(1), 0, 1), unsure(None, 2), read(Some(1), 3, 4), read(None, 5, 6)]));
        assert!(!is_explained(&[write(Some(1), 0, 1), unsure(None, 2), read(None, 3, 4), read(Some(1), 5, 6)]));
    }
}
