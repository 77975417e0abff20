//! Quorums by replication factor and consistency mode.

pub use garage_types::config::ConsistencyMode;

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
    use super::{ConsistencyMode, Quorums};
    use crate::quorum::WriteQuorum;

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
    fn where_a_consistent_read_asks_one_copy_every_copy_has_what_was_acknowledged() {
        for copies in 1..20 {
            let Quorums { read, write } = Quorums::of(copies, ConsistencyMode::Consistent);
            assert!(read > 1 || write == copies, "{copies} copies");
            // Of tables that every node has, a read asks as many as a majority leaves out, and one more.
            let (read, write) = (copies - copies / 2, WriteQuorum::Majority.of(copies));
            assert!(read > 1 || write == copies, "{copies} nodes");
        }
    }

    #[test]
    fn consistent_quorums_always_intersect() {
        for factor in 1..20 {
            let Quorums { read, write } = Quorums::of(factor, ConsistencyMode::Consistent);
            assert!(read + write > factor && write * 2 > factor && write <= factor);
        }
    }
}
