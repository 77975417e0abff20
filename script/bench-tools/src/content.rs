//! The bytes of objects: a function of a seed, incompressible, no block of one object equal to one of another.
//!
//! So a server that compresses, or stores equal blocks once, gains nothing; and what is read can be compared without
//! having been kept.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

const CHUNK: usize = 64 << 10;

/// The seed of an object of this name. Stable within a run, which is all that is needed.
pub fn seed_of(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// The bytes of one object from `position` to `size`, produced in chunks.
pub struct Content {
    source: Source,
    size: usize,
    position: usize,
}

enum Source {
    Seed(u64),
    Given(Bytes),
}

impl Content {
    pub fn seeded(seed: u64, size: usize) -> Self {
        Self { source: Source::Seed(seed), size, position: 0 }
    }

    pub fn given(bytes: Bytes) -> Self {
        Self { size: bytes.len(), source: Source::Given(bytes), position: 0 }
    }

    pub fn empty() -> Self {
        Self::given(Bytes::new())
    }
}

impl Iterator for Content {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = CHUNK.min(self.size - self.position);
        if length == 0 {
            return None;
        }
        let chunk = match &self.source {
            Source::Seed(seed) => generate(*seed, self.position, length),
            Source::Given(bytes) => bytes.slice(self.position..self.position + length),
        };
        self.position += length;
        Some(chunk)
    }
}

/// SplitMix64 with the word's index as its state: any chunk can be made on its own.
fn generate(seed: u64, position: usize, length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(length + 8);
    let mut state = seed.wrapping_add((position as u64 / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    while bytes.len() < length {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes.freeze()
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.position == self.size
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.size - self.position) as u64)
    }
}

/// Compares received pieces with what they should be.
pub struct Comparison {
    expected: Content,
    chunk: Bytes,
}

impl Comparison {
    pub fn with(expected: Content) -> Self {
        Self { expected, chunk: Bytes::new() }
    }

    /// Whether the next piece is right.
    pub fn accepts(&mut self, mut piece: &[u8]) -> bool {
        while !piece.is_empty() {
            if self.chunk.is_empty() {
                let Some(next) = self.expected.next() else { return false };
                self.chunk = next;
            }
            let length = piece.len().min(self.chunk.len());
            if self.chunk.split_to(length) != piece[..length] {
                return false;
            }
            piece = &piece[length..];
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 2 * CHUNK + 13;

    fn bytes_of(seed: u64) -> Vec<u8> {
        Content::seeded(seed, SIZE).flatten().collect()
    }

    #[test]
    fn pieces_of_any_length_are_accepted_when_they_are_right() {
        for length in [1, 7, 1000, CHUNK, SIZE] {
            let mut comparison = Comparison::with(Content::seeded(3, SIZE));
            assert!(bytes_of(3).chunks(length).all(|piece| comparison.accepts(piece)), "length {length}");
        }
    }

    #[test]
    fn another_object_and_surplus_bytes_are_refused() {
        assert!(!Comparison::with(Content::seeded(4, SIZE)).accepts(&bytes_of(3)));
        assert!(!Comparison::with(Content::seeded(3, SIZE - 1)).accepts(&bytes_of(3)));
    }
}
