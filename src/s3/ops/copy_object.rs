//! CopyObject: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html>
//!
//! Difference: a copy of an object that was uploaded in parts keeps its ETag, since its bytes are not read.

use std::collections::BTreeMap;

use garage_http::body::Payload;
use garage_http::dates::iso8601_millis;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_model::copy::CopyObject as Copy;
use garage_model::digest::ChecksumAlgorithm;
use garage_model::put::{Preconditions, PutObject};
use garage_types::ObjectKey;

use crate::conditions::Condition;
use crate::error::{Code, S3Error};
use crate::headers::{header, refuse_checksum, to_keep};
use crate::ops::copy_source::CopySource;
use crate::ops::uploads::{checksum_algorithm, preconditions, write_checksum};
use crate::ops::{Access, BucketCtx, Operation, object_key};
use crate::reply::Reply;

pub struct CopyObject {
    key: ObjectKey,
    source: CopySource,
    /// The headers of the copy; `None`: those of the source.
    replaced: Option<BTreeMap<String, String>>,
    checksum: Option<ChecksumAlgorithm>,
    preconditions: Preconditions,
}

impl Operation for CopyObject {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        refuse_checksum(head)?;
        // Objects have no tags here: there are none to copy, and "replace by none" says the same.
        match header(head, "x-amz-tagging-directive")? {
            None | Some("COPY") => {}
            Some(_) => return Err(S3Error::not_implemented("The tagging directive REPLACE")),
        }
        let replaced = match header(head, "x-amz-metadata-directive")? {
            None | Some("COPY") => None,
            Some("REPLACE") => Some(to_keep(head)?),
            Some(other) => {
                return Err(S3Error::invalid_argument("Unknown metadata directive.", "x-amz-metadata-directive", other));
            }
        };
        Ok(CopyObject {
            key: object_key(key)?,
            source: CopySource::parse(head)?,
            replaced,
            checksum: checksum_algorithm(head)?,
            preconditions: preconditions(head)?,
        })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let source = self.source.find(ctx).await?;
        let changes_nothing = self.replaced.is_none() && self.checksum.is_none();
        if changes_nothing && source.bucket == ctx.bucket.id && source.key == self.key {
            return Err(S3Error::new(
                Code::InvalidRequest,
                "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.",
            ));
        }
        let put = PutObject {
            bucket: ctx.bucket.id,
            key: self.key,
            headers: self.replaced.unwrap_or_else(|| source.meta.headers.clone()),
            checksum: ChecksumAlgorithm::Crc64Nvme,
            owner: Some(ctx.caller.key.id.clone()),
            preconditions: self.preconditions,
        };
        let failed = Condition::failed_of(&put.preconditions);
        let written = ctx.garage().copy_object(Copy { source, put, checksum: self.checksum }).await;
        let written = written.map_err(|error| S3Error::of_write(error, failed))?;
        let mut xml = XmlWriter::document();
        xml.root("CopyObjectResult", S3_NAMESPACE, |xml| {
            xml.text("ETag", &format!("\"{}\"", written.etag));
            xml.text("LastModified", &iso8601_millis(written.timestamp));
            write_checksum(xml, written.checksum.as_ref());
        });
        Ok(Reply::xml(xml.finish()))
    }
}
