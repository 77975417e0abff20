//! CreateBucket: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html>
//!
//! Differences: names are cluster-wide; the key needs the right to create buckets; repeating the creation of one's own bucket
//! answers 200, as AWS does in us-east-1.

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_http::sigv4::RegionPolicy;
use garage_http::xml;
use garage_model::buckets::Created;

use crate::error::{Code, S3Error};
use crate::headers::{announced_checksum, content_md5, header, refuse_unimplemented};
use crate::ops::Caller;
use crate::ops::put_object::BodyFacts;
use crate::ops::uploads::document;
use crate::reply::Reply;
use crate::service::S3Settings;

/// Bytes of a configuration document.
const DOCUMENT_MAX: usize = 64 << 10;

/// # Errors
/// `AccessDenied`, `InvalidBucketName`, `BucketAlreadyExists`, `IllegalLocationConstraintException`, `MalformedXML`.
pub async fn run(caller: &Caller, head: &RequestHead, name: &str, body: Payload) -> Result<Reply, S3Error> {
    if !caller.key.state.may_create_buckets.get() {
        return Err(S3Error::new(Code::AccessDenied, "This access key may not create buckets."));
    }
    refuse_unimplemented(head)?;
    if header(head, "x-amz-bucket-object-lock-enabled")?.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(S3Error::not_implemented("Object lock"));
    }
    match header(head, "x-amz-object-ownership")? {
        // There are no ACLs here: this is how every bucket is.
        None | Some("BucketOwnerEnforced") => {}
        Some(ownership) => return Err(S3Error::not_implemented(&format!("The object ownership {ownership}"))),
    }
    let digests = BodyFacts { md5: content_md5(head)?, checksum: announced_checksum(head)? };
    let (document, _room) = document(&caller.garage, body, digests, DOCUMENT_MAX).await?;
    check_configuration(&document, &caller.settings)?;
    match caller.garage.create_bucket_for(&caller.key.id, name).await? {
        Created::New(_) | Created::AlreadyOwned(_) => Reply::ok().header("location", &format!("/{name}")),
    }
}

/// Whether a bucket may be asked for in this region. Who takes signatures for any region takes the name that goes with them: SDKs
/// name the region they sign for.
fn takes_location(settings: &S3Settings, location: &str) -> bool {
    // Clients that know no other region name the first one of AWS; it means "the default" there as well.
    location.is_empty() || location == settings.region || location == "us-east-1" || settings.region_policy == RegionPolicy::Any
}

fn check_configuration(document: &[u8], settings: &S3Settings) -> Result<(), S3Error> {
    if document.iter().all(u8::is_ascii_whitespace) {
        return Ok(());
    }
    let root = xml::parse(document, DOCUMENT_MAX).map_err(|_malformed| S3Error::from(Code::MalformedXML))?;
    if root.name != "CreateBucketConfiguration" {
        return Err(Code::MalformedXML.into());
    }
    for child in &root.children {
        match child.name.as_str() {
            "LocationConstraint" if takes_location(settings, child.text.trim()) => {}
            "LocationConstraint" => {
                let (asked, ours) = (&child.text, &settings.region);
                let message = format!("The {asked} location constraint is incompatible with the region {ours} of this service.");
                return Err(S3Error::new(Code::IllegalLocationConstraintException, message));
            }
            "Tags" | "Bucket" | "Location" => return Err(S3Error::not_implemented(&format!("{} of a new bucket", child.name))),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use garage_http::sigv4::RegionPolicy;

    use super::check_configuration;
    use crate::error::Code;
    use crate::service::S3Settings;

    #[test]
    fn the_location_must_be_one_we_take_signatures_for() {
        let document = |location: &str| {
            format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>{location}</LocationConstraint></CreateBucketConfiguration>"
            )
        };
        let check_by = |region_policy: RegionPolicy, text: &str| {
            let settings = S3Settings { region: "garage".to_owned(), region_policy, root_domains: Vec::new() };
            check_configuration(text.as_bytes(), &settings).map_err(|error| error.code)
        };
        let check = |text: &str| check_by(RegionPolicy::Exactly("garage".to_owned()), text);
        assert_eq!(check_by(RegionPolicy::Any, &document("eu-west-3")), Ok(()));
        assert_eq!(check(""), Ok(()));
        assert_eq!(check(&document("garage")), Ok(()));
        assert_eq!(check(&document("eu-west-3")), Err(Code::IllegalLocationConstraintException));
        assert_eq!(check("<CreateBucketConfiguration>"), Err(Code::MalformedXML));
        assert_eq!(check("<Other/>"), Err(Code::MalformedXML));
    }
}
