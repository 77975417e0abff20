//! Moving on without nodes that will not come back.
//!
//! A version stays live until every member has acknowledged a later one, has its metadata, and reads there. A node that is gone does
//! none of it. What must stay true: nobody is declared to have metadata that he had to receive, unless the operator accepts the loss;
//! and it takes a node that is there to retire a version. While everybody is there, nothing is skipped: what the nodes have yet to
//! receive would be looked for where it is not.

use std::collections::BTreeSet;

use garage_types::NodeId;

use super::LayoutHistory;
use crate::layout::error::LayoutError;
use crate::layout::version::VersionKey;

/// Whether an operator accepts that metadata which only dead nodes had is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MissingData {
    Refuse,
    Allow,
}

/// The nodes whose trackers an operator's skip raised.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Skipped {
    pub ack: Vec<NodeId>,
    pub sync: Vec<NodeId>,
    pub sync_ack: Vec<NodeId>,
}

impl Skipped {
    /// Whether the skip changed nothing.
    pub fn is_empty(&self) -> bool {
        self.ack.is_empty() && self.sync.is_empty() && self.sync_ack.is_empty()
    }
}

impl LayoutHistory {
    /// Raises trackers on behalf of nodes that will not do it themselves. Of `dead` nodes: `ack` and `sync_ack`, because they neither
    /// write nor read, and `sync` where they have nothing to receive. When missing data are allowed: `sync` of all nodes, but only once
    /// all who are there have acknowledged the version. Before, one of them may still write where nobody would read any more.
    ///
    /// # Errors
    /// [`LayoutError::NothingToSkip`], [`LayoutError::SkipOutOfRange`], [`LayoutError::Conflict`]; [`LayoutError::NobodyIsDead`]
    /// unless a member of a live version is.
    pub fn skip_dead_nodes(
        &mut self,
        number: u64,
        dead: &BTreeSet<NodeId>,
        missing: MissingData,
    ) -> Result<Skipped, LayoutError> {
        let key = self.version_to_skip_to(number)?;
        let members = self.members();
        if members.is_disjoint(dead) {
            return Err(LayoutError::NobodyIsDead);
        }
        let storing: BTreeSet<NodeId> =
            self.versions.get(&key).map(|version| version.storage_nodes().collect()).unwrap_or_default();
        let somebody_is_there = members.iter().any(|node| !dead.contains(node));
        let mut skipped = Skipped::default();
        for node in members.iter().filter(|node| dead.contains(node)) {
            if self.trackers.ack.raise(*node, key) {
                skipped.ack.push(*node);
            }
        }
        let is_acknowledged = members.iter().all(|node| self.trackers.ack.get(*node) >= Some(key));
        let sync_of_all = missing == MissingData::Allow && is_acknowledged;
        for node in members {
            let is_dead = dead.contains(&node);
            let receives_nothing = is_dead && !storing.contains(&node);
            if (sync_of_all || receives_nothing) && self.trackers.sync.raise(node, key) {
                skipped.sync.push(node);
            }
            // Those who are there raise theirs when they know of everybody's `sync`: only then is a version retired.
            if is_dead && somebody_is_there && self.trackers.sync_ack.raise(node, key) {
                skipped.sync_ack.push(node);
            }
        }
        Ok(skipped)
    }

    fn version_to_skip_to(&self, number: u64) -> Result<VersionKey, LayoutError> {
        let (oldest, current) = (self.live().next().map_or(0, |version| version.number()), self.current_number());
        if self.live().nth(1).is_none() {
            return Err(LayoutError::NothingToSkip);
        }
        if number > self.ceiling() {
            return Err(LayoutError::Conflict { number });
        }
        let found = self.live_entries().map(|(key, _)| *key).find(|key| key.number == number && number > oldest);
        found.ok_or(LayoutError::SkipOutOfRange { given: number, oldest, current })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use garage_types::{NodeId, Timestamp};

    use super::{MissingData, Skipped};
    use crate::layout::error::LayoutError;
    use crate::layout::history::{LayoutHistory, OlderWrites};
    use crate::layout::version::NodeRole;

    const NOW: Timestamp = Timestamp::from_millis(1000);

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    fn stage(history: &mut LayoutHistory, n: u8) {
        history.stage_role(NOW, node(n), NodeRole { zone: n.to_string(), capacity: Some(1 << 20), tags: vec![] }).unwrap();
    }

    /// Nodes 1 and 2 in version 1; node 3 as well in version 2.
    fn growing() -> LayoutHistory {
        let mut history = LayoutHistory::new(1);
        [1, 2].into_iter().for_each(|n| stage(&mut history, n));
        history.apply(1).unwrap();
        stage(&mut history, 3);
        history.apply(2).unwrap();
        history
    }

    fn numbers(history: &LayoutHistory) -> Vec<u64> {
        history.live().map(|version| version.number()).collect()
    }

    fn advance(history: &mut LayoutHistory, nodes: &[u8]) {
        // Twice: what the last of them did lets the first go on.
        for n in nodes.iter().chain(nodes) {
            history.advance(node(*n), OlderWrites::Done);
        }
    }

    #[test]
    fn there_must_be_something_to_skip() {
        let mut history = LayoutHistory::new(1);
        stage(&mut history, 1);
        history.apply(1).unwrap();
        assert!(matches!(history.skip_dead_nodes(1, &BTreeSet::new(), MissingData::Allow), Err(LayoutError::NothingToSkip)));
        for given in [1, 3] {
            let refused = growing().skip_dead_nodes(given, &BTreeSet::from([node(2)]), MissingData::Refuse);
            assert!(matches!(refused, Err(LayoutError::SkipOutOfRange { oldest: 1, current: 2, .. })), "{given}");
        }
    }

    #[test]
    fn a_move_whose_nodes_are_all_there_is_not_cut_short() {
        let mut history = growing();
        advance(&mut history, &[1, 2, 3]);
        let before = history.clone();
        for (dead, missing) in [(None, MissingData::Allow), (None, MissingData::Refuse), (Some(node(9)), MissingData::Allow)] {
            let refused = history.skip_dead_nodes(2, &dead.into_iter().collect(), missing);
            assert!(matches!(refused, Err(LayoutError::NobodyIsDead)), "{dead:?} {missing:?}");
        }
        assert_eq!(history, before, "they have yet to receive what they must hold in version 2");
    }

    #[test]
    fn a_dead_node_that_has_data_to_receive_is_not_said_to_have_them_unless_the_loss_is_accepted() {
        let (mut history, dead) = (growing(), BTreeSet::from([node(2)]));
        let skipped = history.skip_dead_nodes(2, &dead, MissingData::Refuse).unwrap();
        assert_eq!(skipped, Skipped { ack: vec![node(2)], sync: vec![], sync_ack: vec![node(2)] });
        assert!(history.skip_dead_nodes(2, &dead, MissingData::Refuse).unwrap().is_empty());
        advance(&mut history, &[1, 3]);
        let two = history.version_to_sync(node(1)).expect("all others have acknowledged");
        [1, 3].into_iter().for_each(|n| history.mark_synced(node(n), two).unwrap());
        advance(&mut history, &[1, 3]);
        assert_eq!((numbers(&history), history.min_sync()), (vec![1, 2], 0));
        let skipped = history.skip_dead_nodes(2, &dead, MissingData::Allow).unwrap();
        assert_eq!(skipped, Skipped { sync: vec![node(2)], ..Skipped::default() });
        advance(&mut history, &[1, 3]);
        assert_eq!(numbers(&history), [2]);
    }

    #[test]
    fn a_dead_node_that_was_removed_holds_nothing_up_after_the_skip() {
        let mut history = growing();
        history.stage_removal(NOW, node(2)).unwrap();
        history.apply(3).unwrap();
        let skipped = history.skip_dead_nodes(3, &BTreeSet::from([node(2)]), MissingData::Refuse).unwrap();
        assert_eq!(skipped, Skipped { ack: vec![node(2)], sync: vec![node(2)], sync_ack: vec![node(2)] });
        advance(&mut history, &[1, 3]);
        assert_eq!(numbers(&history), [1, 2, 3], "the others have yet to receive what they must hold");
        let three = history.version_to_sync(node(1)).unwrap();
        [1, 3].into_iter().for_each(|n| history.mark_synced(node(n), three).unwrap());
        advance(&mut history, &[1, 3]);
        assert_eq!(numbers(&history), [3]);
    }

    #[test]
    fn nothing_is_retired_when_nobody_is_there() {
        let mut history = growing();
        let everybody = history.members();
        let skipped = history.skip_dead_nodes(2, &everybody, MissingData::Refuse).unwrap();
        assert_eq!((skipped.ack.len(), skipped.sync_ack.len()), (3, 0));
        history.advance(node(9), OlderWrites::Done);
        assert_eq!(numbers(&history), [1, 2]);
    }

    #[test]
    fn a_skip_over_missing_data_frees_living_nodes_as_well_once_they_write_to_the_new_owners() {
        let (mut history, dead) = (growing(), BTreeSet::from([node(2)]));
        let skipped = history.skip_dead_nodes(2, &dead, MissingData::Allow).unwrap();
        assert_eq!(skipped, Skipped { ack: vec![node(2)], sync: vec![], sync_ack: vec![node(2)] });
        advance(&mut history, &[1, 3]);
        let skipped = history.skip_dead_nodes(2, &dead, MissingData::Allow).unwrap();
        assert_eq!((skipped.ack.len(), skipped.sync.len(), skipped.sync_ack.len()), (0, 3, 0));
        assert_eq!((history.min_ack(), history.min_sync()), (2, 2));
    }
}
