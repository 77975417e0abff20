//! The error that crosses the network: a typed code, so that the other side can tell "retry" from "never", and a message for people.

use serde::{Deserialize, Serialize};

/// What kind of failure it is. The numbers are the wire format: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The node cannot be reached, or is not ready to answer.
    Unavailable,
    /// No answer in time; whether the call took effect is unknown.
    Timeout,
    /// The caller's layout version is older than the oldest live one.
    StaleLayout,
    /// The caller's garbage-collection epoch of the partition has passed.
    StaleEpoch,
    NotFound,
    /// The caller may not do this.
    Refused,
    /// The request could not be understood, or breaks a limit.
    BadRequest,
    /// No space left on the node.
    Full,
    /// The node's own copy is damaged.
    Corrupt,
    /// The node (an older version, probably) has no such endpoint.
    UnknownEndpoint,
    /// A bug or an unforeseen failure; also every code of a newer version that this one does not know.
    Internal,
}

impl ErrorCode {
    const fn number(self) -> u16 {
        match self {
            ErrorCode::Internal => 0,
            ErrorCode::Unavailable => 1,
            ErrorCode::Timeout => 2,
            ErrorCode::StaleLayout => 3,
            ErrorCode::StaleEpoch => 4,
            ErrorCode::NotFound => 5,
            ErrorCode::Refused => 6,
            ErrorCode::BadRequest => 7,
            ErrorCode::Full => 8,
            ErrorCode::Corrupt => 9,
            ErrorCode::UnknownEndpoint => 10,
        }
    }

    const fn from_number(number: u16) -> Self {
        match number {
            1 => ErrorCode::Unavailable,
            2 => ErrorCode::Timeout,
            3 => ErrorCode::StaleLayout,
            4 => ErrorCode::StaleEpoch,
            5 => ErrorCode::NotFound,
            6 => ErrorCode::Refused,
            7 => ErrorCode::BadRequest,
            8 => ErrorCode::Full,
            9 => ErrorCode::Corrupt,
            10 => ErrorCode::UnknownEndpoint,
            _ => ErrorCode::Internal,
        }
    }
}

/// Why a call has no reply. `message` is for people and logs; decisions are taken by `code`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    pub code: ErrorCode,
    pub message: String,
}

impl RpcError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        RpcError { code, message: message.into() }
    }

    /// Whether the same request may succeed later or elsewhere: after the node is back, or once the caller has refreshed its
    /// layout or epoch.
    pub fn is_retryable(&self) -> bool {
        match self.code {
            ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::StaleLayout | ErrorCode::StaleEpoch => true,
            ErrorCode::NotFound
            | ErrorCode::Refused
            | ErrorCode::BadRequest
            | ErrorCode::Full
            | ErrorCode::Corrupt
            | ErrorCode::UnknownEndpoint
            | ErrorCode::Internal => false,
        }
    }
}

/// [`RpcError`] on the wire.
#[derive(Serialize, Deserialize)]
pub(crate) struct WireError {
    #[serde(rename = "c")]
    code: u16,
    #[serde(rename = "m", default)]
    message: String,
}

impl From<RpcError> for WireError {
    fn from(error: RpcError) -> Self {
        WireError { code: error.code.number(), message: error.message }
    }
}

impl From<WireError> for RpcError {
    fn from(error: WireError) -> Self {
        RpcError { code: ErrorCode::from_number(error.code), message: error.message }
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorCode;

    #[test]
    fn codes_keep_their_numbers_and_unknown_ones_are_internal() {
        for number in 0..=10 {
            assert_eq!(ErrorCode::from_number(number).number(), number);
        }
        assert_eq!(ErrorCode::from_number(11), ErrorCode::Internal);
        assert_eq!(ErrorCode::from_number(u16::MAX), ErrorCode::Internal);
    }
}
