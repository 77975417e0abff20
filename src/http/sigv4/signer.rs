//! The client's side of signatures, for tests and the simulator: the server never signs a request.

use garage_types::{Secret, Timestamp};
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Uri};

use super::ALGORITHM;
use super::canonical::{Canonical, canonical_query};
use super::chain::SignatureChain;
use super::key::{Signature, SigningKey};
use super::scope::Scope;
use crate::dates::amz_basic;
use crate::uri::{decode_query, encode};

/// One access key, and where it signs for.
#[derive(Debug, Clone)]
pub struct Signer {
    pub key_id: String,
    pub secret: Secret,
    pub region: String,
    pub service: String,
}

impl Signer {
    fn scope(&self, now: Timestamp) -> Scope {
        Scope { day: amz_basic(now)[..8].to_owned(), region: self.region.clone(), service: self.service.clone() }
    }

    /// Adds date, content hash and `Authorization`, signing every header present; the path is taken as it stands (S3).
    /// Returns the chain that signs the chunks of the body, if it has any.
    ///
    /// `content`: the value of `x-amz-content-sha256`. Panics on a malformed request, which only a test can make.
    pub fn sign(&self, parts: &mut Parts, content: &str, now: Timestamp) -> SignatureChain {
        let value = |text: &str| HeaderValue::from_str(text).expect("the text is visible ASCII");
        parts.headers.insert("x-amz-date", value(&amz_basic(now)));
        parts.headers.insert("x-amz-content-sha256", value(content));
        let names = sorted_names(&parts.headers);
        let signature = self.signature(parts, &names, content, now);
        let scope = self.scope(now);
        let text = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={}",
            self.key_id,
            names.join(";"),
            signature.to_hex()
        );
        parts.headers.insert("authorization", value(&text));
        SignatureChain::new(SigningKey::derive(&self.secret, &scope), amz_basic(now), scope, signature)
    }

    /// Makes a presigned request of it: everything goes into the query.
    ///
    /// Panics on a malformed request, which only a test can make.
    pub fn presign(&self, parts: &mut Parts, expires_seconds: u64, now: Timestamp) {
        let names = sorted_names(&parts.headers);
        let credential = encode(&format!("{}/{}", self.key_id, self.scope(now)));
        let mut query = parts.uri.query().map(|query| format!("{query}&")).unwrap_or_default();
        query.push_str(&format!(
            "X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={credential}&X-Amz-Date={}&X-Amz-Expires={expires_seconds}&X-Amz-SignedHeaders={}",
            amz_basic(now),
            encode(&names.join(";"))
        ));
        parts.uri = with_query(&parts.uri, &query);
        let signature = self.signature(parts, &names, "UNSIGNED-PAYLOAD", now);
        parts.uri = with_query(&parts.uri, &format!("{query}&X-Amz-Signature={}", signature.to_hex()));
    }

    /// The signature of a form's policy (base64).
    pub fn sign_policy(&self, policy: &str, now: Timestamp) -> Signature {
        SigningKey::derive(&self.secret, &self.scope(now)).sign(policy.as_bytes())
    }

    fn signature(&self, parts: &Parts, names: &[String], content: &str, now: Timestamp) -> Signature {
        let scope = self.scope(now);
        let query = decode_query(parts.uri.query().unwrap_or("")).expect("the query is well formed");
        let canonical = Canonical {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: &canonical_query(&query),
            signed_headers: names,
            headers: &parts.headers,
            payload: content,
        };
        let text = canonical.string_to_sign(&amz_basic(now), &scope);
        SigningKey::derive(&self.secret, &scope).sign(text.as_bytes())
    }
}

fn sorted_names(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<String> = headers.keys().map(HeaderName::as_str).map(str::to_owned).collect();
    names.sort();
    names
}

fn with_query(uri: &Uri, query: &str) -> Uri {
    format!("{}?{query}", uri.path()).parse().expect("an encoded query fits a URI")
}
