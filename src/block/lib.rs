//! Content-addressed blocks on this node's own disks, and the rules by which they come and go.
//!
//! What must stay true: a block acknowledged as written is on stable storage; nothing is read that does not match its checksums; a
//! corrupt copy is set aside and reported, never answered and never replaced by silence. `file`, `stored`, `directories`,
//! `resync`, `rate`, `scrub` and `backoff` only decide; `store` reads and writes through [`garage_types::Disk`], off the async threads.
//!
//! Start reading at [`LocalStore`]. The room does not know what an object is, nor who refers to a block.

pub mod backoff;
mod compress;
pub mod directories;
mod directory;
mod error;
pub mod file;
mod locks;
mod open;
mod opened;
mod prefixes;
pub mod rate;
pub mod resync;
pub mod scrub;
mod shelves;
mod space;
mod store;
mod stored;

#[cfg(test)]
mod store_tests;

pub use directories::{DataDirectory, Usage};
pub use directory::Removed;
pub use error::{BlockError, Damage, Exchanged};
pub use open::{Durability, LAYOUT_FILE, MARKER, OpenError, StoreOptions};
pub use store::{DirectorySpace, Examined, Forgotten, LocalStore, LockedBlock, Page, Relocated, Written};
pub use stored::{Compression, ContentError, Encoding, StoredBlock};
