//! A request's body that remembers whether it was read to its end.
//!
//! A reply given before that ends the connection: what is still coming is not the next request. The reply must say so, or a
//! client that reuses connections sends its next request into one that is being closed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::patient::BodyWanted;

/// What a [`super::Service`] reads a request's body from.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Incoming,
    wanted: BodyWanted,
    read_to_end: Arc<AtomicBool>,
}

/// Outlives the body, and tells whether all of it was read.
#[derive(Debug)]
pub(super) struct ReadToEnd(Arc<AtomicBool>);

impl ReadToEnd {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl RequestBody {
    /// `wanted`: told that the body is read, once it is.
    pub(super) fn new(incoming: Incoming, wanted: BodyWanted) -> (Self, ReadToEnd) {
        let read_to_end = Arc::new(AtomicBool::new(incoming.is_end_stream()));
        (RequestBody { incoming, wanted, read_to_end: read_to_end.clone() }, ReadToEnd(read_to_end))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        this.wanted.set(true);
        let frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        if frame.is_none() || this.incoming.is_end_stream() {
            this.read_to_end.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
