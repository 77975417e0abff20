//! A block as it is stored and sent: raw, or compressed when that made it smaller.
//!
//! Pure. What must stay true: decompression never yields more than the plain length announced; what comes from elsewhere is believed
//! only after [`StoredBlock::verify`] has recomputed its hash.

use std::io;

use bytes::Bytes;
use garage_types::BlockHash;
use serde::{Deserialize, Serialize};

/// How the stored bytes relate to the plain ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    Raw,
    Zstd,
}

/// What to try on new blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Off,
    /// `level` as zstd counts: 1 (fast) to 22 (small), negative for faster still; zstd confines it to what it knows.
    Zstd {
        level: i32,
    },
}

/// A block whose content is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("a block of {plain_len} bytes is longer than the {} allowed", StoredBlock::PLAIN_LEN_MAX)]
    TooLong { plain_len: usize },
    #[error("{stored_len} stored bytes cannot be {plain_len} plain ones in the encoding {encoding:?}")]
    Lengths { encoding: Encoding, plain_len: usize, stored_len: usize },
    #[error("the compressed bytes cannot be decompressed into {plain_len} bytes")]
    Undecodable {
        plain_len: usize,
        #[source]
        source: io::Error,
    },
    #[error("{found} bytes where {expected} were announced")]
    PlainLength { expected: usize, found: usize },
    #[error("the content hashes to {actual}")]
    Hash { actual: BlockHash },
}

/// A block as stored. Its lengths agree with its encoding; its content is unproven until [`StoredBlock::verify`].
#[derive(Clone, PartialEq, Eq)]
pub struct StoredBlock {
    encoding: Encoding,
    plain_len: u32,
    bytes: Bytes,
}

impl std::fmt::Debug for StoredBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredBlock({:?}, {} plain bytes in {})", self.encoding, self.plain_len, self.bytes.len())
    }
}

impl Encoding {
    /// Whether `stored_len` bytes can stand for `plain_len`: raw means equal, compressed means smaller.
    ///
    /// # Errors
    /// [`ContentError::TooLong`], [`ContentError::Lengths`].
    pub fn check_lengths(self, plain_len: usize, stored_len: usize) -> Result<(), ContentError> {
        if plain_len > StoredBlock::PLAIN_LEN_MAX as usize {
            return Err(ContentError::TooLong { plain_len });
        }
        let agree = match self {
            Encoding::Raw => stored_len == plain_len,
            Encoding::Zstd => 0 < stored_len && stored_len < plain_len,
        };
        if agree { Ok(()) } else { Err(ContentError::Lengths { encoding: self, plain_len, stored_len }) }
    }
}

impl StoredBlock {
    /// Longest block, in plain bytes: bounds what a damaged or hostile length can make us allocate.
    pub const PLAIN_LEN_MAX: u32 = 256 << 20;

    /// A block from its stored form, as a peer sends it.
    ///
    /// # Errors
    /// As [`Encoding::check_lengths`].
    pub fn new(encoding: Encoding, plain_len: u32, bytes: Bytes) -> Result<Self, ContentError> {
        encoding.check_lengths(plain_len as usize, bytes.len())?;
        Ok(StoredBlock { encoding, plain_len, bytes })
    }

    /// A new block: compressed if that is asked for and makes it smaller, else raw.
    ///
    /// # Errors
    /// [`ContentError::TooLong`].
    pub fn compress(plain: Bytes, compression: Compression) -> Result<Self, ContentError> {
        let compressed = match compression {
            Compression::Off => None,
            Compression::Zstd { level } => crate::compress::if_smaller(&plain, level),
        };
        let plain_len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        match compressed {
            Some(bytes) => Self::new(Encoding::Zstd, plain_len, bytes.into()),
            None => Self::new(Encoding::Raw, plain_len, plain),
        }
    }

    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Length in bytes before compression.
    pub fn plain_len(&self) -> u32 {
        self.plain_len
    }

    /// Length in bytes as stored.
    pub fn stored_len(&self) -> u32 {
        // Never above the plain length, which is a u32.
        self.bytes.len() as u32
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The plain content; not compared with any hash.
    ///
    /// # Errors
    /// [`ContentError::Undecodable`], [`ContentError::PlainLength`].
    pub fn plain(&self) -> Result<Bytes, ContentError> {
        match self.encoding {
            Encoding::Raw => Ok(self.bytes.clone()),
            Encoding::Zstd => crate::compress::decompress(&self.bytes, self.plain_len as usize).map(Bytes::from),
        }
    }

    /// The plain content, once it is proven to be that of `hash`.
    ///
    /// # Errors
    /// As [`StoredBlock::plain`], and [`ContentError::Hash`].
    pub fn verify(&self, hash: BlockHash) -> Result<Bytes, ContentError> {
        let plain = self.plain()?;
        let actual = BlockHash::of(&plain);
        if actual == hash { Ok(plain) } else { Err(ContentError::Hash { actual }) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use garage_types::BlockHash;

    use super::{Compression, ContentError, Encoding, StoredBlock};

    const ZSTD: Compression = Compression::Zstd { level: 1 };

    #[test]
    fn a_block_is_compressed_only_when_that_makes_it_smaller() {
        let zeros = StoredBlock::compress(Bytes::from(vec![0; 10_000]), ZSTD).unwrap();
        assert_eq!(zeros.encoding(), Encoding::Zstd);
        assert!(zeros.stored_len() < 100);
        assert_eq!(zeros.plain().unwrap(), vec![0; 10_000]);
        for tiny in [&b""[..], b"a", b"abcdefgh"] {
            let block = StoredBlock::compress(Bytes::copy_from_slice(tiny), ZSTD).unwrap();
            assert_eq!((block.encoding(), &block.bytes()[..]), (Encoding::Raw, tiny));
        }
    }

    #[test]
    fn only_the_content_of_the_hash_passes_verification() {
        let plain = Bytes::from(vec![3; 5000]);
        let hash = BlockHash::of(&plain);
        let block = StoredBlock::compress(plain.clone(), ZSTD).unwrap();
        assert_eq!(block.verify(hash).unwrap(), plain);
        let other = BlockHash::from_bytes([0; 32]);
        assert!(matches!(block.verify(other), Err(ContentError::Hash { actual }) if actual == hash));
    }

    #[test]
    fn lengths_that_contradict_the_encoding_are_refused() {
        let new = |encoding, plain_len, stored| StoredBlock::new(encoding, plain_len, Bytes::from(vec![0; stored]));
        assert!(matches!(new(Encoding::Raw, 5, 4), Err(ContentError::Lengths { .. })));
        assert!(matches!(new(Encoding::Zstd, 5, 5), Err(ContentError::Lengths { .. })));
        assert!(matches!(new(Encoding::Zstd, 5, 0), Err(ContentError::Lengths { .. })));
        assert!(matches!(new(Encoding::Zstd, u32::MAX, 5), Err(ContentError::TooLong { .. })));
    }
}
