//! What operators may ask of a cluster: one type per operation, one reply type each.
//!
//! The command line calls these operations over RPC; an HTTP interface can serve the same types, whose JSON is that of the
//! administration API, version 2. Must stay true: an operation is listed once, in [`operations::visit_all`]; whatever decides
//! (which key a search means, what a change of the layout is) is a pure function; replies hold data, and the command line words them.

pub mod blocks;
pub mod buckets;
pub mod cluster;
pub mod databases;
pub mod date;
pub mod error;
pub mod keys;
pub mod layout;
pub mod layout_history;
pub mod layout_plan;
pub mod moves;
pub mod nodes;
pub mod objects;
pub mod operations;
pub mod report;
pub mod search;
pub mod set_aside;
pub mod snapshots;
pub mod waiting;
pub mod workers;

pub use date::Date;
pub use error::{AdminError, ApiError};
pub use operations::{AdminService, Call, Operation, Visitor, register, visit_all};
