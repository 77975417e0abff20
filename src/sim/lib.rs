//! The simulated world: real nodes on simulated disks, a memory engine that tells synced from unsynced, clocks and randomness that
//! follow a seed. Tests only.
//!
//! [`world`] is one node that loses power, for tests of a story. `scenario` runs several on a network of their own, under a workload
//! and faults drawn from a seed: `cluster` (machines and network), `workload` (clients), `s3` (clients over HTTP), `faults`,
//! `layouts` and `losses` (operators), `history` and `linear` (what they
//! saw, and whether it can be explained), `checks` (what must be true at the end).
//!
//! Must stay true: a seed replays a run exactly. So there are no threads and no real time, no order that depends on a hash, and
//! every random choice comes from the seed.

pub mod world;

#[cfg(test)]
mod cluster;

#[cfg(test)]
mod history;

#[cfg(test)]
mod linear;

#[cfg(test)]
mod workload;

#[cfg(test)]
mod faults;

#[cfg(test)]
mod layouts;

#[cfg(test)]
mod losses;

#[cfg(test)]
mod checks;

#[cfg(test)]
mod s3;

#[cfg(test)]
mod scenario;

#[cfg(test)]
mod stories;

#[cfg(test)]
mod plays;

#[cfg(test)]
mod cluster_tests;

#[cfg(test)]
mod moves;

#[cfg(test)]
mod blocks_repair;
#[cfg(test)]
mod blocks_resync;
#[cfg(test)]
mod blocks_world;

#[cfg(test)]
mod power_cuts;

#[cfg(test)]
mod idle;

#[cfg(test)]
mod round_trips;

#[cfg(test)]
mod full_disk;

#[cfg(test)]
mod gateway;

#[cfg(test)]
mod multipart;

#[cfg(test)]
mod names;

#[cfg(test)]
mod completions;

#[cfg(test)]
mod architecture;

#[cfg(test)]
mod planted_tests;

#[cfg(test)]
mod crowd;

#[cfg(test)]
mod doubts;

#[cfg(test)]
mod closing;

#[cfg(test)]
mod cut_points;

#[cfg(test)]
mod lost_rows;

#[cfg(test)]
mod idle_readers;
