//! How fast blocks may move in the background: a bucket that fills with the bytes allowed a second.
//!
//! Pure. What is moved is paid for afterwards, as its size is known only then: whoever overdrew waits before the next block, so that
//! over any longer time the limit holds.

use std::time::Duration;

/// Bytes allowed to be moved at once after a quiet time, in seconds of the limit.
const BURST_SECONDS: f64 = 1.0;

/// A limit of bytes a second, and what is left of it.
#[derive(Clone, Debug)]
pub struct ByteRate {
    per_second: f64,
    /// Negative when overdrawn.
    left: f64,
    at: Duration,
}

impl ByteRate {
    /// `per_second`: bytes; at least one.
    pub fn new(per_second: u64) -> Self {
        let per_second = per_second.max(1) as f64;
        ByteRate { per_second, left: per_second * BURST_SECONDS, at: Duration::ZERO }
    }

    /// Pays for bytes that were moved. `now`: since any fixed point in time. Returns how long to wait before moving more.
    pub fn pay(&mut self, bytes: u64, now: Duration) -> Duration {
        let earned = now.saturating_sub(self.at).as_secs_f64() * self.per_second;
        self.at = self.at.max(now);
        self.left = (self.left + earned).min(self.per_second * BURST_SECONDS) - bytes as f64;
        if self.left >= 0.0 {
            Duration::ZERO
        } else {
            Duration::try_from_secs_f64(-self.left / self.per_second).unwrap_or(Duration::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::ByteRate;

    #[test]
    fn over_time_no_more_is_moved_than_allowed() {
        let mut rate = ByteRate::new(1000);
        let mut now = Duration::ZERO;
        for _block in 0..100 {
            now += rate.pay(500, now);
        }
        assert!((48.0..=50.0).contains(&now.as_secs_f64()), "{now:?} for 50000 bytes at 1000 a second");
    }

    #[test]
    fn a_quiet_time_allows_one_second_at_once_and_no_more() {
        let mut rate = ByteRate::new(1000);
        assert_eq!(rate.pay(1000, Duration::from_secs(1000)), Duration::ZERO);
        assert_eq!(rate.pay(500, Duration::from_secs(1000)), Duration::from_millis(500));
        assert_eq!(rate.pay(0, Duration::from_secs(999)), Duration::from_millis(500), "time never goes back");
    }
}
