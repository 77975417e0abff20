//! What completing a multipart upload makes of its parts: pure, judged before anything is claimed or written.

use crate::combine::{self, BadDigest, PartSum};
use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind};
use crate::part::Part;
use crate::upload::UploadChecksum;

/// Smallest size of any part but the last, in bytes, as AWS has it.
pub const PART_SIZE_MIN: u64 = 5 << 20;
/// Most parts of an upload.
pub const PARTS_MAX: u32 = 10_000;
/// Largest object, in bytes, as AWS has it since 2025.
pub const OBJECT_SIZE_MAX: u64 = 50 << 40;

/// A part as the client lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPart {
    pub number: u32,
    /// Without quotes.
    pub etag: String,
    /// The checksums named, Base64.
    pub checksums: Vec<ListedChecksum>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChecksum {
    pub algorithm: ChecksumAlgorithm,
    pub value: String,
}

/// What the client says of the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedWhole {
    pub parts: Vec<ListedPart>,
    /// `x-amz-mp-object-size`.
    pub size: Option<u64>,
    /// `x-amz-checksum-…`.
    pub checksum: Option<ListedChecksum>,
    /// `x-amz-checksum-type`.
    pub kind: Option<ChecksumKind>,
}

/// Why a list of parts cannot be completed. Nothing has happened to the upload then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompleteError {
    #[error("the list of parts is empty")]
    NoParts,
    #[error("the list of parts is not in ascending order at part {number}")]
    Order { number: u32 },
    #[error("part {number} was not uploaded, or with another content than listed")]
    InvalidPart { number: u32, etag: String },
    #[error("part {number} has {size} bytes; all parts but the last need at least {PART_SIZE_MIN}")]
    TooSmall { number: u32, etag: String, size: u64 },
    #[error("the parts have {found} bytes together, not {expected}")]
    Size { expected: u64, found: u64 },
    #[error("the object would have {size} bytes; at most {OBJECT_SIZE_MAX} are allowed")]
    TooLarge { size: u64 },
    #[error("the checksum of the whole is not the one specified")]
    Checksum { algorithm: ChecksumAlgorithm },
    #[error("the upload has another checksum type than the one specified")]
    ChecksumKind,
    #[error(transparent)]
    Damaged(#[from] BadDigest),
}

/// The object that a list of parts makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    pub parts: Vec<Part>,
    pub size: u64,
    pub etag: String,
    pub checksum: Option<Checksum>,
}

/// Judges a list of parts against the parts that were uploaded, which come in the order of their numbers.
///
/// # Errors
/// [`CompleteError`], the first in the order of the list.
pub fn assemble(whole: &ListedWhole, uploaded: &[Part], wanted: Option<UploadChecksum>) -> Result<Assembled, CompleteError> {
    let parts = choose(&whole.parts, uploaded)?;
    let last = parts.last().ok_or(CompleteError::NoParts)?.number;
    if let Some(small) = parts.iter().find(|part| part.number != last && part.stored.size < PART_SIZE_MIN) {
        return Err(CompleteError::TooSmall { number: small.number, etag: small.stored.etag.clone(), size: small.stored.size });
    }
    let size = parts.iter().map(|part| part.stored.size).sum();
    if let Some(expected) = whole.size.filter(|expected| *expected != size) {
        return Err(CompleteError::Size { expected, found: size });
    }
    if size > OBJECT_SIZE_MAX {
        return Err(CompleteError::TooLarge { size });
    }
    let etags: Vec<&str> = parts.iter().map(|part| part.stored.etag.as_str()).collect();
    let checksum = checksum_of(whole, &parts, wanted)?;
    Ok(Assembled { size, etag: combine::etag(&etags)?, checksum, parts })
}

fn choose(listed: &[ListedPart], uploaded: &[Part]) -> Result<Vec<Part>, CompleteError> {
    let mut chosen: Vec<Part> = Vec::with_capacity(listed.len());
    for part in listed {
        if chosen.last().is_some_and(|before| before.number >= part.number) {
            return Err(CompleteError::Order { number: part.number });
        }
        let invalid = || CompleteError::InvalidPart { number: part.number, etag: part.etag.clone() };
        let index = uploaded.binary_search_by_key(&part.number, |known| known.number).map_err(|_not_there| invalid())?;
        let known = &uploaded[index];
        let agrees =
            |sum: &ListedChecksum| sum.algorithm == known.stored.checksum.algorithm && sum.value == known.stored.checksum.value;
        if known.stored.etag != part.etag || !part.checksums.iter().all(agrees) {
            return Err(invalid());
        }
        chosen.push(known.clone());
    }
    Ok(chosen)
}

/// The checksum of the whole: as the upload was created for, else of the whole when every part has AWS's default one.
fn checksum_of(whole: &ListedWhole, parts: &[Part], wanted: Option<UploadChecksum>) -> Result<Option<Checksum>, CompleteError> {
    let default = UploadChecksum { algorithm: ChecksumAlgorithm::Crc64Nvme, kind: ChecksumKind::FullObject };
    if whole.kind.is_some_and(|kind| kind != wanted.unwrap_or(default).kind) {
        return Err(CompleteError::ChecksumKind);
    }
    let target = wanted.unwrap_or(default);
    let all_have_it = parts.iter().all(|part| part.stored.checksum.algorithm == target.algorithm);
    let checksum = if all_have_it {
        let sums: Vec<PartSum<'_>> =
            parts.iter().map(|part| PartSum { value: &part.stored.checksum.value, length: part.stored.size }).collect();
        combine::checksum(target, &sums)?
    } else {
        None
    };
    if let Some(expected) = &whole.checksum {
        let agrees =
            checksum.as_ref().is_some_and(|found| found.algorithm == expected.algorithm && same_value(found, &expected.value));
        if !agrees {
            return Err(CompleteError::Checksum { algorithm: expected.algorithm });
        }
    }
    Ok(checksum)
}

/// Clients may leave out the number of parts behind a composite value.
fn same_value(found: &Checksum, expected: &str) -> bool {
    found.value == expected || found.kind == ChecksumKind::Composite && found.value.split('-').next() == Some(expected)
}

#[cfg(test)]
mod tests {
    use garage_types::{Timestamp, VersionId};

    use super::{CompleteError, ListedChecksum, ListedPart, ListedWhole, PART_SIZE_MIN, assemble};
    use crate::digest::{Checksum, ChecksumAlgorithm, ChecksumKind, Digests};
    use crate::part::{Part, StoredPart};
    use crate::upload::UploadChecksum;

    fn part(number: u32, size: u64) -> Part {
        let mut digests = Digests::new(ChecksumAlgorithm::Crc32);
        digests.update(&number.to_be_bytes());
        let digested = digests.finish();
        let stored =
            StoredPart { timestamp: Timestamp::from_millis(1), size, etag: digested.etag(), checksum: digested.checksum };
        Part { number, version: VersionId::from_bytes([number as u8; 32]), stored }
    }

    fn list(parts: &[&Part]) -> ListedWhole {
        let listed = |part: &&Part| ListedPart { number: part.number, etag: part.stored.etag.clone(), checksums: Vec::new() };
        ListedWhole { parts: parts.iter().map(listed).collect(), ..ListedWhole::default() }
    }

    #[test]
    fn parts_need_not_be_consecutive_and_unlisted_ones_are_left_out() {
        let uploaded = [part(1, PART_SIZE_MIN), part(4, PART_SIZE_MIN), part(9, 1)];
        let whole = assemble(&list(&[&uploaded[0], &uploaded[2]]), &uploaded, None).unwrap();
        assert_eq!(whole.parts.iter().map(|part| part.number).collect::<Vec<_>>(), [1, 9]);
        assert_eq!(whole.size, PART_SIZE_MIN + 1);
        assert!(whole.etag.ends_with("-2"));
        assert_eq!(whole.checksum, None, "the parts carry another checksum than the default");
    }

    #[test]
    fn a_wrong_list_is_refused_with_its_reason() {
        let uploaded = [part(1, PART_SIZE_MIN), part(2, 5), part(3, 5)];
        let [one, two, three] = &uploaded;
        let refuse = |whole: &ListedWhole| assemble(whole, &uploaded, None).unwrap_err();
        assert_eq!(refuse(&list(&[])), CompleteError::NoParts);
        assert_eq!(refuse(&list(&[two, one])), CompleteError::Order { number: 1 });
        assert_eq!(refuse(&list(&[one, one])), CompleteError::Order { number: 1 });
        assert!(matches!(refuse(&list(&[one, &part(7, 5)])), CompleteError::InvalidPart { number: 7, .. }));
        assert!(matches!(refuse(&list(&[one, two, three])), CompleteError::TooSmall { number: 2, size: 5, .. }));
        let mut other_etag = list(&[one]);
        other_etag.parts[0].etag = "0".repeat(32);
        assert!(matches!(refuse(&other_etag), CompleteError::InvalidPart { number: 1, .. }));
        let mut other_checksum = list(&[one]);
        other_checksum.parts[0]
            .checksums
            .push(ListedChecksum { algorithm: ChecksumAlgorithm::Crc32, value: "AAAAAA==".to_owned() });
        assert!(matches!(refuse(&other_checksum), CompleteError::InvalidPart { number: 1, .. }));
        let size = ListedWhole { size: Some(7), ..list(&[one]) };
        assert_eq!(refuse(&size), CompleteError::Size { expected: 7, found: PART_SIZE_MIN });
        let kind = ListedWhole { kind: Some(ChecksumKind::Composite), ..list(&[one]) };
        assert_eq!(refuse(&kind), CompleteError::ChecksumKind);
    }

    #[test]
    fn the_checksum_of_the_whole_is_held_against_the_clients() {
        let uploaded = [part(1, PART_SIZE_MIN), part(2, 5)];
        let wanted = Some(UploadChecksum { algorithm: ChecksumAlgorithm::Crc32, kind: ChecksumKind::Composite });
        let listed = list(&[&uploaded[0], &uploaded[1]]);
        let Checksum { value, .. } = assemble(&listed, &uploaded, wanted).unwrap().checksum.unwrap();
        assert!(value.ends_with("-2"));
        let with = |value: &str| {
            let checksum = ListedChecksum { algorithm: ChecksumAlgorithm::Crc32, value: value.to_owned() };
            assemble(&ListedWhole { checksum: Some(checksum), ..listed.clone() }, &uploaded, wanted)
        };
        assert!(with(&value).is_ok());
        assert!(with(value.strip_suffix("-2").unwrap()).is_ok());
        assert_eq!(with("AAAAAA==-2"), Err(CompleteError::Checksum { algorithm: ChecksumAlgorithm::Crc32 }));
    }
}
