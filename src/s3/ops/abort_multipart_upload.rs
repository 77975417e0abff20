//! AbortMultipartUpload: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html>
//!
//! Difference: an upload that is just being completed is not aborted, and the request is answered 409.

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_types::{ObjectKey, UploadId};

use crate::error::S3Error;
use crate::headers::header;
use crate::ops::{Access, BucketCtx, Operation, object_key, uploads};
use crate::reply::Reply;

pub struct AbortMultipartUpload {
    key: ObjectKey,
    id: UploadId,
}

impl Operation for AbortMultipartUpload {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        if header(head, "x-amz-if-match-initiated-time")?.is_some() {
            return Err(S3Error::not_implemented("The header x-amz-if-match-initiated-time"));
        }
        Ok(AbortMultipartUpload { key: object_key(key)?, id: uploads::upload_id(head)? })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        ctx.garage().abort_multipart(&uploads::name(ctx, self.key, self.id)).await?;
        Ok(Reply::no_content())
    }
}
