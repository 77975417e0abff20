//! A client that speaks S3 with the machines: real requests, signed, over connections of the simulated network.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use garage_http::sigv4::signer::Signer;
use garage_types::{Clock, Random, Timestamp};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};

use crate::cluster::frontend;
use crate::cluster::machine::Machine;
use crate::cluster::network::Network;

/// How long a client waits before it hangs up.
const PATIENCE: Duration = Duration::from_secs(45);
/// What a client writes at once.
const WRITE_BYTES: usize = 100;

pub struct Client {
    pub network: Network,
    /// Its place on the network, beside those of the machines.
    pub place: usize,
    pub signer: Signer,
}

/// A request, before it is signed.
pub struct Request {
    pub method: Method,
    /// With the bucket, encoded.
    pub path: String,
    /// Encoded; may be empty.
    pub query: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// After how many bytes of its body the client hangs up; `None`: it does not.
    pub cut: Option<usize>,
}

impl Request {
    pub fn new(method: Method, path: String) -> Self {
        Request { method, path, query: String::new(), headers: Vec::new(), body: Bytes::new(), cut: None }
    }

    #[must_use]
    pub fn query(self, query: String) -> Self {
        Request { query, ..self }
    }

    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    #[must_use]
    pub fn body(self, body: Bytes) -> Self {
        Request { body, ..self }
    }

    #[must_use]
    pub fn cut(self, cut: Option<usize>) -> Self {
        Request { cut, ..self }
    }
}

/// What came back.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether all of the body came.
    pub whole: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or("(not text)")
    }

    /// The content of the first element of this name in the document.
    pub fn element(&self, name: &str) -> Option<&str> {
        elements(self.text(), name).next()
    }

    /// Status and code, for the trace.
    pub fn shown(&self) -> String {
        match self.element("Code") {
            Some(code) => format!("{} {code}", self.status.as_u16()),
            None => format!("{}{}", self.status.as_u16(), if self.whole { "" } else { ", cut off" }),
        }
    }
}

/// The contents of all elements of a name; none of them may contain another of the same name.
pub fn elements<'d>(document: &'d str, name: &str) -> impl Iterator<Item = &'d str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let pieces: Vec<&str> = document.split(open.as_str()).skip(1).collect();
    pieces.into_iter().filter_map(move |piece| piece.split(close.as_str()).next())
}

/// Why there is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// Nobody listens: nothing was sent.
    Refused,
    /// The connection ended, or the client's patience: nobody knows how far it came.
    Broken,
}

/// A body that is written in pieces, and may break off.
struct Sending {
    pieces: VecDeque<Bytes>,
    left: u64,
    breaks: bool,
}

impl Sending {
    fn new(body: &Bytes, cut: Option<usize>) -> Self {
        let sent = body.slice(..cut.unwrap_or(body.len()));
        let pieces = (0..sent.len()).step_by(WRITE_BYTES).map(|at| sent.slice(at..sent.len().min(at + WRITE_BYTES))).collect();
        Sending { pieces, left: body.len() as u64, breaks: cut.is_some() }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let body = self.get_mut();
        Poll::Ready(match body.pieces.pop_front() {
            Some(piece) => {
                body.left -= piece.len() as u64;
                Some(Ok(Frame::data(piece)))
            }
            None if body.breaks => Some(Err(io::ErrorKind::BrokenPipe.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && !self.breaks
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Client {
    /// Sends one request on a connection of its own, and reads the reply.
    pub async fn send(&self, machine: &Machine, request: Request, random: &dyn Random) -> Result<Reply, NoReply> {
        // Clocks of clients are right enough; how wrong they may be is tested elsewhere.
        let now = machine.clock.now();
        let request = self.signed(request, now, random);
        let address = frontend::address(machine.number);
        let socket = self.network.of(self.place).connect(&address).await.map_err(|_refused| NoReply::Refused)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket.stream)).await.map_err(|_ended| NoReply::Broken)?;
        let connection = tokio::spawn(connection);
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|_ended| NoReply::Broken)?;
            let (head, mut incoming) = response.into_parts();
            let (mut body, mut whole) = (Vec::new(), true);
            while let Some(frame) = incoming.frame().await {
                match frame {
                    Ok(frame) => body.extend_from_slice(frame.data_ref().map_or(&[][..], |bytes| bytes)),
                    Err(_cut) => {
                        whole = false;
                        break;
                    }
                }
            }
            Ok(Reply { status: head.status, headers: head.headers, body: body.into(), whole })
        };
        let result = tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(NoReply::Broken));
        connection.abort();
        // It has hung up when this is over.
        drop(connection.await);
        result
    }

    fn signed(&self, request: Request, now: Timestamp, random: &dyn Random) -> hyper::Request<Sending> {
        let Request { method, path, query, headers, body, cut } = request;
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let mut builder = hyper::Request::builder().method(method).uri(uri).header("host", "sim");
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let (mut parts, ()) = builder.body(()).unwrap().into_parts();
        let content = match random.below(2) {
            0 => "UNSIGNED-PAYLOAD".to_owned(),
            _ => hex::encode(Sha256::digest(&body)),
        };
        self.signer.sign(&mut parts, &content, now);
        hyper::Request::from_parts(parts, Sending::new(&body, cut))
    }
}
