//! How a byte stream to an address is had: TCP in the daemon, pipes in memory in tests, the simulated network in the simulator.

use std::io;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A reliable, ordered stream of bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A new, still unauthenticated connection.
pub struct Socket {
    pub stream: Box<dyn ByteStream>,
    /// The other side's address as text, for logs and lists; says nothing about who it is.
    pub remote: String,
}

/// Where connections arrive.
pub trait Listener: Send + 'static {
    /// Waits for the next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// What the operating system reports, running out of file descriptors for example; the listener stays usable.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Socket>>;

    /// The address actually bound, with the port chosen by the system when 0 was asked for.
    fn local_address(&self) -> String;
}

/// Listens and connects. Addresses are text, `host:port` for TCP.
pub trait Transport: Send + Sync + 'static {
    /// # Errors
    /// What the operating system reports: the address is in use, not ours, malformed.
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;

    /// Tries for as long as the network lets it: callers set a time-out.
    ///
    /// # Errors
    /// What the resolver or the operating system reports.
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Socket>>;
}
