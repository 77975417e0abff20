//! Background jobs, and how tasks are started. Knows nothing of what the jobs do.

pub mod changes;
pub mod registry;
pub mod spawn;
pub mod worker;

pub use changes::{Changes, Watch};
pub use registry::{WorkerId, WorkerInfo, Workers};
pub use worker::{Status, Step, StepError, Worker};
