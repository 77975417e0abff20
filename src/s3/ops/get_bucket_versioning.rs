//! GetBucketVersioning: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketVersioning.html>
//!
//! Versioning was never enabled on any bucket here, which AWS tells by an empty configuration.

use garage_http::RequestHead;
use garage_http::body::Payload;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_types::ObjectKey;

use crate::error::S3Error;
use crate::ops::{Access, BucketCtx, Operation};
use crate::reply::Reply;

pub struct GetBucketVersioning;

impl Operation for GetBucketVersioning {
    const ACCESS: Access = Access::Read;

    fn parse(_head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(GetBucketVersioning)
    }

    async fn run(self, _ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let mut xml = XmlWriter::document();
        xml.root("VersioningConfiguration", S3_NAMESPACE, |_xml| {});
        Ok(Reply::xml(xml.finish()))
    }
}
