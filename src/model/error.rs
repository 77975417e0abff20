//! What can go wrong with buckets, keys and objects, as the frontends and the admin operations need to tell it apart.

use garage_block::BlockError;
use garage_rpc::error::{ErrorCode, RpcError};
use garage_rpc::quorum::QuorumError;
use garage_table::TableError;
use garage_types::names::BucketNameError;
use garage_types::{BlockHash, BucketId, KeyId, chain};

use crate::complete::CompleteError;
use crate::digest::{ChecksumAlgorithm, Mismatch};
use crate::state_file::StateFileError;

/// An error of the caller's own body, passed through the write pipeline untouched.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("bucket {0} does not exist")]
    NoSuchBucket(String),
    #[error("the bucket name {name} is taken by another bucket")]
    BucketNameTaken { name: String, bucket: Option<BucketId> },
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// Whether it is deleted shows soon.
    #[error("it is being looked whether the bucket can be deleted; try again")]
    BucketClosing,
    #[error(transparent)]
    BucketName(#[from] BucketNameError),
    #[error("{0}")]
    Conflict(String),
    /// Nobody knows whether the write has happened.
    #[error("another write to the same key came in between; try again")]
    Overtaken,
    #[error("access key {0} does not exist")]
    NoSuchAccessKey(String),
    #[error("clients take too long over too many large documents; try again")]
    TooManyDocuments,
    /// The client of an upload has made no progress for longer than any other, and others have waited for its memory.
    #[error("the client has sent too little for too long while too many others wait; try again")]
    StalledUpload,
    #[error("too many access keys that nobody knows are asked for; try again")]
    UnknownKeys,
    #[error("access key {0} exists already or existed before: a key id is never used twice")]
    KeyExists(KeyId),
    #[error("the key does not exist")]
    NoSuchKey,
    #[error("the object was overwritten or deleted while it was being read")]
    Superseded,
    #[error("the upload does not exist or has ended")]
    NoSuchUpload,
    #[error("the upload is being completed or aborted by another request; try again")]
    UploadBusy,
    #[error(transparent)]
    Complete(#[from] CompleteError),
    #[error("the upload computes {} checksums, not {}", expected.name(), found.name())]
    PartChecksumAlgorithm { expected: ChecksumAlgorithm, found: ChecksumAlgorithm },
    #[error("the copy source is larger than {limit} bytes")]
    CopySourceTooLarge { limit: u64 },
    #[error("a precondition does not hold")]
    PreconditionFailed,
    #[error("the bucket's limit on the number of objects would be exceeded")]
    QuotaObjects,
    #[error("the bucket's limit on its size would be exceeded")]
    QuotaBytes,
    #[error("conditional writes need a replication factor of 1 and a settled layout")]
    ConditionalWriteUnavailable,
    #[error("the body does not match what its headers say: {0}")]
    Mismatch(#[from] Mismatch),
    #[error("the body could not be read")]
    Source(#[source] SourceError),
    #[error("the body is longer than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("block {hash} could not be had from any node that should hold it")]
    BlockUnavailable {
        hash: BlockHash,
        #[source]
        source: Box<RpcError>,
    },
    #[error("too few owners stored block {hash}")]
    BlockNotStored {
        hash: BlockHash,
        #[source]
        source: Box<QuorumError<RpcError>>,
    },
    /// What lies here stays as it is.
    #[error("the file of block {hash} cannot be read ({}), and no other node has given it", chain(here))]
    BlockUnreadable {
        hash: BlockHash,
        here: Box<BlockError>,
        #[source]
        source: Box<ModelError>,
    },
    #[error("a block of this node's own")]
    Block(#[from] BlockError),
    #[error("the content of an object is incomplete: {0}")]
    Damaged(String),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    State(#[from] StateFileError),
    #[error("every node has to answer, and one did not")]
    NodeSilent(#[source] Box<RpcError>),
    /// Known before the body is read.
    #[error("there is no room on this node's disks")]
    NoRoom,
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// Why the owners of something cannot serve it now, as far as a client may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// There are no owners yet.
    NoLayout,
    /// Too few of them answer.
    Silent,
    /// Some are full, and too few others do it.
    Full,
    /// Some answer that they cannot: a disk or a database fails, or does not let them write.
    Failing,
}

impl Outage {
    fn of(quorum: &QuorumError<RpcError>) -> Self {
        let has = |fits: fn(ErrorCode) -> bool| quorum.errors.iter().any(|failed| fits(failed.error.code));
        if has(|code| matches!(code, ErrorCode::Internal | ErrorCode::Corrupt)) {
            Outage::Failing
        } else if has(|code| code == ErrorCode::Full) {
            Outage::Full
        } else {
            Outage::Silent
        }
    }
}

impl ModelError {
    /// Why the owners cannot serve it now, if that is what has failed.
    pub fn outage(&self) -> Option<Outage> {
        match self {
            ModelError::BlockNotStored { source, .. } => Some(Outage::of(source)),
            ModelError::Table(TableError::Quorum(source)) => Some(Outage::of(source)),
            ModelError::Table(TableError::NoLayout) => Some(Outage::NoLayout),
            ModelError::Table(TableError::Db(_)) => Some(Outage::Failing),
            _ => None,
        }
    }

    /// Whether the cause is a full disk, here or on so many owners that the others do not suffice. Where others failed for reasons
    /// that pass, repeating may help, and the answer is another one.
    pub fn is_full(&self) -> bool {
        let all_full = |error: &QuorumError<RpcError>| {
            let full = error.errors.iter().filter(|failed| failed.error.code == ErrorCode::Full).count();
            full > 0 && error.of.saturating_sub(full) < error.needed
        };
        match self {
            ModelError::BlockNotStored { source, .. } => all_full(source),
            ModelError::Table(TableError::Quorum(source)) => all_full(source),
            ModelError::Table(TableError::Db(source)) => source.is_full(),
            ModelError::Table(TableError::NoRoom) | ModelError::NoRoom => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_rpc::error::{ErrorCode, RpcError};
    use garage_rpc::quorum::{NodeError, QuorumError};
    use garage_types::{BlockHash, NodeId};

    use super::{ModelError, Outage};

    #[test]
    fn an_outage_is_told_by_what_the_owners_answered() {
        let outage = |codes: &[ErrorCode]| {
            let failed =
                |code: &ErrorCode| NodeError { node: NodeId::from_bytes([1; 32]), error: RpcError::new(*code, "/mnt/disk") };
            let quorum = QuorumError { needed: 2, reached: 1, of: 3, errors: codes.iter().map(failed).collect() };
            ModelError::BlockNotStored { hash: BlockHash::from_bytes([2; 32]), source: Box::new(quorum) }.outage()
        };
        assert_eq!(outage(&[ErrorCode::Unavailable, ErrorCode::Timeout]), Some(Outage::Silent));
        assert_eq!(outage(&[ErrorCode::Unavailable, ErrorCode::Full]), Some(Outage::Full));
        assert_eq!(outage(&[ErrorCode::Unavailable, ErrorCode::Internal]), Some(Outage::Failing));
        assert_eq!(ModelError::NoSuchKey.outage(), None);
    }
}
