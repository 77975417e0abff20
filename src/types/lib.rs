//! The words everything else is written in: ids, hashes, timestamps, CRDTs, encodings, names,
//! configuration types, and the traits behind which the outside world is hidden
//! ([`Clock`], [`Random`], [`Disk`], [`Offload`]).
//!
//! No I/O and no async here: what decides is pure, and a simulated world can replace the real one.

pub mod chain;
pub mod clock;
pub mod codec;
pub mod config;
pub mod crdt;
pub mod disk;
pub mod hash;
pub mod ids;
pub mod memory_disk;
pub mod names;
pub mod offload;
pub mod origin;
pub mod placement;
pub mod planted;
pub mod power;
pub mod random;
pub mod room;
pub mod secret;
pub mod size;
pub mod sort_key;
pub mod stall_budget;

pub use chain::chain;
pub use clock::{Clock, Timestamp};
pub use disk::Disk;
pub use ids::{BlockHash, BucketId, NodeId, UploadId, VersionId};
pub use names::{BucketName, KeyId, ObjectKey};
pub use offload::Offload;
pub use origin::Origin;
pub use placement::Placement;
pub use power::Power;
pub use random::Random;
pub use room::Room;
pub use secret::Secret;
pub use stall_budget::StallBudget;
