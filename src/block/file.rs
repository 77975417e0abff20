//! The format of a block file: a header that can be checked by itself, then the stored bytes.
//!
//! Pure. What must stay true: whatever a disk returns, a changed, missing or additional bit is noticed before a byte of the block is
//! passed on; a range of a raw block is checked by reading only the chunks it touches.
//!
//! ```text
//! 0   4   magic "GBLK"
//! 4   1   format version, 5: its complement (so that a flipped bit is damage and not "a newer version")
//! 6   1   encoding: 0 raw, 1 zstd
//! 7   1   zero
//! 8   4   plain length          (all integers little-endian)
//! 12  4   stored length
//! 16  32  block hash
//! 48  4n  CRC32C of each 64 KiB of stored bytes
//! ..  4   CRC32C of everything above
//! ..      stored bytes, up to the end of the file
//! ```

use std::ops::Range;

use bytes::Bytes;
use garage_types::BlockHash;

use crate::stored::{ContentError, Encoding, StoredBlock};

/// Stored bytes under one checksum.
pub const CHUNK_LEN: usize = 64 * 1024;

const MAGIC: &[u8; 4] = b"GBLK";
const VERSION: u8 = 1;
const FIXED_LEN: usize = 48;
const CRC_LEN: usize = 4;

/// What is wrong with the bytes of a block file.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("a file of {file_len} bytes cannot be a block file")]
    FileLength { file_len: u64 },
    #[error("it does not begin as a block file does")]
    Magic,
    #[error("it has format version {version}, newer than this program knows")]
    NewerVersion { version: u8 },
    #[error("the header does not match its checksum")]
    HeaderChecksum,
    #[error("the header contradicts itself")]
    Header {
        #[source]
        source: Option<ContentError>,
    },
    #[error("it holds block {found}")]
    OtherBlock { found: BlockHash },
    #[error("chunk {index} of the content does not match its checksum")]
    ChunkChecksum { index: usize },
}

/// The checked header of a block file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub encoding: Encoding,
    pub plain_len: u32,
    pub stored_len: u32,
    chunk_crcs: Vec<u32>,
}

/// The chunks that together cover a range of stored bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSpan {
    /// Index of the first chunk.
    pub first: usize,
    /// Where the chunks are in the file.
    pub in_file: Range<u64>,
    /// The wanted bytes, counted from the start of the first chunk.
    pub wanted: Range<usize>,
}

/// The header to write before `block.bytes()`.
pub fn encode_header(hash: BlockHash, block: &StoredBlock) -> Vec<u8> {
    let stored = block.bytes();
    let mut out = Vec::with_capacity(header_len_for(stored.len()));
    out.extend(MAGIC);
    out.extend([VERSION, !VERSION, encoding_byte(block.encoding()), 0]);
    out.extend(block.plain_len().to_le_bytes());
    out.extend(block.stored_len().to_le_bytes());
    out.extend(hash.as_bytes());
    for chunk in stored.chunks(CHUNK_LEN) {
        out.extend(crc32c(chunk).to_le_bytes());
    }
    let crc = crc32c(&out);
    out.extend(crc.to_le_bytes());
    out
}

/// Length in bytes of the header of a file of `file_len` bytes.
///
/// # Errors
/// [`FormatError::FileLength`]: no block file has that length.
pub fn header_len(file_len: u64) -> Result<usize, FormatError> {
    let refuse = || FormatError::FileLength { file_len };
    let rest = file_len.checked_sub((FIXED_LEN + CRC_LEN) as u64).ok_or_else(refuse)?;
    let chunks = rest.div_ceil((CHUNK_LEN + CRC_LEN) as u64);
    let header_len = (FIXED_LEN + CRC_LEN) as u64 + chunks * CRC_LEN as u64;
    let stored_len = file_len.checked_sub(header_len).ok_or_else(refuse)?;
    if stored_len.div_ceil(CHUNK_LEN as u64) != chunks || stored_len > u64::from(StoredBlock::PLAIN_LEN_MAX) {
        return Err(refuse());
    }
    Ok(header_len as usize)
}

/// Checks the header of the file of block `hash`. `bytes`: the first [`header_len`] bytes of a file of `file_len` bytes.
///
/// # Errors
/// Any [`FormatError`]; [`FormatError::NewerVersion`] alone does not mean damage.
pub fn parse_header(bytes: &[u8], file_len: u64, hash: BlockHash) -> Result<Header, FormatError> {
    let bytes = bytes.get(..header_len(file_len)?).ok_or(FormatError::FileLength { file_len })?;
    if !bytes.starts_with(MAGIC) || bytes[4] != !bytes[5] {
        return Err(FormatError::Magic);
    }
    if bytes[4] != VERSION {
        return Err(if bytes[4] > VERSION { FormatError::NewerVersion { version: bytes[4] } } else { FormatError::Magic });
    }
    let (covered, crc) = bytes.split_at(bytes.len() - CRC_LEN);
    if crc32c(covered).to_le_bytes() != crc {
        return Err(FormatError::HeaderChecksum);
    }
    let encoding = encoding_of(bytes[6]).filter(|_| bytes[7] == 0).ok_or(FormatError::Header { source: None })?;
    let chunk_crcs: Vec<u32> = (FIXED_LEN..covered.len()).step_by(CRC_LEN).map(|at| u32_at(covered, at)).collect();
    let header = Header { encoding, plain_len: u32_at(bytes, 8), stored_len: u32_at(bytes, 12), chunk_crcs };
    if header.file_len() != file_len {
        return Err(FormatError::FileLength { file_len });
    }
    encoding
        .check_lengths(header.plain_len as usize, header.stored_len as usize)
        .map_err(|source| FormatError::Header { source: Some(source) })?;
    let found = BlockHash::from_slice(&bytes[16..FIXED_LEN]).expect("32 bytes");
    if found == hash { Ok(header) } else { Err(FormatError::OtherBlock { found }) }
}

/// Checks a whole file of block `hash` against all its checksums.
///
/// # Errors
/// As [`parse_header`], and [`FormatError::ChunkChecksum`].
pub fn decode(file: Bytes, hash: BlockHash) -> Result<StoredBlock, FormatError> {
    let header = parse_header(&file, file.len() as u64, hash)?;
    let stored = file.slice(header.header_len()..);
    header.verify_chunks(0, &stored)?;
    StoredBlock::new(header.encoding, header.plain_len, stored).map_err(|source| FormatError::Header { source: Some(source) })
}

impl Header {
    /// Bytes before the stored bytes.
    pub fn header_len(&self) -> usize {
        header_len_for(self.stored_len as usize)
    }

    fn file_len(&self) -> u64 {
        self.header_len() as u64 + u64::from(self.stored_len)
    }

    /// The chunks to read for `range` of the stored bytes, which must lie within them.
    pub fn span(&self, range: Range<u32>) -> ChunkSpan {
        assert!(range.start <= range.end && range.end <= self.stored_len, "the range lies within the stored bytes");
        if range.is_empty() {
            return ChunkSpan { first: 0, in_file: 0..0, wanted: 0..0 };
        }
        let first = range.start as usize / CHUNK_LEN;
        let start = first * CHUNK_LEN;
        let end = (range.end as usize).next_multiple_of(CHUNK_LEN).min(self.stored_len as usize);
        ChunkSpan {
            first,
            in_file: (self.header_len() + start) as u64..(self.header_len() + end) as u64,
            wanted: range.start as usize - start..range.end as usize - start,
        }
    }

    /// Checks consecutive chunks, the first of which has the index `first`.
    ///
    /// # Errors
    /// [`FormatError::ChunkChecksum`] for the first that differs.
    pub fn verify_chunks(&self, first: usize, bytes: &[u8]) -> Result<(), FormatError> {
        for (index, chunk) in (first..).zip(bytes.chunks(CHUNK_LEN)) {
            if self.chunk_crcs.get(index) != Some(&crc32c(chunk)) {
                return Err(FormatError::ChunkChecksum { index });
            }
        }
        Ok(())
    }
}

fn header_len_for(stored_len: usize) -> usize {
    FIXED_LEN + stored_len.div_ceil(CHUNK_LEN) * CRC_LEN + CRC_LEN
}

fn encoding_byte(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Raw => 0,
        Encoding::Zstd => 1,
    }
}

fn encoding_of(byte: u8) -> Option<Encoding> {
    match byte {
        0 => Some(Encoding::Raw),
        1 => Some(Encoding::Zstd),
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// CRC-32C (Castagnoli), which processors compute by themselves.
fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use garage_types::BlockHash;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{CHUNK_LEN, FormatError, decode, encode_header, header_len, parse_header};
    use crate::stored::{Compression, Encoding, StoredBlock};

    fn file_of(block: &StoredBlock, hash: BlockHash) -> Vec<u8> {
        [&encode_header(hash, block)[..], block.bytes()].concat()
    }

    fn raw(len: usize) -> (StoredBlock, BlockHash) {
        let plain = Bytes::from_iter((0..len).map(|i| (i % 251) as u8));
        (StoredBlock::compress(plain.clone(), Compression::Off).unwrap(), BlockHash::of(&plain))
    }

    #[test]
    fn what_was_written_is_read() {
        for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN] {
            for compression in [Compression::Off, Compression::Zstd { level: 1 }] {
                let plain = Bytes::from(vec![7; len]);
                let block = StoredBlock::compress(plain.clone(), compression).unwrap();
                let hash = BlockHash::of(&plain);
                assert_eq!(decode(file_of(&block, hash).into(), hash).unwrap(), block, "{len} bytes");
            }
        }
    }

    #[test]
    fn the_format_stays_what_it_is() {
        let block = StoredBlock::new(Encoding::Raw, 3, Bytes::from_static(b"abc")).unwrap();
        let file = file_of(&block, BlockHash::from_bytes([0xEE; 32]));
        let mut expected = b"GBLK\x01\xFE\x00\x00\x03\x00\x00\x00\x03\x00\x00\x00".to_vec();
        expected.extend([0xEE; 32]);
        // CRC-32C of "abc" is 364b3fb7.
        expected.extend([0xb7, 0x3f, 0x4b, 0x36]);
        assert_eq!(file[..52], expected);
        assert_eq!(file[56..], *b"abc");
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let (block, hash) = raw(300);
        let file = Bytes::from(file_of(&block, hash));
        for end in 0..file.len() {
            assert!(decode(file.slice(..end), hash).is_err(), "cut at {end}");
        }
        let (block, hash) = raw(2 * CHUNK_LEN + 5);
        let file = Bytes::from(file_of(&block, hash));
        for end in (0..200).chain(CHUNK_LEN - 5..CHUNK_LEN + 200).chain(file.len() - 200..file.len()) {
            assert!(decode(file.slice(..end), hash).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_longer_file_is_refused() {
        let (block, hash) = raw(300);
        for more in [1, 4, CHUNK_LEN, CHUNK_LEN + 4] {
            let mut file = file_of(&block, hash);
            file.resize(file.len() + more, 0);
            assert!(decode(file.into(), hash).is_err(), "{more} bytes more");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_damage() {
        for compression in [Compression::Off, Compression::Zstd { level: 1 }] {
            let plain = Bytes::from(vec![5; 400]);
            let hash = BlockHash::of(&plain);
            let file = file_of(&StoredBlock::compress(plain, compression).unwrap(), hash);
            for bit in 0..file.len() * 8 {
                let mut damaged = file.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let error = decode(damaged.into(), hash).expect_err("the bit is noticed");
                assert!(!matches!(error, FormatError::NewerVersion { .. }), "bit {bit} looks like a newer version");
            }
        }
    }

    #[test]
    fn the_file_of_another_block_is_refused() {
        let (block, hash) = raw(10);
        let other = BlockHash::from_bytes([1; 32]);
        assert!(matches!(decode(file_of(&block, hash).into(), other), Err(FormatError::OtherBlock { found }) if found == hash));
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let (block, hash) = raw(10);
        let mut file = file_of(&block, hash);
        (file[4], file[5]) = (2, !2);
        assert!(matches!(decode(file.into(), hash), Err(FormatError::NewerVersion { version: 2 })));
    }

    #[test]
    fn lengths_that_no_block_has_are_refused() {
        for file_len in [0, 51, 53, 56, 52 + 4 + 65_536 + 1, 52 + 8 + 65_536, 1 << 40, u64::MAX] {
            assert!(header_len(file_len).is_err(), "{file_len}");
        }
        assert_eq!(header_len(52).unwrap(), 52);
        assert_eq!(header_len(57).unwrap(), 56);
        assert_eq!(header_len(52 + 4 + 65_536).unwrap(), 56);
        assert_eq!(header_len(52 + 8 + 65_537).unwrap(), 60);
    }

    proptest! {
        #[test]
        fn the_chunks_of_a_range_cover_exactly_it(len in 0..4 * CHUNK_LEN as u32, a in any::<u32>(), b in any::<u32>()) {
            let (block, hash) = raw(len as usize);
            let file = file_of(&block, hash);
            let header = parse_header(&file, file.len() as u64, hash).unwrap();
            let (a, b) = (a % (len + 1), b % (len + 1));
            let range = a.min(b)..a.max(b);
            let span = header.span(range.clone());
            let read = &file[span.in_file.start as usize..span.in_file.end as usize];
            header.verify_chunks(span.first, read).unwrap();
            prop_assert_eq!(&read[span.wanted.clone()], &block.bytes()[range.start as usize..range.end as usize]);
            assert!(read.len() < range.len() + 2 * CHUNK_LEN);
        }
    }
}
