//! A network of pipes inside one process, whose connections can be cut: for tests.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::transport::{Listener, Socket, Transport};

/// Bytes one direction of a pipe holds before the writer waits.
const PIPE_BYTES: usize = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: usize = 16;

/// Addresses are any text. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    listeners: HashMap<String, mpsc::Sender<Socket>>,
    /// Ends every pipe made until now.
    cut: CancellationToken,
    connections: u64,
}

impl MemoryNetwork {
    /// Breaks all present connections, as a rebooting router would; new ones can be made at once.
    pub fn cut_connections(&self) {
        let mut state = self.0.lock().expect("nothing panics while holding the network");
        std::mem::take(&mut state.cut).cancel();
    }

    /// Connections made so far.
    pub fn connections_made(&self) -> u64 {
        self.0.lock().expect("nothing panics while holding the network").connections
    }

    /// The network as a machine at `host` sees it: others see its connections come from there. Ports of outgoing connections are
    /// arbitrary, as behind a router.
    pub fn at(&self, host: &str) -> MemoryHost {
        MemoryHost { network: self.clone(), host: host.to_owned() }
    }

    async fn connect_from(&self, host: &str, address: &str) -> io::Result<Socket> {
        let Dialled { listener, ours, theirs } = self.dial(address, host)?;
        listener.send(theirs).await.map_err(|_gone| io::ErrorKind::ConnectionRefused)?;
        Ok(ours)
    }

    /// Both ends of a new connection, and the listener that expects one.
    fn dial(&self, address: &str, from: &str) -> io::Result<Dialled> {
        let mut state = self.0.lock().expect("nothing panics while holding the network");
        let listener = state.listeners.get(address).cloned().ok_or(io::ErrorKind::ConnectionRefused)?;
        state.connections += 1;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let remote = format!("{from}:{}", 50_000 + state.connections % 10_000);
        Ok(Dialled {
            listener,
            ours: Socket { stream: Box::new(Pipe::new(ours, &state.cut)), remote: address.to_owned() },
            theirs: Socket { stream: Box::new(Pipe::new(theirs, &state.cut)), remote },
        })
    }
}

struct Dialled {
    listener: mpsc::Sender<Socket>,
    ours: Socket,
    theirs: Socket,
}

/// A [`MemoryNetwork`] from one machine's point of view.
#[derive(Clone)]
pub struct MemoryHost {
    network: MemoryNetwork,
    host: String,
}

impl Transport for MemoryHost {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        self.network.listen(address)
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Socket>> {
        self.network.connect_from(&self.host, address).boxed()
    }
}

impl Transport for MemoryNetwork {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        let (sender, queue) = mpsc::channel(BACKLOG);
        let mut state = self.0.lock().expect("nothing panics while holding the network");
        let free = state.listeners.get(address).is_none_or(mpsc::Sender::is_closed);
        let listener = if free {
            state.listeners.insert(address.to_owned(), sender);
            Ok(Box::new(MemoryListener { address: address.to_owned(), queue }) as Box<dyn Listener>)
        } else {
            Err(io::ErrorKind::AddrInUse.into())
        };
        async move { listener }.boxed()
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Socket>> {
        self.connect_from("caller", address).boxed()
    }
}

struct MemoryListener {
    address: String,
    queue: mpsc::Receiver<Socket>,
}

impl Listener for MemoryListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Socket>> {
        async move { self.queue.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into()) }.boxed()
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

/// One end of a connection that breaks when the network is cut.
struct Pipe {
    stream: DuplexStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Pipe {
    fn new(stream: DuplexStream, cut: &CancellationToken) -> Self {
        Pipe { stream, cut: Box::pin(cut.clone().cancelled_owned()) }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.cut.poll_unpin(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let pipe = self.get_mut();
        pipe.check(context)?;
        Pin::new(&mut pipe.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = self.get_mut();
        pipe.check(context)?;
        Pin::new(&mut pipe.stream).poll_write(context, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pipe = self.get_mut();
        pipe.check(context)?;
        Pin::new(&mut pipe.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pipe = self.get_mut();
        pipe.check(context)?;
        Pin::new(&mut pipe.stream).poll_shutdown(context)
    }
}
