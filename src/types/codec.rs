//! How rows, messages and state files become bytes: a format tag, then MessagePack with named fields.
//!
//! The tag names the kind and the generation of the format. A reader that meets a tag it does not know refuses instead of guessing;
//! fields it does not know are kept by types that carry [`Unknown`].

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Fields written by a newer minor version, carried along unchanged. Use with `#[serde(flatten)]`.
pub type Unknown = BTreeMap<String, rmpv::Value>;

/// Bytes that could not be read as what they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("format tag {found:?} where {expected:?} was expected")]
    Tag { expected: &'static str, found: String },
    #[error("malformed {expected} data")]
    Malformed {
        expected: &'static str,
        #[source]
        source: rmp_serde::decode::Error,
    },
}

/// A type with a format of its own on disk or on the wire.
pub trait Format {
    /// Short ASCII tag, such as `obj1`. A change that older readers would misread gets a new one.
    const TAG: &'static str;
}

/// The tag followed by MessagePack.
pub fn encode<T: Format + Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend(T::TAG.as_bytes());
    let mut serializer = rmp_serde::Serializer::new(&mut out).with_struct_map();
    value.serialize(&mut serializer).expect("our own types always serialize into memory");
    out
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`DecodeError`]: another tag, or bytes that are not such a value.
pub fn decode<T: Format + DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let body = strip_tag::<T>(bytes)?;
    rmp_serde::from_slice(body).map_err(|source| DecodeError::Malformed { expected: T::TAG, source })
}

/// As [`decode`], for types that borrow from the bytes.
///
/// # Errors
/// As [`decode`].
pub fn decode_borrowed<'a, T: Format + Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    let body = strip_tag::<T>(bytes)?;
    rmp_serde::from_slice(body).map_err(|source| DecodeError::Malformed { expected: T::TAG, source })
}

fn strip_tag<T: Format>(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    bytes.strip_prefix(T::TAG.as_bytes()).ok_or_else(|| DecodeError::Tag {
        expected: T::TAG,
        found: String::from_utf8_lossy(&bytes[..bytes.len().min(T::TAG.len())]).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::{DecodeError, Format, Unknown, decode, encode};

    #[derive(Serialize, Deserialize)]
    struct Newer {
        a: u32,
        b: Vec<u8>,
    }
    impl Format for Newer {
        const TAG: &'static str = "tst1";
    }

    #[derive(Serialize, Deserialize)]
    struct Older {
        a: u32,
        #[serde(flatten)]
        unknown: Unknown,
    }
    impl Format for Older {
        const TAG: &'static str = "tst1";
    }

    struct Other;
    impl Format for Other {
        const TAG: &'static str = "oth1";
    }

    #[test]
    fn fields_of_a_newer_version_survive_an_older_one() {
        let mut older: Older = decode(&encode(&Newer { a: 1, b: vec![2, 3] })).unwrap();
        older.a = 5;
        let newer: Newer = decode(&encode(&older)).unwrap();
        assert_eq!((newer.a, newer.b), (5, vec![2, 3]));
    }

    #[test]
    fn another_tag_and_truncation_are_refused() {
        let bytes = encode(&Newer { a: 1, b: vec![] });
        assert!(matches!(super::strip_tag::<Other>(&bytes), Err(DecodeError::Tag { expected: "oth1", .. })));
        for end in 0..bytes.len() {
            assert!(decode::<Newer>(&bytes[..end]).is_err());
        }
    }
}
