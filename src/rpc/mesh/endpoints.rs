//! What meshes ask each other: are you there, and whom do you know.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_net::Class;
use serde::{Deserialize, Serialize};

use super::state::Shared;
use crate::endpoint::{Caller, Handler, Message, Request};
use crate::error::RpcError;
use crate::peers::PeerAddresses;

/// "Are you there?"
#[derive(Serialize, Deserialize)]
pub(super) struct Ping {}

#[derive(Serialize, Deserialize)]
pub(super) struct Pong {}

impl Request for Ping {
    const ENDPOINT: &'static str = "mesh.ping/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Pong;
}

pub(super) struct Answerer;

impl Handler<Ping> for Answerer {
    fn handle(&self, _caller: Caller, _request: Message<Ping>) -> BoxFuture<'_, Result<Message<Pong>, RpcError>> {
        async { Ok(Pong {}.into()) }.boxed()
    }
}

/// The addresses one side knows, answered by those of the other.
#[derive(Serialize, Deserialize)]
pub(super) struct Exchange {
    #[serde(rename = "p", default)]
    pub peers: Vec<PeerAddresses>,
    /// Where the sender listens: together with the address its connections come from, a place where it may be reached.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Request for Exchange {
    const ENDPOINT: &'static str = "mesh.peers/1";
    const CLASS: Class = Class::Metadata;
    type Reply = Exchange;
}

pub(super) struct Exchanger(pub Arc<Shared>);

impl Handler<Exchange> for Exchanger {
    fn handle(&self, _caller: Caller, request: Message<Exchange>) -> BoxFuture<'_, Result<Message<Exchange>, RpcError>> {
        self.0.learn(&request.body.peers);
        async { Ok(self.0.exchange().into()) }.boxed()
    }
}
