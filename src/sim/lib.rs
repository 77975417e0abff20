//! The simulated world: real nodes on simulated disks, a memory engine that tells synced from unsynced, a clock and randomness that
//! follow a seed. Tests only.
//!
//! What is here so far is one node that loses power; the network of several nodes and its faults come on top of the same parts.

pub mod world;

#[cfg(test)]
mod blocks_repair;
#[cfg(test)]
mod blocks_resync;
#[cfg(test)]
mod blocks_world;

#[cfg(test)]
mod power_cuts;

#[cfg(test)]
mod multipart;

#[cfg(test)]
mod architecture;
