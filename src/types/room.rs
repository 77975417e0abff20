//! Whether this node's disks have room for what grows: one thing watches them, everything that stores asks here, at no cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is known of the disks. Clones share it; unless someone says otherwise there is room.
#[derive(Clone, Debug, Default)]
pub struct Room(Arc<Known>);

#[derive(Debug)]
struct Known {
    metadata_scarce: AtomicBool,
    data_free: AtomicU64,
}

impl Default for Known {
    fn default() -> Self {
        Known { metadata_scarce: AtomicBool::new(false), data_free: AtomicU64::new(u64::MAX) }
    }
}

impl Room {
    /// Whether what is left for metadata is needed for deletions.
    pub fn is_metadata_scarce(&self) -> bool {
        self.0.metadata_scarce.load(Ordering::Relaxed)
    }

    /// Bytes of blocks that the data directories would take, as last seen.
    pub fn data_free(&self) -> u64 {
        self.0.data_free.load(Ordering::Relaxed)
    }

    /// Returns what was said before.
    pub fn set_metadata_scarce(&self, scarce: bool) -> bool {
        self.0.metadata_scarce.swap(scarce, Ordering::Relaxed)
    }

    /// Returns what was said before.
    pub fn set_data_free(&self, bytes: u64) -> u64 {
        self.0.data_free.swap(bytes, Ordering::Relaxed)
    }
}
