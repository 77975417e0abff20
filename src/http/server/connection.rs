//! One connection, from its first byte to its last.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::linger::Client;
use super::overdue::{Documents, documents, holding};
use super::patient::{BodyWanted, Patient};
use super::places::{Answering, Place};
use super::request_body::RequestBody;
use super::{Peer, Service, Shared};
use crate::error::{ErrorReply, REQUEST_ID_HEADER, ReplyContext};
use crate::reply::{ReplyBody, ReplyError};
use crate::request_id::RequestId;

/// Serves one connection. `on_close` ends (its sender is dropped) when the server stops; `place` is held to the end.
pub(super) async fn run<S: Service + ?Sized>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    shared: Arc<Shared<S>>,
    on_close: watch::Receiver<()>,
    place: Place,
) {
    let (place, first_head_timeout) = (Arc::new(place), shared.limits.first_head_timeout);
    let (documents, watch) = documents(shared.limits.write_idle, shared.documents.clone());
    let serving = pin!(serve(stream, peer, shared, on_close, (place.clone(), documents)));
    let must_leave = pin!(seldom(async {
        tokio::select! {
            () = place.cut() => "its place was needed by another",
            () = silent_from_the_start(&place, first_head_timeout) => "no request came",
            () = watch.overdue() => "the client takes a document too slowly",
        }
    }));
    // Dropping the connection closes it: there is nothing to say to who has said nothing, or does not listen.
    if let Either::Right((reason, _serving)) = select(serving, must_leave).await {
        tracing::debug!(%peer, reason, "connection ended");
    }
}

/// A future that is polled only when it was woken itself, and not whenever the task is for the sake of a busier one.
async fn seldom<F: Future>(future: F) -> F::Output {
    let mut alone = FuturesUnordered::from_iter([future]);
    match alone.next().await {
        Some(output) => output,
        None => std::future::pending().await,
    }
}

/// Returns when no whole head has come within the time for the first one.
async fn silent_from_the_start(place: &Place, first_head_timeout: Duration) {
    tokio::time::sleep(first_head_timeout).await;
    if place.was_answered() {
        std::future::pending().await
    }
}

async fn serve<S: Service + ?Sized>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    shared: Arc<Shared<S>>,
    on_close: watch::Receiver<()>,
    (place, documents): (Arc<Place>, Documents),
) {
    let body_wanted = BodyWanted::default();
    let io = TokioIo::new(Patient::new(stream, shared.limits.write_idle, place.clone(), body_wanted.clone()));
    let stopping = on_close.clone();
    let unread = Arc::new(AtomicBool::new(false));
    let handler = service_fn(|request| {
        let answering = place.answer();
        let documents = documents.clone();
        let answered = answer(request, peer, shared.clone(), (unread.clone(), body_wanted.clone()));
        let reply: BoxFuture<'static, Result<Response<AnsweringBody>, Infallible>> =
            answered.map(move |reply| Ok(reply.map(|body| AnsweringBody::new(documents.watch(body), answering)))).boxed();
        reply
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head_timeout)
        .max_header_size(shared.limits.head_bytes_max)
        .max_headers(shared.limits.header_count_max)
        .max_buf_size(shared.limits.buffer_bytes_max)
        .serve_connection(io, handler);
    // A scope of its own: afterwards the connection is taken apart.
    let ended = {
        let serving = pin!(poll_fn(|cx| connection.poll_without_shutdown(cx)));
        match select(serving, pin!(seldom(closed(on_close)))).await {
            Either::Left((ended, _)) => Some(ended),
            Either::Right(_) => None,
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    match ended {
        Ok(()) => {
            let client = if unread.load(Ordering::Acquire) { Client::StillSending } else { Client::Done };
            shared.lingering.linger(connection.into_parts().io.into_inner(), client, closed(stopping)).await;
        }
        // Time-outs, resets, malformed requests: the client's side, and no reason for alarm.
        Err(error) => tracing::debug!(%peer, error = &error as &dyn std::error::Error, "connection ended"),
    }
}

/// Bytes of a body that are given to hyper at once while many requests are being answered. It gathers 16 pieces, or as much as its buffer
/// takes, for each client, and holds them while that client stands still.
const CROWDED_BYTES: usize = 1 << 10;
/// A piece of a reply from this length on counts as being answered until the client has taken it: hyper takes all of a reply that its
/// buffer can hold, long before the client does. Of shorter pieces it takes 16.
const COUNTED_BYTES: usize = 4 << 10;

/// The body of a reply, until whose end its connection is not silent.
struct AnsweringBody {
    body: ReplyBody,
    /// What has come and was not given on.
    rest: Bytes,
    /// Why no more comes.
    failure: Option<ReplyError>,
    answering: Arc<Answering>,
}

impl AnsweringBody {
    fn new(body: ReplyBody, answering: Answering) -> Self {
        AnsweringBody { body, rest: Bytes::new(), failure: None, answering: Arc::new(answering) }
    }
}

impl Body for AnsweringBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let this = self.get_mut();
        if let Some(failure) = this.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) if bytes.len() < COUNTED_BYTES => this.rest = bytes,
                Some(Ok(Ok(bytes))) => this.rest = holding(bytes, this.answering.clone()),
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(failure)) => {
                    // A failure makes hyper drop the head and all bytes that it has gathered. It sends them when it has to wait, and a
                    // client can tell a reply that breaks off from a server that says nothing.
                    this.failure = Some(failure);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => return Poll::Ready(None),
            }
        }
        let bytes_max = if this.answering.is_crowded() { CROWDED_BYTES } else { usize::MAX };
        let given = this.rest.split_to(this.rest.len().min(bytes_max));
        Poll::Ready(Some(Ok(Frame::data(given))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        match hint.exact() {
            Some(length) => hint = SizeHint::with_exact(length + rest),
            None => hint.set_lower(hint.lower() + rest),
        }
        hint
    }
}

async fn closed(mut on_close: watch::Receiver<()>) {
    // Nothing is ever sent; the only change is that the sender goes.
    while on_close.changed().await.is_ok() {}
}

fn asks_to_continue(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// Runs the handler, and makes a reply of whatever becomes of it. `unread`: set when it is given before the body was read to its end;
/// `wanted`: while it is read.
async fn answer<S: Service + ?Sized>(
    request: Request<Incoming>,
    peer: Peer,
    shared: Arc<Shared<S>>,
    (unread, wanted): (Arc<AtomicBool>, BodyWanted),
) -> Response<ReplyBody> {
    let started = Instant::now();
    let request_id = RequestId::random(&*shared.random);
    let (parts, incoming) = request.into_parts();
    let continues_nothing = incoming.is_end_stream() && parts.headers.get(EXPECT).is_some_and(asks_to_continue);
    let (body, read_to_end) = RequestBody::new(incoming, wanted.clone());
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(request_id);
    let method = request.method().clone();
    // Without the query, which may hold a signature.
    let path = request.uri().path().to_owned();
    let service = shared.service.clone();
    // The call itself may panic too, before there is a future.
    let called = AssertUnwindSafe(async move { service.call(request, peer).await }).catch_unwind().await;
    let mut reply = called.unwrap_or_else(|_panic| {
        // The panic hook has printed the message and the place.
        tracing::error!(%request_id, %method, path, "a handler panicked");
        ErrorReply::internal().on(&path).render(&ReplyContext { method: &method, request_id, host_id: "" })
    });
    if !reply.headers().contains_key(REQUEST_ID_HEADER) {
        let id = HeaderValue::from_str(&request_id.to_string()).expect("hexadecimal digits fit a header");
        reply.headers_mut().insert(REQUEST_ID_HEADER, id);
    }
    // botocore announces even an empty body with `Expect: 100-continue`. HTTP lets us answer at once, but botocore then takes the
    // next reply on this connection for a part of this one, and waits for its time-out; on a new connection it does not.
    wanted.set(false);
    unread.store(!read_to_end.get(), Ordering::Release);
    if !read_to_end.get() || continues_nothing {
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let elapsed_ms = started.elapsed().as_millis() as u64;
    tracing::debug!(%request_id, %peer, %method, path, status = reply.status().as_u16(), elapsed_ms, "request");
    reply
}
