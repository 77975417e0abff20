//! HeadBucket: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html>

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_types::ObjectKey;

use crate::error::S3Error;
use crate::ops::{Access, BucketCtx, Operation};
use crate::reply::Reply;

pub struct HeadBucket;

impl Operation for HeadBucket {
    const ACCESS: Access = Access::Read;

    fn parse(_head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(HeadBucket)
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        Reply::ok().header("x-amz-bucket-region", &ctx.caller.settings.region)?.header("x-amz-access-point-alias", "false")
    }
}
