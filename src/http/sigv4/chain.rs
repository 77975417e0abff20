//! The chain of signatures through a body sent in signed chunks: each covers the one before it.
//!
//! Source: <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html>, `…/sigv4-streaming-trailers.html`.

use sha2::{Digest, Sha256};

use super::key::{Signature, SigningKey};
use super::scope::Scope;

/// The last accepted signature, and what is needed to compute the next.
#[derive(Debug, Clone)]
pub struct SignatureChain {
    key: SigningKey,
    /// `20130524T000000Z`, of the request.
    date: String,
    scope: Scope,
    previous: Signature,
}

impl SignatureChain {
    /// `seed`: the signature of the request's head.
    pub fn new(key: SigningKey, date: String, scope: Scope, seed: Signature) -> Self {
        SignatureChain { key, date, scope, previous: seed }
    }

    /// The signature of the next chunk, whose data have this SHA-256. Becomes the last of the chain.
    pub fn next_chunk(&mut self, data_sha256: [u8; 32]) -> Signature {
        let empty = hex::encode(Sha256::digest(b""));
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{}\n{empty}\n{}",
            self.date,
            self.scope,
            self.previous.to_hex(),
            hex::encode(data_sha256)
        );
        self.advance(&text)
    }

    /// The signature of the trailers, given as `name:value\n` lines in their order.
    pub fn trailers(&mut self, lines: &str) -> Signature {
        let text = format!(
            "AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{}\n{}",
            self.date,
            self.scope,
            self.previous.to_hex(),
            hex::encode(Sha256::digest(lines.as_bytes()))
        );
        self.advance(&text)
    }

    fn advance(&mut self, string_to_sign: &str) -> Signature {
        self.previous = self.key.sign(string_to_sign.as_bytes());
        self.previous
    }
}
