//! The power supply of a simulated machine: goes after so many steps of its disk and its database. Tests only.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by what runs on it. Clones are one supply; it lasts for ever unless it is told otherwise.
#[derive(Clone, Debug, Default)]
pub struct Power(Arc<Mutex<Supply>>);

#[derive(Debug, Default)]
struct Supply {
    /// Steps until it goes; `None`: it stays.
    left: Option<u64>,
    steps: u64,
}

impl Power {
    /// Goes after `steps` more steps.
    pub fn cut_after(&self, steps: u64) {
        self.with(|supply| supply.left = Some(steps));
    }

    /// Is back, and stays.
    pub fn restore(&self) {
        self.with(|supply| supply.left = None);
    }

    /// How many steps were made so far.
    pub fn steps(&self) -> u64 {
        self.with(|supply| supply.steps)
    }

    pub fn is_on(&self) -> bool {
        self.with(|supply| supply.left != Some(0))
    }

    /// Makes one step, before which the power may go: then it is not made.
    ///
    /// # Errors
    /// When there is no power.
    pub fn step(&self) -> io::Result<()> {
        self.with(|supply| {
            supply.left = match supply.left {
                Some(0) => return Err(io::Error::other("the power is off")),
                Some(left) => Some(left - 1),
                None => None,
            };
            supply.steps += 1;
            Ok(())
        })
    }

    /// Nothing that is done under the lock can panic half-way.
    fn with<T>(&self, change: impl FnOnce(&mut Supply) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::Power;

    #[test]
    fn the_power_goes_after_the_steps_it_was_given_and_comes_back_when_restored() {
        let power = Power::default();
        power.step().unwrap();
        power.cut_after(2);
        power.step().unwrap();
        assert!(power.is_on());
        power.step().unwrap();
        assert!(!power.is_on() && power.step().is_err() && power.step().is_err());
        power.restore();
        power.step().unwrap();
        assert_eq!(power.steps(), 4);
    }
}
