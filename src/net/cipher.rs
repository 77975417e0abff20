//! Sealing and opening of frames: one key per direction, a counter as nonce, so a frame is good once and in its place.
//!
//! AEGIS-128L where both processors have AES instructions (several GiB/s), ChaCha20-Poly1305 otherwise: in software it is the
//! faster one by far.

use libsodium_rs::crypto_aead::{aegis128l, chacha20poly1305_ietf as chacha};
use libsodium_rs::crypto_hash::sha256;

use crate::error::FrameError;
use crate::identity::SecretBytes;

/// The ciphers a node may use; the values go over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cipher {
    ChaCha20Poly1305,
    Aegis128L,
}

impl Cipher {
    /// The fastest on this machine.
    pub(crate) fn preferred() -> Self {
        if has_aes_instructions() { Cipher::Aegis128L } else { Cipher::ChaCha20Poly1305 }
    }

    /// What two nodes with these preferences use: AEGIS only when both have it in hardware.
    pub(crate) fn agreed(self, other: Cipher) -> Cipher {
        match (self, other) {
            (Cipher::Aegis128L, Cipher::Aegis128L) => Cipher::Aegis128L,
            (Cipher::ChaCha20Poly1305, _) | (_, Cipher::ChaCha20Poly1305) => Cipher::ChaCha20Poly1305,
        }
    }

    /// Bytes a frame grows by.
    pub(crate) const fn overhead(self) -> usize {
        match self {
            Cipher::ChaCha20Poly1305 => chacha::ABYTES,
            Cipher::Aegis128L => aegis128l::ABYTES,
        }
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_aes_instructions() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("avx")
}

#[cfg(target_arch = "aarch64")]
fn has_aes_instructions() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes_instructions() -> bool {
    false
}

/// One direction of a connection: the key and the number of frames so far.
pub(crate) struct Direction {
    key: Key,
    frames: u64,
}

enum Key {
    ChaCha20Poly1305(chacha::Key),
    Aegis128L(aegis128l::Key),
}

impl Direction {
    pub(crate) fn new(cipher: Cipher, secret: &SecretBytes) -> Self {
        // A key of its own for each use of the handshake's secret.
        let derive = |label: &[u8]| SecretBytes(sha256::hash(&[&secret.0, label].concat()));
        let key = match cipher {
            Cipher::ChaCha20Poly1305 => {
                let derived = derive(b"frames chacha20-poly1305");
                Key::ChaCha20Poly1305(chacha::Key::from_bytes(&derived.0).expect("32 bytes"))
            }
            Cipher::Aegis128L => {
                let derived = derive(b"frames aegis-128l");
                Key::Aegis128L(aegis128l::Key::from_bytes(&derived.0[..aegis128l::KEYBYTES]).expect("16 of 32 bytes"))
            }
        };
        Direction { key, frames: 0 }
    }

    /// The key of the one message that settles role, class and cipher.
    pub(crate) fn for_settings(secret: &SecretBytes) -> Self {
        let derived = SecretBytes(sha256::hash(&[&secret.0[..], b"settings"].concat()));
        Direction { key: Key::ChaCha20Poly1305(chacha::Key::from_bytes(&derived.0).expect("32 bytes")), frames: 0 }
    }

    pub(crate) fn seal(&mut self, plain: &[u8], header: &[u8]) -> Vec<u8> {
        let frame = self.next_frame();
        let sealed = match &self.key {
            Key::ChaCha20Poly1305(key) => chacha::encrypt(plain, Some(header), &chacha::Nonce::from_bytes(nonce(frame)), key),
            Key::Aegis128L(key) => aegis128l::encrypt(plain, Some(header), &aegis128l::Nonce::from_bytes(nonce(frame)), key),
        };
        sealed.expect("frames are far below the limits of the cipher")
    }

    pub(crate) fn open(&mut self, sealed: &[u8], header: &[u8]) -> Result<Vec<u8>, FrameError> {
        let frame = self.next_frame();
        let opened = match &self.key {
            Key::ChaCha20Poly1305(key) => chacha::decrypt(sealed, Some(header), &chacha::Nonce::from_bytes(nonce(frame)), key),
            Key::Aegis128L(key) => aegis128l::decrypt(sealed, Some(header), &aegis128l::Nonce::from_bytes(nonce(frame)), key),
        };
        opened.map_err(|_forged| FrameError::Forged)
    }

    fn next_frame(&mut self) -> u64 {
        let frame = self.frames;
        self.frames = frame.checked_add(1).expect("2^64 frames are centuries of traffic");
        frame
    }
}

fn nonce<const N: usize>(frame: u64) -> [u8; N] {
    let mut nonce = [0; N];
    nonce[..8].copy_from_slice(&frame.to_le_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::{Cipher, Direction};
    use crate::error::FrameError;
    use crate::identity::SecretBytes;

    #[test]
    fn frames_open_once_in_order_and_unaltered() {
        libsodium_rs::ensure_init().unwrap();
        for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aegis128L] {
            let secret = SecretBytes([9; 32]);
            let mut sender = Direction::new(cipher, &secret);
            let frames = [sender.seal(b"one", b"h"), sender.seal(b"two", b"h")];
            assert_eq!(frames[0].len(), 3 + cipher.overhead());

            let mut receiver = Direction::new(cipher, &secret);
            assert_eq!(receiver.open(&frames[0], b"h").unwrap(), b"one");
            assert_eq!(receiver.open(&frames[0], b"h"), Err(FrameError::Forged), "repeated");
            assert_eq!(Direction::new(cipher, &secret).open(&frames[1], b"h"), Err(FrameError::Forged), "reordered");
            assert_eq!(Direction::new(cipher, &secret).open(&frames[0], b"x"), Err(FrameError::Forged), "other header");
        }
    }

    #[test]
    fn aegis_is_used_only_when_both_have_it_in_hardware() {
        use Cipher::{Aegis128L, ChaCha20Poly1305};
        assert_eq!(Aegis128L.agreed(Aegis128L), Aegis128L);
        assert_eq!(Aegis128L.agreed(ChaCha20Poly1305), ChaCha20Poly1305);
        assert_eq!(ChaCha20Poly1305.agreed(Aegis128L), ChaCha20Poly1305);
    }
}
