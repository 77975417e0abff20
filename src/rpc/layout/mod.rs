//! The cluster layout: which nodes take part, with which roles, and which of them hold each partition.
//!
//! [`assign`] computes an assignment; [`history`] is the replicated state (layout versions, staged changes, progress trackers);
//! [`view`] is what every call looks up; [`manager`] keeps the state on disk and publishes views. All but the manager is pure.
//!
//! What must stay true: a write goes to the nodes of every live version, and a version stays live until every node knows that its
//! rows have arrived where later versions look for them. Two layouts with one number never retire the one before them.

pub mod assign;
pub mod assignment;
pub mod error;
mod flow;
pub mod gossip;
pub mod history;
pub mod manager;
pub mod plan;
pub mod report;
pub mod staging;
pub mod standing;
pub mod trackers;
pub mod version;
pub mod view;

pub use assignment::Assignment;
pub use error::LayoutError;
pub use history::LayoutHistory;
pub use manager::{LayoutManager, Leftovers, WritePermit};
pub use report::Report;
pub use standing::{SharedStanding, Standing, StartFacts};
pub use version::{LayoutParameters, LayoutVersion, NodeRole, VersionKey, ZoneRedundancy};
pub use view::ClusterLayout;
