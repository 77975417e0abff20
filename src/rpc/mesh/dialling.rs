//! Calling peers: when one is due, at every address it may have.
//!
//! Addresses are names or numbers, resolved anew at each attempt; one that swallows packets does not hold up the next.

use std::time::Duration;

use garage_net::establish::Established;
use garage_net::race::first_success;
use garage_net::{Class, NetError, Purpose};
use garage_types::NodeId;
use tokio::time::Instant;

use super::Mesh;
use super::refusals::is_mistaken;
use crate::client::dial;
use crate::peers::Dial;

/// After this long without an answer, the next address is tried as well. Longer than the usual handshake: two connections with one
/// peer would replace one another.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_secs(2);

/// A connection with a peer, and the address that led to it.
struct Reached {
    established: Established,
    address: String,
}

impl Mesh {
    /// Calls whoever is due. Never returns.
    pub(super) async fn keep_dialling(self) {
        loop {
            let (dials, next) = self.0.state.with(|state| (state.peers.due(Instant::now()), state.peers.next_due()));
            for dial in dials {
                self.spawn("mesh-dial-peer", self.clone().dial_all(dial));
            }
            let idle = Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(next.unwrap_or(idle)) => {}
                () = self.0.state.wake.notified() => {}
            }
        }
    }

    /// One connection for each class that is missing.
    async fn dial_all(self, attempt: Dial) {
        let Dial { id, mut addresses, classes } = attempt;
        for class in classes {
            if self.0.state.has_link(id, class) {
                continue;
            }
            let Some(address) = self.dial_somewhere(id, &addresses, class).await else { break };
            // What has just worked is first in turn for the next class.
            addresses.retain(|other| *other != address);
            addresses.insert(0, address);
        }
        let jitter = self.jitter();
        self.0.state.update(|state, now| state.peers.dialled(id, now, jitter));
    }

    /// Returns the address that led to the peer.
    async fn dial_somewhere(&self, peer: NodeId, addresses: &[String], class: Class) -> Option<String> {
        let attempt = |address: String| async move {
            match self.reach(peer, &address, class).await {
                Ok(established) => Ok(Reached { established, address }),
                Err(error) => {
                    let cause = &error as &dyn std::error::Error;
                    // Who refuses us will not stop by itself, as being down does; attempts become rare, and so do these lines.
                    if is_mistaken(&error) {
                        tracing::warn!(%peer, address, error = cause, "a peer is not who it should be, or does not know us");
                    } else {
                        tracing::debug!(%peer, address, error = cause, "cannot connect to a peer");
                    }
                    Err(error)
                }
            }
        };
        // The failures are told above, each with its address.
        let Ok(Reached { established, address }) = first_success(addresses.to_vec(), NEXT_ADDRESS_AFTER, attempt).await else {
            return None;
        };
        self.begin(established, Some(&address));
        Some(address)
    }

    async fn reach(&self, peer: NodeId, address: &str, class: Class) -> Result<Established, NetError> {
        let purpose = Purpose { role: garage_net::Role::Node, class };
        dial(&*self.0.options.transport, &self.0.local, peer, address, purpose).await
    }

    /// Connects at this one address.
    pub(super) async fn dial_at(&self, peer: NodeId, address: &str, class: Class) -> Result<(), NetError> {
        let established = self.reach(peer, address, class).await?;
        self.begin(established, Some(address));
        Ok(())
    }
}
