//! ListBuckets: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListBuckets.html>
//!
//! Lists the buckets on which the key has any permission, under the names that mean them to this key. A bucket or name whose row is damaged
//! on every node is left out, so that the others can be listed; requests that go to it are answered with the damage.

use std::collections::BTreeMap;

use garage_http::dates::iso8601_millis;
use garage_http::head::RequestHead;
use garage_http::xml::{S3_NAMESPACE, XmlWriter};
use garage_types::Timestamp;

use crate::error::{Code, S3Error};
use crate::ops::Caller;
use crate::reply::Reply;

const BUCKETS_MAX: usize = 10_000;

/// # Errors
/// `InvalidArgument` for a page size outside 1…10000.
pub async fn run(caller: &Caller, head: &RequestHead) -> Result<Reply, S3Error> {
    let prefix = head.parameter("prefix").unwrap_or("");
    let limit = page_size(head.parameter("max-buckets"))?;
    // The token is the last name given, in hexadecimal, so that it can stand in any URL.
    let after = head.parameter("continuation-token").map(decode_token).transpose()?.unwrap_or_default();
    let region_fits = head.parameter("bucket-region").is_none_or(|region| region == caller.settings.region);

    let names = if region_fits { visible_names(caller).await? } else { BTreeMap::new() };
    let mut rest = names.into_iter().filter(|(name, _)| name.starts_with(prefix) && (after.is_empty() || *name > after));
    let page: Vec<(String, Timestamp)> = rest.by_ref().take(limit).collect();
    let token = rest.next().and(page.last()).map(|(name, _)| hex::encode(name));

    let mut xml = XmlWriter::document();
    xml.root("ListAllMyBucketsResult", S3_NAMESPACE, |xml| {
        xml.element("Owner", |xml| {
            xml.text("ID", caller.key.id.as_str());
            xml.text("DisplayName", caller.key.state.name.get());
        });
        xml.element("Buckets", |xml| {
            for (name, created) in &page {
                xml.element("Bucket", |xml| {
                    xml.text("Name", name);
                    xml.text("CreationDate", &iso8601_millis(*created));
                    xml.text("BucketRegion", &caller.settings.region);
                });
            }
        });
        xml.optional("ContinuationToken", token.as_deref());
        xml.optional("Prefix", Some(prefix).filter(|prefix| !prefix.is_empty()));
    });
    Ok(Reply::xml(xml.finish()))
}

fn page_size(parameter: Option<&str>) -> Result<usize, S3Error> {
    match parameter {
        None => Ok(BUCKETS_MAX),
        Some(text) => match text.parse() {
            Ok(limit @ 1..=BUCKETS_MAX) => Ok(limit),
            _ => Err(S3Error::invalid_argument(
                "Argument max-buckets must be an integer between 1 and 10000.",
                "max-buckets",
                text,
            )),
        },
    }
}

fn decode_token(token: &str) -> Result<String, S3Error> {
    let name = hex::decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    name.ok_or_else(|| S3Error::from(Code::InvalidArgument).with("ArgumentName", "continuation-token"))
}

/// Global names, and the key's own, of the buckets it may use in any way.
async fn visible_names(caller: &Caller) -> Result<BTreeMap<String, Timestamp>, S3Error> {
    let allowed = |bucket| caller.key.state.permissions(bucket).any();
    let buckets = caller.garage.readable_buckets().await?;
    let created: BTreeMap<_, _> =
        buckets.iter().filter(|bucket| allowed(&bucket.id)).map(|bucket| (bucket.id, bucket.state.created)).collect();
    let mut names = BTreeMap::new();
    let mut aliases = caller.garage.readable_aliases().await?;
    // A name of the key's own hides the global one: it is looked up first.
    aliases.sort_by_key(|alias| alias.key.is_some());
    for alias in aliases.into_iter().filter(|alias| alias.key.as_ref().is_none_or(|key| *key == caller.key.id)) {
        match created.get(&alias.bucket) {
            Some(time) => names.insert(alias.name, *time),
            None => names.remove(&alias.name),
        };
    }
    Ok(names)
}
