//! AWS Signature Version 4 in the `Authorization` header, for bodies that are not signed.

use std::cell::RefCell;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// What SigV4 leaves as it is in a query; a path keeps its slashes too.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');

pub fn encode_path(text: &str) -> String {
    utf8_percent_encode(text, PATH).to_string()
}

pub fn encode_query(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}

pub struct Signer {
    access_key: String,
    secret_key: String,
    region: String,
    host: String,
    /// The signing key of the day last signed for: four HMACs that need not be made per request.
    of_day: RefCell<Option<(String, [u8; 32])>>,
}

/// The values of `x-amz-date` and `authorization`.
pub struct Signature {
    pub date: String,
    pub authorization: String,
}

impl Signer {
    pub fn new(access_key: &str, secret_key: &str, region: &str, host: &str) -> Self {
        let [access_key, secret_key, region, host] = [access_key, secret_key, region, host].map(str::to_owned);
        Self { access_key, secret_key, region, host, of_day: RefCell::new(None) }
    }

    /// `path` and `query` are encoded already, `query` sorted by name.
    pub fn sign(&self, now: Timestamp, method: &str, path: &str, query: &str) -> Signature {
        const NAMES: &str = "host;x-amz-content-sha256;x-amz-date";
        let date = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let scope = format!("{}/{}/s3/aws4_request", &date[..8], self.region);
        let request = format!(
            "{method}\n{path}\n{query}\nhost:{}\nx-amz-content-sha256:{UNSIGNED_PAYLOAD}\nx-amz-date:{date}\n\n{NAMES}\n{UNSIGNED_PAYLOAD}",
            self.host
        );
        let digest = hex::encode(Sha256::digest(request));
        let signature = mac(&self.signing_key(&date[..8]), &format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}"));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={NAMES}, Signature={}",
            self.access_key,
            hex::encode(signature)
        );
        Signature { date, authorization }
    }

    fn signing_key(&self, day: &str) -> [u8; 32] {
        let mut of_day = self.of_day.borrow_mut();
        match &*of_day {
            Some((known, key)) if known == day => *key,
            _ => {
                let key = derive(&self.secret_key, day, &self.region, "s3");
                *of_day = Some((day.to_owned(), key));
                key
            }
        }
    }
}

fn derive(secret_key: &str, day: &str, region: &str, service: &str) -> [u8; 32] {
    let first = mac(format!("AWS4{secret_key}").as_bytes(), day);
    [region, service, "aws4_request"].iter().fold(first, |key, part| mac(&key, part))
}

fn mac(key: &[u8], text: &str) -> [u8; 32] {
    let mut state = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    state.update(text.as_bytes());
    state.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signing_key_is_that_of_the_published_example() {
        let key = derive("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20120215", "us-east-1", "iam");
        assert_eq!(hex::encode(key), "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d");
    }

    #[test]
    fn only_unreserved_characters_stay() {
        assert_eq!(encode_query("a b/c+d~é"), "a%20b%2Fc%2Bd~%C3%A9");
        assert_eq!(encode_path("a/b c"), "a/b%20c");
    }
}
