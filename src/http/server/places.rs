//! Who may be connected: a bounded number of connections, of which those that say nothing make way for new ones.
//!
//! A connection is silent while no request of it is being answered: before its first request, between two, or while a head is still
//! coming in. When all places are taken, a silent connection is cut, of those of a kind the longest silent: first those that never sent a
//! whole head and had two seconds for it, then those that rest between two requests, then those that have just come. One address never has
//! all places. What must stay true: a connection whose request is being answered, or whose client still takes the reply, is never cut, and
//! newcomers do not push each other out while there are others; so a client that speaks at once is served, however many others keep silent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use garage_types::Origin;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Peer;

fn origin(peer: Peer) -> Origin {
    match peer {
        Peer::Tcp(address) => Origin::of(address.ip()),
        Peer::Unix => Origin::NoAddress,
    }
}

/// How long a connection may take to send its first request before it makes way sooner than those that rest: a round trip, and more.
const NEWCOMERS_TIME: Duration = Duration::from_secs(2);

/// Silent connections: those of each acquaintance in the order in which they make way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    acquaintance: Acquaintance,
    since: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Acquaintance {
    /// No request has come on this connection.
    Stranger,
    Answered,
}

impl Acquaintance {
    /// Before all turns of those of this acquaintance.
    fn first_turn(self) -> Turn {
        Turn { acquaintance: self, since: 0 }
    }
}

/// With more requests than these being answered, each buffers less.
pub(super) const CROWD: usize = 128;

struct Connected {
    origin: Origin,
    came: Instant,
    /// When it is silent.
    turn: Option<Turn>,
    signals: Arc<Signals>,
}

/// What a connection and its place tell each other.
#[derive(Default)]
struct Signals {
    /// The client has not taken all of the last reply.
    is_taking: AtomicBool,
    was_answered: AtomicBool,
    cut: Notify,
}

/// How much of what was written to a client it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taking {
    All,
    Some,
}

#[derive(Default)]
struct State {
    /// Counts events, in place of a clock.
    now: u64,
    connected: HashMap<u64, Connected>,
    silent: BTreeMap<Turn, u64>,
    origins: HashMap<Origin, OfOrigin>,
}

/// The connections of one origin, of which there is at least one.
#[derive(Default)]
struct OfOrigin {
    count: usize,
    silent: BTreeSet<Turn>,
}

/// All places of one server. Clones are the same.
#[derive(Clone)]
pub(super) struct Places(Arc<Shared>);

struct Shared {
    /// Requests being answered.
    answering: AtomicUsize,
    places_max: usize,
    /// Of one origin; Unix sockets are of one and have all.
    origin_max: usize,
    state: Mutex<State>,
    changed: Notify,
}

/// Why a new connection has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All that its address may have are being answered.
    OfThisAddress,
    /// Everybody is being answered: [`Places::free`] tells when that is over.
    OfAnybody,
}

/// The place of one connection, until it is dropped.
pub(super) struct Place {
    places: Places,
    id: u64,
    signals: Arc<Signals>,
}

/// A request being answered, until it is dropped.
pub(super) struct Answering(Arc<Place>);

impl Places {
    pub(super) fn new(places_max: usize, origin_max: usize) -> Self {
        let (answering, state, changed) = (AtomicUsize::new(0), Mutex::default(), Notify::new());
        Places(Arc::new(Shared { answering, places_max: places_max.max(1), origin_max: origin_max.max(1), state, changed }))
    }

    /// Waits until a new connection would find a place: not everybody is being answered.
    pub(super) async fn free(&self) {
        loop {
            let changed = self.0.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.state();
                if state.connected.len() < self.0.places_max || state.first_silent(None).is_some() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// A place for a new connection.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub(super) fn take(&self, peer: Peer) -> Result<Place, NoPlace> {
        let origin = origin(peer);
        let mut state = self.state();
        let own = state.origins.get(&origin).map_or(0, |own| own.count);
        let makes_way = if origin != Origin::NoAddress && own >= self.0.origin_max {
            Some(state.first_silent(Some(origin)).ok_or(NoPlace::OfThisAddress)?)
        } else if state.connected.len() >= self.0.places_max {
            Some(state.first_silent(None).ok_or(NoPlace::OfAnybody)?)
        } else {
            None
        };
        if let Some(gone) = makes_way.and_then(|id| state.remove(id)) {
            gone.signals.cut.notify_one();
        }
        let signals = Arc::new(Signals::default());
        let id = state.add(origin, signals.clone());
        Ok(Place { places: self.clone(), id, signals })
    }

    /// Every change under this lock is whole before anything can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.state().connected.len()
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn add(&mut self, origin: Origin, signals: Arc<Signals>) -> u64 {
        let id = self.tick();
        self.connected.insert(id, Connected { origin, came: Instant::now(), turn: None, signals });
        self.origins.entry(origin).or_default().count += 1;
        self.fall_silent(id, Acquaintance::Stranger);
        id
    }

    fn fall_silent(&mut self, id: u64, acquaintance: Acquaintance) {
        let since = self.tick();
        // Cut meanwhile, or silent already.
        let Some(connected) = self.connected.get_mut(&id).filter(|connected| connected.turn.is_none()) else { return };
        let turn = Turn { acquaintance, since };
        connected.turn = Some(turn);
        self.silent.insert(turn, id);
        if let Some(own) = self.origins.get_mut(&connected.origin) {
            own.silent.insert(turn);
        }
    }

    fn speak(&mut self, id: u64) {
        let Some(connected) = self.connected.get_mut(&id) else { return };
        let origin = connected.origin;
        if let Some(turn) = connected.turn.take() {
            self.forget_turn(origin, turn);
        }
    }

    fn forget_turn(&mut self, origin: Origin, turn: Turn) {
        self.silent.remove(&turn);
        if let Some(own) = self.origins.get_mut(&origin) {
            own.silent.remove(&turn);
        }
    }

    /// The silent connection that makes way first, of one origin or of all, passing over those whose clients still take a reply.
    fn first_silent(&self, origin: Option<Origin>) -> Option<u64> {
        let stranger = self.longest_silent(Acquaintance::Stranger, origin);
        stranger.filter(|id| self.had_its_time(*id)).or_else(|| self.longest_silent(Acquaintance::Answered, origin)).or(stranger)
    }

    fn longest_silent(&self, acquaintance: Acquaintance, origin: Option<Origin>) -> Option<u64> {
        let of_acquaintance = |turn: &Turn| turn.acquaintance == acquaintance;
        let from = acquaintance.first_turn()..;
        match origin {
            None => {
                let silent = self.silent.range(from).take_while(|(turn, _id)| of_acquaintance(turn));
                silent.map(|(_turn, id)| *id).find(|id| self.has_taken_all(*id))
            }
            Some(origin) => {
                let turns = self.origins.get(&origin)?.silent.range(from).take_while(|turn| of_acquaintance(turn));
                turns.filter_map(|turn| self.silent.get(turn)).copied().find(|id| self.has_taken_all(*id))
            }
        }
    }

    fn has_taken_all(&self, id: u64) -> bool {
        self.connected.get(&id).is_some_and(|connected| !connected.signals.is_taking.load(Ordering::Relaxed))
    }

    fn had_its_time(&self, id: u64) -> bool {
        self.connected.get(&id).is_some_and(|connected| connected.came.elapsed() >= NEWCOMERS_TIME)
    }

    fn remove(&mut self, id: u64) -> Option<Connected> {
        let mut connected = self.connected.remove(&id)?;
        if let Some(turn) = connected.turn.take() {
            self.forget_turn(connected.origin, turn);
        }
        if let Some(own) = self.origins.get_mut(&connected.origin) {
            own.count -= 1;
            if own.count == 0 {
                self.origins.remove(&connected.origin);
            }
        }
        Some(connected)
    }
}

impl Place {
    /// Returns when the connection has to make way for another.
    pub(super) async fn cut(&self) {
        self.signals.cut.notified().await;
    }

    /// Notes how much of what was written its client has taken.
    pub(super) fn note(&self, taking: Taking) {
        self.signals.is_taking.store(taking == Taking::Some, Ordering::Relaxed);
        if taking == Taking::All {
            self.places.0.changed.notify_one();
        }
    }

    /// Whether so many requests are being answered that each of them should do with little memory.
    pub(super) fn is_crowded(&self) -> bool {
        self.places.0.answering.load(Ordering::Relaxed) > CROWD
    }

    /// Whether a whole head has ever come.
    pub(super) fn was_answered(&self) -> bool {
        self.signals.was_answered.load(Ordering::Relaxed)
    }

    /// A whole head has come.
    pub(super) fn answer(self: &Arc<Self>) -> Answering {
        self.places.state().speak(self.id);
        self.places.0.answering.fetch_add(1, Ordering::Relaxed);
        self.signals.was_answered.store(true, Ordering::Relaxed);
        Answering(self.clone())
    }
}

impl Answering {
    pub(super) fn is_crowded(&self) -> bool {
        self.0.is_crowded()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.places.0.answering.fetch_sub(1, Ordering::Relaxed);
        self.0.places.state().fall_silent(self.0.id, Acquaintance::Answered);
        self.0.places.0.changed.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.places.state().remove(self.id));
        self.places.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::{NEWCOMERS_TIME, NoPlace, Place, Places, Taking};
    use crate::server::Peer;

    fn peer(host: u8) -> Peer {
        Peer::Tcp(SocketAddr::from(([10, 0, 0, host], 1)))
    }

    fn take(places: &Places, host: u8) -> Arc<Place> {
        Arc::new(places.take(peer(host)).expect("a place"))
    }

    fn is_cut(place: &Place) -> bool {
        place.cut().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_silent_stranger_makes_way_first_then_who_rests_and_never_who_is_answered() {
        let places = Places::new(4, 4);
        let connections: Vec<_> = (1..=4).map(|host| take(&places, host)).collect();
        let answering = connections[0].answer();
        drop(connections[1].answer());
        tokio::time::advance(NEWCOMERS_TIME).await;
        let mut cut = Vec::new();
        let mut newer = Vec::new();
        for host in 5..=8 {
            newer.push((take(&places, host), host));
            // Whoever came is answered at once.
            newer.last().unwrap().0.answer();
            cut.extend((0..4).filter(|at| is_cut(&connections[*at])));
        }
        assert_eq!(cut, [2, 3, 1], "and the fourth newcomer took the place of the first, which rests");
        assert_eq!(places.count(), 4);
        drop(answering);
    }

    #[tokio::test(start_paused = true)]
    async fn newcomers_do_not_push_each_other_out_before_those_that_rest() {
        let places = Places::new(4, 4);
        let resting: Vec<_> = (1..=4).map(|host| take(&places, host)).collect();
        resting.iter().for_each(|place| drop(place.answer()));
        let newcomers: Vec<_> = (5..=8).map(|host| take(&places, host)).collect();
        assert!(resting.iter().all(|place| is_cut(place)) && !newcomers.iter().any(|place| is_cut(place)));
        // Nobody else is left.
        let next = take(&places, 9);
        assert!(is_cut(&newcomers[0]));
        drop(newcomers[3].answer());
        tokio::time::advance(NEWCOMERS_TIME).await;
        let _last = [take(&places, 10), take(&places, 11), take(&places, 12)];
        let cut = [&newcomers[1], &newcomers[2], &next].map(|place| is_cut(place));
        assert_eq!((cut, is_cut(&newcomers[3])), ([true; 3], false), "who had its time makes way before who rests");
    }

    #[test]
    fn one_address_has_its_share_and_no_more() {
        let places = Places::new(4, 3);
        let own: Vec<_> = (0..3).map(|_| take(&places, 1)).collect();
        let other = take(&places, 2);
        let next = take(&places, 1);
        assert!(is_cut(&own[0]) && !is_cut(&other), "it makes way for itself");
        let _answering = [own[1].answer(), own[2].answer(), next.answer()];
        assert_eq!(places.take(peer(1)).err(), Some(NoPlace::OfThisAddress), "all that it may have are being answered");
        assert!(places.take(peer(3)).is_ok(), "others have theirs");
    }

    #[test]
    fn who_still_takes_a_reply_is_passed_over() {
        let places = Places::new(2, 2);
        let (slow, rests) = (take(&places, 1), take(&places, 2));
        drop((slow.answer(), rests.answer()));
        slow.note(Taking::Some);
        let _next = take(&places, 3);
        assert!(is_cut(&rests) && !is_cut(&slow));
    }

    #[test]
    fn a_newcomer_waits_while_everybody_is_being_answered() {
        let places = Places::new(1, 1);
        let only = take(&places, 1);
        assert!(places.free().now_or_never().is_some(), "a silent one would make way");
        let answering = only.answer();
        let mut free = Box::pin(places.free());
        assert!((&mut free).now_or_never().is_none());
        assert_eq!(places.take(peer(2)).err(), Some(NoPlace::OfAnybody));
        drop(answering);
        assert!(free.now_or_never().is_some());
        drop(only);
        assert_eq!(places.count(), 0);
    }
}
