//! Room for blocks that a write quorum has stored, and that are still on their way to slower owners.
//!
//! Must stay true: what lingers is bounded, whatever clients send; one slow owner never takes the room of all. An owner past its share
//! is only told of the reference, and fetches the block at its own pace.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use garage_rpc::error::RpcError;
use garage_types::NodeId;
use tokio::sync::Notify;

/// The part of all room that one node may have.
const SHARES: usize = 4;

/// The room of one node's uploads.
pub(crate) struct Lingering {
    bytes_max: usize,
    by_node: Mutex<BTreeMap<NodeId, usize>>,
}

/// Room for one block, until it is dropped.
pub(crate) struct Room {
    lingering: Arc<Lingering>,
    node: NodeId,
    bytes: usize,
}

impl Lingering {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Lingering { bytes_max, by_node: Mutex::default() })
    }

    /// Room for a block on its way to `node`; `None` when the node has its share, or all is taken. One block always has room.
    pub(crate) fn room(self: &Arc<Self>, node: NodeId, bytes: usize) -> Option<Room> {
        let mut by_node = self.by_node();
        let (all, own) = (by_node.values().sum::<usize>(), by_node.get(&node).copied().unwrap_or(0));
        let is_free = (own == 0 || own + bytes <= self.bytes_max / SHARES) && (all == 0 || all + bytes <= self.bytes_max);
        is_free.then(|| {
            by_node.insert(node, own + bytes);
            Room { lingering: self.clone(), node, bytes }
        })
    }

    /// Bytes taken, and bytes there are.
    pub(crate) fn used(&self) -> (usize, usize) {
        (self.by_node().values().sum(), self.bytes_max)
    }

    /// Every change under this lock is one insertion or removal.
    fn by_node(&self) -> MutexGuard<'_, BTreeMap<NodeId, usize>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut by_node = self.lingering.by_node();
        let left = by_node.get(&self.node).copied().unwrap_or(0).saturating_sub(self.bytes);
        if left == 0 {
            by_node.remove(&self.node)
        } else {
            by_node.insert(self.node, left)
        };
    }
}

/// That a write has its quorum.
#[derive(Default)]
pub(crate) struct Reached {
    reached: AtomicBool,
    told: Notify,
}

impl Reached {
    pub(crate) fn tell(&self) {
        self.reached.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    async fn wait(&self) {
        let told = self.told.notified();
        if !self.reached.load(Ordering::Acquire) {
            told.await;
        }
    }
}

/// Waits for an owner's answer; once the write has its quorum, only if there is room. `None`: there was none, and the call has ended.
pub(crate) async fn answer_in_room<T>(
    call: impl Future<Output = Result<T, RpcError>>,
    reached: &Reached,
    room: impl FnOnce() -> Option<Room>,
) -> Option<Result<T, RpcError>> {
    let mut call = std::pin::pin!(call);
    tokio::select! {
        biased;
        answer = &mut call => return Some(answer),
        () = reached.wait() => {}
    }
    let _room = room()?;
    Some(call.await)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt;
    use garage_rpc::error::RpcError;
    use garage_types::NodeId;

    use super::{Lingering, Reached, answer_in_room};

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    #[test]
    fn a_slow_node_has_its_share_and_leaves_the_others_theirs() {
        let lingering = Lingering::new(40);
        let slow: Vec<_> = std::iter::from_fn(|| lingering.room(node(1), 5)).collect();
        assert_eq!((slow.len(), lingering.used()), (2, (10, 40)));
        let others: Vec<_> = (2..9).filter_map(|n| lingering.room(node(n), 10)).collect();
        assert_eq!((others.len(), lingering.used()), (3, (40, 40)));
        drop((slow, others));
        assert_eq!(lingering.used(), (0, 40));
        assert!(lingering.room(node(1), 100).is_some(), "a block longer than all the room has it for itself");
    }

    #[tokio::test]
    async fn a_call_past_the_quorum_goes_on_while_it_has_room_and_ends_when_it_has_none() {
        let (lingering, reached) = (Lingering::new(40), Reached::default());
        let room = || lingering.room(node(1), 10);
        assert_eq!(answer_in_room(ready(Ok::<_, RpcError>(7)), &reached, room).await, Some(Ok(7)));
        let mut slow = Box::pin(answer_in_room(pending::<Result<(), RpcError>>(), &reached, room));
        assert!((&mut slow).now_or_never().is_none());
        assert_eq!(lingering.used().0, 0, "without a quorum the upload itself has the room");
        reached.tell();
        assert!((&mut slow).now_or_never().is_none());
        assert_eq!(lingering.used().0, 10);
        let next = answer_in_room(pending::<Result<(), RpcError>>(), &reached, room).now_or_never();
        assert_eq!(next, Some(None));
        drop(slow);
        assert_eq!(lingering.used().0, 0);
    }
}
