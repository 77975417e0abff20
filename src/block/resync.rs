//! Resync decisions: should this node fetch, keep, hand over, or give up a block?
//!
//! Pure: the resync workers gather the facts, ask [`decide`] and, where owners were asked, [`judge`], and carry the answer out under the
//! block's lock. Invariant: a block that is still referenced, here or on another owner, is never dropped by a node before every
//! owner that needs it has it; and nothing is dropped on the word of some owners while another is silent.

use garage_types::Timestamp;

/// Whether this node has the block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisk {
    Present,
    /// There is a file, and the disk does not give back what it holds. It stays until another copy takes its place: the disk may have
    /// a better day, and it may be the last.
    Unreadable,
    Absent,
}

/// What the live layout versions ask of this node for the block's partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    Replica,
    NotReplica,
}

/// The references to the block on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refs {
    /// At least one live one.
    Held,
    /// None; the grace period after the last lasts until `until`.
    Released { until: Timestamp },
}

impl Refs {
    /// Until when nothing that nobody refers to is dropped; `None` while there are references.
    pub fn released_until(self) -> Option<Timestamp> {
        match self {
            Refs::Held => None,
            Refs::Released { until } => Some(until),
        }
    }
}

/// What to do about the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Nothing,
    /// Get the bytes from another node.
    Fetch,
    /// Ask all owners whether they need it; then [`judge`].
    AskOwners,
    /// Look again at this time.
    WaitUntil(Timestamp),
    /// There are no bytes here, only a counter that says nothing any more.
    ForgetCounter,
}

/// What this node can decide on its own.
pub fn decide(disk: OnDisk, refs: Refs, duty: Duty, now: Timestamp) -> Decision {
    match (disk, refs, duty) {
        (OnDisk::Present, Refs::Held, Duty::Replica) => Decision::Nothing,
        // Bytes that cannot be read are no copy.
        (OnDisk::Absent | OnDisk::Unreadable, Refs::Held, Duty::Replica) => Decision::Fetch,
        // The references follow their partition to other nodes; fetching would be wasted.
        (OnDisk::Absent, Refs::Held, Duty::NotReplica) => Decision::Nothing,
        // It belongs to others now, who may not have it yet. References that went from here may only have followed their partition.
        (OnDisk::Present | OnDisk::Unreadable, _, Duty::NotReplica) => Decision::AskOwners,
        (_, Refs::Released { until }, _) if now < until => Decision::WaitUntil(until),
        // Our copy may be one of the last two: only all owners together know that nothing needs it.
        (OnDisk::Present | OnDisk::Unreadable, Refs::Released { .. }, _) => Decision::AskOwners,
        (OnDisk::Absent, Refs::Released { .. }, _) => Decision::ForgetCounter,
    }
}

/// What an owner says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It holds references and has no bytes, or none that its disk gives back.
    Needed,
    /// It holds references and has the bytes: it has read them, if the question is that of a node that is no owner.
    HasIt,
    /// It holds no reference, and has not for this long by its own clock.
    NotNeeded {
        released_for_ms: u64,
    },
    /// It does not know what it should hold, its database being incomplete or its layout another one; or whether it can read it.
    CannotSay,
    Unreachable,
}

/// What follows from the owners' answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing needs it, and has not for `released_for_ms`: it goes once that is the grace period.
    Released { released_for_ms: u64 },
    /// Every owner needs and has it, and this node is none of them: it goes.
    HandedOver,
    /// Those owners who answered [`Answer::Needed`] get it from us.
    Push,
    /// Not every owner answered, or they disagree: it stays.
    Keep,
}

/// What to do with a block present here, from the answers of all owners of all live layout versions but this node.
///
/// `held_here`: this node itself holds references.
pub fn judge(duty: Duty, held_here: bool, answers: &[Answer]) -> Judgement {
    let is_referenced = held_here || answers.iter().any(|answer| matches!(answer, Answer::Needed | Answer::HasIt));
    let is_certain = !answers.iter().any(|answer| matches!(answer, Answer::CannotSay | Answer::Unreachable));
    match duty {
        // An owner that needs it and an owner that has it find each other by themselves.
        Duty::Replica if is_referenced || !is_certain => Judgement::Keep,
        Duty::NotReplica if answers.contains(&Answer::Needed) => Judgement::Push,
        // Without a layout there are no owners, and nothing is known.
        Duty::NotReplica if !is_certain || answers.is_empty() => Judgement::Keep,
        Duty::NotReplica if answers.iter().all(|answer| *answer == Answer::HasIt) => Judgement::HandedOver,
        // Some owners do not know of the references yet.
        Duty::NotReplica if is_referenced => Judgement::Keep,
        Duty::Replica | Duty::NotReplica => {
            let times = answers.iter().map(|answer| match answer {
                Answer::NotNeeded { released_for_ms } => *released_for_ms,
                Answer::Needed | Answer::HasIt | Answer::CannotSay | Answer::Unreachable => 0,
            });
            Judgement::Released { released_for_ms: times.min().unwrap_or(u64::MAX) }
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use super::{Answer, Decision, Duty, Judgement, OnDisk, Refs, decide, judge};

    const GRACE_END: Timestamp = Timestamp::from_millis(600_000);
    const DUTIES: [Duty; 2] = [Duty::Replica, Duty::NotReplica];
    const NOT_NEEDED: Answer = Answer::NotNeeded { released_for_ms: 7 };
    const ANSWERS: [Answer; 5] = [Answer::Needed, Answer::HasIt, NOT_NEEDED, Answer::CannotSay, Answer::Unreachable];

    #[test]
    fn owners_are_asked_about_an_unreferenced_block_only_once_its_grace_period_is_over() {
        let refs = Refs::Released { until: GRACE_END };
        let at = |duty, millis| decide(OnDisk::Present, refs, duty, Timestamp::from_millis(millis));
        assert_eq!(at(Duty::Replica, 599_999), Decision::WaitUntil(GRACE_END));
        assert_eq!(
            at(Duty::NotReplica, 599_999),
            Decision::AskOwners,
            "the owners may have the references now, and need the block"
        );
        for duty in DUTIES {
            assert_eq!(at(duty, 600_000), Decision::AskOwners);
            assert_eq!(decide(OnDisk::Absent, refs, duty, GRACE_END), Decision::ForgetCounter);
        }
    }

    #[test]
    fn a_missing_block_is_fetched_by_replicas_only() {
        let fetch = |duty| decide(OnDisk::Absent, Refs::Held, duty, Timestamp::ZERO);
        assert_eq!(fetch(Duty::Replica), Decision::Fetch);
        assert_eq!(fetch(Duty::NotReplica), Decision::Nothing);
        assert_eq!(decide(OnDisk::Unreadable, Refs::Held, Duty::Replica, Timestamp::ZERO), Decision::Fetch, "it is no copy");
        assert_eq!(decide(OnDisk::Present, Refs::Held, Duty::Replica, Timestamp::ZERO), Decision::Nothing);
        assert_eq!(decide(OnDisk::Present, Refs::Held, Duty::NotReplica, Timestamp::ZERO), Decision::AskOwners);
    }

    #[test]
    fn a_block_stays_while_any_owner_is_silent_or_holds_a_reference() {
        for first in ANSWERS {
            for second in ANSWERS {
                for duty in DUTIES {
                    for held_here in [false, true] {
                        let judgement = judge(duty, held_here, &[first, second]);
                        let both = [first, second];
                        if matches!(judgement, Judgement::Released { .. }) {
                            assert!(!held_here && both == [NOT_NEEDED; 2], "{both:?} as {duty:?}");
                        }
                        if judgement == Judgement::HandedOver {
                            assert!(duty == Duty::NotReplica && both == [Answer::HasIt; 2], "{both:?} as {duty:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn who_is_no_owner_any_more_gives_the_block_to_those_who_need_it_then_lets_go() {
        let judged = |answers: &[Answer]| judge(Duty::NotReplica, false, answers);
        assert_eq!(judged(&[Answer::HasIt, Answer::Needed, Answer::Unreachable]), Judgement::Push);
        assert_eq!(judged(&[Answer::HasIt, Answer::HasIt, Answer::Unreachable]), Judgement::Keep);
        assert_eq!(judged(&[Answer::HasIt, Answer::HasIt, NOT_NEEDED]), Judgement::Keep, "the third does not know yet");
        assert_eq!(judged(&[Answer::HasIt; 3]), Judgement::HandedOver);
        assert_eq!(judged(&[NOT_NEEDED; 3]), Judgement::Released { released_for_ms: 7 });
        assert_eq!(judged(&[]), Judgement::Keep, "no layout");
    }

    #[test]
    fn the_owner_who_released_it_last_decides_how_long_it_stays() {
        let since = |released_for_ms| Answer::NotNeeded { released_for_ms };
        assert_eq!(judge(Duty::Replica, false, &[since(9), since(4)]), Judgement::Released { released_for_ms: 4 });
        assert_eq!(judge(Duty::Replica, false, &[]), Judgement::Released { released_for_ms: u64::MAX }, "the only owner");
    }
}
