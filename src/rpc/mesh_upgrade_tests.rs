//! A newer minor version in the same cluster, by hand-made frames: what an older node does not know must not disturb it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use garage_net::establish::{self, Local, Purpose};
use garage_net::mux::Windows;
use garage_net::{Class, Multiplexed, MuxStream, NetworkKey, Transport};
use garage_types::NodeId;
use garage_types::config::ConsistencyMode;
use garage_types::random::SeededRandom;
use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::mesh_tests::{KEY, TIMEOUT, World, until_up};
use crate::wire::{self, Received, ReplyEnvelope};

/// A later request envelope.
#[derive(Serialize)]
struct NewerRequest {
    e: &'static str,
    trace: Vec<u8>,
    priority: u8,
}

fn envelope(endpoint: &'static str) -> NewerRequest {
    NewerRequest { e: endpoint, trace: vec![1, 2, 3], priority: 7 }
}

/// A later reply envelope.
#[derive(Serialize)]
struct NewerReply {
    took_us: u64,
}

#[derive(Serialize)]
struct NewerEcho {
    text: &'static str,
    language: &'static str,
    more: Vec<(u8, u8)>,
}

/// A later exchange of addresses, which also answers a ping.
#[derive(Serialize)]
struct NewerExchange {
    p: Vec<NewerPeer>,
    epoch: u64,
}

#[derive(Serialize)]
struct NewerPeer {
    i: NodeId,
    a: Vec<String>,
    zone: &'static str,
}

/// An exchange of addresses of a version that told neither its start nor its consistency mode.
#[derive(Serialize, Deserialize)]
struct OlderExchange {
    p: Vec<OlderPeer>,
    l: Option<u16>,
}

#[derive(Serialize, Deserialize)]
struct OlderPeer {
    i: NodeId,
    a: Vec<String>,
}

/// A connection made by a node of another version.
async fn other_node(world: &World, class: Class) -> Multiplexed {
    let random = Arc::new(SeededRandom::new(5));
    let local = Local { identity: World::identity(9), network: NetworkKey::from_bytes(KEY), random, timeout: TIMEOUT };
    let socket = world.network.connect("node-1:3901").await.unwrap();
    let purpose = Purpose { role: garage_net::Role::Node, class };
    let established = establish::connect(socket, &local, World::identity(1).id(), purpose).await.unwrap();
    established.multiplex(Windows::Grow)
}

async fn call(stream: &mut MuxStream, endpoint: &'static str, body: &impl Serialize) -> Received {
    wire::encode(&envelope(endpoint), body, Bytes::new()).unwrap().send(stream).await.unwrap();
    let lengths = wire::receive_lengths(stream).await.unwrap();
    wire::receive_content(stream, lengths).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_newer_node_are_served_and_what_is_unknown_in_them_ignored() {
    let world = World::new();
    let one = world.node(1, &[]).await;
    let _two = world.node(2, &[]).await;
    let Multiplexed { connection, incoming: _incoming, driver } = other_node(&world, Class::Metadata).await;
    tokio::spawn(driver);
    let mut stream = connection.open().await.unwrap();

    let body = NewerEcho { text: "later", language: "en", more: vec![(1, 2)] };
    let reply = call(&mut stream, "test.echo/1", &body).await;
    assert_eq!(rmp_serde::from_slice::<String>(reply.body()).unwrap(), "later from Node");

    // An endpoint that came later is refused with the code that says so, and the stream goes on.
    let refused = call(&mut stream, "test.echo/2", &body).await;
    let error = refused.envelope::<ReplyEnvelope>().unwrap().error.unwrap();
    assert_eq!(crate::error::RpcError::from(error).code, ErrorCode::UnknownEndpoint);

    let peer = NewerPeer { i: World::identity(2).id(), a: vec!["node-2:3901".into()], zone: "paris" };
    call(&mut stream, "mesh.peers/1", &NewerExchange { p: vec![peer], epoch: 4 }).await;
    until_up(&one, World::identity(2).id()).await;
}

#[tokio::test(start_paused = true)]
async fn replies_of_a_newer_node_are_understood_and_it_stays_up() {
    let world = World::new();
    let one = world.node(1, &[]).await;
    let id = World::identity(9).id();
    let Multiplexed { connection: _connection, mut incoming, driver } = other_node(&world, Class::Metadata).await;
    tokio::spawn(driver);
    tokio::spawn(async move {
        while let Some(mut stream) = incoming.next().await {
            tokio::spawn(async move {
                while let Ok(lengths) = wire::receive_lengths(&mut stream).await {
                    wire::receive_content(&mut stream, lengths).await.unwrap();
                    let body = NewerExchange { p: vec![], epoch: 4 };
                    let reply = wire::encode(&NewerReply { took_us: 3 }, &body, Bytes::new()).unwrap();
                    reply.send(&mut stream).await.unwrap();
                }
            });
        }
    });
    until_up(&one, id).await;
    tokio::time::timeout(Duration::from_secs(120), std::future::pending::<()>()).await.unwrap_err();
    assert!(one.is_up(id), "its pings were answered, with more than was asked");
}

#[tokio::test(start_paused = true)]
async fn an_older_node_that_tells_nothing_of_itself_weakens_nothing_and_is_not_taken_for_two() {
    let world = World::new();
    let one = world.node(1, &[]).await;
    let id = World::identity(9).id();
    for port in [3901, 3902] {
        let Multiplexed { connection, mut incoming, driver } = other_node(&world, Class::Metadata).await;
        tokio::spawn(driver);
        tokio::spawn(async move {
            while let Some(mut stream) = incoming.next().await {
                tokio::spawn(async move {
                    while let Ok(lengths) = wire::receive_lengths(&mut stream).await {
                        wire::receive_content(&mut stream, lengths).await.unwrap();
                        let body = OlderExchange { p: vec![], l: Some(port) };
                        let reply = wire::encode(&NewerReply { took_us: 3 }, &body, Bytes::new()).unwrap();
                        reply.send(&mut stream).await.unwrap();
                    }
                });
            }
        });
        until_up(&one, id).await;
        let mut stream = connection.open().await.unwrap();
        let reply = call(&mut stream, "mesh.peers/1", &OlderExchange { p: vec![], l: Some(port) }).await;
        let told: OlderExchange = rmp_serde::from_slice(reply.body()).unwrap();
        assert_eq!(told.p.last().map(|peer| peer.i), Some(one.node_id()), "it reads what it knows");
        tokio::time::timeout(Duration::from_secs(20), std::future::pending::<()>()).await.unwrap_err();
    }
    let known = one.peers().into_iter().find(|peer| peer.id == id).unwrap();
    assert_eq!((known.consistency, known.twin), (None, None));
    assert_eq!(one.consistency(), ConsistencyMode::Consistent);
}
