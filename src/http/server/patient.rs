//! A connection that waits for its client only so long, and takes in only so much that nobody has asked for: the limits that hyper does not
//! have.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::time::{Sleep, sleep};

use super::places::{Place, Taking};

/// Bytes read at once while no handler takes a body in, and while many requests are being answered. hyper reads ever more at once from a
/// client that keeps its buffer filled, which it then holds while that client stands still: one that sends request upon request would fill
/// it on each of its connections. A byte less than hyper's first buffer, so that it is never full and does not grow.
const READ_LITTLE: u64 = (8 << 10) - 1;

/// Whether a handler takes in the body of the request: it sets this, and whoever begins and ends a request takes it back.
#[derive(Clone, Debug, Default)]
pub(super) struct BodyWanted(Arc<AtomicBool>);

impl BodyWanted {
    pub(super) fn set(&self, wanted: bool) {
        self.0.store(wanted, Ordering::Relaxed);
    }
}

/// Fails a write with `TimedOut` once the client has accepted nothing for `write_idle`.
pub(super) struct Patient<IO> {
    io: Take<IO>,
    body_wanted: BodyWanted,
    write_idle: Duration,
    /// Told whether the client still has something to accept.
    place: Arc<Place>,
    /// Running while a write is stuck.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<IO: AsyncRead> Patient<IO> {
    pub(super) fn new(io: IO, write_idle: Duration, place: Arc<Place>, body_wanted: BodyWanted) -> Self {
        Patient { io: io.take(READ_LITTLE), body_wanted, write_idle, place, stuck: None }
    }
}

impl<IO> Patient<IO> {
    fn judge<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            if self.stuck.take().is_some() {
                self.place.note(Taking::All);
            }
            return outcome;
        }
        if self.stuck.is_none() {
            self.place.note(Taking::Some);
        }
        let write_idle = self.write_idle;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(write_idle)));
        std::task::ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client accepts no more data")))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Patient<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let is_wanted = this.body_wanted.0.load(Ordering::Relaxed) && !this.place.is_crowded();
        this.io.set_limit(if is_wanted { u64::MAX } else { READ_LITTLE });
        Pin::new(&mut this.io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(this.io.get_mut()).poll_write(cx, bytes);
        this.judge(cx, outcome)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(this.io.get_mut()).poll_write_vectored(cx, parts);
        this.judge(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(this.io.get_mut()).poll_flush(cx);
        this.judge(cx, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(this.io.get_mut()).poll_shutdown(cx);
        this.judge(cx, outcome)
    }
}
