//! What a background job is: something that does one bounded piece of work at a time, says whether there is more, and can be waited for.
//!
//! Jobs do not loop, sleep after errors or throttle themselves: [`crate::registry::Workers`] does that for all of them alike, so that
//! all can be listed, slowed down, paused and resumed.

use std::error::Error;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// Why a step failed. It is logged and shown in the list of workers; the step is tried again after a pause.
pub type StepError = Box<dyn Error + Send + Sync>;

/// What a step found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// There is more to do now.
    Busy,
    /// Nothing to do until [`Worker::wait`] resolves.
    Idle,
    /// Nothing to do ever again.
    Done,
}

/// What a worker says of itself, besides what the registry counts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// After work that took d, the worker rests this many times d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tranquility: Option<u32>,
    /// How far it is, in words of its own, such as `512 (3)` for processed (repaired).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u64>,
    /// Items that failed and wait for another try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_errors: Option<u64>,
    /// Lines for the operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<String>,
}

/// A background job.
pub trait Worker: Send + 'static {
    /// Shown in lists; the same worker has the same name after a restart.
    fn name(&self) -> String;

    /// Cheap; read after each step.
    fn status(&self) -> Status;

    /// Does one bounded piece of work: seconds at most, so that pauses and tranquility work.
    ///
    /// # Errors
    /// Whatever kept the step from its end; the worker must be able to go on after it.
    fn step(&mut self) -> BoxFuture<'_, Result<Step, StepError>>;

    /// Resolves when there may be something to do after [`Step::Idle`]. May be dropped and asked for again.
    fn wait(&mut self) -> BoxFuture<'_, ()>;
}
