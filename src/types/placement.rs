//! Where a row or a block lives: a point of the hash space, and the partition around it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{BlockHash, BucketId, UploadId, VersionId};

/// A point of the hash space. What is already a hash or a random id is its own placement; anything else is hashed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Placement(#[serde(with = "serde_bytes")] [u8; 32]);

/// A slice of the hash space, placed as a unit: the index given by the top bits of a placement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u16);

impl Placement {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Placement(bytes)
    }

    /// The placement of something that is neither a hash nor random.
    pub fn of(bytes: &[u8]) -> Self {
        Placement(crate::hash::blake2b(bytes))
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The partition among `2^bits`; `bits` is a value of the layout, at most 16.
    pub fn partition(&self, bits: u8) -> Partition {
        assert!(bits <= 16, "a layout has at most 2^16 partitions");
        let top = u16::from_be_bytes([self.0[0], self.0[1]]);
        Partition(((u32::from(top)) >> (16 - u32::from(bits))) as u16)
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
}

impl From<BlockHash> for Placement {
    fn from(hash: BlockHash) -> Self {
        Placement(*hash.as_bytes())
    }
}

impl From<VersionId> for Placement {
    fn from(id: VersionId) -> Self {
        Placement(*id.as_bytes())
    }
}

impl From<UploadId> for Placement {
    fn from(id: UploadId) -> Self {
        Placement(*id.as_bytes())
    }
}

impl From<BucketId> for Placement {
    fn from(id: BucketId) -> Self {
        Placement(*id.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::{Partition, Placement};

    #[test]
    fn the_partition_is_the_top_bits() {
        let mut bytes = [0; 32];
        bytes[0] = 0xAB;
        bytes[1] = 0xCD;
        let placement = Placement::from_bytes(bytes);
        assert_eq!(placement.partition(8), Partition(0xAB));
        assert_eq!(placement.partition(16), Partition(0xABCD));
        assert_eq!(placement.partition(1), Partition(1));
        assert_eq!(placement.partition(0), Partition(0));
    }
}
