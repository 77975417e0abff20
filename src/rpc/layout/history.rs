//! The replicated state of the layout: versions, staged changes and trackers, and the rules by which they move on.
//!
//! Pure. Merging is a join (commutative, associative, idempotent) and decides nothing; retiring a version is a step a node takes on
//! its own, in [`LayoutHistory::advance`]. Live versions are those from `live_from` on that were not rejected. Versions that
//! went out of use stay until every member has the blocks of a later one, and the last ones as information.
//!
//! Invariants: a version is retired only when every member of every live version knows (`sync_ack`) that all have synced a later
//! one. As long as two live versions share a number, nothing counts as having reached that number; but a version that comes up beside
//! one for which the older ones were retired is rejected, as nobody else has what that one's members have.

mod change;
pub mod resolve;
pub mod skip;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use garage_types::NodeId;
use garage_types::codec::{Format, Unknown, encode};
use garage_types::hash::blake2b;
use garage_types::planted::{Bug, is_planted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::report::Report;
use super::staging::Staging;
use super::trackers::{Tracker, Trackers};
use super::version::{LayoutDigest, LayoutVersion, VersionKey};

pub use skip::{MissingData, Skipped};

type Versions = BTreeMap<VersionKey, Arc<LayoutVersion>>;

/// Everything nodes tell each other about layouts, and the content of the state file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LayoutHistory {
    #[serde(rename = "rf")]
    replication_factor: usize,
    #[serde(rename = "vs", with = "versions_as_list")]
    versions: Versions,
    /// Versions with a lower number are retired.
    #[serde(rename = "lf")]
    live_from: u64,
    /// Versions with a lower number are forgotten.
    #[serde(rename = "kf", default, skip_serializing_if = "is_zero")]
    kept_from: u64,
    /// Versions that lost against another one with their number.
    #[serde(rename = "rj")]
    rejected: BTreeSet<VersionKey>,
    #[serde(rename = "t")]
    trackers: Trackers,
    #[serde(rename = "st")]
    staging: Staging,
    #[serde(flatten)]
    unknown: Unknown,
}

impl Format for LayoutHistory {
    const TAG: &'static str = "lay1";
}

/// What older programs do not write is not written as long as it says nothing.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A list on disk and on the wire: each version's key follows from its content.
mod versions_as_list {
    use super::{Arc, Deserialize, Deserializer, LayoutVersion, Serializer, Versions};

    pub(super) fn serialize<S: Serializer>(versions: &Versions, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(versions.values())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Versions, D::Error> {
        let list: Vec<Arc<LayoutVersion>> = Vec::deserialize(deserializer)?;
        Ok(list.into_iter().map(|version| (version.key(), version)).collect())
    }
}

/// Where a version stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VersionStatus {
    Current,
    /// Live, not current.
    Draining,
    /// Retired or rejected, kept as information.
    Historical,
}

/// One line of the list of versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VersionSummary {
    pub key: VersionKey,
    pub status: VersionStatus,
    pub storage_nodes: usize,
    pub gateway_nodes: usize,
}

/// Different live layouts with one number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    pub number: u64,
    pub digests: Vec<LayoutDigest>,
}

/// What merging brought.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Merged {
    /// Live versions that were not known.
    pub new_versions: Vec<VersionKey>,
    /// Conflicts that were not known.
    pub new_conflicts: Vec<Conflict>,
    pub trackers_changed: bool,
    pub staging_changed: bool,
    /// Anything at all changed, including what has no field here.
    pub anything_changed: bool,
}

/// What the next version would be.
#[derive(Clone, Debug)]
pub struct Preview {
    pub version: LayoutVersion,
    pub report: Report,
}

/// Whether writes begun before the newest version became known are still running on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OlderWrites {
    Running,
    Done,
}

impl LayoutHistory {
    /// A cluster without a layout.
    pub fn new(replication_factor: usize) -> Self {
        LayoutHistory {
            replication_factor,
            versions: BTreeMap::new(),
            live_from: 0,
            kept_from: 0,
            rejected: BTreeSet::new(),
            trackers: Trackers::default(),
            staging: Staging::default(),
            unknown: Unknown::new(),
        }
    }

    pub fn replication_factor(&self) -> usize {
        self.replication_factor
    }

    pub fn staging(&self) -> &Staging {
        &self.staging
    }

    pub fn trackers(&self) -> &Trackers {
        &self.trackers
    }

    /// Versions that are not live any more, newest first. Blocks may still be found on their nodes only.
    pub fn past(&self) -> impl Iterator<Item = &Arc<LayoutVersion>> {
        self.versions.iter().rev().filter(|(key, _)| !self.is_live(key)).map(|(_, version)| version)
    }

    /// The versions with this number that are remembered and were not rejected, live or not.
    pub fn numbered(&self, number: u64) -> impl Iterator<Item = &Arc<LayoutVersion>> {
        let all = self.versions.iter().filter(move |(key, _)| key.number == number && !self.rejected.contains(key));
        all.map(|(_, version)| version)
    }

    /// Live versions by ascending number, then digest.
    pub fn live(&self) -> impl DoubleEndedIterator<Item = &Arc<LayoutVersion>> {
        self.live_entries().map(|(_, version)| version)
    }

    /// The version with the highest number; in a conflict, one of them. `None` before the first layout.
    pub fn current(&self) -> Option<&Arc<LayoutVersion>> {
        self.live().next_back()
    }

    /// 0 before the first layout.
    pub fn current_number(&self) -> u64 {
        self.current().map_or(0, |version| version.number())
    }

    /// Every node with a role in a live version, gateways included.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.live().flat_map(|version| version.roles().keys().copied()).collect()
    }

    /// Whether all who succeed the live version with this number wait until `writer` has acknowledged the successor. They know that
    /// version and the next; a role that a still newer one gives counts for nothing, since others may not have heard of it.
    pub fn awaits(&self, writer: NodeId, version: u64) -> bool {
        let is_asked = |live: &Arc<LayoutVersion>| {
            (version..=version.saturating_add(1)).contains(&live.number()) && live.roles().contains_key(&writer)
        };
        self.live().any(is_asked)
    }

    /// Numbers that several live versions have.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut by_number: BTreeMap<u64, Vec<LayoutDigest>> = BTreeMap::new();
        for (key, _) in self.live_entries() {
            by_number.entry(key.number).or_default().push(key.digest);
        }
        let conflicts = by_number.into_iter().filter(|(_, digests)| digests.len() > 1);
        conflicts.map(|(number, digests)| Conflict { number, digests }).collect()
    }

    /// All known versions, newest first.
    pub fn summaries(&self) -> Vec<VersionSummary> {
        let current = self.current_number();
        let summary = |(key, version): (&VersionKey, &Arc<LayoutVersion>)| {
            let storage_nodes = version.storage_nodes().count();
            VersionSummary {
                key: *key,
                status: match self.is_live(key) {
                    true if key.number == current => VersionStatus::Current,
                    true => VersionStatus::Draining,
                    false => VersionStatus::Historical,
                },
                storage_nodes,
                gateway_nodes: version.roles().len() - storage_nodes,
            }
        };
        self.versions.iter().rev().map(summary).collect()
    }

    /// Every node acknowledges versions up to this number. Syncing a version may begin once this reaches it.
    pub fn min_ack(&self) -> u64 {
        self.min_of(&self.trackers.ack)
    }

    /// Every node has the metadata of versions up to this number.
    pub fn min_sync(&self) -> u64 {
        self.min_of(&self.trackers.sync)
    }

    /// Every node knows that [`Self::min_sync`] has reached this number.
    pub fn min_sync_ack(&self) -> u64 {
        self.min_of(&self.trackers.sync_ack)
    }

    /// Every node has the blocks of versions up to this number; 0 while one has not said so of any.
    pub fn min_blocks(&self) -> u64 {
        let oldest = self.live().next().map_or(0, |version| version.number());
        let has = |node: NodeId| {
            let key = self.trackers.blocks.get(node)?;
            (key.number < oldest || self.is_live(&key)).then_some(key.number)
        };
        self.members().into_iter().map(|node| has(node).unwrap_or(0)).min().unwrap_or(0)
    }

    /// The only live version, when `me` is a member of it and has not said that it has its blocks.
    pub fn blocks_to_verify(&self, me: NodeId) -> Option<VersionKey> {
        let mut live = self.live();
        let only = live.next().filter(|_| live.next().is_none())?;
        let is_open = only.roles().contains_key(&me) && self.trackers.blocks.get(me) != Some(only.key());
        is_open.then(|| only.key())
    }

    /// The version whose metadata `me` should receive now; `None` when it has them, or when some node has yet to acknowledge it.
    pub fn version_to_sync(&self, me: NodeId) -> Option<VersionKey> {
        let settled = self.settled().filter(|key| key.number <= self.min_ack() && self.members().contains(&me))?;
        (self.trackers.sync.get(me) != Some(settled)).then_some(settled)
    }

    /// The version that reads use: the newest that every node has synced, else the oldest live one.
    pub fn read_version(&self) -> Option<&Arc<LayoutVersion>> {
        let min_sync = self.min_sync();
        let synced = self.live().rev().find(|version| version.number() <= min_sync);
        // Beside a version that all have synced, one that came up late under its number has nothing yet.
        synced.or_else(|| self.live().find(|version| self.is_synced(version))).or_else(|| self.live().next())
    }

    /// Whether every member of a version has said that it has what the version asks of it.
    fn is_synced(&self, version: &LayoutVersion) -> bool {
        let key = version.key();
        let has_it =
            |node: &NodeId| self.trackers.sync.get(*node).is_some_and(|reached| reached == key || reached.number > key.number);
        version.roles().keys().all(has_it)
    }

    /// Changes whenever anything in the state does: nodes compare it before they send all of it.
    pub fn state_digest(&self) -> LayoutDigest {
        LayoutDigest::from_bytes(blake2b(&encode(self)))
    }

    fn is_live(&self, key: &VersionKey) -> bool {
        let is_rejected = self.rejected.contains(key) && !is_planted(Bug::RejectedLayoutApplied);
        key.number >= self.live_from && !is_rejected
    }

    fn live_entries(&self) -> impl DoubleEndedIterator<Item = (&VersionKey, &Arc<LayoutVersion>)> {
        self.versions.iter().filter(|(key, _)| self.is_live(key))
    }

    /// The newest version that nothing contradicts: the only one trackers may advance to.
    fn settled(&self) -> Option<VersionKey> {
        let ceiling = self.ceiling();
        self.live_entries().map(|(key, _)| *key).rfind(|key| key.number <= ceiling)
    }

    /// The highest number below any conflict.
    fn ceiling(&self) -> u64 {
        if is_planted(Bug::RivalLayoutApplied) {
            return u64::MAX;
        }
        self.conflicts().first().map_or(u64::MAX, |conflict| conflict.number.saturating_sub(1))
    }

    fn min_of(&self, tracker: &Tracker) -> u64 {
        let ceiling = self.ceiling();
        let oldest = self.live().next().map_or(0, |version| version.number());
        let reached = |node: NodeId| match tracker.get(node) {
            Some(key) if key.number < oldest => key.number,
            Some(key) if self.versions.contains_key(&key) && self.is_live(&key) => key.number.min(ceiling),
            // A version we do not know, or one that was rejected, says nothing about those we have.
            Some(_) | None => oldest.saturating_sub(1),
        };
        self.members().into_iter().map(reached).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
