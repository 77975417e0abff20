//! Since when this node has owned each slice of the hash space without a break. Pure.
//!
//! Tombstones are collected by all owners together. An owner therefore knows every deletion of its own time, and none that was made
//! and collected before it: what it kept from an earlier time as an owner may be what the others have deleted and forgotten.
//!
//! Must stay true: a node that is given a slice sets aside what it has there before it acknowledges the layout. Until then nobody
//! counts on what it has: the older owners answer reads, and are asked for all rows after every node has acknowledged.

use std::collections::BTreeMap;

use garage_rpc::layout::{ClusterLayout, LayoutVersion};
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Placement};

use super::plan::{first_placement, slices};
use crate::segments::KeyRange;

/// The first two bytes of a slice.
type Slice = [u8; 2];
/// In the database: a slice, then a version's number.
const RECORD_BYTES: usize = 2 + 8;

/// What the database remembers of this node's time as an owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tenures {
    /// Nothing: the database is new, or an earlier program wrote it.
    Unrecorded,
    /// For each slice the number of a layout version, of which this node was an owner, and under which it had no rows of an earlier time.
    Since(BTreeMap<Slice, u64>),
}

impl Tenures {
    /// Whether this node has owned what lives at `placement` in every layout version since its rows were known to be of its time. A
    /// version that is forgotten proves nothing.
    pub fn is_unbroken(&self, layout: &ClusterLayout, me: NodeId, placement: Placement) -> bool {
        if is_planted(Bug::LeftoversKept) {
            return !was_owner(layout, me, placement) || layout.read_nodes(placement).contains(&me);
        }
        let Tenures::Since(since) = self else {
            return layout.read_nodes(placement).contains(&me) || !was_owner(layout, me, placement);
        };
        let Some(since) = since.get(&slice_of(placement)).copied() else { return false };
        let oldest = layout.live_versions().first().map_or(0, |key| key.number);
        let owned_in = |number| layout.history().numbered(number).any(|version| owns(version, me, placement));
        (since..=oldest.max(since)).all(owned_in)
    }

    /// The slices whose rows are to be set aside: newer layout versions give them to this node, and nobody counts on it there yet.
    pub fn leftovers(&self, layout: &ClusterLayout, me: NodeId) -> Vec<KeyRange> {
        if is_planted(Bug::LeftoversKept) || layout.is_empty() {
            return Vec::new();
        }
        let acknowledged = layout.history().trackers().ack.get(me).map_or(0, |key| key.number);
        let is_leftover = |range: &KeyRange| {
            let placement = first_placement(range);
            let mut live = layout.history().live();
            let is_counted_on = layout.read_nodes(placement).contains(&me)
                || live.any(|version| version.number() <= acknowledged && owns(version, me, placement));
            let is_known = matches!(self, Tenures::Since(_)) && self.is_unbroken(layout, me, placement);
            layout.is_owner(me, placement) && !is_counted_on && !is_known
        };
        slices(layout).into_iter().filter(is_leftover).collect()
    }

    /// What is to be remembered once the leftovers are set aside.
    pub fn without_leftovers(&self, layout: &ClusterLayout, me: NodeId) -> Tenures {
        let leftovers = self.leftovers(layout, me);
        let is_settled = |range: &KeyRange| leftovers.contains(range) || self.is_unbroken(layout, me, first_placement(range));
        Tenures::of(layout, me, is_settled)
    }

    /// What is to be remembered once all rows of this node were compared with the other owners'.
    pub fn compared(layout: &ClusterLayout, me: NodeId) -> Tenures {
        Tenures::of(layout, me, |_range| true)
    }

    fn of(layout: &ClusterLayout, me: NodeId, is_settled: impl Fn(&KeyRange) -> bool) -> Tenures {
        if layout.is_empty() {
            return Tenures::Unrecorded;
        }
        let since = |range: KeyRange| {
            let placement = first_placement(&range);
            let first = layout.history().live().find(|version| owns(version, me, placement))?;
            is_settled(&range).then(|| (slice_of(placement), first.number()))
        };
        Tenures::Since(slices(layout).into_iter().filter_map(since).collect())
    }

    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let Tenures::Since(since) = self else { return None };
        let record = |(slice, number): (&Slice, &u64)| slice.iter().copied().chain(number.to_be_bytes()).collect::<Vec<u8>>();
        Some(since.iter().flat_map(record).collect())
    }

    /// `None`: it cannot be read.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Tenures> {
        let record = |record: &[u8]| {
            let (slice, number) = record.split_first_chunk::<2>()?;
            Some((*slice, u64::from_be_bytes(number.try_into().ok()?)))
        };
        Some(Tenures::Since(bytes.chunks(RECORD_BYTES).map(record).collect::<Option<_>>()?))
    }
}

fn slice_of(placement: Placement) -> Slice {
    let [first, second, ..] = *placement.as_bytes();
    [first, second]
}

fn owns(version: &LayoutVersion, me: NodeId, placement: Placement) -> bool {
    let assignment = version.assignment();
    assignment.row(placement.partition(assignment.partition_bits())).any(|node| node == me)
}

/// In a version that is retired by now, as far as anybody remembers.
fn was_owner(layout: &ClusterLayout, me: NodeId, placement: Placement) -> bool {
    layout.history().past().any(|version| owns(version, me, placement))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garage_rpc::layout::history::{LayoutHistory, OlderWrites};
    use garage_rpc::layout::{ClusterLayout, NodeRole};
    use garage_types::{NodeId, Placement, Timestamp};

    use super::Tenures;

    const PLACE: Placement = Placement::from_bytes([0; 32]);

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    /// Makes the next layout, in which exactly these nodes have a role.
    fn next(history: &mut LayoutHistory, nodes: &[u8]) {
        let now = Timestamp::from_millis(history.current_number() + 1);
        for gone in history.members().into_iter().filter(|member| !nodes.iter().any(|n| node(*n) == *member)) {
            // One that leaves already has no role any more.
            drop(history.stage_removal(now, gone));
        }
        for n in nodes {
            // A tag, so that there is something to apply.
            let tags = vec![now.as_millis().to_string()];
            history.stage_role(now, node(*n), NodeRole { zone: n.to_string(), capacity: Some(1 << 30), tags }).unwrap();
        }
        history.apply(history.current_number() + 1).unwrap();
    }

    /// Everybody acknowledges and receives, until the newest version is the only one, and moves its blocks.
    fn settle(history: &mut LayoutHistory) {
        let key = history.current().unwrap().key();
        for round in 0..4 {
            for member in history.members() {
                history.advance(member, OlderWrites::Done);
                if round == 1 {
                    history.mark_synced(member, key).unwrap();
                }
            }
        }
        for member in history.members() {
            history.mark_blocks_verified(member, key).unwrap();
        }
        history.retire_synced();
        assert_eq!(history.live().count(), 1);
    }

    fn view(history: &LayoutHistory) -> ClusterLayout {
        ClusterLayout::of(Arc::new(history.clone()))
    }

    #[test]
    fn an_owner_of_every_version_keeps_what_it_has() {
        let mut history = LayoutHistory::new(3);
        next(&mut history, &[1, 2, 3]);
        settle(&mut history);
        let tenures = Tenures::compared(&view(&history), node(1));
        for _change in 0..5 {
            next(&mut history, &[1, 2, 3]);
            assert!(tenures.leftovers(&view(&history), node(1)).is_empty());
            settle(&mut history);
        }
        assert!(tenures.is_unbroken(&view(&history), node(1), PLACE), "what it recorded five versions ago still holds");
        let again = tenures.without_leftovers(&view(&history), node(1));
        assert_eq!(again, Tenures::compared(&view(&history), node(1)));
    }

    #[test]
    fn who_is_an_owner_again_sets_aside_what_it_had_however_long_that_is_ago() {
        for versions_away in [1, 3, 30] {
            let mut history = LayoutHistory::new(3);
            next(&mut history, &[1, 2, 3]);
            settle(&mut history);
            let tenures = Tenures::compared(&view(&history), node(1));
            for _away in 0..versions_away {
                next(&mut history, &[2, 3, 4]);
                settle(&mut history);
            }
            next(&mut history, &[1, 2, 3]);
            let layout = view(&history);
            for known in [&tenures, &Tenures::Unrecorded] {
                assert_eq!(known.leftovers(&layout, node(1)).len(), 256, "{versions_away} versions");
            }
            assert!(!tenures.is_unbroken(&layout, node(1), PLACE));
            let sorted = tenures.without_leftovers(&layout, node(1));
            assert!(sorted.is_unbroken(&layout, node(1), PLACE) && sorted.leftovers(&layout, node(1)).is_empty());
        }
    }

    #[test]
    fn what_a_node_has_acknowledged_is_not_set_aside_any_more() {
        let mut history = LayoutHistory::new(3);
        next(&mut history, &[1, 2, 3]);
        settle(&mut history);
        next(&mut history, &[2, 3, 4]);
        assert_eq!(Tenures::Unrecorded.leftovers(&view(&history), node(4)).len(), 256);
        history.advance(node(4), OlderWrites::Done);
        let layout = view(&history);
        assert!(Tenures::Unrecorded.leftovers(&layout, node(4)).is_empty(), "quorums may count on its rows");
        assert!(Tenures::Unrecorded.leftovers(&layout, node(2)).is_empty(), "reads ask it");
    }

    #[test]
    fn an_owner_of_the_first_layout_keeps_what_comes_before_it_acknowledges() {
        let mut history = LayoutHistory::new(3);
        next(&mut history, &[1, 2, 3]);
        assert!(Tenures::Unrecorded.leftovers(&view(&history), node(1)).is_empty());
        assert!(Tenures::Unrecorded.without_leftovers(&view(&history), node(1)).is_unbroken(&view(&history), node(1), PLACE));
    }

    #[test]
    fn a_record_survives_its_encoding_and_a_damaged_one_is_noticed() {
        let tenures = Tenures::Since([([0, 0], 7), ([255, 128], u64::MAX)].into());
        let bytes = tenures.encode().unwrap();
        assert_eq!(Tenures::decode(&bytes), Some(tenures));
        assert_eq!(Tenures::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Tenures::Unrecorded.encode(), None);
    }
}
