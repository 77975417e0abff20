//! One layout version: who has which role, and where each partition lives. Immutable once made.

use std::collections::BTreeMap;
use std::fmt;

use garage_types::NodeId;
use garage_types::codec::{Format, Unknown, encode};
use garage_types::hash::blake2b;
use serde::{Deserialize, Serialize};

use super::assignment::Assignment;

/// The smallest capacity a storage node may declare, in bytes.
pub const CAPACITY_MIN: u64 = 1024;

/// What a node does in the cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct NodeRole {
    #[serde(rename = "z")]
    pub zone: String,
    /// Bytes; `None` for a gateway.
    #[serde(rename = "c")]
    pub capacity: Option<u64>,
    #[serde(rename = "t")]
    pub tags: Vec<String>,
}

/// Over how many zones the copies of a partition are spread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum ZoneRedundancy {
    /// As many as there are, at most the replication factor.
    #[default]
    #[serde(rename = "max")]
    Maximum,
    /// 1 up to the replication factor.
    #[serde(rename = "min")]
    AtLeast(usize),
}

/// What an operator can choose about the computation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct LayoutParameters {
    #[serde(rename = "zr")]
    pub zone_redundancy: ZoneRedundancy,
}

/// BLAKE2b-256 of a layout version: tells two different layouts with one number apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayoutDigest(#[serde(with = "serde_bytes")] [u8; 32]);

impl LayoutDigest {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        LayoutDigest(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// All 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// 16 hexadecimal digits, enough for people to tell two apart.
impl fmt::Display for LayoutDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LayoutDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity of a layout version. Its number alone is one only as long as nobody applied two changes at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct VersionKey {
    #[serde(rename = "n")]
    pub number: u64,
    #[serde(rename = "d")]
    pub digest: LayoutDigest,
}

/// One layout version.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LayoutVersion {
    #[serde(rename = "v")]
    number: u64,
    #[serde(rename = "r")]
    roles: BTreeMap<NodeId, NodeRole>,
    #[serde(rename = "p")]
    parameters: LayoutParameters,
    #[serde(rename = "a")]
    assignment: Assignment,
    #[serde(flatten)]
    unknown: Unknown,
}

impl LayoutVersion {
    pub(super) fn new(
        number: u64,
        roles: BTreeMap<NodeId, NodeRole>,
        parameters: LayoutParameters,
        assignment: Assignment,
    ) -> Self {
        LayoutVersion { number, roles, parameters, assignment, unknown: Unknown::new() }
    }

    /// The same layout under another number.
    pub(super) fn renumbered(&self, number: u64) -> Self {
        LayoutVersion { number, ..self.clone() }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn roles(&self) -> &BTreeMap<NodeId, NodeRole> {
        &self.roles
    }

    pub fn parameters(&self) -> LayoutParameters {
        self.parameters
    }

    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    pub fn replication_factor(&self) -> usize {
        self.assignment.replication_factor()
    }

    /// Nodes with a capacity, by ascending id.
    pub fn storage_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.roles.iter().filter(|(_, role)| role.capacity.is_some()).map(|(node, _)| *node)
    }

    /// Number and digest. The digest covers what this program knows of a layout, so that a field added later, which older nodes
    /// carry along unread, does not make them see another layout.
    pub fn key(&self) -> VersionKey {
        let known =
            DigestInput { number: self.number, roles: &self.roles, parameters: self.parameters, assignment: &self.assignment };
        VersionKey { number: self.number, digest: LayoutDigest(blake2b(&encode(&known))) }
    }
}

#[derive(Serialize)]
struct DigestInput<'a> {
    number: u64,
    roles: &'a BTreeMap<NodeId, NodeRole>,
    parameters: LayoutParameters,
    assignment: &'a Assignment,
}

impl Format for DigestInput<'_> {
    const TAG: &'static str = "ldg1";
}
