//! The peer list on disk, so that a node finds its cluster again without its bootstrap peers.

use std::time::Duration;

use garage_types::codec;
use garage_types::disk::{self, Access};
use garage_types::offload::offload;

use super::{Mesh, MeshError, MeshOptions};
use crate::peers::PeerList;

/// Shortest time between two saves.
const SAVE_PAUSE: Duration = Duration::from_secs(1);

/// Until a save that failed is repeated.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

enum Saved {
    /// There was no change.
    Nothing,
    Changes,
    Failed,
}

/// # Errors
/// [`MeshError`]: the list exists but cannot be read.
pub(super) async fn load(options: &MeshOptions) -> Result<PeerList, MeshError> {
    let (disk, path) = (options.disk.clone(), options.peer_list.clone());
    let content = offload(&*options.offload, move || disk::read_state(&*disk, &path)).await??;
    let Some(content) = content else { return Ok(PeerList::default()) };
    codec::decode(&content).map_err(|source| MeshError::PeerList { path: options.peer_list.clone(), source })
}

impl Mesh {
    /// Saves every change at once, unless the one before was a moment ago. Never returns.
    pub(super) async fn keep_saving(self) {
        loop {
            self.0.state.unsaved.notified().await;
            match self.save().await {
                Saved::Nothing => {}
                Saved::Changes => tokio::time::sleep(SAVE_PAUSE).await,
                Saved::Failed => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    async fn save(&self) -> Saved {
        let Some(list) = self.0.state.with(|state| state.peers.take_unsaved()) else { return Saved::Nothing };
        let (disk, path) = (self.0.options.disk.clone(), self.0.options.peer_list.clone());
        let work = move || disk::replace_atomically(&*disk, &path, &codec::encode(&list), Access::Everyone);
        if let Ok(Err(error)) = offload(&*self.0.options.offload, work).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot save the peer list");
            self.0.state.with(|state| state.peers.still_unsaved());
            // Tried again after the pause, not only at the next change.
            self.0.state.unsaved.notify_one();
            return Saved::Failed;
        }
        Saved::Changes
    }
}
