//! The ways in which a layout history usually changes: staging, applying, merging, advancing. What an operator does when that is
//! not enough is in [`super::resolve`] and [`super::skip`].

use std::collections::BTreeMap;
use std::sync::Arc;

use garage_types::codec::Unknown;
use garage_types::crdt::Crdt;
use garage_types::planted::{Bug, is_planted};
use garage_types::{NodeId, Timestamp};

use super::{LayoutHistory, Merged, OlderWrites, Preview};
use crate::layout::assign::{Member, Problem, assign};
use crate::layout::error::LayoutError;
use crate::layout::report::Report;
use crate::layout::version::{CAPACITY_MIN, LayoutParameters, LayoutVersion, NodeRole, VersionKey, ZoneRedundancy};

/// Partition bits of a first layout; later ones keep those of the layout before.
const FIRST_PARTITION_BITS: u8 = 8;
/// Retired versions kept as information even though every block of them has moved.
const OLD_VERSIONS_SHOWN: u64 = 10;

impl LayoutHistory {
    /// Prepares a role for a node.
    ///
    /// # Errors
    /// [`LayoutError::CapacityTooSmall`], [`LayoutError::ZoneWithoutName`].
    pub fn stage_role(&mut self, now: Timestamp, node: NodeId, role: NodeRole) -> Result<(), LayoutError> {
        if let Some(capacity) = role.capacity.filter(|capacity| *capacity < CAPACITY_MIN) {
            return Err(LayoutError::CapacityTooSmall { capacity, min: CAPACITY_MIN });
        }
        if role.zone.is_empty() {
            return Err(LayoutError::ZoneWithoutName);
        }
        self.staging.stage_role(now, node, Some(role));
        Ok(())
    }

    /// Prepares the removal of a node.
    ///
    /// # Errors
    /// [`LayoutError::NoRole`]: it has no role now, and none is staged.
    pub fn stage_removal(&mut self, now: Timestamp, node: NodeId) -> Result<(), LayoutError> {
        let has_role = self.current().is_some_and(|version| version.roles().contains_key(&node));
        if !has_role && self.staging.role(node).is_none() {
            return Err(LayoutError::NoRole { node });
        }
        self.staging.stage_role(now, node, None);
        Ok(())
    }

    /// Prepares new parameters.
    ///
    /// # Errors
    /// [`LayoutError::RedundancyOutOfRange`].
    pub fn stage_parameters(&mut self, now: Timestamp, parameters: LayoutParameters) -> Result<(), LayoutError> {
        let max = self.replication_factor;
        match parameters.zone_redundancy {
            ZoneRedundancy::AtLeast(given) if given == 0 || given > max => Err(LayoutError::RedundancyOutOfRange { given, max }),
            ZoneRedundancy::AtLeast(_) | ZoneRedundancy::Maximum => {
                self.staging.stage_parameters(now, parameters);
                Ok(())
            }
        }
    }

    /// Drops what is staged.
    pub fn revert(&mut self) {
        self.staging.clear();
    }

    /// The roles as they would be with the staged changes made.
    pub fn staged_roles(&self) -> BTreeMap<NodeId, NodeRole> {
        self.staging.applied_to(self.current().map(|version| version.roles().clone()).unwrap_or_default())
    }

    /// Computes the next version without changing anything. May take seconds: not for an async thread.
    ///
    /// # Errors
    /// [`LayoutError::Assign`]; [`LayoutError::Conflict`] until it is known what the next version follows.
    pub fn preview(&self) -> Result<Preview, LayoutError> {
        if let Some(conflict) = self.conflicts().first() {
            return Err(LayoutError::Conflict { number: conflict.number });
        }
        let current = self.current();
        let parameters = self.staging.parameters().or(current.map(|version| version.parameters())).unwrap_or_default();
        let roles = self.staged_roles();
        let member = |(id, role): (&NodeId, &NodeRole)| {
            role.capacity.map(|capacity| Member { id: *id, zone: role.zone.clone(), capacity })
        };
        let members: Vec<Member> = roles.iter().filter_map(member).collect();
        let previous = current.map(|version| version.assignment());
        let solution = assign(&Problem {
            members: &members,
            replication_factor: self.replication_factor,
            zone_redundancy: parameters.zone_redundancy,
            partition_bits: previous.map_or(FIRST_PARTITION_BITS, |assignment| assignment.partition_bits()),
            previous,
        })?;
        let version = LayoutVersion::new(self.current_number() + 1, roles, parameters, solution.assignment);
        Ok(Preview { version, report: solution.report })
    }

    /// Makes the staged changes the next version. `number` must be the current one plus 1, so that what is applied is what was looked
    /// at. May take seconds.
    ///
    /// # Errors
    /// [`LayoutError::WrongVersion`], and those of [`Self::preview`].
    pub fn apply(&mut self, number: u64) -> Result<Report, LayoutError> {
        let expected = self.current_number() + 1;
        if number != expected {
            return Err(LayoutError::WrongVersion { given: number, expected });
        }
        let Preview { version, report } = self.preview()?;
        self.versions.insert(version.key(), Arc::new(version));
        self.staging.clear();
        Ok(report)
    }

    /// Records that `me` has received all metadata it must hold in versions up to `key`.
    ///
    /// # Errors
    /// [`LayoutError::UnknownVersion`]: no such live version (any more); [`LayoutError::Conflict`]: it is not settled;
    /// [`LayoutError::NotAcknowledged`]: some node may still be writing without it, so that what was received cannot be all.
    pub fn mark_synced(&mut self, me: NodeId, key: VersionKey) -> Result<(), LayoutError> {
        if !self.versions.contains_key(&key) || !self.is_live(&key) {
            return Err(LayoutError::UnknownVersion { key });
        }
        if key.number > self.ceiling() {
            return Err(LayoutError::Conflict { number: key.number });
        }
        if key.number > self.min_ack() {
            return Err(LayoutError::NotAcknowledged { number: key.number, min_ack: self.min_ack() });
        }
        self.trackers.sync.raise(me, key);
        Ok(())
    }

    /// Records that `me` has looked at all its blocks and has nothing to move for `key`, the only live version.
    ///
    /// # Errors
    /// [`LayoutError::UnknownVersion`]: it is not the only live version (any more).
    pub fn mark_blocks_verified(&mut self, me: NodeId, key: VersionKey) -> Result<(), LayoutError> {
        let live: Vec<VersionKey> = self.live_entries().map(|(key, _)| *key).collect();
        if live != [key] {
            return Err(LayoutError::UnknownVersion { key });
        }
        self.trackers.blocks.raise(me, key);
        Ok(())
    }

    /// Takes in what another node knows.
    ///
    /// # Errors
    /// [`LayoutError::ReplicationFactor`]: it is configured for another one; nothing is merged.
    pub fn merge(&mut self, other: &Self) -> Result<Merged, LayoutError> {
        let (found, configured) = (other.replication_factor, self.replication_factor);
        if found != configured {
            return Err(LayoutError::ReplicationFactor { found, configured });
        }
        let before = self.clone();
        for (key, version) in &other.versions {
            self.versions.entry(*key).or_insert_with(|| version.clone());
        }
        self.live_from = self.live_from.max(other.live_from);
        self.kept_from = self.kept_from.max(other.kept_from);
        self.rejected.extend(&other.rejected);
        self.trackers.merge(&other.trackers);
        self.staging.merge(&other.staging);
        merge_unknown(&mut self.unknown, &other.unknown);
        self.forget_old();
        Ok(self.difference_from(&before))
    }

    /// Takes every step that `me` may take by itself: acknowledging, and retiring versions that nobody needs any more. `sync` advances
    /// by [`Self::mark_synced`], except where there is nothing to receive.
    pub fn advance(&mut self, me: NodeId, older_writes: OlderWrites) {
        self.reject_latecomers();
        let Some(settled) = self.settled() else { return };
        let members = self.members();
        if members.contains(&me) {
            if older_writes == OlderWrites::Done || is_planted(Bug::AcknowledgedWhileWriting) {
                self.trackers.ack.raise(me, settled);
            }
            let only_version = self.live().nth(1).is_none();
            let alone = members.len() == 1 && self.min_ack() >= settled.number;
            if only_version || alone {
                self.trackers.sync.raise(me, settled);
            }
            let min_sync = self.min_sync();
            let synced = self.live_entries().map(|(key, _)| *key).rfind(|key| key.number <= min_sync);
            if let Some(synced) = synced {
                self.trackers.sync_ack.raise(me, synced);
            }
        }
        self.retire_synced();
    }

    /// Retires the versions that nobody needs any more.
    pub fn retire_synced(&mut self) {
        self.reject_latecomers();
        let Some(settled) = self.settled() else { return };
        self.live_from = self.live_from.max(self.min_sync_ack().min(settled.number));
        let shown_from = self.live_from.saturating_sub(OLD_VERSIONS_SHOWN);
        self.kept_from = self.kept_from.max(shown_from.min(self.min_blocks()));
        self.forget_old();
    }

    /// Rejects versions made late, by a node that did not know that their number was taken and in use.
    fn reject_latecomers(&mut self) {
        if is_planted(Bug::LateLayoutApplied) {
            return;
        }
        let oldest = || self.live_entries().filter(|(key, _)| key.number == self.live_from);
        let Some((in_use, _)) = oldest().find(|(_, version)| self.is_synced(version)) else { return };
        let late: Vec<VersionKey> = oldest().map(|(key, _)| *key).filter(|key| key != in_use).collect();
        self.rejected.extend(late);
    }

    /// Both sets are cut at a point that a step chose and that only grows, so that the cut does not disturb merging.
    fn forget_old(&mut self) {
        self.versions.retain(|key, _| key.number >= self.kept_from);
        self.rejected.retain(|key| key.number >= self.kept_from);
    }

    fn difference_from(&self, before: &Self) -> Merged {
        let known = before.conflicts();
        let new = self.live_entries().map(|(key, _)| *key).filter(|key| !before.versions.contains_key(key));
        Merged {
            new_versions: new.collect(),
            new_conflicts: self.conflicts().into_iter().filter(|conflict| !known.contains(conflict)).collect(),
            trackers_changed: self.trackers != before.trackers,
            staging_changed: self.staging != before.staging,
            anything_changed: self != before,
        }
    }
}

/// Fields of newer programs: the union; of two values for one field, the one whose encoding is greater.
fn merge_unknown(into: &mut Unknown, from: &Unknown) {
    for (name, theirs) in from {
        let bytes = |value| rmp_serde::to_vec(value).expect("a decoded value encodes again");
        match into.get(name) {
            Some(mine) if bytes(mine) >= bytes(theirs) => {}
            Some(_) | None => {
                into.insert(name.clone(), theirs.clone());
            }
        }
    }
}
