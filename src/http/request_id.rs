//! The name of one request: sent back in `x-amz-request-id` and written beside it in the log.

use std::fmt;

use garage_types::Random;

/// 64 random bits, shown as 16 uppercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

impl RequestId {
    pub const fn from_u64(bits: u64) -> Self {
        RequestId(bits)
    }

    pub fn random(random: &dyn Random) -> Self {
        RequestId(random.u64())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
