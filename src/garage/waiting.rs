//! A sign of life while the daemon takes its time: on standard error, when that is a terminal.

use std::future::Future;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// What is answered sooner needs no sign.
const SIGN_AFTER: Duration = Duration::from_secs(1);

/// Waits for `future`, and shows `what` and the time it has taken as soon as it is slow.
pub async fn with_sign<T>(what: &str, future: impl Future<Output = T>) -> T {
    shown_when_slow(future, || Spinner::new(what)).await
}

/// `show` is called if the future is slow; what it returns is dropped when the future is done.
async fn shown_when_slow<T, S>(future: impl Future<Output = T>, show: impl FnOnce() -> S) -> T {
    tokio::pin!(future);
    tokio::select! {
        biased;
        done = &mut future => done,
        () = tokio::time::sleep(SIGN_AFTER) => {
            let _shown = show();
            future.await
        }
    }
}

struct Spinner(ProgressBar);

impl Spinner {
    fn new(what: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_elapsed(SIGN_AFTER).with_message(what.to_owned());
        let style = ProgressStyle::with_template("{spinner} {msg}: waiting for the daemon, {elapsed}");
        bar.set_style(style.expect("the template is a constant"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Spinner(bar)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::{shown_when_slow, with_sign};

    #[tokio::test(start_paused = true)]
    async fn only_what_is_slow_is_shown_and_only_while_it_lasts() {
        let (shown, gone) = (Cell::new(0), Cell::new(0));
        struct Sign<'a>(&'a Cell<u32>);
        impl Drop for Sign<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let show = || {
            shown.set(shown.get() + 1);
            Sign(&gone)
        };
        let done_after = |millis| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            millis
        };
        assert_eq!(shown_when_slow(done_after(900), show).await, 900);
        assert_eq!((shown.get(), gone.get()), (0, 0));
        assert_eq!(shown_when_slow(done_after(1100), show).await, 1100);
        assert_eq!((shown.get(), gone.get()), (1, 1));
        assert_eq!(with_sign("CreateMetadataSnapshot", done_after(1100)).await, 1100);
    }
}
