//! The Secret Handshake: both sides prove who they are, and that they know the network key, before either learns the other.
//!
//! Pure: each step takes the other side's message and returns ours; `establish` moves the bytes. The caller must know the
//! node id of the side it calls, so the network key alone is not enough to connect. An eavesdropper or a man in the middle
//! without the network key learns neither id.
//! Source: Dominic Tarr, "Designing a Secret Handshake: Authenticated Key Exchange as a Capability System" (2015).
//!
//! Notation of the paper in the comments: capital letters are long-term keys (A caller, B called), small ones ephemeral, N the
//! network key, `x·y` a Curve25519 agreement.

use garage_types::{NodeId, Random};
use libsodium_rs::crypto_auth;
use libsodium_rs::crypto_hash::sha256;
use libsodium_rs::crypto_scalarmult::curve25519::{scalarmult, scalarmult_base};
use libsodium_rs::crypto_secretbox;
use libsodium_rs::crypto_sign::{ed25519_pk_to_curve25519, verify_detached};

use crate::error::HandshakeError;
use crate::identity::{Identity, NetworkKey, SecretBytes, public_key};

/// Message 1 and 2: HMAC of an ephemeral public key, and that key.
pub type Hello = [u8; 64];
/// Message 3: the caller's boxed proof.
pub type ClientProof = [u8; 112];
/// Message 4: the called side's boxed proof.
pub type ServerProof = [u8; 80];

/// What both sides hold afterwards: the authenticated other side and one key per direction.
pub struct Session {
    pub peer: NodeId,
    pub(crate) send: SecretBytes,
    pub(crate) receive: SecretBytes,
}

/// An ephemeral key pair and the network key: the state of either side before the other's hello has arrived.
struct Ephemeral {
    network: NetworkKey,
    secret: SecretBytes,
    public: [u8; 32],
}

impl Ephemeral {
    fn new(network: &NetworkKey, random: &dyn Random) -> Self {
        let secret = SecretBytes(random.bytes32());
        let public = scalarmult_base(&secret.0).expect("a clamped scalar is never zero");
        Ephemeral { network: network.clone(), secret, public }
    }

    fn hello(&self) -> Hello {
        let key = crypto_auth::Key::from(*self.network.as_bytes());
        let tag = crypto_auth::auth(&self.public, &key).expect("authenticating in memory cannot fail");
        joined(&[tag.as_bytes(), &self.public])
    }

    /// The other side's ephemeral public key, and the agreement a·b.
    fn receive(&self, hello: &Hello) -> Result<([u8; 32], SecretBytes), HandshakeError> {
        let (tag, theirs) = hello.split_at(32);
        let key = crypto_auth::Key::from(*self.network.as_bytes());
        let tag = crypto_auth::Tag::from_slice(tag).expect("split at the length of a tag");
        if !crypto_auth::verify(&tag, theirs, &key) {
            return Err(HandshakeError::NetworkKey);
        }
        let theirs: [u8; 32] = theirs.try_into().expect("the second half of 64 bytes");
        Ok((theirs, agree(&self.secret, &theirs)?))
    }
}

/// The caller, its hello ready.
pub struct Client<'a> {
    identity: &'a Identity,
    server: NodeId,
    ephemeral: Ephemeral,
}

impl<'a> Client<'a> {
    pub fn new(network: &NetworkKey, identity: &'a Identity, server: NodeId, random: &dyn Random) -> Self {
        Client { identity, server, ephemeral: Ephemeral::new(network, random) }
    }

    /// Message 1.
    pub fn hello(&self) -> Hello {
        self.ephemeral.hello()
    }

    /// Takes message 2; returns message 3.
    ///
    /// # Errors
    /// [`HandshakeError::NetworkKey`], [`HandshakeError::WeakKey`].
    pub fn receive_hello(self, hello: &Hello) -> Result<(ClientWaiting<'a>, ClientProof), HandshakeError> {
        let (their_ephemeral, ab) = self.ephemeral.receive(hello)?;
        let server_curve = curve_key(&self.server)?;
        let a_cap_b = agree(&self.ephemeral.secret, &server_curve)?; // a·B
        let network = self.ephemeral.network.as_bytes();
        let ab_hash = sha256::hash(&ab.0);
        let signature = self.identity.sign(&joined::<96>(&[network, self.server.as_bytes(), &ab_hash]));
        let box_key = hash_secrets(network, &[&ab, &a_cap_b]);
        let proof = seal(&box_key, &joined::<96>(&[&signature, self.identity.id().as_bytes()]));
        let cap_a_b = agree(&self.identity.curve_secret(), &their_ephemeral)?; // A·b
        let shared = hash_secrets(network, &[&ab, &a_cap_b, &cap_a_b]);
        Ok((ClientWaiting { client: self, signature, ab_hash, shared }, proof))
    }
}

/// The caller, waiting for the other side's proof.
pub struct ClientWaiting<'a> {
    client: Client<'a>,
    signature: [u8; 64],
    ab_hash: [u8; 32],
    shared: SecretBytes,
}

impl ClientWaiting<'_> {
    /// Takes message 4.
    ///
    /// # Errors
    /// [`HandshakeError::ServerProof`].
    pub fn receive_proof(self, proof: &ServerProof) -> Result<Session, HandshakeError> {
        let server = self.client.server;
        let refused = HandshakeError::ServerProof { expected: server };
        let signature: [u8; 64] = open(&self.shared, proof).ok_or(refused)?;
        let us = self.client.identity.id();
        let signed = server_statement(&self.client.ephemeral.network, &self.signature, &us, &self.ab_hash);
        if !verify_detached(&signature, &signed, &public_key(&server)) {
            return Err(refused);
        }
        let send = direction_key(&self.shared, &server);
        let receive = direction_key(&self.shared, &us);
        Ok(Session { peer: server, send, receive })
    }
}

/// The called side, before anything has arrived.
pub struct Server<'a> {
    identity: &'a Identity,
    ephemeral: Ephemeral,
}

impl<'a> Server<'a> {
    pub fn new(network: &NetworkKey, identity: &'a Identity, random: &dyn Random) -> Self {
        Server { identity, ephemeral: Ephemeral::new(network, random) }
    }

    /// Takes message 1; returns message 2.
    ///
    /// # Errors
    /// [`HandshakeError::NetworkKey`], [`HandshakeError::WeakKey`].
    pub fn receive_hello(self, hello: &Hello) -> Result<(ServerWaiting<'a>, Hello), HandshakeError> {
        let (their_ephemeral, ab) = self.ephemeral.receive(hello)?;
        let reply = self.ephemeral.hello();
        Ok((ServerWaiting { server: self, their_ephemeral, ab }, reply))
    }
}

/// The called side, waiting for the caller's proof.
pub struct ServerWaiting<'a> {
    server: Server<'a>,
    their_ephemeral: [u8; 32],
    ab: SecretBytes,
}

impl ServerWaiting<'_> {
    /// Takes message 3; returns message 4 and the session.
    ///
    /// # Errors
    /// [`HandshakeError::ClientProof`], [`HandshakeError::WeakKey`], [`HandshakeError::Ourselves`].
    pub fn receive_proof(self, proof: &ClientProof) -> Result<(Session, ServerProof), HandshakeError> {
        let identity = self.server.identity;
        let ephemeral = &self.server.ephemeral;
        let network = ephemeral.network.as_bytes();
        let a_cap_b = agree(&identity.curve_secret(), &self.their_ephemeral)?; // a·B
        let opened: [u8; 96] = open(&hash_secrets(network, &[&self.ab, &a_cap_b]), proof).ok_or(HandshakeError::ClientProof)?;
        let (signature, client) = opened.split_at(64);
        let signature: [u8; 64] = signature.try_into().expect("split at the length of a signature");
        let client = NodeId::from_slice(client).expect("the rest of 96 bytes");
        let ab_hash = sha256::hash(&self.ab.0);
        let signed = joined::<96>(&[network, identity.id().as_bytes(), &ab_hash]);
        if !verify_detached(&signature, &signed, &public_key(&client)) {
            return Err(HandshakeError::ClientProof);
        }
        if client == identity.id() {
            return Err(HandshakeError::Ourselves);
        }
        let cap_a_b = agree(&ephemeral.secret, &curve_key(&client)?)?; // A·b
        let shared = hash_secrets(network, &[&self.ab, &a_cap_b, &cap_a_b]);
        let reply = identity.sign(&server_statement(&ephemeral.network, &signature, &client, &ab_hash));
        let session =
            Session { peer: client, send: direction_key(&shared, &client), receive: direction_key(&shared, &identity.id()) };
        Ok((session, seal(&shared, &reply)))
    }
}

/// What the called side signs: that it accepted exactly this caller in exactly this exchange.
fn server_statement(network: &NetworkKey, client_signature: &[u8; 64], client: &NodeId, ab_hash: &[u8; 32]) -> [u8; 160] {
    joined(&[network.as_bytes(), client_signature, client.as_bytes(), ab_hash])
}

fn agree(secret: &SecretBytes, public: &[u8; 32]) -> Result<SecretBytes, HandshakeError> {
    scalarmult(&secret.0, public).map(SecretBytes).map_err(|_small_order| HandshakeError::WeakKey)
}

fn curve_key(id: &NodeId) -> Result<[u8; 32], HandshakeError> {
    ed25519_pk_to_curve25519(&public_key(id)).map_err(|_not_a_point| HandshakeError::WeakKey)
}

fn hash_secrets(network: &[u8; 32], secrets: &[&SecretBytes]) -> SecretBytes {
    let mut state = sha256::State::new();
    state.update(network);
    for secret in secrets {
        state.update(&secret.0);
    }
    SecretBytes(state.finalize())
}

/// The key of the direction towards `receiver`.
fn direction_key(shared: &SecretBytes, receiver: &NodeId) -> SecretBytes {
    let twice = SecretBytes(sha256::hash(&sha256::hash(&shared.0)));
    let mut state = sha256::State::new();
    state.update(&twice.0);
    state.update(receiver.as_bytes());
    SecretBytes(state.finalize())
}

/// The nonce may be zero because each key is used for one box only.
fn zero_nonce() -> crypto_secretbox::Nonce {
    crypto_secretbox::Nonce::from_bytes([0; crypto_secretbox::NONCEBYTES])
}

fn seal<const N: usize>(key: &SecretBytes, plain: &[u8]) -> [u8; N] {
    let sealed = crypto_secretbox::seal(plain, &zero_nonce(), &crypto_secretbox::Key::from(key.0));
    sealed.try_into().expect("a box is 16 bytes longer than its content")
}

fn open<const N: usize>(key: &SecretBytes, sealed: &[u8]) -> Option<[u8; N]> {
    let opened = crypto_secretbox::open(sealed, &zero_nonce(), &crypto_secretbox::Key::from(key.0)).ok()?;
    opened.try_into().ok()
}

fn joined<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    parts.concat().try_into().expect("the lengths of the parts add up")
}

#[cfg(test)]
mod tests {
    use garage_types::NodeId;
    use garage_types::random::SeededRandom;

    use super::{Client, Server, Session};
    use crate::error::HandshakeError;
    use crate::identity::{Identity, NetworkKey};

    struct Run {
        client_network: u8,
        server_network: u8,
        /// `None`: the right one.
        expected: Option<NodeId>,
        /// Message (1 to 4) and byte in which one bit is turned over.
        tamper: Option<(u8, usize)>,
    }

    impl Default for Run {
        fn default() -> Self {
            Run { client_network: 1, server_network: 1, expected: None, tamper: None }
        }
    }

    impl Run {
        fn go(&self) -> Result<(Session, Session), HandshakeError> {
            let random = SeededRandom::new(5);
            let (a, b) = (Identity::generate(&random), Identity::generate(&random));
            let client_key = NetworkKey::from_bytes([self.client_network; 32]);
            let server_key = NetworkKey::from_bytes([self.server_network; 32]);
            let client = Client::new(&client_key, &a, self.expected.unwrap_or(b.id()), &random);
            let server = Server::new(&server_key, &b, &random);
            let mut first = client.hello();
            self.damage(1, &mut first);
            let (server, mut second) = server.receive_hello(&first)?;
            self.damage(2, &mut second);
            let (client, mut third) = client.receive_hello(&second)?;
            self.damage(3, &mut third);
            let (server, mut fourth) = server.receive_proof(&third)?;
            self.damage(4, &mut fourth);
            let client = client.receive_proof(&fourth)?;
            assert_eq!((client.peer, server.peer), (b.id(), a.id()));
            Ok((client, server))
        }

        fn damage(&self, message: u8, bytes: &mut [u8]) {
            if let Some((which, byte)) = self.tamper
                && which == message
                && byte < bytes.len()
            {
                bytes[byte] ^= 0x40;
            }
        }
    }

    #[test]
    fn both_sides_agree_on_keys_that_differ_per_direction() {
        let (client, server) = Run::default().go().unwrap();
        assert_eq!(client.send.0, server.receive.0);
        assert_eq!(client.receive.0, server.send.0);
        assert_ne!(client.send.0, client.receive.0);
    }

    #[test]
    fn another_network_key_is_refused_at_the_first_message() {
        let run = Run { server_network: 2, ..Run::default() };
        assert_eq!(run.go().err(), Some(HandshakeError::NetworkKey));
    }

    #[test]
    fn the_network_key_without_the_right_node_id_does_not_connect() {
        let other = Identity::generate(&SeededRandom::new(99)).id();
        let run = Run { expected: Some(other), ..Run::default() };
        assert_eq!(run.go().err(), Some(HandshakeError::ClientProof));
    }

    #[test]
    fn one_changed_bit_anywhere_is_refused() {
        for (message, length) in [(1, 64), (2, 64), (3, 112), (4, 80)] {
            for byte in 0..length {
                let run = Run { tamper: Some((message, byte)), ..Run::default() };
                assert!(run.go().is_err(), "message {message} with byte {byte} changed was accepted");
            }
        }
    }

    #[test]
    fn a_proof_recorded_from_another_handshake_is_refused() {
        let (random, network) = (SeededRandom::new(5), NetworkKey::from_bytes([1; 32]));
        let (a, b) = (Identity::generate(&random), Identity::generate(&random));
        let client = Client::new(&network, &a, b.id(), &random);
        let hello = client.hello();
        let (_, reply) = Server::new(&network, &b, &random).receive_hello(&hello).unwrap();
        let (_, proof) = client.receive_hello(&reply).unwrap();
        let (again, _) = Server::new(&network, &b, &random).receive_hello(&hello).unwrap();
        assert_eq!(again.receive_proof(&proof).err(), Some(HandshakeError::ClientProof));
    }
}
