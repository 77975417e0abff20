//! Quorums by replication factor and consistency mode.

use std::str::FromStr;

/// How much consistency is given up for availability.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ConsistencyMode {
    /// A read sees every write that was acknowledged before it.
    #[default]
    Consistent,
    /// Reads need one replica only.
    Degraded,
    /// Reads and writes need one replica only: an acknowledged write can be lost with a single node.
    Dangerous,
}

/// A configuration value that names no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    #[error("{0:?} is not a consistency mode: use consistent, degraded or dangerous")]
    Consistency(String),
    #[error("{0:?} is not a replication mode: use none, 1, 2, 2-dangerous, 3, 3-degraded or 3-dangerous")]
    Replication(String),
}

impl FromStr for ConsistencyMode {
    type Err = ModeError;
    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            "consistent" => Ok(ConsistencyMode::Consistent),
            "degraded" => Ok(ConsistencyMode::Degraded),
            "dangerous" => Ok(ConsistencyMode::Dangerous),
            other => Err(ModeError::Consistency(other.to_owned())),
        }
    }
}

/// What the old configuration key `replication_mode` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicationMode {
    pub replication_factor: usize,
    pub consistency: ConsistencyMode,
}

impl FromStr for ReplicationMode {
    type Err = ModeError;
    fn from_str(text: &str) -> Result<Self, ModeError> {
        let (replication_factor, consistency) = match text {
            "none" | "1" => (1, ConsistencyMode::Consistent),
            "2" => (2, ConsistencyMode::Consistent),
            "2-dangerous" => (2, ConsistencyMode::Dangerous),
            "3" => (3, ConsistencyMode::Consistent),
            "3-degraded" => (3, ConsistencyMode::Degraded),
            "3-dangerous" => (3, ConsistencyMode::Dangerous),
            other => return Err(ModeError::Replication(other.to_owned())),
        };
        Ok(ReplicationMode { replication_factor, consistency })
    }
}

/// How many replicas of a partition must answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorums {
    pub read: usize,
    pub write: usize,
}

impl Quorums {
    /// `replication_factor`: at least 1.
    pub fn of(replication_factor: usize, mode: ConsistencyMode) -> Self {
        let read = replication_factor.div_ceil(2);
        let write = (replication_factor + 1).saturating_sub(read);
        match mode {
            ConsistencyMode::Consistent => Quorums { read, write },
            ConsistencyMode::Degraded => Quorums { read: 1, write },
            ConsistencyMode::Dangerous => Quorums { read: 1, write: 1 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ConsistencyMode, Quorums, ReplicationMode};

    #[test]
    fn quorums_follow_the_table_of_the_manual() {
        use ConsistencyMode::{Consistent, Dangerous, Degraded};
        let table = [
            (1, Consistent, 1, 1),
            (2, Consistent, 1, 2),
            (2, Degraded, 1, 2),
            (2, Dangerous, 1, 1),
            (3, Consistent, 2, 2),
            (3, Degraded, 1, 2),
            (3, Dangerous, 1, 1),
            (5, Consistent, 3, 3),
        ];
        for (factor, mode, read, write) in table {
            assert_eq!(Quorums::of(factor, mode), Quorums { read, write }, "{factor} {mode:?}");
        }
    }

    #[test]
    fn consistent_quorums_always_intersect() {
        for factor in 1..20 {
            let Quorums { read, write } = Quorums::of(factor, ConsistencyMode::Consistent);
            assert!(read + write > factor && write * 2 > factor && write <= factor);
        }
    }

    #[test]
    fn old_replication_modes_are_still_read() {
        let mode: ReplicationMode = "2-dangerous".parse().unwrap();
        assert_eq!(mode, ReplicationMode { replication_factor: 2, consistency: ConsistencyMode::Dangerous });
        assert_eq!("none".parse::<ReplicationMode>().unwrap().replication_factor, 1);
        assert!("4".parse::<ReplicationMode>().is_err());
        assert!("Consistent".parse::<ConsistencyMode>().is_err());
        assert_eq!("degraded".parse(), Ok(ConsistencyMode::Degraded));
    }
}
