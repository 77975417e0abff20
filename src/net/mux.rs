//! Many streams over one connection, each with flow control of its own, so that a slow reader delays nobody else.
//!
//! The multiplexing is `yamux`; [`crate::stream`] joins several of its streams into each of ours. [`Multiplexed::driver`] moves the
//! bytes and must be spawned; it ends when the connection does.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use garage_types::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::ConnectionError;

use crate::error::NetError;
use crate::establish::{Class, Established, Purpose, Side};
use crate::pings::{Filtered, Pings};
use crate::secure_stream::SecureStream;
use crate::stream::{Lane, Spread};

pub use crate::stream::{Incoming, MuxStream};

/// Lanes in both directions on one connection. A peer that opens more is cut off, so each side keeps its own below half.
const LANES_MAX: usize = 1024;

/// Streams that each side may have on one connection.
pub const fn streams_max(class: Class) -> usize {
    match class {
        Class::Metadata => 160,
        Class::Bulk => 56,
    }
}

/// Requests to open a stream that wait for the driver.
const COMMANDS_MAX: usize = 64;
/// What a lane may receive before it is read; the protocol's initial value.
const WINDOW_BYTES: usize = 256 * 1024;
/// By how much the windows of all lanes together may grow.
const GROWTH_BYTES_MAX: usize = 128 << 20;
/// How long a closing connection may take to say so.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How far the receive windows of streams grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// With the measured bandwidth and delay, so that one stream can fill a long link.
    Grow,
    /// Not at all, and what it would follow is not measured: that goes by the real clock, which a simulation must not.
    Fixed,
}

/// Opens streams. Clones are handles of the same connection, which closes when the last is dropped.
#[derive(Clone)]
pub struct Connection {
    commands: mpsc::Sender<Command>,
    opened: Arc<AtomicU32>,
    pub peer: NodeId,
    pub purpose: Purpose,
}

/// The three parts of a multiplexed connection.
pub struct Multiplexed {
    pub connection: Connection,
    pub incoming: Incoming,
    /// Runs until the connection ends: `Ok` when one of the sides closed it.
    pub driver: BoxFuture<'static, Result<(), NetError>>,
}

enum Command {
    Open(oneshot::Sender<Vec<Lane>>),
    Close,
}

impl Established {
    /// Splits the connection into streams.
    pub fn multiplex(self, windows: Windows) -> Multiplexed {
        let mode = match self.side {
            Side::Caller => yamux::Mode::Client,
            Side::Called => yamux::Mode::Server,
        };
        let pings = match windows {
            Windows::Grow => Pings::All,
            Windows::Fixed => Pings::First,
        };
        let stream = Filtered::new(self.stream.compat(), pings);
        let inner = yamux::Connection::new(stream, config(self.purpose.class, windows), mode);
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (incoming_sender, incoming) = mpsc::channel(LANES_MAX);
        let spread = Spread::of(self.purpose.class);
        let driver = Driver { inner, spread, commands: receiver, opening: VecDeque::new(), incoming: incoming_sender };
        Multiplexed {
            connection: Connection { commands, opened: Arc::default(), peer: self.peer, purpose: self.purpose },
            incoming: Incoming::new(incoming, spread),
            driver: Box::pin(driver.run()),
        }
    }
}

fn config(class: Class, windows: Windows) -> yamux::Config {
    let smallest = LANES_MAX * WINDOW_BYTES;
    let all_windows = match windows {
        Windows::Grow => smallest + GROWTH_BYTES_MAX,
        Windows::Fixed => smallest,
    };
    let mut config = yamux::Config::default();
    config.set_max_num_streams(LANES_MAX);
    config.set_max_connection_receive_window(Some(all_windows));
    config.set_split_send_size(Spread::of(class).chunk_bytes);
    config
}

impl Connection {
    /// Opens a stream. The other side hears of it with the first bytes, at once if it has several lanes.
    ///
    /// # Errors
    /// [`NetError::Closed`].
    pub async fn open(&self) -> Result<MuxStream, NetError> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Open(sender)).await.map_err(|_ended| NetError::Closed)?;
        let lanes = receiver.await.map_err(|_ended| NetError::Closed)?;
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        MuxStream::begin(lanes, number, Spread::of(self.purpose.class)).await.map_err(|_ended| NetError::Closed)
    }

    /// Asks the driver to close the connection; streams still open are reset. Without effect on a closed one.
    pub async fn close(&self) {
        if self.commands.send(Command::Close).await.is_err() {
            tracing::trace!(peer = ?self.peer, "the connection was closed already");
        }
    }

    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }
}

/// A stream being opened.
struct Opening {
    reply: oneshot::Sender<Vec<Lane>>,
    lanes: Vec<Lane>,
}

struct Driver {
    inner: yamux::Connection<Filtered<Compat<SecureStream>>>,
    spread: Spread,
    commands: mpsc::Receiver<Command>,
    opening: VecDeque<Opening>,
    incoming: mpsc::Sender<Lane>,
}

/// Why the driver stops.
enum End {
    /// We want to close.
    Ours,
    /// The other side closed, or the connection broke.
    Theirs(Result<(), NetError>),
}

impl Driver {
    async fn run(mut self) -> Result<(), NetError> {
        match poll_fn(|context| self.poll(context)).await {
            End::Theirs(result) => result,
            End::Ours => {
                // Nobody can wait for a stream any more.
                self.commands.close();
                self.opening.clear();
                let closing = poll_fn(|context| self.inner.poll_close(context));
                match tokio::time::timeout(CLOSE_TIMEOUT, closing).await {
                    Ok(Err(source)) => Err(NetError::Broken { source }),
                    // A peer that does not read its last frame is gone anyway.
                    Ok(Ok(())) | Err(_) => Ok(()),
                }
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        if self.take_commands(context).is_ready() {
            return Poll::Ready(End::Ours);
        }
        if let Poll::Ready(error) = self.open_waiting(context) {
            return Poll::Ready(End::Theirs(ended(error)));
        }
        // Polling for streams of the other side is what moves bytes in both directions: it must always be reached.
        loop {
            match self.inner.poll_next_inbound(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(End::Theirs(Ok(()))),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(End::Theirs(ended(error))),
                Poll::Ready(Some(Ok(stream))) => {
                    // A full or abandoned queue drops the lane, which resets it.
                    if self.incoming.try_send(stream.compat()).is_err() {
                        tracing::debug!("refused a lane: too many wait, or none are wanted");
                    }
                }
            }
        }
    }

    /// Ready when the connection should be closed.
    fn take_commands(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match std::task::ready!(self.commands.poll_recv(context)) {
                Some(Command::Open(reply)) => {
                    self.opening.push_back(Opening { reply, lanes: Vec::with_capacity(self.spread.lanes) })
                }
                Some(Command::Close) | None => return Poll::Ready(()),
            }
        }
    }

    /// Ready when the connection failed.
    fn open_waiting(&mut self, context: &mut Context<'_>) -> Poll<ConnectionError> {
        while let Some(mut opening) = self.opening.pop_front() {
            if opening.reply.is_closed() {
                continue;
            }
            while opening.lanes.len() < self.spread.lanes {
                match self.inner.poll_new_outbound(context) {
                    Poll::Ready(Ok(stream)) => opening.lanes.push(stream.compat()),
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Pending => {
                        self.opening.push_front(opening);
                        return Poll::Pending;
                    }
                }
            }
            // When the receiver has just gone, the lanes are dropped and thereby reset.
            drop(opening.reply.send(opening.lanes));
        }
        Poll::Pending
    }
}

fn ended(error: ConnectionError) -> Result<(), NetError> {
    match error {
        ConnectionError::Closed => Ok(()),
        source => Err(NetError::Broken { source }),
    }
}
