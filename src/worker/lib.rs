//! The worker room.

pub mod spawn;
