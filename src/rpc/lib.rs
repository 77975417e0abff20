//! Typed endpoints over the mesh, peers and discovery, the cluster layout, and quorum calls.
//!
//! Start reading at [`cluster::Cluster`], which joins them for tables and blocks. [`endpoint`]: what can be called; [`mesh`]: the
//! peers of a node and calls to them; [`client`]: the command line's calls; [`error`]: how failures cross; [`wire`]: the bytes of a
//! message. The room does not know what tables, rows or blocks are.

mod budget;
pub mod client;
pub mod cluster;
pub mod endpoint;
pub mod error;
pub mod layout;
mod link;
pub mod mesh;
mod packing;
pub mod peers;
pub mod quorum;
mod serve;
pub mod wire;

#[cfg(test)]
mod mesh_network_tests;
#[cfg(test)]
mod mesh_tests;
#[cfg(test)]
mod mesh_upgrade_tests;
