//! Blocks on their way to readers: whole and ahead while there is room, in small pieces when there is not.
//!
//! A block that was fetched stays in memory until its reader has taken it, which may be long. So its bytes are counted in the room for
//! blocks until then, in a share of it that readers have for themselves. Once slow readers hold that share, everybody goes on with small
//! pieces, each fetched when the one before has been taken, a few at a time in the whole node. What must stay true: no reader waits for
//! memory that another reader holds; a fetch is polled until it is done ([`detached`]).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{BoxStream, Stream};
use futures_util::{StreamExt, stream};
use garage_types::BlockHash;

use crate::block_buffer::Ahead;
use crate::detached::detached;
use crate::error::ModelError;
use crate::garage::Garage;
use crate::get::ByteStream;

/// Blocks, or pieces, fetched ahead of the one being sent.
const PREFETCH: usize = 2;

/// A block, and which of its bytes are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub hash: BlockHash,
    pub block_length: u64,
    pub bytes: Range<u64>,
}

impl Slice {
    fn length(&self) -> u64 {
        self.bytes.end.saturating_sub(self.bytes.start)
    }

    /// The first bytes, at most so many, and what follows.
    fn split(self, length_max: u64) -> (Slice, Option<Slice>) {
        let Range { start, end } = self.bytes;
        let middle = end.min(start.saturating_add(length_max));
        let rest = (middle < end).then(|| Slice { bytes: middle..end, ..self.clone() });
        (Slice { bytes: start..middle, ..self }, rest)
    }
}

/// Bytes that keep what they have been given until the last of them is taken.
struct Held<K> {
    bytes: Bytes,
    _kept: K,
}

impl<K> AsRef<[u8]> for Held<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn kept<K: Send + 'static>(bytes: Bytes, kept: K) -> Bytes {
    Bytes::from_owner(Held { bytes, _kept: kept })
}

/// One reader. Each block that it holds has a clone.
#[derive(Clone, Default)]
struct Reader(Arc<()>);

impl Reader {
    fn ahead(&self) -> Ahead {
        if Arc::strong_count(&self.0) > 1 { Ahead::OfOthers } else { Ahead::OfNothing }
    }
}

/// What is left to fetch.
struct Fetches {
    garage: Garage,
    reader: Reader,
    /// Of the slice that is fetched in pieces.
    rest: Option<Slice>,
    slices: BoxStream<'static, Result<Slice, ModelError>>,
}

type Fetch = BoxFuture<'static, Result<Bytes, ModelError>>;

impl Fetches {
    /// Begins the next fetch; `None` after the last.
    async fn next(mut self) -> Option<(Fetch, Self)> {
        let next = match self.rest.take() {
            Some(rest) => Ok(rest),
            None => self.slices.next().await?,
        };
        let slice = match next {
            Ok(slice) => slice,
            Err(error) => return Some((Box::pin(ready(Err(error))), self)),
        };
        let (fetch, rest) = self.garage.begin_fetch(&self.reader, slice);
        self.rest = rest;
        Some((fetch, self))
    }
}

impl Garage {
    /// The bytes of `slices` in their order, after those of `opened`.
    pub(crate) fn stream_blocks(
        &self,
        opened: Option<Bytes>,
        slices: impl Stream<Item = Result<Slice, ModelError>> + Send + 'static,
    ) -> ByteStream {
        let fetches = Fetches { garage: self.clone(), reader: Reader::default(), rest: None, slices: slices.boxed() };
        // Among the fetches, so that what follows is fetched while it is sent.
        let opened = opened.map(|bytes| -> Fetch { Box::pin(ready(Ok(bytes))) });
        stream::iter(opened).chain(stream::unfold(fetches, Fetches::next)).buffered(PREFETCH).boxed()
    }

    /// The first bytes of a slice, and what follows them: all of it, if there is room.
    pub(crate) async fn fetch_first(&self, slice: Slice) -> Result<(Bytes, Option<Slice>), ModelError> {
        let (fetch, rest) = self.begin_fetch(&Reader::default(), slice);
        Ok((fetch.await?, rest))
    }

    /// Begins to fetch a slice, and says what of it is left for later.
    fn begin_fetch(&self, reader: &Reader, slice: Slice) -> (Fetch, Option<Slice>) {
        let length = usize::try_from(slice.length()).unwrap_or(usize::MAX);
        let room = self.0.block_buffer.for_reader(length, reader.ahead());
        let garage = self.clone();
        let Some(room) = room else {
            let piece = self.0.block_buffer.piece();
            let (slice, rest) = slice.split(piece.bytes_max);
            let work = async move { Ok(kept(garage.0.blocks.get_piece(slice.hash, slice.bytes).await?, piece)) };
            return (self.detached_fetch(work), rest);
        };
        let kept_with = (room, reader.clone());
        let work = async move { Ok(kept(garage.fetch(slice).await?, kept_with)) };
        (self.detached_fetch(work), None)
    }

    fn detached_fetch(&self, work: impl Future<Output = Result<Bytes, ModelError>> + Send + 'static) -> Fetch {
        Box::pin(detached(&**self.0.cluster.spawn(), "block for a reader", work))
    }

    async fn fetch(&self, slice: Slice) -> Result<Bytes, ModelError> {
        let Slice { hash, block_length, bytes } = slice;
        if bytes != (0..block_length) {
            return self.0.blocks.get_range(hash, bytes).await;
        }
        let block = self.0.blocks.get(hash).await?;
        if block.len() as u64 == block_length {
            Ok(block)
        } else {
            Err(ModelError::Damaged(format!("block {hash} has another length than listed")))
        }
    }
}

#[cfg(test)]
mod tests {
    use garage_types::BlockHash;

    use super::Slice;

    #[test]
    fn a_slice_is_taken_in_pieces_without_a_gap() {
        let mut left = Some(Slice { hash: BlockHash::from_bytes([1; 32]), block_length: 100, bytes: 10..95 });
        let mut pieces = Vec::new();
        while let Some(slice) = left {
            let (piece, rest) = slice.split(40);
            pieces.push(piece.bytes);
            left = rest;
        }
        assert_eq!(pieces, [10..50, 50..90, 90..95]);
    }
}
