//! The signature of a browser's POST form. What the policy says is the frontend's business; here only who signed it.

use garage_types::Timestamp;

use super::claim::{malformed, parse_credential, parse_signature, scope_of_day};
use super::error::{AuthError, Place};
use super::key::{Signature, SigningKey};
use super::scope::Scope;
use super::verify::Rules;
use super::{ALGORITHM, EXPIRES_MAX_SECONDS, SKEW_MAX_MILLIS};
use crate::dates::parse_amz_basic;

/// The fields of a form that concern its signature, as sent.
#[derive(Debug, Clone, Copy)]
pub struct PolicyFields<'f> {
    pub algorithm: &'f str,
    pub credential: &'f str,
    pub date: &'f str,
    pub signature: &'f str,
    /// Base64, unchanged: this text is what is signed.
    pub policy: &'f str,
}

/// What a form says about its signer; believed only after [`PolicyClaim::verify`].
#[derive(Debug, Clone)]
pub struct PolicyClaim {
    pub key_id: String,
    pub scope: Scope,
    time: Timestamp,
    signature: Signature,
    policy: String,
}

impl PolicyClaim {
    /// # Errors
    /// [`AuthError::Malformed`], [`AuthError::UnsupportedMechanism`].
    pub fn parse(fields: &PolicyFields<'_>) -> Result<Self, AuthError> {
        let place = Place::Form;
        if fields.algorithm != ALGORITHM {
            return Err(AuthError::UnsupportedMechanism);
        }
        let credential = parse_credential(fields.credential, place)?;
        let time = parse_amz_basic(fields.date).map_err(|error| malformed(place, format!("x-amz-date: {error}")))?;
        Ok(PolicyClaim {
            key_id: credential.key_id,
            scope: scope_of_day(credential.scope, time, place)?,
            time,
            signature: parse_signature(fields.signature, place)?,
            policy: fields.policy.to_owned(),
        })
    }

    /// Checks scope, age and signature. A form may have been made up to seven days ago; the policy's own expiration,
    /// usually much shorter, is for the caller to check. `key`: as for `Claim::verify`.
    ///
    /// # Errors
    /// [`AuthError`].
    pub fn verify(&self, key: &SigningKey, rules: &Rules, now: Timestamp) -> Result<(), AuthError> {
        rules.check_scope(&self.scope, Place::Form)?;
        let at = self.time.plus_millis(EXPIRES_MAX_SECONDS * 1000);
        if self.time > now.plus_millis(SKEW_MAX_MILLIS) {
            return Err(AuthError::NotYetValid { from: self.time, server: now });
        }
        if now > at {
            return Err(AuthError::Expired { at, server: now });
        }
        if key.sign(self.policy.as_bytes()) == self.signature { Ok(()) } else { Err(AuthError::SignatureMismatch) }
    }
}
