//! `garage layout …`

use clap::{Args, Subcommand};

use super::value::{Redundancy, capacity, redundancy};

#[derive(Debug, Subcommand)]
pub enum LayoutCommand {
    /// Give nodes a role: a zone, and a capacity or the duty of a gateway
    Assign(AssignArgs),
    /// Take a node's role away
    Remove {
        /// Node id or the beginning of one
        node: String,
    },
    /// Set how copies are spread over zones
    Config {
        /// `maximum`, `none`, or the number of zones that must hold a copy
        #[arg(short, long, value_parser = redundancy)]
        redundancy: Option<Redundancy>,
    },
    /// Show the layout, and what the staged changes would make of it
    Show,
    /// Make the staged changes
    #[command(disable_version_flag = true)]
    Apply {
        /// The current version + 1, which confirms that nobody else changed the layout meanwhile
        #[arg(long)]
        version: Option<u64>,
    },
    /// Drop the staged changes
    #[command(disable_version_flag = true)]
    Revert(RevertArgs),
    /// Show past and live versions of the layout
    History,
    /// Move on without nodes that will not come back
    #[command(disable_version_flag = true)]
    SkipDeadNodes(SkipArgs),
    /// Choose between layouts with one number, which two operators applied at once; without a digest, show them
    Resolve {
        /// The beginning of the digest of the layout to keep
        digest: Option<String>,
    },
}

#[derive(Debug, Clone, Args)]
pub struct SkipArgs {
    /// The live version that the other nodes are to reach, usually the current one
    #[arg(long)]
    pub version: u64,
    /// Accept that metadata which only the dead nodes had is lost
    #[arg(long)]
    pub allow_missing_data: bool,
    /// Confirms the loss
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Clone, Args)]
pub struct AssignArgs {
    /// Node ids or the beginnings of them
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Failure domain: a place, whose nodes may all fail at once
    #[arg(short, long)]
    pub zone: Option<String>,
    /// How much the node may store, such as 2T or 500GiB
    #[arg(short, long, value_parser = capacity, value_name = "SIZE", conflicts_with = "gateway")]
    pub capacity: Option<u64>,
    /// Store nothing on the node, only answer requests
    #[arg(short, long)]
    pub gateway: bool,
    /// A word to recognise the node by; may be repeated
    #[arg(short, long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Also take the role of this node away; may be repeated. One node for one: the new one gets its role unless told otherwise
    #[arg(long, value_name = "NODE")]
    pub replace: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub struct RevertArgs {
    /// Confirms
    #[arg(long)]
    pub yes: bool,
    /// Confirms as well, when it is the current version + 1
    #[arg(long)]
    pub version: Option<u64>,
}
