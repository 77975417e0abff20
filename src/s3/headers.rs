//! The headers of an object: which are kept with it, which it is asked for with, and which imply something that is not implemented.

use std::collections::BTreeMap;

use garage_http::body::stored_content_encoding;
use garage_http::head::RequestHead;
use garage_http::sigv4::ADDED_ON_THE_WAY;
use garage_model::digest::ChecksumAlgorithm;

use crate::conditions::parse_etags;
use crate::error::{Code, S3Error};

/// Kept with an object and returned with it.
const KEPT: [&str; 6] =
    ["cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires"];
/// AWS's limit on names and values of user metadata, in bytes.
const METADATA_MAX: usize = 2048;
const META_PREFIX: &str = "x-amz-meta-";

/// The headers of Amazon's that may be passed over or that some operation reads, apart from metadata and checksums. Any other would
/// change what a request means, today or by a later invention: it is refused rather than ignored.
const KNOWN: [&str; 29] = [
    // Of the signature and of the transfer.
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-decoded-content-length",
    "x-amz-security-token",
    "x-amz-trailer",
    // A wish for a checksum behind the body of a reply, which a server need not fulfil.
    "x-amz-te",
    "x-amz-user-agent",
    // Nobody pays for requests here, so whoever agrees to pay agrees to nothing.
    "x-amz-request-payer",
    // Read by operations, or in `refuse_unimplemented`.
    "x-amz-acl",
    "x-amz-bucket-object-lock-enabled",
    "x-amz-checksum-algorithm",
    "x-amz-checksum-mode",
    "x-amz-checksum-type",
    "x-amz-copy-source",
    "x-amz-copy-source-if-match",
    "x-amz-copy-source-if-modified-since",
    "x-amz-copy-source-if-none-match",
    "x-amz-copy-source-if-unmodified-since",
    "x-amz-copy-source-range",
    "x-amz-max-parts",
    "x-amz-metadata-directive",
    "x-amz-mp-object-size",
    "x-amz-object-attributes",
    "x-amz-object-ownership",
    // Asks for what objects in an archive have, of which there are none.
    "x-amz-optional-object-attributes",
    "x-amz-part-number-marker",
    "x-amz-sdk-checksum-algorithm",
    "x-amz-storage-class",
    "x-amz-tagging-directive",
];
const CHECKSUM_PREFIX: &str = "x-amz-checksum-";

/// Refuses headers that ask for something that is not there.
///
/// # Errors
/// 501 naming the header; 400 for a checksum of an algorithm that nobody has.
pub fn refuse_unimplemented(head: &RequestHead) -> Result<(), S3Error> {
    let amazons = head.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("x-amz-"));
    let is_known = |name: &str| name.starts_with(META_PREFIX) || KNOWN.contains(&name) || ADDED_ON_THE_WAY.contains(&name);
    for name in amazons.filter(|name| !is_known(name)) {
        if !name.starts_with(CHECKSUM_PREFIX) {
            return Err(S3Error::not_implemented(&format!("The header {name}")).with("Header", name));
        }
        if !ChecksumAlgorithm::ALL.iter().any(|algorithm| algorithm.header() == name) {
            let message = "The algorithm type you specified in x-amz-checksum- header is invalid.";
            return Err(S3Error::new(Code::InvalidRequest, message).with("Header", name));
        }
    }
    match header(head, "x-amz-storage-class")? {
        None | Some("STANDARD") => {}
        Some(class) => {
            return Err(S3Error::not_implemented(&format!("The storage class {class}")).with("Header", "x-amz-storage-class"));
        }
    }
    match header(head, "x-amz-acl")? {
        None | Some("private" | "bucket-owner-full-control") => Ok(()),
        Some(acl) => Err(S3Error::not_implemented(&format!("The ACL {acl}")).with("Header", "x-amz-acl")),
    }
}

/// Refuses the checksum of a body where a request has none: it would be taken and forgotten.
///
/// # Errors
/// 400 naming the header.
pub fn refuse_checksum(head: &RequestHead) -> Result<(), S3Error> {
    match ChecksumAlgorithm::ALL.into_iter().find(|algorithm| head.headers.contains_key(algorithm.header())) {
        None => Ok(()),
        Some(algorithm) => {
            let name = algorithm.header();
            let message = format!("The header {name} is not valid for a request without content.");
            Err(S3Error::new(Code::InvalidRequest, message).with("Header", name))
        }
    }
}

/// A header that may be given once.
///
/// # Errors
/// 400 when it is repeated or not UTF-8.
pub fn header<'h>(head: &'h RequestHead, name: &str) -> Result<Option<&'h str>, S3Error> {
    head.header(name).map_err(|error| S3Error::new(Code::InvalidRequest, error.to_string()))
}

/// The headers to keep with a new object: lower-case names.
///
/// # Errors
/// 400: not UTF-8, or more metadata than AWS takes.
pub fn to_keep(head: &RequestHead) -> Result<BTreeMap<String, String>, S3Error> {
    let mut kept = BTreeMap::new();
    for name in KEPT {
        if let Some(value) = header(head, name)? {
            let kept_value = if name == "content-encoding" { stored_content_encoding(value) } else { Some(value.to_owned()) };
            if let Some(value) = kept_value.filter(|value| !value.is_empty()) {
                kept.insert(name.to_owned(), value);
            }
        }
    }
    let mut metadata_bytes = 0;
    for name in head.headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with(META_PREFIX)) {
        let values: Result<Vec<&str>, _> =
            head.headers.get_all(name).iter().map(|value| std::str::from_utf8(value.as_bytes())).collect();
        let value =
            values.map_err(|_invalid| S3Error::new(Code::InvalidRequest, format!("The header {name} is not UTF-8.")))?.join(",");
        metadata_bytes += name.len() - META_PREFIX.len() + value.len();
        kept.insert(name.to_owned(), value);
    }
    if metadata_bytes > METADATA_MAX {
        return Err(S3Error::from(Code::MetadataTooLarge)
            .with("Size", &metadata_bytes.to_string())
            .with("MaxSizeAllowed", &METADATA_MAX.to_string()));
    }
    Ok(kept)
}

/// `If-Match` and `If-None-Match`, as ETags without quotes.
///
/// # Errors
/// 400 when one is repeated.
pub fn etags(head: &RequestHead, name: &str) -> Result<Option<Vec<String>>, S3Error> {
    Ok(header(head, name)?.map(parse_etags))
}

/// Which checksum the client announces for its body: by value in a header, by name of a trailer, or by algorithm alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnnouncedChecksum {
    Value(ChecksumAlgorithm, String),
    Trailer(ChecksumAlgorithm),
    Algorithm(ChecksumAlgorithm),
}

impl AnnouncedChecksum {
    pub fn algorithm(&self) -> ChecksumAlgorithm {
        match self {
            Self::Value(algorithm, _) | Self::Trailer(algorithm) | Self::Algorithm(algorithm) => *algorithm,
        }
    }
}

/// Reads the checksum headers of an upload.
///
/// # Errors
/// 400: more than one checksum, an unknown algorithm, or a value that is not one.
pub fn announced_checksum(head: &RequestHead) -> Result<Option<AnnouncedChecksum>, S3Error> {
    let mut found = None;
    for algorithm in ChecksumAlgorithm::ALL {
        if let Some(value) = header(head, algorithm.header())? {
            if found.is_some() {
                return Err(S3Error::new(
                    Code::InvalidRequest,
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
                ));
            }
            check_value(algorithm, value)?;
            found = Some(AnnouncedChecksum::Value(algorithm, value.to_owned()));
        }
    }
    if let Some(trailer) = header(head, "x-amz-trailer")? {
        let algorithm =
            ChecksumAlgorithm::ALL.into_iter().find(|algorithm| algorithm.header().eq_ignore_ascii_case(trailer.trim()));
        match (algorithm, &found) {
            (Some(algorithm), None) => found = Some(AnnouncedChecksum::Trailer(algorithm)),
            (Some(_), Some(_)) => {
                return Err(S3Error::new(Code::InvalidRequest, "Expecting a single x-amz-checksum- header or trailer."));
            }
            (None, _) => {
                return Err(S3Error::new(
                    Code::InvalidRequest,
                    "The value specified in the x-amz-trailer header is not supported",
                ));
            }
        }
    }
    let name = header(head, "x-amz-sdk-checksum-algorithm")?.or(header(head, "x-amz-checksum-algorithm")?);
    match (name, found) {
        (None, found) => Ok(found),
        (Some(name), found) => {
            let algorithm = ChecksumAlgorithm::parse(name).ok_or_else(unknown_algorithm)?;
            match found {
                Some(announced) if announced.algorithm() != algorithm => {
                    Err(S3Error::new(Code::InvalidRequest, "Value for x-amz-sdk-checksum-algorithm header is invalid."))
                }
                Some(announced) => Ok(Some(announced)),
                None => Ok(Some(AnnouncedChecksum::Algorithm(algorithm))),
            }
        }
    }
}

/// 400 for a checksum algorithm that nobody has.
pub(crate) fn unknown_algorithm() -> S3Error {
    let known = ChecksumAlgorithm::ALL.map(ChecksumAlgorithm::name).join(", ");
    let message = format!("Checksum algorithm provided is unsupported. Please try again with any of the valid types: [{known}]");
    S3Error::new(Code::InvalidRequest, message)
}

/// # Errors
/// 400 when `value` is not Base64 of the algorithm's length.
pub fn check_value(algorithm: ChecksumAlgorithm, value: &str) -> Result<(), S3Error> {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(value);
    if decoded.is_ok_and(|bytes| bytes.len() == algorithm.length()) {
        Ok(())
    } else {
        Err(S3Error::new(Code::InvalidRequest, format!("Value for {} header is invalid.", algorithm.header())))
    }
}

/// `Content-MD5`.
///
/// # Errors
/// 400 `InvalidDigest` when it is not Base64 of 16 bytes.
pub fn content_md5(head: &RequestHead) -> Result<Option<[u8; 16]>, S3Error> {
    use base64::Engine;
    let Some(value) = header(head, "content-md5")? else { return Ok(None) };
    let decoded = base64::engine::general_purpose::STANDARD.decode(value).ok().and_then(|bytes| bytes.try_into().ok());
    decoded.map(Some).ok_or_else(|| S3Error::from(Code::InvalidDigest).with("Content-MD5", value))
}

#[cfg(test)]
mod tests {
    use super::{AnnouncedChecksum, announced_checksum, content_md5, refuse_checksum, refuse_unimplemented, to_keep};
    use crate::error::Code;
    use garage_http::head::RequestHead;
    use garage_model::digest::ChecksumAlgorithm;

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let mut request = hyper::Request::builder().uri("/b/k").header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        RequestHead::read(&request.body(()).unwrap().into_parts().0).unwrap()
    }

    #[test]
    fn what_belongs_to_the_object_is_kept() {
        let kept = to_keep(&head(&[
            ("content-type", "text/plain"),
            ("content-encoding", "gzip, aws-chunked"),
            ("x-amz-meta-Colour", "bleu é"),
            ("x-other", "no"),
        ]))
        .unwrap();
        let kept: Vec<_> = kept.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(kept, [("content-encoding", "gzip"), ("content-type", "text/plain"), ("x-amz-meta-colour", "bleu é")]);
        assert!(to_keep(&head(&[("content-encoding", "aws-chunked")])).unwrap().is_empty());
        let long = "x".repeat(2049);
        assert_eq!(to_keep(&head(&[("x-amz-meta-a", &long)])).unwrap_err().code, Code::MetadataTooLarge);
    }

    #[test]
    fn what_is_not_there_is_refused_not_ignored() {
        let refused = [
            ("x-amz-server-side-encryption", "AES256"),
            ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
            ("x-amz-tagging", "a=b"),
            ("x-amz-object-lock-mode", "GOVERNANCE"),
            ("x-amz-storage-class", "GLACIER"),
            ("x-amz-acl", "public-read"),
            ("x-amz-grant-read", "id=1"),
            ("x-amz-expected-bucket-owner", "123456789012"),
            ("x-amz-if-match-size", "1"),
            ("x-amz-s3session-token", "a"),
            ("x-amz-invented-tomorrow", "a"),
        ];
        for refused in refused {
            assert_eq!(refuse_unimplemented(&head(&[refused])).unwrap_err().code, Code::NotImplemented, "{refused:?}");
        }
        let unknown = head(&[("x-amz-checksum-crc9", "AAAAAA==")]);
        assert_eq!(refuse_unimplemented(&unknown).unwrap_err().code, Code::InvalidRequest);
    }

    #[test]
    fn what_sdks_send_by_themselves_is_taken() {
        let taken = [
            ("amz-sdk-invocation-id", "5f1c"),
            ("amz-sdk-request", "attempt=1"),
            ("x-amz-acl", "bucket-owner-full-control"),
            ("x-amz-acl", "private"),
            ("x-amz-cf-id", "Zx1"),
            ("x-amz-checksum-mode", "ENABLED"),
            ("x-amz-checksum-xxhash128", "MxGUd+3l3NXpcWQnaB1YYA=="),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            ("x-amz-date", "20260101T000000Z"),
            ("x-amz-meta-invented-tomorrow", "a"),
            ("x-amz-request-payer", "requester"),
            ("x-amz-storage-class", "STANDARD"),
            ("x-amz-te", "append-md5"),
            ("x-amz-user-agent", "aws-sdk-js/3"),
            ("x-amzn-trace-id", "Root=1"),
        ];
        for taken in taken {
            assert_eq!(refuse_unimplemented(&head(&[taken])), Ok(()), "{taken:?}");
        }
    }

    #[test]
    fn a_checksum_of_nothing_is_refused() {
        assert_eq!(refuse_checksum(&head(&[("x-amz-checksum-algorithm", "SHA1")])), Ok(()));
        let refused = refuse_checksum(&head(&[("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE=")]));
        assert_eq!(refused.unwrap_err().code, Code::InvalidRequest);
    }

    #[test]
    fn one_checksum_is_announced_at_most() {
        let crc = ("x-amz-checksum-crc32", "y/Q5Jg==");
        let read = |headers: &[(&str, &str)]| announced_checksum(&head(headers));
        assert_eq!(read(&[crc]), Ok(Some(AnnouncedChecksum::Value(ChecksumAlgorithm::Crc32, "y/Q5Jg==".to_owned()))));
        assert_eq!(
            read(&[("x-amz-trailer", "x-amz-checksum-sha1")]),
            Ok(Some(AnnouncedChecksum::Trailer(ChecksumAlgorithm::Sha1)))
        );
        assert_eq!(
            read(&[("x-amz-sdk-checksum-algorithm", "crc32c")]),
            Ok(Some(AnnouncedChecksum::Algorithm(ChecksumAlgorithm::Crc32c)))
        );
        for algorithm in ChecksumAlgorithm::ALL {
            assert_eq!(read(&[("x-amz-trailer", algorithm.header())]), Ok(Some(AnnouncedChecksum::Trailer(algorithm))));
        }
        assert_eq!(read(&[]), Ok(None));
        for bad in [
            &[crc, ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE=")][..],
            &[crc, ("x-amz-trailer", "x-amz-checksum-crc32")],
            &[crc, ("x-amz-sdk-checksum-algorithm", "SHA1")],
            &[("x-amz-checksum-crc32", "y/Q5")],
            &[("x-amz-checksum-algorithm", "MD4")],
            &[("x-amz-trailer", "x-amz-meta-a")],
        ] {
            assert_eq!(read(bad).unwrap_err().code, Code::InvalidRequest, "{bad:?}");
        }
    }

    #[test]
    fn content_md5_is_sixteen_bytes() {
        assert!(content_md5(&head(&[("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")])).unwrap().is_some());
        assert_eq!(content_md5(&head(&[("content-md5", "AAAA")])).unwrap_err().code, Code::InvalidDigest);
        assert_eq!(content_md5(&head(&[("content-md5", "no base64")])).unwrap_err().code, Code::InvalidDigest);
    }
}
