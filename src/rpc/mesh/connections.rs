//! The life of one connection: accepted or made, served and watched, until it ends for whichever reason.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use garage_net::establish::{self, Established, Side};
use garage_net::{Class, Multiplexed, NetError, Socket};
use garage_types::Origin;
use garage_types::config::HostPort;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Mesh;
use super::arrivals::{Arrival, Kind};
use super::endpoints::{Exchange, Ping};
use super::refusals::Telling;
use crate::client::log_end;
use crate::endpoint::{Caller, Message, Role};
use crate::error::RpcError;
use crate::link::{Duplicate, Link};
use crate::peers::{News, PeerAddresses};
use crate::serve::{Service, serve};

/// Peers nobody waits for that are asked in one interval whether they are there.
const PINGED_IN_ONE_INTERVAL: usize = 10;

/// What a peer was told of others' addresses.
#[derive(Default)]
struct Told {
    /// Everything known until then; `None` before the first exchange.
    until: Option<u64>,
    at: Option<Instant>,
}

/// How long a replaced connection may finish the calls it carries.
const SUPERSEDED_GRACE: Duration = Duration::from_secs(10);

impl Mesh {
    /// The place of a connection that has just been made from `remote`.
    pub(super) fn arrival(&self, remote: &str) -> Arrival {
        let host = remote.parse().map_or_else(|_no_port| remote.to_owned(), |HostPort { host, .. }| host);
        let address: Option<IpAddr> = host.parse().ok();
        let kind = if address.is_some_and(|address| address.to_canonical().is_loopback()) {
            Kind::ThisMachine
        } else if self.0.state.with(|state| state.peers.is_host_of_a_peer(&host)) {
            Kind::KnownPeer
        } else {
            Kind::Stranger
        };
        self.0.arrivals.take(kind, address.map_or(Origin::NoAddress, Origin::of))
    }

    pub(super) async fn accept(self, socket: Socket, arrival: Arrival) {
        let remote = socket.remote.clone();
        let proven = tokio::select! {
            // Whoever proves itself while it is being cut has come in.
            biased;
            proven = establish::accept(socket, &self.0.local, || arrival.greet()) => proven,
            () = arrival.cut() => {
                tracing::debug!(remote, "a connection that had proven nothing made way for another");
                return;
            }
        };
        drop(arrival);
        let established = match proven {
            Ok(proven) => proven.establish(&self.0.local).await,
            Err(error) => Err(error),
        };
        let established = match established {
            Ok(established) => established,
            Err(error) => {
                self.tell_refusal(&remote, &error);
                return;
            }
        };
        match established.purpose.role {
            garage_net::Role::Node => self.begin(established, None),
            garage_net::Role::Client => match self.0.clients.clone().try_acquire_owned() {
                Ok(place) => self.serve_client(established, place).await,
                Err(_full) => tracing::warn!(remote, "refused a client: too many are connected"),
            },
        }
    }

    fn tell_refusal(&self, remote: &str, error: &NetError) {
        let now = self.0.options.clock.now();
        // A panic elsewhere cannot leave a half-made note.
        let telling = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner).note(error, now);
        let error = error as &dyn std::error::Error;
        match telling {
            Telling::Warn { untold } => tracing::warn!(remote, error, untold, "refused a connection"),
            Telling::Debug => tracing::debug!(remote, error, "refused a connection"),
        }
    }

    fn service(&self) -> Service {
        Service {
            node: self.0.node_router.clone(),
            client: self.0.client_router.get().cloned().unwrap_or_default(),
            budget: self.0.budget.clone(),
            spawn: self.0.options.spawn.clone(),
        }
    }

    async fn serve_client(self, established: Established, _place: OwnedSemaphorePermit) {
        let caller = Caller { node: established.peer, role: Role::Client };
        let Multiplexed { connection, incoming, driver } = established.multiplex(self.0.options.windows);
        self.0.options.spawn.spawn("mesh-driver", log_end(driver).boxed());
        serve(self.service(), caller, incoming, connection).await;
    }

    /// Puts a connection with a peer to use. `address`: where we called it.
    pub(super) fn begin(&self, established: Established, address: Option<&str>) {
        let peer = established.peer;
        let caller_id = match established.side {
            Side::Caller => self.node_id(),
            Side::Called => peer,
        };
        let remote = established.remote.clone();
        let origin = origin(&established);
        let Multiplexed { connection, incoming, driver } = established.multiplex(self.0.options.windows);
        // Not bound to the shutdown: it ends by itself once the connection is closed, and says so to the peer.
        self.0.options.spawn.spawn("mesh-driver", log_end(driver).boxed());
        let link = Arc::new(Link::new(connection.clone(), caller_id, remote.clone(), self.0.state.calls.clone()));
        let decision = self.0.state.add(&link, address);
        let caller = Caller { node: peer, role: Role::Node };
        let serving = serve(self.service(), caller, incoming, connection);
        match decision {
            Duplicate::KeepNew => {
                tracing::info!(?peer, remote, class = ?link.class(), "connected");
                self.0.options.spawn.spawn("mesh-link", self.clone().keep_link(link, origin, serving).boxed());
            }
            Duplicate::KeepOld => {
                tracing::debug!(?peer, "a connection is not used: there is one already");
                self.spawn("mesh-duplicate", serve_duplicate(link, serving));
            }
        }
    }

    /// Serves and watches a link until it ends, for whichever reason.
    async fn keep_link(self, link: Arc<Link>, origin: Option<String>, serving: impl Future<Output = ()>) {
        let reason = tokio::select! {
            biased;
            () = serving => "the connection ended",
            () = self.ping_until_silent(&link, origin.as_deref()) => {
                link.give_up();
                "it does not answer any more"
            }
            () = superseded(&link) => "another connection took the place of this one",
            () = self.0.shutdown.cancelled() => "this node is stopping",
        };
        tracing::info!(peer = ?link.peer(), class = ?link.class(), reason, "disconnected");
        // Forgotten first: closing may take a while when nobody is there to hear of it.
        let jitter = self.jitter();
        self.0.state.remove(&link, jitter);
        link.close().await;
    }

    /// Returns when the peer is to be given up.
    async fn ping_until_silent(&self, link: &Link, origin: Option<&str>) {
        let timing = self.0.options.timing;
        let mut missed = 0;
        let mut told = Told::default();
        while missed < timing.pings_missed_max {
            let sent = Instant::now();
            match link.call(&Message::new(Ping {}), timing.ping_timeout).await {
                Ok(_pong) => {
                    missed = 0;
                    if link.class() == Class::Metadata {
                        self.0.state.update(|state, now| state.peers.answered(link.peer(), sent.elapsed(), now));
                    }
                }
                Err(_unanswered) => {
                    missed += 1;
                    if sent.elapsed() >= timing.ping_timeout {
                        // It had its time: no more waiting on top of that.
                        continue;
                    }
                }
            }
            if missed == 0 && link.class() == Class::Metadata {
                self.tell_news(link, origin, &mut told).await;
            }
            self.pause_between_pings(link, missed).await;
        }
    }

    /// A peer that nobody waits for is asked the more rarely the more there are, so that what a node does while nothing happens does
    /// not grow with them.
    async fn pause_between_pings(&self, link: &Link, missed: u32) {
        let interval = self.0.options.timing.ping_interval;
        let intervals = self.0.state.connected().div_ceil(PINGED_IN_ONE_INTERVAL).max(1);
        for _interval in 0..intervals {
            tokio::time::sleep(interval).await;
            if missed > 0 || link.is_calling() {
                return;
            }
        }
    }

    /// Exchanges addresses when the connection is new, and now and then what has become known since.
    async fn tell_news(&self, link: &Link, origin: Option<&str>, told: &mut Told) {
        if told.at.is_some_and(|at| at.elapsed() < self.0.options.timing.exchange_interval) {
            return;
        }
        let News { peers, until } = self.0.state.news_for(told.until);
        if told.until.is_some() && peers.is_empty() {
            return;
        }
        match self.exchange(link, origin, self.0.state.telling(peers)).await {
            Ok(()) => *told = Told { until: Some(until), at: Some(Instant::now()) },
            Err(error) => tracing::debug!(peer = ?link.peer(), %error, "addresses could not be exchanged; they will be"),
        }
    }

    /// `origin`: the host from which the peer called us, if it did.
    async fn exchange(&self, link: &Link, origin: Option<&str>, telling: Exchange) -> Result<(), RpcError> {
        let reply = link.call(&Message::new(telling), self.0.options.timing.ping_timeout).await?;
        self.0.state.learn(&reply.body.peers);
        let seen = origin.zip(reply.body.port).map(|(host, port)| HostPort { host: host.to_owned(), port }.to_string());
        if let Some(seen) = seen.clone() {
            self.0.state.learn(&[PeerAddresses { id: link.peer(), addresses: vec![seen] }]);
        }
        self.0.state.announced(link.peer(), reply.body.announced(), seen.as_deref().unwrap_or(&link.remote));
        Ok(())
    }
}

/// Serves a connection that we do not use. The other side may, until it gets the one that we do.
async fn serve_duplicate(link: Arc<Link>, serving: impl Future<Output = ()>) {
    // Whether it ended by itself does not matter.
    drop(tokio::time::timeout(SUPERSEDED_GRACE, serving).await);
    link.close().await;
}

/// The host a connection comes from, when it was made by the other side.
fn origin(established: &Established) -> Option<String> {
    let remote: Result<HostPort, _> = established.remote.parse();
    match established.side {
        Side::Called => remote.ok().map(|remote| remote.host),
        Side::Caller => None,
    }
}

/// Returns once another connection is in use and the calls on this one had their time.
async fn superseded(link: &Link) {
    link.superseded.notified().await;
    tokio::time::sleep(SUPERSEDED_GRACE).await;
}
