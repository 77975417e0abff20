//! CompleteMultipartUpload: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>
//!
//! Difference: the status is sent when the work is done, never a 200 before an error.

use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_http::xml::{self, Element, S3_NAMESPACE, XmlWriter};
use garage_model::complete::{ListedChecksum, ListedPart, ListedWhole};
use garage_model::digest::ChecksumAlgorithm;
use garage_model::put::Preconditions;
use garage_model::upload_end::CompleteUpload;
use garage_types::{ObjectKey, UploadId};

use crate::conditions::{Condition, parse_etags};
use crate::error::{Code, S3Error};
use crate::headers::header;
use crate::location::Location;
use crate::ops::put_object::BodyFacts;
use crate::ops::uploads::{checksum_element, checksum_kind, document, preconditions, upload_id, write_checksum};
use crate::ops::{Access, BucketCtx, Operation, object_key, uploads};
use crate::reply::Reply;

/// 10 000 parts with their ETags and a checksum each take some three megabytes.
const DOCUMENT_MAX: usize = 8 << 20;

pub struct CompleteMultipartUpload {
    key: ObjectKey,
    id: UploadId,
    /// Without its parts, which are in the document.
    whole: ListedWhole,
    preconditions: Preconditions,
    location: Location,
    /// Digests of the document; a checksum in the head is the object's, not the document's.
    body: BodyFacts,
}

impl Operation for CompleteMultipartUpload {
    const ACCESS: Access = Access::Write;

    fn parse(head: &RequestHead, key: Option<ObjectKey>) -> Result<Self, S3Error> {
        let size = header(head, "x-amz-mp-object-size")?.map(|text| {
            text.parse()
                .map_err(|_malformed| S3Error::new(Code::InvalidRequest, "Value for x-amz-mp-object-size header is invalid."))
        });
        let whole = ListedWhole {
            parts: Vec::new(),
            size: size.transpose()?,
            checksum: object_checksum(head)?,
            kind: checksum_kind(head)?,
        };
        let body = BodyFacts { md5: crate::headers::content_md5(head)?, checksum: None };
        Ok(CompleteMultipartUpload {
            key: object_key(key)?,
            id: upload_id(head)?,
            whole,
            preconditions: preconditions(head)?,
            location: Location::of(head),
            body,
        })
    }

    async fn run(self, ctx: &BucketCtx, body: Payload) -> Result<Reply, S3Error> {
        let (document, _room) = document(ctx.garage(), body, self.body, DOCUMENT_MAX).await?;
        let whole = ListedWhole { parts: parse_parts(&document)?, ..self.whole };
        let upload = uploads::name(ctx, self.key.clone(), self.id);
        let complete = CompleteUpload { upload, whole, preconditions: self.preconditions };
        let failed = Condition::failed_of(&complete.preconditions);
        let written = ctx.garage().complete_multipart(complete).await;
        let written = written.map_err(|error| S3Error::of_write(error, failed))?;
        let url = self.location.of_object(&ctx.caller.settings.root_domains, &ctx.bucket_name, self.key.as_str());
        let mut xml = XmlWriter::document();
        xml.root("CompleteMultipartUploadResult", S3_NAMESPACE, |xml| {
            xml.text("Location", &url);
            xml.text("Bucket", &ctx.bucket_name);
            xml.text("Key", self.key.as_str());
            xml.text("ETag", &format!("\"{}\"", written.etag));
            write_checksum(xml, written.checksum.as_ref());
        });
        Ok(Reply::xml(xml.finish()))
    }
}

/// The checksum of the whole object, if one is named.
fn object_checksum(head: &RequestHead) -> Result<Option<ListedChecksum>, S3Error> {
    let mut found = None;
    for algorithm in ChecksumAlgorithm::ALL {
        let Some(value) = header(head, algorithm.header())? else { continue };
        if found.is_some() {
            return Err(S3Error::new(Code::InvalidRequest, "Expecting a single x-amz-checksum- header."));
        }
        found = Some(ListedChecksum { algorithm, value: value.to_owned() });
    }
    Ok(found)
}

fn parse_parts(document: &[u8]) -> Result<Vec<ListedPart>, S3Error> {
    let malformed = || S3Error::from(Code::MalformedXML);
    let root = xml::parse(document, DOCUMENT_MAX).map_err(|_malformed| malformed())?;
    if root.name != "CompleteMultipartUpload" {
        return Err(malformed());
    }
    let parts: Vec<ListedPart> = root.all("Part").map(parse_part).collect::<Option<_>>().ok_or_else(malformed)?;
    if parts.is_empty() || parts.len() > garage_model::complete::PARTS_MAX as usize {
        return Err(malformed());
    }
    Ok(parts)
}

fn parse_part(part: &Element) -> Option<ListedPart> {
    let number = part.child_text("PartNumber")?.trim().parse().ok()?;
    let etag = parse_etags(part.child_text("ETag")?).pop()?;
    let known = |name: &str| ChecksumAlgorithm::ALL.into_iter().any(|algorithm| checksum_element(algorithm) == name);
    if part.children.iter().any(|child| child.name.starts_with("Checksum") && !known(&child.name)) {
        // A checksum that nobody here can compare.
        return None;
    }
    let checksum = |algorithm| {
        let value = part.child_text(checksum_element(algorithm))?.trim().to_owned();
        Some(ListedChecksum { algorithm, value })
    };
    let checksums = ChecksumAlgorithm::ALL.into_iter().filter_map(checksum).collect();
    Some(ListedPart { number, etag, checksums })
}

#[cfg(test)]
mod tests {
    use super::parse_parts;
    use crate::error::Code;

    #[test]
    fn the_list_is_read_as_aws_defines_it() {
        let parts = parse_parts(
            b"<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Part><ETag>&quot;ab&quot;</ETag><PartNumber>1</PartNumber><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part><Part><PartNumber>3</PartNumber><ETag>cd</ETag></Part></CompleteMultipartUpload>",
        )
        .unwrap();
        assert_eq!(parts.iter().map(|part| (part.number, part.etag.as_str())).collect::<Vec<_>>(), [(1, "ab"), (3, "cd")]);
        assert_eq!(parts[0].checksums[0].value, "AAAAAA==");
        for bad in [
            "",
            "<CompleteMultipartUpload/>",
            "<Other/>",
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>a</ETag><ChecksumCRC9>AA==</ChecksumCRC9></Part></CompleteMultipartUpload>",
            "<CompleteMultipartUpload><Part><PartNumber>x</PartNumber><ETag>a</ETag></Part></CompleteMultipartUpload>",
        ] {
            assert_eq!(parse_parts(bad.as_bytes()).unwrap_err().code, Code::MalformedXML, "{bad}");
        }
    }
}
