//! Randomness as a capability, so that a simulated run can be replayed.

use std::sync::Mutex;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A source of bytes nobody can guess (in the daemon) or that follow a seed (in tests).
pub trait Random: Send + Sync + 'static {
    fn fill(&self, bytes: &mut [u8]);

    fn bytes32(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill(&mut bytes);
        bytes
    }

    fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Uniform over `0..bound`; `bound` must not be zero.
    fn below(&self, bound: u64) -> u64 {
        // The bias of the modulo is below 2^-32 for the bounds used (delays, indices).
        self.u64() % bound
    }
}

/// ChaCha20 from a seed: the same seed gives the same bytes.
pub struct SeededRandom(Mutex<ChaCha20Rng>);

impl SeededRandom {
    pub fn new(seed: u64) -> Self {
        SeededRandom(Mutex::new(ChaCha20Rng::seed_from_u64(seed)))
    }

    /// For the daemon: `seed` comes from the operating system.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        SeededRandom(Mutex::new(ChaCha20Rng::from_seed(seed)))
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().expect("nothing panics while holding the generator").fill_bytes(bytes);
    }
}
