//! The ETag and the checksum of an object made of parts, from those of the parts alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use md5::{Digest, Md5};

use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind, sum};
use crate::upload::UploadChecksum;

/// A part's checksum, and of how many bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSum<'a> {
    /// Base64.
    pub value: &'a str,
    pub length: u64,
}

/// A part's digest that is not one: it was checked when it was stored, so the row is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the digest {0:?} of a part is not one")]
pub struct BadDigest(pub String);

/// `md5(md5 of part 1 ‖ md5 of part 2 …)-N`. `etags`: MD5s in hexadecimal.
///
/// # Errors
/// [`BadDigest`].
pub fn etag(etags: &[&str]) -> Result<String, BadDigest> {
    let mut md5 = Md5::new();
    for etag in etags {
        md5.update(hex::decode(etag).map_err(|_malformed| BadDigest((*etag).to_owned()))?);
    }
    Ok(format!("{}-{}", hex::encode(md5.finalize()), etags.len()))
}

/// The checksum kinds an algorithm can have: hashes of parts say nothing of the whole, CRCs do, and CRC64NVME is only ever of the whole.
pub fn is_possible(checksum: UploadChecksum) -> bool {
    match (checksum.algorithm, checksum.kind) {
        (ChecksumAlgorithm::Crc64Nvme, kind) => kind == ChecksumKind::FullObject,
        (ChecksumAlgorithm::Crc32 | ChecksumAlgorithm::Crc32c, _) => true,
        (
            ChecksumAlgorithm::Sha1
            | ChecksumAlgorithm::Sha256
            | ChecksumAlgorithm::Sha512
            | ChecksumAlgorithm::Md5
            | ChecksumAlgorithm::XxHash64
            | ChecksumAlgorithm::XxHash3
            | ChecksumAlgorithm::XxHash128,
            kind,
        ) => kind == ChecksumKind::Composite,
    }
}

/// The kind that AWS takes when none is named.
pub fn default_kind(algorithm: ChecksumAlgorithm) -> ChecksumKind {
    match algorithm {
        ChecksumAlgorithm::Crc64Nvme => ChecksumKind::FullObject,
        _ => ChecksumKind::Composite,
    }
}

/// The checksum of the whole. `None` when the algorithm has none of that kind ([`is_possible`]).
///
/// # Errors
/// [`BadDigest`].
pub fn checksum(wanted: UploadChecksum, parts: &[PartSum<'_>]) -> Result<Option<Checksum>, BadDigest> {
    let UploadChecksum { algorithm, kind } = wanted;
    let mut sums = Vec::with_capacity(parts.len());
    for part in parts {
        let bytes = BASE64.decode(part.value).ok().filter(|bytes| bytes.len() == algorithm.length());
        sums.push((bytes.ok_or_else(|| BadDigest(part.value.to_owned()))?, part.length));
    }
    let value = match (kind, crc(algorithm)) {
        (ChecksumKind::Composite, _) => {
            let joined: Vec<u8> = sums.iter().flat_map(|(bytes, _length)| bytes).copied().collect();
            format!("{}-{}", BASE64.encode(sum(algorithm, &joined)), parts.len())
        }
        (ChecksumKind::FullObject, Some(crc)) => BASE64.encode(crc_of_whole(algorithm, crc, &sums)),
        (ChecksumKind::FullObject, None) => return Ok(None),
    };
    Ok(Some(Checksum { algorithm, value, kind }))
}

fn crc(algorithm: ChecksumAlgorithm) -> Option<CrcAlgorithm> {
    match algorithm {
        ChecksumAlgorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
        ChecksumAlgorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
        ChecksumAlgorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
        ChecksumAlgorithm::Sha1
        | ChecksumAlgorithm::Sha256
        | ChecksumAlgorithm::Sha512
        | ChecksumAlgorithm::Md5
        | ChecksumAlgorithm::XxHash64
        | ChecksumAlgorithm::XxHash3
        | ChecksumAlgorithm::XxHash128 => None,
    }
}

fn crc_of_whole(algorithm: ChecksumAlgorithm, crc: CrcAlgorithm, sums: &[(Vec<u8>, u64)]) -> Vec<u8> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    // The CRC of nothing is where each of these begins; nothing more is added by an empty part.
    let whole =
        sums.iter().filter(|(_bytes, length)| *length > 0).fold(crc_fast::checksum(crc, &[]), |whole, (bytes, length)| {
            crc_fast::checksum_combine(crc, whole, number(bytes), *length)
        });
    whole.to_be_bytes()[8 - algorithm.length()..].to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{BadDigest, PartSum, checksum, etag, is_possible};
    use crate::digest::{ChecksumAlgorithm, ChecksumKind, Digests};
    use crate::upload::UploadChecksum;

    #[test]
    fn the_etag_is_the_md5_of_the_md5s() {
        // `printf 12345 | md5sum`, `printf 6789 | md5sum`; their bytes joined, again through md5sum.
        let parts = ["827ccb0eea8a706c4c34a16891f84e7b", "46d045ff5190f6ea93739da6c0aa19bc"];
        assert_eq!(etag(&parts).unwrap(), "324730582f20c3f18cbb66d63a6137d2-2");
        assert_eq!(etag(&["no"]), Err(BadDigest("no".to_owned())));
    }

    #[test]
    fn composite_checksums_have_known_answers() {
        let expected = [
            (ChecksumAlgorithm::Sha256, "/wiQ+jHXUUcr18tTEaeru5H1cBgrYDQGvfxkGFLzgl4=-2"),
            (ChecksumAlgorithm::Sha1, "UGmj5L5/K7lmsIeci6hTqydwTCs=-2"),
            (ChecksumAlgorithm::Crc32, "4zspdQ==-2"),
            (
                ChecksumAlgorithm::Sha512,
                "7mq9aUS+fL/nGoVn00cjk1Ya4tCBnHyf8UjzgjLk2nUZRERznf4NvBmuOm63A2FnajMZ174I/m81hyIN7fBsHQ==-2",
            ),
            (ChecksumAlgorithm::Md5, "MkcwWC8gw/GMu2bWOmE30g==-2"),
            (ChecksumAlgorithm::XxHash64, "pk+Q96PvVXo=-2"),
            (ChecksumAlgorithm::XxHash3, "/szbaZbktRo=-2"),
            (ChecksumAlgorithm::XxHash128, "EYkKFz9GAtSF8B3qj4uibg==-2"),
        ];
        for (algorithm, value) in expected {
            let sums = [b"12345".as_slice(), b"6789"].map(|part| digest(algorithm, part));
            let parts: Vec<_> = sums.iter().map(|value| PartSum { value, length: 1 }).collect();
            let whole = checksum(UploadChecksum { algorithm, kind: ChecksumKind::Composite }, &parts).unwrap();
            assert_eq!(whole.unwrap().value, value, "{algorithm:?}");
        }
    }

    fn digest(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> String {
        let mut digests = Digests::new(algorithm);
        digests.update(bytes);
        digests.finish().checksum.value
    }

    proptest! {
        #[test]
        fn the_crc_of_the_whole_follows_from_those_of_the_parts(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6)) {
            let whole = parts.concat();
            for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64Nvme] {
                let sums: Vec<String> = parts.iter().map(|part| digest(algorithm, part)).collect();
                let sums: Vec<_> = parts.iter().zip(&sums).map(|(part, value)| PartSum { value, length: part.len() as u64 }).collect();
                let combined = checksum(UploadChecksum { algorithm, kind: ChecksumKind::FullObject }, &sums).unwrap().unwrap();
                assert_eq!(combined.value, digest(algorithm, &whole), "{algorithm:?}");
            }
        }
    }

    #[test]
    fn hashes_of_the_whole_do_not_follow_from_those_of_the_parts() {
        let wanted = |algorithm, kind| UploadChecksum { algorithm, kind };
        let crcs = [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64Nvme];
        for algorithm in ChecksumAlgorithm::ALL.into_iter().filter(|algorithm| !crcs.contains(algorithm)) {
            assert_eq!(checksum(wanted(algorithm, ChecksumKind::FullObject), &[]), Ok(None));
            assert!(!is_possible(wanted(algorithm, ChecksumKind::FullObject)));
        }
        assert!(!is_possible(wanted(ChecksumAlgorithm::Crc64Nvme, ChecksumKind::Composite)));
        assert!(is_possible(wanted(ChecksumAlgorithm::Crc32, ChecksumKind::FullObject)));
    }
}
