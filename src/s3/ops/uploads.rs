//! What the operations on multipart uploads have in common: their parameters, and how checksums are asked for and told.

use bytes::Bytes;
use garage_http::body::Payload;
use garage_http::head::RequestHead;
use garage_http::xml::XmlWriter;
use garage_model::Garage;
use garage_model::block_buffer::DocumentRoom;
use garage_model::combine;
use garage_model::digest::{Checksum, ChecksumAlgorithm, ChecksumKind, Digests};
use garage_model::multipart::UploadName;
use garage_model::pipeline::Source;
use garage_model::put::Preconditions;
use garage_model::upload::UploadChecksum;
use garage_types::{ObjectKey, UploadId};

use crate::error::{Code, S3Error};
use crate::headers::{etags, header, unknown_algorithm};
use crate::ops::BucketCtx;
use crate::ops::put_object::{BodyFacts, PayloadSource};

/// # Errors
/// 404 for what cannot be an upload's id: there is no such upload.
pub fn upload_id(head: &RequestHead) -> Result<UploadId, S3Error> {
    let text = head.parameter("uploadId").unwrap_or_default();
    text.parse().map_err(|_malformed| S3Error::from(Code::NoSuchUpload).with("UploadId", text))
}

/// # Errors
/// 400 unless it is a number from 1 to 10 000.
pub fn part_number(head: &RequestHead) -> Result<u32, S3Error> {
    crate::ops::get_object::parse_part(head.parameter("partNumber").unwrap_or_default())
}

pub fn name(ctx: &BucketCtx, key: ObjectKey, id: UploadId) -> UploadName {
    UploadName { bucket: ctx.bucket.id, key, id }
}

/// A number that a listing asks for at most; the default is AWS's.
///
/// # Errors
/// 400 unless it is a number that fits 31 bits.
pub fn limit(head: &RequestHead, parameter: &str) -> Result<usize, S3Error> {
    let Some(text) = head.parameter(parameter) else { return Ok(PAGE_MAX) };
    match text.parse::<i32>().ok().and_then(|number| usize::try_from(number).ok()) {
        Some(number) => Ok(number),
        None => Err(S3Error::invalid_argument(
            format!("Argument {parameter} must be an integer between 0 and 2147483647"),
            parameter,
            text,
        )),
    }
}

/// Entries of one page, whatever is asked for.
pub const PAGE_MAX: usize = 1000;

/// `x-amz-checksum-type`.
///
/// # Errors
/// 400 for a type that does not exist.
pub fn checksum_kind(head: &RequestHead) -> Result<Option<ChecksumKind>, S3Error> {
    match header(head, "x-amz-checksum-type")? {
        None => Ok(None),
        Some("COMPOSITE") => Ok(Some(ChecksumKind::Composite)),
        Some("FULL_OBJECT") => Ok(Some(ChecksumKind::FullObject)),
        Some(_) => Err(S3Error::new(Code::InvalidRequest, "Value for x-amz-checksum-type header is invalid.")),
    }
}

/// `x-amz-checksum-algorithm` of a request without a body of its own.
///
/// # Errors
/// 400 for an algorithm that does not exist.
pub fn checksum_algorithm(head: &RequestHead) -> Result<Option<ChecksumAlgorithm>, S3Error> {
    let Some(name) = header(head, "x-amz-checksum-algorithm")? else { return Ok(None) };
    ChecksumAlgorithm::parse(name).map(Some).ok_or_else(unknown_algorithm)
}

/// The checksum of a new upload.
///
/// # Errors
/// 400 for a type without algorithm, or one that the algorithm cannot have.
pub fn upload_checksum(head: &RequestHead) -> Result<Option<UploadChecksum>, S3Error> {
    match (checksum_algorithm(head)?, checksum_kind(head)?) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(S3Error::new(
            Code::InvalidRequest,
            "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
        )),
        (Some(algorithm), kind) => {
            let checksum = UploadChecksum { algorithm, kind: kind.unwrap_or(combine::default_kind(algorithm)) };
            let refused = || {
                let kind = crate::ops::get_object::checksum_type(checksum.kind);
                S3Error::new(
                    Code::InvalidRequest,
                    format!("The {kind} checksum type cannot be used with the {} checksum algorithm.", algorithm.name()),
                )
            };
            if combine::is_possible(checksum) { Ok(Some(checksum)) } else { Err(refused()) }
        }
    }
}

/// The element that holds a value of this algorithm.
pub fn checksum_element(algorithm: ChecksumAlgorithm) -> &'static str {
    match algorithm {
        ChecksumAlgorithm::Crc32 => "ChecksumCRC32",
        ChecksumAlgorithm::Crc32c => "ChecksumCRC32C",
        ChecksumAlgorithm::Crc64Nvme => "ChecksumCRC64NVME",
        ChecksumAlgorithm::Sha1 => "ChecksumSHA1",
        ChecksumAlgorithm::Sha256 => "ChecksumSHA256",
        ChecksumAlgorithm::Sha512 => "ChecksumSHA512",
        ChecksumAlgorithm::Md5 => "ChecksumMD5",
        ChecksumAlgorithm::XxHash64 => "ChecksumXXHASH64",
        ChecksumAlgorithm::XxHash3 => "ChecksumXXHASH3",
        ChecksumAlgorithm::XxHash128 => "ChecksumXXHASH128",
    }
}

pub fn write_checksum(xml: &mut XmlWriter, checksum: Option<&Checksum>) {
    if let Some(checksum) = checksum {
        xml.text(checksum_element(checksum.algorithm), &checksum.value);
        xml.text("ChecksumType", crate::ops::get_object::checksum_type(checksum.kind));
    }
}

/// What a write demands of the object that is there.
///
/// # Errors
/// 501 for what AWS does not take on writes.
pub fn preconditions(head: &RequestHead) -> Result<Preconditions, S3Error> {
    let if_none_match = etags(head, "if-none-match")?;
    if if_none_match.as_ref().is_some_and(|etags| etags.len() != 1 || etags[0] != "*") {
        return Err(S3Error::not_implemented("If-None-Match with anything but * on a write"));
    }
    Ok(Preconditions { if_match: etags(head, "if-match")?, if_none_match })
}

/// A document, checked against the digests of the head before anybody parses it, and its room in memory.
///
/// # Errors
/// 400: longer than `length_max` (before it is read, when the client says so), sent too slowly, or not what the head says. 503 when others
/// take too long over theirs.
pub async fn document(
    garage: &Garage,
    mut body: Payload,
    facts: BodyFacts,
    length_max: usize,
) -> Result<(Bytes, DocumentRoom), S3Error> {
    let mut room = garage.document_room();
    let document = body.read_to_limit(length_max as u64, |length| room.grow_to(length).map_err(S3Error::from)).await?;
    let mut digests = Digests::new(facts.algorithm());
    digests.update(&document);
    let expected = PayloadSource::new(body, facts).expected().map_err(garage_model::ModelError::Source)?;
    expected.check(&digests.finish()).map_err(garage_model::ModelError::from)?;
    Ok((document, room))
}

#[cfg(test)]
mod tests {
    use garage_http::head::RequestHead;
    use garage_model::digest::{ChecksumAlgorithm, ChecksumKind};

    use super::{limit, part_number, upload_checksum, upload_id};
    use crate::error::Code;

    fn head(uri: &str, headers: &[(&str, &str)]) -> RequestHead {
        let mut request = hyper::Request::builder().uri(uri).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        RequestHead::read(&request.body(()).unwrap().into_parts().0).unwrap()
    }

    #[test]
    fn an_upload_has_a_checksum_type_that_its_algorithm_can_have() {
        let read = |headers: &[(&str, &str)]| {
            let checksum = upload_checksum(&head("/b/k", headers)).map_err(|error| error.code)?;
            Ok(checksum.map(|checksum| (checksum.algorithm, checksum.kind)))
        };
        let algorithm = |name| ("x-amz-checksum-algorithm", name);
        let kind = |name| ("x-amz-checksum-type", name);
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[algorithm("CRC32")]), Ok(Some((ChecksumAlgorithm::Crc32, ChecksumKind::Composite))));
        assert_eq!(read(&[algorithm("CRC64NVME")]), Ok(Some((ChecksumAlgorithm::Crc64Nvme, ChecksumKind::FullObject))));
        let full = read(&[algorithm("crc32c"), kind("FULL_OBJECT")]);
        assert_eq!(full, Ok(Some((ChecksumAlgorithm::Crc32c, ChecksumKind::FullObject))));
        for refused in [
            &[algorithm("SHA256"), kind("FULL_OBJECT")][..],
            &[algorithm("CRC64NVME"), kind("COMPOSITE")],
            &[kind("COMPOSITE")],
            &[algorithm("MD4")],
            &[algorithm("CRC32"), kind("PARTIAL")],
        ] {
            assert_eq!(read(refused), Err(Code::InvalidRequest), "{refused:?}");
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let number =
            |text: &str| part_number(&head(&format!("/b/k?partNumber={text}&uploadId=a"), &[])).map_err(|error| error.code);
        assert_eq!((number("1"), number("10000")), (Ok(1), Ok(10_000)));
        for text in ["0", "10001", "-1", "a", ""] {
            assert_eq!(number(text), Err(Code::InvalidArgument), "{text}");
        }
        assert_eq!(upload_id(&head("/b/k?uploadId=abc", &[])).unwrap_err().code, Code::NoSuchUpload);
        assert_eq!(limit(&head("/b/k?max-parts=-1", &[]), "max-parts").unwrap_err().code, Code::InvalidArgument);
        assert_eq!(limit(&head("/b/k", &[]), "max-parts"), Ok(1000));
    }
}
