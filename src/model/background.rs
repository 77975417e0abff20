//! What the background work of a node remembers and may do: the settings an operator can change while it runs, and its progress.

use std::num::NonZeroU64;
use std::sync::Arc;

use garage_types::codec::Format;
use serde::{Deserialize, Serialize};

use crate::state_file::{StateDirectory, StateFile, StateFileError};

/// Most resync workers at once; as many are listed, those above the setting idle.
pub const RESYNC_WORKERS_MAX: u32 = 8;

/// Whether this node knows enough to delete blocks: one whose database is new or incomplete does not.
pub trait MayDelete: Send + Sync + 'static {
    fn may_delete_blocks(&self) -> bool;
}

/// A node whose database is complete.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlwaysMayDelete;

impl MayDelete for AlwaysMayDelete {
    fn may_delete_blocks(&self) -> bool {
        true
    }
}

/// Whether scrubs begin by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScrubStart {
    #[default]
    Automatic,
    OnCommand,
}

/// How the configuration shapes background work.
#[derive(Clone, Debug, Default)]
pub struct BackgroundSettings {
    /// Bytes a second that resync may move, to and from this node; `None`: no limit.
    pub resync_bandwidth_limit: Option<NonZeroU64>,
    pub scrub: ScrubStart,
}

/// What an operator may set while the node runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variables {
    #[serde(rename = "rt")]
    pub resync_tranquility: u32,
    /// From 1 to [`RESYNC_WORKERS_MAX`].
    #[serde(rename = "rc")]
    pub resync_worker_count: u32,
    #[serde(rename = "st")]
    pub scrub_tranquility: u32,
}

impl Default for Variables {
    fn default() -> Self {
        Variables { resync_tranquility: 2, resync_worker_count: 1, scrub_tranquility: 4 }
    }
}

impl Format for Variables {
    const TAG: &'static str = "wvar1";
}

/// For which layout every block was last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walked {
    /// Digest of the live layout versions; empty before the first walk.
    #[serde(rename = "l")]
    pub layout: String,
}

impl Format for Walked {
    const TAG: &'static str = "walk1";
}

/// Settings and progress, read from the metadata directory at start.
pub struct Background {
    pub settings: BackgroundSettings,
    pub variables: StateFile<Variables>,
    pub walked: StateFile<Walked>,
    pub may_delete: Arc<dyn MayDelete>,
}

impl Background {
    /// # Errors
    /// [`StateFileError`]: a file that is there and cannot be read.
    pub async fn open(
        directory: &StateDirectory,
        settings: BackgroundSettings,
        may_delete: Arc<dyn MayDelete>,
    ) -> Result<Self, StateFileError> {
        Ok(Background {
            variables: StateFile::open(directory, "worker_variables", Variables::default()).await?,
            walked: StateFile::open(directory, "blocks_walked", Walked::default()).await?,
            settings,
            may_delete,
        })
    }
}
