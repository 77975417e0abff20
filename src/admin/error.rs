//! What can go wrong with an operation, and how it is told to the caller.

use garage_block::scrub::ScrubRefusal;
use garage_model::ModelError;
use garage_rpc::layout::LayoutError;
use garage_table::TableError;
use garage_types::KeyId;
use garage_types::config::AddressError;
use garage_types::names::{KeyIdError, ObjectKeyError};
use serde::{Deserialize, Serialize};

use crate::databases::AcceptRefusal;
use crate::search::SearchError;
use crate::workers::VariableError;

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Model(ModelError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error(transparent)]
    KeyId(#[from] KeyIdError),
    #[error(transparent)]
    ObjectKey(#[from] ObjectKeyError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("give exactly one of {0}")]
    ExactlyOneOf(&'static str),
    #[error("{first} and {second} exclude each other")]
    Exclusive { first: &'static str, second: &'static str },
    #[error("node {node}: a role needs {missing}, or the change must be a removal")]
    IncompleteRole { node: garage_types::NodeId, missing: &'static str },
    #[error("node {node}: remove stands alone, without zone, tags or capacity")]
    AmbiguousRole { node: garage_types::NodeId },
    #[error(
        "node {} is configured with replication_factor = {found}, this node with {configured}: neither takes in a layout of the other. \
         Put it right in the configuration file that is wrong, and restart that node", node.short()
    )]
    OtherReplicationFactor { node: garage_types::NodeId, found: usize, configured: usize },
    #[error(
        "node {} is configured with consistency_mode = \"{found}\", this node with \"{configured}\": the stricter is in force on \
         both. Put it right in the configuration file that is wrong, and restart that node", node.short()
    )]
    OtherConsistencyMode { node: garage_types::NodeId, found: String, configured: &'static str },
    #[error("nothing is staged: the layout stays as it is")]
    NothingStaged,
    #[error("the secret of the key {id} is too easily guessed: it needs at least {} characters", crate::keys::SECRET_LENGTH_MIN)]
    ShortSecret { id: KeyId },
    #[error("{name} is not a name of bucket {bucket}")]
    NotItsName { name: String, bucket: garage_types::BucketId },
    #[error("there is no worker {id}: garage worker list shows those there are")]
    NoSuchWorker { id: u64 },
    #[error("no block on this node begins with {pattern}")]
    NoSuchBlock { pattern: String },
    #[error("{pattern:?} does not name one block: give at least 4 hexadecimal digits of its name, or more")]
    BlockPattern { pattern: String },
    #[error("{found} rows that were set aside on this node begin with {id:?}: garage repair set-aside list shows them")]
    NoSuchSetAside { id: String, found: usize },
    #[error("this node is rebuilding its database: what was set aside is all there is, should the others be lost")]
    StillRebuilding,
    #[error(
        "there are {copies} copies of each row: damaged ones are repaired from the others, once enough of their nodes answer"
    )]
    OthersHaveIt { copies: usize },
    #[error("no damaged row is known on this node: a scrub looks at all of them (garage repair --yes scrub start)")]
    NoDamagedRows,
    #[error(
        "{rows} damaged rows of objects were given up; {kept} rows of other kinds stay as they are, since more than themselves would be lost \
         with them. The log names them. Put a snapshot of the database back"
    )]
    DamagedRowsKept { rows: u64, kept: u64 },
    #[error(transparent)]
    Accept(#[from] AcceptRefusal),
    #[error(transparent)]
    Variable(#[from] VariableError),
    #[error(transparent)]
    Scrub(#[from] ScrubRefusal),
    #[error("{}", .0.message)]
    Elsewhere(ApiError),
}

impl From<ModelError> for AdminError {
    fn from(error: ModelError) -> Self {
        AdminError::Model(error)
    }
}

impl From<TableError> for AdminError {
    fn from(error: TableError) -> Self {
        AdminError::Model(ModelError::Table(error))
    }
}

/// An error as it reaches the caller: over RPC, or as the body of an HTTP reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code} ({status}): {message}")]
pub struct ApiError {
    /// A word for programs; a text, so that a newer node may know more of them.
    pub code: String,
    /// As an HTTP reply would have it.
    pub status: u16,
    /// For people, causes included.
    pub message: String,
}

/// The word and the status of an error.
struct Class(&'static str, u16);

const INVALID_REQUEST: Class = Class("InvalidRequest", 400);
const CONFLICT: Class = Class("Conflict", 409);
const INTERNAL: Class = Class("InternalError", 500);
const UNAVAILABLE: Class = Class("ServiceUnavailable", 503);

impl AdminError {
    fn class(&self) -> Class {
        match self {
            AdminError::Model(error) => class_of_model(error),
            AdminError::Layout(error) => class_of_layout(error),
            AdminError::Search(SearchError::Node { .. }) => INVALID_REQUEST,
            AdminError::Search(SearchError::Key { found: 0, .. }) => Class("NoSuchAccessKey", 404),
            AdminError::Search(SearchError::Bucket { found: 0, .. }) => Class("NoSuchBucket", 404),
            AdminError::Search(SearchError::Key { .. } | SearchError::Bucket { .. }) => INVALID_REQUEST,
            AdminError::KeyId(_)
            | AdminError::ObjectKey(_)
            | AdminError::Address(_)
            | AdminError::ExactlyOneOf(_)
            | AdminError::Exclusive { .. }
            | AdminError::IncompleteRole { .. }
            | AdminError::AmbiguousRole { .. }
            | AdminError::NothingStaged
            | AdminError::OtherReplicationFactor { .. }
            | AdminError::OtherConsistencyMode { .. }
            | AdminError::ShortSecret { .. }
            | AdminError::NotItsName { .. }
            | AdminError::BlockPattern { .. }
            | AdminError::Variable(_)
            | AdminError::Scrub(_) => INVALID_REQUEST,
            AdminError::NoSuchSetAside { .. } => Class("NoSuchRow", 404),
            AdminError::StillRebuilding
            | AdminError::OthersHaveIt { .. }
            | AdminError::NoDamagedRows
            | AdminError::DamagedRowsKept { .. }
            | AdminError::Accept(_) => CONFLICT,
            AdminError::NoSuchWorker { .. } => Class("NoSuchWorker", 404),
            AdminError::NoSuchBlock { .. } => Class("NoSuchBlock", 404),
            AdminError::Elsewhere(_) => INTERNAL,
        }
    }
}

fn class_of_model(error: &ModelError) -> Class {
    match error {
        ModelError::NoSuchBucket(_) => Class("NoSuchBucket", 404),
        ModelError::BucketNameTaken { .. } => Class("BucketAlreadyExists", 409),
        ModelError::BucketNotEmpty => Class("BucketNotEmpty", 409),
        ModelError::NoSuchAccessKey(_) => Class("NoSuchAccessKey", 404),
        ModelError::KeyExists(_) => Class("KeyAlreadyExists", 409),
        ModelError::NoSuchKey => Class("NoSuchKey", 404),
        ModelError::Conflict(_) | ModelError::UploadBusy => CONFLICT,
        ModelError::BucketName(_) => INVALID_REQUEST,
        ModelError::Table(_)
        | ModelError::BlockUnavailable { .. }
        | ModelError::BlockUnreadable { .. }
        | ModelError::BlockNotStored { .. }
        | ModelError::Superseded
        | ModelError::UnknownKeys
        | ModelError::TooManyDocuments
        | ModelError::NoRoom
        | ModelError::BucketClosing
        | ModelError::Overtaken
        | ModelError::NodeSilent(_)
        | ModelError::ShuttingDown => UNAVAILABLE,
        // No operation here writes an object or reads its bytes.
        ModelError::NoSuchUpload
        | ModelError::Complete(_)
        | ModelError::PartChecksumAlgorithm { .. }
        | ModelError::StalledUpload
        | ModelError::CopySourceTooLarge { .. }
        | ModelError::PreconditionFailed
        | ModelError::QuotaObjects
        | ModelError::QuotaBytes
        | ModelError::ConditionalWriteUnavailable
        | ModelError::Mismatch(_)
        | ModelError::Source(_)
        | ModelError::TooLarge { .. }
        | ModelError::Block(_)
        | ModelError::State(_)
        | ModelError::Damaged(_) => INTERNAL,
    }
}

fn class_of_layout(error: &LayoutError) -> Class {
    match error {
        LayoutError::Conflict { .. } => CONFLICT,
        LayoutError::Assign(_)
        | LayoutError::WrongVersion { .. }
        | LayoutError::NoConflict
        | LayoutError::DigestPrefix { .. }
        | LayoutError::UnknownVersion { .. }
        | LayoutError::CapacityTooSmall { .. }
        | LayoutError::ZoneWithoutName
        | LayoutError::NoRole { .. }
        | LayoutError::RedundancyOutOfRange { .. }
        | LayoutError::NothingToSkip
        | LayoutError::NobodyIsDead
        | LayoutError::NotAcknowledged { .. }
        | LayoutError::SkipOutOfRange { .. } => INVALID_REQUEST,
        LayoutError::ReplicationFactor { .. }
        | LayoutError::File(_)
        | LayoutError::Decode { .. }
        | LayoutError::Interrupted(_) => INTERNAL,
    }
}

impl From<AdminError> for ApiError {
    fn from(error: AdminError) -> Self {
        if let AdminError::Elsewhere(error) = error {
            return error;
        }
        let Class(code, status) = error.class();
        ApiError { code: code.to_owned(), status, message: with_causes(&error) }
    }
}

/// An error and its causes, outermost first, each said once.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use garage_model::ModelError;
    use garage_rpc::layout::LayoutError;

    use super::{AdminError, ApiError};
    use crate::search::SearchError;

    #[test]
    fn errors_have_the_codes_and_statuses_of_the_interface() {
        let shown = |error: AdminError| ApiError::from(error).to_string();
        assert_eq!(shown(ModelError::NoSuchBucket("b".into()).into()), "NoSuchBucket (404): bucket b does not exist");
        assert_eq!(shown(ModelError::BucketNotEmpty.into()), "BucketNotEmpty (409): the bucket is not empty");
        let wrong = LayoutError::WrongVersion { given: 1, expected: 2 };
        assert_eq!(shown(wrong.into()), "InvalidRequest (400): the next layout version is 2, not 1");
        let none = SearchError::Key { pattern: "x".into(), found: 0 };
        assert!(shown(none.into()).starts_with("NoSuchAccessKey (404): 0 matching keys"));
        let many = SearchError::Key { pattern: "x".into(), found: 2 };
        assert!(shown(many.into()).starts_with("InvalidRequest (400): 2 matching keys"));
    }
}
