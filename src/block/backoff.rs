//! When a block whose resync failed is tried again: after a minute, then twice as long each time, at most an hour.
//!
//! Pure; the resync worker keeps one [`Failures`] per errored block.

use std::time::Duration;

use garage_types::Timestamp;
use serde::{Deserialize, Serialize};

const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// The failures of one block since its last success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// At least 1.
    pub count: u32,
    pub last_try: Timestamp,
}

impl Failures {
    /// One more failure, at `now`.
    #[must_use]
    pub fn after(previous: Option<Failures>, now: Timestamp) -> Self {
        Failures { count: previous.map_or(0, |failures| failures.count).saturating_add(1), last_try: now }
    }

    /// The earliest time of the next try.
    pub fn next_try(&self) -> Timestamp {
        self.last_try.plus_millis(delay(self.count).as_millis() as u64)
    }

    /// Whether to try again at `now`. A clock set back to before the last try counts as due: waiting could take arbitrarily long.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.next_try() || now < self.last_try
    }
}

/// How long to wait after the `failures`th failure in a row.
pub fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use garage_types::Timestamp;

    use super::{Failures, delay};

    #[test]
    fn the_wait_doubles_from_a_minute_to_an_hour() {
        let minutes: Vec<u64> = (1..=8).map(|failures| delay(failures).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delay(0).as_secs(), 60);
        assert_eq!(delay(u32::MAX).as_secs(), 3600);
    }

    #[test]
    fn a_block_is_due_when_its_wait_is_over() {
        let at = Timestamp::from_millis;
        let first = Failures::after(None, at(1000));
        assert_eq!((first.count, first.next_try()), (1, at(61_000)));
        let second = Failures::after(Some(first), at(61_000));
        assert_eq!((second.count, second.next_try()), (2, at(181_000)));
        assert!(!second.is_due(at(180_999)));
        assert!(second.is_due(at(181_000)));
    }

    #[test]
    fn a_clock_set_back_does_not_postpone_the_next_try() {
        assert!(Failures::after(None, Timestamp::from_millis(5000)).is_due(Timestamp::from_millis(4999)));
    }
}
