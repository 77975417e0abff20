//! The headers of an object: which are kept with it, which it is asked for with, and which imply something that is not implemented.

use std::collections::BTreeMap;

use garage_http::body::stored_content_encoding;
use garage_http::head::RequestHead;
use garage_model::digest::ChecksumAlgorithm;

use crate::conditions::parse_etags;
use crate::error::{Code, S3Error};

/// Kept with an object and returned with it.
const KEPT: [&str; 6] =
    ["cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires"];
/// AWS's limit on names and values of user metadata, in bytes.
const METADATA_MAX: usize = 2048;
const META_PREFIX: &str = "x-amz-meta-";

/// Headers (or beginnings of them) that would change what a write means; refused rather than ignored.
const NOT_IMPLEMENTED: [&str; 11] = [
    "x-amz-server-side-encryption",
    "x-amz-copy-source-server-side-encryption",
    "x-amz-tagging",
    "x-amz-object-lock-",
    "x-amz-bypass-governance-retention",
    "x-amz-website-redirect-location",
    "x-amz-grant-",
    "x-amz-mfa",
    "x-amz-write-offset-bytes",
    "x-amz-expected-bucket-owner",
    "x-amz-source-expected-bucket-owner",
];

/// Refuses headers that ask for something that is not there.
///
/// # Errors
/// 501 naming the header.
pub fn refuse_unimplemented(head: &RequestHead) -> Result<(), S3Error> {
    for name in head.headers.keys() {
        let name = name.as_str();
        // CopyObject reads this one itself.
        if name != "x-amz-tagging-directive" && NOT_IMPLEMENTED.iter().any(|refused| name.starts_with(refused)) {
            return Err(S3Error::not_implemented(&format!("The header {name}")).with("Header", name));
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
            let algorithm = ChecksumAlgorithm::parse(name)
                .ok_or_else(|| S3Error::new(Code::InvalidRequest, "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]"))?;
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
    use super::{AnnouncedChecksum, announced_checksum, content_md5, refuse_unimplemented, to_keep};
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
        ];
        for refused in refused {
            assert_eq!(refuse_unimplemented(&head(&[refused])).unwrap_err().code, Code::NotImplemented, "{refused:?}");
        }
        for taken in [("x-amz-acl", "private"), ("x-amz-acl", "bucket-owner-full-control"), ("x-amz-storage-class", "STANDARD")] {
            assert!(refuse_unimplemented(&head(&[taken])).is_ok(), "{taken:?}");
        }
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
