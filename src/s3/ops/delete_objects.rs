//! DeleteObjects: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html>
//!
//! The document is checked against the digests of the head before it is parsed. Each key succeeds or fails on its own.

use futures_util::StreamExt;
use futures_util::stream;
use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_http::xml::{self, S3_NAMESPACE, XmlWriter};
use garage_model::put::Preconditions;
use garage_types::ObjectKey;

use crate::error::{Code, S3Error};
use crate::ops::put_object::BodyFacts;
use crate::ops::uploads::document;
use crate::ops::{Access, BucketCtx, Operation};
use crate::reply::Reply;

/// AWS's limit on one request.
const KEYS_MAX: usize = 1000;
/// 1000 keys of 1024 bytes, each perhaps escaped sixfold, with their elements.
const DOCUMENT_MAX: usize = 8 << 20;
/// Deletions under way at once.
const CONCURRENT: usize = 64;

pub struct DeleteObjects {
    facts: BodyFacts,
}

#[derive(Debug, PartialEq, Eq)]
struct Order {
    keys: Vec<Wanted>,
    verbosity: Verbosity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verbosity {
    Quiet,
    All,
}

#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    key: String,
    version: Option<String>,
    etag: Option<String>,
}

fn parse_order(document: &[u8]) -> Result<Order, S3Error> {
    let malformed = || S3Error::from(Code::MalformedXML);
    let root = xml::parse(document, DOCUMENT_MAX).map_err(|_malformed| malformed())?;
    if root.name != "Delete" {
        return Err(malformed());
    }
    let mut keys = Vec::new();
    for object in root.all("Object") {
        let text = |name: &str| object.child_text(name).map(str::to_owned);
        // Conditions of AWS's directory buckets: never ignored.
        if let Some(condition) = ["LastModifiedTime", "Size"].into_iter().find(|name| object.child(name).is_some()) {
            return Err(S3Error::not_implemented(&format!("The condition {condition} of a deletion")));
        }
        // AWS's schema gives a key at least one character.
        let key = text("Key").filter(|key| !key.is_empty()).ok_or_else(malformed)?;
        keys.push(Wanted { key, version: text("VersionId"), etag: text("ETag") });
    }
    if keys.is_empty() || keys.len() > KEYS_MAX {
        return Err(malformed());
    }
    let quiet = root.child_text("Quiet").is_some_and(|text| text.trim().eq_ignore_ascii_case("true"));
    Ok(Order { keys, verbosity: if quiet { Verbosity::Quiet } else { Verbosity::All } })
}

async fn delete_one(ctx: &BucketCtx, wanted: &Wanted) -> Result<(), S3Error> {
    let key = ObjectKey::parse(wanted.key.as_str())?;
    if wanted.version.as_deref().is_some_and(|version| version != "null") {
        return Err(Code::NoSuchVersion.into());
    }
    let if_match = wanted.etag.as_deref().map(crate::conditions::parse_etags);
    let preconditions = Preconditions { if_match, if_none_match: None };
    Ok(ctx.garage().delete_object(ctx.bucket.id, &key, preconditions).await?)
}

impl Operation for DeleteObjects {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, _key: Option<ObjectKey>) -> Result<Self, S3Error> {
        Ok(DeleteObjects { facts: BodyFacts::parse(head)? })
    }

    async fn run(self, ctx: &BucketCtx, body: Payload) -> Result<Reply, S3Error> {
        let (document, _room) = document(ctx.garage(), body, self.facts, DOCUMENT_MAX).await?;
        let order = parse_order(&document)?;
        drop(document);

        let delete = |wanted: Wanted| async move { (delete_one(ctx, &wanted).await, wanted) };
        let mut results: Vec<(Result<(), S3Error>, Wanted)> =
            stream::iter(order.keys).map(delete).buffered(CONCURRENT).collect().await;
        if order.verbosity == Verbosity::Quiet {
            results.retain(|(result, _)| result.is_err());
        }
        let mut xml = XmlWriter::document();
        xml.root("DeleteResult", S3_NAMESPACE, |xml| {
            for (result, wanted) in &results {
                xml.element(if result.is_ok() { "Deleted" } else { "Error" }, |xml| {
                    xml.text("Key", &wanted.key);
                    xml.optional("VersionId", wanted.version.as_deref());
                    if let Err(error) = result {
                        xml.text("Code", error.code.as_str());
                        xml.text("Message", &error.message);
                    }
                });
            }
        });
        Ok(Reply::xml(xml.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Verbosity, parse_order};
    use crate::error::Code;

    #[test]
    fn the_document_is_read_as_aws_defines_it() {
        let order = parse_order(
            b"<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Object><Key>a&amp;b</Key></Object><Object><Key> c </Key><VersionId>null</VersionId></Object><Quiet>true</Quiet></Delete>",
        )
        .unwrap();
        assert_eq!(order.verbosity, Verbosity::Quiet);
        assert_eq!(order.keys.iter().map(|wanted| wanted.key.as_str()).collect::<Vec<_>>(), ["a&b", " c "]);
        let many = format!("<Delete>{}</Delete>", "<Object><Key>k</Key></Object>".repeat(1001));
        for bad in [
            "",
            "<Delete/>",
            "<Other/>",
            "<Delete><Object/></Delete>",
            "<Delete><Object><Key></Key></Object></Delete>",
            "<Delete><Object><Key>a</Key></Object>",
            &many,
        ] {
            assert_eq!(parse_order(bad.as_bytes()).unwrap_err().code, Code::MalformedXML, "{bad:.40}");
        }
        for condition in ["<Size>1</Size>", "<LastModifiedTime>2020-01-01T00:00:00Z</LastModifiedTime>"] {
            let document = format!("<Delete><Object><Key>k</Key>{condition}</Object></Delete>");
            assert_eq!(parse_order(document.as_bytes()).unwrap_err().code, Code::NotImplemented, "{condition}");
        }
    }
}
