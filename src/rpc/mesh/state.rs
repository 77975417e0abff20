//! What a mesh knows at one moment: its peers and its links, changed under one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use garage_net::Class;
use garage_types::{Clock, NodeId};
use garage_worker::Changes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::endpoints::Exchange;
use crate::link::{Duplicate, Link, resolve_duplicate};
use crate::peers::{Backoff, Now, PeerAddresses, PeerTable};

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
}

pub(super) struct State {
    pub peers: PeerTable,
    pub links: BTreeMap<(NodeId, Class), Arc<Link>>,
}

impl Shared {
    pub(super) fn new(us: PeerAddresses, clock: Arc<dyn Clock>, backoff: Backoff) -> Self {
        let peers = PeerTable::new(us.id, backoff);
        Shared {
            us,
            port: OnceLock::new(),
            clock,
            table: Mutex::new(State { peers, links: BTreeMap::new() }),
            links_changed: Changes::default(),
            wake: Notify::new(),
            unsaved: Notify::new(),
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
        self.update(|state, now| told.iter().for_each(|peer| state.peers.learn(peer, now)));
        self.links_changed.tell();
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
        let mut peers = self.with(|state| state.peers.to_share());
        peers.push(self.us.clone());
        Exchange { peers, port: self.port.get().copied() }
    }
}
