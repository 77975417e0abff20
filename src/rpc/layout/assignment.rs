//! Which nodes hold each partition: the compact form that is stored, gossiped and looked up.
//!
//! Invariant: `2^partition_bits` rows, each of `replication_factor` distinct nodes. Bytes that say otherwise do not decode.

use garage_types::NodeId;
use garage_types::placement::Partition;
use garage_types::planted::{Bug, is_planted};
use serde::{Deserialize, Serialize};

/// Partitions to nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Assignment {
    nodes: Vec<NodeId>,
    replication_factor: usize,
    partition_bits: u8,
    partition_size: u64,
    /// Indices into `nodes`, row after row.
    copies: Vec<u16>,
}

/// An assignment that breaks its invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAssignment {
    #[error("{bits} partition bits: at most {} are possible", Assignment::PARTITION_BITS_MAX)]
    PartitionBits { bits: u8 },
    #[error("{found} copies where {needed} are needed")]
    Length { needed: usize, found: usize },
    #[error("partition {partition} is assigned to a node that is not listed")]
    UnknownNode { partition: usize },
    #[error("partition {partition} is assigned to one node twice")]
    RepeatedNode { partition: usize },
}

impl Assignment {
    pub const PARTITION_BITS_MAX: u8 = 16;
    pub const NODES_MAX: usize = 1 << 16;

    /// `copies`: indices into `nodes`, `replication_factor` for each of `2^partition_bits` partitions.
    ///
    /// # Errors
    /// [`BadAssignment`] when they break the invariant.
    pub fn new(
        nodes: Vec<NodeId>,
        replication_factor: usize,
        partition_bits: u8,
        partition_size: u64,
        copies: Vec<u16>,
    ) -> Result<Self, BadAssignment> {
        if partition_bits > Self::PARTITION_BITS_MAX {
            return Err(BadAssignment::PartitionBits { bits: partition_bits });
        }
        let needed = replication_factor.saturating_mul(1 << partition_bits);
        if replication_factor == 0 || copies.len() != needed {
            return Err(BadAssignment::Length { needed, found: copies.len() });
        }
        for (partition, row) in copies.chunks_exact(replication_factor).enumerate() {
            if row.iter().any(|index| usize::from(*index) >= nodes.len()) {
                return Err(BadAssignment::UnknownNode { partition });
            }
            if (1..row.len()).any(|end| row[..end].contains(&row[end])) && !is_planted(Bug::UnsoundLayoutApplied) {
                return Err(BadAssignment::RepeatedNode { partition });
            }
        }
        Ok(Assignment { nodes, replication_factor, partition_bits, partition_size, copies })
    }

    /// The nodes that rows refer to, by ascending id; some may hold nothing.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    pub fn replication_factor(&self) -> usize {
        self.replication_factor
    }

    pub fn partition_bits(&self) -> u8 {
        self.partition_bits
    }

    /// Bytes that each partition may take, so that no node exceeds its capacity.
    pub fn partition_size(&self) -> u64 {
        self.partition_size
    }

    /// The nodes of each partition in turn.
    pub fn rows(&self) -> impl Iterator<Item = impl Iterator<Item = NodeId>> {
        self.copies.chunks_exact(self.replication_factor).map(|row| row.iter().map(|index| self.nodes[usize::from(*index)]))
    }

    /// The nodes of one partition; none when the partition does not exist.
    pub fn row(&self, partition: Partition) -> impl Iterator<Item = NodeId> {
        let row = self.copies.chunks_exact(self.replication_factor).nth(usize::from(partition.0)).unwrap_or_default();
        row.iter().map(|index| self.nodes[usize::from(*index)])
    }

    /// How many partitions a node holds.
    pub fn partitions_of(&self, node: NodeId) -> usize {
        let held = |index: &&u16| self.nodes[usize::from(**index)] == node;
        self.copies.iter().filter(held).count()
    }
}

/// The form on disk and on the wire: two bytes for each copy, big endian.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(rename = "n")]
    nodes: Vec<NodeId>,
    #[serde(rename = "rf")]
    replication_factor: usize,
    #[serde(rename = "b")]
    partition_bits: u8,
    #[serde(rename = "s")]
    partition_size: u64,
    #[serde(rename = "c", with = "serde_bytes")]
    copies: Vec<u8>,
}

impl From<Assignment> for Stored {
    fn from(from: Assignment) -> Self {
        Stored {
            nodes: from.nodes,
            replication_factor: from.replication_factor,
            partition_bits: from.partition_bits,
            partition_size: from.partition_size,
            copies: from.copies.into_iter().flat_map(u16::to_be_bytes).collect(),
        }
    }
}

impl TryFrom<Stored> for Assignment {
    type Error = BadAssignment;
    fn try_from(from: Stored) -> Result<Self, BadAssignment> {
        let Stored { nodes, replication_factor, partition_bits, partition_size, copies } = from;
        let copies = copies.chunks(2).map(|pair| pair.iter().fold(0, |index, byte| index << 8 | u16::from(*byte)));
        Assignment::new(nodes, replication_factor, partition_bits, partition_size, copies.collect())
    }
}

#[cfg(test)]
mod tests {
    use garage_types::NodeId;
    use garage_types::placement::Partition;

    use super::{Assignment, BadAssignment};

    fn nodes() -> Vec<NodeId> {
        (1..=3).map(|n| NodeId::from_bytes([n; 32])).collect()
    }

    #[test]
    fn an_assignment_survives_its_encoding() {
        let assignment = Assignment::new(nodes(), 2, 1, 77, vec![0, 1, 2, 0]).unwrap();
        let bytes = rmp_serde::to_vec_named(&assignment).unwrap();
        let decoded: Assignment = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(decoded, assignment);
        assert_eq!(decoded.row(Partition(1)).collect::<Vec<_>>(), [nodes()[2], nodes()[0]]);
        assert_eq!(decoded.row(Partition(2)).count(), 0, "there is no such partition");
        assert_eq!(decoded.partitions_of(nodes()[0]), 2);
    }

    #[test]
    fn rows_that_break_the_invariant_are_refused() {
        let build = |bits, copies| Assignment::new(nodes(), 2, bits, 1, copies).unwrap_err();
        assert_eq!(build(17, vec![]), BadAssignment::PartitionBits { bits: 17 });
        assert_eq!(build(1, vec![0, 1, 2]), BadAssignment::Length { needed: 4, found: 3 });
        assert_eq!(build(0, vec![0, 3]), BadAssignment::UnknownNode { partition: 0 });
        assert_eq!(build(1, vec![0, 1, 2, 2]), BadAssignment::RepeatedNode { partition: 1 });
    }
}
