//! Decoding `aws-chunked` bodies: a state machine from received bytes to verified bytes.
//!
//! Pure, and holds no data: those of a signed chunk pass on while they are hashed, and the signature is checked with the chunk's last
//! byte. Invariants: [`ChunkedDecoder::finish`] succeeds only after every signature held, the zero chunk, the exact decoded length and
//! exactly the declared trailers, with nothing behind them; so whoever reads may store the data but must let nobody see them before
//! that. After an error the decoder must not be used again.
//!
//! ```text
//! body    = chunk* "0" [signature] CRLF  ( CRLF | trailer* [signature line] CRLF )
//! chunk   = hex-length [signature] CRLF data CRLF
//! signature = ";chunk-signature=" 64 hex
//! trailer = name ":" value CRLF
//! ```
//! minio-go ends a trailer with LF and puts an empty line before the trailers' signature, or one more CRLF at the very
//! end when there is none; both are let through, as AWS does.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};

use super::Trailer;
use super::error::BodyError;
use super::line::LineBuffer;
use crate::sigv4::{ChunkSignatures, Signature, SignatureChain, Trailers};

/// The longest chunk header: a length, the signature, and some room for extensions.
const CHUNK_HEADER_MAX: usize = 512;
const TRAILER_LINE_MAX: usize = 4096;
const SIGNATURE_TRAILER: &str = "x-amz-trailer-signature";

/// What a chunked body is held to.
#[derive(Debug)]
pub struct ChunkedSpec {
    pub signatures: ChunkSignatures,
    pub trailers: Trailers,
    /// `x-amz-decoded-content-length`.
    pub decoded_length: u64,
}

/// See the module.
#[derive(Debug)]
pub struct ChunkedDecoder {
    signatures: ChunkSignatures,
    declared: Trailers,
    decoded_length: u64,
    /// Announced by chunk headers so far.
    announced: u64,
    line: LineBuffer,
    state: State,
    trailers: Vec<Trailer>,
    /// Blank line before the trailers' signature, or behind the end: each tolerated once.
    slack: Slack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slack {
    Unused,
    Used,
}

#[derive(Debug)]
enum State {
    Header,
    /// Data of an unsigned chunk pass through.
    Passing {
        left: u64,
    },
    Signed(SignedChunk),
    /// The CRLF after a chunk's data.
    DataEnd,
    /// The empty line after the zero chunk of a body without trailers.
    LastLine,
    Trailers,
    Done,
}

/// A signed chunk that is still coming in.
#[derive(Debug)]
struct SignedChunk {
    signature: Signature,
    left: u64,
    digest: Sha256,
}

/// A parsed chunk header.
#[derive(Debug, PartialEq, Eq)]
struct ChunkHeader {
    length: u64,
    signature: Option<Signature>,
}

impl ChunkedDecoder {
    pub fn new(spec: ChunkedSpec) -> Self {
        ChunkedDecoder {
            signatures: spec.signatures,
            declared: spec.trailers,
            decoded_length: spec.decoded_length,
            announced: 0,
            line: LineBuffer::default(),
            state: State::Header,
            trailers: Vec::new(),
            slack: Slack::Unused,
        }
    }

    /// Takes the next received bytes; what they make available is appended to `output`.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn push(&mut self, mut input: Bytes, output: &mut VecDeque<Bytes>) -> Result<(), BodyError> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header => self.header(&mut input)?,
                State::Passing { left } => {
                    let part = split_up_to(&mut input, *left);
                    *left -= part.len() as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    output.push_back(part);
                }
                State::Signed(chunk) => {
                    let part = split_up_to(&mut input, chunk.left);
                    chunk.left -= part.len() as u64;
                    chunk.digest.update(&part);
                    if chunk.left == 0 {
                        self.end_of_chunk()?;
                    }
                    output.push_back(part);
                }
                State::DataEnd => {
                    self.blank(&mut input, "chunk data are not followed by CRLF", State::Header)?;
                }
                State::LastLine => self.blank(&mut input, "the last chunk is not followed by CRLF", State::Done)?,
                State::Trailers => self.trailer(&mut input)?,
                State::Done => self.behind_the_end(&mut input)?,
            }
        }
        Ok(())
    }

    /// To be called when the body ends; the trailers are verified then.
    ///
    /// # Errors
    /// [`BodyError::Truncated`].
    pub fn finish(&mut self) -> Result<Vec<Trailer>, BodyError> {
        match self.state {
            State::Done if self.line.is_empty() => Ok(std::mem::take(&mut self.trailers)),
            _ => Err(BodyError::Truncated),
        }
    }

    fn header(&mut self, input: &mut Bytes) -> Result<(), BodyError> {
        let refuse = |problem| BodyError::MalformedChunk { problem };
        let line = self.line.take(input, CHUNK_HEADER_MAX).map_err(|_too_long| refuse("a chunk header is too long"))?;
        let Some(line) = line else { return Ok(()) };
        let header = ChunkHeader::parse(&line).map_err(refuse)?;
        self.announced = self.announced.saturating_add(header.length);
        // Refused before the data come, which therefore can never exceed what the client announced.
        if self.announced > self.decoded_length || (header.length == 0 && self.announced != self.decoded_length) {
            return Err(BodyError::Incomplete { expected: self.decoded_length, received: self.announced });
        }
        self.state = match (&self.signatures, header.signature) {
            (ChunkSignatures::Chain(_), Some(signature)) => self.signed(header.length, signature)?,
            (ChunkSignatures::Chain(_), None) => return Err(refuse("a chunk is not signed")),
            (ChunkSignatures::None, Some(_)) => return Err(refuse("a chunk is signed, which the request does not announce")),
            _ if header.length == 0 => self.after_last(),
            _ => State::Passing { left: header.length },
        };
        Ok(())
    }

    fn signed(&mut self, length: u64, signature: Signature) -> Result<State, BodyError> {
        if length > 0 {
            return Ok(State::Signed(SignedChunk { signature, left: length, digest: Sha256::new() }));
        }
        check(&mut self.signatures, |chain| chain.next_chunk(Sha256::digest(b"").into()), signature)?;
        Ok(self.after_last())
    }

    /// Checks the signature of the chunk whose last byte has come.
    fn end_of_chunk(&mut self) -> Result<(), BodyError> {
        let State::Signed(chunk) = std::mem::replace(&mut self.state, State::DataEnd) else {
            unreachable!("only called in a signed chunk")
        };
        let digest = chunk.digest.finalize().into();
        check(&mut self.signatures, |chain| chain.next_chunk(digest), chunk.signature)
    }

    fn after_last(&self) -> State {
        match self.declared {
            Trailers::Absent => State::LastLine,
            Trailers::Declared(_) => State::Trailers,
        }
    }

    /// Takes a line that must be CRLF, then goes on with `next`.
    fn blank(&mut self, input: &mut Bytes, problem: &'static str, next: State) -> Result<(), BodyError> {
        match self.line.take(input, 2) {
            Ok(None) => Ok(()),
            Ok(Some(line)) if line == b"\r\n" => {
                self.state = next;
                Ok(())
            }
            _ => Err(BodyError::MalformedChunk { problem }),
        }
    }

    fn trailer(&mut self, input: &mut Bytes) -> Result<(), BodyError> {
        let refuse = |problem| BodyError::MalformedTrailer { problem };
        let line = self.line.take(input, TRAILER_LINE_MAX).map_err(|_too_long| refuse("a trailer is too long"))?;
        let Some(line) = line else { return Ok(()) };
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_invalid| refuse("a trailer is not UTF-8"))?;
        if line.is_empty() {
            return self.end_of_trailers();
        }
        let (name, value) = line.split_once(':').ok_or_else(|| refuse("a trailer has no colon"))?;
        let trailer = Trailer { name: name.trim().to_ascii_lowercase(), value: value.trim().to_owned() };
        if trailer.name == SIGNATURE_TRAILER {
            return self.trailer_signature(&trailer.value);
        }
        let declared = matches!(&self.declared, Trailers::Declared(names) if names.contains(&trailer.name));
        if !declared {
            return Err(refuse("a trailer was not declared in x-amz-trailer"));
        }
        if self.trailers.iter().any(|known| known.name == trailer.name) {
            return Err(refuse("a trailer is repeated"));
        }
        self.trailers.push(trailer);
        Ok(())
    }

    /// The signature is the last line of the trailers; the empty line that ends the body remains.
    fn trailer_signature(&mut self, value: &str) -> Result<(), BodyError> {
        let signature = Signature::parse(value).ok_or(BodyError::MalformedTrailer { problem: "the signature is malformed" })?;
        let lines: String = self.trailers.iter().map(|trailer| format!("{}:{}\n", trailer.name, trailer.value)).collect();
        match &mut self.signatures {
            ChunkSignatures::None => {
                return Err(BodyError::MalformedTrailer {
                    problem: "the trailers are signed, which the request does not announce",
                });
            }
            ChunkSignatures::Unverified => (),
            ChunkSignatures::Chain(_) => check(&mut self.signatures, |chain| chain.trailers(&lines), signature)?,
        }
        self.check_all_came()?;
        self.slack = Slack::Used;
        self.state = State::LastLine;
        Ok(())
    }

    fn end_of_trailers(&mut self) -> Result<(), BodyError> {
        match (&self.signatures, self.slack) {
            (ChunkSignatures::None, _) => {
                self.check_all_came()?;
                self.state = State::Done;
                Ok(())
            }
            // The signature is still to come.
            (_, Slack::Unused) => {
                self.slack = Slack::Used;
                Ok(())
            }
            (_, Slack::Used) => Err(BodyError::MalformedTrailer { problem: "the signature of the trailers is missing" }),
        }
    }

    fn check_all_came(&self) -> Result<(), BodyError> {
        let Trailers::Declared(names) = &self.declared else { return Ok(()) };
        // Each that came was declared, and none came twice.
        if names.len() == self.trailers.len() {
            Ok(())
        } else {
            Err(BodyError::MalformedTrailer { problem: "a declared trailer is missing" })
        }
    }

    fn behind_the_end(&mut self, input: &mut Bytes) -> Result<(), BodyError> {
        const PROBLEM: &str = "there are data behind its end";
        let tolerant = matches!(self.declared, Trailers::Declared(_)) && self.slack == Slack::Unused;
        if !tolerant {
            return Err(BodyError::MalformedChunk { problem: PROBLEM });
        }
        self.blank(input, PROBLEM, State::Done)?;
        if self.line.is_empty() {
            self.slack = Slack::Used;
        }
        Ok(())
    }
}

impl ChunkHeader {
    /// `400;chunk-signature=<64 hex>` with its CRLF.
    fn parse(line: &[u8]) -> Result<Self, &'static str> {
        let line = line.strip_suffix(b"\r\n").ok_or("a chunk header does not end with CRLF")?;
        let line = std::str::from_utf8(line).map_err(|_invalid| "a chunk header is not text")?;
        let (length, extension) = match line.split_once(';') {
            Some((length, extension)) => (length, Some(extension)),
            None => (line, None),
        };
        let digits = !length.is_empty() && length.len() <= 16 && length.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits {
            return Err("a chunk length is not a hexadecimal number");
        }
        let length = u64::from_str_radix(length, 16).map_err(|_too_large| "a chunk length is not a hexadecimal number")?;
        let Some(extension) = extension else { return Ok(ChunkHeader { length, signature: None }) };
        let signature = extension.strip_prefix("chunk-signature=").ok_or("a chunk has an unknown extension")?;
        let signature = Signature::parse(signature).ok_or("a chunk signature is malformed")?;
        Ok(ChunkHeader { length, signature: Some(signature) })
    }
}

/// Compares the next signature of the chain, if there is one, with the one received.
fn check(
    signatures: &mut ChunkSignatures,
    next: impl FnOnce(&mut SignatureChain) -> Signature,
    received: Signature,
) -> Result<(), BodyError> {
    let ChunkSignatures::Chain(chain) = signatures else { return Ok(()) };
    if next(chain) == received { Ok(()) } else { Err(BodyError::ChunkSignatureMismatch) }
}

fn split_up_to(input: &mut Bytes, length: u64) -> Bytes {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(input.remaining());
    input.split_to(length)
}
