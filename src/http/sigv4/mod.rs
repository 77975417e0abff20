//! AWS Signature Version 4: who signed a request, and over what body.
//!
//! Pure: time, keys and policy are arguments. Two steps, so that the caller can look the key up in between: [`parse`]
//! reads the credential, [`Claim::verify`] checks it. Invariants: anything that looks like a credential and is not one
//! is an error, never an anonymous request; `host` and every `x-amz-*` header that can mean something are covered by the signature;
//! signatures are compared in constant time.
//! Source: <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-authenticating-requests.html>.

mod canonical;
mod chain;
mod claim;
mod error;
mod key;
mod payload;
mod policy;
mod scope;
pub mod signer;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_refused;
mod verify;

pub use chain::SignatureChain;
pub use claim::{Claim, parse};
pub use error::{AuthError, Place};
pub use key::{Signature, SigningKey, SigningKeys};
pub use payload::{ChunkSignatures, PayloadKind, Trailers};
pub use policy::{PolicyClaim, PolicyFields};
pub use scope::Scope;
pub use verify::{Authenticated, PathEncoding, RegionPolicy, Rules};

/// The only algorithm there is.
pub(crate) const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far a client's clock may be from ours, in either direction: 15 minutes.
pub const SKEW_MAX_MILLIS: u64 = 15 * 60 * 1000;
/// Headers of Amazon's that a proxy adds to what it passes on, which the client therefore cannot sign. They say something about the way
/// of the request and nothing to who answers it. CloudFront's is the id under which it logs the request.
pub const ADDED_ON_THE_WAY: [&str; 1] = ["x-amz-cf-id"];
/// How long a presigned request may be valid: 7 days.
pub const EXPIRES_MAX_SECONDS: u64 = 7 * 24 * 60 * 60;
