//! ListParts: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListParts.html>

use garage_http::body::Payload;
use garage_http::dates::iso8601_millis;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_types::{ObjectKey, UploadId};

use crate::error::S3Error;
use crate::ops::get_object::checksum_type;
use crate::ops::uploads::{PAGE_MAX, checksum_element, limit, upload_id};
use crate::ops::{Access, BucketCtx, Operation, ReplySize, object_key, uploads};
use crate::reply::Reply;

pub struct ListParts {
    key: ObjectKey,
    id: UploadId,
    marker: u32,
    limit: usize,
}

impl Operation for ListParts {
    const ACCESS: Access = Access::Read;
    const REPLY: ReplySize = ReplySize::Page;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let marker = head.parameter("part-number-marker").filter(|text| !text.is_empty()).unwrap_or("0");
        let bad = |_malformed| {
            S3Error::invalid_argument(
                "Argument part-number-marker must be an integer between 0 and 2147483647",
                "part-number-marker",
                marker,
            )
        };
        let marker = marker.parse().map_err(bad)?;
        Ok(ListParts { key: object_key(key)?, id: upload_id(head)?, marker, limit: limit(head, "max-parts")? })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let name = uploads::name(ctx, self.key, self.id);
        let listing = ctx.garage().list_parts(&name, self.marker, self.limit.min(PAGE_MAX)).await?;
        let mut xml = XmlWriter::document();
        xml.root("ListPartsResult", S3_NAMESPACE, |xml| {
            xml.text("Bucket", &ctx.bucket_name);
            xml.text("Key", name.key.as_str());
            xml.text("UploadId", &name.id.to_string());
            xml.value("PartNumberMarker", self.marker);
            if let (true, Some(last)) = (listing.truncated, listing.parts.last()) {
                xml.value("NextPartNumberMarker", last.number);
            }
            xml.value("MaxParts", self.limit);
            xml.value("IsTruncated", listing.truncated);
            for part in &listing.parts {
                xml.element("Part", |xml| {
                    xml.value("PartNumber", part.number);
                    xml.text("LastModified", &iso8601_millis(part.stored.timestamp));
                    xml.text("ETag", &format!("\"{}\"", part.stored.etag));
                    xml.value("Size", part.stored.size);
                    xml.text(checksum_element(part.stored.checksum.algorithm), &part.stored.checksum.value);
                });
            }
            if let Some(owner) = &listing.upload.owner {
                for element in ["Initiator", "Owner"] {
                    xml.element(element, |xml| {
                        xml.text("ID", owner.as_str());
                        xml.text("DisplayName", owner.as_str());
                    });
                }
            }
            xml.text("StorageClass", "STANDARD");
            if let Some(checksum) = listing.upload.checksum {
                xml.text("ChecksumAlgorithm", checksum.algorithm.name());
                xml.text("ChecksumType", checksum_type(checksum.kind));
            }
        });
        Ok(Reply::xml(xml.finish()))
    }
}
