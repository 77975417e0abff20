//! The scrub worker: checks every row of this node's tables against its checksum, then reads every block file and recomputes its hash. A
//! damaged row is repaired by another worker; a corrupt block is set aside by the read and queued to be fetched again.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_block::BlockError;
use garage_block::scrub::{Checked, Scrub, ScrubCommand, ScrubRefusal, Turn};
use garage_table::damage::{CheckPlace, CheckedRows};
use garage_types::{BlockHash, chain};
use garage_worker::{Status, Step, StepError, Worker};
use tokio::time::Instant;

use crate::background::ScrubStart;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::resync_queue::{Queued, Reason};
use crate::state_file::StateFileError;

/// Where every run begins.
const FIRST_BLOCK: BlockHash = BlockHash::from_bytes([0; 32]);
/// Blocks checked between two rests, and those that share their directory with the last.
const STEP_BLOCKS: usize = 16;
/// How often progress is saved.
const SAVE_PERIOD: Duration = Duration::from_secs(30);
/// How often the worker looks at the clock while it waits: it may be set.
const LOOK_PERIOD: Duration = Duration::from_secs(3600);

/// Why an operator's word on the scrub was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    #[error(transparent)]
    Refused(#[from] ScrubRefusal),
    #[error(transparent)]
    State(#[from] StateFileError),
}

impl Garage {
    /// Starts, pauses, resumes or cancels the scrub of this node.
    ///
    /// # Errors
    /// [`ScrubError`]; nothing changed.
    pub async fn command_scrub(&self, command: ScrubCommand) -> Result<(), ScrubError> {
        let (now, random) = (self.0.clock.now(), self.0.random.u64());
        let mut tried = self.0.background.scrub.get();
        tried.command(command, now, random)?;
        self.0.background.scrub.change(|scrub| scrub.command(command, now, random)).await??;
        self.0.background.scrub_told.notify_waiters();
        Ok(())
    }

    /// Progress and schedule of the scrub of this node, as last saved.
    pub fn scrub(&self) -> Scrub {
        self.0.background.scrub.get()
    }
}

/// What was checked since progress was last saved.
struct Unsaved {
    run: u64,
    checked: Checked,
    since: Instant,
}

/// How far the rows are checked in a run. Not saved: a run that a restart cuts off here begins with the rows again.
#[derive(Default)]
struct RowsChecked {
    run: u64,
    rows: u64,
    damaged: u64,
    next: Option<CheckPlace>,
    is_done: bool,
}

pub(crate) struct ScrubWorker {
    garage: Garage,
    rows: RowsChecked,
    unsaved: Option<Unsaved>,
}

impl ScrubWorker {
    pub(crate) fn new(garage: Garage) -> Self {
        ScrubWorker { garage, rows: RowsChecked::default(), unsaved: None }
    }

    fn scrub(&self) -> Scrub {
        let mut scrub = self.garage.0.background.scrub.get();
        if let Some(Unsaved { run, checked: checked @ Checked { next: Some(_), .. }, .. }) = &self.unsaved {
            // No end, so neither the time nor chance plays a part.
            scrub.checked(*run, *checked, garage_types::Timestamp::ZERO, 0);
        }
        scrub
    }

    /// Whether the rows have had their turn in this run; blocks come after them.
    fn rows_are_checked(&self, run: u64, from: BlockHash) -> bool {
        from != FIRST_BLOCK || (self.rows.run == run && self.rows.is_done)
    }

    async fn check_rows(&mut self, run: u64) -> Result<(), ModelError> {
        if self.rows.run != run {
            self.rows = RowsChecked { run, ..RowsChecked::default() };
        }
        let CheckedRows { rows, damaged, next } = self.garage.0.local.tables.check_some_rows(self.rows.next.clone()).await?;
        self.rows.rows += rows;
        self.rows.damaged += damaged;
        self.rows.is_done = next.is_none();
        self.rows.next = next;
        if self.rows.is_done {
            tracing::info!(rows = self.rows.rows, damaged = self.rows.damaged, "the scrub has checked all rows of the metadata");
        }
        Ok(())
    }

    async fn check(&mut self, run: u64, from: BlockHash) -> Result<(), ModelError> {
        let store = &self.garage.0.local.blocks.blocks;
        let page = store.page(from, STEP_BLOCKS).await?;
        self.garage.queue_stray_files(&page.hashes).await?;
        let (mut blocks, mut corrupt, mut queued) = (0, 0, Vec::new());
        for block in page.hashes {
            match store.verify(block).await {
                Ok(()) => {
                    blocks += 1;
                    self.garage.0.local.blocks.found_good(block).await;
                }
                // It went since it was listed.
                Err(BlockError::Missing { .. }) => {}
                // The page is looked at again once the directory is back.
                Err(error @ BlockError::Exchanged(_)) => return Err(error.into()),
                Err(error) => {
                    blocks += 1;
                    corrupt += u64::from(matches!(error, BlockError::Corrupt { .. }));
                    tracing::error!(%block, error = %chain(&error), "the scrub found a block that cannot be read");
                    queued.push(Queued::new(self.garage.0.clock.now(), block, Reason::Fetch));
                }
            }
        }
        self.garage.queue_blocks(queued).await?;
        let unsaved = self.unsaved.get_or_insert(Unsaved {
            run,
            checked: Checked { blocks: 0, corrupt: 0, next: Some(from) },
            since: Instant::now(),
        });
        let Checked { blocks: blocks_before, corrupt: corrupt_before, .. } = unsaved.checked;
        unsaved.checked = Checked { blocks: blocks_before + blocks, corrupt: corrupt_before + corrupt, next: page.next };
        if page.next.is_none() || corrupt > 0 || unsaved.since.elapsed() > SAVE_PERIOD {
            self.save().await?;
        }
        Ok(())
    }

    async fn save(&mut self) -> Result<(), ModelError> {
        let Some(Unsaved { run, checked, .. }) = &self.unsaved else { return Ok(()) };
        let (run, checked, now, random) = (*run, *checked, self.garage.0.clock.now(), self.garage.0.random.u64());
        let scrub = &self.garage.0.background.scrub;
        scrub.change(|scrub| scrub.checked(run, checked, now, random)).await?;
        self.unsaved = None;
        if checked.next.is_none() {
            let Scrub { blocks, corruptions, .. } = self.garage.0.background.scrub.get();
            tracing::info!(blocks, corruptions_ever = corruptions, "scrub completed");
        }
        Ok(())
    }
}

impl Worker for ScrubWorker {
    fn name(&self) -> String {
        "Block scrub".to_owned()
    }

    fn status(&self) -> Status {
        let scrub = self.scrub();
        let mut messages = Vec::new();
        if let Some(until) = scrub.paused_until(self.garage.0.clock.now()) {
            let left = until.as_millis().saturating_sub(self.garage.0.clock.now().as_millis());
            messages.push(format!("paused, goes on by itself in {} minutes", left.div_ceil(60_000)));
        }
        Status {
            tranquility: Some(self.garage.0.background.variables.get().scrub_tranquility),
            progress: scrub.percent().map(|percent| format!("{percent}%, {} blocks", scrub.blocks)),
            persistent_errors: Some(scrub.corruptions),
            messages,
            ..Status::default()
        }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move {
            let (scrub, now) = (self.scrub(), self.garage.0.clock.now());
            let automatic = self.garage.0.background.settings.scrub == ScrubStart::Automatic;
            match scrub.turn(now, automatic) {
                Turn::Check { from } => {
                    if self.unsaved.as_ref().is_some_and(|unsaved| unsaved.run != scrub.run) {
                        self.save().await?;
                    }
                    if self.rows_are_checked(scrub.run, from) {
                        self.check(scrub.run, from).await?;
                    } else {
                        self.check_rows(scrub.run).await?;
                    }
                    Ok(Step::Busy)
                }
                Turn::Begin => {
                    self.garage.command_scrub(ScrubCommand::Start).await?;
                    tracing::info!("scrub begins");
                    Ok(Step::Busy)
                }
                Turn::Wait { .. } => {
                    self.save().await?;
                    Ok(Step::Idle)
                }
            }
        }
        .boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        async move {
            let (scrub, now) = (self.scrub(), self.garage.0.clock.now());
            let automatic = self.garage.0.background.settings.scrub == ScrubStart::Automatic;
            let wait = match scrub.turn(now, automatic) {
                Turn::Wait { until: Some(until) } => {
                    Duration::from_millis(until.as_millis().saturating_sub(now.as_millis())).min(LOOK_PERIOD)
                }
                _ => LOOK_PERIOD,
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep(wait) => {}
                () = self.garage.0.background.scrub_told.notified() => {}
            }
        }
        .boxed()
    }
}
