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

    /// For decisions that lead to a deletion, whatever the mode: a read of so many meets every write that was acknowledged in this
    /// mode, and what is written is at as many as a consistent write.
    pub fn certain(replication_factor: usize, mode: ConsistencyMode) -> Self {
        let acknowledged_at = Self::of(replication_factor, mode).write;
        let read = (replication_factor + 1).saturating_sub(acknowledged_at);
        Quorums { read, write: Self::of(replication_factor, ConsistencyMode::Consistent).write }
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
    fn what_leads_to_a_deletion_is_read_where_every_acknowledged_write_is_met() {
        use ConsistencyMode::{Consistent, Dangerous, Degraded};
        for factor in 1..20 {
            let consistent = Quorums::of(factor, Consistent);
            assert_eq!(Quorums::certain(factor, Consistent), consistent);
            assert_eq!(Quorums::certain(factor, Degraded), consistent, "its writes are consistent ones");
            assert_eq!(Quorums::certain(factor, Dangerous), Quorums { read: factor, ..consistent });
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
