//! The encrypted stream: what is written goes out in sealed frames of at most 64 KiB, and an end is sent as a frame too.
//!
//! Frame: kind (1 byte: 0 data, 1 end), length of the plain text (3 bytes, big endian), sealed text. The header is authenticated
//! with the text. A stream that stops without an end frame was cut and reads as an error, so nobody mistakes a part for the whole.
//! After an error the stream stays in error.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::cipher::{Cipher, Direction};
use crate::error::FrameError;
use crate::handshake::Session;
use crate::transport::ByteStream;

/// Most plain bytes in one frame.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

const HEADER_BYTES: usize = 4;
const KIND_DATA: u8 = 0;
const KIND_END: u8 = 1;
/// What one read asks the operating system for when no frame has begun.
const READ_BYTES: usize = 16 * 1024;

/// An authenticated, encrypted stream over `stream`.
pub struct SecureStream {
    stream: Box<dyn ByteStream>,
    incoming: Incoming,
    outgoing: Outgoing,
}

impl SecureStream {
    pub(crate) fn new(stream: Box<dyn ByteStream>, session: &Session, cipher: Cipher) -> Self {
        SecureStream {
            stream,
            incoming: Incoming {
                direction: Direction::new(cipher, &session.receive),
                overhead: cipher.overhead(),
                sealed: BytesMut::new(),
                plain: Vec::new(),
                consumed: 0,
                state: ReadState::Open,
            },
            outgoing: Outgoing {
                direction: Direction::new(cipher, &session.send),
                plain: Vec::new(),
                frame: None,
                end: WriteState::Open,
            },
        }
    }
}

struct Incoming {
    direction: Direction,
    overhead: usize,
    /// Received, not yet opened.
    sealed: BytesMut,
    /// The last frame opened, read up to `consumed`.
    plain: Vec<u8>,
    consumed: usize,
    state: ReadState,
}

enum ReadState {
    Open,
    Ended,
    Failed(FrameError),
}

/// What can be done with the bytes received so far.
enum Step {
    /// This many bytes are needed in all before anything can be opened.
    Need(usize),
    Opened,
    End,
}

impl Incoming {
    fn step(&mut self) -> Result<Step, FrameError> {
        let Some(header) = self.sealed.first_chunk::<HEADER_BYTES>().copied() else {
            return Ok(Step::Need(HEADER_BYTES));
        };
        let [kind, length @ ..] = header;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if kind > KIND_END {
            return Err(FrameError::Kind(kind));
        }
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { claimed: length, max: FRAME_BYTES_MAX });
        }
        let whole = HEADER_BYTES + length + self.overhead;
        if self.sealed.len() < whole {
            return Ok(Step::Need(whole));
        }
        self.plain = self.direction.open(&self.sealed[HEADER_BYTES..whole], &header)?;
        self.consumed = 0;
        self.sealed.advance(whole);
        Ok(if kind == KIND_END { Step::End } else { Step::Opened })
    }

    /// Makes `plain` hold unread bytes, or finds the end.
    fn poll_fill(&mut self, stream: &mut Box<dyn ByteStream>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.consumed == self.plain.len() {
            match &self.state {
                ReadState::Open => {}
                ReadState::Ended => return Poll::Ready(Ok(())),
                ReadState::Failed(error) => return Poll::Ready(Err((*error).into())),
            }
            match self.step() {
                Ok(Step::Opened) => {}
                Ok(Step::End) => self.state = ReadState::Ended,
                Err(error) => self.state = ReadState::Failed(error),
                Ok(Step::Need(bytes)) => {
                    self.sealed.reserve(READ_BYTES.max(bytes - self.sealed.len()));
                    if ready!(poll_read_buf(Pin::new(stream), context, &mut self.sealed))? == 0 {
                        let cut = "the connection ended without saying so";
                        return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut)));
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, incoming, .. } = self.get_mut();
        ready!(incoming.poll_fill(stream, context))?;
        let unread = &incoming.plain[incoming.consumed..];
        let count = unread.len().min(buffer.remaining());
        buffer.put_slice(&unread[..count]);
        incoming.consumed += count;
        if incoming.consumed == incoming.plain.len() {
            // Idle connections hold no buffers.
            incoming.plain = Vec::new();
            incoming.consumed = 0;
        }
        Poll::Ready(Ok(()))
    }
}

struct Outgoing {
    direction: Direction,
    /// Written by the user, not yet sealed.
    plain: Vec<u8>,
    /// Sealed, not yet sent in full.
    frame: Option<Frame>,
    end: WriteState,
}

enum WriteState {
    Open,
    /// The end frame is sealed, nothing more can be written.
    Ended,
}

struct Frame {
    header: [u8; HEADER_BYTES],
    sealed: Vec<u8>,
    sent: usize,
}

impl Frame {
    fn len(&self) -> usize {
        HEADER_BYTES + self.sealed.len()
    }
}

impl Outgoing {
    fn seal(&mut self, kind: u8, plain: &[u8]) {
        debug_assert!(plain.len() <= FRAME_BYTES_MAX && self.frame.is_none());
        let length = (plain.len() as u32).to_be_bytes();
        let header = [kind, length[1], length[2], length[3]];
        let sealed = self.direction.seal(plain, &header);
        self.frame = Some(Frame { header, sealed, sent: 0 });
    }

    fn seal_plain(&mut self) {
        let mut plain = std::mem::take(&mut self.plain);
        self.seal(KIND_DATA, &plain);
        plain.clear();
        // Small buffers are worth keeping, large ones would stay with every idle connection.
        if plain.capacity() <= READ_BYTES {
            self.plain = plain;
        }
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, stream: &mut Box<dyn ByteStream>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(frame) = &mut self.frame {
            let header = &frame.header[frame.sent.min(HEADER_BYTES)..];
            let sealed = &frame.sealed[frame.sent.saturating_sub(HEADER_BYTES)..];
            let parts = [IoSlice::new(header), IoSlice::new(sealed)];
            let parts = if header.is_empty() { &parts[1..] } else { &parts };
            let count = ready!(Pin::new(&mut *stream).poll_write_vectored(context, parts))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            frame.sent += count;
            if frame.sent == frame.len() {
                self.frame = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Seals and sends all that was written.
    fn poll_drain(&mut self, stream: &mut Box<dyn ByteStream>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(stream, context))?;
        if !self.plain.is_empty() {
            self.seal_plain();
            ready!(self.poll_send(stream, context))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, outgoing, .. } = self.get_mut();
        if matches!(outgoing.end, WriteState::Ended) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if outgoing.plain.len() == FRAME_BYTES_MAX {
            ready!(outgoing.poll_send(stream, context))?;
            outgoing.seal_plain();
        }
        let count = buffer.len().min(FRAME_BYTES_MAX - outgoing.plain.len());
        outgoing.plain.extend_from_slice(&buffer[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, outgoing, .. } = self.get_mut();
        ready!(outgoing.poll_drain(stream, context))?;
        Pin::new(stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, outgoing, .. } = self.get_mut();
        ready!(outgoing.poll_drain(stream, context))?;
        if matches!(outgoing.end, WriteState::Open) {
            outgoing.seal(KIND_END, &[]);
            outgoing.end = WriteState::Ended;
        }
        ready!(outgoing.poll_send(stream, context))?;
        Pin::new(stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use garage_types::NodeId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::{FRAME_BYTES_MAX, HEADER_BYTES, SecureStream};
    use crate::cipher::Cipher;
    use crate::error::FrameError;
    use crate::handshake::Session;
    use crate::identity::SecretBytes;

    fn stream(end: DuplexStream, send: u8, receive: u8) -> SecureStream {
        libsodium_rs::ensure_init().unwrap();
        let session =
            Session { peer: NodeId::from_bytes([0; 32]), send: SecretBytes([send; 32]), receive: SecretBytes([receive; 32]) };
        SecureStream::new(Box::new(end), &session, Cipher::Aegis128L)
    }

    /// What a sender with key 1 puts on the wire for these writes, each flushed, and a proper end.
    async fn recorded(writes: &[&[u8]]) -> Vec<u8> {
        let (ours, mut wire) = duplex(1 << 20);
        let mut sender = stream(ours, 1, 2);
        for bytes in writes {
            sender.write_all(bytes).await.unwrap();
            sender.flush().await.unwrap();
        }
        sender.shutdown().await.unwrap();
        drop(sender);
        let mut bytes = Vec::new();
        wire.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    /// What a receiver makes of these bytes on the wire.
    async fn received(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let (ours, mut wire) = duplex(1 << 20);
        let mut receiver = stream(ours, 2, 1);
        wire.write_all(bytes).await.unwrap();
        drop(wire);
        let mut content = Vec::new();
        receiver.read_to_end(&mut content).await.map(|_| content)
    }

    async fn frame_error(bytes: &[u8]) -> FrameError {
        let error = received(bytes).await.unwrap_err();
        *error.get_ref().and_then(|source| source.downcast_ref()).unwrap_or_else(|| panic!("{error:?} is no frame error"))
    }

    const FRAME: usize = HEADER_BYTES + 5 + Cipher::Aegis128L.overhead();

    #[tokio::test]
    async fn bytes_of_all_lengths_arrive_followed_by_the_end() {
        for length in [0, 1, FRAME_BYTES_MAX - 1, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, 5 * FRAME_BYTES_MAX] {
            let content: Vec<u8> = (0..length).map(|at| at as u8).collect();
            assert!(received(&recorded(&[&content]).await).await.unwrap() == content, "{length} bytes");
        }
    }

    #[tokio::test]
    async fn the_wire_shows_nothing_of_the_content() {
        let content = [b'x'; 400];
        let wire = recorded(&[&content]).await;
        assert!(!wire.windows(4).any(|window| window == b"xxxx"));
    }

    #[tokio::test]
    async fn a_stream_cut_anywhere_is_an_error_and_not_an_end() {
        let wire = recorded(&[b"hello", b"world"]).await;
        for length in 0..wire.len() {
            let error = received(&wire[..length]).await.expect_err("a part passed for the whole");
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "cut at {length}");
        }
        assert_eq!(received(&wire).await.unwrap(), b"helloworld");
    }

    #[tokio::test]
    async fn changed_repeated_reordered_and_dropped_frames_are_refused() {
        let wire = recorded(&[b"first", b"other"]).await;
        let (first, second) = (&wire[..FRAME], &wire[FRAME..2 * FRAME]);
        for byte in HEADER_BYTES..FRAME {
            let mut changed = wire.clone();
            changed[byte] ^= 1;
            assert_eq!(frame_error(&changed).await, FrameError::Forged, "byte {byte}");
        }
        assert_eq!(frame_error(&[first, first].concat()).await, FrameError::Forged);
        assert_eq!(frame_error(&[second, first].concat()).await, FrameError::Forged);
        assert_eq!(frame_error(second).await, FrameError::Forged);
    }

    #[tokio::test]
    async fn an_end_cannot_be_made_from_a_data_frame() {
        let mut wire = recorded(&[b"first"]).await;
        wire[0] = super::KIND_END;
        assert_eq!(frame_error(&wire).await, FrameError::Forged);
    }

    #[tokio::test]
    async fn frames_that_claim_too_much_are_refused_before_they_are_received() {
        assert_eq!(frame_error(&[0, 1, 0, 1]).await, FrameError::TooLong { claimed: 65537, max: FRAME_BYTES_MAX });
        assert_eq!(frame_error(&[7, 0, 0, 1]).await, FrameError::Kind(7));
    }

    #[tokio::test]
    async fn nothing_can_be_written_after_the_end() {
        let (ours, _wire) = duplex(1 << 20);
        let mut sender = stream(ours, 1, 2);
        sender.shutdown().await.unwrap();
        assert_eq!(sender.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
