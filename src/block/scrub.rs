//! When every block file of a node is read and checked: by itself every month or so, and when an operator says so.
//!
//! Pure: the scrub worker asks [`Scrub::turn`] what to do, does it, and tells with [`Scrub::checked`]; what it saves of it is where it
//! goes on after a restart.

use garage_types::codec::Format;
use garage_types::{BlockHash, Timestamp};
use serde::{Deserialize, Serialize};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Between two scrubs: from this many days …
const PERIOD_DAYS_MIN: u64 = 25;
/// … to this many more, so that nodes and disks of one age do not all read at once.
const PERIOD_DAYS_SPREAD: u64 = 10;
/// A pause that nobody ends, ends by itself.
pub const PAUSE_MS: u64 = DAY_MS;

/// Progress and schedule of scrubbing on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// Where the scrub in progress goes on; `None` while there is none.
    #[serde(rename = "p")]
    position: Option<BlockHash>,
    /// Blocks checked in this scrub, or the last one.
    #[serde(rename = "n")]
    pub blocks: u64,
    /// Corrupt ones found, ever.
    #[serde(rename = "c")]
    pub corruptions: u64,
    #[serde(rename = "z")]
    paused_until: Option<Timestamp>,
    #[serde(rename = "l")]
    pub last_completed: Option<Timestamp>,
    #[serde(rename = "x")]
    pub next_run: Timestamp,
    /// Counts starts and cancellations, so that progress of another run is recognized.
    #[serde(rename = "r")]
    pub run: u64,
}

impl Format for Scrub {
    const TAG: &'static str = "scr1";
}

/// What an operator may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScrubCommand {
    Start,
    Pause,
    Resume,
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrubRefusal {
    #[error("a scrub is in progress already")]
    InProgress,
    #[error("no scrub is in progress")]
    NotInProgress,
    #[error("the scrub is not paused")]
    NotPaused,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Check blocks from here on.
    Check { from: BlockHash },
    /// Begin a scrub: it is time.
    Begin,
    /// `None`: until an operator says something.
    Wait { until: Option<Timestamp> },
}

/// Some blocks that were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    pub blocks: u64,
    pub corrupt: u64,
    /// Where to go on; `None` at the end.
    pub next: Option<BlockHash>,
}

/// When the scrub after one that ended `now` begins. `random`: any number.
fn next_run(now: Timestamp, random: u64) -> Timestamp {
    now.plus_millis(PERIOD_DAYS_MIN * DAY_MS + random % (PERIOD_DAYS_SPREAD * DAY_MS))
}

impl Scrub {
    /// Of a node that was never scrubbed.
    pub fn new(now: Timestamp, random: u64) -> Self {
        Scrub {
            position: None,
            blocks: 0,
            corruptions: 0,
            paused_until: None,
            last_completed: None,
            next_run: next_run(now, random),
            run: 0,
        }
    }

    pub fn is_in_progress(&self) -> bool {
        self.position.is_some()
    }

    /// Until when the scrub in progress is paused.
    pub fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        // A clock that was set back must not prolong the pause.
        self.paused_until.filter(|until| now < *until && *until <= now.plus_millis(PAUSE_MS) && self.is_in_progress())
    }

    /// Of the hash space, in percent.
    pub fn percent(&self) -> Option<u8> {
        self.position.map(|position| (u16::from(position.as_bytes()[0]) * 100 / 256) as u8)
    }

    pub fn turn(&self, now: Timestamp, automatic: bool) -> Turn {
        match (self.position, self.paused_until(now)) {
            (Some(_), Some(until)) => Turn::Wait { until: Some(until) },
            (Some(from), None) => Turn::Check { from },
            (None, _) if !automatic => Turn::Wait { until: None },
            (None, _) if now >= self.next_run => Turn::Begin,
            (None, _) => Turn::Wait { until: Some(self.next_run) },
        }
    }

    /// Carries out an operator's word.
    ///
    /// # Errors
    /// [`ScrubRefusal`]; nothing changed.
    pub fn command(&mut self, command: ScrubCommand, now: Timestamp, random: u64) -> Result<(), ScrubRefusal> {
        match (command, self.is_in_progress()) {
            (ScrubCommand::Start, true) => return Err(ScrubRefusal::InProgress),
            (ScrubCommand::Start, false) => {
                self.run += 1;
                (self.position, self.blocks) = (Some(BlockHash::from_bytes([0; 32])), 0);
                self.paused_until = None;
            }
            (_, false) => return Err(ScrubRefusal::NotInProgress),
            (ScrubCommand::Pause, true) => self.paused_until = Some(now.plus_millis(PAUSE_MS)),
            (ScrubCommand::Resume, true) if self.paused_until(now).is_none() => return Err(ScrubRefusal::NotPaused),
            (ScrubCommand::Resume, true) => self.paused_until = None,
            (ScrubCommand::Cancel, true) => {
                self.run += 1;
                (self.position, self.paused_until) = (None, None);
                self.next_run = next_run(now, random);
            }
        }
        Ok(())
    }

    /// Takes in what run number `run` checked; of a run that was cancelled only the corruptions count.
    pub fn checked(&mut self, run: u64, checked: Checked, now: Timestamp, random: u64) {
        self.corruptions += checked.corrupt;
        if run != self.run || !self.is_in_progress() {
            return;
        }
        self.blocks += checked.blocks;
        self.position = checked.next;
        if checked.next.is_none() {
            (self.last_completed, self.paused_until) = (Some(now), None);
            self.next_run = next_run(now, random);
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_types::{BlockHash, Timestamp};

    use super::{Checked, DAY_MS, PAUSE_MS, Scrub, ScrubCommand, ScrubRefusal, Turn};

    const HALF: BlockHash = BlockHash::from_bytes([128; 32]);
    const START: BlockHash = BlockHash::from_bytes([0; 32]);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_scrub_begins_by_itself_after_25_to_35_days_unless_that_is_off() {
        for random in [0, 1, 12_345_678_901, u64::MAX] {
            let scrub = Scrub::new(at(0), random);
            assert!((25 * DAY_MS..35 * DAY_MS).contains(&scrub.next_run.as_millis()));
            assert_eq!(scrub.turn(at(25 * DAY_MS - 1), true), Turn::Wait { until: Some(scrub.next_run) });
            assert_eq!(scrub.turn(at(35 * DAY_MS), true), Turn::Begin);
            assert_eq!(scrub.turn(at(35 * DAY_MS), false), Turn::Wait { until: None });
        }
    }

    #[test]
    fn a_scrub_goes_from_the_start_to_the_end_and_then_the_next_is_due_later() {
        let mut scrub = Scrub::new(at(0), 0);
        scrub.command(ScrubCommand::Start, at(5), 0).unwrap();
        assert_eq!(scrub.turn(at(5), false), Turn::Check { from: START });
        scrub.checked(1, Checked { blocks: 10, corrupt: 1, next: Some(HALF) }, at(6), 0);
        assert_eq!((scrub.turn(at(6), false), scrub.percent()), (Turn::Check { from: HALF }, Some(50)));
        scrub.checked(1, Checked { blocks: 7, corrupt: 0, next: None }, at(7), 0);
        assert_eq!((scrub.blocks, scrub.corruptions, scrub.last_completed), (17, 1, Some(at(7))));
        assert_eq!(scrub.turn(at(7), true), Turn::Wait { until: Some(at(7 + 25 * DAY_MS)) });
    }

    #[test]
    fn a_pause_ends_after_a_day_or_on_command() {
        let mut scrub = Scrub::new(at(0), 0);
        scrub.command(ScrubCommand::Start, at(0), 0).unwrap();
        scrub.command(ScrubCommand::Pause, at(0), 0).unwrap();
        assert_eq!(scrub.turn(at(PAUSE_MS - 1), true), Turn::Wait { until: Some(at(PAUSE_MS)) });
        assert_eq!(scrub.turn(at(PAUSE_MS), true), Turn::Check { from: START });
        scrub.command(ScrubCommand::Pause, at(9), 0).unwrap();
        scrub.command(ScrubCommand::Resume, at(10), 0).unwrap();
        assert_eq!(scrub.turn(at(10), true), Turn::Check { from: START });
    }

    #[test]
    fn words_that_make_no_sense_now_are_refused() {
        let mut scrub = Scrub::new(at(0), 0);
        for command in [ScrubCommand::Pause, ScrubCommand::Resume, ScrubCommand::Cancel] {
            assert_eq!(scrub.command(command, at(0), 0), Err(ScrubRefusal::NotInProgress));
        }
        scrub.command(ScrubCommand::Start, at(0), 0).unwrap();
        assert_eq!(scrub.command(ScrubCommand::Start, at(0), 0), Err(ScrubRefusal::InProgress));
        assert_eq!(scrub.command(ScrubCommand::Resume, at(0), 0), Err(ScrubRefusal::NotPaused));
    }

    #[test]
    fn what_a_cancelled_run_still_reports_moves_nothing() {
        let mut scrub = Scrub::new(at(0), 0);
        scrub.command(ScrubCommand::Start, at(0), 0).unwrap();
        scrub.command(ScrubCommand::Cancel, at(1), 0).unwrap();
        scrub.checked(1, Checked { blocks: 3, corrupt: 1, next: None }, at(2), 0);
        assert_eq!((scrub.last_completed, scrub.corruptions), (None, 1));
        scrub.command(ScrubCommand::Start, at(3), 0).unwrap();
        scrub.checked(1, Checked { blocks: 3, corrupt: 0, next: None }, at(4), 0);
        assert!(scrub.is_in_progress());
    }
}
