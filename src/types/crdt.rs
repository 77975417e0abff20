//! Values that replicas can merge in any order, any number of times, and end up equal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A join semilattice: `merge` is commutative, associative and idempotent.
pub trait Crdt {
    /// Takes in everything `other` knows.
    fn merge(&mut self, other: &Self);
}

/// Last writer wins; between equal timestamps the greater value does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lww<T> {
    #[serde(rename = "t")]
    timestamp: Timestamp,
    #[serde(rename = "v")]
    value: T,
}

impl<T> Lww<T> {
    pub fn at(timestamp: Timestamp, value: T) -> Self {
        Lww { timestamp, value }
    }

    /// Sets a new value that wins over the present one even when the clock went back.
    pub fn update(&mut self, now: Timestamp, value: T) {
        self.timestamp = now.max(self.timestamp.next());
        self.value = value;
    }

    pub fn get(&self) -> &T {
        &self.value
    }

    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }
}

impl<T: Ord + Clone> Crdt for Lww<T> {
    fn merge(&mut self, other: &Self) {
        if (other.timestamp, &other.value) > (self.timestamp, &self.value) {
            self.timestamp = other.timestamp;
            self.value = other.value.clone();
        }
    }
}

/// A map of last-writer-wins registers. Entries are never dropped: a removal is a value of `T`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LwwMap<K: Ord, T>(BTreeMap<K, Lww<T>>);

impl<K: Ord, T> Default for LwwMap<K, T> {
    fn default() -> Self {
        LwwMap(BTreeMap::new())
    }
}

impl<K: Ord, T> LwwMap<K, T> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn get(&self, key: &K) -> Option<&T> {
        self.0.get(key).map(Lww::get)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &T)> {
        self.0.iter().map(|(key, register)| (key, register.get()))
    }

    /// Sets one entry so that it wins over the present one.
    pub fn update(&mut self, now: Timestamp, key: K, value: T) {
        match self.0.get_mut(&key) {
            Some(register) => register.update(now, value),
            None => {
                self.0.insert(key, Lww::at(now, value));
            }
        }
    }

    pub fn timestamp(&self, key: &K) -> Option<Timestamp> {
        self.0.get(key).map(Lww::timestamp)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<K: Ord + Clone, T: Ord + Clone> Crdt for LwwMap<K, T> {
    fn merge(&mut self, other: &Self) {
        merge_maps(&mut self.0, &other.0);
    }
}

/// The union of two maps; common keys merge.
pub fn merge_maps<K: Ord + Clone, V: Crdt + Clone>(into: &mut BTreeMap<K, V>, from: &BTreeMap<K, V>) {
    for (key, value) in from {
        match into.get_mut(key) {
            Some(present) => present.merge(value),
            None => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Something that can be deleted for good; deletion wins over any content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deletable<T> {
    #[serde(rename = "p")]
    Present(T),
    #[serde(rename = "d")]
    Deleted,
}

impl<T> Deletable<T> {
    pub fn as_option(&self) -> Option<&T> {
        match self {
            Deletable::Present(value) => Some(value),
            Deletable::Deleted => None,
        }
    }

    pub fn is_deleted(&self) -> bool {
        matches!(self, Deletable::Deleted)
    }
}

impl<T: Crdt> Crdt for Deletable<T> {
    fn merge(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Deletable::Present(mine), Deletable::Present(theirs)) => mine.merge(theirs),
            (_, Deletable::Deleted) => *self = Deletable::Deleted,
            (Deletable::Deleted, Deletable::Present(_)) => {}
        }
    }
}

/// Set once, never cleared.
impl Crdt for bool {
    fn merge(&mut self, other: &Self) {
        *self |= *other;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{Crdt, Deletable, Lww, LwwMap};
    use crate::Timestamp;

    /// Merging `values` in the given order, each possibly twice, must give what any other order gives.
    fn laws<T: Crdt + Clone + PartialEq + std::fmt::Debug>(a: &T, b: &T, c: &T) {
        let join = |x: &T, y: &T| {
            let mut out = x.clone();
            out.merge(y);
            out
        };
        assert_eq!(join(a, b), join(b, a), "commutative");
        assert_eq!(join(&join(a, b), c), join(a, &join(b, c)), "associative");
        assert_eq!(join(&join(a, b), b), join(a, b), "idempotent");
    }

    fn register(time: u64, value: u8) -> Lww<u8> {
        Lww::at(Timestamp::from_millis(time), value)
    }

    proptest! {
        #[test]
        fn registers_obey_the_laws(v in prop::array::uniform3((0u64..3, any::<u8>()))) {
            let [a, b, c] = v.map(|(t, v)| register(t, v));
            laws(&a, &b, &c);
        }

        #[test]
        fn maps_obey_the_laws(v in prop::array::uniform3(prop::collection::vec((0u8..4, 0u64..3, any::<u8>()), 0..4))) {
            let [a, b, c] = v.map(|entries| {
                let mut map = LwwMap::new();
                for (key, time, value) in entries { map.update(Timestamp::from_millis(time), key, value); }
                map
            });
            laws(&a, &b, &c);
        }

        #[test]
        fn deletables_obey_the_laws(v in prop::array::uniform3((any::<bool>(), 0u64..3, any::<u8>()))) {
            let [a, b, c] = v.map(|(gone, t, v)| if gone { Deletable::Deleted } else { Deletable::Present(register(t, v)) });
            laws(&a, &b, &c);
        }
    }

    #[test]
    fn an_update_wins_even_when_the_clock_went_back() {
        let mut value = register(1000, 1);
        let before = value.clone();
        value.update(Timestamp::from_millis(10), 2);
        let mut merged = before;
        merged.merge(&value);
        assert_eq!(*merged.get(), 2);
    }
}
