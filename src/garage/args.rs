//! What can be typed: the tree of commands, nothing of what they do.
//!
//! Must stay true: every spelling that older versions printed in their manuals still parses, and a command that does nothing yet
//! is not listed. What to type instead of a wrong command is in `hints`.

pub mod bucket;
pub mod key;
pub mod layout;
pub mod value;
pub mod worker;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use garage_types::config::{Overrides, PeerAddress, SecretFiles, SecretInput};
use garage_types::{Secret, config};

/// What `--version` says; `-V` says the number alone.
const VERSION: &str = if cfg!(feature = "sled") {
    concat!(env!("CARGO_PKG_VERSION"), "\nmetadata engines: lmdb, redb, sled")
} else {
    concat!(env!("CARGO_PKG_VERSION"), "\nmetadata engines: lmdb, redb")
};

/// A self-hosted, geo-distributed object store that speaks S3.
///
/// To try it on one machine: `garage server --single-node --default-bucket`. To run it on several: write the same
/// `rpc_secret` in /etc/garage.toml on each, start `garage server`, connect them with `garage node connect`, and tell them
/// what to store with `garage layout assign` and `garage layout apply`.
#[derive(Debug, Parser)]
#[command(name = "garage", version, long_version = VERSION, propagate_version = true, disable_help_flag = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Understands a command line, its program's name first. Of the variables that stand for options, those that are empty count as unset.
///
/// # Errors
/// What is wrong with the command line, or the help that it asks for.
pub fn parse(words: impl Iterator<Item = OsString>, is_empty: impl Fn(&str) -> bool) -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    for (option, variable) in [("config", "GARAGE_CONFIG_FILE"), ("rpc_host", "GARAGE_RPC_HOST")] {
        if is_empty(variable) {
            command = command.mut_arg(option, |arg| arg.env(Resettable::Reset));
        }
    }
    let matches = command.try_get_matches_from_mut(words)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Options of every command. Those with a short form stand before the command, because commands have short options of their own.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: /etc/garage.toml, then ./garage-data/garage.toml]
    #[arg(short, long, env = "GARAGE_CONFIG_FILE", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The daemon to talk to, <node id>@<host>:<port> [default: the one the configuration file describes]
    #[arg(short = 'h', long, env = "GARAGE_RPC_HOST", value_name = "PEER")]
    pub rpc_host: Option<PeerAddress>,
    /// RPC secret, 64 hexadecimal digits; other users of this machine can see it [env: GARAGE_RPC_SECRET]
    #[arg(short = 's', long, value_name = "HEX", value_parser = value::secret, hide_short_help = true)]
    rpc_secret: Option<Secret>,
    /// File with the RPC secret [env: GARAGE_RPC_SECRET_FILE]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    rpc_secret_file: Option<PathBuf>,
    // Of interfaces that this version does not have: accepted, so that existing scripts and units start, and not offered.
    /// Administration token of the daemon [env: GARAGE_ADMIN_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", value_parser = value::secret, hide = true)]
    admin_token: Option<Secret>,
    /// File with the administration token [env: GARAGE_ADMIN_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    admin_token_file: Option<PathBuf>,
    /// Token for the daemon's metrics [env: GARAGE_METRICS_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", value_parser = value::secret, hide = true)]
    metrics_token: Option<Secret>,
    /// File with the token for the daemon's metrics [env: GARAGE_METRICS_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    metrics_token_file: Option<PathBuf>,
    /// Accept files with secrets that others may read [env: GARAGE_ALLOW_WORLD_READABLE_SECRETS]
    #[arg(long, global = true, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_world_readable_secrets: Option<bool>,
    /// Print data as JSON, for scripts
    #[arg(long, global = true)]
    pub json: bool,
    /// Print help
    #[arg(long, global = true, action = ArgAction::Help)]
    help: Option<bool>,
}

impl Global {
    /// What the flags say about secrets.
    pub fn overrides(&self) -> Overrides {
        let input = |inline: &Option<Secret>, file: &Option<PathBuf>| SecretInput { inline: inline.clone(), file: file.clone() };
        let files = |allow| if allow { SecretFiles::WorldReadable } else { SecretFiles::OwnerOnly };
        Overrides {
            rpc_secret: input(&self.rpc_secret, &self.rpc_secret_file),
            admin_token: input(&self.admin_token, &self.admin_token_file),
            metrics_token: input(&self.metrics_token, &self.metrics_token_file),
            secret_files: self.allow_world_readable_secrets.map(files),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Server(ServerArgs),
    /// Show the nodes of the cluster
    Status,
    /// This node's id, and connections to others
    #[command(subcommand)]
    Node(NodeCommand),
    /// Which node stores what
    #[command(subcommand)]
    Layout(layout::LayoutCommand),
    /// Buckets, their names and who may use them
    #[command(subcommand)]
    Bucket(bucket::BucketCommand),
    /// Access keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Show what the node stores
    Stats(StatsArgs),
    /// Background jobs and their settings
    #[command(subcommand)]
    Worker(worker::WorkerCommand),
    /// Put right what is stored; followed with `garage worker list`
    Repair(worker::RepairArgs),
    /// Single blocks: those that failed, and who refers to one
    #[command(subcommand)]
    Block(worker::BlockCommand),
    /// Call an operation of the administration interface, JSON in and out
    JsonApi(JsonApiArgs),
    /// Copies of the metadata
    #[command(subcommand)]
    Meta(MetaCommand),
    /// Move the metadata of a stopped node to another engine
    ConvertDb(ConvertDbArgs),
    /// Spelling of versions up to 0.4
    #[command(hide = true)]
    NodeId(NodeIdArgs),
}

#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Store everything on this one machine; makes whatever is missing: configuration, secret, directories, layout
    #[arg(long)]
    pub single_node: bool,
    /// Also make a bucket and a key for it [env: GARAGE_DEFAULT_BUCKET, GARAGE_DEFAULT_ACCESS_KEY, GARAGE_DEFAULT_SECRET_KEY]
    #[arg(long, requires = "single_node")]
    pub default_bucket: bool,
    /// Where to keep everything [default: ./garage-data]
    #[arg(long, requires = "single_node", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Address of the S3 interface, when the configuration is made [default: 127.0.0.1:3900]
    #[arg(long, requires = "single_node", value_name = "IP:PORT")]
    pub s3_bind: Option<SocketAddr>,
    /// Address for other nodes and this command line, when the configuration is made [default: 127.0.0.1:3901]
    #[arg(long, requires = "single_node", value_name = "IP:PORT")]
    pub rpc_bind: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Print this node's id and address, for others to connect to
    Id(NodeIdArgs),
    /// Connect to another node
    Connect {
        /// <node id>@<host>:<port>, as `garage node id` prints it there
        peer: config::PeerAddress,
    },
    /// Declare a database whole that cannot be rebuilt, because all were lost or put back at once; what was acknowledged since is lost
    AcceptDatabase(AcceptDatabaseArgs),
}

#[derive(Debug, Clone, Args)]
pub struct AcceptDatabaseArgs {
    /// Of every node that waits with an old database, instead of the contacted one
    #[arg(short, long)]
    pub all_nodes: bool,
    /// Although another node has, or may have, something better
    #[arg(long)]
    pub force: bool,
    /// Confirms
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Clone, Args)]
pub struct NodeIdArgs {
    /// Print the id only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum MetaCommand {
    /// Copy the metadata of the contacted node into its snapshots, of which the newest two are kept
    Snapshot {
        /// Of every node
        #[arg(short, long = "all", alias = "all-nodes")]
        all_nodes: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub struct StatsArgs {
    /// Ask every node instead of the contacted one
    #[arg(short, long)]
    pub all_nodes: bool,
    /// Accepted as older versions did: details are always shown
    #[arg(short, long, hide = true)]
    pub detailed: bool,
}

#[derive(Debug, Clone, Args)]
pub struct ConvertDbArgs {
    /// Engine of the database there is
    #[arg(short = 'a', long, value_name = "ENGINE")]
    pub input_engine: String,
    /// Its directory, such as /var/lib/garage/meta/db.lmdb; it is not changed
    #[arg(short = 'i', long, value_name = "PATH")]
    pub input: PathBuf,
    /// Engine of the new database
    #[arg(short = 'b', long, value_name = "ENGINE")]
    pub output_engine: String,
    /// Its directory, such as /var/lib/garage/meta/db.redb, which must not exist
    #[arg(short = 'o', long, value_name = "PATH")]
    pub output: PathBuf,
    /// Address space for LMDB's file, as `lmdb_map_size` in the configuration
    #[arg(long, value_name = "SIZE", value_parser = garage_types::size::parse_size)]
    pub lmdb_map_size: Option<u64>,
}

#[derive(Debug, Clone, Args)]
pub struct JsonApiArgs {
    /// Name of the operation, such as GetClusterStatus
    pub operation: String,
    /// JSON; `-` reads it from standard input
    #[arg(default_value = "null")]
    pub payload: String,
}

#[cfg(test)]
mod tests;
