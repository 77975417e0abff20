//! DeleteObject: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html>

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_model::put::Preconditions;
use garage_types::ObjectKey;

use crate::conditions::Condition;
use crate::error::S3Error;
use crate::headers::etags;
use crate::ops::{Access, BucketCtx, Operation, object_key};
use crate::reply::Reply;

pub struct DeleteObject {
    key: ObjectKey,
    preconditions: Preconditions,
}

impl Operation for DeleteObject {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        match head.parameter("versionId") {
            None | Some("null") => {}
            Some(version) => return Err(S3Error::invalid_argument("Invalid version id specified", "versionId", version)),
        }
        let preconditions = Preconditions { if_match: etags(head, "if-match")?, if_none_match: None };
        Ok(DeleteObject { key: object_key(key)?, preconditions })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let deleted = ctx.garage().delete_object(ctx.bucket.id, &self.key, self.preconditions).await;
        deleted.map_err(|error| S3Error::of_write(error, Condition::IfMatch))?;
        Ok(Reply::no_content())
    }
}
