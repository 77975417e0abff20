//! Role and parameter changes that an operator prepared and did not apply yet.

use std::collections::BTreeMap;

use garage_types::crdt::{Crdt, Lww, LwwMap};
use garage_types::{NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use super::version::{LayoutParameters, NodeRole};

/// Staged changes, merged between nodes. Applying or reverting starts a new round, which discards everything staged in rounds before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Staging {
    #[serde(rename = "e")]
    round: u64,
    /// `None` removes the node.
    #[serde(rename = "r")]
    roles: LwwMap<NodeId, Option<NodeRole>>,
    #[serde(rename = "p")]
    parameters: Lww<Option<LayoutParameters>>,
}

impl Default for Staging {
    fn default() -> Self {
        Staging { round: 0, roles: LwwMap::new(), parameters: Lww::at(Timestamp::ZERO, None) }
    }
}

impl Staging {
    /// Staged roles; `None` for a node to be removed.
    pub fn roles(&self) -> impl Iterator<Item = (&NodeId, &Option<NodeRole>)> {
        self.roles.iter()
    }

    /// The staged change for one node, if there is one.
    pub fn role(&self, node: NodeId) -> Option<&Option<NodeRole>> {
        self.roles.get(&node)
    }

    pub fn parameters(&self) -> Option<LayoutParameters> {
        *self.parameters.get()
    }

    pub fn is_empty(&self) -> bool {
        self.roles.is_empty() && self.parameters.get().is_none()
    }

    pub(super) fn stage_role(&mut self, now: Timestamp, node: NodeId, role: Option<NodeRole>) {
        self.roles.update(now, node, role);
    }

    pub(super) fn stage_parameters(&mut self, now: Timestamp, parameters: LayoutParameters) {
        self.parameters.update(now, Some(parameters));
    }

    pub(super) fn clear(&mut self) {
        *self = Staging { round: self.round + 1, ..Staging::default() };
    }

    /// `roles` with the staged changes made.
    pub(super) fn applied_to(&self, mut roles: BTreeMap<NodeId, NodeRole>) -> BTreeMap<NodeId, NodeRole> {
        for (node, change) in self.roles.iter() {
            match change {
                Some(role) => roles.insert(*node, role.clone()),
                None => roles.remove(node),
            };
        }
        roles
    }
}

impl Crdt for Staging {
    fn merge(&mut self, other: &Self) {
        match self.round.cmp(&other.round) {
            std::cmp::Ordering::Less => *self = other.clone(),
            std::cmp::Ordering::Equal => {
                self.roles.merge(&other.roles);
                self.parameters.merge(&other.parameters);
            }
            std::cmp::Ordering::Greater => {}
        }
    }
}
