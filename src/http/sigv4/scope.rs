//! The credential scope: for which day, region and service a signature was made.

use std::fmt;

/// `20130524/us-east-1/s3/aws4_request`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// `YYYYMMDD`, eight digits.
    pub day: String,
    pub region: String,
    pub service: String,
}

/// A scope with the key id in front, as clients send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    pub key_id: String,
    pub scope: Scope,
}

impl Credential {
    /// Reads `<key id>/<day>/<region>/<service>/aws4_request`; what is wrong comes back as a text for the client.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\"";
        let parts: Vec<&str> = text.split('/').collect();
        let [key_id, day, region, service, terminal] = parts[..] else { return Err(SHAPE) };
        if key_id.is_empty() || region.is_empty() || service.is_empty() {
            return Err(SHAPE);
        }
        if day.len() != 8 || !day.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("invalid date in the Credential; expecting YYYYMMDD");
        }
        if terminal != "aws4_request" {
            return Err("incorrect terminal in the Credential; expecting \"aws4_request\"");
        }
        let scope = Scope { day: day.to_owned(), region: region.to_owned(), service: service.to_owned() };
        Ok(Credential { key_id: key_id.to_owned(), scope })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/aws4_request", self.day, self.region, self.service)
    }
}
