//! From a raw socket to an authenticated, encrypted stream.
//!
//! In order: the version tag (both sides send theirs at once), the Secret Handshake, and one sealed message each that settles
//! role, class and cipher. All of it under one time-out, so a half-open connection goes away by itself.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use garage_types::{NodeId, Random};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cipher::{Cipher, Direction};
use crate::error::{HandshakeError, NetError};
use crate::handshake::{Client, Server, ServerProof, Session};
use crate::identity::{Identity, NetworkKey};
use crate::secure_stream::SecureStream;
use crate::transport::{ByteStream, Socket};

/// What every garage node says first. The digits change when nodes can no longer talk to older ones.
pub const VERSION_TAG: [u8; 16] = *b"garage-mesh/0002";
/// How long somebody who connects may take to prove that it belongs to the cluster: three messages, the last of them an answer to ours.
pub const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
/// The part of the tag that all versions share.
const VERSION_MAGIC_BYTES: usize = 12;

/// As what the caller comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A member of the cluster, known by its key.
    Node,
    /// The command line, with a throw-away key: may call, is never called.
    Client,
}

/// What a connection carries. The two kinds never share a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Small calls somebody waits for.
    Metadata,
    /// Blocks, and anything else that takes a while.
    Bulk,
}

/// What the caller wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purpose {
    pub role: Role,
    pub class: Class,
}

/// What every handshake of this node needs.
#[derive(Clone)]
pub struct Local {
    pub identity: Identity,
    pub network: NetworkKey,
    pub random: Arc<dyn Random>,
    /// For everything from the version tag to the first frame; on the called side, for what follows the caller's proof.
    pub timeout: Duration,
}

/// An authenticated connection, not yet multiplexed.
pub struct Established {
    pub peer: NodeId,
    pub purpose: Purpose,
    pub side: Side,
    /// The other side's address as text.
    pub remote: String,
    pub stream: SecureStream,
}

/// Who made the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Caller,
    Called,
}

/// Makes `socket` an authenticated connection to the node `expected`.
///
/// # Errors
/// [`NetError`]: the other side is another version, another cluster, another node, or too slow.
pub async fn connect(socket: Socket, local: &Local, expected: NodeId, purpose: Purpose) -> Result<Established, NetError> {
    let work = connect_untimed(socket, local, expected, purpose);
    tokio::time::timeout(local.timeout, work).await.map_err(|_elapsed| NetError::HandshakeTimeout(local.timeout))?
}

/// Somebody who opened a connection to us and has proven that it knows the network key.
pub struct Proven {
    stream: Box<dyn ByteStream>,
    remote: String,
    session: Session,
    proof: ServerProof,
}

/// Lets whoever opened `socket` to us prove that it knows the network key, for which it has [`PROOF_TIMEOUT`] at most. `greeted` is called
/// once its hello, made with that key, has come. A hello proves nothing: whoever has seen one can repeat it.
///
/// # Errors
/// [`NetError`]: as [`connect`].
pub async fn accept(socket: Socket, local: &Local, greeted: impl FnOnce()) -> Result<Proven, NetError> {
    let timeout = local.timeout.min(PROOF_TIMEOUT);
    let work = accept_untimed(socket, local, greeted);
    tokio::time::timeout(timeout, work).await.map_err(|_elapsed| NetError::HandshakeTimeout(timeout))?
}

impl Proven {
    /// Proves ourselves in turn, and settles what the connection is for.
    ///
    /// # Errors
    /// [`NetError`]: as [`connect`].
    pub async fn establish(self, local: &Local) -> Result<Established, NetError> {
        let work = self.establish_untimed();
        tokio::time::timeout(local.timeout, work).await.map_err(|_elapsed| NetError::HandshakeTimeout(local.timeout))?
    }

    async fn establish_untimed(self) -> Result<Established, NetError> {
        let Proven { mut stream, remote, session, proof } = self;
        // The purpose is the caller's to say; ours only fills its place.
        let ours = Settings { purpose: Purpose { role: Role::Node, class: Class::Metadata }, cipher: Cipher::preferred() };
        send(&mut stream, &[&proof[..], &ours.seal(&session)].concat()).await?;
        let theirs = receive_settings(&mut stream, &session).await?;
        let stream = SecureStream::new(stream, &session, ours.cipher.agreed(theirs.cipher));
        Ok(Established { peer: session.peer, purpose: theirs.purpose, side: Side::Called, remote, stream })
    }
}

async fn connect_untimed(socket: Socket, local: &Local, expected: NodeId, purpose: Purpose) -> Result<Established, NetError> {
    if expected == local.identity.id() {
        return Err(HandshakeError::Ourselves.into());
    }
    let Socket { mut stream, remote } = socket;
    let client = Client::new(&local.network, &local.identity, expected, &*local.random);
    // Nothing is said to a stranger of another version but our own version.
    exchange_version(&mut stream).await?;
    send(&mut stream, &client.hello()).await.map_err(refused)?;
    let (client, proof) = client.receive_hello(&receive(&mut stream).await.map_err(refused)?)?;
    send(&mut stream, &proof).await.map_err(refused)?;
    let session = client.receive_proof(&receive(&mut stream).await.map_err(refused)?)?;

    let theirs = receive_settings(&mut stream, &session).await?;
    let ours = Settings { purpose, cipher: Cipher::preferred() };
    send(&mut stream, &ours.seal(&session)).await?;
    let stream = SecureStream::new(stream, &session, ours.cipher.agreed(theirs.cipher));
    Ok(Established { peer: session.peer, purpose, side: Side::Caller, remote, stream })
}

/// Whoever speaks our version, and closes the connection on our hello or proof, does not accept it.
fn refused(error: NetError) -> NetError {
    match error {
        NetError::Io { source, .. } if is_closed(source.kind()) => HandshakeError::Refused.into(),
        other => other,
    }
}

fn is_closed(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}

async fn accept_untimed(socket: Socket, local: &Local, greeted: impl FnOnce()) -> Result<Proven, NetError> {
    let Socket { mut stream, remote } = socket;
    exchange_version(&mut stream).await?;
    let server = Server::new(&local.network, &local.identity, &*local.random);
    let (server, hello) = server.receive_hello(&receive(&mut stream).await?)?;
    greeted();
    send(&mut stream, &hello).await?;
    // Made with the key in our hello, which is new in every handshake.
    let (session, proof) = server.receive_proof(&receive(&mut stream).await?)?;
    Ok(Proven { stream, remote, session, proof })
}

async fn exchange_version(stream: &mut Box<dyn ByteStream>) -> Result<(), NetError> {
    send(stream, &VERSION_TAG).await?;
    let theirs: [u8; VERSION_TAG.len()] = receive(stream).await?;
    check_version(&theirs)
}

fn check_version(theirs: &[u8; VERSION_TAG.len()]) -> Result<(), NetError> {
    let (magic, version) = VERSION_TAG.split_at(VERSION_MAGIC_BYTES);
    match theirs.split_at(VERSION_MAGIC_BYTES) {
        (other, _) if other != magic => Err(NetError::NotGarage { found: theirs.to_vec() }),
        (_, other) if other != version => Err(NetError::Version { ours: version.to_vec(), theirs: other.to_vec() }),
        (_, _) => Ok(()),
    }
}

async fn send(stream: &mut Box<dyn ByteStream>, message: &[u8]) -> Result<(), NetError> {
    stream.write_all(message).await.map_err(NetError::io("send a handshake message"))?;
    stream.flush().await.map_err(NetError::io("send a handshake message"))
}

async fn receive<const N: usize>(stream: &mut Box<dyn ByteStream>) -> Result<[u8; N], NetError> {
    let mut message = [0; N];
    stream.read_exact(&mut message).await.map_err(NetError::io("receive a handshake message"))?;
    Ok(message)
}

/// The first message under the session's keys: `[role, class, cipher, 0, 0, 0, 0, 0]`; later versions may use the zeros.
struct Settings {
    purpose: Purpose,
    cipher: Cipher,
}

const SETTINGS_BYTES: usize = 8;
const SEALED_SETTINGS_BYTES: usize = SETTINGS_BYTES + Cipher::ChaCha20Poly1305.overhead();

impl Settings {
    fn seal(&self, session: &Session) -> Vec<u8> {
        let role = match self.purpose.role {
            Role::Node => 1,
            Role::Client => 2,
        };
        let class = match self.purpose.class {
            Class::Metadata => 1,
            Class::Bulk => 2,
        };
        let cipher = match self.cipher {
            Cipher::ChaCha20Poly1305 => 1,
            Cipher::Aegis128L => 2,
        };
        Direction::for_settings(&session.send).seal(&[role, class, cipher, 0, 0, 0, 0, 0], b"")
    }

    fn parse(bytes: &[u8]) -> Result<Self, NetError> {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let role = match byte(0) {
            1 => Role::Node,
            2 => Role::Client,
            value => return Err(NetError::Purpose { what: "role", value }),
        };
        let class = match byte(1) {
            1 => Class::Metadata,
            2 => Class::Bulk,
            value => return Err(NetError::Purpose { what: "class", value }),
        };
        let cipher = match byte(2) {
            2 => Cipher::Aegis128L,
            // A cipher of a later version: the one that everybody has is used instead.
            _ => Cipher::ChaCha20Poly1305,
        };
        Ok(Settings { purpose: Purpose { role, class }, cipher })
    }
}

async fn receive_settings(stream: &mut Box<dyn ByteStream>, session: &Session) -> Result<Settings, NetError> {
    let sealed: [u8; SEALED_SETTINGS_BYTES] = receive(stream).await?;
    let opened = Direction::for_settings(&session.receive).open(&sealed, b"");
    let opened = opened.map_err(|forged| NetError::Io { action: "open the first message", source: forged.into() })?;
    Settings::parse(&opened)
}
