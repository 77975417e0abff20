//! What a request says about its body: signed as a whole, chunk by chunk, or not at all.

use super::chain::SignatureChain;
use super::error::AuthError;
use crate::head::RequestHead;

/// How the bytes of a body are framed and vouched for.
#[derive(Debug, Clone)]
pub enum PayloadKind {
    /// Plain bytes that nothing vouches for.
    Unsigned,
    /// Plain bytes with this SHA-256.
    Signed([u8; 32]),
    /// `aws-chunked` framing. `trailers`: the lowercase names promised after the last chunk.
    Chunked { signatures: ChunkSignatures, trailers: Trailers },
}

/// Whether trailers follow the last chunk, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trailers {
    /// The kind of payload has none.
    Absent,
    Declared(Vec<String>),
}

/// Who vouches for the chunks.
#[derive(Debug, Clone)]
pub enum ChunkSignatures {
    None,
    /// Present, but nobody's: the request is anonymous.
    Unverified,
    Chain(SignatureChain),
}

/// The value of `x-amz-content-sha256`, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentSha256 {
    Unsigned,
    Digest([u8; 32]),
    SignedChunks,
    SignedChunksTrailer,
    UnsignedChunksTrailer,
}

impl ContentSha256 {
    pub(crate) fn parse(text: &str) -> Result<Self, AuthError> {
        match text {
            "UNSIGNED-PAYLOAD" => Ok(ContentSha256::Unsigned),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Ok(ContentSha256::SignedChunks),
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Ok(ContentSha256::SignedChunksTrailer),
            "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(ContentSha256::UnsignedChunksTrailer),
            digest => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(digest, &mut bytes).map_err(|_malformed| AuthError::ContentSha256)?;
                Ok(ContentSha256::Digest(bytes))
            }
        }
    }
}

impl PayloadKind {
    /// For a request without credential: the framing is decoded, signatures in it mean nothing.
    ///
    /// # Errors
    /// [`AuthError::ContentSha256`], [`AuthError::TrailerDeclaration`], [`AuthError::Head`].
    pub fn of_anonymous(head: &RequestHead) -> Result<Self, AuthError> {
        let content = match head.header("x-amz-content-sha256")? {
            Some(text) => ContentSha256::parse(text)?,
            None => ContentSha256::Unsigned,
        };
        Self::from_content(content, head, ChunkSignatures::Unverified)
    }

    /// `signatures`: used when the content consists of signed chunks.
    pub(crate) fn from_content(
        content: ContentSha256,
        head: &RequestHead,
        signatures: ChunkSignatures,
    ) -> Result<Self, AuthError> {
        let declared = declared_trailers(head)?;
        match content {
            ContentSha256::SignedChunksTrailer => Ok(PayloadKind::Chunked { signatures, trailers: Trailers::Declared(declared) }),
            ContentSha256::UnsignedChunksTrailer => {
                Ok(PayloadKind::Chunked { signatures: ChunkSignatures::None, trailers: Trailers::Declared(declared) })
            }
            _ if !declared.is_empty() => {
                Err(AuthError::TrailerDeclaration { problem: "needs an x-amz-content-sha256 that ends in -TRAILER" })
            }
            ContentSha256::SignedChunks => Ok(PayloadKind::Chunked { signatures, trailers: Trailers::Absent }),
            ContentSha256::Unsigned => Ok(PayloadKind::Unsigned),
            ContentSha256::Digest(digest) => Ok(PayloadKind::Signed(digest)),
        }
    }
}

/// The lowercase names in `x-amz-trailer`; several headers count as one list.
fn declared_trailers(head: &RequestHead) -> Result<Vec<String>, AuthError> {
    let refuse = |problem| AuthError::TrailerDeclaration { problem };
    let mut names: Vec<String> = Vec::new();
    for value in head.headers.get_all("x-amz-trailer") {
        let value = value.to_str().map_err(|_not_ascii| refuse("is not a list of header names"))?;
        for name in value.split(',').map(|name| name.trim().to_ascii_lowercase()) {
            let is_name = hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok();
            if !is_name || name == "x-amz-trailer-signature" {
                return Err(refuse("is not a list of header names"));
            }
            if names.contains(&name) {
                return Err(refuse("names a trailer twice"));
            }
            names.push(name);
        }
    }
    if names.len() > 16 { Err(refuse("names too many trailers")) } else { Ok(names) }
}
