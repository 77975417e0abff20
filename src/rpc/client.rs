//! The command line's connection to a node: a throw-away key, calls only.

use std::sync::Arc;
use std::time::Duration;

use garage_net::establish::{self, Local};
use garage_net::mux::Windows;
use garage_net::{Class, Identity, Multiplexed, NetError, NetworkKey, Purpose, Role, Transport};
use garage_types::{NodeId, Random};
use garage_worker::spawn::Spawn;

use crate::endpoint::{Message, Request};
use crate::error::RpcError;
use crate::link::Link;
use crate::peers::PeerAddress;

/// What a [`Client`] needs.
pub struct ClientOptions {
    pub transport: Arc<dyn Transport>,
    pub network_key: NetworkKey,
    pub random: Arc<dyn Random>,
    pub spawn: Arc<dyn Spawn>,
    /// For connecting, and again for the handshake.
    pub timeout: Duration,
}

/// A connection on which requests of all classes go out, and none come in.
pub struct Client(Link);

impl Client {
    /// Connects to the node with the id and address of `node`.
    ///
    /// # Errors
    /// [`NetError`]: nobody there, another node, another network key, another version.
    pub async fn connect(options: ClientOptions, node: &PeerAddress) -> Result<Client, NetError> {
        let identity = Identity::generate(&*options.random);
        let us = identity.id();
        let local = Local { identity, network: options.network_key, random: options.random, timeout: options.timeout };
        let purpose = Purpose { role: Role::Client, class: Class::Metadata };
        let address = node.address.to_string();
        let Multiplexed { connection, incoming, driver } =
            dial(&*options.transport, &local, node.node, &address, purpose).await?.multiplex(Windows::Grow);
        // A client answers nothing: streams towards it are reset.
        drop(incoming);
        options.spawn.spawn("rpc-client", Box::pin(log_end(driver)));
        Ok(Client(Link::new(connection, us, address, Arc::default())))
    }

    /// Calls the node.
    ///
    /// # Errors
    /// What the node answers; `Unavailable` or `Timeout` without an answer.
    pub async fn call<R: Request>(&self, request: Message<R>, timeout: Duration) -> Result<Message<R::Reply>, RpcError> {
        self.0.call(&request, timeout).await
    }
}

/// Connects and proves both identities; each of the two has `local.timeout`.
pub(crate) async fn dial(
    transport: &dyn Transport,
    local: &Local,
    node: NodeId,
    address: &str,
    purpose: Purpose,
) -> Result<establish::Established, NetError> {
    let connecting = tokio::time::timeout(local.timeout, transport.connect(address)).await;
    let socket = connecting
        .unwrap_or_else(|_elapsed| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|source| NetError::Io { action: "connect", source })?;
    establish::connect(socket, local, node, purpose).await
}

pub(crate) async fn log_end(driver: impl Future<Output = Result<(), NetError>>) {
    if let Err(error) = driver.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke");
    }
}
