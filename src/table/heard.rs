//! Whether a commit that did not win is stored anywhere all the same: what its caller has to know before it tries again.
//!
//! Must stay true: an owner counts as having stored nothing only if it said so, or was never sent the commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use garage_rpc::error::{ErrorCode, RpcError};
use garage_worker::spawn::Spawn;
use tokio::sync::{Notify, oneshot};

use crate::wire::Verdict;

/// What came of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub verdict: Verdict,
    /// Where it was stored, when it did not win.
    pub extent: Extent,
}

/// Whether some owner has stored what was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every owner that could be reached has answered that it did not; to the others it was never sent.
    Nowhere,
    Perhaps,
}

/// How long the last answers to a commit that cannot win are waited for.
const HEARING_MAX: Duration = Duration::from_secs(1);

/// What owners answered to one commit, also after its outcome was clear.
#[derive(Default)]
pub(crate) struct Heard {
    /// Calls whose owner may have stored the rows.
    perhaps: AtomicUsize,
    waiting: AtomicUsize,
    answered: Notify,
}

/// One call of a commit.
pub(crate) struct Hearing {
    heard: Arc<Heard>,
    is_reachable: bool,
}

impl Heard {
    pub(crate) fn begin(self: &Arc<Self>, is_reachable: bool) -> Hearing {
        self.perhaps.fetch_add(1, Ordering::AcqRel);
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Hearing { heard: self.clone(), is_reachable }
    }

    /// Waits a little for the answers that nobody waited for.
    pub(crate) async fn extent(&self) -> Extent {
        let all_answered = async {
            loop {
                let answered = self.answered.notified();
                if self.waiting.load(Ordering::Acquire) == 0 {
                    return;
                }
                answered.await;
            }
        };
        // Who has not answered by then counts as having stored it.
        let _in_time = tokio::time::timeout(HEARING_MAX, all_answered).await.is_ok();
        if self.perhaps.load(Ordering::Acquire) == 0 { Extent::Nowhere } else { Extent::Perhaps }
    }
}

impl Hearing {
    /// Makes the call in a task of its own, so that its answer is heard even when the commit is decided before.
    pub(crate) async fn listen(
        self,
        spawn: &dyn Spawn,
        call: impl Future<Output = Result<Verdict, RpcError>> + Send + 'static,
    ) -> Result<Verdict, RpcError> {
        let (answer, answered) = oneshot::channel();
        let task = async move {
            let result = call.await;
            let stored_nothing = match &result {
                Ok(Verdict::Won) => false,
                Ok(Verdict::Behind(_) | Verdict::Refused(_)) => true,
                // Refused before anything was stored.
                Err(error) if matches!(error.code, ErrorCode::StaleEpoch | ErrorCode::StaleLayout) => true,
                Err(error) => error.code == ErrorCode::Unavailable && !self.is_reachable,
            };
            if stored_nothing {
                self.heard.perhaps.fetch_sub(1, Ordering::AcqRel);
            }
            self.heard.waiting.fetch_sub(1, Ordering::AcqRel);
            self.heard.answered.notify_one();
            // Nobody waits for it any more when the others have decided.
            drop(answer.send(result));
        };
        spawn.spawn("commit", Box::pin(task));
        answered.await.unwrap_or_else(|_ended| Err(RpcError::new(ErrorCode::Unavailable, "this node is shutting down")))
    }
}
