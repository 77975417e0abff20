//! Work that goes on whether or not its result is waited for.
//!
//! Must stay true: whoever takes a place that others need (a permit to read, a call to a peer) is polled until the place is given back.
//! A reply's stream is polled only while its client takes bytes. A future in such a stream that waits for a permit is given the permit in
//! its turn and keeps it until it is polled again: a few clients that stop reading would keep all permits.

use futures_util::FutureExt;
use garage_types::planted::{Bug, is_planted};
use garage_worker::spawn::Spawn;
use tokio::sync::oneshot;

use crate::error::ModelError;

/// Starts `work` at once as a task of its own. Dropping the future that is returned ends the work where it is.
pub(crate) fn detached<T, W>(
    spawn: &dyn Spawn,
    name: &'static str,
    work: W,
) -> impl Future<Output = Result<T, ModelError>> + Send + use<T, W>
where
    T: Send + 'static,
    W: Future<Output = Result<T, ModelError>> + Send + 'static,
{
    if is_planted(Bug::PlacesHeldUnpolled) {
        return work.left_future();
    }
    let (mut done, result) = oneshot::channel();
    let task = async move {
        let finished = tokio::select! {
            biased;
            finished = work => finished,
            () = done.closed() => return,
        };
        // Nobody waits any more if this fails, and the result goes with its receiver.
        drop(done.send(finished));
    };
    spawn.spawn(name, task.boxed());
    async move { result.await.unwrap_or(Err(ModelError::ShuttingDown)) }.right_future()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use garage_worker::spawn::TokioSpawn;
    use tokio::sync::{Notify, Semaphore};

    use super::detached;

    #[tokio::test]
    async fn a_place_is_given_back_although_nobody_polls_who_took_it() {
        let (places, taken) = (Arc::new(Semaphore::new(1)), Arc::new(Notify::new()));
        let work = {
            let (places, taken) = (places.clone(), taken.clone());
            async move {
                let _place = places.acquire_owned().await;
                taken.notify_one();
                tokio::task::yield_now().await;
                Ok(7)
            }
        };
        let result = detached(&TokioSpawn, "test", work);
        taken.notified().await;
        drop(places.acquire().await.unwrap());
        assert_eq!(result.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_ends_when_nobody_can_want_its_result() {
        let (held, begun) = (Arc::new(()), Arc::new(Notify::new()));
        let work = {
            let (held, begun) = (held.clone(), begun.clone());
            async move {
                begun.notify_one();
                std::future::pending::<()>().await;
                drop(held);
                Ok(())
            }
        };
        let result = detached(&TokioSpawn, "test", work);
        begun.notified().await;
        drop(result);
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
