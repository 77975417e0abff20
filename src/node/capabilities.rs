//! The real world behind the traits: the system's randomness, and threads for work that blocks.

use garage_types::Offload;
use garage_types::random::SeededRandom;
use tokio::runtime::Handle;

/// A generator seeded by the operating system.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn system_random() -> Result<SeededRandom, getrandom::Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(SeededRandom::from_seed(seed))
}

/// Runs blocking work on the async runtime's pool of blocking threads.
#[derive(Clone, Debug)]
pub struct BlockingThreads(Handle);

impl BlockingThreads {
    /// Of the runtime that this is called in.
    pub fn of_current_runtime() -> Self {
        BlockingThreads(Handle::current())
    }
}

impl Offload for BlockingThreads {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        // The work reports its own result; the handle says nothing more.
        drop(self.0.spawn_blocking(work));
    }
}
