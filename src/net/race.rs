//! Trying several places without waiting for each to fail: one that swallows everything must not hide the one that answers.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

/// Tries `candidates` in their order, the next one as soon as one has failed or `stagger` has passed without an answer, and returns
/// the first success. The others are dropped.
///
/// # Errors
/// Every failure, in the order they came; none when there was no candidate.
pub async fn first_success<C, T, E, F>(
    candidates: impl IntoIterator<Item = C>,
    stagger: Duration,
    attempt: impl Fn(C) -> F,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut left = candidates.into_iter();
    let mut running = FuturesUnordered::new();
    let mut failures = Vec::new();
    let mut next_at = pin!(sleep_until(Instant::now()));
    let mut exhausted = false;
    loop {
        if exhausted && running.is_empty() {
            return Err(failures);
        }
        tokio::select! {
            biased;
            Some(outcome) = running.next() => match outcome {
                Ok(success) => return Ok(success),
                Err(failure) => {
                    failures.push(failure);
                    next_at.as_mut().reset(Instant::now());
                }
            },
            () = next_at.as_mut(), if !exhausted => match left.next() {
                Some(candidate) => {
                    running.push(attempt(candidate));
                    next_at.as_mut().reset(Instant::now() + stagger);
                }
                None => exhausted = true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::first_success;

    const STAGGER: Duration = Duration::from_secs(1);

    /// Candidates are the seconds after which they answer; from 100 on, with a failure.
    async fn answer(seconds: u64) -> Result<u64, u64> {
        tokio::time::sleep(Duration::from_secs(seconds % 100)).await;
        if seconds < 100 { Ok(seconds) } else { Err(seconds) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_candidate_does_not_hold_up_the_next() {
        let start = Instant::now();
        assert_eq!(first_success([99, 3], STAGGER, answer).await, Ok(3));
        assert_eq!(start.elapsed(), Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_starts_the_next_at_once_and_all_failures_are_told() {
        let start = Instant::now();
        assert_eq!(first_success([100, 100, 5], STAGGER, answer).await, Ok(5));
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert_eq!(first_success([103, 101], STAGGER, answer).await, Err(vec![101, 103]));
        assert_eq!(first_success([], STAGGER, answer).await, Err(vec![]));
    }
}
