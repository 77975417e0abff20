//! GetObject and HeadObject: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html>
//!
//! They answer alike, but for the body.

use std::ops::Range;

use garage_http::body::Payload;
use garage_http::dates::{http_date, parse_http_date};
use garage_http::head::RequestHead;
use garage_model::ModelError;
use garage_model::digest::ChecksumKind;
use garage_model::get::{Object, ObjectPart};
use garage_types::ObjectKey;
use hyper::StatusCode;

use crate::conditions::{Judgement, ReadConditions, judge, range_applies};
use crate::error::{Code, S3Error};
use crate::headers::{etags, header};
use crate::ops::{Access, BucketCtx, Operation, object_key};
use crate::range::{self, Wanted};
use crate::reply::{Reply, ReplyContent};

/// How often an object is looked for again that is overwritten each time before its content was found.
const ATTEMPTS_MAX: usize = 8;

const OVERRIDES: [(&str, &str); 6] = [
    ("response-cache-control", "cache-control"),
    ("response-content-disposition", "content-disposition"),
    ("response-content-encoding", "content-encoding"),
    ("response-content-language", "content-language"),
    ("response-content-type", "content-type"),
    ("response-expires", "expires"),
];

/// As in `x-amz-checksum-type`.
pub fn checksum_type(kind: ChecksumKind) -> &'static str {
    match kind {
        ChecksumKind::FullObject => "FULL_OBJECT",
        ChecksumKind::Composite => "COMPOSITE",
    }
}

/// What both operations ask for.
struct Read {
    key: ObjectKey,
    conditions: ReadConditions,
    range: Option<String>,
    if_range: Option<String>,
    part: Option<u32>,
    overrides: Vec<(&'static str, String)>,
    checksum: Checksums,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksums {
    Asked,
    NotAsked,
}

/// The part of the object to send.
struct Selected {
    status: StatusCode,
    bytes: Range<u64>,
    /// Of an object that was uploaded in parts, when one of them is asked for.
    part: Option<SelectedPart>,
}

#[derive(Debug, PartialEq, Eq)]
struct SelectedPart {
    /// Of the object.
    parts_count: usize,
    /// The part's own, Base64.
    checksum: Option<String>,
}

/// The part of this number; its parts are none of an object that was not uploaded in parts, which is its own first part.
fn select_part(number: u32, parts: &[ObjectPart], size: u64) -> Result<Selected, S3Error> {
    // There is no way to say which part of nothing it is.
    let status_of = |bytes: &Range<u64>| if bytes.is_empty() { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    if parts.is_empty() && number == 1 {
        return Ok(Selected { status: status_of(&(0..size)), bytes: 0..size, part: None });
    }
    let part = parts.iter().find(|part| part.number == number).ok_or(Code::InvalidPartNumber)?;
    let own = SelectedPart { parts_count: parts.len(), checksum: part.checksum.clone() };
    Ok(Selected { status: status_of(&part.bytes), bytes: part.bytes.clone(), part: Some(own) })
}

impl Read {
    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let date = |name: &str| Ok::<_, S3Error>(header(head, name)?.and_then(|text| parse_http_date(text).ok()));
        let conditions = ReadConditions {
            if_match: etags(head, "if-match")?,
            if_none_match: etags(head, "if-none-match")?,
            if_modified_since: date("if-modified-since")?,
            if_unmodified_since: date("if-unmodified-since")?,
        };
        match head.parameter("versionId") {
            None | Some("null") => {}
            Some(version) => {
                return Err(S3Error::invalid_argument("Invalid version id specified", "versionId", version));
            }
        }
        let overrides =
            OVERRIDES.into_iter().filter_map(|(parameter, name)| Some((name, head.parameter(parameter)?.to_owned()))).collect();
        let range = header(head, "range")?.map(str::to_owned);
        let part = head.parameter("partNumber").map(parse_part).transpose()?;
        if range.is_some() && part.is_some() {
            return Err(S3Error::new(Code::InvalidRequest, "Cannot specify both Range header and partNumber query parameter"));
        }
        let asked = header(head, "x-amz-checksum-mode")?.is_some_and(|mode| mode.eq_ignore_ascii_case("enabled"));
        let checksum = if asked { Checksums::Asked } else { Checksums::NotAsked };
        let if_range = header(head, "if-range")?.map(str::to_owned);
        Ok(Read { key: object_key(key)?, conditions, range, if_range, part, overrides, checksum })
    }

    async fn select(&self, ctx: &BucketCtx, object: &Object) -> Result<Selected, S3Error> {
        let size = object.meta.size;
        match self.part {
            Some(number) => select_part(number, &ctx.garage().object_parts(object).await?, size),
            None => self.select_range(object),
        }
    }

    fn select_range(&self, object: &Object) -> Result<Selected, S3Error> {
        let size = object.meta.size;
        let whole = Selected { status: StatusCode::OK, bytes: 0..size, part: None };
        let resumes = self.if_range.as_deref().is_none_or(|held| range_applies(held, &object.meta.etag, object.timestamp));
        match self.range.as_deref().filter(|_range| resumes).map_or(Wanted::Whole, |header| range::parse(header, size)) {
            Wanted::Whole => Ok(whole),
            Wanted::Part(bytes) => Ok(Selected { status: StatusCode::PARTIAL_CONTENT, bytes, ..whole }),
            Wanted::Unsatisfiable => Err(S3Error::from(Code::InvalidRange)
                .with("RangeRequested", self.range.as_deref().unwrap_or_default())
                .with("ActualObjectSize", &size.to_string())
                .with_header("content-range", &format!("bytes */{size}"))),
        }
    }

    async fn object(&self, ctx: &BucketCtx) -> Result<Object, S3Error> {
        let object = ctx.garage().object(ctx.bucket.id, &self.key).await;
        let object = object.map_err(|error| {
            let error = S3Error::from(error);
            if error.code == Code::NoSuchKey { error.with("Key", self.key.as_str()) } else { error }
        })?;
        match judge(&self.conditions, &object.meta.etag, object.timestamp, ctx.garage().clock().now()) {
            Judgement::Send => Ok(object),
            Judgement::PreconditionFailed(condition) => Err(S3Error::precondition_failed(condition.name())),
            Judgement::NotModified(_) => Err(not_modified(&object)),
        }
    }

    fn head_of(&self, object: &Object, selected: &Selected) -> Result<Reply, S3Error> {
        let meta = &object.meta;
        let mut reply = Reply::empty(selected.status)
            .header("accept-ranges", "bytes")?
            .header("etag", &format!("\"{}\"", meta.etag))?
            .header("last-modified", &http_date(object.timestamp))?;
        let overridden = |name: &str| self.overrides.iter().any(|(header, _)| *header == name);
        for (name, value) in meta.headers.iter().filter(|(name, _)| !overridden(name)) {
            reply = reply.header(name, value)?;
        }
        for (name, value) in &self.overrides {
            let refused = |_error| S3Error::invalid_argument("The header value is not valid", name, value);
            reply = reply.header(name, value).map_err(refused)?;
        }
        if !reply.headers.contains_key("content-type") {
            reply = reply.header("content-type", "binary/octet-stream")?;
        }
        if let Some(part) = &selected.part {
            reply = reply.header("x-amz-mp-parts-count", &part.parts_count.to_string())?;
        }
        if let (Checksums::Asked, Some(checksum)) = (self.checksum, &meta.checksum) {
            let value = match &selected.part {
                Some(part) => part.checksum.as_ref(),
                None => Some(&checksum.value).filter(|_value| selected.bytes == (0..meta.size)),
            };
            if let Some(value) = value {
                reply = reply
                    .header(checksum.algorithm.header(), value)?
                    .header("x-amz-checksum-type", checksum_type(checksum.kind))?;
            }
        }
        if selected.status == StatusCode::PARTIAL_CONTENT && !selected.bytes.is_empty() {
            let Range { start, end } = selected.bytes;
            reply = reply.header("content-range", &format!("bytes {start}-{}/{}", end - 1, meta.size))?;
        }
        Ok(reply)
    }
}

/// 304, with what a cache updates its copy by.
fn not_modified(object: &Object) -> S3Error {
    let error = S3Error::from(Code::NotModified)
        .with_header("etag", &format!("\"{}\"", object.meta.etag))
        .with_header("last-modified", &http_date(object.timestamp));
    ["cache-control", "expires"].into_iter().fold(error, |error, name| match object.meta.headers.get(name) {
        Some(value) => error.with_header(name, value),
        None => error,
    })
}

pub(crate) fn parse_part(text: &str) -> Result<u32, S3Error> {
    match text.parse() {
        Ok(number @ 1..=10_000) => Ok(number),
        _ => Err(S3Error::invalid_argument("Part number must be an integer between 1 and 10000, inclusive", "partNumber", text)),
    }
}

pub struct GetObject(Read);

impl Operation for GetObject {
    const ACCESS: Access = Access::Read;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(GetObject(Read::parse(head, key)?))
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        for _attempt in 1..ATTEMPTS_MAX {
            if let Some(reply) = self.open(ctx).await? {
                return Ok(reply);
            }
        }
        self.open(ctx).await?.ok_or_else(|| ModelError::Superseded.into())
    }
}

impl GetObject {
    /// `None`: the object was overwritten after it was found and before its content was; there is another now.
    async fn open(&self, ctx: &BucketCtx) -> Result<Option<Reply>, S3Error> {
        let object = self.0.object(ctx).await?;
        let selected = self.0.select(ctx, &object).await?;
        let mut reply = self.0.head_of(&object, &selected)?;
        let length = selected.bytes.end - selected.bytes.start;
        let stream = match ctx.garage().read_object(&object, selected.bytes).await {
            Ok(stream) => stream,
            Err(ModelError::Superseded) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        reply.content = ReplyContent::Stream { length, stream };
        Ok(Some(reply))
    }
}

pub struct HeadObject(Read);

impl Operation for HeadObject {
    const ACCESS: Access = Access::Read;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(HeadObject(Read::parse(head, key)?))
    }

    async fn run(self, ctx: &BucketCtx, _body: Payload) -> Result<Reply, S3Error> {
        let object = self.0.object(ctx).await?;
        let selected = self.0.select(ctx, &object).await?;
        let mut reply = self.0.head_of(&object, &selected)?;
        reply.content = ReplyContent::LengthOnly(selected.bytes.end - selected.bytes.start);
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use garage_model::get::ObjectPart;
    use garage_types::VersionId;

    use super::{Selected, SelectedPart, select_part};
    use crate::error::Code;

    #[test]
    fn a_part_is_found_by_its_number() {
        let sum = |number: u32| Some(number.to_string());
        let part = |number, bytes| ObjectPart { number, bytes, version: VersionId::from_bytes([0; 32]), checksum: sum(number) };
        let parts = [part(1, 0..10), part(5, 10..12)];
        let select = |number, parts: &[ObjectPart], size| {
            let Selected { status, bytes, part } = select_part(number, parts, size).map_err(|error| error.code)?;
            Ok((status.as_u16(), bytes, part))
        };
        assert_eq!(select(5, &parts, 12), Ok((206, 10..12, Some(SelectedPart { parts_count: 2, checksum: sum(5) }))));
        assert_eq!(select(2, &parts, 12), Err(Code::InvalidPartNumber));
        assert_eq!(select(1, &[], 12), Ok((206, 0..12, None)));
        assert_eq!(select(1, &[], 0), Ok((200, 0..0, None)));
        assert_eq!(select(2, &[], 12), Err(Code::InvalidPartNumber));
    }
}
