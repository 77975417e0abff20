//! Counting anew what buckets hold on this node, where the counters may be wrong.
//!
//! Counters change with the rows that they count, in one transaction. Only where a damaged row was replaced, and nobody knows any more
//! what it was, they keep what they had of it. Then all rows are counted.
//!
//! Must stay true: the counters stay right while rows change beside the count. So rows and counters are read in one snapshot, and what
//! these differ by is added to the counters as they are by then.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_db::Direction;
use garage_table::TableError;
use garage_table::store::LocalRows;
use garage_table::transaction::RowTransaction;
use garage_types::BucketId;
use garage_worker::{Status, Step, StepError, Worker};

use crate::counters::{BucketCounters, Counts, unseal};
use crate::error::ModelError;
use crate::garage::Garage;
use crate::object::ObjectTable;
use crate::part::PartTable;
use crate::upload::UploadTable;

/// How often it is looked whether the counters are in doubt: one read of one key. While they are, no bucket is found empty here.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

/// What the counters of buckets differ by from the rows.
type Differences = BTreeMap<BucketId, Counts>;

fn differences(rows: &LocalRows<'_>, counters: BucketCounters) -> Result<Differences, TableError> {
    let mut differences = Differences::new();
    let mut add = |bucket: BucketId, counts: Counts| {
        let sum = differences.entry(bucket).or_default();
        *sum = sum.plus(&counts);
    };
    rows.each::<ObjectTable>(&mut |row| add(row.bucket, row.counts()))?;
    rows.each::<UploadTable>(&mut |row| add(row.bucket, row.counts()))?;
    rows.each::<PartTable>(&mut |row| add(row.bucket, row.counts()))?;
    rows.snapshot().range(counters.0, (Bound::Unbounded, Bound::Unbounded), Direction::Forward, &mut |key, counted| {
        if let Ok(bucket) = <[u8; 32]>::try_from(key) {
            // What cannot be read counts as nothing, which it is once it is added to.
            let counted = unseal(key, counted).unwrap_or_default();
            add(BucketId::from_bytes(bucket), Counts::default().minus(&counted));
        }
        ControlFlow::Continue(())
    })?;
    differences.retain(|_bucket, counts| *counts != Counts::default());
    Ok(differences)
}

impl Garage {
    /// Counts all objects, uploads and parts of this node anew if the counters are in doubt. Returns how many buckets had wrong ones.
    ///
    /// # Errors
    /// [`ModelError::Table`], of them [`TableError::DamagedRow`] while a row cannot be read: the counters stay in doubt then.
    pub async fn settle_counters(&self) -> Result<usize, ModelError> {
        let (tables, counters) = (&self.0.local.tables, self.0.local.counters);
        let Some(doubt) = tables.db().read_at_once(move |tx| counters.doubted(tx)).await.map_err(TableError::Db)? else {
            return Ok(0);
        };
        let found = tables.read_rows(move |rows| differences(rows, counters)).await?;
        let wrong = found.len();
        let correct = move |tx: &mut RowTransaction<'_, '_>| {
            for (bucket, difference) in &found {
                counters.add(tx, bucket, difference)?;
            }
            Ok::<_, TableError>(counters.trust(tx, &doubt)?)
        };
        tables.transact(correct).await?;
        tracing::info!(corrected = wrong, "the counters of all buckets were worked out anew, since a damaged row was replaced");
        Ok(wrong)
    }
}

/// Sets right counters that are in doubt.
pub(crate) struct CounterWorker(pub Garage);

impl Worker for CounterWorker {
    fn name(&self) -> String {
        "Bucket counters".to_owned()
    }

    fn status(&self) -> Status {
        Status::default()
    }

    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>> {
        async move {
            self.0.settle_counters().await?;
            Ok(Step::Idle)
        }
        .boxed()
    }

    fn wait(&mut self) -> BoxFuture<'_, ()> {
        tokio::time::sleep(LOOK_PERIOD).boxed()
    }
}
