//! How far each node has come with each layout version. Values only grow; a node raises its own, except when an operator skips it.

use std::collections::BTreeMap;

use garage_types::NodeId;
use garage_types::crdt::Crdt;
use serde::{Deserialize, Serialize};

use super::version::VersionKey;

/// For each node, the highest version that something is true of.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tracker(BTreeMap<NodeId, VersionKey>);

impl Tracker {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, node: NodeId) -> Option<VersionKey> {
        self.0.get(&node).copied()
    }

    /// Whether this changed anything: a lower value does not.
    pub(super) fn raise(&mut self, node: NodeId, to: VersionKey) -> bool {
        let grows = self.0.get(&node).is_none_or(|present| *present < to);
        if grows {
            self.0.insert(node, to);
        }
        grows
    }
}

impl Crdt for Tracker {
    fn merge(&mut self, other: &Self) {
        for (node, key) in &other.0 {
            self.raise(*node, *key);
        }
    }
}

/// The trackers of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Trackers {
    /// The node knows every version up to this one, and no write that ignores it is still running there.
    #[serde(rename = "a")]
    pub ack: Tracker,
    /// The node has received all metadata that it must hold in versions up to this one.
    #[serde(rename = "s")]
    pub sync: Tracker,
    /// The node knows that every node's `sync` has reached this version.
    #[serde(rename = "sa")]
    pub sync_ack: Tracker,
    /// The node has looked at every block that it must hold in this version, and has nothing to fetch and nothing to hand over. Older
    /// programs do not tell, and drop what others tell.
    #[serde(rename = "b", default, skip_serializing_if = "Tracker::is_empty")]
    pub blocks: Tracker,
}

impl Crdt for Trackers {
    fn merge(&mut self, other: &Self) {
        self.ack.merge(&other.ack);
        self.sync.merge(&other.sync);
        self.sync_ack.merge(&other.sync_ack);
        self.blocks.merge(&other.blocks);
    }
}
