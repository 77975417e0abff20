//! Starting tasks as a capability: the daemon uses the tokio runtime, the simulator one that it can stop with its node.

use futures_util::future::BoxFuture;

/// Starts tasks that run beside their starter.
pub trait Spawn: Send + Sync + 'static {
    /// Runs `task` to its end, or until the node stops. `name` shows up where tasks are listed.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>);
}

/// The tokio runtime in whose context [`Spawn::spawn`] is called.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioSpawn;

impl Spawn for TokioSpawn {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        let span = tracing::trace_span!("task", name);
        tokio::spawn(tracing::Instrument::instrument(task, span));
    }
}
