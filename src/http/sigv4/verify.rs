//! Checking a claim against the key it names: the second step.

use garage_types::Timestamp;

use super::canonical::{Canonical, canonical_query};
use super::chain::SignatureChain;
use super::claim::Claim;
use super::error::{AuthError, Place};
use super::key::SigningKey;
use super::payload::{ChunkSignatures, PayloadKind};
use super::scope::Scope;
use super::{ADDED_ON_THE_WAY, SKEW_MAX_MILLIS};
use crate::dates::amz_basic;
use crate::head::RequestHead;
use crate::uri::{decode, encode_path};

/// Which region a signature must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegionPolicy {
    Exactly(String),
    Any,
}

/// How often a service encodes a path before signing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEncoding {
    /// S3.
    Once,
    /// Every other service of AWS, and K2V.
    Twice,
}

/// What a frontend demands of signatures.
#[derive(Debug, Clone)]
pub struct Rules {
    pub region: RegionPolicy,
    /// `s3`, `k2v`.
    pub service: &'static str,
    pub path: PathEncoding,
}

/// A request whose signature holds.
#[derive(Debug, Clone)]
pub struct Authenticated {
    pub key_id: String,
    pub scope: Scope,
    /// What the body is held to.
    pub payload: PayloadKind,
}

impl Rules {
    pub(crate) fn check_scope(&self, scope: &Scope, place: Place) -> Result<(), AuthError> {
        if scope.service != self.service {
            let problem = format!("incorrect service \"{}\"; expecting \"{}\"", scope.service, self.service);
            return Err(AuthError::Malformed { place, problem });
        }
        match &self.region {
            RegionPolicy::Exactly(expected) if *expected != scope.region => {
                Err(AuthError::WrongRegion { place, given: scope.region.clone(), expected: expected.clone() })
            }
            RegionPolicy::Exactly(_) | RegionPolicy::Any => Ok(()),
        }
    }
}

impl Claim {
    /// Checks everything the signature promises. `key`: derived for [`Claim::scope`] from the secret of
    /// [`Claim::key_id`] (`SigningKey::derive`, or `SigningKeys::get`).
    ///
    /// # Errors
    /// [`AuthError`]: region or service, time, coverage of headers, then the signature itself.
    pub fn verify(
        &self,
        head: &RequestHead,
        key: &SigningKey,
        rules: &Rules,
        now: Timestamp,
    ) -> Result<Authenticated, AuthError> {
        rules.check_scope(&self.scope, self.place)?;
        self.check_time(now)?;
        self.check_coverage(head)?;
        self.check_signature(head, key, rules.path)?;
        let chain = SignatureChain::new(key.clone(), amz_basic(self.time), self.scope.clone(), self.signature);
        let payload = PayloadKind::from_content(self.content, head, ChunkSignatures::Chain(chain))?;
        Ok(Authenticated { key_id: self.key_id.clone(), scope: self.scope.clone(), payload })
    }

    fn check_time(&self, now: Timestamp) -> Result<(), AuthError> {
        let ahead = self.time > now.plus_millis(SKEW_MAX_MILLIS);
        match self.expires_seconds {
            Some(_) if ahead => Err(AuthError::NotYetValid { from: self.time, server: now }),
            Some(seconds) => {
                let at = self.time.plus_millis(seconds * 1000);
                if now > at { Err(AuthError::Expired { at, server: now }) } else { Ok(()) }
            }
            None if ahead || self.time.plus_millis(SKEW_MAX_MILLIS) < now => {
                Err(AuthError::Skewed { request: self.time, server: now })
            }
            None => Ok(()),
        }
    }

    /// Nothing that changes the meaning of the request may have been added after it was signed.
    fn check_coverage(&self, head: &RequestHead) -> Result<(), AuthError> {
        let signed = |name: &str| self.signed_headers.iter().any(|signed| signed == name);
        let mut bare: Vec<String> = head
            .headers
            .keys()
            .map(|name| name.as_str())
            .filter(|name| name.starts_with("x-amz-") && !ADDED_ON_THE_WAY.contains(name) && !signed(name))
            .map(str::to_owned)
            .collect();
        if !signed("host") {
            bare.push("host".to_owned());
        }
        if !bare.is_empty() {
            return Err(AuthError::HeadersNotSigned { names: bare });
        }
        match self.signed_headers.iter().find(|name| !head.headers.contains_key(name.as_str())) {
            Some(name) => Err(AuthError::SignedHeaderMissing { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn check_signature(&self, head: &RequestHead, key: &SigningKey, encoding: PathEncoding) -> Result<(), AuthError> {
        let query = canonical_query(&head.query);
        let date = amz_basic(self.time);
        let matches = |path: &str| {
            let canonical = Canonical {
                method: head.method.as_str(),
                path,
                query: &query,
                signed_headers: &self.signed_headers,
                headers: &head.headers,
                payload: &self.content_text,
            };
            key.sign(canonical.string_to_sign(&date, &self.scope).as_bytes()) == self.signature
        };
        let [received, encoded_again] = canonical_paths(&head.raw_path, encoding)?;
        if matches(&received) || (encoded_again != received && matches(&encoded_again)) {
            Ok(())
        } else {
            Err(AuthError::SignatureMismatch)
        }
    }
}

/// The path as received, and as it looks when decoded and encoded by the book: clients differ in what they escape.
fn canonical_paths(raw: &str, encoding: PathEncoding) -> Result<[String; 2], AuthError> {
    let by_the_book = encode_path(&decode(raw).map_err(crate::head::HeadError::from)?);
    Ok(match encoding {
        PathEncoding::Once => [raw.to_owned(), by_the_book],
        PathEncoding::Twice => [encode_path(raw), encode_path(&by_the_book)],
    })
}
