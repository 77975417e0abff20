//! The digests of an object's bytes: MD5 for the ETag, and the checksums that S3 clients send and ask back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use std::hash::Hasher;
use twox_hash::{XxHash3_64, XxHash3_128, XxHash64};

/// A checksum algorithm of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    #[serde(rename = "crc32")]
    Crc32,
    #[serde(rename = "crc32c")]
    Crc32c,
    #[serde(rename = "crc64nvme")]
    Crc64Nvme,
    #[serde(rename = "sha1")]
    Sha1,
    #[serde(rename = "sha256")]
    Sha256,
    #[serde(rename = "sha512")]
    Sha512,
    #[serde(rename = "md5")]
    Md5,
    #[serde(rename = "xxhash64")]
    XxHash64,
    /// XXH3 with a value of 64 bits.
    #[serde(rename = "xxhash3")]
    XxHash3,
    /// XXH3 with a value of 128 bits.
    #[serde(rename = "xxhash128")]
    XxHash128,
}

impl ChecksumAlgorithm {
    pub const ALL: [ChecksumAlgorithm; 10] = [
        Self::Crc32,
        Self::Crc32c,
        Self::Crc64Nvme,
        Self::Sha1,
        Self::Sha256,
        Self::Sha512,
        Self::Md5,
        Self::XxHash64,
        Self::XxHash3,
        Self::XxHash128,
    ];

    /// As in `x-amz-checksum-algorithm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
            Self::Md5 => "MD5",
            Self::XxHash64 => "XXHASH64",
            Self::XxHash3 => "XXHASH3",
            Self::XxHash128 => "XXHASH128",
        }
    }

    /// The header that carries its value.
    pub fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
            Self::Sha512 => "x-amz-checksum-sha512",
            Self::Md5 => "x-amz-checksum-md5",
            Self::XxHash64 => "x-amz-checksum-xxhash64",
            Self::XxHash3 => "x-amz-checksum-xxhash3",
            Self::XxHash128 => "x-amz-checksum-xxhash128",
        }
    }

    /// In either case, as clients send it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// Bytes of a value.
    pub fn length(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme | Self::XxHash64 | Self::XxHash3 => 8,
            Self::Md5 | Self::XxHash128 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// What a checksum of a multipart upload covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ChecksumKind {
    /// All bytes of the object.
    #[serde(rename = "f")]
    FullObject,
    /// The checksums of the parts, in order.
    #[serde(rename = "c")]
    Composite,
}

/// A checksum as it is stored and returned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Checksum {
    #[serde(rename = "a")]
    pub algorithm: ChecksumAlgorithm,
    /// Base64; composite ones end in `-` and the number of parts.
    #[serde(rename = "v")]
    pub value: String,
    #[serde(rename = "k")]
    pub kind: ChecksumKind,
}

enum Summer {
    Crc(crc_fast::Digest),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
    Md5(Md5),
    XxHash64(XxHash64),
    XxHash3(XxHash3_64),
    XxHash128(XxHash3_128),
}

impl Summer {
    fn new(algorithm: ChecksumAlgorithm) -> Self {
        match algorithm {
            ChecksumAlgorithm::Crc32 => Summer::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc)),
            ChecksumAlgorithm::Crc32c => Summer::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi)),
            ChecksumAlgorithm::Crc64Nvme => Summer::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme)),
            ChecksumAlgorithm::Sha1 => Summer::Sha1(Sha1::new()),
            ChecksumAlgorithm::Sha256 => Summer::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha512 => Summer::Sha512(Sha512::new()),
            ChecksumAlgorithm::Md5 => Summer::Md5(Md5::new()),
            // AWS's values are those of seed 0, in xxHash's canonical (big-endian) form.
            ChecksumAlgorithm::XxHash64 => Summer::XxHash64(XxHash64::with_seed(0)),
            ChecksumAlgorithm::XxHash3 => Summer::XxHash3(XxHash3_64::new()),
            ChecksumAlgorithm::XxHash128 => Summer::XxHash128(XxHash3_128::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Summer::Crc(digest) => digest.update(bytes),
            Summer::Sha1(digest) => digest.update(bytes),
            Summer::Sha256(digest) => digest.update(bytes),
            Summer::Sha512(digest) => digest.update(bytes),
            Summer::Md5(digest) => digest.update(bytes),
            Summer::XxHash64(digest) => digest.write(bytes),
            Summer::XxHash3(digest) => digest.write(bytes),
            Summer::XxHash128(digest) => digest.write(bytes),
        }
    }

    fn finish(self, length: usize) -> Vec<u8> {
        match self {
            Summer::Crc(digest) => digest.finalize().to_be_bytes()[8 - length..].to_vec(),
            Summer::Sha1(digest) => digest.finalize().to_vec(),
            Summer::Sha256(digest) => digest.finalize().to_vec(),
            Summer::Sha512(digest) => digest.finalize().to_vec(),
            Summer::Md5(digest) => digest.finalize().to_vec(),
            Summer::XxHash64(digest) => digest.finish().to_be_bytes().to_vec(),
            Summer::XxHash3(digest) => digest.finish().to_be_bytes().to_vec(),
            Summer::XxHash128(digest) => digest.finish_128().to_be_bytes().to_vec(),
        }
    }
}

/// The checksum of some bytes, as bytes.
pub(crate) fn sum(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> Vec<u8> {
    let mut summer = Summer::new(algorithm);
    summer.update(bytes);
    summer.finish(algorithm.length())
}

/// Digests over bytes that arrive in order.
pub struct Digests {
    md5: Md5,
    algorithm: ChecksumAlgorithm,
    summer: Summer,
    length: u64,
}

/// The digests of a whole content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digested {
    pub length: u64,
    pub md5: [u8; 16],
    pub checksum: Checksum,
}

impl Digested {
    /// The MD5 in hexadecimal, as single-part ETags are.
    pub fn etag(&self) -> String {
        hex::encode(self.md5)
    }
}

impl Digests {
    /// MD5, and one checksum.
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        Digests { md5: Md5::new(), algorithm, summer: Summer::new(algorithm), length: 0 }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.summer.update(bytes);
        self.length += bytes.len() as u64;
    }

    pub fn finish(self) -> Digested {
        let value = BASE64.encode(self.summer.finish(self.algorithm.length()));
        Digested {
            length: self.length,
            md5: self.md5.finalize().into(),
            checksum: Checksum { algorithm: self.algorithm, value, kind: ChecksumKind::FullObject },
        }
    }
}

/// What the sender said of a content; the content is stored only when all of it is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub length: Option<u64>,
    pub md5: Option<[u8; 16]>,
    pub checksum: Option<ExpectedChecksum>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedChecksum {
    pub algorithm: ChecksumAlgorithm,
    /// Base64.
    pub value: String,
}

/// How a content differs from what its sender said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("{found} bytes arrived where {expected} were announced")]
    Length { expected: u64, found: u64 },
    /// Both in Base64.
    #[error("the Content-MD5 you specified did not match what was received")]
    Md5 { expected: String, calculated: String },
    /// Both in Base64.
    #[error("the {} you specified did not match what was received", algorithm.name())]
    Checksum { algorithm: ChecksumAlgorithm, expected: String, calculated: String },
}

impl Expected {
    /// # Errors
    /// The first [`Mismatch`].
    pub fn check(&self, digested: &Digested) -> Result<(), Mismatch> {
        if let Some(expected) = self.length
            && expected != digested.length
        {
            return Err(Mismatch::Length { expected, found: digested.length });
        }
        if let Some(md5) = self.md5.filter(|md5| *md5 != digested.md5) {
            return Err(Mismatch::Md5 { expected: BASE64.encode(md5), calculated: BASE64.encode(digested.md5) });
        }
        let found = &digested.checksum;
        match &self.checksum {
            Some(ExpectedChecksum { algorithm, value }) if *algorithm != found.algorithm || *value != found.value => {
                Err(Mismatch::Checksum { algorithm: *algorithm, expected: value.clone(), calculated: found.value.clone() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ChecksumAlgorithm, Digests, Expected, ExpectedChecksum, Mismatch};

    #[test]
    fn known_answers() {
        // "123456789" is the check input of the CRC catalogue; the values of SHA and MD5 are those of sha1sum and its like, those of
        // xxHash are what AWS's Common Runtime sends.
        let expected = [
            (ChecksumAlgorithm::Crc32, "y/Q5Jg=="),
            (ChecksumAlgorithm::Crc32c, "4waSgw=="),
            (ChecksumAlgorithm::Crc64Nvme, "rosUhgp5mIg="),
            (ChecksumAlgorithm::Sha1, "98O8HYCOBHMq32eZZczDTKeuNEE="),
            (ChecksumAlgorithm::Sha256, "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
            (
                ChecksumAlgorithm::Sha512,
                "2eZ2LdHI6vbWGzxhkvxAjU1tXxF20MKRabwk5xw/J0rSf81YEbMT1oH35V7ALXPUmclUVba1u1A6z1dPuo/+hQ==",
            ),
            (ChecksumAlgorithm::Md5, "JfnnlDI7RTiF9RgfG2JNCw=="),
            (ChecksumAlgorithm::XxHash64, "jLhB20DmroM="),
            (ChecksumAlgorithm::XxHash3, "ctyxi2ehff8="),
            (ChecksumAlgorithm::XxHash128, "MxGUd+3l3NXpcWQnaB1YYA=="),
        ];
        assert_eq!(expected.map(|(algorithm, _value)| algorithm), ChecksumAlgorithm::ALL);
        for (algorithm, value) in expected {
            let mut digests = Digests::new(algorithm);
            digests.update(b"12345");
            digests.update(b"6789");
            let digested = digests.finish();
            assert_eq!(digested.length, 9);
            assert_eq!(digested.checksum.value, value, "{algorithm:?}");
            assert_eq!(digested.etag(), "25f9e794323b453885f5181f1b624d0b");
        }
    }

    #[test]
    fn each_disagreement_is_named() {
        let mut digests = Digests::new(ChecksumAlgorithm::Crc32);
        digests.update(b"x");
        let digested = digests.finish();
        let check = |expected: Expected| expected.check(&digested);
        assert_eq!(check(Expected::default()), Ok(()));
        assert_eq!(check(Expected { length: Some(2), ..Expected::default() }), Err(Mismatch::Length { expected: 2, found: 1 }));
        let (expected, calculated) = ("AAAAAAAAAAAAAAAAAAAAAA==".to_owned(), "ndTkYSaMgDT1yFZOFVxnpg==".to_owned());
        let md5 = Expected { md5: Some([0; 16]), ..Expected::default() };
        assert_eq!(check(md5), Err(Mismatch::Md5 { expected, calculated }));
        let checksum = Some(ExpectedChecksum { algorithm: ChecksumAlgorithm::Crc32, value: "AAAAAA==".to_owned() });
        let (expected, calculated) = ("AAAAAA==".to_owned(), digested.checksum.value.clone());
        assert_eq!(
            check(Expected { checksum, ..Expected::default() }),
            Err(Mismatch::Checksum { algorithm: ChecksumAlgorithm::Crc32, expected, calculated })
        );
    }
}
