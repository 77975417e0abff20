//! The memory for messages that this node receives and handles for others, and for the blocks that it sends them.
//!
//! Small calls and large ones have rooms of their own, and of each room every peer has a quarter at most: a peer that sends or takes
//! slowly holds up itself. What must stay true: who waits for memory holds none but of its own share; a call that may have a long reply
//! begins only when that reply has its place in the share of who asks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use garage_net::Class;
use garage_types::NodeId;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::endpoint::{Caller, Role};

/// Messages up to this length are not counted.
const UNCOUNTED_BYTES: usize = 16 << 10;
/// The part of all memory that is for calls of [`Class::Metadata`].
const METADATA_SHARE: usize = 4;
/// The part of the memory of a class that one peer has at most.
const PEERS_SHARE: usize = 4;
/// What a long reply is expected to take at least: most blocks are as long.
const REPLY_KIB: u32 = 1024;

pub(crate) struct Budget {
    metadata: Room,
    bulk: Room,
}

struct Room {
    /// In KiB, as everything here.
    free: Arc<Semaphore>,
    share_kib: u32,
    shares: Mutex<HashMap<Holder, Weak<Share>>>,
}

/// Who has a share.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    Node(NodeId),
    /// All command lines together: each has a key of its own, which it throws away.
    Clients,
}

/// What one peer may take, over all of its connections of a class.
pub(crate) struct Share {
    of_all: Arc<Semaphore>,
    own: Semaphore,
    own_kib: u32,
    /// About the longest reply of late.
    reply_kib: AtomicU32,
}

/// Memory of a call, until it is dropped.
pub(crate) struct Taken<'s> {
    share: &'s Share,
    reply: Reply,
    own: Option<SemaphorePermit<'s>>,
    of_all: Option<SemaphorePermit<'s>>,
}

/// How long the reply of a call may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    /// Not worth counting.
    Short,
    Long,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let metadata = bytes / METADATA_SHARE;
        Budget { metadata: Room::new(metadata), bulk: Room::new(bytes - metadata) }
    }

    /// The share of who calls, for as long as it is connected.
    pub(crate) fn share(&self, caller: Caller, class: Class) -> Arc<Share> {
        let holder = match caller.role {
            Role::Node | Role::Local => Holder::Node(caller.node),
            Role::Client => Holder::Clients,
        };
        match class {
            Class::Metadata => self.metadata.share(holder),
            Class::Bulk => self.bulk.share(holder),
        }
    }
}

impl Room {
    fn new(bytes: usize) -> Self {
        let kib = (bytes >> 10).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let share_kib = u32::try_from((kib / PEERS_SHARE).max(1)).unwrap_or(u32::MAX);
        Room { free: Arc::new(Semaphore::new(kib)), share_kib, shares: Mutex::default() }
    }

    fn share(&self, holder: Holder) -> Arc<Share> {
        // Every change under this lock is whole before anything can panic.
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&holder).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_holder, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            of_all: self.free.clone(),
            own: Semaphore::new(self.share_kib as usize),
            own_kib: self.share_kib,
            reply_kib: AtomicU32::new(REPLY_KIB),
        });
        shares.insert(holder, Arc::downgrade(&share));
        share
    }
}

impl Share {
    /// Memory to receive and handle a message of so many bytes.
    pub(crate) async fn take(&self, bytes: usize) -> Taken<'_> {
        // A message longer than the share waits for all of it instead of for ever.
        let kib = if bytes <= UNCOUNTED_BYTES { 0 } else { kib(bytes).min(self.own_kib) };
        let own = taken_of(&self.own, kib).await;
        Taken { share: self, reply: Reply::Short, own, of_all: taken_of(&self.of_all, kib).await }
    }

    /// Replies differ, and the next one may be as long as the longest: the expectation rises at once and falls slowly.
    fn note_reply(&self, reply_kib: u32) {
        let next = |expected: u32| Some(reply_kib.max(expected - expected / 16).max(REPLY_KIB));
        let changed = self.reply_kib.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        debug_assert!(changed.is_ok(), "there is always a next expectation");
    }
}

impl Taken<'_> {
    /// The call may have a long reply: waits until the peer has taken enough of those before. The place of a long message is enough for
    /// its reply as well, so that nobody who holds memory of all waits here.
    pub(crate) async fn expect_long_reply(&mut self) {
        self.reply = Reply::Long;
        if self.own.is_none() {
            self.own = taken_of(&self.share.own, self.share.reply_kib.load(Ordering::Relaxed).min(self.share.own_kib)).await;
        }
    }

    /// The message is gone, and a reply of so many bytes has taken its place. Others no longer wait for any of it.
    pub(crate) fn for_reply(mut self, bytes: usize) -> Self {
        self.of_all = None;
        if self.reply == Reply::Short {
            self.own = None;
            return self;
        }
        let wanted = kib(bytes);
        self.share.note_reply(wanted);
        let Some(own) = &mut self.own else { return self };
        let had = own.num_permits();
        if let Some(spare) = had.checked_sub(wanted as usize) {
            drop(own.split(spare));
        } else if let Ok(more) = self.share.own.try_acquire_many(wanted - had as u32) {
            // Where that is not free, the reply is there all the same, and nothing is gained by waiting.
            own.merge(more);
        }
        self
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes >> 10).unwrap_or(u32::MAX)
}

async fn taken_of(semaphore: &Semaphore, kib: u32) -> Option<SemaphorePermit<'_>> {
    if kib == 0 {
        return None;
    }
    Some(semaphore.acquire_many(kib).await.expect("the semaphore is never closed"))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use garage_net::Class;
    use garage_types::NodeId;

    use super::{Budget, Share, Taken};
    use crate::endpoint::{Caller, Role};

    const MIB: usize = 1 << 20;

    fn node(number: u8) -> Caller {
        Caller { node: NodeId::from_bytes([number; 32]), role: Role::Node }
    }

    /// As many messages as fit without waiting.
    fn fill(share: &Share, bytes: usize) -> Vec<Taken<'_>> {
        std::iter::from_fn(|| share.take(bytes).now_or_never()).collect()
    }

    /// As many calls with long replies as fit without waiting.
    fn ask(share: &Share) -> Vec<Taken<'_>> {
        let asked = || {
            let mut taken = share.take(100).now_or_never()?;
            taken.expect_long_reply().now_or_never()?;
            Some(taken)
        };
        std::iter::from_fn(asked).collect()
    }

    #[test]
    fn a_peer_that_sends_slowly_holds_up_itself_only_and_blocks_no_small_calls() {
        let budget = Budget::new(64 * MIB);
        let (slow, again) = (budget.share(node(1), Class::Bulk), budget.share(node(1), Class::Bulk));
        let taken = fill(&slow, 2 * MIB);
        assert_eq!(taken.len(), 6, "a quarter of what is for blocks");
        assert!(again.take(2 * MIB).now_or_never().is_none(), "another connection is the same peer");
        let others: Vec<_> = (2..5).map(|number| budget.share(node(number), Class::Bulk)).collect();
        let of_others: Vec<_> = others.iter().flat_map(|share| fill(share, 2 * MIB)).collect();
        assert_eq!(of_others.len(), 18);
        assert!(budget.share(node(5), Class::Bulk).take(MIB).now_or_never().is_none(), "all of it is taken");
        let small = budget.share(node(1), Class::Metadata);
        assert!(small.take(MIB).now_or_never().is_some());
        drop((taken, of_others));
        assert!(budget.share(node(5), Class::Bulk).take(200 * MIB).now_or_never().is_some(), "the longest fits alone");
    }

    #[test]
    fn replies_that_a_peer_does_not_take_fill_its_own_share() {
        let budget = Budget::new(64 * MIB);
        let (slow, other) = (budget.share(node(1), Class::Bulk), budget.share(node(2), Class::Bulk));
        let sending: Vec<_> = ask(&slow).into_iter().map(|taken| taken.for_reply(MIB)).collect();
        assert_eq!(sending.len(), 12);
        assert!(slow.take(100).now_or_never().is_some(), "a ping is never held up");
        assert_eq!(fill(&other, 2 * MIB).len(), 6, "what is sent to one is not taken from others");
        drop(sending);
        let first = ask(&slow).pop().map(|taken| taken.for_reply(4 * MIB));
        assert_eq!(ask(&slow).len(), 2, "more replies of four MiB are expected");
        drop(first);
        let short: Vec<_> = ask(&slow).into_iter().map(|taken| taken.for_reply(0)).collect();
        assert_eq!((short.len(), ask(&slow).len()), (3, 3), "a short reply gives back what was kept for it");
    }

    #[test]
    fn a_share_ends_with_its_last_connection_and_clients_have_one_together() {
        let budget = Budget::new(64 * MIB);
        let client = |number| Caller { role: Role::Client, ..node(number) };
        let one = budget.share(client(1), Class::Metadata);
        let taken = fill(&one, 2 * MIB);
        assert!(budget.share(client(2), Class::Metadata).take(MIB).now_or_never().is_none());
        drop(taken);
        drop(one);
        let _node = budget.share(node(1), Class::Metadata);
        assert_eq!(budget.metadata.shares.lock().unwrap().len(), 1);
    }
}
