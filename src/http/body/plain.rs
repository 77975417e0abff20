//! A body without framing: bytes, perhaps under one digest, perhaps of an announced length.

use sha2::{Digest, Sha256};

use super::error::BodyError;

/// Counts and hashes what passes.
#[derive(Debug)]
pub(super) struct PlainCheck {
    received: u64,
    expected: Option<u64>,
    digest: Option<Expected>,
}

#[derive(Debug)]
struct Expected {
    sha256: [u8; 32],
    running: Sha256,
}

impl PlainCheck {
    pub(super) fn new(expected: Option<u64>, sha256: Option<[u8; 32]>) -> Self {
        let digest = sha256.map(|sha256| Expected { sha256, running: Sha256::new() });
        PlainCheck { received: 0, expected, digest }
    }

    pub(super) fn pass(&mut self, bytes: &[u8]) {
        self.received += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.running.update(bytes);
        }
    }

    /// Called once, at the end of the stream.
    pub(super) fn finish(&mut self) -> Result<(), BodyError> {
        if let Some(expected) = self.expected.filter(|expected| *expected != self.received) {
            return Err(BodyError::Incomplete { expected, received: self.received });
        }
        let Some(digest) = self.digest.take() else { return Ok(()) };
        let computed: [u8; 32] = digest.running.finalize().into();
        // The client made the digest public itself: no need for constant time.
        if computed == digest.sha256 {
            return Ok(());
        }
        Err(BodyError::DigestMismatch { declared: hex::encode(digest.sha256), computed: hex::encode(computed) })
    }
}
