//! The simulated network: pipes with delays between machines, whose links can be blocked one way and whose connections can be lost.
//!
//! A connection is two wires. Bytes arrive in order, each chunk after a delay drawn from the network's own seed. What a blocked link
//! carries is kept and arrives once the link is open again, as TCP repeats what was lost; single bytes are never lost. A machine that
//! dies either resets its connections or goes silent, so that its peers have to notice by themselves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_net::{Listener, Socket, Transport};
use garage_types::Random;
use garage_types::random::SeededRandom;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep};

/// Bytes on their way in one direction before the writer waits.
const WIRE_BYTES: usize = 64 * 1024;
/// The same on a [`Pace::Exact`] network: as much as a system's buffers for a long link hold.
const LONG_WIRE_BYTES: usize = 16 << 20;
/// Places from this on are clients': beside the machine they ask, on a network of [`Pace::Exact`].
pub const CLIENTS_FROM: usize = 1000;
/// Connections that wait to be accepted.
const BACKLOG: usize = 16;

/// How the connections of a machine end when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// As when a process is killed: the peers are told at once.
    Reset,
    /// As when the power goes: nobody says anything until the machine is back.
    Silent,
}

/// How fast the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Every chunk takes up to this long, drawn from the seed.
    Random { delay_max: Duration },
    /// Every chunk takes exactly this long, after those that were sent before it in the same direction between two machines.
    Exact { one_way: Duration, bytes_per_second: Option<u64> },
}

/// The network. Clones are the same.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    random: SeededRandom,
    /// A link was opened.
    opened: Notify,
}

struct State {
    pace: Pace,
    /// Until when the bytes that were sent between two machines keep their link busy.
    busy_until: BTreeMap<(usize, usize), Instant>,
    listeners: BTreeMap<String, Port>,
    blocked: BTreeSet<(usize, usize)>,
    wires: Vec<Weak<Wire>>,
    chunks: u64,
    /// Changes with every chunk, its size and its time: two runs that agree here have sent the same.
    digest: u64,
    started: Instant,
}

struct Port {
    machine: usize,
    queue: mpsc::Sender<Socket>,
}

/// One direction of a connection.
struct Wire {
    from: usize,
    to: usize,
    state: Mutex<WireState>,
}

#[derive(Default)]
struct WireState {
    chunks: VecDeque<(Instant, Chunk)>,
    bytes: usize,
    last_arrival: Option<Instant>,
    /// Nothing arrives any more, and nobody is told.
    silent: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Chunk {
    Bytes(Bytes),
    End,
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, WireState> {
        self.state.lock().unwrap()
    }

    fn touches(&self, machine: usize) -> bool {
        self.from == machine || self.to == machine
    }

    fn change(&self, change: impl FnOnce(&mut WireState)) {
        let mut state = self.state();
        change(&mut state);
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Network {
    pub fn new(seed: u64) -> Self {
        let state = State {
            pace: Pace::Random { delay_max: Duration::from_millis(2) },
            busy_until: BTreeMap::new(),
            listeners: BTreeMap::new(),
            blocked: BTreeSet::new(),
            wires: Vec::new(),
            chunks: 0,
            digest: 0,
            started: Instant::now(),
        };
        Network(Arc::new(Inner { state: Mutex::new(state), random: SeededRandom::new(seed), opened: Notify::new() }))
    }

    /// The transport of one machine.
    pub fn of(&self, machine: usize) -> Arc<dyn Transport> {
        Arc::new(Attachment { network: self.clone(), machine })
    }

    pub fn address(machine: usize) -> String {
        format!("machine-{machine}:3901")
    }

    /// Every chunk takes up to this long from now on.
    pub fn set_delay_max(&self, delay: Duration) {
        self.set_pace(Pace::Random { delay_max: delay });
    }

    pub fn set_pace(&self, pace: Pace) {
        self.state().pace = pace;
    }

    /// Nothing gets from one machine to another until the link is opened.
    pub fn block(&self, from: usize, to: usize) {
        self.state().blocked.insert((from, to));
    }

    /// Opens every link. Of the connections over a link that was blocked some go on, with all that was kept; others were given up.
    pub fn open_all_links(&self) {
        let blocked = std::mem::take(&mut self.state().blocked);
        for (from, to) in blocked {
            if self.0.random.below(2) == 0 {
                self.lose_connections(from, to);
            }
        }
        self.for_wires(|_every| true, |_wake| {});
        self.0.opened.notify_waiters();
    }

    /// Resets the connections between two machines; new ones can be made.
    pub fn lose_connections(&self, a: usize, b: usize) {
        self.for_wires(|wire| wire.touches(a) && wire.touches(b), |state| state.reset = true);
    }

    /// The machine stops to listen, and its connections end.
    pub fn machine_dies(&self, machine: usize, death: Death) {
        self.state().listeners.retain(|_address, port| port.machine != machine);
        self.for_wires(
            |wire| wire.touches(machine),
            |state| match death {
                Death::Reset => state.reset = true,
                Death::Silent => state.silent = true,
            },
        );
    }

    /// The machine is back: whoever still holds a connection to its earlier life is told.
    pub fn machine_returns(&self, machine: usize) {
        self.for_wires(|wire| wire.touches(machine), |state| state.reset = true);
    }

    /// What was sent so far, in short.
    pub fn summary(&self) -> String {
        let state = self.state();
        format!("{} chunks, digest {:016x}", state.chunks, state.digest)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn for_wires(&self, which: impl Fn(&Wire) -> bool, change: impl Fn(&mut WireState)) {
        let wires: Vec<Arc<Wire>> = self.state().wires.iter().filter_map(Weak::upgrade).filter(|wire| which(wire)).collect();
        wires.iter().for_each(|wire| wire.change(&change));
    }

    fn delay(&self, link: (usize, usize)) -> Duration {
        let pace = self.state().pace;
        match pace {
            Pace::Random { delay_max } => Duration::from_micros(self.0.random.below((delay_max.as_micros() as u64).max(1))),
            Pace::Exact { .. } if link.0.max(link.1) >= CLIENTS_FROM => Duration::ZERO,
            Pace::Exact { one_way, .. } => one_way,
        }
    }

    /// When a chunk sent now arrives.
    fn arrival(&self, link: (usize, usize), size: usize) -> Instant {
        let delay = self.delay(link);
        let now = Instant::now();
        let mut state = self.state();
        state.chunks += 1;
        let since = (now - state.started).as_micros() as u64;
        state.digest = state.digest.rotate_left(7) ^ since.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ size as u64;
        let Pace::Exact { bytes_per_second: Some(rate), .. } = state.pace else { return now + delay };
        let busy_until = state.busy_until.entry(link).or_insert(now);
        *busy_until = (*busy_until).max(now) + Duration::from_nanos(size as u64 * 1_000_000_000 / rate);
        *busy_until + delay
    }

    /// How much may be on its way on a wire.
    fn wire_bytes(&self) -> usize {
        match self.state().pace {
            Pace::Random { .. } => WIRE_BYTES,
            Pace::Exact { .. } => LONG_WIRE_BYTES,
        }
    }

    fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.state().blocked.contains(&(from, to))
    }

    fn wire(&self, from: usize, to: usize) -> Arc<Wire> {
        let wire = Arc::new(Wire { from, to, state: Mutex::default() });
        let mut state = self.state();
        state.wires.retain(|wire| wire.strong_count() > 0);
        state.wires.push(Arc::downgrade(&wire));
        wire
    }

    async fn connect(&self, from: usize, address: &str) -> io::Result<Socket> {
        let listener = self.state().listeners.get(address).map_or(from, |port| port.machine);
        let link = (from, listener);
        tokio::time::sleep(self.delay(link) + self.delay(link)).await;
        loop {
            let opened = self.0.opened.notified();
            let port = {
                let state = self.state();
                let port = state.listeners.get(address).ok_or(io::ErrorKind::ConnectionRefused)?;
                let (there, back) = ((from, port.machine), (port.machine, from));
                let passes = !state.blocked.contains(&there) && !state.blocked.contains(&back);
                passes.then(|| (port.machine, port.queue.clone()))
            };
            let Some((to, queue)) = port else {
                opened.await;
                continue;
            };
            let (there, back) = (self.wire(from, to), self.wire(to, from));
            let end = |reads: &Arc<Wire>, writes: &Arc<Wire>| {
                let end = End { network: self.clone(), reads: reads.clone(), writes: writes.clone(), timer: None };
                Box::new(end)
            };
            let theirs = Socket { stream: end(&there, &back), remote: Network::address(from) };
            let ours = Socket { stream: end(&back, &there), remote: address.to_owned() };
            queue.send(theirs).await.map_err(|_gone| io::ErrorKind::ConnectionRefused)?;
            return Ok(ours);
        }
    }
}

struct Attachment {
    network: Network,
    machine: usize,
}

impl Transport for Attachment {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        let (sender, queue) = mpsc::channel(BACKLOG);
        let port = Port { machine: self.machine, queue: sender };
        self.network.state().listeners.insert(address.to_owned(), port);
        let listener: Box<dyn Listener> = Box::new(Arrivals { address: address.to_owned(), queue });
        async move { Ok(listener) }.boxed()
    }

    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Socket>> {
        self.network.connect(self.machine, address).boxed()
    }
}

struct Arrivals {
    address: String,
    queue: mpsc::Receiver<Socket>,
}

impl Listener for Arrivals {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Socket>> {
        async move { self.queue.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into()) }.boxed()
    }

    fn local_address(&self) -> String {
        self.address.clone()
    }
}

/// One machine's end of a connection.
struct End {
    network: Network,
    reads: Arc<Wire>,
    writes: Arc<Wire>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let end = self.get_mut();
        let blocked = end.network.is_blocked(end.reads.from, end.reads.to);
        loop {
            let mut state = end.reads.state();
            if state.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            state.reader = Some(context.waker().clone());
            if blocked || state.silent {
                return Poll::Pending;
            }
            let Some((arrival, chunk)) = state.chunks.front_mut() else { return Poll::Pending };
            let arrival = *arrival;
            if arrival > Instant::now() {
                drop(state);
                let timer = end.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(arrival)));
                timer.as_mut().reset(arrival);
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            let Chunk::Bytes(bytes) = chunk else { return Poll::Ready(Ok(())) };
            let length = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..length]);
            bytes.advance(length);
            if bytes.is_empty() {
                state.chunks.pop_front();
            }
            state.bytes -= length;
            let writer = state.writer.take();
            drop(state);
            if let Some(writer) = writer {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl End {
    fn send(&self, chunk: Chunk, size: usize) {
        let arrival = self.network.arrival((self.writes.from, self.writes.to), size);
        self.writes.change(|state| {
            let arrival = state.last_arrival.map_or(arrival, |last| last.max(arrival));
            state.last_arrival = Some(arrival);
            state.bytes += size;
            state.chunks.push_back((arrival, chunk));
        });
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let end = self.get_mut();
        let wire_bytes = end.network.wire_bytes();
        let room = {
            let mut state = end.writes.state();
            if state.reset {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let room = wire_bytes.saturating_sub(state.bytes);
            if room == 0 {
                state.writer = Some(context.waker().clone());
                return Poll::Pending;
            }
            room
        };
        let length = room.min(buffer.len());
        end.send(Chunk::Bytes(Bytes::copy_from_slice(&buffer[..length])), length);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send(Chunk::End, 0);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // The other side reads what is on its way, and then the end. A dead machine sends nothing: its wires are silent or reset.
        let quiet = {
            let state = self.writes.state();
            state.silent || state.reset
        };
        if !quiet {
            self.send(Chunk::End, 0);
        }
    }
}
