//! Work that may block (disks, the metadata engine), kept off the async threads.

use std::future::Future;

use futures_channel::oneshot;

/// Runs closures that may block. The daemon hands them to a pool of threads; tests and the simulator run them in place, which
/// keeps a run deterministic.
pub trait Offload: Send + Sync + 'static {
    /// Runs `work` once, now or later. Implementations never drop it unless the process ends.
    fn run(&self, work: Box<dyn FnOnce() + Send>);
}

/// Runs the work at once on the caller's thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inline;

impl Offload for Inline {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

/// The work panicked, or the process is shutting down; nothing is known about how far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the background thread ended before the work was done")]
pub struct Lost;

/// Runs `work` through `offload` and waits for its result.
///
/// The work is handed over when this is called, not when the future is first polled; dropping the future does not stop it.
pub fn offload<T: Send + 'static>(
    offload: &dyn Offload,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, Lost>> + Send + 'static {
    let (sender, receiver) = oneshot::channel();
    offload.run(Box::new(move || {
        // Nobody waits any more when the caller was cancelled: the work is done all the same.
        drop(sender.send(work()));
    }));
    async move { receiver.await.map_err(|_cancelled| Lost) }
}
