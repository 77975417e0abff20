//! DeleteBucket: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteBucket.html>

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_types::ObjectKey;

use crate::error::{Code, S3Error};
use crate::ops::{Access, BucketCtx, Operation};
use crate::reply::Reply;

pub struct DeleteBucket;

impl Operation for DeleteBucket {
    const ACCESS: Access = Access::Owner;

    fn parse(_head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(DeleteBucket)
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        ctx.garage().delete_bucket(ctx.bucket.id).await.map_err(|error| {
            let error = S3Error::from(error);
            if error.code == Code::BucketNotEmpty { error.with("BucketName", &ctx.bucket_name) } else { error }
        })?;
        Ok(Reply::no_content())
    }
}
