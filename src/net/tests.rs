//! Whole connections over pipes: what is refused, what is timed out, and what streams do to each other.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use garage_types::NodeId;
use garage_types::random::SeededRandom;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};

use crate::error::{HandshakeError, NetError};
use crate::establish::{Class, Established, Local, PROOF_TIMEOUT, Purpose, Role, VERSION_TAG, accept, connect};
use crate::identity::{Identity, NetworkKey};
use crate::mux::{Multiplexed, Windows};
use crate::transport::Socket;

const PURPOSE: Purpose = Purpose { role: Role::Node, class: Class::Bulk };
/// Bytes each side sends before the first frame: tag, two messages of the handshake, settings.
const CLIENT_HANDSHAKE_BYTES: u64 = 16 + 64 + 112 + 24;
const SERVER_HANDSHAKE_BYTES: u64 = 16 + 64 + 80 + 24;

fn local(seed: u64) -> Local {
    let random = Arc::new(SeededRandom::new(seed));
    Local {
        identity: Identity::generate(&*random),
        network: NetworkKey::from_bytes([3; 32]),
        random,
        timeout: Duration::from_secs(10),
    }
}

fn socket(stream: DuplexStream) -> Socket {
    Socket { stream: Box::new(stream), remote: "test".to_owned() }
}

async fn called(stream: DuplexStream, local: &Local) -> Result<Established, NetError> {
    accept(socket(stream), local, || ()).await?.establish(local).await
}

struct Pair {
    client: Result<Established, NetError>,
    server: Result<Established, NetError>,
}

async fn pair(client: &Local, server: &Local, expected: NodeId) -> Pair {
    let (a, b) = duplex(1024);
    let (client, server) = tokio::join!(connect(socket(a), client, expected, PURPOSE), called(b, server));
    Pair { client, server }
}

async fn multiplexed() -> (Multiplexed, Multiplexed) {
    let (client, server) = (local(1), local(2));
    let pair = pair(&client, &server, server.identity.id()).await;
    (pair.client.unwrap().multiplex(Windows::Grow), pair.server.unwrap().multiplex(Windows::Grow))
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is_and_what_for() {
    let (client, server) = (local(1), local(2));
    let Pair { client: caller, server: called } = pair(&client, &server, server.identity.id()).await;
    let (caller, called) = (caller.unwrap(), called.unwrap());
    assert_eq!((caller.peer, called.peer), (server.identity.id(), client.identity.id()));
    assert_eq!(called.purpose, PURPOSE);
}

#[tokio::test]
async fn another_network_key_is_refused_by_name() {
    let (client, mut server) = (local(1), local(2));
    server.network = NetworkKey::from_bytes([4; 32]);
    let pair = pair(&client, &server, server.identity.id()).await;
    assert!(matches!(pair.server.err(), Some(NetError::Handshake(HandshakeError::NetworkKey))));
    let error = pair.client.err().unwrap();
    assert!(matches!(error, NetError::Handshake(HandshakeError::Refused)) && error.to_string().contains("rpc_secret"), "{error}");
}

#[tokio::test]
async fn another_node_than_expected_is_refused() {
    let (client, server) = (local(1), local(2));
    let pair = pair(&client, &server, local(3).identity.id()).await;
    assert!(matches!(pair.server.err(), Some(NetError::Handshake(HandshakeError::ClientProof))));
    assert!(matches!(pair.client.err(), Some(NetError::Handshake(HandshakeError::Refused))));
}

#[tokio::test]
async fn a_node_does_not_connect_to_itself() {
    let node = local(1);
    let pair = pair(&node, &node, node.identity.id()).await;
    assert!(matches!(pair.client.err(), Some(NetError::Handshake(HandshakeError::Ourselves))));
}

#[tokio::test]
async fn another_version_is_refused_naming_both() {
    let (mut wire, ours) = duplex(1024);
    wire.write_all(b"garage-mesh/0777").await.unwrap();
    let error = called(ours, &local(1)).await.err().unwrap();
    assert!(error.to_string().contains("0777") && error.to_string().contains("0002"), "{error}");
}

#[tokio::test]
async fn other_protocols_are_refused_as_such() {
    let (mut wire, ours) = duplex(1024);
    wire.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(matches!(called(ours, &local(1)).await.err(), Some(NetError::NotGarage { .. })));

    let (mut wire, ours) = duplex(1024);
    wire.write_all(&VERSION_TAG).await.unwrap();
    wire.write_all(&[0x55; 300]).await.unwrap();
    let error = called(ours, &local(1)).await.err();
    assert!(matches!(error, Some(NetError::Handshake(HandshakeError::NetworkKey))));
}

/// Copies at most `limit` bytes and then ends the stream.
async fn forward(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, limit: u64) {
    let mut limited = from.take(limit);
    drop(tokio::io::copy(&mut limited, &mut to).await);
    drop(to.shutdown().await);
}

/// Runs a handshake through a middleman who ends each direction after so many bytes.
async fn cut_after(from_client: u64, from_server: u64) -> Pair {
    let (client, server) = (local(1), local(2));
    let ((a, client_wire), (b, server_wire)) = (duplex(1024), duplex(1024));
    let (client_read, client_write) = tokio::io::split(client_wire);
    let (server_read, server_write) = tokio::io::split(server_wire);
    let expected = server.identity.id();
    let (client, server, (), ()) = tokio::join!(
        connect(socket(a), &client, expected, PURPOSE),
        called(b, &server),
        forward(client_read, server_write, from_client),
        forward(server_read, client_write, from_server),
    );
    Pair { client, server }
}

#[tokio::test]
async fn a_handshake_cut_anywhere_is_an_error() {
    for limit in 0..CLIENT_HANDSHAKE_BYTES {
        let pair = cut_after(limit, u64::MAX).await;
        assert!(matches!(pair.server.err(), Some(NetError::Io { .. })), "cut after {limit} bytes of the client");
    }
    for limit in 0..SERVER_HANDSHAKE_BYTES {
        let pair = cut_after(u64::MAX, limit).await;
        let error = pair.client.err();
        let is_cut = matches!(&error, Some(NetError::Io { .. } | NetError::Handshake(HandshakeError::Refused)));
        assert!(is_cut, "cut after {limit} bytes of the server: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_open_connections_go_away_whoever_is_silent() {
    for sent in [0, 10, 16, 50] {
        let (mut wire, ours) = duplex(1024);
        wire.write_all(&[&VERSION_TAG[..], &[1; 64]].concat()[..sent]).await.unwrap();
        assert!(matches!(called(ours, &local(1)).await.err(), Some(NetError::HandshakeTimeout(_))), "{sent} bytes");
    }
    let (_wire, ours) = duplex(1024);
    let error = connect(socket(ours), &local(1), local(2).identity.id(), PURPOSE).await.err();
    assert!(matches!(error, Some(NetError::HandshakeTimeout(_))));
}

/// What a caller of `server` says before it has heard a hello.
async fn recorded_hello(server: &Local) -> Vec<u8> {
    let (wire, a) = duplex(1024);
    let (mut wire_read, mut wire_write) = tokio::io::split(wire);
    let client = local(1);
    let mut hello = vec![0; VERSION_TAG.len() + 64];
    let record = async {
        wire_write.write_all(&VERSION_TAG).await.unwrap();
        wire_read.read_exact(&mut hello).await.unwrap();
    };
    tokio::select! {
        _ended = connect(socket(a), &client, server.identity.id(), PURPOSE) => panic!("nobody has answered"),
        () = record => {}
    }
    hello
}

#[tokio::test(start_paused = true)]
async fn who_repeats_the_hello_of_another_has_proven_nothing_and_goes_away_as_soon() {
    let server = local(2);
    let hello = recorded_hello(&server).await;
    let (mut wire, ours) = duplex(1024);
    wire.write_all(&hello).await.unwrap();
    let greeted = Cell::new(false);
    let error = accept(socket(ours), &server, || greeted.set(true)).await.err();
    assert!(matches!(error, Some(NetError::HandshakeTimeout(PROOF_TIMEOUT))), "{error:?}");
    assert!(greeted.get());
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_end() {
    let (client, mut server) = multiplexed().await;
    tokio::spawn(client.driver);
    tokio::spawn(server.driver);
    let echo = tokio::spawn(async move {
        let mut stream = server.incoming.next().await.unwrap();
        let mut content = Vec::new();
        stream.read_to_end(&mut content).await.unwrap();
        stream.write_all(&content).await.unwrap();
        stream.shutdown().await.unwrap();
        server.connection
    });
    let mut stream = client.connection.open().await.unwrap();
    let content: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
    stream.write_all(&content).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert!(echoed == content);
    drop(echo.await.unwrap());
}

#[tokio::test]
async fn a_stream_nobody_reads_does_not_hold_up_another() {
    let (client, mut server) = multiplexed().await;
    tokio::spawn(client.driver);
    tokio::spawn(server.driver);
    let mut stuck = client.connection.open().await.unwrap();
    let writer = tokio::spawn(async move { stuck.write_all(&vec![0; 4 << 20]).await });
    let unread = server.incoming.next().await.unwrap();

    let mut ping = client.connection.open().await.unwrap();
    ping.write_all(b"ping").await.unwrap();
    ping.flush().await.unwrap();
    let mut answered = server.incoming.next().await.unwrap();
    let mut received = [0; 4];
    answered.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"ping");
    assert!(!writer.is_finished(), "the stuck stream was taken in whole, although nobody reads it");
    drop(unread);
}

#[tokio::test]
async fn a_dropped_stream_ends_at_the_other_side() {
    let (client, mut server) = multiplexed().await;
    tokio::spawn(client.driver);
    tokio::spawn(server.driver);
    let mut stream = client.connection.open().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    let mut other = server.incoming.next().await.unwrap();
    assert_eq!(other.read_u8().await.unwrap(), b'x');
    drop(stream);
    assert!(other.read_u8().await.is_err());
}

#[tokio::test]
async fn closing_one_side_ends_both_drivers_and_all_streams() {
    let (client, server) = multiplexed().await;
    let (client_driver, server_driver) = (tokio::spawn(client.driver), tokio::spawn(server.driver));
    let mut stream = client.connection.open().await.unwrap();
    stream.write_all(b"x").await.unwrap();
    server.connection.close().await;
    server_driver.await.unwrap().unwrap();
    client_driver.await.unwrap().unwrap();
    assert!(stream.read_u8().await.is_err());
    assert!(matches!(client.connection.open().await.err(), Some(NetError::Closed)));
}

/// Bytes over a wire that takes 50 ms each way; nothing is answered before all of it has been sent.
async fn delayed(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let (sender, mut arriving) = tokio::sync::mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let take = async move {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            sender.send((tokio::time::Instant::now() + Duration::from_millis(50), buffer[..count].to_vec())).unwrap();
        }
    };
    let give = async move {
        while let Some((due, bytes)) = arriving.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&bytes).await.unwrap();
        }
    };
    tokio::join!(take, give);
}

#[tokio::test(start_paused = true)]
async fn what_fits_the_windows_of_all_lanes_arrives_without_a_round_trip() {
    for (class, length) in [(Class::Metadata, 120 << 10), (Class::Bulk, (1 << 20) + 400)] {
        let (near, a) = duplex(1 << 20);
        let (b, far) = duplex(1 << 20);
        let ((a_read, a_write), (b_read, b_write)) = (tokio::io::split(a), tokio::io::split(b));
        tokio::spawn(delayed(a_read, b_write));
        tokio::spawn(delayed(b_read, a_write));
        let (client, server) = (local(1), local(2));
        let (near, far) = tokio::join!(
            connect(socket(near), &client, server.identity.id(), Purpose { role: Role::Node, class }),
            called(far, &server)
        );
        let (near, mut far) = (near.unwrap().multiplex(Windows::Fixed), far.unwrap().multiplex(Windows::Fixed));
        tokio::spawn(near.driver);
        tokio::spawn(far.driver);
        let mut stream = near.connection.open().await.unwrap();
        let mut other = None;
        // Lanes that were used before have less of their windows left, and a message begins anywhere in a chunk.
        for round in 0..40 {
            let content: Vec<u8> = (0..length + round).map(|at| (at / 7) as u8).collect();
            let began = tokio::time::Instant::now();
            let write = async {
                stream.write_all(&content).await.unwrap();
                stream.flush().await.unwrap();
            };
            let read = async {
                if other.is_none() {
                    other = far.incoming.next().await;
                }
                let mut received = vec![0; content.len()];
                other.as_mut().unwrap().read_exact(&mut received).await.unwrap();
                received
            };
            let ((), received) = tokio::join!(write, read);
            assert!(received == content, "round {round} of {class:?}");
            assert_eq!(began.elapsed().as_millis(), 50, "round {round} of {class:?}");
            // What was given back has reached the sender before the next message.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
