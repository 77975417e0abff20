//! What the background work of a node remembers and may do: the settings an operator can change while it runs, and its progress.

use std::num::NonZeroU64;
use std::sync::Arc;

use garage_block::scrub::Scrub;
use garage_types::codec::Format;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::state_file::{StateDirectory, StateFile, StateFileError};

/// Most resync workers at once; as many are listed, those above the setting idle.
pub const RESYNC_WORKERS_MAX: u32 = 8;

/// What this node's database is good for, where blocks are concerned.
pub trait MayDelete: Send + Sync + 'static {
    /// Whether it may delete a copy that all owners of the block say they need no more. A node that may itself have to hold it must know
    /// what refers to it.
    fn may_delete_blocks(&self) -> bool;

    /// Whether what its database does not refer to is referred to nowhere, as far as this node is concerned: others act on its word.
    fn knows_references(&self) -> bool;
}

/// A node whose database is complete.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlwaysMayDelete;

impl MayDelete for AlwaysMayDelete {
    fn may_delete_blocks(&self) -> bool {
        true
    }

    fn knows_references(&self) -> bool {
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
    pub scrub: StateFile<Scrub>,
    /// An operator said something to the scrub.
    pub(crate) scrub_told: Notify,
    pub may_delete: Arc<dyn MayDelete>,
}

impl Background {
    /// `first_scrub`: the schedule of a node that has none.
    ///
    /// # Errors
    /// [`StateFileError`]: a file that is there and cannot be read.
    pub async fn open(
        directory: &StateDirectory,
        settings: BackgroundSettings,
        may_delete: Arc<dyn MayDelete>,
        first_scrub: Scrub,
    ) -> Result<Self, StateFileError> {
        Ok(Background {
            variables: StateFile::open(directory, "worker_variables", Variables::default()).await?,
            walked: StateFile::open(directory, "blocks_walked", Walked::default()).await?,
            scrub: StateFile::open(directory, "scrub", first_scrub).await?,
            scrub_told: Notify::new(),
            settings,
            may_delete,
        })
    }

    /// Has every block looked at, as after a change of the layout: those that are missing are fetched.
    ///
    /// # Errors
    /// [`StateFileError`].
    pub async fn look_at_all_blocks(&self) -> Result<(), StateFileError> {
        self.walked.change(|walked| *walked = Walked::default()).await
    }
}
