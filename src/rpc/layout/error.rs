//! What can go wrong with the cluster layout.

use std::path::PathBuf;

use garage_types::NodeId;
use garage_types::codec::DecodeError;
use garage_types::disk::FileError;
use garage_types::offload::Lost;

use super::assign::AssignError;
use super::version::VersionKey;

/// Why a layout was not changed, merged, saved or read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("no layout can be computed from these roles")]
    Assign(
        #[from]
        #[source]
        AssignError,
    ),
    #[error("the next layout version is {expected}, not {given}")]
    WrongVersion { given: u64, expected: u64 },
    #[error("there are different layouts with number {number}: one has to be chosen with `garage layout resolve`")]
    Conflict { number: u64 },
    #[error("there are no two live layouts with one number, nothing has to be chosen")]
    NoConflict,
    #[error("{found} layouts in conflict have a digest that begins with {prefix:?}: `garage layout history` lists them")]
    DigestPrefix { prefix: String, found: usize },
    #[error("there is no live layout version {} ({})", key.number, key.digest)]
    UnknownVersion { key: VersionKey },
    #[error("a capacity of {capacity} bytes is below the smallest possible, {min}")]
    CapacityTooSmall { capacity: u64, min: u64 },
    #[error("the zone needs a name")]
    ZoneWithoutName,
    #[error("node {node} has no role")]
    NoRole { node: NodeId },
    #[error("a zone redundancy of {given} is not between 1 and the replication factor, {max}")]
    RedundancyOutOfRange { given: usize, max: usize },
    #[error("the layout is made for replication factor {found}, this node is configured for {configured}")]
    ReplicationFactor { found: usize, configured: usize },
    #[error("layout version {number} cannot be synced yet: nodes have acknowledged versions up to {min_ack} only")]
    NotAcknowledged { number: u64, min_ack: u64 },
    #[error("only one layout version is live: no node holds anything up")]
    NothingToSkip,
    #[error("every node is connected: the move goes on by itself, and nothing is to be skipped")]
    NobodyIsDead,
    #[error("version {given} cannot be skipped to: it must be above {oldest} and at most {current}")]
    SkipOutOfRange { given: u64, oldest: u64, current: u64 },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the layout in {} cannot be read: put a copy of it back, or that of another node, which is the same", path.display())]
    Decode {
        path: PathBuf,
        #[source]
        source: DecodeError,
    },
    #[error("the layout change was interrupted")]
    Interrupted(#[source] Lost),
}
