//! The body of a reply: nothing, bytes, or a stream that may break.
//!
//! A stream that fails, or is shorter than it promised, aborts the connection: the client sees a truncated reply and never
//! a complete one with missing bytes.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::StreamExt;
use hyper::body::{Body, Frame, SizeHint};

use crate::document::Document;

/// Why a reply had to be cut short.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    #[error("the content of the reply became unavailable")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the reply has more bytes than the {length} it announced")]
    TooLong { length: u64 },
    #[error("the reply lacks {missing} of the bytes it announced")]
    TooShort { missing: u64 },
}

type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, ReplyError>> + Send>>;

/// What follows the head of a reply.
pub struct ReplyBody(Kind);

enum Kind {
    Empty,
    Whole(Document),
    /// Length unknown: sent with chunked encoding.
    Open(ByteStream),
    Sized {
        stream: ByteStream,
        length: u64,
        left: u64,
    },
}

impl ReplyBody {
    pub fn empty() -> Self {
        ReplyBody(Kind::Empty)
    }

    /// A stream of exactly `length` bytes, announced as `Content-Length`.
    pub fn sized(length: u64, stream: impl Stream<Item = Result<Bytes, ReplyError>> + Send + 'static) -> Self {
        ReplyBody(Kind::Sized { stream: stream.boxed(), length, left: length })
    }

    /// What is whole in memory.
    pub(crate) fn document(&mut self) -> Option<&mut Document> {
        match &mut self.0 {
            Kind::Whole(document) => Some(document),
            Kind::Empty | Kind::Open(_) | Kind::Sized { .. } => None,
        }
    }

    /// A stream whose length nobody knows yet.
    pub fn open(stream: impl Stream<Item = Result<Bytes, ReplyError>> + Send + 'static) -> Self {
        ReplyBody(Kind::Open(stream.boxed()))
    }
}

impl<D: Into<Document>> From<D> for ReplyBody {
    fn from(document: D) -> Self {
        let document = document.into();
        ReplyBody(if document.is_empty() { Kind::Empty } else { Kind::Whole(document) })
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let kind = &mut self.get_mut().0;
        match kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Whole(document) => Poll::Ready(document.take(usize::MAX).map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Open(stream) => stream.poll_next_unpin(cx).map(|item| item.map(|result| result.map(Frame::data))),
            Kind::Sized { stream, length, left } => {
                let item = std::task::ready!(stream.poll_next_unpin(cx));
                Poll::Ready(account(item, *length, left).map(|result| result.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            // The stream is asked once more after its last byte only while bytes are missing.
            Kind::Sized { left, .. } => *left == 0,
            Kind::Whole(document) => document.is_empty(),
            Kind::Open(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Whole(document) => SizeHint::with_exact(document.len() as u64),
            Kind::Sized { left, .. } => SizeHint::with_exact(*left),
            Kind::Open(_) => SizeHint::default(),
        }
    }
}

/// Holds a sized stream to its promise.
fn account(item: Option<Result<Bytes, ReplyError>>, length: u64, left: &mut u64) -> Option<Result<Bytes, ReplyError>> {
    match item {
        Some(Ok(bytes)) => match left.checked_sub(bytes.len() as u64) {
            Some(rest) => {
                *left = rest;
                Some(Ok(bytes))
            }
            None => Some(Err(ReplyError::TooLong { length })),
        },
        None if *left > 0 => Some(Err(ReplyError::TooShort { missing: *left })),
        other => other,
    }
}

impl fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Empty => f.write_str("empty"),
            Kind::Whole(document) => write!(f, "{} bytes", document.len()),
            Kind::Open(_) => f.write_str("stream"),
            Kind::Sized { length, .. } => write!(f, "stream of {length} bytes"),
        }
    }
}
