//! The background jobs on blocks: resync, several at once, and the walk that follows a change of the layout.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_rpc::layout::{LayoutError, Standing, VersionKey};
use garage_table::TableError;
use garage_worker::{Status, Step, StepError, Watch, Worker};

use crate::background::Walked;
use crate::block_walk::{BlockWalk, Walk};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::moving::layout_name;

/// How often blocks that have become due are looked for.
const RESYNC_PERIOD: Duration = Duration::from_secs(10);

/// Looks at queued blocks, beside others of its kind.
pub(crate) struct ResyncWorker {
    garage: Garage,
    /// From 1; idle while the operator wants fewer.
    number: u32,
    queue_length: u64,
    failed: u64,
}

impl ResyncWorker {
    pub(crate) fn new(garage: Garage, number: u32) -> Self {
        ResyncWorker { garage, number, queue_length: 0, failed: 0 }
    }
}

impl Worker for ResyncWorker {
    fn name(&self) -> String {
        format!("Block resync #{}", self.number)
    }

    fn status(&self) -> Status {
        let variables = self.garage.0.background.variables.get();
        if self.number > variables.resync_worker_count {
            return Status { messages: vec!["not in use: see resync-worker-count".to_owned()], ..Status::default() };
        }
        Status {
            tranquility: Some(variables.resync_tranquility),
            queue_length: Some(self.queue_length),
            persistent_errors: Some(self.failed),
            ..Status::default()
        }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move {
            if self.number > self.garage.0.background.variables.get().resync_worker_count {
                return Ok(Step::Idle);
            }
            let looked_at = self.garage.resync_due().await?;
            (self.queue_length, self.failed) = self.garage.resync_lengths().await?;
            Ok(if looked_at > 0 { Step::Busy } else { Step::Idle })
        }
        .boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        async move {
            tokio::select! {
                biased;
                () = tokio::time::sleep(RESYNC_PERIOD) => {}
                () = self.garage.0.resync.wake.notified() => {}
            }
        }
        .boxed()
    }
}

/// How often a node that has blocks to move looks whether they have all moved.
const VERIFY_PERIOD: Duration = Duration::from_secs(60);

/// Looks at every block once the live layout versions have changed, also when that was before a restart. Says so once everything has
/// moved: only then older versions, by which blocks are still found, may be forgotten.
pub(crate) struct LayoutWalker {
    garage: Garage,
    changes: Watch,
    /// The layout that the present walk is for.
    walk: Option<(String, BlockWalk)>,
}

impl LayoutWalker {
    pub(crate) fn new(garage: Garage) -> Self {
        let changes = garage.0.cluster.layout_manager().watch();
        LayoutWalker { garage, changes, walk: None }
    }
}

impl LayoutWalker {
    fn to_verify(&self) -> Option<VersionKey> {
        let cluster = &self.garage.0.cluster;
        let is_whole = cluster.layout_manager().standing().get() == Standing::Whole;
        cluster.layout().history().blocks_to_verify(cluster.node_id()).filter(|_| is_whole)
    }

    /// Says that this node has the blocks of the layout, when nothing is left to move. All blocks were looked at for it.
    async fn verify(&self) -> Result<(), ModelError> {
        let Some(key) = self.to_verify() else { return Ok(()) };
        let left = self.garage.blocks_to_move().await?;
        if left.fetch + left.hand_over > 0 {
            return Ok(());
        }
        match self.garage.0.cluster.layout_manager().mark_blocks_verified(key).await {
            // Another version came up meanwhile: all blocks are looked at for that one.
            Ok(()) | Err(LayoutError::UnknownVersion { .. }) => Ok(()),
            Err(error) => Err(TableError::Layout(error).into()),
        }
    }
}

impl Worker for LayoutWalker {
    fn name(&self) -> String {
        "Blocks after a layout change".to_owned()
    }

    fn status(&self) -> Status {
        let progress = self.walk.as_ref().map(|(_layout, walk)| walk.progress());
        Status { tranquility: Some(1), progress, ..Status::default() }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move {
            let layout = layout_name(&self.garage.0.cluster.layout());
            let walked = &self.garage.0.background.walked;
            if layout == walked.get().layout {
                self.walk = None;
                self.verify().await?;
                return Ok(Step::Idle);
            }
            // Begun for another layout, a walk begins anew.
            let walk = match &mut self.walk {
                Some((begun_for, walk)) if *begun_for == layout => walk,
                _ => &mut self.walk.insert((layout.clone(), BlockWalk::new())).1,
            };
            if walk.step(&self.garage).await? == Walk::Ended {
                tracing::info!(blocks = walk.looked_at, queued = walk.queued, "looked at every block for the new layout");
                walked.change(|walked| *walked = Walked { layout }).await?;
                self.walk = None;
            }
            Ok(Step::Busy)
        }
        .boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        async move {
            if self.to_verify().is_none() {
                return self.changes.changed().await;
            }
            tokio::select! {
                biased;
                () = self.changes.changed() => {}
                () = tokio::time::sleep(VERIFY_PERIOD) => {}
            }
        }
        .boxed()
    }
}
