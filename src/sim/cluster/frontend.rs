//! The S3 frontend of a simulated machine: the daemon's service and server, on connections of the simulated network.

use std::sync::Arc;

use futures_util::FutureExt;
use garage_http::server::{Peer, ServerLimits, serve_connection};
use garage_http::sigv4::RegionPolicy;
use garage_model::Garage;
use garage_s3::{S3Service, S3Settings};
use garage_types::Random;
use garage_worker::spawn::Spawn;

use super::network::Network;

pub const REGION: &str = "sim";

/// Where clients reach a machine.
pub fn address(machine: usize) -> String {
    format!("machine-{machine}:3900")
}

/// Serves S3 for as long as the machine's tasks run.
pub async fn serve(network: &Network, machine: usize, garage: Garage, random: Arc<dyn Random>, spawn: Arc<dyn Spawn>) {
    let settings = S3Settings {
        region: REGION.to_owned(),
        region_policy: RegionPolicy::Exactly(REGION.to_owned()),
        root_domains: Vec::new(),
    };
    let service = Arc::new(S3Service::new(garage, settings));
    let mut listener = network.of(machine).listen(&address(machine)).await.unwrap();
    let tasks = spawn.clone();
    let accepting = async move {
        while let Ok(socket) = listener.accept().await {
            let limits = ServerLimits::default();
            let connection = serve_connection(socket.stream, Peer::Unix, service.clone(), limits, random.clone());
            tasks.spawn("s3 connection", connection.boxed());
        }
    };
    spawn.spawn("s3 listener", accepting.boxed());
}
