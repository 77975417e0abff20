//! What meshes ask each other: are you there, and whom do you know.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_net::Class;
use garage_types::config::ConsistencyMode;
use serde::{Deserialize, Serialize};

use super::state::Shared;
use crate::endpoint::{Caller, Handler, Message, Request};
use crate::error::RpcError;
use crate::peers::{Announced, PeerAddresses};

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
    /// Drawn at each start of the sender: two processes with one key differ in it.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u64>,
    /// The sender's consistency mode, by name.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl Exchange {
    pub(super) fn announced(&self) -> Announced {
        Announced { instance: self.instance, consistency: self.mode.as_deref().and_then(ConsistencyMode::named) }
    }
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
