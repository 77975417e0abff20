//! The called side of one connection: every stream carries one call after another.
//!
//! Bounded: a connection has a fixed number of streams, a stream serves one call at a time, and large messages wait for their share
//! of the node's [`Budget`] before they are read.

use std::sync::Arc;

use garage_net::{Class, Connection, Incoming, MuxStream};
use garage_types::NodeId;
use garage_worker::spawn::Spawn;
use tokio::io::AsyncReadExt;

use crate::budget::{Budget, Share};
use crate::endpoint::{Caller, Role, Router, encode_error};
use crate::error::{ErrorCode, RpcError};
use crate::wire::{self, Encoded, MessageError, Received, RequestEnvelope};

/// What may be called, and how much memory calls may take.
#[derive(Clone)]
pub(crate) struct Service {
    /// For nodes only.
    pub node: Router,
    /// For the command line, and for nodes.
    pub client: Router,
    pub budget: Arc<Budget>,
    pub spawn: Arc<dyn Spawn>,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(service: Service, caller: Caller, mut incoming: Incoming, connection: Connection) {
    let share = service.budget.share(caller, connection.purpose.class);
    while let Some(stream) = incoming.next().await {
        let (task, service, connection) = (service.clone(), service.clone(), connection.clone());
        task.spawn.spawn("rpc-stream", Box::pin(serve_stream(service, caller, stream, connection, share.clone())));
    }
}

async fn serve_stream(service: Service, caller: Caller, mut stream: MuxStream, connection: Connection, share: Arc<Share>) {
    loop {
        match serve_call(&service, caller, &mut stream, &share).await {
            Ok(()) => {}
            Err(error @ (MessageError::TooLong { .. } | MessageError::Decode(_))) => {
                let peer: NodeId = caller.node;
                tracing::warn!(?peer, %error, "closing the connection of a peer that breaks the protocol");
                connection.close().await;
                return;
            }
            // The caller is done, has given up, or its connection broke: it has noticed itself.
            Err(MessageError::Ended | MessageError::Io(_) | MessageError::Stalled | MessageError::Encode(_)) => return,
        }
    }
}

async fn serve_call(service: &Service, caller: Caller, stream: &mut MuxStream, share: &Share) -> Result<(), MessageError> {
    let lengths = wire::receive_lengths(stream).await?;
    let mut memory = share.take(lengths.total()).await;
    let received = wire::receive_content(stream, lengths).await?;
    let envelope: RequestEnvelope = received.envelope()?;
    if service.class(&envelope) == Some(Class::Bulk) {
        memory.expect_long_reply().await;
    }
    let reply = tokio::select! {
        biased;
        reply = service.dispatch(&envelope, caller, &received) => reply,
        // Nothing is sent before the reply: any event on the stream means that nobody waits any more.
        _gone = stream.read_u8() => return Err(MessageError::Ended),
    };
    // Others wait for the room of the request: it must not depend on how soon the caller takes its reply, which only its own share does.
    drop(received);
    let _memory = memory.for_reply(reply.length());
    reply.send(stream).await
}

impl Service {
    /// What kind of call it is, whichever connection it came over: pings come over all of them.
    fn class(&self, envelope: &RequestEnvelope) -> Option<Class> {
        self.node.class(&envelope.endpoint).or_else(|| self.client.class(&envelope.endpoint))
    }

    async fn dispatch(&self, envelope: &RequestEnvelope, caller: Caller, received: &Received) -> Encoded {
        let endpoint = envelope.endpoint.as_str();
        if caller.role == Role::Node
            && let Some(reply) = self.node.call_remote(envelope, caller, received).await
        {
            return reply;
        }
        if let Some(reply) = self.client.call_remote(envelope, caller, received).await {
            return reply;
        }
        encode_error(if self.node.contains(endpoint) {
            RpcError::new(ErrorCode::Refused, format!("{endpoint} is for nodes only"))
        } else {
            RpcError::new(ErrorCode::UnknownEndpoint, format!("this node has no endpoint {endpoint}"))
        })
    }
}
