//! Reading a credential out of a request: the first step, before any key is known.

use garage_types::Timestamp;

use super::error::{AuthError, Place};
use super::key::Signature;
use super::payload::ContentSha256;
use super::scope::{Credential, Scope};
use super::{ALGORITHM, EXPIRES_MAX_SECONDS};
use crate::dates::{amz_basic, parse_amz_basic, parse_http_date};
use crate::head::RequestHead;

/// What a request says about its signer; nothing of it is believed before [`Claim::verify`].
#[derive(Debug, Clone)]
pub struct Claim {
    pub key_id: String,
    pub scope: Scope,
    pub(crate) place: Place,
    pub(crate) signature: Signature,
    /// Lowercase and sorted, without repetition.
    pub(crate) signed_headers: Vec<String>,
    pub(crate) time: Timestamp,
    /// Seconds a presigned request is valid from `time` on.
    pub(crate) expires_seconds: Option<u64>,
    /// As sent, since it is part of the canonical request.
    pub(crate) content_text: String,
    pub(crate) content: ContentSha256,
}

/// Finds the credential of a request; `None` for an anonymous one.
///
/// # Errors
/// [`AuthError`] for anything that resembles a credential and is not a well-formed one of version 4.
pub fn parse(head: &RequestHead) -> Result<Option<Claim>, AuthError> {
    let in_header = head.headers.contains_key("authorization");
    // Compared without case: a misspelt parameter must not turn a signed request into an anonymous one.
    let has = |names: &[&str]| head.query.iter().any(|pair| names.iter().any(|name| pair.name.eq_ignore_ascii_case(name)));
    let in_query = has(&["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-SignedHeaders"]);
    // The parameters of version 2.
    let old_query = has(&["AWSAccessKeyId", "Signature"]);
    match (in_header, in_query) {
        (true, true) => Err(AuthError::TwoMechanisms),
        (true, false) if old_query => Err(AuthError::TwoMechanisms),
        (true, false) => from_header(head).map(Some),
        (false, true) => from_query(head).map(Some),
        (false, false) if old_query => Err(AuthError::UnsupportedMechanism),
        (false, false) => Ok(None),
    }
}

fn from_header(head: &RequestHead) -> Result<Claim, AuthError> {
    let place = Place::Header;
    let text = head.header("authorization")?.unwrap_or_default();
    let (algorithm, fields) = text.split_once(' ').unwrap_or((text, ""));
    if algorithm != ALGORITHM {
        return Err(AuthError::UnsupportedMechanism);
    }
    let fields = HeaderFields::parse(fields)?;
    let credential = parse_credential(fields.credential, place)?;
    let time = header_time(head)?;
    let Some(content_text) = head.header("x-amz-content-sha256")? else {
        return Err(AuthError::MissingHeader { name: "x-amz-content-sha256" });
    };
    Ok(Claim {
        signature: parse_signature(fields.signature, place)?,
        signed_headers: parse_signed_headers(fields.signed_headers, place)?,
        key_id: credential.key_id,
        scope: scope_of_day(credential.scope, time, place)?,
        place,
        time,
        expires_seconds: None,
        content: ContentSha256::parse(content_text)?,
        content_text: content_text.to_owned(),
    })
}

/// The three fields of an `Authorization` header.
struct HeaderFields<'h> {
    credential: &'h str,
    signed_headers: &'h str,
    signature: &'h str,
}

impl<'h> HeaderFields<'h> {
    /// Each field exactly once, and no other.
    fn parse(text: &'h str) -> Result<Self, AuthError> {
        let refuse = |problem: &str| malformed(Place::Header, problem.to_owned());
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in text.split(',') {
            let Some((name, value)) = field.trim().split_once('=') else { return Err(refuse("a field has no '='")) };
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed_headers,
                "Signature" => &mut signature,
                _ => return Err(refuse("only Credential, SignedHeaders and Signature are expected")),
            };
            if slot.replace(value).is_some() {
                return Err(refuse("a field is repeated"));
            }
        }
        Ok(HeaderFields {
            credential: credential.ok_or_else(|| refuse("the field Credential is missing"))?,
            signed_headers: signed_headers.ok_or_else(|| refuse("the field SignedHeaders is missing"))?,
            signature: signature.ok_or_else(|| refuse("the field Signature is missing"))?,
        })
    }
}

/// `x-amz-date`, or else `Date`.
fn header_time(head: &RequestHead) -> Result<Timestamp, AuthError> {
    if let Some(text) = head.header("x-amz-date")? {
        return parse_amz_basic(text).map_err(|_malformed| AuthError::MissingDate);
    }
    let text = head.header("date")?.ok_or(AuthError::MissingDate)?;
    parse_amz_basic(text).or_else(|_other_form| parse_http_date(text)).map_err(|_malformed| AuthError::MissingDate)
}

fn from_query(head: &RequestHead) -> Result<Claim, AuthError> {
    let place = Place::Query;
    let parameter = |name: &str| {
        let value = head.single_parameter(name).map_err(|repeated| malformed(place, repeated.to_string()))?;
        value.ok_or_else(|| {
            malformed(place, format!("Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters; {name} is missing."))
        })
    };
    if parameter("X-Amz-Algorithm")? != ALGORITHM {
        return Err(malformed(place, format!("X-Amz-Algorithm only supports \"{ALGORITHM}\"")));
    }
    let credential = parse_credential(parameter("X-Amz-Credential")?, place)?;
    let time = parse_amz_basic(parameter("X-Amz-Date")?).map_err(|_malformed| {
        malformed(place, "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"".to_owned())
    })?;
    let content_text = presigned_content(head)?;
    Ok(Claim {
        signature: parse_signature(parameter("X-Amz-Signature")?, place)?,
        signed_headers: parse_signed_headers(parameter("X-Amz-SignedHeaders")?, place)?,
        expires_seconds: Some(parse_expires(parameter("X-Amz-Expires")?)?),
        key_id: credential.key_id,
        scope: scope_of_day(credential.scope, time, place)?,
        place,
        time,
        content: ContentSha256::parse(content_text)?,
        content_text: content_text.to_owned(),
    })
}

/// A presigned request need not say anything of its body; some SDKs say it in the query.
fn presigned_content(head: &RequestHead) -> Result<&str, AuthError> {
    let in_query = head.single_parameter("X-Amz-Content-Sha256")?;
    let in_header = head.header("x-amz-content-sha256")?;
    match (in_query, in_header) {
        (Some(query), Some(header)) if query != header => Err(AuthError::ContentSha256),
        (query, header) => Ok(query.or(header).unwrap_or("UNSIGNED-PAYLOAD")),
    }
}

fn parse_expires(text: &str) -> Result<u64, AuthError> {
    let refuse = |problem: &str| malformed(Place::Query, problem.to_owned());
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse("X-Amz-Expires should be a number"));
    }
    // More digits than fit are more than a week.
    match text.parse::<u64>().unwrap_or(u64::MAX) {
        0 => Err(refuse("X-Amz-Expires must be at least one second")),
        seconds if seconds > EXPIRES_MAX_SECONDS => Err(refuse(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds",
        )),
        seconds => Ok(seconds),
    }
}

pub(crate) fn malformed(place: Place, problem: String) -> AuthError {
    AuthError::Malformed { place, problem }
}

pub(crate) fn parse_credential(text: &str, place: Place) -> Result<Credential, AuthError> {
    Credential::parse(text).map_err(|problem| malformed(place, problem.to_owned()))
}

pub(crate) fn parse_signature(text: &str, place: Place) -> Result<Signature, AuthError> {
    Signature::parse(text).ok_or_else(|| malformed(place, "the Signature must be 64 lowercase hexadecimal digits".to_owned()))
}

/// The scope, once its day is that of the request.
pub(crate) fn scope_of_day(scope: Scope, time: Timestamp, place: Place) -> Result<Scope, AuthError> {
    let date = amz_basic(time);
    if date.starts_with(&scope.day) {
        return Ok(scope);
    }
    Err(malformed(
        place,
        format!("Invalid credential date \"{}\". This date is not the same as X-Amz-Date: \"{date}\".", scope.day),
    ))
}

/// Lowercase names separated by `;`, each once; sorted, as both sides must have them.
fn parse_signed_headers(text: &str, place: Place) -> Result<Vec<String>, AuthError> {
    let refuse = |problem: &str| malformed(place, format!("SignedHeaders {problem}"));
    let mut names: Vec<String> = Vec::new();
    for name in text.split(';') {
        let known_form = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase());
        if !known_form {
            return Err(refuse("must be lowercase header names separated by semicolons"));
        }
        names.push(name.to_owned());
    }
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(refuse("names a header twice"));
    }
    Ok(names)
}
