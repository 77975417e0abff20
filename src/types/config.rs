//! The configuration: one TOML file, a few secrets from elsewhere, and what both mean together.
//!
//! Pure: the binary reads files and variables, [`Config::resolve`] says what they mean. Must stay true: an error names the key and
//! what to write instead; a key we do not know, or that older versions knew, becomes a [`Warning`] and never an error; a secret is
//! a [`SecretSource`] until the binary has read it, and no error or warning ever shows one.

mod parse;
mod secrets;
mod section;
mod subnet;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use secrets::{Level, Overrides, SecretInput, SecretName, SecretSource, parse_rpc_secret};
pub use subnet::{Subnet, SubnetError};

use crate::ids::NodeId;
use crate::names::Punycode;

/// Everything one node is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub metadata_dir: PathBuf,
    /// At least one is writable.
    pub data_dirs: Vec<DataDir>,
    pub metadata_snapshots_dir: PathBuf,
    /// `None`: no periodic snapshots.
    pub metadata_auto_snapshot_interval: Option<Duration>,
    /// The metadata engine's name; which there are is for the database to say.
    pub db_engine: String,
    /// Bytes of address space for LMDB.
    pub lmdb_map_size: u64,
    pub metadata_fsync: bool,
    pub data_fsync: bool,
    pub disable_scrub: bool,
    /// Whether days begin at local midnight instead of UTC's, for lifecycle rules.
    pub use_local_tz: bool,
    pub replication: Replication,
    /// Bytes of a block of a new object.
    pub block_size: u64,
    /// After how long without references a block may be deleted.
    pub block_release_delay: Duration,
    /// Objects of at most this many bytes live in the metadata.
    pub inline_threshold: u64,
    /// Bytes of blocks that may wait in memory at once.
    pub block_ram_buffer_max: u64,
    /// Bytes a second that background work may move between this node and others; `None`: no limit.
    pub resync_bandwidth_limit: Option<NonZeroU64>,
    pub compression: Compression,
    pub punycode: Punycode,
    pub secret_files: SecretFiles,
    pub rpc: RpcConfig,
    pub s3_api: S3ApiConfig,
    pub s3_web: Option<S3WebConfig>,
    pub k2v_api: Option<K2vApiConfig>,
    pub admin: AdminConfig,
    pub consul_discovery: Option<ConsulDiscovery>,
    pub kubernetes_discovery: Option<KubernetesDiscovery>,
}

/// A configuration, and what deserves a word to the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub config: Config,
    pub warnings: Vec<Warning>,
}

/// Something in the file that changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Probably a typing mistake.
    UnknownKey { key: String },
    /// Meant something in an older version.
    Removed { key: String, instead: &'static str },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::UnknownKey { key } => {
                write!(f, "`{key}` is not a known setting and is ignored; check its spelling and section")
            }
            Warning::Removed { key, instead } => write!(f, "`{key}` has no effect any more: {instead}"),
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("line {line} is not TOML: {message}")]
    Syntax { line: usize, message: String },
    #[error("`{key}` is missing: add {example}")]
    Missing { key: String, example: &'static str },
    #[error("`{key}` cannot be {found}: write {expected}")]
    Value { key: String, found: String, expected: &'static str },
    #[error("`{first}` and `{second}` cannot be given together: {instead}")]
    Conflict { first: String, second: String, instead: &'static str },
    #[error("no entry of `data_dir` is writable: give at least one a `capacity` instead of `read_only`")]
    NoWritableDataDir,
    #[error("`data_dir` names {} twice: every entry needs a path of its own", path.display())]
    DataDirTwice { path: PathBuf },
    #[error("`{first}` and `{second}` are both {address}: each needs an address of its own")]
    SameAddress { first: &'static str, second: &'static str, address: Listen },
    #[error("the RPC secret is not 64 hexadecimal digits: make one with `openssl rand -hex 32`, the same for all nodes")]
    RpcSecret,
}

/// One directory for blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    pub path: PathBuf,
    pub purpose: DataDirPurpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirPurpose {
    /// `capacity_bytes`: its share among several; unset for a single directory.
    Writable { capacity_bytes: Option<u64> },
    /// Blocks are read from it and moved out of it.
    ReadOnly,
}

/// How many copies, and how many of them an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replication {
    pub factor: u16,
    pub consistency: ConsistencyMode,
}

/// How much consistency is given up for availability; the stricter is the lesser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConsistencyMode {
    /// A read sees every write that was acknowledged before it.
    #[default]
    Consistent,
    /// Reads need one replica only.
    Degraded,
    /// Reads and writes need one replica only: an acknowledged write can be lost with a single node.
    Dangerous,
}

impl ConsistencyMode {
    pub const ALL: [ConsistencyMode; 3] = [ConsistencyMode::Consistent, ConsistencyMode::Degraded, ConsistencyMode::Dangerous];

    /// As configurations and nodes write it.
    pub const fn name(self) -> &'static str {
        match self {
            ConsistencyMode::Consistent => "consistent",
            ConsistencyMode::Degraded => "degraded",
            ConsistencyMode::Dangerous => "dangerous",
        }
    }

    /// `None`: there is no such mode, in this version.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// How blocks are compressed before they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Off,
    /// zstd's level, -99 to 22.
    Zstd(i32),
}

/// Whether files with secrets may be readable by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretFiles {
    OwnerOnly,
    WorldReadable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcConfig {
    /// `None`: nobody gave one, which the daemon does not accept.
    pub secret: Option<SecretSource>,
    pub bind_addr: SocketAddr,
    /// Whether outgoing connections leave from the address of `bind_addr`.
    pub bind_outgoing: bool,
    pub public_addr: Option<HostPort>,
    /// Without `public_addr`: which of the machine's addresses are told to others.
    pub public_addr_subnet: Option<Subnet>,
    pub bootstrap_peers: Vec<PeerAddress>,
    /// For an answer to a call about metadata; blocks get more.
    pub timeout: Duration,
    /// For the answer to a ping.
    pub ping_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3ApiConfig {
    /// `None`: no S3 listener.
    pub api_bind_addr: Option<Listen>,
    pub region: String,
    /// Whether signatures made for any other region are accepted too.
    pub region_any: bool,
    /// With a leading dot: bucket `b` is served at `b` + this.
    pub root_domain: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3WebConfig {
    pub bind_addr: Listen,
    /// With a leading dot.
    pub root_domain: String,
    pub add_host_to_metrics: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct K2vApiConfig {
    pub api_bind_addr: Listen,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminConfig {
    pub api_bind_addr: Option<Listen>,
    pub admin_token: Option<SecretSource>,
    pub metrics_token: Option<SecretSource>,
    pub metrics_require_token: bool,
    /// URL of an OTLP collector.
    pub trace_sink: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsulApi {
    Catalog,
    Agent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulDiscovery {
    pub api: ConsulApi,
    pub consul_http_addr: String,
    pub service_name: String,
    pub ca_cert: Option<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub token: Option<crate::Secret>,
    pub tls_skip_verify: bool,
    pub tags: Vec<String>,
    pub meta: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesDiscovery {
    pub namespace: String,
    pub service_name: String,
    pub skip_crd: bool,
}

/// Where a listener listens: `[::]:3900`, or a path for a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Text that is not what an address should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is not an address: write <ip or host name>:<port>, an IPv6 address in brackets")]
    HostPort(String),
    #[error(
        "{0:?} does not name a peer: write <node id, 64 hexadecimal digits>@<ip or host name>:<port>, as `garage node id` prints it"
    )]
    Peer(String),
}

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = || AddressError::HostPort(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        let port = port.parse().map_err(|_not_a_port| refuse())?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(inside) if inside.parse::<std::net::Ipv6Addr>().is_ok() => inside,
            None if !host.is_empty() && !host.contains([':', '[', ']', ' ', '/', '@']) => host,
            _ => return Err(refuse()),
        };
        Ok(HostPort { host: host.to_owned(), port })
    }
}

/// A node and where to reach it: `<node id>@<host>:<port>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    pub node: NodeId,
    pub address: HostPort,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node, self.address)
    }
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = || AddressError::Peer(text.to_owned());
        let (node, address) = text.split_once('@').ok_or_else(refuse)?;
        let node = node.parse().map_err(|_not_an_id| refuse())?;
        let address = address.parse().map_err(|_not_an_address| refuse())?;
        Ok(PeerAddress { node, address })
    }
}

impl Config {
    /// What a configuration file means together with what flags and environment say.
    ///
    /// Flags win over the environment, the environment over the file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn resolve(text: &str, flags: &Overrides, environment: &Overrides) -> Result<Resolved, ConfigError> {
        parse::resolve(text, flags, environment)
    }
}

#[cfg(test)]
mod tests;
