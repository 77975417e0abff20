//! ListObjectVersions: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html>
//!
//! Buckets have no versioning here: each current object is listed as its only version, `null`, and there are no delete markers.

use garage_http::RequestHead;
use garage_http::body::Payload;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_model::list::{ListItem, ListStart};
use garage_types::ObjectKey;

use crate::error::S3Error;
use crate::ops::list_objects::{Common, Owner, marker_start};
use crate::ops::{Access, BucketCtx, Operation, ReplySize};
use crate::reply::Reply;

pub struct ListObjectVersions {
    common: Common,
    key_marker: String,
    version_id_marker: Option<String>,
}

impl Operation for ListObjectVersions {
    const ACCESS: Access = Access::Read;
    const REPLY: ReplySize = ReplySize::Page;

    fn parse(head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let key_marker = head.parameter("key-marker").unwrap_or("").to_owned();
        let version_id_marker = head.parameter("version-id-marker").filter(|marker| !marker.is_empty()).map(str::to_owned);
        match version_id_marker.as_deref() {
            Some(marker) if key_marker.is_empty() => {
                let message = "A version-id marker cannot be specified without a key marker.";
                Err(S3Error::invalid_argument(message, "version-id-marker", marker))
            }
            Some(marker) if marker != "null" => {
                Err(S3Error::invalid_argument("Invalid version id specified", "version-id-marker", marker))
            }
            _ => Ok(ListObjectVersions { common: Common::parse(head)?, key_marker, version_id_marker }),
        }
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let common = &self.common;
        // With the version marker the listing goes on within the key, of which the null version is the last.
        let start = match &self.version_id_marker {
            Some(_null) => ListStart::AfterText(self.key_marker.clone()),
            None => marker_start(&self.key_marker, common),
        };
        let listing = ctx.garage().list_objects(ctx.bucket.id, &common.query(start)).await?;
        let mut xml = XmlWriter::document();
        xml.root("ListVersionsResult", S3_NAMESPACE, |xml| {
            common.head(xml, ctx);
            xml.text("KeyMarker", &common.encoding.apply(&self.key_marker));
            xml.text("VersionIdMarker", self.version_id_marker.as_deref().unwrap_or(""));
            match listing.items.last().filter(|_last| listing.truncated) {
                Some(ListItem::Object(listed)) => {
                    xml.text("NextKeyMarker", &common.encoding.apply(listed.key.as_str()));
                    xml.text("NextVersionIdMarker", "null");
                }
                Some(ListItem::CommonPrefix(prefix)) => xml.text("NextKeyMarker", &common.encoding.apply(prefix)),
                None => {}
            }
            xml.value("MaxKeys", common.max_keys);
            common.tail(xml, &listing);
            for item in &listing.items {
                let ListItem::Object(listed) = item else { continue };
                xml.element("Version", |xml| {
                    xml.text("VersionId", "null");
                    xml.text("IsLatest", "true");
                    common.object(xml, listed, Owner::Shown);
                });
            }
            common.common_prefixes(xml, &listing);
        });
        Ok(Reply::xml(xml.finish()))
    }
}

#[cfg(test)]
mod tests {
    use garage_http::RequestHead;

    use super::ListObjectVersions;
    use crate::error::Code;
    use crate::ops::Operation;

    fn parse(query: &str) -> Result<ListObjectVersions, Code> {
        let request = hyper::Request::builder().uri(format!("/b?versions&{query}")).header("host", "localhost").body(()).unwrap();
        let head = RequestHead::read(&request.into_parts().0).unwrap();
        ListObjectVersions::parse(&head, None).map_err(|error| error.code)
    }

    #[test]
    fn a_version_marker_needs_a_key_marker_and_can_only_be_null() {
        assert!(parse("").is_ok());
        assert!(parse("key-marker=a").is_ok());
        assert!(parse("key-marker=a&version-id-marker=null").is_ok());
        assert!(parse("key-marker=a&version-id-marker=").is_ok());
        assert_eq!(parse("version-id-marker=null").err(), Some(Code::InvalidArgument));
        assert_eq!(parse("key-marker=a&version-id-marker=x").err(), Some(Code::InvalidArgument));
    }
}
