//! What can go wrong with a connection, one variant per cause.

use std::io;

use garage_types::NodeId;

/// Why a connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the other side does not speak the protocol of garage nodes: it began with {}", found.escape_ascii())]
    NotGarage { found: Vec<u8> },
    #[error("the other side speaks version {} of the node protocol, this one {}", theirs.escape_ascii(), ours.escape_ascii())]
    Version { ours: Vec<u8>, theirs: Vec<u8> },
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    #[error("the other side announced {what} {value}, which this version does not know")]
    Purpose { what: &'static str, value: u8 },
    #[error("the handshake took longer than {0:?}")]
    HandshakeTimeout(std::time::Duration),
    #[error("the connection is closed")]
    Closed,
    #[error("the connection broke")]
    Broken {
        #[source]
        source: yamux::ConnectionError,
    },
}

impl NetError {
    /// For `map_err`: names the action that failed.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> NetError {
        move |source| NetError::Io { action, source }
    }
}

/// Which message of the Secret Handshake was not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The usual sign of two different `rpc_secret`.
    #[error("the other side does not use our network key (rpc_secret)")]
    NetworkKey,
    #[error("an ephemeral key is of no use: it lies in a small subgroup")]
    WeakKey,
    /// Seen by the accepting side when the caller expected another node id, and on tampering.
    #[error("the caller could not prove that it knows our node id, or its proof was altered")]
    ClientProof,
    /// Seen by the calling side when the node at that address is not the expected one, and on tampering.
    #[error("the node at this address could not prove that it is {expected}")]
    ServerProof { expected: NodeId },
    #[error("the other side uses our own node id")]
    Ourselves,
    /// Seen by the calling side when the other does not accept its hello or its proof: nothing is said to strangers.
    #[error(
        "the other side closed the connection during the handshake: rpc_secret or the node's id is probably not the same there"
    )]
    Refused,
}

/// A frame of the encrypted stream that is not acceptable. Wrapped in an [`io::Error`] of kind `InvalidData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("an encrypted frame of unknown kind {0}")]
    Kind(u8),
    #[error("an encrypted frame claims {claimed} bytes, more than {max}")]
    TooLong { claimed: usize, max: usize },
    #[error("an encrypted frame was altered, repeated or reordered")]
    Forged,
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}
