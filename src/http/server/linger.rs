//! The end of a connection whose client still sends: closing at once would reset it, and the client would lose the last reply.
//!
//! A client such as a browser or Python's `http.client` sends its whole body before it reads. When its upload is refused early, the
//! reason waits in its own receive buffer meanwhile; a reset throws that buffer away, and all the client sees is a broken pipe. So
//! this side closes its own direction and goes on reading, and throws away what it reads.
//!
//! Must stay true: what a client may send on for nothing is bounded in bytes and in time, for each connection and, by the number
//! of [`Places`], for all together; nobody waits for a place.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Connections that may linger for long at the same time: with the bounds below at most 8 GiB in 30 seconds, of which none is kept.
const PLACES: usize = 64;

/// How long, and for how much, a connection is read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    whole: Duration,
    /// Without a byte.
    quiet: Duration,
    bytes_max: usize,
}

impl Bounds {
    /// For a client that is in the middle of a body: a part of an upload as large as SDKs make them, on a slow line as well.
    const LONG: Bounds = Bounds { whole: Duration::from_secs(30), quiet: Duration::from_secs(5), bytes_max: 128 << 20 };
    /// For all others, who should be about to close.
    const BRIEF: Bounds = Bounds { whole: Duration::from_secs(2), quiet: Duration::from_secs(2), bytes_max: 1 << 20 };
}

/// Whether the client has sent all that it announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Done,
    StillSending,
}

/// The places for connections that linger for long.
#[derive(Debug)]
pub(super) struct Places(Semaphore);

impl Default for Places {
    fn default() -> Self {
        Places(Semaphore::new(PLACES))
    }
}

impl Places {
    /// The bounds of one connection; they hold while the place, if it has one, is kept. Where all are taken they are brief.
    fn admit(&self, client: Client) -> (Bounds, Option<SemaphorePermit<'_>>) {
        match (client, self.0.try_acquire()) {
            (Client::StillSending, Ok(place)) => (Bounds::LONG, Some(place)),
            (Client::StillSending, Err(_)) | (Client::Done, _) => (Bounds::BRIEF, None),
        }
    }

    /// Closes our direction, and reads until the client closes its own or a bound is reached; only briefly once `stop` is ready.
    pub(super) async fn linger(&self, io: impl AsyncRead + AsyncWrite + Unpin, client: Client, stop: impl Future<Output = ()>) {
        let (bounds, _place) = self.admit(client);
        let stopped = async {
            stop.await;
            tokio::time::sleep(Bounds::BRIEF.whole).await;
        };
        let discarded = tokio::time::timeout(bounds.whole, discard(io, bounds));
        match select(pin!(discarded), pin!(stopped)).await {
            Either::Left((Ok(Err(error)), _)) => tracing::trace!(%error, "the client closed first"),
            Either::Left((Ok(Ok(())) | Err(_), _)) | Either::Right(_) => (),
        }
    }
}

async fn discard(mut io: impl AsyncRead + AsyncWrite + Unpin, bounds: Bounds) -> std::io::Result<()> {
    io.shutdown().await?;
    let mut scrap = vec![0; 16 * 1024];
    let mut left = bounds.bytes_max;
    while left > 0 {
        match tokio::time::timeout(bounds.quiet, io.read(&mut scrap)).await {
            Ok(read) => match read? {
                0 => break,
                read => left = left.saturating_sub(read),
            },
            Err(_quiet) => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::time::Duration;

    use tokio::io::{AsyncWriteExt, duplex};

    use super::{Bounds, Client, PLACES, Places, discard};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_without_end_is_cut_off() {
        let (mut client, server) = duplex(1024);
        let bounds = Bounds { bytes_max: 100_000, ..Bounds::LONG };
        let discarding = tokio::spawn(discard(server, bounds));
        let mut sent = 0;
        while let Ok(()) = client.write_all(&[0; 1000]).await {
            sent += 1000;
            assert!(sent < 200_000, "it goes on for ever");
        }
        assert!(sent >= 100_000, "cut off after {sent} bytes");
        discarding.await.expect("no panic").expect("no error");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_falls_silent_is_given_up() {
        let (_client, server) = duplex(1024);
        let began = tokio::time::Instant::now();
        discard(server, Bounds::LONG).await.expect("no error");
        assert_eq!(began.elapsed(), Bounds::LONG.quiet);
    }

    /// How long a client is read on that sends a byte a second.
    async fn trickled_for(stop: impl Future<Output = ()>) -> Duration {
        let (mut client, server) = duplex(1024);
        let places = Places::default();
        let trickle = async {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let began = tokio::time::Instant::now();
        tokio::select! {
            biased;
            () = places.linger(server, Client::StillSending, stop) => (),
            () = trickle => panic!("the client was cut off otherwise"),
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_trickles_is_given_up_and_sooner_when_the_server_stops() {
        assert_eq!(trickled_for(pending()).await, Bounds::LONG.whole);
        assert_eq!(trickled_for(ready(())).await, Bounds::BRIEF.whole);
    }

    #[tokio::test]
    async fn only_so_many_linger_for_long() {
        let places = Places::default();
        assert_eq!(places.admit(Client::Done).0, Bounds::BRIEF);
        let held: Vec<_> = (0..PLACES).map(|_| places.admit(Client::StillSending)).collect();
        assert!(held.iter().all(|(bounds, place)| *bounds == Bounds::LONG && place.is_some()));
        assert_eq!(places.admit(Client::StillSending).0, Bounds::BRIEF);
        drop(held);
        assert_eq!(places.admit(Client::StillSending).0, Bounds::LONG);
    }
}
