//! Connections whose other side has not yet proven that it belongs to the cluster: few at a time, and the oldest makes way.
//!
//! Anybody can open connections and say nothing. This machine (the command line), the machines of known peers, and everybody else have
//! places of their own, and of each kind those that have sent a hello have others than those that have not. When a kind has all of its
//! places taken, the origin that holds most of them loses its oldest connection.
//! What must stay true: accepting never waits; a connection that has proven that it knows the cluster's secret is never cut for another;
//! so a peer, which says hello at once and proves itself a round trip later, comes in however many others keep silent. Only an answer to
//! something new of ours is a proof: a hello can be one that somebody overheard.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garage_types::Origin;
use tokio::sync::Notify;

/// Unproven connections of each [`Kind`] that have sent a hello, and as many that have not.
const ARRIVALS_MAX: usize = 128;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ThisMachine,
    KnownPeer,
    Stranger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Silent,
    Greeted,
}

/// All connections that have not proven anything. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Arrivals(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    crowds: BTreeMap<(Kind, Word), Crowd>,
}

#[derive(Default)]
struct Crowd {
    cuts: BTreeMap<u64, Arc<Notify>>,
    of_origin: HashMap<Origin, BTreeSet<u64>>,
}

/// The place of a connection, until it is dropped.
pub(super) struct Arrival {
    arrivals: Arrivals,
    kind: Kind,
    origin: Origin,
    id: u64,
    cut: Arc<Notify>,
}

impl Arrivals {
    /// A place for a new connection from `origin`, if need be that of an older one.
    pub(super) fn take(&self, kind: Kind, origin: Origin) -> Arrival {
        let mut state = self.state();
        state.next += 1;
        let arrival = Arrival { arrivals: self.clone(), kind, origin, id: state.next, cut: Arc::default() };
        state.crowds.entry((kind, Word::Silent)).or_default().add(&arrival);
        arrival
    }

    /// Every change under this lock is whole before anything can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it had a place.
    fn remove(&mut self, arrival: &Arrival, word: Word) -> bool {
        let crowd = self.crowds.get_mut(&(arrival.kind, word));
        crowd.and_then(|crowd| crowd.remove(arrival.origin, arrival.id)).is_some()
    }
}

impl Crowd {
    fn add(&mut self, arrival: &Arrival) {
        if self.cuts.len() >= ARRIVALS_MAX {
            self.cut_oldest_of_most();
        }
        self.cuts.insert(arrival.id, arrival.cut.clone());
        self.of_origin.entry(arrival.origin).or_default().insert(arrival.id);
    }

    fn cut_oldest_of_most(&mut self) {
        // Of several with as many, the one whose oldest is oldest, so that the choice never depends on the order of the map.
        let most = self.of_origin.iter().max_by_key(|(_origin, ids)| (ids.len(), std::cmp::Reverse(ids.first().copied())));
        let Some((origin, id)) = most.and_then(|(origin, ids)| Some((*origin, *ids.first()?))) else { return };
        if let Some(cut) = self.remove(origin, id) {
            cut.notify_one();
        }
    }

    fn remove(&mut self, origin: Origin, id: u64) -> Option<Arc<Notify>> {
        if let Some(ids) = self.of_origin.get_mut(&origin) {
            ids.remove(&id);
            if ids.is_empty() {
                self.of_origin.remove(&origin);
            }
        }
        self.cuts.remove(&id)
    }
}

impl Arrival {
    /// Returns when the connection has to make way for another.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }

    /// The other side has sent a hello: its place is among those that have.
    pub(super) fn greet(&self) {
        let mut state = self.arrivals.state();
        if state.remove(self, Word::Silent) {
            state.crowds.entry((self.kind, Word::Greeted)).or_default().add(self);
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.arrivals.state();
        // It is in one of them, or was cut.
        let _had_place = state.remove(self, Word::Silent) || state.remove(self, Word::Greeted);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use garage_types::Origin;

    use super::{ARRIVALS_MAX, Arrival, Arrivals, Kind, Word};

    fn from(address: &str) -> Origin {
        Origin::of(address.parse().unwrap())
    }

    fn is_cut(arrival: &Arrival) -> bool {
        arrival.cut().now_or_never().is_some()
    }

    #[test]
    fn the_network_that_holds_most_places_makes_way_with_its_oldest() {
        let arrivals = Arrivals::default();
        let one = arrivals.take(Kind::Stranger, from("192.0.2.1"));
        let flood: Vec<_> = (0..ARRIVALS_MAX).map(|n| arrivals.take(Kind::Stranger, from(&format!("2001:db8::{n:x}")))).collect();
        assert!(!is_cut(&one) && is_cut(&flood[0]) && !is_cut(&flood[1]), "whoever has one address of a network has all");
        let _other = arrivals.take(Kind::Stranger, from("2001:db8:1::1"));
        assert!(!is_cut(&one) && is_cut(&flood[1]));
    }

    #[test]
    fn strangers_take_nobody_elses_place() {
        let arrivals = Arrivals::default();
        let (peer, here) = (arrivals.take(Kind::KnownPeer, from("192.0.2.1")), arrivals.take(Kind::ThisMachine, from("::1")));
        let flood: Vec<_> = (0..ARRIVALS_MAX).map(|n| arrivals.take(Kind::Stranger, from(&format!("198.51.100.{n}")))).collect();
        assert!([&peer, &here, &flood[0]].into_iter().all(|arrival| !is_cut(arrival)));
        let last = arrivals.take(Kind::Stranger, from("192.0.2.3"));
        assert!(is_cut(&flood[0]), "of many with one each, the oldest");
        drop((flood, last));
        assert!(arrivals.state().crowds[&(Kind::Stranger, Word::Silent)].of_origin.is_empty());
    }

    #[test]
    fn whoever_greets_makes_way_only_for_those_who_do() {
        let arrivals = Arrivals::default();
        let flood = |greet: bool| -> Vec<_> {
            let one = |_number| {
                let arrival = arrivals.take(Kind::ThisMachine, from("::1"));
                if greet {
                    arrival.greet();
                }
                arrival
            };
            (0..ARRIVALS_MAX).map(one).collect()
        };
        let first = arrivals.take(Kind::ThisMachine, from("::1"));
        first.greet();
        let _silent = (flood(false), flood(false));
        assert!(!is_cut(&first));
        let greeted = flood(true);
        assert!(is_cut(&first) && !is_cut(&greeted[0]));
        drop(greeted);
        assert!(arrivals.state().crowds[&(Kind::ThisMachine, Word::Greeted)].of_origin.is_empty());
    }
}
