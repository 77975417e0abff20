//! Names that come from outside, checked once and carried as proof.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Why a text is not a bucket name by AWS's rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bucket name {name:?} {problem}")]
pub struct BucketNameError {
    pub name: String,
    pub problem: &'static str,
}

/// Whether bucket names may hold labels starting with `xn--` (configuration `allow_punycode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Punycode {
    Refused,
    Allowed,
}

/// A bucket alias that AWS would accept as a bucket name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BucketName(String);

impl BucketName {
    /// Checks AWS's general-purpose bucket naming rules.
    ///
    /// # Errors
    /// [`BucketNameError`] naming the first rule that is broken.
    pub fn parse(name: &str, punycode: Punycode) -> Result<Self, BucketNameError> {
        match problem_of(name, punycode) {
            None => Ok(BucketName(name.to_owned())),
            Some(problem) => Err(BucketNameError { name: name.to_owned(), problem }),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Source: AWS, "General purpose bucket naming rules".
fn problem_of(name: &str, punycode: Punycode) -> Option<&'static str> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !(3..=63).contains(&name.len()) {
        return Some("must have 3 to 63 characters");
    }
    if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' || c == '-') {
        return Some("may only hold lowercase letters, digits, dots and hyphens");
    }
    if !edge(name.chars().next()) || !edge(name.chars().last()) {
        return Some("must begin and end with a letter or a digit");
    }
    if name.contains("..") {
        return Some("must not hold two dots in a row");
    }
    if name.parse::<Ipv4Addr>().is_ok() || looks_like_ipv4(name) {
        return Some("must not look like an IP address");
    }
    if ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"].iter().any(|suffix| name.ends_with(suffix)) {
        return Some("ends in a suffix that is reserved");
    }
    if ["sthree-", "amzn-s3-demo-"].iter().any(|prefix| name.starts_with(prefix)) {
        return Some("begins with a prefix that is reserved");
    }
    if punycode == Punycode::Refused && name.split('.').any(|label| label.starts_with("xn--")) {
        return Some("holds a punycode label (xn--), which allow_punycode would permit");
    }
    None
}

fn looks_like_ipv4(name: &str) -> bool {
    let labels: Vec<&str> = name.split('.').collect();
    labels.len() == 4 && labels.iter().all(|label| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()))
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Why a text is not an object key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectKeyError {
    #[error("an object key cannot be empty")]
    Empty,
    #[error("an object key has at most {} bytes, this one has {length}", ObjectKey::LENGTH_MAX)]
    TooLong { length: usize },
}

/// An object's key: 1 to 1024 bytes of UTF-8, any characters, never normalised.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// Bytes of UTF-8, in every engine.
    pub const LENGTH_MAX: usize = 1024;

    /// # Errors
    /// [`ObjectKeyError`] when empty or longer than [`ObjectKey::LENGTH_MAX`].
    pub fn parse(key: impl Into<String>) -> Result<Self, ObjectKeyError> {
        let key = key.into();
        match key.len() {
            0 => Err(ObjectKeyError::Empty),
            length if length > Self::LENGTH_MAX => Err(ObjectKeyError::TooLong { length }),
            _ => Ok(ObjectKey(key)),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Why a text cannot be an access key's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("access key id {text:?} must have 3 to 128 letters, digits, '-', '_' or '.'")]
pub struct KeyIdError {
    pub text: String,
}

/// The public half of an access key: `GK` and 24 hexadecimal digits when made here, any plain word when imported.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    /// # Errors
    /// [`KeyIdError`] when it could not stand in a credential scope or a table.
    pub fn parse(text: &str) -> Result<Self, KeyIdError> {
        let fits = (3..=128).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            Ok(KeyId(text.to_owned()))
        } else {
            Err(KeyIdError { text: text.to_owned() })
        }
    }

    pub fn generate(random: &dyn crate::Random) -> Self {
        let mut bytes = [0; 12];
        random.fill(&mut bytes);
        KeyId(format!("GK{}", hex::encode(bytes)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{BucketName, KeyId, ObjectKey, ObjectKeyError, Punycode};

    #[test]
    fn bucket_names_follow_the_rules_of_aws() {
        let ok = |name: &str| BucketName::parse(name, Punycode::Refused).is_ok();
        for name in ["abc", "a-b.c", "1.2.3", "nextcloud-bucket", "a.b.c.d", &"a".repeat(63)] {
            assert!(ok(name), "{name}");
        }
        let long = "a".repeat(64);
        let bad = [
            "ab",
            &long,
            "Abc",
            "a_b",
            "-ab",
            "ab-",
            ".ab",
            "a..b",
            "1.2.3.4",
            "999.1.1.1",
            "x-s3alias",
            "a.xn--b",
            "sthree-x",
            "ü-bucket",
        ];
        for name in bad {
            assert!(!ok(name), "{name}");
        }
        assert!(BucketName::parse("xn--bcher-kva", Punycode::Allowed).is_ok());
    }

    #[test]
    fn object_keys_have_1_to_1024_bytes_of_anything() {
        assert_eq!(ObjectKey::parse(""), Err(ObjectKeyError::Empty));
        assert!(ObjectKey::parse("a".repeat(1024)).is_ok());
        assert_eq!(ObjectKey::parse("ü".repeat(513)), Err(ObjectKeyError::TooLong { length: 1026 }));
        assert!(ObjectKey::parse("\u{0}//../\u{7f}").is_ok());
    }

    #[test]
    fn key_ids_are_plain_words() {
        assert!(KeyId::parse("GK0123456789abcdef01234567").is_ok());
        assert!(KeyId::parse("AKIA/x").is_err());
        assert!(KeyId::parse("").is_err());
    }
}
