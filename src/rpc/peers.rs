//! Which peers there are, where they may be reached, and when to try next.
//!
//! Pure: `mesh` reports what happened and asks [`PeerTable::due`] whom to call. A peer is its key; addresses are guesses, several
//! per peer, the one that worked last first. The list is saved, so that a node finds its cluster again without its bootstrap peers.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use garage_net::Class;
use garage_types::codec::Format;
pub use garage_types::config::PeerAddress;
use garage_types::config::{ConsistencyMode, HostPort};
use garage_types::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Addresses kept per peer; the least useful ones make room.
const ADDRESSES_MAX: usize = 8;
/// Longest address taken from others.
const ADDRESS_BYTES_MAX: usize = 256;
/// Peers kept; more are not learnt from others.
const PEERS_MAX: usize = 1000;
/// Processes remembered per peer.
const INSTANCES_MAX: usize = 4;
/// How long two processes with one key are not told of again.
const TWIN_SILENCE_MS: u64 = 10 * 60 * 1000;
/// Smaller transfers take their time for other reasons than the width of the link.
const LARGE_TRANSFER_BYTES: usize = 128 << 10;
/// How long a connection's maker has to add those for the classes that are missing.
const CALLER_COMPLETES: Duration = Duration::from_secs(5);

/// Whether a peer can be called now, and since when that is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    Up { since: Timestamp },
    Down { since: Timestamp },
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    pub id: NodeId,
    pub addresses: Vec<String>,
    pub state: PeerState,
    /// Smoothed round trip of pings.
    pub latency: Option<Duration>,
    /// Bytes a second that a large transfer with it made, smoothed; `None` until there was one.
    pub throughput: Option<u64>,
    pub last_seen: Option<Timestamp>,
    pub is_self: bool,
    /// The mode it last said it is configured for; `None` when it did not tell.
    pub consistency: Option<ConsistencyMode>,
    /// When it was last noticed that two processes have its key.
    pub twin: Option<Twin>,
}

/// Two processes with one key: a disk was copied, or a virtual machine started twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twin {
    /// Where the one and the other are.
    pub addresses: [String; 2],
    pub noticed: Timestamp,
}

/// What a node says of itself when it connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Announced {
    /// Drawn at each start.
    pub instance: Option<u64>,
    pub consistency: Option<ConsistencyMode>,
}

/// A peer's addresses, as saved and as told to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddresses {
    #[serde(rename = "i")]
    pub id: NodeId,
    #[serde(rename = "a", default)]
    pub addresses: Vec<String>,
}

/// The state file `peer_list`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct PeerList {
    #[serde(rename = "p", default)]
    pub peers: Vec<PeerAddresses>,
}

impl Format for PeerList {
    const TAG: &'static str = "peers1";
}

/// The time, both of the day and of the timers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub wall: Timestamp,
    pub timer: Instant,
}

/// Waits between attempts: doubled from `min` to `max`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The wait after so many failures in a row; up to half of it is taken off by `jitter` (0 to 255), so that nodes that failed
    /// together do not all come back together.
    fn after(self, failures: u32, jitter: u8) -> Duration {
        let full = self.min.saturating_mul(1 << failures.min(16)).min(self.max);
        full - full.mul_f64(f64::from(jitter) / 512.0)
    }
}

/// One attempt to make: every address in turn, until one answers with the right key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    pub id: NodeId,
    pub addresses: Vec<String>,
    pub classes: Vec<Class>,
}

pub(crate) struct PeerTable {
    us: NodeId,
    backoff: Backoff,
    peers: BTreeMap<NodeId, Peer>,
    /// How often there was something new to tell other nodes.
    news: u64,
    /// The addresses changed since [`PeerTable::take_unsaved`].
    unsaved: Unsaved,
    /// Where the peers are, as asked for with every connection that somebody makes; `None`: the addresses have changed since.
    hosts: Option<HashSet<String>>,
}

#[derive(PartialEq, Eq)]
enum Unsaved {
    Nothing,
    Changes,
}

/// Whether something that was told was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learnt {
    Something,
    Nothing,
}

/// What other nodes have not been told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub peers: Vec<PeerAddresses>,
    /// To be given when asking for later news.
    pub until: u64,
}

struct Peer {
    addresses: Vec<String>,
    /// Of these, what other nodes are told since `news`.
    told: Vec<String>,
    news: u64,
    /// How many connections for metadata it has had.
    arrivals: u64,
    state: PeerState,
    linked: BTreeSet<Class>,
    latency: Option<Duration>,
    throughput: Option<u64>,
    last_seen: Option<Timestamp>,
    failures: u32,
    attempt: Attempt,
    consistency: Option<ConsistencyMode>,
    /// The processes that had its key, the present one last.
    instances: Vec<Instance>,
    twin: Option<Twin>,
}

struct Instance {
    number: u64,
    address: String,
}

enum Attempt {
    Due(Instant),
    Running,
}

impl PeerTable {
    pub(crate) fn new(us: NodeId, backoff: Backoff) -> Self {
        PeerTable { us, backoff, peers: BTreeMap::new(), news: 0, unsaved: Unsaved::Nothing, hosts: None }
    }

    /// Adds what somebody said about a peer's addresses; what we know already stays in front.
    pub(crate) fn learn(&mut self, told: &PeerAddresses, now: Now) -> Learnt {
        if told.id == self.us || (!self.peers.contains_key(&told.id) && self.peers.len() >= PEERS_MAX) {
            return Learnt::Nothing;
        }
        let peer = self.peer(told.id, now);
        let mut news = Unsaved::Nothing;
        for address in told.addresses.iter().take(ADDRESSES_MAX) {
            let usable = !address.is_empty() && address.len() <= ADDRESS_BYTES_MAX;
            if usable && !peer.addresses.contains(address) {
                // The last place is the newest guess: a moved node must be found even when all places are taken.
                peer.addresses.truncate(ADDRESSES_MAX - 1);
                peer.addresses.push(address.clone());
                news = Unsaved::Changes;
            }
        }
        if news == Unsaved::Changes {
            self.addresses_changed();
            // A new address deserves an attempt now, however often the old ones failed. Who is connected already needs none.
            if let Some(peer) = self.peers.get_mut(&told.id)
                && peer.linked.is_empty()
                && let Attempt::Due(at) = &mut peer.attempt
            {
                *at = now.timer.min(*at);
            }
            self.note_news(told.id);
            return Learnt::Something;
        }
        Learnt::Nothing
    }

    fn addresses_changed(&mut self) {
        self.unsaved = Unsaved::Changes;
        self.hosts = None;
    }

    /// A peer may have become known to be reachable, or so at another address.
    fn note_news(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let is_up = matches!(peer.state, PeerState::Up { .. });
        if is_up && peer.addresses.iter().any(|address| !peer.told.contains(address)) {
            peer.told.clone_from(&peer.addresses);
            self.news += 1;
            peer.news = self.news;
        }
    }

    fn peer(&mut self, id: NodeId, now: Now) -> &mut Peer {
        self.peers.entry(id).or_insert_with(|| Peer {
            addresses: Vec::new(),
            told: Vec::new(),
            news: 0,
            arrivals: 0,
            state: PeerState::Down { since: now.wall },
            linked: BTreeSet::new(),
            latency: None,
            throughput: None,
            last_seen: None,
            failures: 0,
            attempt: Attempt::Due(now.timer),
            consistency: None,
            instances: Vec::new(),
            twin: None,
        })
    }

    /// The attempts to begin now. Each is reported back by [`PeerTable::dialled`].
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Dial> {
        let mut dials = Vec::new();
        for (id, peer) in &mut self.peers {
            let wanted = peer.missing();
            let due = matches!(peer.attempt, Attempt::Due(at) if at <= now);
            if due && !wanted.is_empty() && !peer.addresses.is_empty() {
                peer.attempt = Attempt::Running;
                dials.push(Dial { id: *id, addresses: peer.addresses.clone(), classes: wanted });
            }
        }
        dials
    }

    /// When the next attempt is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let waiting = self.peers.values().filter(|peer| !peer.missing().is_empty() && !peer.addresses.is_empty());
        waiting.filter_map(|peer| if let Attempt::Due(at) = peer.attempt { Some(at) } else { None }).min()
    }

    /// An attempt of [`PeerTable::due`] is over, successful or not.
    pub(crate) fn dialled(&mut self, id: NodeId, now: Now, jitter: u8) {
        let backoff = self.backoff;
        let peer = self.peer(id, now);
        peer.attempt = Attempt::Due(now.timer + backoff.after(peer.failures, jitter));
        peer.failures = if peer.missing().is_empty() { 0 } else { peer.failures.saturating_add(1) };
    }

    /// A connection is in place. `address`: where we called it, when it was we who called.
    pub(crate) fn linked(&mut self, id: NodeId, class: Class, address: Option<&str>, now: Now) {
        let peer = self.peer(id, now);
        peer.linked.insert(class);
        peer.last_seen = Some(now.wall);
        if class == Class::Metadata {
            peer.state = PeerState::Up { since: now.wall };
            peer.failures = 0;
            peer.arrivals += 1;
        }
        // Whoever made it makes the others as well.
        if let Attempt::Due(at) = &mut peer.attempt {
            *at = now.timer + CALLER_COMPLETES;
        }
        if let Some(address) = address
            && peer.addresses.first().map(String::as_str) != Some(address)
        {
            peer.addresses.retain(|other| other != address);
            peer.addresses.insert(0, address.to_owned());
            peer.addresses.truncate(ADDRESSES_MAX);
            self.addresses_changed();
        }
        self.note_news(id);
    }

    /// A connection ended.
    pub(crate) fn unlinked(&mut self, id: NodeId, class: Class, now: Now, jitter: u8) {
        let backoff = self.backoff;
        let peer = self.peer(id, now);
        peer.linked.remove(&class);
        if class == Class::Metadata {
            peer.state = PeerState::Down { since: now.wall };
        }
        if let Attempt::Due(at) = &mut peer.attempt {
            *at = now.timer + backoff.after(0, jitter);
        }
    }

    /// The peer answered a ping.
    pub(crate) fn answered(&mut self, id: NodeId, round_trip: Duration, now: Now) {
        let peer = self.peer(id, now);
        peer.last_seen = Some(now.wall);
        peer.latency = Some(peer.latency.map_or(round_trip, |known| (known * 3 + round_trip) / 4));
    }

    /// The peer at `address` said this of itself. A process that was replaced by another one with its key does not come back, so where
    /// one does there are two: returned unless it was not long ago.
    pub(crate) fn announced(&mut self, id: NodeId, announced: Announced, address: &str, now: Now) -> Option<Twin> {
        let peer = self.peer(id, now);
        peer.consistency = announced.consistency;
        let number = announced.instance?;
        let instance = Instance { number, address: address.to_owned() };
        let before = peer.instances.iter().position(|known| known.number == number);
        let Some(before) = before else {
            peer.instances.drain(..(peer.instances.len() + 1).saturating_sub(INSTANCES_MAX));
            peer.instances.push(instance);
            return None;
        };
        let is_last = before + 1 == peer.instances.len();
        let other = peer.instances.last().map(|last| last.address.clone());
        peer.instances.remove(before);
        peer.instances.push(instance);
        let other = other.filter(|_| !is_last)?;
        let is_old = peer.twin.as_ref().is_none_or(|twin| twin.noticed.plus_millis(TWIN_SILENCE_MS) <= now.wall);
        if is_old {
            peer.twin = Some(Twin { addresses: [address.to_owned(), other], noticed: now.wall });
        }
        peer.twin.clone().filter(|_| is_old)
    }

    /// The strictest mode that peers have told; also those that are down, since what they promised others holds while they are cut off.
    pub(crate) fn strictest(&self) -> Option<ConsistencyMode> {
        self.peers.values().filter_map(|peer| peer.consistency).min()
    }

    /// The weakest mode that peers have told, also those that are down.
    pub(crate) fn weakest(&self) -> Option<ConsistencyMode> {
        self.peers.values().filter_map(|peer| peer.consistency).max()
    }

    /// A call carried so many bytes of data. Only large ones tell something of the link. One is slow for many reasons, such as others
    /// beside it, and fast for one only: so the measure follows the fast ones at once and the slow ones slowly.
    pub(crate) fn transferred(&mut self, id: NodeId, bytes: usize, took: Duration) {
        if bytes < LARGE_TRANSFER_BYTES {
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let rate = (bytes as f64 / took.as_secs_f64().max(1e-6)) as u64;
        peer.throughput = Some(peer.throughput.map_or(rate, |known| rate.max((known / 16).saturating_mul(15) + rate / 16)));
    }

    pub(crate) fn latency(&self, id: NodeId) -> Option<Duration> {
        self.peers.get(&id)?.latency
    }

    /// Whether a peer is known at this host. Addresses are parsed only once, since strangers decide how often this is asked.
    pub(crate) fn is_host_of_a_peer(&mut self, host: &str) -> bool {
        let peers = &self.peers;
        let hosts = self.hosts.get_or_insert_with(|| {
            let addresses = peers.values().flat_map(|peer| &peer.addresses);
            addresses.filter_map(|address| address.parse().ok()).map(|HostPort { host, .. }| canonical(&host)).collect()
        });
        hosts.contains(&canonical(host))
    }

    /// All peers, in the order of their ids, without ourselves.
    pub(crate) fn infos(&self) -> Vec<PeerInfo> {
        let info = |(id, peer): (&NodeId, &Peer)| PeerInfo {
            id: *id,
            addresses: peer.addresses.clone(),
            state: peer.state,
            latency: peer.latency,
            throughput: peer.throughput,
            last_seen: peer.last_seen,
            is_self: false,
            consistency: peer.consistency,
            twin: peer.twin.clone(),
        };
        self.peers.iter().map(info).collect()
    }

    /// What other nodes should know. Only peers that are up: addresses of nodes long gone must not go round for ever.
    pub(crate) fn to_share(&self) -> Vec<PeerAddresses> {
        self.addresses(|peer| matches!(peer.state, PeerState::Up { .. }))
    }

    /// What of [`PeerTable::to_share`] has become known after `seen`, which earlier news say.
    pub(crate) fn news_since(&self, seen: u64) -> News {
        let is_new = |peer: &Peer| peer.news > seen && matches!(peer.state, PeerState::Up { .. });
        News { peers: self.addresses(is_new), until: self.news }
    }

    /// The peers that are up, each with a number that grows whenever it is connected anew.
    pub(crate) fn arrivals(&self) -> BTreeMap<NodeId, u64> {
        let up = self.peers.iter().filter(|(_, peer)| matches!(peer.state, PeerState::Up { .. }));
        up.map(|(id, peer)| (*id, peer.arrivals)).collect()
    }

    /// The list to save, when it changed since the last time.
    pub(crate) fn take_unsaved(&mut self) -> Option<PeerList> {
        match std::mem::replace(&mut self.unsaved, Unsaved::Nothing) {
            Unsaved::Nothing => None,
            Unsaved::Changes => Some(PeerList { peers: self.addresses(|_any| true) }),
        }
    }

    /// The list could not be saved.
    pub(crate) fn still_unsaved(&mut self) {
        self.unsaved = Unsaved::Changes;
    }

    fn addresses(&self, wanted: impl Fn(&Peer) -> bool) -> Vec<PeerAddresses> {
        let chosen = self.peers.iter().filter(|(_, peer)| wanted(peer) && !peer.addresses.is_empty());
        chosen.map(|(id, peer)| PeerAddresses { id: *id, addresses: peer.addresses.clone() }).collect()
    }
}

/// A host as it is compared: one address can be written in several ways.
fn canonical(host: &str) -> String {
    host.parse().map_or_else(|_a_name| host.to_owned(), |address: IpAddr| address.to_canonical().to_string())
}

impl Peer {
    fn missing(&self) -> Vec<Class> {
        [Class::Metadata, Class::Bulk].into_iter().filter(|class| !self.linked.contains(class)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use garage_net::Class;
    use garage_types::{NodeId, Timestamp};
    use tokio::time::Instant;

    use super::{ADDRESSES_MAX, Announced, Backoff, Learnt, News, Now, PeerAddresses, PeerState, PeerTable};

    const PEER: NodeId = NodeId::from_bytes([2; 32]);
    const BACKOFF: Backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) };

    fn table() -> PeerTable {
        PeerTable::new(NodeId::from_bytes([1; 32]), BACKOFF)
    }

    fn told(addresses: &[&str]) -> PeerAddresses {
        PeerAddresses { id: PEER, addresses: addresses.iter().map(|&address| address.to_owned()).collect() }
    }

    fn start() -> Now {
        Now { wall: Timestamp::from_millis(1000), timer: Instant::now() }
    }

    fn later(now: Now, seconds: u64) -> Now {
        Now { wall: now.wall.plus_millis(seconds * 1000), timer: now.timer + Duration::from_secs(seconds) }
    }

    #[test]
    fn a_learnt_peer_is_called_at_once_for_both_classes_and_only_once() {
        let (mut table, now) = (table(), start());
        table.learn(&told(&["a", "b"]), now);
        let dials = table.due(now.timer);
        assert_eq!((dials.len(), dials[0].classes.len(), dials[0].addresses.len()), (1, 2, 2));
        assert!(table.due(later(now, 100).timer).is_empty(), "the first attempt still runs");
    }

    #[test]
    fn failures_double_the_wait_up_to_the_maximum() {
        let (mut table, mut now) = (table(), start());
        table.learn(&told(&["a"]), now);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(table.due(now.timer).len(), 1);
            table.dialled(PEER, now, 0);
            assert_eq!(table.next_due(), Some(now.timer + Duration::from_secs(expected)));
            now = later(now, expected);
        }
    }

    #[test]
    fn a_new_address_is_tried_at_once_whatever_the_backoff() {
        let (mut table, now) = (table(), start());
        table.learn(&told(&["a"]), now);
        table.due(now.timer);
        table.dialled(PEER, now, 0);
        table.learn(&told(&["a"]), now);
        assert!(table.due(now.timer).is_empty());
        table.learn(&told(&["new"]), now);
        assert_eq!(table.due(now.timer).len(), 1);
    }

    #[test]
    fn the_address_that_worked_comes_first_and_their_number_is_bounded() {
        let (mut table, now) = (table(), start());
        for number in 0..2 * ADDRESSES_MAX {
            table.learn(&told(&[&format!("host-{number}")]), now);
        }
        table.linked(PEER, Class::Metadata, Some("good"), now);
        let addresses = &table.infos()[0].addresses;
        assert_eq!((addresses.len(), addresses[0].as_str()), (ADDRESSES_MAX, "good"));
    }

    #[test]
    fn a_host_is_that_of_a_peer_as_long_as_one_has_an_address_there() {
        let (mut table, now) = (table(), start());
        assert!(!table.is_host_of_a_peer("192.0.2.1"));
        table.learn(&told(&["192.0.2.1:1", "[2001:db8:0::1]:1", "no port"]), now);
        assert!(["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"].iter().all(|host| table.is_host_of_a_peer(host)));
        assert!(!table.is_host_of_a_peer("2001:db8::2"));
        table.linked(PEER, Class::Metadata, Some("[2001:db8::2]:1"), now);
        assert!(table.is_host_of_a_peer("2001:db8::2"));
        for port in 0..ADDRESSES_MAX {
            table.linked(PEER, Class::Metadata, Some(&format!("192.0.2.2:{port}")), now);
        }
        assert!(!table.is_host_of_a_peer("192.0.2.1"), "newer addresses have taken the place of those");
    }

    #[test]
    fn a_peer_is_up_while_its_metadata_connection_is() {
        let (mut table, now) = (table(), start());
        table.linked(PEER, Class::Metadata, None, now);
        table.linked(PEER, Class::Bulk, None, now);
        assert_eq!(table.infos()[0].state, PeerState::Up { since: now.wall });
        table.unlinked(PEER, Class::Bulk, later(now, 1), 0);
        assert_eq!(table.infos()[0].state, PeerState::Up { since: now.wall });
        table.unlinked(PEER, Class::Metadata, later(now, 2), 0);
        assert_eq!(table.infos()[0].state, PeerState::Down { since: later(now, 2).wall });
    }

    #[test]
    fn only_peers_that_are_up_are_told_to_others_but_all_are_saved_once() {
        let (mut table, now) = (table(), start());
        table.learn(&told(&["a"]), now);
        assert!(table.to_share().is_empty());
        assert_eq!(table.take_unsaved().map(|list| list.peers), Some(vec![told(&["a"])]));
        assert_eq!(table.take_unsaved(), None);
        table.linked(PEER, Class::Metadata, Some("a"), now);
        assert_eq!(table.to_share(), vec![told(&["a"])]);
    }

    #[test]
    fn a_peer_that_is_just_being_connected_is_not_called_a_second_time() {
        for address in [None, Some("a")] {
            let (mut table, now) = (table(), start());
            table.linked(PEER, Class::Metadata, address, now);
            table.learn(&told(&["a", "b"]), now);
            assert!(table.due(now.timer).is_empty(), "{address:?}");
            let dials = table.due(later(now, 5).timer);
            assert_eq!((dials.len(), &dials[0].classes[..]), (1, &[Class::Bulk][..]), "unless nobody completes it");
        }
    }

    #[test]
    fn throughput_follows_large_transfers() {
        let (mut table, now) = (table(), start());
        table.learn(&told(&["a"]), now);
        let mut after = |bytes, millis| {
            table.transferred(PEER, bytes, Duration::from_millis(millis));
            table.infos()[0].throughput
        };
        assert_eq!(after(1000, 1), None, "too small to tell");
        assert_eq!(after(1 << 20, 1000), Some(1 << 20));
        assert_eq!(after(1 << 20, 500), Some(2 << 20), "that is possible");
        assert_eq!(after(1 << 20, 1_000_000), Some((2 << 20) / 16 * 15 + 65), "one that was slow says little");
    }

    #[test]
    fn we_are_not_our_own_peer() {
        let mut table = table();
        table.learn(&PeerAddresses { id: NodeId::from_bytes([1; 32]), addresses: vec!["a".into()] }, start());
        assert!(table.infos().is_empty());
    }

    #[tokio::test]
    async fn what_is_known_already_is_not_told_again() {
        let (mut table, now) = (table(), start());
        assert_eq!(table.learn(&told(&["a"]), now), Learnt::Something);
        assert_eq!(table.learn(&told(&["a"]), now), Learnt::Nothing);
        assert!(table.news_since(0).peers.is_empty(), "nobody has reached it");
        table.linked(PEER, Class::Metadata, None, now);
        let News { peers, until } = table.news_since(0);
        assert_eq!(peers, [told(&["a"])]);
        table.unlinked(PEER, Class::Metadata, now, 0);
        table.linked(PEER, Class::Metadata, Some("a"), later(now, 60));
        assert!(table.news_since(until).peers.is_empty(), "where it is has not changed");
        assert_eq!(table.arrivals(), [(PEER, 2)].into());
        table.learn(&told(&["b"]), now);
        assert_eq!(table.news_since(until).peers, [told(&["a", "b"])]);
    }

    #[tokio::test]
    async fn a_process_that_comes_back_after_another_one_with_its_key_is_a_twin() {
        let (mut table, now) = (table(), start());
        let mut announced = |instance, address: &str, now| {
            let announced = Announced { instance: Some(instance), consistency: None };
            table.announced(PEER, announced, address, now).map(|twin| twin.addresses)
        };
        for restart in 1..10 {
            assert_eq!(announced(restart, "here", now), None, "a restart");
            assert_eq!(announced(restart, "moved", now), None, "the same process");
        }
        assert_eq!(announced(10, "there", now), None, "another restart, as far as anybody knows");
        assert_eq!(announced(9, "here", now), Some(["here".to_owned(), "there".to_owned()]));
        assert_eq!(announced(10, "there", later(now, 60)), None, "that was told a minute ago");
        assert_eq!(announced(9, "here", later(now, 600)), Some(["here".to_owned(), "there".to_owned()]));
    }
}
