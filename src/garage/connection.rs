//! The way to the daemon: encrypted RPC, with a throw-away key.

use std::sync::Arc;
use std::time::Duration;

use garage_admin::operations::name_of;
use garage_admin::{Call, Operation};
use garage_net::{NetworkKey, TcpTransport};
use garage_node::capabilities::system_random;
use garage_rpc::client::{Client, ClientOptions};
use garage_worker::spawn::TokioSpawn;

use crate::error::CliError;
use crate::settings::Target;
use crate::waiting::with_sign;

/// A large layout may take that long to be computed.
const TIMEOUT: Duration = Duration::from_secs(120);
/// To connect, and again to prove who is who.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon that was reached.
pub struct Daemon {
    client: Client,
}

impl Daemon {
    /// # Errors
    /// [`CliError::Unreachable`].
    pub async fn connect(target: &Target) -> Result<Self, CliError> {
        let options = ClientOptions {
            transport: Arc::new(TcpTransport::default()),
            network_key: NetworkKey::from_bytes(target.secret),
            random: Arc::new(system_random().map_err(CliError::Random)?),
            spawn: Arc::new(TokioSpawn),
            timeout: CONNECT_TIMEOUT,
        };
        match with_sign("connecting", Client::connect(options, &target.daemon)).await {
            Ok(client) => Ok(Daemon { client }),
            Err(source) => Err(CliError::Unreachable { address: target.daemon.address.to_string(), source }),
        }
    }

    /// # Errors
    /// [`CliError::Call`] when no answer came, [`CliError::Refused`] when it was an error.
    pub async fn call<O: Operation>(&self, operation: O) -> Result<O::Reply, CliError> {
        let call = self.client.call(Call(operation).into(), O::PATIENCE.unwrap_or(TIMEOUT));
        let reply =
            with_sign(name_of::<O>(), call).await.map_err(|source| CliError::Call { operation: name_of::<O>(), source })?;
        reply.body.map_err(|error| CliError::Refused { operation: name_of::<O>(), error })
    }
}
