//! Why a body is not what was promised, and the words AWS has for it.

use hyper::StatusCode;

use crate::error::ErrorReply;

/// What can be wrong with a request's body. All are the client's or its line's fault.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("You must provide the Content-Length HTTP header.")]
    MissingLength,
    #[error("x-amz-decoded-content-length is not a number")]
    MalformedLength,
    #[error("You did not provide the number of bytes specified by the Content-Length HTTP header.")]
    Incomplete { expected: u64, received: u64 },
    #[error("The request body terminated unexpectedly.")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("The request body terminated unexpectedly.")]
    Truncated,
    #[error(
        "Your socket connection to the server was not read from or written to within the timeout period. Idle connections will be closed."
    )]
    Idle,
    /// A document, for which others wait.
    #[error("The request body was sent too slowly.")]
    TooSlow,
    #[error("The provided 'x-amz-content-sha256' header does not match what was computed.")]
    DigestMismatch { declared: String, computed: String },
    #[error("The request signature we calculated does not match the signature you provided. Check your key and signing method.")]
    ChunkSignatureMismatch,
    #[error("The chunked body is malformed: {problem}.")]
    MalformedChunk { problem: &'static str },
    #[error("The request contained trailing data that was not well-formed or did not conform to our published schema.")]
    MalformedTrailer { problem: &'static str },
    /// A document, which is held as a whole; objects have limits of their own.
    #[error("Your request was too big.")]
    TooLarge { length_max: u64 },
}

impl BodyError {
    /// AWS's error code.
    pub fn code(&self) -> &'static str {
        match self {
            BodyError::MissingLength => "MissingContentLength",
            BodyError::MalformedLength => "InvalidArgument",
            BodyError::Incomplete { .. } | BodyError::Transport(_) | BodyError::Truncated => "IncompleteBody",
            BodyError::Idle | BodyError::TooSlow => "RequestTimeout",
            BodyError::DigestMismatch { .. } => "XAmzContentSHA256Mismatch",
            BodyError::ChunkSignatureMismatch => "SignatureDoesNotMatch",
            BodyError::MalformedChunk { .. } => "InvalidRequest",
            BodyError::MalformedTrailer { .. } => "MalformedTrailerError",
            BodyError::TooLarge { .. } => "MaxMessageLengthExceeded",
        }
    }

    pub fn status(&self) -> StatusCode {
        match self {
            BodyError::MissingLength => StatusCode::LENGTH_REQUIRED,
            BodyError::ChunkSignatureMismatch => StatusCode::FORBIDDEN,
            BodyError::MalformedLength
            | BodyError::Incomplete { .. }
            | BodyError::Transport(_)
            | BodyError::Truncated
            | BodyError::Idle
            | BodyError::TooSlow
            | BodyError::DigestMismatch { .. }
            | BodyError::MalformedChunk { .. }
            | BodyError::MalformedTrailer { .. }
            | BodyError::TooLarge { .. } => StatusCode::BAD_REQUEST,
        }
    }
}

impl From<BodyError> for ErrorReply {
    fn from(error: BodyError) -> Self {
        let reply = ErrorReply::new(error.status(), error.code(), error.to_string());
        match error {
            BodyError::DigestMismatch { declared, computed } => {
                reply.with("ClientComputedContentSHA256", declared).with("S3ComputedContentSHA256", computed)
            }
            BodyError::TooLarge { length_max } => reply.with("MaxMessageLengthBytes", length_max.to_string()),
            _ => reply,
        }
    }
}
