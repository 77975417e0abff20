//! One newtype per identity, so that none can be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Random;

/// A hexadecimal id that is not one: the text, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}: 64 hexadecimal digits are needed")]
pub struct ParseIdError {
    pub text: String,
    pub expected: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $words:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                $name(bytes)
            }

            /// `None` unless `bytes` holds exactly 32 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map($name)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first 16 hexadecimal digits, as tables for people show it.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..8])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_malformed| ParseIdError { text: text.to_owned(), expected: $words })?;
                Ok($name(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error;
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(D::Error::custom)
                } else {
                    let bytes: serde_bytes::ByteArray<32> = Deserialize::deserialize(deserializer)?;
                    Ok($name(bytes.into_array()))
                }
            }
        }
    };
}

id! {
    /// A node's Ed25519 public key.
    NodeId, "a node id"
}
id! {
    /// A bucket's random identity; names are only aliases of it.
    BucketId, "a bucket id"
}
id! {
    /// One content of an object: random, used for one object row at one timestamp and never again.
    VersionId, "a version id"
}
id! {
    /// An unfinished write, simple or multipart.
    UploadId, "an upload id"
}
id! {
    /// BLAKE2b-256 of a block's content, after encryption and before compression: the block's name.
    BlockHash, "a block hash"
}

impl BlockHash {
    /// The name of a block with this content.
    pub fn of(content: &[u8]) -> Self {
        BlockHash(crate::hash::blake2b(content))
    }
}

impl BucketId {
    pub fn random(random: &dyn Random) -> Self {
        BucketId(random.bytes32())
    }
}

impl VersionId {
    pub fn random(random: &dyn Random) -> Self {
        VersionId(random.bytes32())
    }
}

impl UploadId {
    pub fn random(random: &dyn Random) -> Self {
        UploadId(random.bytes32())
    }
}

#[cfg(test)]
mod tests {
    use super::{BucketId, NodeId};

    #[test]
    fn ids_are_hexadecimal_for_people_and_bytes_on_the_wire() {
        let id = NodeId::from_bytes([7; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(rmp_serde::from_slice::<NodeId>(&rmp_serde::to_vec(&id).unwrap()).unwrap(), id);
        assert_eq!(rmp_serde::to_vec(&id).unwrap().len(), 34);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        assert!("07".parse::<BucketId>().is_err());
        assert!(format!("{id}x").parse::<NodeId>().is_err());
    }
}
