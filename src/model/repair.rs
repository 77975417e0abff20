//! Repairs that an operator orders: one-off jobs that walk what this node has and put right what is not.
//!
//! Must stay true: a repair is safe beside live traffic. Nothing is released because something was not found once: what an unfinished
//! write has stored, while the row that tells of it is still on its way, is looked at again after [`SECOND_LOOK_MS`], by when
//! the write has that row or has failed. What a repair goes by is read where every acknowledged write is met ([`Garage::certain`]). Counts are
//! made and compared in one transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_block::{BlockError, Forgotten, Relocated};
use garage_table::transaction::RowTransaction;
use garage_table::{Schema, Table, TableError};
use garage_types::{BlockHash, Timestamp, VersionId};
use garage_worker::{Status, Step, StepError, Worker, WorkerId};

use crate::block_ref::{BlockRefRow, BlockRefTable, Recounted};
use crate::block_walk::{BlockWalk, Walk};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::in_use::{Listing, VersionUse};
use crate::part::{Outcome, PartEntry, PartRow, PartTable, ended_key};
use crate::upload::UploadState;
use crate::version::{Backlink, VersionContent, VersionTable, endings_of_unused};

/// After how long what seemed to belong to nobody is looked at again, before it is released. Longer than any call between nodes.
pub const SECOND_LOOK_MS: u64 = 10 * 60 * 1000;
/// Rows looked at in one step.
const STEP_ROWS: usize = 100;
/// Suspects remembered; those beyond are found by the next repair.
const SUSPECTS_MAX: usize = 100_000;

/// What can be repaired on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Blocks that are missing or superfluous on this node.
    Blocks,
    /// Versions that no object and no upload has.
    Versions,
    /// Parts whose upload has ended.
    MultipartUploads,
    /// References of versions that are deleted or were never listed.
    BlockRefs,
    /// Counts of references.
    BlockCounts,
    /// Blocks outside their primary data directory.
    Rebalance,
}

impl Repair {
    fn name(self) -> &'static str {
        match self {
            Repair::Blocks => "Repair of blocks",
            Repair::Versions => "Repair of versions",
            Repair::MultipartUploads => "Repair of multipart uploads",
            Repair::BlockRefs => "Repair of block references",
            Repair::BlockCounts => "Repair of block counts",
            Repair::Rebalance => "Rebalance of data directories",
        }
    }
}

impl Garage {
    /// Starts a repair of this node; it is followed in the list of workers.
    pub fn start_repair(&self, repair: Repair) -> WorkerId {
        let job = match repair {
            Repair::Blocks => Job::Blocks(BlockWalk::new()),
            Repair::Versions => Job::Versions(Suspicion::Gathering { after: None, suspects: BTreeMap::new() }),
            Repair::MultipartUploads => Job::Parts { after: None },
            Repair::BlockRefs => Job::References(Orphanage::Gathering { after: None, suspects: Vec::new() }),
            Repair::BlockCounts => Job::CountsOfRows { after: None },
            Repair::Rebalance => Job::Rebalance(Rebalance {
                from: BlockHash::from_bytes([0; 32]),
                failed: 0,
                stood_in: self.0.local.blocks.blocks.stood_in(),
            }),
        };
        self.workers().start(RepairWorker {
            garage: self.certain().clone(),
            repair,
            job,
            looked_at: 0,
            repaired: 0,
            message: None,
        })
    }
}

/// Versions that seemed to belong to nobody.
type Suspects = BTreeMap<VersionId, Backlink>;
type After = Option<Vec<u8>>;

enum Suspicion {
    Gathering { after: After, suspects: Suspects },
    Waiting { until: Timestamp, suspects: Suspects },
}

/// References whose version nothing lists.
type Orphans = Vec<(BlockHash, VersionId)>;

enum Orphanage {
    Gathering { after: After, suspects: Orphans },
    Waiting { until: Timestamp, suspects: Orphans },
}

enum Job {
    Blocks(BlockWalk),
    Versions(Suspicion),
    Parts {
        after: After,
    },
    References(Orphanage),
    /// The counts of all blocks with rows.
    CountsOfRows {
        after: After,
    },
    /// Then those counts that have no rows.
    CountsWithoutRows {
        after: Option<BlockHash>,
    },
    Rebalance(Rebalance),
    Ended,
}

/// How far blocks were moved to their primary data directories.
#[derive(Clone, Copy)]
struct Rebalance {
    from: BlockHash,
    failed: u64,
    /// Blocks that had been written elsewhere when it began.
    stood_in: u64,
}

struct RepairWorker {
    garage: Garage,
    repair: Repair,
    job: Job,
    looked_at: u64,
    repaired: u64,
    message: Option<String>,
}

impl RepairWorker {
    /// Some rows of a table on this node, and where to go on.
    async fn page<S: Schema>(&mut self, after: After) -> Result<(Vec<S::Row>, After), ModelError> {
        let rows = Arc::new(Mutex::new(Vec::new()));
        let found = rows.clone();
        let push = move |row| found.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        let next = self.garage.0.local.tables.scan::<S>(after, STEP_ROWS, push).await?;
        let rows = std::mem::take(&mut *rows.lock().unwrap_or_else(PoisonError::into_inner));
        self.looked_at += rows.len() as u64;
        Ok((rows, next))
    }

    /// A step of the job, and the job that follows.
    async fn work(&mut self) -> Result<(), ModelError> {
        let next = match std::mem::replace(&mut self.job, Job::Ended) {
            Job::Blocks(walk) => self.blocks(walk).await,
            Job::Versions(Suspicion::Gathering { after, suspects }) => self.gather(after, suspects).await,
            Job::Versions(Suspicion::Waiting { until, suspects }) => self.release(until, suspects).await,
            Job::Parts { after } => self.parts(after).await,
            Job::References(Orphanage::Gathering { after, suspects }) => self.references(after, suspects).await,
            Job::References(Orphanage::Waiting { until, suspects }) => self.release_orphans(until, suspects).await,
            Job::CountsOfRows { after } => self.counts_of_rows(after).await,
            Job::CountsWithoutRows { after } => self.counts_without_rows(after).await,
            Job::Rebalance(rebalance) => self.rebalance(rebalance).await,
            Job::Ended => Ok(Job::Ended),
        };
        match next {
            Ok(job) => {
                self.job = job;
                Ok(())
            }
            Err(Stopped { job, error }) => {
                self.job = job;
                Err(error)
            }
        }
    }

    async fn blocks(&mut self, mut walk: BlockWalk) -> Result<Job, Stopped> {
        let step = walk.step(&self.garage).await;
        (self.looked_at, self.repaired) = (walk.looked_at, walk.queued);
        match step {
            Ok(Walk::GoesOn) => Ok(Job::Blocks(walk)),
            Ok(Walk::Ended) => Ok(Job::Ended),
            Err(error) => Err(Stopped { job: Job::Blocks(walk), error }),
        }
    }

    async fn gather(&mut self, after: After, mut suspects: Suspects) -> Result<Job, Stopped> {
        let looked = async {
            let (rows, next) = self.page::<VersionTable>(after.clone()).await?;
            for row in rows {
                let VersionContent::Segment(segment) = row.content else { continue };
                let known = suspects.contains_key(&row.version) || suspects.len() >= SUSPECTS_MAX;
                if segment.deleted || segment.withdrawn || known {
                    continue;
                }
                if self.garage.version_use(row.version, &segment.backlink).await? == VersionUse::None {
                    suspects.insert(row.version, segment.backlink);
                }
            }
            Ok(next)
        };
        match looked.await {
            Ok(next @ Some(_)) => Ok(Job::Versions(Suspicion::Gathering { after: next, suspects })),
            Ok(None) if suspects.is_empty() => Ok(Job::Ended),
            Ok(None) => {
                self.message =
                    Some(format!("{} versions belong to nobody, it seems; looking again in 10 minutes", suspects.len()));
                let until = self.garage.0.clock.now().plus_millis(SECOND_LOOK_MS);
                Ok(Job::Versions(Suspicion::Waiting { until, suspects }))
            }
            Err(error) => Err(Stopped { job: Job::Versions(Suspicion::Gathering { after, suspects }), error }),
        }
    }

    async fn release(&mut self, until: Timestamp, mut suspects: Suspects) -> Result<Job, Stopped> {
        if self.garage.0.clock.now() < until {
            return Ok(Job::Versions(Suspicion::Waiting { until, suspects }));
        }
        self.message = None;
        for _row in 0..STEP_ROWS {
            let Some((version, backlink)) = suspects.pop_first() else { return Ok(Job::Ended) };
            let released = async {
                if self.garage.version_use(version, &backlink).await? == VersionUse::None {
                    for ending in endings_of_unused(version, self.garage.segments(version).await?) {
                        self.garage.0.versions.merge(&ending).await?;
                    }
                    self.repaired += 1;
                    tracing::info!(%version, bucket = %backlink.bucket, key = %backlink.key, "released a version that belongs to nobody");
                }
                Ok(())
            };
            if let Err(error) = released.await {
                suspects.insert(version, backlink);
                return Err(Stopped { job: Job::Versions(Suspicion::Waiting { until, suspects }), error });
            }
        }
        Ok(Job::Versions(Suspicion::Waiting { until, suspects }))
    }

    async fn parts(&mut self, after: After) -> Result<Job, Stopped> {
        let looked = async {
            let (rows, next) = self.page::<PartTable>(after.clone()).await?;
            for row in rows {
                let PartEntry::Attempt(attempt) = &row.entry else { continue };
                if !attempt.state.is_gone()
                    && let Some(outcome) = self.outcome(&row, attempt.version).await?
                {
                    self.garage.end_parts(&PartRow::ended(row.upload, row.bucket, outcome)).await?;
                    self.repaired += 1;
                }
            }
            Ok(next)
        };
        match looked.await {
            Ok(next @ Some(_)) => Ok(Job::Parts { after: next }),
            Ok(None) => Ok(Job::Ended),
            Err(error) => Err(Stopped { job: Job::Parts { after }, error }),
        }
    }

    /// How the upload of an attempt ended; `None` while it is open, or when nobody can tell.
    async fn outcome(&self, row: &PartRow, version: VersionId) -> Result<Option<Outcome>, ModelError> {
        let end = self.garage.0.parts.get(row.upload.into(), ended_key()).await?;
        if let Some(PartRow { entry: PartEntry::Ended(outcome), .. }) = end {
            return Ok(Some(outcome));
        }
        // The upload is found by the object's key, which the attempt's content names.
        let Some(Backlink { bucket, key }) = self.garage.segments(version).await?.into_iter().next().map(|first| first.backlink)
        else {
            return Ok(None);
        };
        let name = crate::multipart::UploadName { bucket, key, id: row.upload };
        Ok(self.garage.upload_row(&name).await?.and_then(|upload| match upload.state {
            UploadState::Aborted => Some(Outcome::Aborted),
            UploadState::Completed { version } => Some(Outcome::Completed(version)),
            UploadState::Simple(_) | UploadState::Multipart(_) | UploadState::Closed { .. } | UploadState::Done => None,
        }))
    }

    async fn references(&mut self, after: After, mut suspects: Orphans) -> Result<Job, Stopped> {
        let looked = async {
            let (rows, next) = self.page::<BlockRefTable>(after.clone()).await?;
            for BlockRefRow { block, version, deleted } in rows {
                if deleted {
                    continue;
                }
                match self.garage.listing(version).await? {
                    Listing::Listed => {}
                    // A deleted version is never used again.
                    Listing::Deleted => self.release_reference(block, version).await?,
                    Listing::Absent if suspects.len() < SUSPECTS_MAX => suspects.push((block, version)),
                    Listing::Absent => {}
                }
            }
            Ok(next)
        };
        match looked.await {
            Ok(next @ Some(_)) => Ok(Job::References(Orphanage::Gathering { after: next, suspects })),
            Ok(None) if suspects.is_empty() => Ok(Job::Ended),
            Ok(None) => {
                self.message =
                    Some(format!("{} references belong to nothing, it seems; looking again in 10 minutes", suspects.len()));
                let until = self.garage.0.clock.now().plus_millis(SECOND_LOOK_MS);
                Ok(Job::References(Orphanage::Waiting { until, suspects }))
            }
            Err(error) => Err(Stopped { job: Job::References(Orphanage::Gathering { after, suspects }), error }),
        }
    }

    async fn release_orphans(&mut self, until: Timestamp, mut suspects: Orphans) -> Result<Job, Stopped> {
        if self.garage.0.clock.now() < until {
            return Ok(Job::References(Orphanage::Waiting { until, suspects }));
        }
        self.message = None;
        let released = async {
            // A write that has stored a block and listed nothing yet has told of its version by now; asked before the lists are read,
            // because an upload ends only after its lists are there.
            let open = self.garage.open_versions().await?;
            for _reference in 0..STEP_ROWS {
                let Some((block, version)) = suspects.last().copied() else { break };
                if !open.contains(&version) && self.garage.listing(version).await? != Listing::Listed {
                    self.release_reference(block, version).await?;
                }
                suspects.pop();
            }
            Ok(())
        };
        match released.await {
            Ok(()) if suspects.is_empty() => Ok(Job::Ended),
            Ok(()) => Ok(Job::References(Orphanage::Waiting { until, suspects })),
            Err(error) => Err(Stopped { job: Job::References(Orphanage::Waiting { until, suspects }), error }),
        }
    }

    async fn release_reference(&mut self, block: BlockHash, version: VersionId) -> Result<(), ModelError> {
        let references = Table::<BlockRefTable>::new(self.garage.0.local.tables.clone(), self.garage.0.cluster.clone());
        references.merge(&BlockRefRow::released(block, version)).await?;
        self.repaired += 1;
        Ok(())
    }

    async fn counts_of_rows(&mut self, after: After) -> Result<Job, Stopped> {
        let looked = async {
            let (rows, next) = self.page::<BlockRefTable>(after.clone()).await?;
            let mut blocks: Vec<BlockHash> = rows.into_iter().map(|row| row.block).collect();
            blocks.dedup();
            self.repaired += self.garage.recount(blocks).await?;
            Ok(next)
        };
        match looked.await {
            Ok(next @ Some(_)) => Ok(Job::CountsOfRows { after: next }),
            Ok(None) => Ok(Job::CountsWithoutRows { after: None }),
            Err(error) => Err(Stopped { job: Job::CountsOfRows { after }, error }),
        }
    }

    async fn counts_without_rows(&mut self, after: Option<BlockHash>) -> Result<Job, Stopped> {
        let looked = async {
            let page = crate::block_walk::count_page(&self.garage, after).await?;
            let blocks: Vec<BlockHash> = page.into_iter().map(|(block, _count)| block).collect();
            let last = blocks.last().copied();
            self.repaired += self.garage.recount(blocks).await?;
            Ok(last)
        };
        match looked.await {
            Ok(last @ Some(_)) => Ok(Job::CountsWithoutRows { after: last }),
            Ok(None) => Ok(Job::Ended),
            Err(error) => Err(Stopped { job: Job::CountsWithoutRows { after }, error }),
        }
    }

    async fn rebalance(&mut self, at: Rebalance) -> Result<Job, Stopped> {
        let store = self.garage.0.local.blocks.blocks.clone();
        let stopped = |error: BlockError| Stopped { job: Job::Rebalance(at), error: error.into() };
        let page = store.page(at.from, 1).await.map_err(stopped)?;
        let mut failed = at.failed;
        for block in page.hashes {
            self.looked_at += 1;
            match store.lock(block).await.relocate().await {
                Ok(Relocated::Moved) => self.repaired += 1,
                Ok(Relocated::InPlace) | Err(BlockError::Missing { .. }) => {}
                Err(error) => {
                    failed += 1;
                    tracing::warn!(%block, error = %garage_types::chain(&error), "a block could not be moved to its primary directory");
                }
            }
        }
        match (page.next, failed) {
            (Some(from), failed) => return Ok(Job::Rebalance(Rebalance { from, failed, ..at })),
            (None, 0) => {
                if store.forget_secondaries(at.stood_in).await.map_err(stopped)? == Forgotten::None {
                    self.message =
                        Some("a data directory was not there, and others took its blocks meanwhile: rebalance again".to_owned());
                }
            }
            (None, failed) => {
                self.message = Some(format!(
                    "{failed} blocks could not be moved and stay where they are; see the log, then rebalance again"
                ));
            }
        }
        Ok(Job::Ended)
    }
}

/// A step that failed, and where to try again.
struct Stopped {
    job: Job,
    error: ModelError,
}

impl Worker for RepairWorker {
    fn name(&self) -> String {
        self.repair.name().to_owned()
    }

    fn status(&self) -> Status {
        Status {
            tranquility: Some(1),
            progress: Some(format!("{} ({})", self.looked_at, self.repaired)),
            messages: self.message.iter().cloned().collect(),
            ..Status::default()
        }
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move {
            self.work().await?;
            let waiting = match &self.job {
                Job::Versions(Suspicion::Waiting { until, .. }) | Job::References(Orphanage::Waiting { until, .. }) => {
                    self.garage.0.clock.now() < *until
                }
                _ => false,
            };
            Ok(match &self.job {
                Job::Ended => {
                    tracing::info!(
                        repair = self.repair.name(),
                        looked_at = self.looked_at,
                        repaired = self.repaired,
                        "repair ended"
                    );
                    Step::Done
                }
                _ if waiting => Step::Idle,
                _ => Step::Busy,
            })
        }
        .boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        tokio::time::sleep(Duration::from_secs(10)).boxed()
    }
}

impl Garage {
    /// Counts the references to blocks anew, and sets right the counts that are wrong. Returns how many were.
    async fn recount(&self, blocks: Vec<BlockHash>) -> Result<u64, ModelError> {
        let trees = self.0.local.block_trees;
        let recount = move |tx: &mut RowTransaction<'_, '_>| {
            let mut wrong = 0;
            for block in &blocks {
                wrong += u64::from(trees.recount(tx, block)? == Recounted::Wrong);
            }
            Ok::<u64, TableError>(wrong)
        };
        Ok(self.0.local.tables.transact(recount).await?)
    }
}
