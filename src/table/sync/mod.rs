//! Anti-entropy: replicas compare digests of ranges, descend where they differ and exchange the rows that differ.
//!
//! [`wire`] is what they say to each other, [`serve`] answers, [`session`] brings one range of this node and of one other together,
//! [`plan`] (pure) says which ranges with whom, [`tenure`] (pure) which rows a node has from an earlier time, [`round`] (pure) keeps the
//! books of going through them, which [`worker`] does. The same exchange moves partitions to new owners, rebuilds a node and ([`leave`])
//! empties one that owns a range no more.

pub mod leave;
mod local;
pub mod plan;
pub mod round;
pub mod serve;
pub mod session;
pub mod tenure;
pub mod wire;
pub mod worker;
