//! One file per operation: it parses its own input, names the access it needs, runs, returns a reply.

use std::future::Future;
use std::sync::Arc;

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_model::Garage;
use garage_model::buckets::Bucket;
use garage_model::key::Permissions;
use garage_model::keys::Key;
use garage_types::{BucketId, ObjectKey};

use crate::error::{Code, S3Error};
use crate::reply::Reply;
use crate::service::S3Settings;

pub mod abort_multipart_upload;
pub mod complete_multipart_upload;
pub mod copy_object;
pub mod copy_source;
pub mod create_bucket;
pub mod create_multipart_upload;
pub mod delete_bucket;
pub mod delete_object;
pub mod delete_objects;
pub mod get_bucket_location;
pub mod get_bucket_versioning;
pub mod get_object;
pub mod get_object_attributes;
pub mod head_bucket;
pub mod list_buckets;
pub mod list_multipart_uploads;
pub mod list_object_versions;
pub mod list_objects;
pub mod list_parts;
pub mod put_object;
pub mod upload_part;
pub mod upload_part_copy;
pub mod uploads;

/// What a key needs to run an operation on a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Owner,
}

impl Access {
    pub fn is_given_by(self, permissions: Permissions) -> bool {
        match self {
            Access::Read => permissions.read,
            Access::Write => permissions.write,
            Access::Owner => permissions.owner,
        }
    }
}

/// Who asks, and of which store.
pub struct Caller {
    pub garage: Garage,
    pub key: Key,
    pub settings: Arc<S3Settings>,
}

impl Caller {
    /// Whether the key may do this with a bucket. What is refused here is asked of a quorum first: the permission may have been
    /// given through another node a moment ago.
    ///
    /// # Errors
    /// `AccessDenied`.
    pub async fn check_access(&self, access: Access, bucket: &BucketId) -> Result<(), S3Error> {
        if access.is_given_by(self.key.state.permissions(bucket)) {
            return Ok(());
        }
        let agreed = Box::pin(self.garage.key_as_agreed(&self.key.id)).await?;
        if access.is_given_by(agreed.state.permissions(bucket)) { Ok(()) } else { Err(Code::AccessDenied.into()) }
    }
}

/// A caller whose access to a bucket was checked.
pub struct BucketCtx {
    pub caller: Caller,
    pub bucket: Bucket,
    /// As the client called it.
    pub bucket_name: String,
}

impl BucketCtx {
    pub fn garage(&self) -> &Garage {
        &self.caller.garage
    }
}

/// How long the document of a reply may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplySize {
    Short,
    /// A thousand keys or parts: only so many are made at once.
    Page,
}

/// An operation on a bucket or on an object in it.
pub trait Operation: Sized + Send {
    const ACCESS: Access;
    /// Whose is a [`ReplySize::Page`] reads no body: nobody waits for a client while others wait for their turn.
    const REPLY: ReplySize = ReplySize::Short;

    /// Reads the request; `key` is there for operations on objects.
    ///
    /// # Errors
    /// What AWS answers to malformed input.
    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error>;

    /// # Errors
    /// What AWS answers.
    fn run(self, ctx: &BucketCtx, body: Payload) -> impl Future<Output = Result<Reply, S3Error>> + Send;
}

/// For operations on objects, which the router only gives requests with a key.
pub(crate) fn object_key(key: Option<ObjectKey>) -> Result<ObjectKey, S3Error> {
    key.ok_or_else(|| crate::error::Code::InvalidURI.into())
}
