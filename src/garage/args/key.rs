//! `garage key …`

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use garage_types::Secret;
use garage_types::size::parse_duration;

use super::value::secret;

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the access keys
    List,
    /// Show one access key
    Info {
        /// Id, the beginning of one, or name
        key: String,
        /// Show the secret as well
        #[arg(long)]
        show_secret: bool,
    },
    /// Make an access key and show its secret
    #[command(alias = "new")]
    Create(CreateArgs),
    /// Give an access key another name
    Rename {
        /// Id, the beginning of one, or name
        key: String,
        new_name: String,
    },
    /// Set when an access key expires
    #[command(group = ArgGroup::new("expiration").args(["expires_in", "never_expires"]).required(true))]
    Set {
        /// Id, the beginning of one, or name
        key: String,
        /// From now, such as 30d
        #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
        expires_in: Option<Duration>,
        /// Take its expiration away
        #[arg(long)]
        never_expires: bool,
    },
    /// Delete an access key, its permissions and its names for buckets
    Delete {
        /// Id, the beginning of one, or name
        key: String,
        /// Confirms
        #[arg(long)]
        yes: bool,
    },
    /// Delete all access keys that have expired
    DeleteExpired {
        /// Confirms
        #[arg(long)]
        yes: bool,
    },
    /// Let an access key do more
    Allow(RightArgs),
    /// Let an access key do less
    Deny(RightArgs),
    /// Take over an access key that was made elsewhere
    Import {
        key_id: String,
        /// 64 hexadecimal digits
        #[arg(value_parser = secret)]
        secret: Secret,
        #[arg(short, long, default_value = "Imported key")]
        name: String,
        /// Confirms that the key was made by a Garage cluster and is not shared with others
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Older spelling
    #[arg(long = "name", value_name = "NAME", hide = true, conflicts_with = "name")]
    name_option: Option<String>,
    /// From now, such as 30d
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub expires_in: Option<Duration>,
}

impl CreateArgs {
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref().or(self.name_option.as_deref())
    }
}

#[derive(Debug, Clone, Args)]
pub struct RightArgs {
    /// Id, the beginning of one, or name
    pub key: String,
    /// To make buckets
    #[arg(long, required = true)]
    pub create_bucket: bool,
}
