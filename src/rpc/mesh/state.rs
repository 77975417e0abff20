//! What a mesh knows at one moment: its peers and its links, changed under one lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use garage_net::Class;
use garage_types::config::ConsistencyMode;
use garage_types::{Clock, NodeId};
use garage_worker::Changes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::endpoints::Exchange;
use crate::link::{Duplicate, Link, resolve_duplicate};
use crate::peers::{Announced, Backoff, Learnt, News, Now, PeerAddresses, PeerTable, Twin};

/// What the mesh's own endpoints share with it.
pub(super) struct Shared {
    pub us: PeerAddresses,
    /// Where we listen, once we do.
    pub port: OnceLock<u16>,
    pub clock: Arc<dyn Clock>,
    pub table: Mutex<State>,
    /// Changes whenever a link comes or goes.
    pub links_changed: Changes,
    /// Something may be due earlier than it was.
    pub wake: Notify,
    /// There may be something to save. Not `links_changed`: of its several waiters, any may be woken first, and saving delays others.
    pub unsaved: Notify,
    /// Calls made over links.
    pub calls: Arc<AtomicU64>,
    /// Drawn at this start.
    instance: u64,
    /// As configured.
    consistency: ConsistencyMode,
    /// The mode that is in force, as a number.
    in_force: AtomicU8,
    /// The weakest mode that any node has told, as a number.
    weakest: AtomicU8,
}

pub(super) struct State {
    pub peers: PeerTable,
    pub links: BTreeMap<(NodeId, Class), Arc<Link>>,
}

impl Shared {
    /// `instance`: drawn at this start.
    pub(super) fn new(
        us: PeerAddresses,
        clock: Arc<dyn Clock>,
        backoff: Backoff,
        (instance, consistency): (u64, ConsistencyMode),
    ) -> Self {
        let peers = PeerTable::new(us.id, backoff);
        Shared {
            us,
            port: OnceLock::new(),
            clock,
            table: Mutex::new(State { peers, links: BTreeMap::new() }),
            links_changed: Changes::default(),
            wake: Notify::new(),
            unsaved: Notify::new(),
            calls: Arc::default(),
            instance,
            consistency,
            in_force: AtomicU8::new(consistency as u8),
            weakest: AtomicU8::new(consistency as u8),
        }
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.table.lock().expect("nothing panics while holding the peers"))
    }

    fn now(&self) -> Now {
        Now { wall: self.clock.now(), timer: Instant::now() }
    }

    /// Changes the peers, after which something may be due earlier.
    pub(super) fn update<T>(&self, work: impl FnOnce(&mut State, Now) -> T) -> T {
        let now = self.now();
        let result = self.with(|state| work(state, now));
        self.wake.notify_one();
        self.unsaved.notify_one();
        result
    }

    pub(super) fn learn(&self, told: &[PeerAddresses]) {
        let learnt = self.update(|state, now| {
            // Each of them, whatever came of the one before.
            told.iter().filter(|peer| state.peers.learn(peer, now) == Learnt::Something).count()
        });
        if learnt > 0 {
            self.links_changed.tell();
        }
    }

    pub(super) fn has_link(&self, peer: NodeId, class: Class) -> bool {
        self.with(|state| state.links.get(&(peer, class)).is_some_and(|link| !link.is_closed()))
    }

    pub(super) fn add(&self, link: &Arc<Link>, address: Option<&str>) -> Duplicate {
        let key = (link.peer(), link.class());
        let decision = self.update(|state, now| {
            if let Some(old) = state.links.get(&key) {
                if resolve_duplicate(old, link) == Duplicate::KeepOld {
                    return Duplicate::KeepOld;
                }
                old.superseded.notify_one();
            }
            state.links.insert(key, link.clone());
            state.peers.linked(key.0, key.1, address, now);
            Duplicate::KeepNew
        });
        self.links_changed.tell();
        decision
    }

    /// Forgets a link, unless another has taken its place.
    pub(super) fn remove(&self, link: &Arc<Link>, jitter: u8) {
        let key = (link.peer(), link.class());
        self.update(|state, now| {
            if state.links.get(&key).is_some_and(|current| Arc::ptr_eq(current, link)) {
                state.links.remove(&key);
                state.peers.unlinked(key.0, key.1, now, jitter);
            }
        });
        self.links_changed.tell();
    }

    /// What we tell a peer: ourselves, and whom we can reach.
    pub(super) fn exchange(&self) -> Exchange {
        self.telling(self.with(|state| state.peers.to_share()))
    }

    /// What a peer is to be told that was told everything, or everything until `told`, before.
    pub(super) fn news_for(&self, told: Option<u64>) -> News {
        self.with(|state| match told {
            Some(seen) => state.peers.news_since(seen),
            None => News { peers: state.peers.to_share(), ..state.peers.news_since(0) },
        })
    }

    pub(super) fn telling(&self, mut peers: Vec<PeerAddresses>) -> Exchange {
        peers.push(self.us.clone());
        let mode = Some(self.consistency.name().to_owned());
        Exchange { peers, port: self.port.get().copied(), instance: Some(self.instance), mode }
    }

    /// A peer that is at `address` said this of itself.
    pub(super) fn announced(&self, peer: NodeId, announced: Announced, address: &str) {
        let twin = self.update(|state, now| state.peers.announced(peer, announced, address, now));
        self.judge_consistency();
        if twin.is_some() {
            self.links_changed.tell();
        }
        if let Some(Twin { addresses: [one, other], .. }) = twin {
            tracing::error!(%peer, one, other, "two nodes with one key are in the cluster: one is a copy of the other's disk; stop one of them");
        }
    }

    fn judge_consistency(&self) {
        // Under the lock, so that of two judgements at once the later one stays.
        let (strictest, before) = self.with(|state| {
            let weakest = state.peers.weakest().map_or(self.consistency, |mode| mode.max(self.consistency));
            self.weakest.store(weakest as u8, Ordering::Release);
            let strictest = state.peers.strictest().map_or(self.consistency, |mode| mode.min(self.consistency));
            (strictest, self.in_force.swap(strictest as u8, Ordering::AcqRel))
        });
        if before == strictest as u8 {
            return;
        }
        self.links_changed.tell();
        if strictest != self.consistency {
            tracing::warn!(
                configured = self.consistency.name(),
                in_force = strictest.name(),
                "another node is configured for a stricter consistency_mode, which is in force: make the configurations equal, and restart"
            );
        }
    }

    /// The strictest mode that this node or one that it has met is configured for.
    pub(super) fn consistency_in_force(&self) -> ConsistencyMode {
        self.mode_of(&self.in_force)
    }

    /// The weakest mode that this node or one that it has met is configured for.
    pub(super) fn weakest_consistency(&self) -> ConsistencyMode {
        self.mode_of(&self.weakest)
    }

    fn mode_of(&self, number: &AtomicU8) -> ConsistencyMode {
        let number = number.load(Ordering::Acquire);
        ConsistencyMode::ALL.into_iter().find(|mode| *mode as u8 == number).unwrap_or(self.consistency)
    }

    pub(super) fn connected(&self) -> usize {
        self.with(|state| state.links.keys().filter(|(_peer, class)| *class == Class::Metadata).count())
    }
}
