//! Why a command did not do what it was told, in words that say what to do next.

use std::io;
use std::path::PathBuf;

use garage_admin::ApiError;
use garage_admin::search::SearchError;
use garage_net::NetError;
use garage_rpc::error::RpcError;
use garage_types::NodeId;
use garage_types::config::ConfigError;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(
        "there is no configuration file at {}: give one with -c, or start with `garage server --single-node`; to talk to a daemon elsewhere, set GARAGE_RPC_HOST and GARAGE_RPC_SECRET",
        looked_at.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
    )]
    NoConfiguration { looked_at: Vec<PathBuf> },
    #[error("configuration file {}{}", path.display(), line.map_or_else(String::new, |line| format!(", line {line}")))]
    Configuration {
        path: PathBuf,
        /// Where what is wrong is written, if that can be said.
        line: Option<usize>,
        #[source]
        source: ConfigError,
    },
    #[error("environment or flags")]
    Overrides(#[source] ConfigError),
    /// Wherever it came from: nobody knows any more.
    #[error(transparent)]
    RpcSecret(ConfigError),
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} holds a secret and others can read it (mode {mode:03o}): run `chmod 600 {}`, or set allow_world_readable_secrets = true",
        path.display(),
        path.display()
    )]
    ReadableSecret { path: PathBuf, mode: u32 },
    #[error("no RPC secret: write rpc_secret or rpc_secret_file in the configuration file, or set GARAGE_RPC_SECRET")]
    NoRpcSecret,
    #[error("{} does not hold a node id", path.display())]
    NodeKey { path: PathBuf },
    #[error("cannot read {}: the node's key appears when the daemon starts for the first time", path.display())]
    NoNodeKey {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot reach the daemon at {address} (is `garage server` running there, with the same RPC secret?)")]
    Unreachable {
        address: String,
        #[source]
        source: NetError,
    },
    #[error("the operating system gives no random numbers")]
    Random(#[source] getrandom::Error),
    #[error("{operation} was not answered")]
    Call {
        operation: &'static str,
        #[source]
        source: RpcError,
    },
    #[error("{operation} returned {error}")]
    Refused { operation: &'static str, error: ApiError },
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error("{0}")]
    Usage(String),
    #[error("could not connect to the node: {0}")]
    NotConnected(String),
    #[error("node {node} has no role yet: say where it is with -z ZONE")]
    ZoneNeeded { node: NodeId },
    #[error("node {node} has no role yet: say how much it may store with -c SIZE, or make it a gateway with -g")]
    CapacityNeeded { node: NodeId },
    #[error("no snapshot was made on {failed} of the nodes")]
    NoSnapshot { failed: usize },
    #[error("{0}")]
    Node(String),
    #[error("some nodes did not answer, or refused")]
    Incomplete,
    #[error("{operation} does not take this JSON")]
    Payload {
        operation: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("there is no operation {name}: this version has {}", known.join(", "))]
    NoOperation { name: String, known: Vec<&'static str> },
    #[error("the reply cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    #[error("cannot {action}")]
    Terminal {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the metadata were not converted")]
    Convert(#[from] garage_node::convert::ConversionError),
    #[error("the daemon stopped")]
    Daemon(#[source] garage_node::daemon::DaemonError),
}
