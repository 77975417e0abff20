//! ListMultipartUploads: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html>
//!
//! Difference: uploads of one key come by their ids, not by the time they began.

use garage_http::body::Payload;
use garage_http::dates::iso8601_millis;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_model::list_uploads::{ListedUpload, UploadItem, UploadListing, UploadsQuery, UploadsStart};
use garage_types::ObjectKey;

use crate::error::S3Error;
use crate::ops::get_object::checksum_type;
use crate::ops::list_objects::Encoding;
use crate::ops::uploads::{PAGE_MAX, limit};
use crate::ops::{Access, BucketCtx, Operation, ReplySize};
use crate::reply::Reply;

pub struct ListMultipartUploads {
    prefix: String,
    delimiter: Option<String>,
    key_marker: String,
    upload_marker: String,
    limit: usize,
    encoding: Encoding,
}

impl Operation for ListMultipartUploads {
    const ACCESS: Access = Access::Read;
    const REPLY: ReplySize = ReplySize::Page;

    fn parse(head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let text = |name: &str| head.parameter(name).unwrap_or_default().to_owned();
        Ok(ListMultipartUploads {
            prefix: text("prefix"),
            delimiter: head.parameter("delimiter").filter(|delimiter| !delimiter.is_empty()).map(str::to_owned),
            key_marker: text("key-marker"),
            upload_marker: text("upload-id-marker"),
            limit: limit(head, "max-uploads")?,
            encoding: Encoding::of(head)?,
        })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let query = UploadsQuery {
            prefix: self.prefix.clone(),
            delimiter: self.delimiter.clone(),
            start: self.start()?,
            limit: self.limit.min(PAGE_MAX),
        };
        let listing = ctx.garage().list_uploads(ctx.bucket.id, &query).await?;
        let mut xml = XmlWriter::document();
        xml.root("ListMultipartUploadsResult", S3_NAMESPACE, |xml| self.write(xml, ctx, &listing));
        Ok(Reply::xml(xml.finish()))
    }
}

impl ListMultipartUploads {
    /// The upload marker means nothing without a key marker; a key marker that is a common prefix of this listing stands for all of it.
    fn start(&self) -> Result<UploadsStart, S3Error> {
        let key = self.key_marker.clone();
        if key.is_empty() {
            return Ok(UploadsStart::Beginning);
        }
        if !self.upload_marker.is_empty() {
            let bad = |_malformed| S3Error::invalid_argument("Invalid uploadId marker", "upload-id-marker", &self.upload_marker);
            return Ok(UploadsStart::AfterUpload { key, id: self.upload_marker.parse().map_err(bad)? });
        }
        let is_group = self.delimiter.as_deref().is_some_and(|delimiter| {
            let rest = key.strip_prefix(&self.prefix);
            rest.is_some_and(|rest| rest.find(delimiter).is_some_and(|at| at + delimiter.len() == rest.len()))
        });
        Ok(if is_group { UploadsStart::AfterPrefix(key) } else { UploadsStart::AfterKey(key) })
    }

    fn write(&self, xml: &mut XmlWriter, ctx: &BucketCtx, listing: &UploadListing) {
        let encoded = |text: &str| self.encoding.apply(text);
        xml.text("Bucket", &ctx.bucket_name);
        xml.text("KeyMarker", &encoded(&self.key_marker));
        xml.text("UploadIdMarker", &self.upload_marker);
        match listing.items.last().filter(|_last| listing.truncated) {
            Some(UploadItem::Upload(last)) => {
                xml.text("NextKeyMarker", &encoded(last.key.as_str()));
                xml.text("NextUploadIdMarker", &last.id.to_string());
            }
            Some(UploadItem::CommonPrefix(prefix)) => xml.text("NextKeyMarker", &encoded(prefix)),
            None => {}
        }
        xml.text("Prefix", &encoded(&self.prefix));
        if let Some(delimiter) = &self.delimiter {
            xml.text("Delimiter", &encoded(delimiter));
        }
        if self.encoding == Encoding::Url {
            xml.text("EncodingType", "url");
        }
        xml.value("MaxUploads", self.limit);
        xml.value("IsTruncated", listing.truncated);
        for item in &listing.items {
            if let UploadItem::Upload(upload) = item {
                xml.element("Upload", |xml| self.write_upload(xml, upload));
            }
        }
        for item in &listing.items {
            if let UploadItem::CommonPrefix(prefix) = item {
                xml.element("CommonPrefixes", |xml| xml.text("Prefix", &encoded(prefix)));
            }
        }
    }

    fn write_upload(&self, xml: &mut XmlWriter, upload: &ListedUpload) {
        xml.text("Key", &self.encoding.apply(upload.key.as_str()));
        xml.text("UploadId", &upload.id.to_string());
        if let Some(owner) = &upload.owner {
            for element in ["Initiator", "Owner"] {
                xml.element(element, |xml| {
                    xml.text("ID", owner.as_str());
                    xml.text("DisplayName", owner.as_str());
                });
            }
        }
        xml.text("StorageClass", "STANDARD");
        xml.text("Initiated", &iso8601_millis(upload.started));
        if let Some(checksum) = upload.checksum {
            xml.text("ChecksumAlgorithm", checksum.algorithm.name());
            xml.text("ChecksumType", checksum_type(checksum.kind));
        }
    }
}
