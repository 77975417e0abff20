//! The source of a copy: `x-amz-copy-source`, its conditions and its range, common to CopyObject and UploadPartCopy.

use std::ops::Range;

use garage_http::dates::parse_http_date;
use garage_http::head::RequestHead;
use garage_http::uri;
use garage_model::ModelError;
use garage_model::get::Object;
use garage_types::ObjectKey;

use crate::conditions::{Judgement, ReadConditions, judge};
use crate::error::{Code, S3Error};
use crate::headers::{etags, header};
use crate::ops::{Access, BucketCtx};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    pub bucket: String,
    pub key: ObjectKey,
    pub conditions: ReadConditions,
}

/// What the header names.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    bucket: String,
    key: String,
}

/// `[/]bucket/key[?versionId=…]`, percent-encoded; the version is behind the last `?`, which an encoded key cannot contain.
///
/// Encoded as forms are: `+` is a space, unlike in a path. Java's URLEncoder and PHP's urlencode write it so, and AWS reads it so.
fn parse_name(text: &str) -> Result<Named, S3Error> {
    let invalid = |message: &str| S3Error::invalid_argument(message, "x-amz-copy-source", text);
    let (path, query) = match text.rsplit_once("?versionId=") {
        Some((path, version)) => (path, Some(version)),
        None => (text, None),
    };
    match query {
        None | Some("null") => {}
        Some(_) => return Err(invalid("Invalid version id specified")),
    }
    let decoded = uri::decode(&path.replace('+', "%20")).map_err(|_malformed| invalid("Invalid copy source encoding"))?;
    let decoded = decoded.strip_prefix('/').unwrap_or(&decoded);
    match decoded.split_once('/') {
        Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
            Ok(Named { bucket: bucket.to_owned(), key: key.to_owned() })
        }
        _ => Err(invalid("Invalid copy source object key")),
    }
}

impl CopySource {
    /// # Errors
    /// 400 when the header is missing or names no object.
    pub fn parse(head: &RequestHead) -> Result<Self, S3Error> {
        let text = header(head, "x-amz-copy-source")?.unwrap_or_default();
        let Named { bucket, key } = parse_name(text)?;
        let date = |name: &str| Ok::<_, S3Error>(header(head, name)?.and_then(|text| parse_http_date(text).ok()));
        let conditions = ReadConditions {
            if_match: etags(head, "x-amz-copy-source-if-match")?,
            if_none_match: etags(head, "x-amz-copy-source-if-none-match")?,
            if_modified_since: date("x-amz-copy-source-if-modified-since")?,
            if_unmodified_since: date("x-amz-copy-source-if-unmodified-since")?,
        };
        Ok(CopySource { bucket, key: ObjectKey::parse(key)?, conditions })
    }

    /// Finds the object, for a key that may read its bucket.
    ///
    /// # Errors
    /// `NoSuchBucket`, `AccessDenied`, `NoSuchKey`, `PreconditionFailed` (a copy is never "not modified").
    pub async fn find(&self, ctx: &BucketCtx) -> Result<Object, S3Error> {
        let found = ctx.garage().resolve_bucket(Some(&ctx.caller.key.id), &self.bucket).await;
        let bucket = found.map_err(|error| match error {
            ModelError::NoSuchBucket(_) => S3Error::from(Code::NoSuchBucket).with("BucketName", &self.bucket),
            other => other.into(),
        })?;
        ctx.caller.check_access(Access::Read, &bucket.id).await?;
        let object = ctx.garage().object(bucket.id, &self.key).await.map_err(|error| {
            let error = S3Error::from(error);
            if error.code == Code::NoSuchKey { error.with("Key", self.key.as_str()) } else { error }
        })?;
        match judge(&self.conditions, &object.meta.etag, object.timestamp, ctx.garage().clock().now()) {
            Judgement::Send => Ok(object),
            Judgement::NotModified(condition) | Judgement::PreconditionFailed(condition) => {
                Err(S3Error::precondition_failed(&format!("x-amz-copy-source-{}", condition.name())))
            }
        }
    }
}

/// `x-amz-copy-source-range`: unlike a read's, `bytes=first-last` within the source, or it is refused.
///
/// # Errors
/// 400 for anything else.
pub fn copy_range(header: Option<&str>, size: u64) -> Result<Range<u64>, S3Error> {
    let Some(text) = header else { return Ok(0..size) };
    let invalid = |message: &str| S3Error::invalid_argument(message, "x-amz-copy-source-range", text);
    let malformed = || {
        invalid(
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
        )
    };
    let (first, last) = text.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')).ok_or_else(malformed)?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u64>().ok() } else { None }
    };
    let (first, last) = number(first).zip(number(last)).ok_or_else(malformed)?;
    if first > last {
        return Err(malformed());
    }
    if last >= size {
        return Err(invalid(&format!("Range specified is not valid for source object of size: {size}")));
    }
    Ok(first..last + 1)
}

#[cfg(test)]
mod tests {
    use super::{Named, copy_range, parse_name};
    use crate::error::Code;

    #[test]
    fn sources_are_decoded_once() {
        let named = |text: &str| parse_name(text).map(|Named { bucket, key }| (bucket, key));
        let is = |bucket: &str, key: &str| Ok((bucket.to_owned(), key.to_owned()));
        assert_eq!(named("/b/k"), is("b", "k"));
        assert_eq!(named("b/k"), is("b", "k"));
        assert_eq!(named("b/a%20b%2Fc%2Bd"), is("b", "a b/c+d"));
        assert_eq!(named("b/a+b%2bc"), is("b", "a b+c"));
        assert_eq!(named("/b//k/"), is("b", "/k/"));
        assert_eq!(named("%2Fb%2Fk"), is("b", "k"));
        assert_eq!(named("b/k%253F?versionId=null"), is("b", "k%3F"));
        assert_eq!(named("b/k?x"), is("b", "k?x"));
        for bad in ["", "/", "b", "b/", "/b/", "//k", "b/%zz", "b/%ff", "b/k?versionId=1"] {
            assert_eq!(named(bad).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_copied_range_lies_within_the_source() {
        assert_eq!(copy_range(None, 10), Ok(0..10));
        assert_eq!(copy_range(Some("bytes=0-9"), 10), Ok(0..10));
        assert_eq!(copy_range(Some("bytes=3-3"), 10), Ok(3..4));
        for bad in [
            "bytes=0-10",
            "bytes=4-3",
            "bytes=-3",
            "bytes=3-",
            "bytes=+1-2",
            "0-1",
            "bytes=0-1,2-3",
            "bytes=0-99999999999999999999",
        ] {
            assert_eq!(copy_range(Some(bad), 10).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
    }
}
