//! The simulator finds bugs that were planted on purpose.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use garage_types::planted::Bug;

use crate::plays::Play;
use crate::scenario::Flaw;

/// A flaw, the scenario or story that shows it, and a seed from which it shows soon.
type Known = (Flaw, &'static str, u64);

const KNOWN: [Known; 43] = [
    (Flaw::Planted(Bug::WriteQuorumOfOne), "everything", 1),
    (Flaw::Planted(Bug::NoReadBack), "crowd", 31),
    (Flaw::Planted(Bug::LostQueueRow), "calm", 0),
    (Flaw::Planted(Bug::DeletesReferencedBlock), "single", 9),
    (Flaw::Planted(Bug::CopyWithoutReference), "single", 16),
    (Flaw::Planted(Bug::BehindIgnored), "crowd", 8),
    (Flaw::Planted(Bug::DamagedRowsBelieved), "losses", 11),
    (Flaw::BlocksNotSynced, "everything", 13),
    (Flaw::RowsNotSynced, "everything", 0),
    (Flaw::Planted(Bug::LostDatabaseUnnoticed), "lost-database", 0),
    (Flaw::Planted(Bug::RebuildingAnswersReads), "lost-database", 0),
    (Flaw::Planted(Bug::CollectedWithoutAllOwners), "absent-owner", 2),
    (Flaw::Planted(Bug::EpochIgnored), "late-reader", 1),
    (Flaw::Planted(Bug::ForgottenRowsOffered), "returner", 4),
    (Flaw::Planted(Bug::LeftoversKept), "late-returner", 0),
    (Flaw::Planted(Bug::RebuiltFromOneOwner), "lost-database", 11),
    (Flaw::Planted(Bug::LateWritesMissed), "late-second-copy", 12),
    (Flaw::Planted(Bug::RebuildingJudgesCommits), "lost-database", 2),
    (Flaw::Planted(Bug::OldDatabaseBelieved), "restored-database", 0),
    (Flaw::Planted(Bug::RebuildingOffersRows), "two-lost-databases", 4),
    (Flaw::Planted(Bug::LateLayoutApplied), "late-rival", 2),
    (Flaw::Planted(Bug::RejectedLayoutApplied), "late-rival", 0),
    (Flaw::Planted(Bug::RivalLayoutApplied), "rivals", 7),
    (Flaw::Planted(Bug::UnsoundLayoutApplied), "unsound-layout", 0),
    (Flaw::Planted(Bug::ReadsBeforeSynced), "one-source", 0),
    (Flaw::Planted(Bug::SyncedFromOneOwner), "one-source", 0),
    (Flaw::Planted(Bug::WritesToNewOwnersOnly), "waiting-layout", 0),
    (Flaw::Planted(Bug::WritesToOldOwnersOnly), "waiting-layout", 0),
    (Flaw::Planted(Bug::AcknowledgedWhileWriting), "writes-under-way", 5),
    (Flaw::Planted(Bug::StrangersAdmitted), "stranger-writes", 1),
    (Flaw::Planted(Bug::ReleasedTooEarly), "one-knows", 0),
    (Flaw::Planted(Bug::ReleasedOnArrival), "overtaken", 1),
    (Flaw::Planted(Bug::UncountedFilesForgotten), "everything", 0),
    (Flaw::Planted(Bug::QueueRowTakenOffUnsent), "unsent-deletions", 0),
    (Flaw::Planted(Bug::TombstonesNotHeld), "missed-deletion", 0),
    (Flaw::Planted(Bug::EpochNotAdvanced), "late-copy", 1),
    (Flaw::Planted(Bug::FloorNotRaised), "broken-collection", 14),
    (Flaw::Planted(Bug::ReadBackUnderNewEpoch), "late-reader", 1),
    (Flaw::Planted(Bug::LoserErasesName), "claimed-names", 0),
    (Flaw::Planted(Bug::ClaimOverlooked), "claimed-names", 0),
    (Flaw::Planted(Bug::FinalMarkKeptBack), "half-deleted", 0),
    (Flaw::Planted(Bug::PageCutTooLate), "uneven-pages", 0),
    (Flaw::Planted(Bug::UnreadableBelieved), "losses", 1),
];

/// Seeds tried for each flaw before it counts as not found.
const SEEDS: u64 = 200;
/// Flaws searched at once.
const THREADS: usize = 2;

/// How soon a flaw was noticed.
struct Found {
    seed: u64,
    /// Seeds it took.
    tried: u64,
    violation: String,
}

/// Tries seeds from `first` on: changes elsewhere shift all schedules, so which seed shows a flaw moves.
fn search(flaw: Flaw, play: Play, first: u64) -> Option<Found> {
    (0..SEEDS).find_map(|tried| {
        let seed = first + tried;
        let violation = play.run(seed, Some(flaw)).violations.into_iter().next()?;
        Some(Found { seed, tried: tried + 1, violation })
    })
}

/// The flaw of which this is the name, or part of it.
pub fn flaw_named(name: &str) -> Flaw {
    let found = KNOWN.iter().find(|(flaw, ..)| format!("{flaw:?}").contains(name));
    found.unwrap_or_else(|| panic!("there is no flaw {name}")).0
}

/// Searches all of these, and prints what came of each. Returns those that were not found.
fn search_all(wanted: &[(Flaw, &str, u64)]) -> Vec<Flaw> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut not_found = Vec::new();
        while let Some((flaw, name, first)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            let found = search(*flaw, Play::named(name), *first);
            let took = began.elapsed();
            match found {
                Some(Found { seed, tried, violation }) => {
                    let violation: String = violation.chars().take(150).collect();
                    println!("{flaw:?} in {name}: seed {seed}, the {tried}. tried, {took:.1?}: {violation}");
                }
                None => {
                    println!("{flaw:?} in {name}: not found, {took:.1?}");
                    not_found.push(*flaw);
                }
            }
        }
        not_found
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_number| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_planted_bug_is_found() {
    let not_found = search_all(&KNOWN);
    assert!(not_found.is_empty(), "not noticed within {SEEDS} seeds: {not_found:?}");
}

/// Searches from the first seed, for new tables. SIMULATE_FLAW: part of a flaw's name. SIMULATE_SCENARIO: where.
#[test]
#[ignore = "searches up to 200 seeds for each bug"]
fn search_planted() {
    let wanted = std::env::var("SIMULATE_FLAW").ok();
    let name = std::env::var("SIMULATE_SCENARIO").ok();
    let is_wanted = |flaw: &Flaw| wanted.as_ref().is_none_or(|wanted| format!("{flaw:?}").contains(wanted));
    let known = KNOWN.iter().filter(|(flaw, ..)| is_wanted(flaw));
    let known: Vec<_> = known.map(|(flaw, known, _seed)| (*flaw, name.as_deref().unwrap_or(known), 0)).collect();
    search_all(&known);
}
