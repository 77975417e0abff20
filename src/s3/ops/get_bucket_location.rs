//! GetBucketLocation: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLocation.html>

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_types::ObjectKey;

use crate::error::S3Error;
use crate::ops::{Access, BucketCtx, Operation};
use crate::reply::Reply;

pub struct GetBucketLocation;

impl Operation for GetBucketLocation {
    const ACCESS: Access = Access::Read;

    fn parse(_head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(GetBucketLocation)
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let mut xml = XmlWriter::document();
        xml.root_text("LocationConstraint", S3_NAMESPACE, &ctx.caller.settings.region);
        Ok(Reply::xml(xml.finish()))
    }
}
