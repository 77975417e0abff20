use std::collections::BTreeSet;

use garage_types::codec::{Format, Unknown, decode, encode};
use garage_types::{NodeId, Timestamp};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, proptest};
use serde::{Deserialize, Serialize};

use super::{LayoutHistory, MissingData, OlderWrites, VersionStatus};
use crate::layout::error::LayoutError;
use crate::layout::trackers::Tracker;
use crate::layout::version::{LayoutParameters, NodeRole, VersionKey, ZoneRedundancy};

const NOW: Timestamp = Timestamp::from_millis(1000);

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

fn storage(zone: &str) -> NodeRole {
    NodeRole { zone: zone.to_owned(), capacity: Some(1 << 20), tags: vec![] }
}

/// A cluster in which `members` have a role each in a zone of their own, as of version 1.
fn cluster(members: &[u8]) -> LayoutHistory {
    let mut history = LayoutHistory::new(1);
    stage(&mut history, members);
    history.apply(1).unwrap();
    history
}

fn stage(history: &mut LayoutHistory, members: &[u8]) {
    for n in members {
        history.stage_role(NOW, node(*n), storage(&n.to_string())).unwrap();
    }
}

fn joined(one: &LayoutHistory, other: &LayoutHistory) -> LayoutHistory {
    let mut out = one.clone();
    out.merge(other).unwrap();
    out
}

fn numbers(history: &LayoutHistory) -> Vec<u64> {
    history.live().map(|version| version.number()).collect()
}

fn key(history: &LayoutHistory) -> VersionKey {
    history.current().unwrap().key()
}

/// Two nodes applied different changes as one version; `.0` and `.1` know one each.
fn conflict() -> (LayoutHistory, LayoutHistory) {
    let (mut one, mut other) = (cluster(&[1, 2]), cluster(&[1, 2]));
    stage(&mut one, &[3]);
    stage(&mut other, &[4]);
    one.apply(2).unwrap();
    other.apply(2).unwrap();
    (one, other)
}

#[test]
fn staged_changes_become_the_next_version_only() {
    let mut history = cluster(&[1]);
    assert!(history.staging().is_empty());
    stage(&mut history, &[2]);
    assert!(matches!(history.apply(1), Err(LayoutError::WrongVersion { given: 1, expected: 2 })));
    assert!(matches!(history.apply(3), Err(LayoutError::WrongVersion { given: 3, expected: 2 })));
    assert_eq!(history.preview().unwrap().version.roles().len(), 2);
    assert_eq!(history.current_number(), 1, "a preview changes nothing");
    let preview = history.preview().unwrap();
    assert_eq!(history.apply(2).unwrap(), preview.report);
    assert_eq!(**history.current().unwrap(), preview.version);
    assert_eq!(numbers(&history), [1, 2]);
}

#[test]
fn removal_and_gateways_leave_storage_to_the_others() {
    let mut history = cluster(&[1, 2]);
    let gateway = NodeRole { zone: "x".to_owned(), capacity: None, tags: vec!["gw".to_owned()] };
    history.stage_role(NOW, node(3), gateway).unwrap();
    history.stage_removal(NOW, node(2)).unwrap();
    history.apply(2).unwrap();
    let version = history.current().unwrap();
    assert_eq!(version.storage_nodes().collect::<Vec<_>>(), [node(1)]);
    assert_eq!(version.assignment().nodes(), [node(1)]);
    assert_eq!(history.members(), BTreeSet::from([1, 2, 3].map(node)), "node 2 is draining");
    let summary = &history.summaries()[0];
    assert_eq!((summary.status, summary.storage_nodes, summary.gateway_nodes), (VersionStatus::Current, 1, 1));
    assert_eq!(history.summaries()[1].status, VersionStatus::Draining);
}

#[test]
fn senseless_changes_are_refused() {
    let mut history = cluster(&[1]);
    let tiny = NodeRole { capacity: Some(1023), ..storage("a") };
    assert!(matches!(history.stage_role(NOW, node(2), tiny), Err(LayoutError::CapacityTooSmall { capacity: 1023, min: 1024 })));
    assert!(matches!(history.stage_role(NOW, node(2), storage("")), Err(LayoutError::ZoneWithoutName)));
    assert!(matches!(history.stage_removal(NOW, node(2)), Err(LayoutError::NoRole { .. })));
    let redundancy = |n| LayoutParameters { zone_redundancy: ZoneRedundancy::AtLeast(n) };
    for n in [0, 2] {
        let refused = history.stage_parameters(NOW, redundancy(n));
        assert!(matches!(refused, Err(LayoutError::RedundancyOutOfRange { max: 1, .. })), "{n}");
    }
    history.stage_parameters(NOW, redundancy(1)).unwrap();
    assert!(history.merge(&LayoutHistory::new(3)).is_err(), "another replication factor");
}

#[test]
fn a_revert_reaches_nodes_that_still_have_the_change() {
    let mut here = cluster(&[1]);
    stage(&mut here, &[2]);
    let mut there = here.clone();
    there.revert();
    assert!(joined(&here, &there).staging().is_empty());
    stage(&mut there, &[3]);
    assert_eq!(joined(&here, &there).staging().roles().count(), 1);
}

#[test]
fn an_old_version_is_retired_only_when_every_node_knows_that_all_have_synced() {
    let mut nodes = [cluster(&[1, 2]), cluster(&[1, 2])];
    stage(&mut nodes[0], &[3]);
    nodes[0].apply(2).unwrap();
    let two = key(&nodes[0]);
    let mut all = vec![nodes[0].clone(), nodes[1].clone(), LayoutHistory::new(1)];
    let gossip = |all: &mut Vec<LayoutHistory>| {
        let sum = all.iter().skip(1).fold(all[0].clone(), |sum, other| joined(&sum, other));
        all.fill(sum);
    };
    gossip(&mut all);
    all[0].advance(node(1), OlderWrites::Running);
    assert_eq!(all[0].trackers().ack.get(node(1)), None, "a write that ignores version 2 is running");
    assert!(matches!(all[0].mark_synced(node(1), two), Err(LayoutError::NotAcknowledged { number: 2, min_ack: 0 })));
    for (history, n) in all.iter_mut().zip(1..) {
        history.advance(node(n), OlderWrites::Done);
    }
    assert_eq!(all[0].min_ack(), 0, "it has not heard of the others");
    assert_eq!(all[0].version_to_sync(node(1)), None);
    gossip(&mut all);
    assert_eq!((all[0].min_ack(), all[0].min_sync()), (2, 0));
    assert_eq!((all[0].version_to_sync(node(1)), all[0].version_to_sync(node(9))), (Some(two), None));
    assert_eq!(all[0].read_version().unwrap().number(), 1);
    for (history, n) in all.iter_mut().zip(1..) {
        history.mark_synced(node(n), two).unwrap();
    }
    gossip(&mut all);
    assert_eq!(all[0].read_version().unwrap().number(), 2);
    all[0].advance(node(1), OlderWrites::Done);
    assert_eq!(all[0].version_to_sync(node(1)), None);
    assert_eq!(numbers(&all[0]), [1, 2], "the others may still read version 1");
    for (history, n) in all.iter_mut().zip(1..) {
        history.advance(node(n), OlderWrites::Done);
    }
    gossip(&mut all);
    all[0].advance(node(1), OlderWrites::Done);
    assert_eq!(numbers(&all[0]), [2]);
    let late = joined(&all[0], &nodes[1]);
    assert_eq!(numbers(&late), [2], "a retired version does not come back");
    assert_eq!(late.summaries()[1].status, VersionStatus::Historical);
}

#[test]
fn a_node_alone_moves_to_a_new_version_at_once() {
    let mut history = cluster(&[1]);
    history.advance(node(1), OlderWrites::Done);
    stage(&mut history, &[1]);
    history.apply(2).unwrap();
    history.advance(node(1), OlderWrites::Running);
    assert_eq!(numbers(&history), [1, 2]);
    history.advance(node(1), OlderWrites::Done);
    assert_eq!((numbers(&history), history.min_sync_ack()), (vec![2], 2));
}

#[test]
fn a_stranger_raises_no_tracker() {
    let mut history = cluster(&[1]);
    let before = history.clone();
    history.advance(node(9), OlderWrites::Done);
    assert_eq!(history, before);
}

#[test]
fn two_layouts_with_one_number_are_reported_and_neither_retires_the_older() {
    let (one, other) = conflict();
    let mut both = one.clone();
    let merged = both.merge(&other).unwrap();
    assert_eq!(merged.new_versions, [key(&other)]);
    assert_eq!((merged.new_conflicts.len(), merged.new_conflicts[0].number), (1, 2));
    assert!(both.merge(&other).unwrap().new_conflicts.is_empty(), "it is told once");
    for n in 1..=4 {
        both.trackers.ack.raise(node(n), key(&one));
        both.trackers.sync.raise(node(n), key(&one));
        both.trackers.sync_ack.raise(node(n), key(&one));
    }
    for n in 1..=4 {
        both.advance(node(n), OlderWrites::Done);
    }
    assert_eq!(numbers(&both), [1, 2, 2], "writes go to all three");
    assert_eq!(both.read_version().unwrap().number(), 1);
    assert!(matches!(both.preview(), Err(LayoutError::Conflict { number: 2 })));
    assert!(matches!(both.apply(3), Err(LayoutError::Conflict { number: 2 })));
    assert!(matches!(both.mark_synced(node(1), key(&one)), Err(LayoutError::Conflict { number: 2 })));
    let skip = both.skip_dead_nodes(2, &BTreeSet::new(), MissingData::Allow);
    assert!(matches!(skip, Err(LayoutError::Conflict { number: 2 })));
}

#[test]
fn a_conflict_ends_by_choosing_and_everybody_agrees_anew() {
    let (one, other) = conflict();
    let mut both = joined(&one, &other);
    both.resolve(key(&one)).unwrap();
    assert_eq!(numbers(&both), [1, 2, 3]);
    assert!(both.conflicts().is_empty());
    assert_eq!(both.current().unwrap().assignment(), one.current().unwrap().assignment());
    let told = joined(&other, &both);
    assert_eq!((numbers(&told), told.conflicts().len()), (vec![1, 2, 3], 0));
    assert!(matches!(both.resolve(key(&one)), Err(LayoutError::NoConflict)));
    assert_eq!(both.min_ack(), 0, "what was acknowledged before does not count");
}

#[test]
fn a_version_made_late_beside_the_one_in_use_is_rejected_and_never_read() {
    let before = cluster(&[1, 2]);
    for late_member in 4..12 {
        let (mut in_use, mut late) = (before.clone(), before.clone());
        stage(&mut in_use, &[3]);
        in_use.apply(2).unwrap();
        let version = key(&in_use);
        for _ in 0..3 {
            (1..=3).for_each(|n| in_use.advance(node(n), OlderWrites::Done));
            (1..=3).for_each(|n| in_use.mark_synced(node(n), version).unwrap());
        }
        assert_eq!(numbers(&in_use), [2], "the first is retired");
        // An operator's word to a node without a role that heard of nothing.
        stage(&mut late, &[late_member]);
        late.apply(2).unwrap();
        let mut both = joined(&in_use, &late);
        assert_eq!(both.read_version().unwrap().key(), version);
        both.advance(node(1), OlderWrites::Done);
        assert_eq!((key(&both), both.conflicts().len(), numbers(&both)), (version, 0, vec![2]));
    }
}

#[test]
fn old_versions_are_remembered_until_every_node_has_the_blocks_of_a_later_one() {
    let mut history = cluster(&[1]);
    for number in 2..=30 {
        stage(&mut history, &[1]);
        history.apply(number).unwrap();
        history.advance(node(1), OlderWrites::Done);
    }
    assert_eq!(numbers(&history), [30]);
    assert_eq!(history.summaries().len(), 30, "its blocks may be where any of them put them");
    let current = key(&history);
    assert_eq!((history.blocks_to_verify(node(1)), history.blocks_to_verify(node(2))), (Some(current), None));
    history.mark_blocks_verified(node(1), current).unwrap();
    assert_eq!((history.blocks_to_verify(node(1)), history.min_blocks()), (None, 30));
    let before = history.clone();
    history.retire_synced();
    assert_eq!(history.summaries().len(), 11, "the last ones stay as information");
    assert_eq!(joined(&history, &before).summaries().len(), 11, "who has not heard of that brings none back");
    assert_eq!(joined(&history, &before), joined(&before, &history));
    // One who joins has none of its blocks.
    stage(&mut history, &[2]);
    history.apply(31).unwrap();
    assert_eq!((history.min_blocks(), history.blocks_to_verify(node(1))), (0, None));
    assert!(matches!(history.mark_blocks_verified(node(1), key(&history)), Err(LayoutError::UnknownVersion { .. })));
}

#[test]
fn the_state_survives_its_encoding_and_keeps_what_newer_programs_added() {
    let history = joined(&conflict().0, &conflict().1);
    let decoded: LayoutHistory = decode(&encode(&history)).unwrap();
    assert_eq!(decoded, history);
    assert_eq!(decoded.state_digest(), history.state_digest());

    let tag = &encode(&history)[..4];
    let mut newer = history.clone();
    newer.unknown = Unknown::from([("novelty".to_owned(), 7.into())]);
    let read: LayoutHistory = decode(&encode(&newer)).unwrap();
    assert_eq!((read.unknown.len(), tag), (1, &b"lay1"[..]));
    assert_eq!(joined(&history, &read).unknown, newer.unknown);
}

/// The state file of one node, written by a version that did not track blocks.
const EARLIER: &[u8] = include_bytes!("one_node_of_an_earlier_version");

/// A history as such a version reads it: it keeps fields that it does not know, but not within the trackers.
#[derive(Serialize, Deserialize)]
struct EarlierHistory {
    t: EarlierTrackers,
    #[serde(flatten)]
    rest: Unknown,
}

#[derive(Serialize, Deserialize)]
struct EarlierTrackers {
    a: Tracker,
    s: Tracker,
    sa: Tracker,
}

impl Format for EarlierHistory {
    const TAG: &'static str = LayoutHistory::TAG;
}

#[test]
fn the_file_of_an_earlier_version_is_read_and_written_as_it_was() {
    let history: LayoutHistory = decode(EARLIER).unwrap();
    let members = history.members();
    let [only] = members.iter().collect::<Vec<_>>()[..] else { panic!("{members:?}") };
    assert_eq!((numbers(&history), history.min_blocks()), (vec![1], 0));
    assert_eq!(history.blocks_to_verify(*only), Some(key(&history)));
    assert_eq!(encode(&history), EARLIER, "nodes of both versions compare equal while nothing new is to be said");
}

#[test]
fn nothing_is_lost_through_a_node_of_an_earlier_version() {
    let mut history = cluster(&[1]);
    for number in 2..=30 {
        stage(&mut history, &[1]);
        history.apply(number).unwrap();
        history.advance(node(1), OlderWrites::Done);
    }
    history.mark_blocks_verified(node(1), key(&history)).unwrap();
    history.retire_synced();
    let earlier: EarlierHistory = decode(&encode(&history)).unwrap();
    let told: LayoutHistory = decode(&encode(&earlier)).unwrap();
    assert_eq!(told.min_blocks(), 0, "it does not tell who has looked at its blocks");
    assert_eq!(joined(&history, &told), history);
    let mut learnt = told;
    assert!(learnt.merge(&history).unwrap().anything_changed);
    assert_eq!(learnt, history);
}

/// What can happen at a node between two gossip messages.
#[derive(Debug, Clone)]
enum Event {
    Stage(u8, u64),
    Revert,
    Apply,
    Advance,
    MarkSynced,
    MarkBlocks,
    Resolve,
    Hear(usize),
}

fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
    let event = (0..9_u8, any::<u8>(), 0..5_u64, 0..3_usize).prop_map(|(kind, n, time, from)| match kind {
        0 => Event::Stage(n % 4, time),
        1 => Event::Revert,
        2 => Event::Apply,
        3 => Event::Advance,
        4 => Event::MarkSynced,
        5 => Event::Resolve,
        6 => Event::MarkBlocks,
        _ => Event::Hear(from),
    });
    prop::collection::vec((0..3_usize, event), 0..40)
}

/// Three nodes that live through `events`; node 0 starts with a layout of all.
fn run(events: Vec<(usize, Event)>) -> [LayoutHistory; 3] {
    let mut nodes = [cluster(&[0, 1, 2]), cluster(&[0, 1, 2]), LayoutHistory::new(1)];
    for (index, event) in events {
        let heard = match event {
            Event::Hear(from) => nodes[from].clone(),
            _ => nodes[index].clone(),
        };
        let (history, me) = (&mut nodes[index], node(index as u8));
        match event {
            Event::Stage(n, time) => history.stage_role(Timestamp::from_millis(time), node(n), storage("z")).unwrap(),
            Event::Revert => history.revert(),
            // Refusals (no nodes yet, a conflict) are part of life.
            Event::Apply => drop(history.apply(history.current_number() + 1)),
            Event::Advance => history.advance(me, OlderWrites::Done),
            Event::MarkSynced => drop(history.current().map(|version| version.key()).map(|key| history.mark_synced(me, key))),
            Event::MarkBlocks => drop(history.blocks_to_verify(me).map(|key| history.mark_blocks_verified(me, key))),
            Event::Resolve => drop(history.current().map(|version| version.key()).map(|key| history.resolve(key))),
            Event::Hear(_) => drop(history.merge(&heard).unwrap()),
        }
    }
    nodes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn histories_obey_the_laws_of_merging(events in events()) {
        let [a, b, c] = run(events);
        assert_eq!(joined(&a, &b), joined(&b, &a), "commutative");
        assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)), "associative");
        assert_eq!(joined(&joined(&a, &b), &b), joined(&a, &b), "idempotent");
        assert!(!joined(&a, &b).merge(&b).unwrap().anything_changed, "idempotent, as reported");
    }

    #[test]
    fn no_node_retires_a_version_that_another_one_reads(events in events()) {
        let nodes = run(events.into_iter().filter(|(_, event)| !matches!(event, Event::Resolve)).collect());
        let all = joined(&joined(&nodes[0], &nodes[1]), &nodes[2]);
        // Concurrent changes are told to the operator; until then only what was merged can be judged.
        if all.summaries().windows(2).any(|pair| pair[0].key.number == pair[1].key.number) { return Ok(()); }
        for (writer, reader) in nodes.iter().flat_map(|writer| nodes.iter().zip(0..).map(move |reader| (writer, reader))) {
            let (reader, n) = reader;
            if let Some(read) = reader.read_version() && writer.members().contains(&node(n)) {
                assert!(read.number() >= writer.live_from, "node {n} reads {} where {} is the oldest", read.number(), writer.live_from);
            }
        }
    }
}
