//! Why a request is not believed, and the words AWS has for it.

use garage_types::Timestamp;
use hyper::StatusCode;

use crate::dates::{amz_basic, iso8601_millis};
use crate::error::ErrorReply;
use crate::head::HeadError;

/// Where a credential was read from; decides the code of several errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Header,
    Query,
    Form,
}

/// Why a request's credential cannot be accepted. [`AuthError::code`] and [`AuthError::status`] are AWS's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("{source}")]
    Head {
        #[from]
        source: HeadError,
    },
    #[error("Only one auth mechanism allowed; use either the X-Amz-Algorithm query parameter or the Authorization header")]
    TwoMechanisms,
    #[error("The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")]
    UnsupportedMechanism,
    #[error("{}{problem}", match place { Place::Header => "The authorization header is malformed; ", _ => "" })]
    Malformed { place: Place, problem: String },
    #[error("{}the region '{given}' is wrong; expecting '{expected}'", match place { Place::Header => "The authorization header is malformed; ", _ => "Error parsing the X-Amz-Credential parameter; " })]
    WrongRegion { place: Place, given: String, expected: String },
    #[error("AWS authentication requires a valid Date or x-amz-date header")]
    MissingDate,
    #[error("The difference between the request time and the current time is too large.")]
    Skewed { request: Timestamp, server: Timestamp },
    #[error("Request has expired")]
    Expired { at: Timestamp, server: Timestamp },
    #[error("Request is not yet valid")]
    NotYetValid { from: Timestamp, server: Timestamp },
    #[error("There were headers present in the request which were not signed")]
    HeadersNotSigned { names: Vec<String> },
    #[error("The signed header {name} is not part of the request.")]
    SignedHeaderMissing { name: String },
    #[error("Missing required header for this request: {name}")]
    MissingHeader { name: &'static str },
    #[error(
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value."
    )]
    ContentSha256,
    #[error("The header x-amz-trailer {problem}.")]
    TrailerDeclaration { problem: &'static str },
    #[error("The AWS Access Key Id you provided does not exist in our records.")]
    UnknownKey { key_id: String },
    #[error("The request signature we calculated does not match the signature you provided. Check your key and signing method.")]
    SignatureMismatch,
}

impl AuthError {
    /// AWS's error code.
    pub fn code(&self) -> &'static str {
        match self {
            AuthError::Head { source } => source.code(),
            AuthError::TwoMechanisms | AuthError::ContentSha256 => "InvalidArgument",
            AuthError::UnsupportedMechanism | AuthError::MissingHeader { .. } | AuthError::TrailerDeclaration { .. } => {
                "InvalidRequest"
            }
            AuthError::Malformed { place, .. } | AuthError::WrongRegion { place, .. } => match place {
                Place::Header => "AuthorizationHeaderMalformed",
                Place::Query => "AuthorizationQueryParametersError",
                Place::Form => "InvalidArgument",
            },
            AuthError::Skewed { .. } => "RequestTimeTooSkewed",
            AuthError::MissingDate
            | AuthError::Expired { .. }
            | AuthError::NotYetValid { .. }
            | AuthError::HeadersNotSigned { .. } => "AccessDenied",
            AuthError::UnknownKey { .. } => "InvalidAccessKeyId",
            AuthError::SignedHeaderMissing { .. } | AuthError::SignatureMismatch => "SignatureDoesNotMatch",
        }
    }

    pub fn status(&self) -> StatusCode {
        match self {
            AuthError::Head { .. }
            | AuthError::TwoMechanisms
            | AuthError::ContentSha256
            | AuthError::UnsupportedMechanism
            | AuthError::MissingHeader { .. }
            | AuthError::TrailerDeclaration { .. }
            | AuthError::Malformed { .. }
            | AuthError::WrongRegion { .. } => StatusCode::BAD_REQUEST,
            AuthError::Skewed { .. }
            | AuthError::MissingDate
            | AuthError::Expired { .. }
            | AuthError::NotYetValid { .. }
            | AuthError::HeadersNotSigned { .. }
            | AuthError::UnknownKey { .. }
            | AuthError::SignedHeaderMissing { .. }
            | AuthError::SignatureMismatch => StatusCode::FORBIDDEN,
        }
    }
}

impl From<AuthError> for ErrorReply {
    fn from(error: AuthError) -> Self {
        let reply = ErrorReply::new(error.status(), error.code(), error.to_string());
        match error {
            // Clients read the right region here and try again.
            AuthError::WrongRegion { expected, .. } => reply.with("Region", expected),
            AuthError::Skewed { request, server } => reply
                .with("RequestTime", amz_basic(request))
                .with("ServerTime", iso8601_millis(server))
                .with("MaxAllowedSkewMilliseconds", super::SKEW_MAX_MILLIS.to_string()),
            AuthError::Expired { at, server } => {
                reply.with("Expires", iso8601_millis(at)).with("ServerTime", iso8601_millis(server))
            }
            AuthError::HeadersNotSigned { names } => reply.with("HeadersNotSigned", names.join(", ")),
            AuthError::UnknownKey { key_id } => reply.with("AWSAccessKeyId", key_id),
            _ => reply,
        }
    }
}
