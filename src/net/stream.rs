//! One stream of bytes in both directions, carried by several streams of the multiplexer: its lanes.
//!
//! The multiplexer lets 256 KiB of a new stream go before it waits for the other side, a block is larger, and a wait is a round trip
//! between places. So the bytes take turns over the lanes, a chunk on each, and each lane has a window of its own: a block of the
//! usual size leaves at once, on a stream that was never used before as well.
//! Must stay true: bytes arrive in the order they were written in; a stream is there for the other side only with all its lanes.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::compat::Compat;

use crate::establish::Class;

/// A stream of the multiplexer.
pub(crate) type Lane = Compat<yamux::Stream>;

/// A lane's first bytes: number of the stream (4 bytes, big endian), index of the lane.
const HEADER_BYTES: usize = 5;
/// The answer to them, which also tells the multiplexer that the lane was accepted.
const ACCEPTED: u8 = 1;
/// Streams of which some lanes are missing. The oldest goes when there are more: whoever opened it has given it up half-way.
const FORMING_MAX: usize = 256;

/// How the bytes of a stream are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    /// At least one. Lanes of a stream that has only one carry its bytes and nothing else.
    pub lanes: usize,
    pub chunk_bytes: usize,
}

impl Spread {
    /// A lane that was used before is sure of half its window, 128 KiB: what is sent at once on all of them is `lanes` times that.
    pub(crate) fn of(class: Class) -> Self {
        match class {
            // Calls are small and many: no more than one stream each. Chunks are short enough that replies take turns.
            Class::Metadata => Spread { lanes: 1, chunk_bytes: 16 * 1024 },
            // A block of 1 MiB with what goes before it, wherever it begins. A chunk with its header (12 bytes) is one encrypted frame.
            Class::Bulk => Spread { lanes: 9, chunk_bytes: crate::secure_stream::FRAME_BYTES_MAX - 12 },
        }
    }
}

/// Where the next byte goes, or comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    lane: usize,
    /// Bytes until the next lane's turn.
    left: usize,
}

impl Place {
    fn advance(&mut self, bytes: usize, spread: Spread) {
        self.left -= bytes;
        if self.left == 0 {
            *self = Place { lane: (self.lane + 1) % spread.lanes, left: spread.chunk_bytes };
        }
    }
}

/// One bidirectional stream. Dropping it unfinished resets it, which the other side notices.
pub struct MuxStream {
    lanes: Vec<Lane>,
    /// How many lanes, from the first on, had their acceptance read. The first round of reading goes through them in order.
    accepted: usize,
    spread: Spread,
    read: Place,
    write: Place,
}

impl MuxStream {
    fn new(lanes: Vec<Lane>, accepted: usize, spread: Spread) -> Self {
        let start = Place { lane: 0, left: spread.chunk_bytes };
        MuxStream { lanes, accepted, spread, read: start, write: start }
    }

    /// Makes a stream of fresh lanes, and tells the other side, unless there is only one: then its first bytes do.
    pub(crate) async fn begin(mut lanes: Vec<Lane>, number: u32, spread: Spread) -> io::Result<Self> {
        if spread.lanes == 1 {
            return Ok(MuxStream::new(lanes, 1, spread));
        }
        for (index, lane) in lanes.iter_mut().enumerate() {
            let [a, b, c, d] = number.to_be_bytes();
            lane.write_all(&[a, b, c, d, index as u8]).await?;
        }
        Ok(MuxStream::new(lanes, 0, spread))
    }

    fn poll_accepted(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut self.lanes[self.read.lane]).poll_read(context, &mut buffer))?;
        match buffer.filled() {
            [] => Poll::Ready(Ok(false)),
            [ACCEPTED] => {
                self.accepted += 1;
                Poll::Ready(Ok(true))
            }
            _ => Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a lane was not accepted"))),
        }
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if stream.accepted <= stream.read.lane && !ready!(stream.poll_accepted(context))? {
            return Poll::Ready(Ok(()));
        }
        let most = buffer.remaining().min(stream.read.left);
        let lane = &mut stream.lanes[stream.read.lane];
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut *lane).poll_read(context, &mut part))?;
        let count = part.filled().len();
        buffer.advance(count);
        if count == stream.read.left {
            // This lane is read again only after all others: it gives its window back now. What is wrong with it shows then.
            drop(Pin::new(lane).poll_read(context, &mut ReadBuf::new(&mut [])));
        }
        if count > 0 {
            stream.read.advance(count, stream.spread);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let part = &buffer[..buffer.len().min(stream.write.left)];
        let count = ready!(Pin::new(&mut stream.lanes[stream.write.lane]).poll_write(context, part))?;
        if count > 0 {
            stream.write.advance(count, stream.spread);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        for lane in &mut self.get_mut().lanes {
            ready!(Pin::new(lane).poll_flush(context))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        for lane in &mut self.get_mut().lanes {
            ready!(Pin::new(lane).poll_shutdown(context))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// A lane that the other side opened, once it has said where it belongs.
struct Joining {
    number: u32,
    index: usize,
    lane: Lane,
}

/// `None`: the lane ended, or broke.
async fn accept(mut lane: Lane) -> Option<Joining> {
    let mut header = [0; HEADER_BYTES];
    let accepted = async {
        lane.read_exact(&mut header).await?;
        lane.write_all(&[ACCEPTED]).await?;
        lane.flush().await
    };
    match accepted.await {
        Ok(()) => {
            let [a, b, c, d, index] = header;
            Some(Joining { number: u32::from_be_bytes([a, b, c, d]), index: usize::from(index), lane })
        }
        Err(error) => {
            tracing::trace!(%error, "a lane ended before it began");
            None
        }
    }
}

/// The streams the other side opens. They are reset when this is dropped.
pub struct Incoming {
    lanes: mpsc::Receiver<Lane>,
    spread: Spread,
    accepting: FuturesUnordered<BoxFuture<'static, Option<Joining>>>,
    forming: BTreeMap<u32, Vec<Option<Lane>>>,
}

impl Incoming {
    pub(crate) fn new(lanes: mpsc::Receiver<Lane>, spread: Spread) -> Self {
        Incoming { lanes, spread, accepting: FuturesUnordered::new(), forming: BTreeMap::new() }
    }

    /// The next stream of the other side; `None` once the connection has ended. Dropping the future loses none.
    pub async fn next(&mut self) -> Option<MuxStream> {
        loop {
            tokio::select! {
                biased;
                Some(joining) = self.accepting.next() => {
                    if let Some(stream) = joining.and_then(|joining| self.join(joining)) {
                        return Some(stream);
                    }
                }
                lane = self.lanes.recv() => match lane? {
                    lane if self.spread.lanes == 1 => return Some(MuxStream::new(vec![lane], 1, self.spread)),
                    lane => self.accepting.push(Box::pin(accept(lane))),
                },
            }
        }
    }

    fn join(&mut self, joining: Joining) -> Option<MuxStream> {
        let Joining { number, index, lane } = joining;
        let lanes = self.forming.entry(number).or_insert_with(|| (0..self.spread.lanes).map(|_missing| None).collect());
        let Some(place) = lanes.get_mut(index) else {
            tracing::debug!(index, "refused a lane: there are not so many");
            return None;
        };
        *place = Some(lane);
        if lanes.iter().all(Option::is_some) {
            let lanes = self.forming.remove(&number)?.into_iter().flatten().collect();
            return Some(MuxStream::new(lanes, self.spread.lanes, self.spread));
        }
        if self.forming.len() > FORMING_MAX {
            self.forming.pop_first();
        }
        None
    }
}
