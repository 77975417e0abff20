//! What the tables mean: buckets, aliases, access keys, objects, uploads, versions, block references and counters, and the one
//! pipeline through which every byte is written.
//!
//! Must stay true:
//! - an object row is written only when everything it names is durable at a write quorum;
//! - a version id is used for one object row at one timestamp and never again, so that whoever supersedes the row may release it;
//! - a block's bytes and a reference to it reach an owner in one message, and the reference is stored after the bytes;
//! - what a key may do is kept in one place, the key's row; what a bucket is called in another, the alias table.
//!
//! It does not know HTTP, XML or any frontend.

pub mod alias;
pub mod background;
pub mod block_buffer;
pub mod block_info;
pub mod block_need;
pub mod block_ref;
pub mod block_walk;
pub mod blocks;
pub mod bucket;
pub mod buckets;
pub mod cache;
pub mod closing;
pub mod combine;
pub mod complete;
pub mod copy;
pub mod count;
pub mod counters;
mod delete_bucket;
mod detached;
pub mod digest;
pub mod error;
pub mod failed_here;
mod fetch;
pub mod fresh_contents;
pub mod fresh_refs;
pub mod garage;
pub mod get;
pub mod in_use;
pub mod inspect;
pub mod key;
pub mod keys;
mod lingering;
pub mod list;
pub mod list_uploads;
mod misses;
pub mod moving;
pub mod multipart;
pub mod name_claims;
mod naming;
pub mod object;
pub mod open_versions;
pub mod part;
mod part_lists;
pub mod pipeline;
pub mod presence;
pub mod put;
pub mod recount;
pub mod repair;
pub mod repair_aliases;
pub mod resync;
pub mod resync_queue;
pub mod resync_worker;
#[cfg(test)]
mod rows_tests;
pub mod scrub;
mod senders;
pub mod set_aside;
mod shared_lists;
pub mod stale_uploads;
pub mod state_file;
mod superseded;
pub mod unfinished;
pub mod unreferenced;
pub mod upload;
pub mod upload_end;
pub mod version;
pub mod workers;
pub mod working;

pub use error::ModelError;
pub use garage::Garage;

/// The numbers of all tables. A number is never given to another table, even after its own is gone.
pub mod table_ids {
    use garage_table::wire::TableId;

    pub const BUCKET: TableId = TableId(1);
    pub const ALIAS: TableId = TableId(2);
    pub const KEY: TableId = TableId(3);
    pub const OBJECT: TableId = TableId(4);
    pub const UPLOAD: TableId = TableId(5);
    pub const PART: TableId = TableId(6);
    pub const VERSION: TableId = TableId(7);
    pub const BLOCK_REF: TableId = TableId(8);
}
