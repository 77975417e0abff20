//! The errors of S3, with the codes and statuses that AWS documents.

use garage_http::body::BodyError;
use garage_http::sigv4::AuthError;
use garage_http::{ErrorReply, HeadError};
use garage_model::ModelError;
use garage_model::complete::{CompleteError, OBJECT_SIZE_MAX, PART_SIZE_MIN};
use garage_model::error::Outage;

use garage_types::chain;
use garage_types::names::ObjectKeyError;
use hyper::StatusCode;
use hyper::header::HeaderValue;

use crate::conditions::Condition;

macro_rules! codes {
    ($($name:ident = $status:literal, $message:literal;)*) => {
        /// An error code of S3. Source: AWS, "Error responses", and what AWS's own SDKs expect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($name),* }

        impl Code {
            /// As it stands in `<Code>`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => stringify!($name)),* }
            }

            pub fn status(self) -> StatusCode {
                let number = match self { $(Code::$name => $status),* };
                StatusCode::from_u16(number).expect("the table holds valid statuses")
            }

            /// The code of this name, if there is one here.
            pub fn named(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Code::$name),)* _ => None }
            }

            fn message(self) -> &'static str {
                match self { $(Code::$name => $message),* }
            }
        }
    };
}

codes! {
    AccessDenied = 403, "Access Denied";
    AccessForbidden = 403, "CORSResponse: CORS is not enabled for this bucket.";
    AuthorizationHeaderMalformed = 400, "The authorization header is malformed.";
    AuthorizationQueryParametersError = 400, "Query-string authentication version 4 requires all its parameters.";
    BadDigest = 400, "The digest you specified did not match what we received.";
    BucketAlreadyExists = 409, "The requested bucket name is not available. The bucket namespace is shared by all users of the system.";
    BucketAlreadyOwnedByYou = 409, "Your previous request to create the named bucket succeeded and you already own it.";
    BucketNotEmpty = 409, "The bucket you tried to delete is not empty.";
    ConditionalRequestConflict = 409, "The conditional request cannot succeed due to a conflicting operation against this resource.";
    EntityTooLarge = 400, "Your proposed upload exceeds the maximum allowed object size.";
    EntityTooSmall = 400, "Your proposed upload is smaller than the minimum allowed object size.";
    IllegalLocationConstraintException = 400, "The location constraint is incompatible with the region this request was sent to.";
    IncompleteBody = 400, "You did not provide the number of bytes specified by the Content-Length HTTP header.";
    InsufficientStorage = 507, "There is not enough free space to store this object.";
    InternalError = 500, "We encountered an internal error. Please try again.";
    InvalidAccessKeyId = 403, "The access key id you provided does not exist in our records.";
    InvalidArgument = 400, "Invalid argument.";
    InvalidBucketName = 400, "The specified bucket is not valid.";
    InvalidDigest = 400, "The Content-MD5 or checksum you specified is not valid.";
    InvalidPart = 400, "One or more of the specified parts could not be found. The part might not have been uploaded, or the specified entity tag might not have matched the part's entity tag.";
    InvalidPartOrder = 400, "The list of parts was not in ascending order. Parts must be ordered by part number.";
    InvalidPartNumber = 416, "The requested partnumber is not satisfiable.";
    InvalidRange = 416, "The requested range is not satisfiable.";
    InvalidRequest = 400, "Invalid request.";
    InvalidToken = 400, "The provided token is malformed or otherwise not valid.";
    InvalidURI = 400, "Couldn't parse the specified URI.";
    KeyTooLongError = 400, "Your key is too long.";
    MalformedXML = 400, "The XML you provided was not well-formed or did not validate against our published schema.";
    MalformedTrailerError = 400, "The request contained trailing data that was not well-formed or did not conform to our published schema.";
    MaxMessageLengthExceeded = 400, "Your request was too big.";
    MetadataTooLarge = 400, "Your metadata headers exceed the maximum allowed metadata size.";
    MethodNotAllowed = 405, "The specified method is not allowed against this resource.";
    MissingContentLength = 411, "You must provide the Content-Length HTTP header.";
    MissingRequestBodyError = 400, "Request body is empty.";
    NoSuchBucket = 404, "The specified bucket does not exist.";
    NoSuchBucketPolicy = 404, "The bucket policy does not exist.";
    NoSuchCORSConfiguration = 404, "The CORS configuration does not exist.";
    NoSuchKey = 404, "The specified key does not exist.";
    NoSuchLifecycleConfiguration = 404, "The lifecycle configuration does not exist.";
    NoSuchPublicAccessBlockConfiguration = 404, "The public access block configuration was not found.";
    NoSuchTagSet = 404, "There is no tag set associated with the bucket.";
    NoSuchUpload = 404, "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.";
    NoSuchVersion = 404, "The specified version does not exist.";
    NoSuchWebsiteConfiguration = 404, "The specified bucket does not have a website configuration.";
    NotImplemented = 501, "A header or query you provided implies functionality that is not implemented.";
    NotModified = 304, "Not Modified";
    ObjectLockConfigurationNotFoundError = 404, "Object Lock configuration does not exist for this bucket.";
    OperationAborted = 409, "A conflicting conditional operation is currently in progress against this resource. Try again.";
    OwnershipControlsNotFoundError = 404, "The bucket ownership controls were not found.";
    PreconditionFailed = 412, "At least one of the pre-conditions you specified did not hold";
    QuotaExceeded = 403, "The bucket's quota would be exceeded.";
    ReplicationConfigurationNotFoundError = 404, "The replication configuration was not found.";
    RequestTimeout = 400, "Your socket connection to the server was not read from or written to within the timeout period.";
    RequestTimeTooSkewed = 403, "The difference between the request time and the server's time is too large.";
    ServerSideEncryptionConfigurationNotFoundError = 404, "The server side encryption configuration was not found.";
    ServiceUnavailable = 503, "Service is unable to handle request.";
    SignatureDoesNotMatch = 403, "The request signature we calculated does not match the signature you provided. Check your key and signing method.";
    SlowDown = 503, "Please reduce your request rate.";
    XAmzContentSHA256Mismatch = 400, "The provided 'x-amz-content-sha256' header does not match what was computed.";
}

/// An error as the client will see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Error {
    pub code: Code,
    pub message: String,
    /// Elements after the message, such as `Region`.
    pub extra: Vec<(&'static str, String)>,
    pub headers: Vec<(&'static str, String)>,
}

impl From<Code> for S3Error {
    fn from(code: Code) -> Self {
        S3Error { code, message: code.message().to_owned(), extra: Vec::new(), headers: Vec::new() }
    }
}

impl S3Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        S3Error { message: message.into(), ..code.into() }
    }

    /// 412, naming the condition: clients decide by the name and by AWS's very words.
    pub fn precondition_failed(condition: &str) -> Self {
        S3Error::from(Code::PreconditionFailed).with("Condition", condition)
    }

    /// The error of a write. `condition`: the one that failed, if one did.
    pub fn of_write(error: ModelError, condition: Condition) -> Self {
        match error {
            ModelError::PreconditionFailed => S3Error::precondition_failed(condition.name()),
            other => other.into(),
        }
    }

    /// 501 for something that exists at AWS and not here.
    pub fn not_implemented(what: &str) -> Self {
        S3Error::new(Code::NotImplemented, format!("{what} is not implemented."))
    }

    pub fn invalid_argument(message: impl Into<String>, name: &str, value: &str) -> Self {
        S3Error::new(Code::InvalidArgument, message).with("ArgumentName", name).with("ArgumentValue", value)
    }

    #[must_use]
    pub fn with(mut self, element: &'static str, text: &str) -> Self {
        self.extra.push((element, text.to_owned()));
        self
    }

    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

impl From<ErrorReply> for S3Error {
    /// Errors of the signature, the head and the body come with AWS's own words.
    fn from(reply: ErrorReply) -> Self {
        let Some(code) = Code::named(reply.code) else {
            return S3Error::new(Code::InvalidRequest, reply.message);
        };
        let extra = reply.extra.into_iter().map(|extra| (extra.name, extra.text)).collect();
        S3Error { code, message: reply.message, extra, headers: Vec::new() }
    }
}

impl From<AuthError> for S3Error {
    fn from(error: AuthError) -> Self {
        ErrorReply::from(error).into()
    }
}

impl From<HeadError> for S3Error {
    fn from(error: HeadError) -> Self {
        ErrorReply::from(error).into()
    }
}

impl From<BodyError> for S3Error {
    fn from(error: BodyError) -> Self {
        ErrorReply::from(error).into()
    }
}

impl S3Error {
    /// The error as the shared renderer takes it.
    pub fn into_reply(self, resource: &str) -> ErrorReply {
        let mut reply = ErrorReply::new(self.code.status(), self.code.as_str(), self.message).on(resource);
        for (name, text) in self.extra {
            reply = reply.with(name, text);
        }
        for (name, value) in self.headers {
            // What cannot stand in a header is left out: the document says it as well.
            if let Ok(value) = HeaderValue::from_str(&value) {
                reply.headers.insert(name, value);
            }
        }
        reply
    }
}

impl From<ObjectKeyError> for S3Error {
    fn from(error: ObjectKeyError) -> Self {
        match error {
            ObjectKeyError::Empty => S3Error::new(Code::InvalidURI, error.to_string()),
            ObjectKeyError::TooLong { length } => S3Error::from(Code::KeyTooLongError)
                .with("Size", &length.to_string())
                .with("MaxSizeAllowed", &garage_types::ObjectKey::LENGTH_MAX.to_string()),
        }
    }
}

impl From<ModelError> for S3Error {
    fn from(error: ModelError) -> Self {
        if error.is_full() {
            return Code::InsufficientStorage.into();
        }
        match error {
            ModelError::NoSuchBucket(name) => S3Error::from(Code::NoSuchBucket).with("BucketName", &name),
            ModelError::BucketNameTaken { .. } => Code::BucketAlreadyExists.into(),
            ModelError::BucketNotEmpty => Code::BucketNotEmpty.into(),
            ModelError::BucketName(error) => S3Error::new(Code::InvalidBucketName, error.to_string()),
            ModelError::Conflict(message) => S3Error::new(Code::OperationAborted, message),
            ModelError::NoSuchAccessKey(_) => Code::InvalidAccessKeyId.into(),
            ModelError::KeyExists(_) => S3Error::new(Code::InvalidRequest, error.to_string()),
            ModelError::NoSuchKey => Code::NoSuchKey.into(),
            ModelError::NoSuchUpload => Code::NoSuchUpload.into(),
            ModelError::UploadBusy => S3Error::new(Code::OperationAborted, sentence(&error.to_string())),
            ModelError::Complete(error) => complete_error(&error),
            ModelError::PartChecksumAlgorithm { expected, found } => {
                let (expected, found) = (expected.name().to_lowercase(), found.name().to_lowercase());
                let message =
                    format!("Checksum Type mismatch occurred, expected checksum Type: {expected}, actual checksum Type: {found}");
                S3Error::new(Code::InvalidRequest, message)
            }
            ModelError::CopySourceTooLarge { limit } => S3Error::new(
                Code::InvalidRequest,
                format!("The specified copy source is larger than the maximum allowable size for a copy source: {limit}"),
            ),
            ModelError::PreconditionFailed => Code::PreconditionFailed.into(),
            ModelError::QuotaObjects | ModelError::QuotaBytes => S3Error::new(Code::QuotaExceeded, error.to_string()),
            ModelError::ConditionalWriteUnavailable => S3Error::new(Code::NotImplemented, error.to_string()),
            ModelError::Mismatch(mismatch) => mismatch_error(&mismatch),
            ModelError::Source(source) => source_error(source),
            ModelError::TooLarge { limit } => S3Error::from(Code::EntityTooLarge).with("MaxSizeAllowed", &limit.to_string()),
            ModelError::UnknownKeys | ModelError::TooManyDocuments => {
                tracing::warn!(error = %chain(&error), "request refused for now");
                Code::SlowDown.into()
            }
            ModelError::StalledUpload => {
                tracing::warn!(error = %chain(&error), "an upload was given up");
                Code::RequestTimeout.into()
            }
            ModelError::BlockUnavailable { .. } | ModelError::BlockUnreadable { .. } => {
                unavailable(&error, "The storage nodes cannot give the data of this object now.")
            }
            ModelError::BlockNotStored { .. } => unavailable(&error, write_outage(&error)),
            ModelError::NodeSilent(_) => unavailable(&error, "Every storage node has to answer this request, and one does not."),
            ModelError::NoRoom
            | ModelError::BucketClosing
            | ModelError::Overtaken
            | ModelError::Superseded
            | ModelError::ShuttingDown => unavailable(&error, &sentence(&error.to_string())),
            ModelError::Table(ref table) => match table.damage() {
                Some(damage) => {
                    tracing::error!(error = %chain(&error), "request failed on damaged metadata");
                    S3Error::new(Code::InternalError, sentence(&format!("{damage}, and no good copy of it answers")))
                }
                None => unavailable(&error, metadata_outage(&error)),
            },
            ModelError::Block(_) | ModelError::State(_) | ModelError::Damaged(_) => internal(&error),
        }
    }
}

fn complete_error(error: &CompleteError) -> S3Error {
    match error {
        CompleteError::NoParts => Code::MalformedXML.into(),
        CompleteError::Order { .. } => Code::InvalidPartOrder.into(),
        CompleteError::InvalidPart { number, etag } => {
            S3Error::from(Code::InvalidPart).with("PartNumber", &number.to_string()).with("ETag", etag)
        }
        CompleteError::TooSmall { number, etag, size } => S3Error::from(Code::EntityTooSmall)
            .with("ProposedSize", &size.to_string())
            .with("MinSizeAllowed", &PART_SIZE_MIN.to_string())
            .with("PartNumber", &number.to_string())
            .with("ETag", etag),
        CompleteError::Size { expected, found } => S3Error::new(
            Code::InvalidRequest,
            format!("The provided 'x-amz-mp-object-size' header value {expected} does not match what was computed: {found}"),
        ),
        CompleteError::TooLarge { size } => S3Error::from(Code::EntityTooLarge)
            .with("ProposedSize", &size.to_string())
            .with("MaxSizeAllowed", &OBJECT_SIZE_MAX.to_string()),
        CompleteError::Checksum { .. } => S3Error::new(Code::BadDigest, sentence(&error.to_string())),
        CompleteError::ChecksumKind => S3Error::new(Code::InvalidRequest, sentence(&error.to_string())),
        CompleteError::Damaged(_) => internal(error),
    }
}

fn mismatch_error(mismatch: &garage_model::digest::Mismatch) -> S3Error {
    use garage_model::digest::Mismatch;
    match mismatch {
        Mismatch::Length { .. } => Code::IncompleteBody.into(),
        Mismatch::Md5 { expected, calculated } | Mismatch::Checksum { expected, calculated, .. } => {
            S3Error::new(Code::BadDigest, sentence(&mismatch.to_string()))
                .with("ExpectedDigest", expected)
                .with("CalculatedDigest", calculated)
        }
    }
}

/// Our own body types hand their S3 error through the pipeline.
fn source_error(source: garage_model::error::SourceError) -> S3Error {
    match source.downcast::<SourceFailure>() {
        Ok(failure) => failure.0,
        Err(other) => internal(&*other),
    }
}

/// An [`S3Error`] on its way through the write pipeline.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct SourceFailure(pub S3Error);

/// 503, with the cause in words: SDKs send the request again, and people need to know that their rate is not what is wrong. The log has
/// the paths and nodes, which are none of the client's business.
fn unavailable(error: &dyn std::error::Error, cause: &str) -> S3Error {
    tracing::warn!(error = %chain(error), "request refused for now");
    S3Error::new(Code::ServiceUnavailable, cause)
}

fn write_outage(error: &ModelError) -> &'static str {
    match error.outage() {
        Some(Outage::Failing) | None => "The storage nodes cannot write this object now.",
        Some(Outage::Full) => "Some storage nodes are full, and too few others can store this object now.",
        Some(Outage::Silent) => "Too few of the storage nodes that should store this object answer now.",
        Some(Outage::NoLayout) => NO_LAYOUT,
    }
}

fn metadata_outage(error: &ModelError) -> &'static str {
    match error.outage() {
        Some(Outage::Failing) => "The storage nodes cannot read or write the metadata of this request now.",
        Some(Outage::Full) => "Some storage nodes are full, and too few others can store the metadata of this request now.",
        Some(Outage::Silent) => "Too few of the storage nodes that have the metadata of this request answer now.",
        Some(Outage::NoLayout) => NO_LAYOUT,
        None => "The metadata of this request is not available now.",
    }
}

const NO_LAYOUT: &str = "The cluster has no layout yet, so that no node stores anything.";

fn internal(error: &dyn std::error::Error) -> S3Error {
    tracing::error!(error = %chain(error), "request failed");
    Code::InternalError.into()
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

#[cfg(test)]
mod tests {
    use garage_model::ModelError;

    use super::{Code, S3Error};

    #[test]
    fn only_who_asks_for_too_much_is_told_to_slow_down() {
        for too_much in [ModelError::UnknownKeys, ModelError::TooManyDocuments] {
            assert_eq!(S3Error::from(too_much).code, Code::SlowDown);
        }
        let causes = [
            (ModelError::ShuttingDown, "The node is shutting down."),
            (ModelError::Superseded, "The object was overwritten or deleted while it was being read."),
            (ModelError::Overtaken, "Another write to the same key came in between; try again."),
        ];
        for (error, message) in causes {
            let reply = S3Error::from(error);
            assert_eq!((reply.code, reply.message.as_str()), (Code::ServiceUnavailable, message));
        }
        assert_eq!(Code::ServiceUnavailable.status(), Code::SlowDown.status());
    }
}
