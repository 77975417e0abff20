//! What can be called on a node: one request type, one name, one reply type, one handler.
//!
//! A [`Router`] maps names to handlers. Calls from other nodes arrive as bytes and are decoded here; calls to ourselves reach the
//! handler as values. A handler that panics answers `Internal` and takes nothing else down.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_types::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use garage_net::Class;

use crate::error::{ErrorCode, RpcError};
use crate::wire::{self, Encoded, Received, ReplyEnvelope, RequestEnvelope};

/// A request and, with it, its endpoint. New fields need a serde default, so that older nodes can still be understood.
pub trait Request: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Short, explicit, with a version: `table.write/1`.
    const ENDPOINT: &'static str;
    /// Which connection carries it.
    const CLASS: Class;
    /// From how many bytes on a reply comes compressed; `None`: never, as suits what is short or has no repetition.
    const REPLY_PACKED_FROM: Option<u32> = None;
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// A request or reply with attached bytes (a block), which are never encoded and rarely copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<T> {
    pub body: T,
    /// Empty for most.
    pub data: Bytes,
}

impl<T> Message<T> {
    pub fn new(body: T) -> Self {
        Message { body, data: Bytes::new() }
    }

    pub fn with_data(body: T, data: Bytes) -> Self {
        Message { body, data }
    }
}

impl<T> From<T> for Message<T> {
    fn from(body: T) -> Self {
        Message::new(body)
    }
}

/// As what somebody calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Another member of the cluster.
    Node,
    /// The command line, from anywhere.
    Client,
    /// This node itself.
    Local,
}

/// Who calls; authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub node: NodeId,
    pub role: Role,
}

/// Answers one kind of request.
///
/// The future is dropped at its next `.await` when the caller gives up or loses its connection: what must be finished once begun
/// is handed to a task or a queue.
pub trait Handler<R: Request>: Send + Sync + 'static {
    fn handle(&self, caller: Caller, request: Message<R>) -> BoxFuture<'_, Result<Message<R::Reply>, RpcError>>;
}

/// The endpoints of a node. Clones are the same router.
#[derive(Clone, Default)]
pub struct Router(Arc<HashMap<&'static str, Endpoint>>);

/// Collects endpoints.
#[derive(Default)]
pub struct RouterBuilder(HashMap<&'static str, Endpoint>);

struct Endpoint {
    class: Class,
    /// For calls that arrive as bytes.
    remote: Arc<dyn Remote>,
    /// For calls from ourselves: an `Arc<dyn Handler<R>>`.
    local: Box<dyn Any + Send + Sync>,
}

impl Router {
    pub fn builder() -> RouterBuilder {
        RouterBuilder::default()
    }

    pub fn contains(&self, endpoint: &str) -> bool {
        self.0.contains_key(endpoint)
    }

    /// Which connections are meant to carry this call. `None`: no such endpoint here.
    pub(crate) fn class(&self, endpoint: &str) -> Option<Class> {
        Some(self.0.get(endpoint)?.class)
    }

    /// Decodes, handles and encodes. `None`: no such endpoint here.
    pub(crate) async fn call_remote(&self, envelope: &RequestEnvelope, caller: Caller, message: &Received) -> Option<Encoded> {
        let remote = self.0.get(envelope.endpoint.as_str())?.remote.clone();
        let reply = survive_panic(&envelope.endpoint, remote.call(caller, message, envelope.packed_from)).await;
        Some(reply.unwrap_or_else(encode_error))
    }

    /// Hands the request to the handler as it is. `None`: no such endpoint here.
    pub(crate) async fn call_local<R: Request>(&self, caller: Caller, request: Message<R>) -> Option<LocalReply<R>> {
        let handler = self.0.get(R::ENDPOINT)?.local.downcast_ref::<Arc<dyn Handler<R>>>();
        let handler = handler.expect("an endpoint's name belongs to one request type");
        Some(survive_panic(R::ENDPOINT, handler.handle(caller, request)).await)
    }
}

type LocalReply<R> = Result<Message<<R as Request>::Reply>, RpcError>;

impl RouterBuilder {
    /// Adds an endpoint.
    ///
    /// # Panics
    /// When the name is taken: two requests must never share one.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "nobody takes a builder's `add` for arithmetic")]
    pub fn add<R: Request>(mut self, handler: Arc<dyn Handler<R>>) -> Self {
        let endpoint = Endpoint { class: R::CLASS, remote: Arc::new(Typed(handler.clone())), local: Box::new(handler) };
        let previous = self.0.insert(R::ENDPOINT, endpoint);
        assert!(previous.is_none(), "endpoint {} was added twice", R::ENDPOINT);
        self
    }

    /// Adds all endpoints of another router.
    ///
    /// # Panics
    /// As [`RouterBuilder::add`].
    #[must_use]
    pub(crate) fn with(mut self, router: &Router) -> Self {
        for (name, Endpoint { class, remote, local: _ }) in router.0.iter() {
            let endpoint = Endpoint { class: *class, remote: remote.clone(), local: remote.local() };
            let previous = self.0.insert(name, endpoint);
            assert!(previous.is_none(), "endpoint {name} was added twice");
        }
        self
    }

    pub fn build(self) -> Router {
        Router(Arc::new(self.0))
    }
}

/// A handler whose types are hidden, so that one table holds them all.
trait Remote: Send + Sync {
    fn call<'a>(
        &'a self,
        caller: Caller,
        message: &'a Received,
        packed_from: Option<u32>,
    ) -> BoxFuture<'a, Result<Encoded, RpcError>>;
    fn local(&self) -> Box<dyn Any + Send + Sync>;
}

struct Typed<R: Request>(Arc<dyn Handler<R>>);

impl<R: Request> Remote for Typed<R> {
    fn call<'a>(
        &'a self,
        caller: Caller,
        message: &'a Received,
        packed_from: Option<u32>,
    ) -> BoxFuture<'a, Result<Encoded, RpcError>> {
        async move {
            let body = rmp_serde::from_slice::<R>(message.body()).map_err(|error| {
                RpcError::new(ErrorCode::BadRequest, format!("malformed request to {}: {error}", R::ENDPOINT))
            })?;
            let reply = self.0.handle(caller, Message { body, data: message.data.clone() }).await?;
            wire::encode_reply(&reply.body, reply.data, packed_from)
                .map_err(|error| RpcError::new(ErrorCode::Internal, format!("the reply of {}: {error}", R::ENDPOINT)))
        }
        .boxed()
    }

    fn local(&self) -> Box<dyn Any + Send + Sync> {
        Box::new(self.0.clone())
    }
}

pub(crate) fn encode_error(error: RpcError) -> Encoded {
    let mut error = error;
    // A message that quotes somebody's huge input must not make the reply unsendable.
    error.message = error.message.chars().take(ERROR_MESSAGE_CHARS_MAX).collect();
    let envelope = ReplyEnvelope { error: Some(error.into()), unpacked: None };
    wire::encode(&envelope, &(), Bytes::new()).expect("a short error can be encoded")
}

const ERROR_MESSAGE_CHARS_MAX: usize = 4096;

async fn survive_panic<T>(endpoint: &str, work: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let reason = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(endpoint, reason = reason.unwrap_or("(no text)"), "a handler panicked");
        Err(RpcError::new(ErrorCode::Internal, format!("the handler of {endpoint} failed")))
    })
}
