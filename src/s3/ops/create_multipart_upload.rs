//! CreateMultipartUpload: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html>

use std::collections::BTreeMap;

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_model::multipart::CreateUpload;
use garage_model::upload::UploadChecksum;
use garage_types::ObjectKey;

use crate::error::S3Error;
use crate::headers::{refuse_checksum, to_keep};
use crate::ops::get_object::checksum_type;
use crate::ops::{Access, BucketCtx, Operation, object_key, uploads};
use crate::reply::Reply;

pub struct CreateMultipartUpload {
    key: ObjectKey,
    headers: BTreeMap<String, String>,
    checksum: Option<UploadChecksum>,
}

impl Operation for CreateMultipartUpload {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        refuse_checksum(head)?;
        let checksum = uploads::upload_checksum(head)?;
        Ok(CreateMultipartUpload { key: object_key(key)?, headers: to_keep(head)?, checksum })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let create = CreateUpload {
            bucket: ctx.bucket.id,
            key: self.key.clone(),
            headers: self.headers,
            checksum: self.checksum,
            owner: Some(ctx.caller.key.id.clone()),
        };
        let id = ctx.garage().create_multipart(create).await?;
        let mut xml = XmlWriter::document();
        xml.root("InitiateMultipartUploadResult", S3_NAMESPACE, |xml| {
            xml.text("Bucket", &ctx.bucket_name);
            xml.text("Key", self.key.as_str());
            xml.text("UploadId", &id.to_string());
        });
        let reply = Reply::xml(xml.finish());
        match self.checksum {
            None => Ok(reply),
            Some(checksum) => reply
                .header("x-amz-checksum-algorithm", checksum.algorithm.name())?
                .header("x-amz-checksum-type", checksum_type(checksum.kind)),
        }
    }
}
