//! ListObjects and ListObjectsV2: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>
//!
//! They share the walk and differ in how they name where to go on. With `encoding-type=url` every text of the reply that can hold
//! part of a key is encoded. The continuation token is opaque: a letter for what kind of position it is, then its text in hexadecimal.

use garage_http::body::Payload;
use garage_http::dates::iso8601_millis;
use garage_http::head::RequestHead;
use garage_http::uri;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_model::list::{ListItem, ListQuery, ListStart, Listed, Listing};
use garage_types::ObjectKey;

use crate::error::S3Error;
use crate::ops::get_object::checksum_type;
use crate::ops::{Access, BucketCtx, Operation, ReplySize};
use crate::reply::Reply;

/// Keys and common prefixes of one page, whatever is asked for.
const PAGE_MAX: usize = 1000;

/// Whether texts of the reply are percent-encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Url,
}

impl Encoding {
    pub(crate) fn of(head: &RequestHead) -> Result<Self, S3Error> {
        match head.parameter("encoding-type") {
            None | Some("") => Ok(Encoding::Plain),
            Some("url") => Ok(Encoding::Url),
            Some(other) => Err(S3Error::invalid_argument("Invalid Encoding Method specified in Request", "encoding-type", other)),
        }
    }

    /// `/` stays readable, as AWS leaves it.
    pub(crate) fn apply(self, text: &str) -> String {
        match self {
            Encoding::Plain => text.to_owned(),
            Encoding::Url => uri::encode_path(text),
        }
    }
}

/// What all listings of objects ask for.
pub(super) struct Common {
    prefix: String,
    delimiter: Option<String>,
    pub(super) max_keys: usize,
    pub(super) encoding: Encoding,
}

impl Common {
    pub(super) fn parse(head: &RequestHead) -> Result<Self, S3Error> {
        Ok(Common {
            prefix: head.parameter("prefix").unwrap_or("").to_owned(),
            delimiter: head.parameter("delimiter").filter(|delimiter| !delimiter.is_empty()).map(str::to_owned),
            max_keys: max_keys(head.parameter("max-keys"))?,
            encoding: Encoding::of(head)?,
        })
    }

    pub(super) fn query(&self, start: ListStart) -> ListQuery {
        ListQuery { prefix: self.prefix.clone(), delimiter: self.delimiter.clone(), start, limit: self.max_keys.min(PAGE_MAX) }
    }

    pub(super) fn head(&self, xml: &mut XmlWriter, ctx: &BucketCtx) {
        xml.text("Name", &ctx.bucket_name);
        xml.text("Prefix", &self.encoding.apply(&self.prefix));
    }

    pub(super) fn tail(&self, xml: &mut XmlWriter, listing: &Listing) {
        if let Some(delimiter) = &self.delimiter {
            xml.text("Delimiter", &self.encoding.apply(delimiter));
        }
        if self.encoding == Encoding::Url {
            xml.text("EncodingType", "url");
        }
        xml.value("IsTruncated", listing.truncated);
    }

    fn items(&self, xml: &mut XmlWriter, listing: &Listing, owner: Owner) {
        for item in &listing.items {
            let ListItem::Object(listed) = item else { continue };
            xml.element("Contents", |xml| self.object(xml, listed, owner));
        }
        self.common_prefixes(xml, listing);
    }

    pub(super) fn common_prefixes(&self, xml: &mut XmlWriter, listing: &Listing) {
        for item in &listing.items {
            let ListItem::CommonPrefix(prefix) = item else { continue };
            xml.element("CommonPrefixes", |xml| xml.text("Prefix", &self.encoding.apply(prefix)));
        }
    }

    pub(super) fn object(&self, xml: &mut XmlWriter, listed: &Listed, owner: Owner) {
        xml.text("Key", &self.encoding.apply(listed.key.as_str()));
        xml.text("LastModified", &iso8601_millis(listed.timestamp));
        xml.text("ETag", &format!("\"{}\"", listed.meta.etag));
        if let Some(checksum) = &listed.meta.checksum {
            xml.text("ChecksumAlgorithm", checksum.algorithm.name());
            xml.text("ChecksumType", checksum_type(checksum.kind));
        }
        xml.value("Size", listed.meta.size);
        if let (Owner::Shown, Some(owner)) = (owner, &listed.meta.owner) {
            xml.element("Owner", |xml| {
                xml.text("ID", owner.as_str());
                xml.text("DisplayName", owner.as_str());
            });
        }
        xml.text("StorageClass", "STANDARD");
    }
}

/// Whether the owner of each object is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Shown,
    Hidden,
}

fn max_keys(parameter: Option<&str>) -> Result<usize, S3Error> {
    let Some(text) = parameter.filter(|text| !text.is_empty()) else { return Ok(PAGE_MAX) };
    let bad = |message: &str| S3Error::invalid_argument(message, "max-keys", text);
    match text.parse::<i64>() {
        Ok(number @ 0..=2_147_483_647) => Ok(number as usize),
        Ok(_) => Err(bad("Argument maxKeys must be an integer between 0 and 2147483647")),
        Err(_malformed) => Err(bad("Provided max-keys not an integer or within integer range")),
    }
}

/// ListObjects, the first version.
pub struct ListObjects {
    common: Common,
    marker: String,
}

impl Operation for ListObjects {
    const ACCESS: Access = Access::Read;
    const REPLY: ReplySize = ReplySize::Page;

    fn parse(head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(ListObjects { common: Common::parse(head)?, marker: head.parameter("marker").unwrap_or("").to_owned() })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let common = &self.common;
        let listing = ctx.garage().list_objects(ctx.bucket.id, &common.query(marker_start(&self.marker, common))).await?;
        let mut xml = XmlWriter::document();
        xml.root("ListBucketResult", S3_NAMESPACE, |xml| {
            common.head(xml, ctx);
            xml.text("Marker", &common.encoding.apply(&self.marker));
            // As at AWS, only with a delimiter: without one the last key is the next marker.
            if let (true, Some(_), Some(last)) = (listing.truncated, &common.delimiter, listing.items.last()) {
                let text = match last {
                    ListItem::Object(listed) => listed.key.as_str(),
                    ListItem::CommonPrefix(prefix) => prefix,
                };
                xml.text("NextMarker", &common.encoding.apply(text));
            }
            xml.value("MaxKeys", common.max_keys);
            common.tail(xml, &listing);
            common.items(xml, &listing, Owner::Shown);
        });
        Reply::xml(xml.finish()).header("x-amz-bucket-region", &ctx.caller.settings.region)
    }
}

/// A marker that is a common prefix of this very listing stands for all of it.
pub(super) fn marker_start(marker: &str, common: &Common) -> ListStart {
    if marker.is_empty() {
        return ListStart::Beginning;
    }
    let group = common.delimiter.as_deref().is_some_and(|delimiter| {
        marker
            .strip_prefix(&common.prefix)
            .is_some_and(|rest| rest.find(delimiter).is_some_and(|at| at + delimiter.len() == rest.len()))
    });
    if group { ListStart::AfterPrefix(marker.to_owned()) } else { ListStart::AfterText(marker.to_owned()) }
}

/// ListObjectsV2.
pub struct ListObjectsV2 {
    common: Common,
    start_after: Option<String>,
    token: Option<String>,
    start: ListStart,
    owner: Owner,
}

impl Operation for ListObjectsV2 {
    const ACCESS: Access = Access::Read;
    const REPLY: ReplySize = ReplySize::Page;

    fn parse(head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let start_after = head.parameter("start-after").filter(|text| !text.is_empty()).map(str::to_owned);
        let token = head.parameter("continuation-token").map(str::to_owned);
        let start = match (&token, &start_after) {
            (Some(token), _) => decode_token(token)?,
            (None, Some(text)) => ListStart::AfterText(text.clone()),
            (None, None) => ListStart::Beginning,
        };
        let owner = if head.parameter("fetch-owner") == Some("true") { Owner::Shown } else { Owner::Hidden };
        Ok(ListObjectsV2 { common: Common::parse(head)?, start_after, token, start, owner })
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let common = &self.common;
        let listing = ctx.garage().list_objects(ctx.bucket.id, &common.query(self.start.clone())).await?;
        let mut xml = XmlWriter::document();
        xml.root("ListBucketResult", S3_NAMESPACE, |xml| {
            common.head(xml, ctx);
            xml.optional("StartAfter", self.start_after.as_deref().map(|text| common.encoding.apply(text)).as_deref());
            xml.optional("ContinuationToken", self.token.as_deref());
            if let (true, Some(last)) = (listing.truncated, listing.items.last()) {
                xml.text("NextContinuationToken", &encode_token(&last.next_start()));
            }
            xml.value("KeyCount", listing.items.len());
            xml.value("MaxKeys", common.max_keys);
            common.tail(xml, &listing);
            common.items(xml, &listing, self.owner);
        });
        Reply::xml(xml.finish()).header("x-amz-bucket-region", &ctx.caller.settings.region)
    }
}

fn encode_token(start: &ListStart) -> String {
    match start {
        ListStart::Beginning => "b".to_owned(),
        ListStart::AfterText(text) => format!("k{}", hex::encode(text)),
        ListStart::AfterPrefix(text) => format!("p{}", hex::encode(text)),
    }
}

fn decode_token(token: &str) -> Result<ListStart, S3Error> {
    let bad = || S3Error::invalid_argument("The continuation token provided is incorrect", "continuation-token", token);
    let text = |digits: &str| hex::decode(digits).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(bad);
    match (token.get(..1), token.get(1..)) {
        (Some("k"), Some(digits)) => Ok(ListStart::AfterText(text(digits)?)),
        (Some("p"), Some(digits)) => Ok(ListStart::AfterPrefix(text(digits)?)),
        (Some("b"), Some("")) => Ok(ListStart::Beginning),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use garage_model::list::ListStart;
    use proptest::prelude::{any, proptest};

    use super::{Common, Encoding, decode_token, encode_token, marker_start, max_keys};
    use crate::error::Code;

    proptest! {
        #[test]
        fn tokens_round_trip(text in any::<String>()) {
            for start in [ListStart::AfterText(text.clone()), ListStart::AfterPrefix(text.clone())] {
                assert_eq!(decode_token(&encode_token(&start)), Ok(start));
            }
        }

        #[test]
        fn no_token_makes_us_panic(token in any::<String>()) {
            drop(decode_token(&token));
        }
    }

    #[test]
    fn max_keys_is_a_number_of_32_bits() {
        assert_eq!(max_keys(None), Ok(1000));
        assert_eq!(max_keys(Some("0")), Ok(0));
        assert_eq!(max_keys(Some("2147483647")), Ok(2_147_483_647));
        for text in ["-1", "2147483648", "a", "1.5", "99999999999999999999"] {
            assert_eq!(max_keys(Some(text)).unwrap_err().code, Code::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn a_marker_that_is_a_common_prefix_skips_all_of_it() {
        let common = Common { prefix: "a/".to_owned(), delimiter: Some("/".to_owned()), max_keys: 1, encoding: Encoding::Plain };
        assert_eq!(marker_start("", &common), ListStart::Beginning);
        assert_eq!(marker_start("a/b/", &common), ListStart::AfterPrefix("a/b/".to_owned()));
        assert_eq!(marker_start("a/b/c", &common), ListStart::AfterText("a/b/c".to_owned()));
        assert_eq!(marker_start("a/b/c/", &common), ListStart::AfterText("a/b/c/".to_owned()));
    }
}
