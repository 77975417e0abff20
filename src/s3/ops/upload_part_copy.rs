//! UploadPartCopy: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html>

use garage_http::body::Payload;
use garage_http::dates::iso8601_millis;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_model::multipart::PutPart;
use garage_types::{ObjectKey, UploadId};

use crate::error::S3Error;
use crate::headers::{header, refuse_checksum};
use crate::ops::copy_source::{CopySource, copy_range};
use crate::ops::uploads::{checksum_element, part_number, upload_id};
use crate::ops::{Access, BucketCtx, Operation, object_key, uploads};
use crate::reply::Reply;

pub struct UploadPartCopy {
    key: ObjectKey,
    id: UploadId,
    number: u32,
    source: CopySource,
    range: Option<String>,
}

impl Operation for UploadPartCopy {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        refuse_checksum(head)?;
        Ok(UploadPartCopy {
            key: object_key(key)?,
            number: part_number(head)?,
            id: upload_id(head)?,
            source: CopySource::parse(head)?,
            range: header(head, "x-amz-copy-source-range")?.map(str::to_owned),
        })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let source = self.source.find(ctx).await?;
        let range = copy_range(self.range.as_deref(), source.meta.size)?;
        let put = PutPart { upload: uploads::name(ctx, self.key, self.id), number: self.number, checksum: None };
        let written = ctx.garage().upload_part_copy(put, &source, range).await?;
        let mut xml = XmlWriter::document();
        xml.root("CopyPartResult", S3_NAMESPACE, |xml| {
            xml.text("ETag", &format!("\"{}\"", written.etag));
            xml.text("LastModified", &iso8601_millis(written.timestamp));
            xml.text(checksum_element(written.checksum.algorithm), &written.checksum.value);
        });
        Ok(Reply::xml(xml.finish()))
    }
}
