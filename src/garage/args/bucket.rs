//! `garage bucket …`

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use garage_types::size::parse_duration;

use super::value::{Limit, count_limit, size_limit};

#[derive(Debug, Subcommand)]
pub enum BucketCommand {
    /// List the buckets
    List,
    /// Show one bucket
    Info {
        /// Name, id or the beginning of an id
        bucket: String,
    },
    /// Make a bucket
    Create { name: String },
    /// Delete an empty bucket
    Delete {
        /// Name, id or the beginning of an id
        bucket: String,
        /// Confirms
        #[arg(long)]
        yes: bool,
    },
    /// Give a bucket another name
    Alias {
        /// Name, id or the beginning of an id
        #[arg(value_name = "EXISTING")]
        bucket: String,
        #[arg(value_name = "NEW")]
        name: String,
        /// Make it a name for this access key only
        #[arg(long, value_name = "KEY")]
        local: Option<String>,
    },
    /// Take a name away from a bucket
    Unalias {
        name: String,
        /// The access key whose name it is
        #[arg(long, value_name = "KEY")]
        local: Option<String>,
    },
    /// Let an access key use a bucket
    Allow(PermissionArgs),
    /// Withdraw what an access key may do with a bucket
    Deny(PermissionArgs),
    /// Limit what a bucket may hold
    #[command(group = ArgGroup::new("limits").args(["max_size", "max_objects"]).required(true).multiple(true))]
    SetQuotas {
        /// Name, id or the beginning of an id
        bucket: String,
        /// A size such as 10GiB, or `none`
        #[arg(long, value_parser = size_limit, value_name = "SIZE")]
        max_size: Option<Limit>,
        /// A number, or `none`
        #[arg(long, value_parser = count_limit, value_name = "N")]
        max_objects: Option<Limit>,
    },
    /// Give up multipart uploads that nobody will finish
    CleanupIncompleteUploads {
        /// Names, ids or the beginnings of ids
        #[arg(required = true, value_name = "BUCKET")]
        buckets: Vec<String>,
        /// Those that began longer ago than this
        #[arg(long, value_parser = parse_duration, value_name = "DURATION", default_value = "1d")]
        older_than: Duration,
    },
    /// Show every version of an object with its blocks
    InspectObject {
        /// Name, id or the beginning of an id
        bucket: String,
        key: String,
    },
}

#[derive(Debug, Clone, Args)]
pub struct PermissionArgs {
    /// Name, id or the beginning of an id
    pub bucket: String,
    /// Access key: id, the beginning of one, or name
    #[arg(long)]
    pub key: String,
    /// To read objects and to list them
    #[arg(long)]
    pub read: bool,
    /// To write and delete objects
    #[arg(long)]
    pub write: bool,
    /// To change the bucket's settings and to delete it
    #[arg(long)]
    pub owner: bool,
}
