//! Authenticated, encrypted, multiplexed connections between nodes.
//!
//! From the outside in: a [`Transport`] gives a byte stream to an address; [`establish`] checks the version tag, runs the
//! Secret Handshake ([`handshake`]) and agrees on role, class and cipher; [`SecureStream`] encrypts what follows in frames;
//! [`mux`] carries many flow-controlled streams over it, each spread over several lanes ([`stream`]).
//!
//! What must stay true: a peer is its key, never its address; nothing a stranger sends makes us hold more than one handshake
//! for one time-out; data that reach a reader were sent by the authenticated peer, once, in this order, and an end of stream is
//! one the peer meant. This room spawns nothing: loops are returned as futures. It does not know what the messages mean.

mod cipher;
pub mod error;
pub mod establish;
pub mod handshake;
pub mod identity;
pub mod memory;
pub mod mux;
mod pings;
pub mod race;
pub mod secure_stream;
pub mod stream;
pub mod tcp;
pub mod transport;

pub use error::NetError;
pub use establish::{Class, Established, Local, Purpose, Role};
pub use identity::{Identity, NetworkKey};
pub use memory::MemoryNetwork;
pub use mux::{Connection, Incoming, Multiplexed, MuxStream};
pub use secure_stream::SecureStream;
pub use tcp::TcpTransport;
pub use transport::{Listener, Socket, Transport};

#[cfg(test)]
mod tests;
