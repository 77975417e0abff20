//! A connection that waits for its client only so long: the time-out for writing that hyper does not have.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::places::{Place, Taking};

/// Fails a write with `TimedOut` once the client has accepted nothing for `write_idle`. Reads are left alone.
pub(super) struct Patient<IO> {
    io: IO,
    write_idle: Duration,
    /// Told whether the client still has something to accept.
    place: Arc<Place>,
    /// Running while a write is stuck.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<IO> Patient<IO> {
    pub(super) fn new(io: IO, write_idle: Duration, place: Arc<Place>) -> Self {
        Patient { io, write_idle, place, stuck: None }
    }

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
        Pin::new(&mut self.get_mut().io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Patient<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.judge(cx, outcome)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_write_vectored(cx, parts);
        this.judge(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_flush(cx);
        this.judge(cx, outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_shutdown(cx);
        this.judge(cx, outcome)
    }
}
