//! The canonical form of a request: the text both sides sign.

use hyper::HeaderMap;
use sha2::{Digest, Sha256};

use super::ALGORITHM;
use super::scope::Scope;
use crate::uri::{QueryPair, encode};

/// The parts of a request that are signed, ready to be put together.
pub(crate) struct Canonical<'r> {
    pub method: &'r str,
    pub path: &'r str,
    pub query: &'r str,
    /// Lowercase and sorted.
    pub signed_headers: &'r [String],
    pub headers: &'r HeaderMap,
    /// The value of `x-amz-content-sha256`, or what stands for it.
    pub payload: &'r str,
}

impl Canonical<'_> {
    /// SHA-256 over the canonical request, in hexadecimal.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for part in [self.method, "\n", self.path, "\n", self.query, "\n"] {
            hash.update(part);
        }
        for name in self.signed_headers {
            hash.update(name);
            hash.update(":");
            hash.update(canonical_value(self.headers, name));
            hash.update("\n");
        }
        for part in ["\n", &self.signed_headers.join(";"), "\n", self.payload] {
            hash.update(part);
        }
        hex::encode(hash.finalize())
    }

    /// `date`: `20130524T000000Z`.
    pub(crate) fn string_to_sign(&self, date: &str, scope: &Scope) -> String {
        format!("{ALGORITHM}\n{date}\n{scope}\n{}", self.digest())
    }
}

/// All values of a header joined by commas, each trimmed and its inner runs of spaces made one.
fn canonical_value(headers: &HeaderMap, name: &str) -> Vec<u8> {
    let mut joined = Vec::new();
    for (index, value) in headers.get_all(name).iter().enumerate() {
        if index > 0 {
            joined.push(b',');
        }
        let words = value.as_bytes().split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
        for (index, word) in words.enumerate() {
            if index > 0 {
                joined.push(b' ');
            }
            joined.extend_from_slice(word);
        }
    }
    joined
}

/// The query sorted by encoded name, then by encoded value; the signature itself left out.
pub(crate) fn canonical_query(query: &[QueryPair]) -> String {
    let mut pairs: Vec<(String, String)> = query
        .iter()
        .filter(|pair| pair.name != "X-Amz-Signature")
        .map(|pair| (encode(&pair.name), encode(&pair.value)))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}
