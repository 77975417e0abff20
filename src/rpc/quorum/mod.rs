//! How many replicas have to answer, and calls that wait for so many.
//!
//! [`mode`] says how many; [`progress`] counts (pure); [`calls`] sends to several nodes and counts with it. None of this knows what a
//! call is: the caller brings it.

pub mod calls;
pub mod mode;
pub mod progress;

pub use calls::{NodeError, NodeReply, QuorumError, read_from, write_to_sets};
pub use mode::{ConsistencyMode, Quorums};
pub use progress::{Progress, ReadProgress, ReadStep, WriteProgress, WriteQuorum};
