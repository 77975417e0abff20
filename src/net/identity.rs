//! Who a node is (an Ed25519 key pair) and which cluster it belongs to (a shared 32-byte key).

use std::fmt;

use garage_types::{NodeId, Random, Secret};
use libsodium_rs::crypto_sign::{
    KeyPair, PublicKey, SECRETKEYBYTES, SEEDBYTES, SecretKey, ed25519_sk_to_curve25519, sign_detached,
};
use libsodium_rs::utils::memzero;

/// Length of [`Identity::secret_bytes`].
pub const IDENTITY_BYTES: usize = SECRETKEYBYTES;

/// A stored node key that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("a node key has {IDENTITY_BYTES} bytes, not {0}")]
    Length(usize),
    #[error("the two halves of the node key do not belong together")]
    Mismatch,
}

/// A node's key pair. The public key is its [`NodeId`].
#[derive(Clone)]
pub struct Identity {
    id: NodeId,
    secret: SecretKey,
}

impl Identity {
    pub fn generate(random: &dyn Random) -> Self {
        let mut seed = random.bytes32();
        let identity = Self::from_seed(&seed);
        memzero(&mut seed);
        identity
    }

    fn from_seed(seed: &[u8; SEEDBYTES]) -> Self {
        let pair = KeyPair::from_seed(seed).expect("every seed of the right length gives a key pair");
        Identity { id: NodeId::from_bytes(*pair.public_key.as_bytes()), secret: pair.secret_key }
    }

    /// Reads what [`Identity::secret_bytes`] wrote.
    ///
    /// # Errors
    /// [`IdentityError`]: a truncated or damaged file.
    pub fn from_secret_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        let bytes: &[u8; IDENTITY_BYTES] = bytes.try_into().map_err(|_length| IdentityError::Length(bytes.len()))?;
        let (seed, public) = bytes.split_at(SEEDBYTES);
        let identity = Self::from_seed(seed.try_into().expect("split at the length of a seed"));
        if identity.id.as_bytes() != public {
            return Err(IdentityError::Mismatch);
        }
        Ok(identity)
    }

    /// Seed, then public key: the content of the node's key file. Whoever has it is the node.
    pub fn secret_bytes(&self) -> [u8; IDENTITY_BYTES] {
        *self.secret.as_bytes()
    }

    pub fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        sign_detached(message, &self.secret).expect("signing in memory cannot fail")
    }

    /// The same secret as a Curve25519 scalar, for key agreement.
    pub(crate) fn curve_secret(&self) -> SecretBytes {
        SecretBytes(ed25519_sk_to_curve25519(&self.secret).expect("every Ed25519 secret key converts"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.id)
    }
}

pub(crate) fn public_key(id: &NodeId) -> PublicKey {
    PublicKey::from_bytes_exact(*id.as_bytes())
}

/// The cluster's shared secret (`rpc_secret`), the network key of the Secret Handshake.
#[derive(Clone)]
pub struct NetworkKey(SecretBytes);

/// The shared secret is not 64 hexadecimal digits. The text itself is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network key (rpc_secret) must be 64 hexadecimal digits")]
pub struct ParseNetworkKeyError;

impl NetworkKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        NetworkKey(SecretBytes(bytes))
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`ParseNetworkKeyError`].
    pub fn from_hex(text: &Secret) -> Result<Self, ParseNetworkKeyError> {
        let mut bytes = libsodium_rs::utils::hex2bin(text.expose()).map_err(|_malformed| ParseNetworkKeyError)?;
        let key = bytes.as_slice().try_into().map(Self::from_bytes).map_err(|_length| ParseNetworkKeyError);
        memzero(&mut bytes);
        key
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0.0
    }
}

impl fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// 32 secret bytes, wiped when dropped.
#[derive(Clone)]
pub(crate) struct SecretBytes(pub(crate) [u8; 32]);

impl Drop for SecretBytes {
    fn drop(&mut self) {
        memzero(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use garage_types::Secret;
    use garage_types::random::SeededRandom;

    use super::{Identity, IdentityError, NetworkKey, ParseNetworkKeyError};

    #[test]
    fn identity_survives_its_state_file_and_damage_is_noticed() {
        let identity = Identity::generate(&SeededRandom::new(1));
        let mut bytes = identity.secret_bytes();
        assert_eq!(Identity::from_secret_bytes(&bytes).unwrap().id(), identity.id());
        assert_eq!(Identity::from_secret_bytes(&bytes[..63]).unwrap_err(), IdentityError::Length(63));
        bytes[3] ^= 1;
        assert_eq!(Identity::from_secret_bytes(&bytes).unwrap_err(), IdentityError::Mismatch);
    }

    #[test]
    fn network_key_is_64_hexadecimal_digits_and_never_shown() {
        let key = NetworkKey::from_hex(&Secret::new("ab".repeat(32))).unwrap();
        assert_eq!(key.as_bytes(), &[0xab; 32]);
        assert_eq!(format!("{key:?}"), "(redacted)");
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert_eq!(NetworkKey::from_hex(&Secret::new(bad)).unwrap_err(), ParseNetworkKeyError);
        }
    }
}
