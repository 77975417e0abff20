//! The multiplexer measures delays by pings, sent every ten seconds of the real clock. A simulation must not send by that clock, or a
//! slow computer would run another simulation than a fast one. Between the multiplexer and the connection, all but the first are
//! taken out; without an answer to the second there is no third.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};

/// Bytes of a frame's header: version, kind, flags (2), stream (4), length or value (4).
const HEADER_BYTES: usize = 12;
const KIND_DATA: u8 = 0;
const KIND_PING: u8 = 2;
/// In the flags: a question, not its answer.
const FLAG_ASKS: u8 = 1;

/// Which of the multiplexer's pings are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pings {
    All,
    First,
}

/// A connection below the multiplexer.
pub(crate) struct Filtered<S> {
    inner: S,
    pings: Pings,
    pinged: bool,
    /// Of the frame being written.
    header: Vec<u8>,
    body_left: usize,
}

impl<S> Filtered<S> {
    pub(crate) fn new(inner: S, pings: Pings) -> Self {
        Filtered { inner, pings, pinged: false, header: Vec::with_capacity(HEADER_BYTES), body_left: 0 }
    }

    /// The multiplexer writes each header by itself.
    fn is_ping(&self, written: &[u8]) -> bool {
        let begins = self.header.is_empty() && self.body_left == 0 && written.len() == HEADER_BYTES;
        begins && written[1] == KIND_PING && written[3] & FLAG_ASKS != 0
    }

    fn went_out(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = if self.body_left > 0 { self.body_left } else { HEADER_BYTES - self.header.len() }.min(bytes.len());
            let (now, rest) = bytes.split_at(taken);
            bytes = rest;
            if self.body_left > 0 {
                self.body_left -= taken;
                continue;
            }
            self.header.extend_from_slice(now);
            if let Ok(header) = <[u8; HEADER_BYTES]>::try_from(self.header.as_slice()) {
                let [.., a, b, c, d] = header;
                self.body_left = if header[1] == KIND_DATA { u32::from_be_bytes([a, b, c, d]) as usize } else { 0 };
                self.header.clear();
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Filtered<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Filtered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if self.pings == Pings::All {
            return Pin::new(&mut self.inner).poll_write(context, buffer);
        }
        let is_ping = self.is_ping(buffer);
        if is_ping && self.pinged {
            return Poll::Ready(Ok(buffer.len()));
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, buffer))?;
        self.pinged |= is_ping;
        self.went_out(&buffer[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::io::{AsyncWriteExt, Cursor};

    use super::{Filtered, Pings};

    fn frame(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        [&[0, kind, 0, flags, 0, 0, 0, 1][..], &length.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn only_the_first_ping_goes_out_and_everything_else_does() {
        let (ping, pong, body) = (frame(2, 1, 7), frame(2, 2, 7), frame(2, 1, 9));
        let data = frame(0, 0, body.len() as u32);
        let written = [&ping, &data, &body, &ping, &pong, &frame(1, 0, 500), &data, &body, &ping, &pong];
        for (pings, taken_out) in [(Pings::All, &[][..]), (Pings::First, &[3, 8])] {
            let mut filtered = Filtered::new(Cursor::new(Vec::new()), pings);
            for part in written {
                filtered.write_all(part).await.unwrap();
            }
            let expected: Vec<u8> =
                (0..written.len()).filter(|n| !taken_out.contains(n)).flat_map(|n| written[n].clone()).collect();
            assert_eq!(filtered.inner.into_inner(), expected, "{pings:?}");
        }
    }
}
