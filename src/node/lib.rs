//! The wiring: builds one node from its parts. Only here is everything seen at once; components get the few capabilities they use.
//!
//! [`node::Node`] is the same in the daemon and in the simulator; [`daemon`] gives it the real world: the system's clock, disks,
//! threads and sockets.

pub mod addresses;
pub mod capabilities;
pub mod convert;
pub mod daemon;
pub mod engine;
pub mod lost;
pub mod node;
pub mod real_disk;
pub mod room;
pub mod single;
pub mod snapshots;
pub mod state;
