//! Resync decisions: should this node fetch, keep, or give up a block?
//!
//! Pure: the resync worker gathers the facts, asks [`decide`] and carries the answer out under the block's lock.
//! Invariant: a block that is still referenced, here or on another owner, is never dropped by the node holding it.

use garage_types::Timestamp;

/// Whether this node has the block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisk {
    Present,
    Absent,
}

/// What the current layout version asks of this node for the block's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    Replica,
    NotReplica,
}

/// What is known of the references to the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refs {
    /// At least one live reference on this node.
    Held,
    /// None here; the other owners have not been asked yet, or one of them could not be.
    ReleasedHere,
    /// Every owner has confirmed that it has none; the grace period lasts until `until`.
    ReleasedOnEveryOwner { until: Timestamp },
}

/// What to do about the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Nothing,
    /// Get the bytes from another owner.
    Fetch,
    /// Ask all owners whether they have references.
    AskOwners,
    /// Look again at this time.
    WaitUntil(Timestamp),
    /// Delete the bytes, then the counter.
    Drop,
    /// The bytes are gone already; only the counter is left.
    ForgetCounter,
}

/// The one rule by which blocks come and go on a node.
pub fn decide(disk: OnDisk, refs: Refs, duty: Duty, now: Timestamp) -> Decision {
    match (disk, refs, duty) {
        (OnDisk::Present, Refs::Held, _) => Decision::Nothing,
        (OnDisk::Absent, Refs::Held, Duty::Replica) => Decision::Fetch,
        // The references follow their partition to other nodes; fetching would be wasted.
        (OnDisk::Absent, Refs::Held, Duty::NotReplica) => Decision::Nothing,
        // Our copy may be one of the last two: only all owners together know that nothing needs it.
        (_, Refs::ReleasedHere, _) => Decision::AskOwners,
        (_, Refs::ReleasedOnEveryOwner { until }, _) if now < until => Decision::WaitUntil(until),
        (OnDisk::Present, Refs::ReleasedOnEveryOwner { .. }, _) => Decision::Drop,
        (OnDisk::Absent, Refs::ReleasedOnEveryOwner { .. }, _) => Decision::ForgetCounter,
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use super::{Decision, Duty, OnDisk, Refs, decide};

    const GRACE_END: Timestamp = Timestamp::from_millis(600_000);
    const DISK: [OnDisk; 2] = [OnDisk::Present, OnDisk::Absent];
    const DUTIES: [Duty; 2] = [Duty::Replica, Duty::NotReplica];

    #[test]
    fn unreferenced_block_is_dropped_only_once_its_grace_period_is_over() {
        let refs = Refs::ReleasedOnEveryOwner { until: GRACE_END };
        for duty in DUTIES {
            let at = |millis| decide(OnDisk::Present, refs, duty, Timestamp::from_millis(millis));
            assert_eq!(at(599_999), Decision::WaitUntil(GRACE_END));
            assert_eq!(at(600_000), Decision::Drop);
        }
    }

    #[test]
    fn a_block_is_dropped_only_when_every_owner_released_it() {
        let late = Timestamp::from_millis(u64::MAX);
        for disk in DISK {
            for duty in DUTIES {
                assert_eq!(decide(disk, Refs::ReleasedHere, duty, late), Decision::AskOwners);
                assert_ne!(decide(disk, Refs::Held, duty, late), Decision::Drop);
            }
        }
    }

    #[test]
    fn a_missing_block_is_fetched_by_replicas_only() {
        let fetch = |duty| decide(OnDisk::Absent, Refs::Held, duty, Timestamp::ZERO);
        assert_eq!(fetch(Duty::Replica), Decision::Fetch);
        assert_eq!(fetch(Duty::NotReplica), Decision::Nothing);
        assert_eq!(decide(OnDisk::Present, Refs::Held, Duty::Replica, Timestamp::ZERO), Decision::Nothing);
    }

    #[test]
    fn the_counter_of_a_block_that_is_gone_is_forgotten_after_the_grace_period() {
        let refs = Refs::ReleasedOnEveryOwner { until: GRACE_END };
        assert_eq!(decide(OnDisk::Absent, refs, Duty::Replica, GRACE_END), Decision::ForgetCounter);
    }
}
