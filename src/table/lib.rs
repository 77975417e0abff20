//! Replicated CRDT tables, on bytes.
//!
//! A table is a set of rows, each under a placement (32 bytes of the hash space) and a sort key. [`store::TableStore`] is the local
//! half: it holds the rows of this node and carries out what coordinators ask, one transaction a request. [`table::Table`] is the
//! coordinator's half, typed: it knows from the layout which nodes own a row, calls them, counts quorums and merges replies.
//!
//! Must stay true:
//! - a row changes only by merging, and all effects of the change are in the same transaction;
//! - a commit that an owner answers with [`wire::Verdict::Won`] is durable there and nothing newer was known to that owner;
//! - the queue of cascaded effects ([`queue`]) carries deletions only, never the only trace of something live.
//!
//! It does not know what an object or a block is: what rows mean is given by the [`schema::Schema`] implementations of `model`.

mod accept;
pub mod collect;
pub mod damage;
pub mod digest;
pub mod epochs;
pub mod error;
pub mod graves;
pub mod heard;
pub mod queue;
pub mod rows;
pub mod schema;
pub mod segments;
pub mod set_aside;
pub mod starts;
pub mod store;
pub mod sync;
pub mod table;
pub mod transaction;
pub mod wire;

pub use error::TableError;
pub use schema::{Replication, Schema};
pub use store::TableStore;
pub use table::Table;

#[cfg(test)]
mod store_tests;
