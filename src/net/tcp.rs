//! TCP: no delay (small frames are calls somebody waits for), keepalive, and a bind address for outgoing connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};

use crate::race::first_success;
use crate::transport::{Listener, Socket, Transport};

/// Silence after which the kernel asks whether the other side is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Connections the kernel completes before we accept them.
const BACKLOG: u32 = 256;

/// A name may have several addresses, some of which lead nowhere: IPv6 where there is none, for example.
const NEXT_CANDIDATE_AFTER: Duration = Duration::from_millis(500);

/// The network of the operating system.
#[derive(Debug, Clone, Default)]
pub struct TcpTransport {
    /// Local address of outgoing connections to addresses of the same family.
    pub outgoing: Option<IpAddr>,
}

impl Transport for TcpTransport {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        async move {
            let address = resolve(address).await?.next().ok_or_else(|| no_address(address))?;
            let socket = new_socket(&address)?;
            // A restarted daemon gets its port back although old connections linger.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(Box::new(TcpAcceptor(socket.listen(BACKLOG)?)) as Box<dyn Listener>)
        }
        .boxed()
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Socket>> {
        async move {
            let candidates = resolve(address).await?;
            let connect = |candidate| async move { into_socket(self.connect_to(candidate).await?, candidate) };
            let connected = first_success(candidates, NEXT_CANDIDATE_AFTER, connect).await;
            connected.map_err(|mut failures| failures.pop().unwrap_or_else(|| no_address(address)))
        }
        .boxed()
    }
}

impl TcpTransport {
    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = new_socket(&address)?;
        if let Some(outgoing) = self.outgoing
            && outgoing.is_ipv4() == address.is_ipv4()
        {
            socket.bind(SocketAddr::new(outgoing, 0))?;
        }
        socket.connect(address).await
    }
}

struct TcpAcceptor(TcpListener);

impl Listener for TcpAcceptor {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Socket>> {
        async move {
            let (stream, remote) = self.0.accept().await?;
            into_socket(stream, remote)
        }
        .boxed()
    }

    fn local_address(&self) -> String {
        self.0.local_addr().map_or_else(|error| format!("unknown ({error})"), |address| address.to_string())
    }
}

async fn resolve(address: &str) -> io::Result<impl Iterator<Item = SocketAddr> + use<>> {
    // Collected, because the iterator borrows the text.
    Ok(lookup_host(address).await?.collect::<Vec<_>>().into_iter())
}

fn no_address(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address"))
}

fn new_socket(address: &SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

fn into_socket(stream: TcpStream, remote: SocketAddr) -> io::Result<Socket> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_AFTER);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    // A listener on [::] sees IPv4 as mapped addresses, which others could not use.
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    Ok(Socket { stream: Box::new(stream), remote: remote.to_string() })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::TcpTransport;
    use crate::transport::Transport;

    #[tokio::test]
    async fn bytes_cross_from_the_chosen_address() {
        let transport = TcpTransport { outgoing: Some("127.0.0.1".parse().unwrap()) };
        let mut listener = transport.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address();
        let (client, server) = tokio::join!(transport.connect(&address), listener.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert_eq!(client.remote, address);
        assert!(server.remote.starts_with("127.0.0.1:"));
        client.stream.write_all(b"hello").await.unwrap();
        let mut received = [0; 5];
        server.stream.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"hello");
    }

    #[tokio::test]
    async fn host_names_and_ipv6_addresses_lead_to_listeners() {
        let transport = TcpTransport::default();
        let mut listener = transport.listen("127.0.0.1:0").await.unwrap();
        let port = listener.local_address().rsplit_once(':').unwrap().1.to_owned();
        // The name may stand for ::1 as well, where nobody listens.
        let address = format!("localhost:{port}");
        let (client, server) = tokio::join!(transport.connect(&address), listener.accept());
        assert_eq!(client.unwrap().remote, format!("127.0.0.1:{port}"));
        server.unwrap();
        // Some machines that run tests have no IPv6.
        if let Ok(mut listener) = transport.listen("[::]:0").await {
            let port = listener.local_address().rsplit_once(':').unwrap().1.to_owned();
            let address = format!("127.0.0.1:{port}");
            let (client, server) = tokio::join!(transport.connect(&address), listener.accept());
            client.unwrap();
            assert!(server.unwrap().remote.starts_with("127.0.0.1:"), "as the caller would write it");
        }
        if let Ok(mut listener) = transport.listen("[::1]:0").await {
            let address = listener.local_address();
            let (client, server) = tokio::join!(transport.connect(&address), listener.accept());
            assert_eq!(client.unwrap().remote, address);
            server.unwrap();
        }
        assert!(transport.connect("no.such.host.invalid:1").await.is_err());
    }
}
