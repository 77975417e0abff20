//! Whether the writer waits a moment for more closures before it begins the next group.
//!
//! Clients that one commit answers come back together shortly after it. If the writer had begun at once with what others asked for
//! meanwhile, the two halves would take turns, and each would wait for two syncs of the disk; a short wait joins them.
//!
//! What must stay true: a client alone never waits, nor does anybody once waiting has turned out to be of no use.

use std::time::Duration;

/// No client notices that much more, however slow the disk.
const WITHIN_MAX: Duration = Duration::from_millis(10);

/// Groups after which waiting is tried again where it was of no use.
const PASSED_OVER_MAX: u32 = 63;

/// What is worth waiting for after a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Awaited {
    pub(crate) members: usize,
    /// Since the commit ended.
    pub(crate) within: Duration,
}

/// What the last commits say of the next.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    awaited: Option<Awaited>,
    /// Groups that still begin at once.
    passed_over: u32,
    /// Groups that begin at once when waiting is of no use the next time.
    patience_lost: u32,
}

impl Gathering {
    /// A commit that took `took` answered `answered` closures; `queued` others came meanwhile.
    pub(crate) fn committed(&mut self, answered: usize, queued: usize, took: Duration) {
        self.passed_over = self.passed_over.saturating_sub(1);
        let awaited = Awaited { members: answered + queued, within: (took / 2).min(WITHIN_MAX) };
        self.awaited = (self.passed_over == 0).then_some(awaited);
    }

    /// What the next group should wait for.
    pub(crate) fn awaited(&self) -> Option<Awaited> {
        self.awaited
    }

    /// `gained` closures came while the writer waited for `awaited`.
    pub(crate) fn waited(&mut self, awaited: Awaited, gained: usize) {
        if gained * 4 >= awaited.members {
            self.patience_lost = 0;
        } else {
            self.patience_lost = (self.patience_lost * 2 + 1).min(PASSED_OVER_MAX);
            self.passed_over = self.patience_lost + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Awaited, Gathering, PASSED_OVER_MAX, WITHIN_MAX};

    const SYNC: Duration = Duration::from_millis(4);

    #[test]
    fn those_answered_and_those_who_came_meanwhile_are_awaited_for_half_a_commit() {
        let mut gathering = Gathering::default();
        assert_eq!(gathering.awaited(), None);
        gathering.committed(8, 7, SYNC);
        assert_eq!(gathering.awaited(), Some(Awaited { members: 15, within: SYNC / 2 }));
        gathering.committed(1, 0, Duration::from_secs(3));
        assert_eq!(gathering.awaited(), Some(Awaited { members: 1, within: WITHIN_MAX }));
    }

    #[test]
    fn waiting_that_gains_little_is_tried_ever_more_rarely_until_it_helps_again() {
        let mut gathering = Gathering::default();
        let mut waits = Vec::new();
        for group in 0..400_u32 {
            gathering.committed(4, 4, SYNC);
            if let Some(awaited) = gathering.awaited() {
                waits.push(group);
                gathering.waited(awaited, 1);
            }
        }
        let between: Vec<u32> = waits.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(between[..6], [2, 4, 8, 16, 32, 64]);
        assert!(between[6..].iter().all(|groups| *groups == PASSED_OVER_MAX + 1));

        while gathering.awaited().is_none() {
            gathering.committed(4, 4, SYNC);
        }
        gathering.waited(Awaited { members: 8, within: SYNC }, 2);
        gathering.committed(4, 4, SYNC);
        assert!(gathering.awaited().is_some());
    }
}
