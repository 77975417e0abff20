//! The body of a request: a bounded stream of verified bytes.
//!
//! Invariants: the stream ends with `None` only if everything the client promised came and agreed (length, digest, signatures of the
//! chunks, last chunk, trailers) and nothing came after it, so a cut or forged upload can never look complete; no bytes are held back,
//! whatever the client sends, so whoever reads them lets nobody see them before that end.
//!
//! hyper answers `Expect: 100-continue` at the first [`Payload::next`]: nothing may read before the request is allowed.

mod chunked;
mod error;
mod line;
mod payload;
mod plain;

pub use chunked::{ChunkedDecoder, ChunkedSpec};
pub use error::BodyError;
pub use payload::{BodyLimits, Payload};

/// One header sent after the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// Lowercase.
    pub name: String,
    pub value: String,
}

/// What `Content-Encoding` says besides `aws-chunked`, which ends with the transfer and is no property of the object.
///
/// What is left keeps the client's spelling, spaces included: it is returned as it was given.
pub fn stored_content_encoding(header: &str) -> Option<String> {
    let is_transfer = |coding: &&str| coding.trim().eq_ignore_ascii_case("aws-chunked");
    let kept: Vec<&str> = header.split(',').filter(|coding| !is_transfer(coding)).collect();
    // The ends of a value mean nothing: HTTP lets everybody on the way cut spaces there.
    let kept = kept.join(",").trim().to_owned();
    (!kept.is_empty()).then_some(kept)
}

#[cfg(test)]
mod tests;
