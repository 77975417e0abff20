//! Layout versions under which no write may begin any more, while they are still live.
//!
//! Once every node that counts has acknowledged a version, none of them writes under an older, and the new owners learn what the old
//! ones have. A coordinator without a role is not waited for: one that missed the change would still write to the old owners alone,
//! behind the back of the new. So an owner that is asked what it has takes no write under an older version from then on. Those
//! asked are a read quorum, and no write quorum is without one of them.
//!
//! Must stay true: what is read for a reply, after [`ClosedVersions::close_before`], has every write that was accepted before it.

use std::sync::atomic::{AtomicU64, Ordering};

use garage_db::{Db, DbError};
use tokio::sync::Mutex;

use crate::error::TableError;

/// Lost when the node stops: one that starts again learns it from whoever asks next.
#[derive(Debug, Default)]
pub(crate) struct ClosedVersions {
    /// Writes under versions before this one are refused.
    open_from: AtomicU64,
    /// What was accepted under versions before this one is committed.
    settled: Mutex<u64>,
}

impl ClosedVersions {
    /// To be called within the transaction of a write.
    ///
    /// # Errors
    /// [`TableError::StaleLayout`].
    pub(crate) fn check(&self, caller: u64) -> Result<(), TableError> {
        let oldest = self.open_from.load(Ordering::SeqCst);
        if caller < oldest { Err(TableError::StaleLayout { caller, oldest }) } else { Ok(()) }
    }

    /// Refuses writes under versions before this one from now on, and waits for those that were accepted.
    ///
    /// # Errors
    /// The metadata engine's.
    pub(crate) async fn close_before(&self, db: &Db, version: u64) -> Result<(), DbError> {
        let mut settled = self.settled.lock().await;
        if *settled < version {
            self.open_from.fetch_max(version, Ordering::SeqCst);
            // Transactions end in their order.
            db.write::<_, DbError>(|_| Ok(())).await?;
            *settled = version;
        }
        Ok(())
    }
}
