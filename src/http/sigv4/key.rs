//! Signing keys, and the signatures made with them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use garage_types::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::scope::Scope;

pub(crate) fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

/// An HMAC-SHA256 over a string to sign. Equality takes the same time wherever two signatures differ.
#[derive(Clone, Copy)]
pub struct Signature([u8; 32]);

impl Signature {
    /// Reads 64 lowercase hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let lowercase = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut bytes = [0; 32];
        (lowercase && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(Signature(bytes))
    }

    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }
}

impl PartialEq for Signature {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Signature {}

impl fmt::Debug for Signature {
    // A signature that was computed here and not sent would let the reader of a log send it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(signature)")
    }
}

/// The key of one access key for one day, region and service.
#[derive(Clone)]
pub struct SigningKey([u8; 32]);

impl SigningKey {
    pub fn derive(secret: &Secret, scope: &Scope) -> Self {
        let day = hmac(format!("AWS4{}", secret.expose()).as_bytes(), scope.day.as_bytes());
        let region = hmac(&day, scope.region.as_bytes());
        let service = hmac(&region, scope.service.as_bytes());
        SigningKey(hmac(&service, b"aws4_request"))
    }

    pub fn sign(&self, string_to_sign: &[u8]) -> Signature {
        Signature(hmac(&self.0, string_to_sign))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(signing key)")
    }
}

/// Signing keys already derived, at most a fixed number.
///
/// An entry is used only with the secret it came from, so a changed key needs no invalidation; a deleted or expired one
/// is refused by the caller, who looks the secret up for every request.
#[derive(Default)]
pub struct SigningKeys(Mutex<HashMap<CacheKey, Derived>>);

#[derive(PartialEq, Eq, Hash)]
struct CacheKey {
    key_id: String,
    scope: Scope,
}

struct Derived {
    secret: Secret,
    key: SigningKey,
}

impl SigningKeys {
    const ENTRIES_MAX: usize = 1024;

    pub fn get(&self, key_id: &str, secret: &Secret, scope: &Scope) -> SigningKey {
        let name = CacheKey { key_id: key_id.to_owned(), scope: scope.clone() };
        // A panic elsewhere cannot leave a half-made entry.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(derived) = entries.get(&name).filter(|derived| derived.secret == *secret) {
            return derived.key.clone();
        }
        // Yesterday's keys go all at once; deriving today's again costs microseconds.
        if entries.len() >= Self::ENTRIES_MAX {
            entries.clear();
        }
        let key = SigningKey::derive(secret, scope);
        entries.insert(name, Derived { secret: secret.clone(), key: key.clone() });
        key
    }
}

impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKeys")
    }
}
