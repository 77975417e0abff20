//! One message on a stream: lengths, an envelope and a body in MessagePack, attached bytes.
//!
//! Layout: three big-endian `u32` lengths (envelope, body, data), then the three. The envelope says which endpoint, or which
//! error; unknown fields in it and in bodies are ignored, so both may grow. Attached bytes stay out of MessagePack and are copied
//! once on each side. Lengths are checked before anything is allocated for them, and memory is taken as bytes arrive.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::WireError;
use crate::packing;

/// Most bytes of envelope and body together.
pub const HEAD_BYTES_MAX: usize = 16 << 20;
/// Most attached bytes.
pub const DATA_BYTES_MAX: usize = 256 << 20;

const PREFIX_BYTES: usize = 12;
/// Attached bytes up to this length are copied behind the body, which saves a frame.
const JOINED_BYTES_MAX: usize = 4 << 10;
/// What is allocated at first for a long field; doubled as it fills.
const FIRST_ALLOCATION_BYTES: usize = 2 << 20;
/// Within [`PROGRESS_TIMEOUT`], a message that has begun must move on by so much.
const PROGRESS_BYTES: usize = 256 << 10;
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The stream ended between two messages.
    #[error("the stream ended")]
    Ended,
    #[error("the stream broke")]
    Io(#[from] io::Error),
    #[error("no progress within {PROGRESS_TIMEOUT:?}")]
    Stalled,
    #[error("{what} of {claimed} bytes, more than the {max} allowed")]
    TooLong { what: &'static str, claimed: usize, max: usize },
    #[error("cannot encode the message")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("cannot decode the message")]
    Decode(#[from] rmp_serde::decode::Error),
}

/// What precedes a request.
#[derive(Serialize, Deserialize)]
pub(crate) struct RequestEnvelope {
    #[serde(rename = "e")]
    pub endpoint: String,
    /// A reply whose body is longer than this, in bytes, may come compressed.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub packed_from: Option<u32>,
}

/// What precedes a reply; the body is empty when there is an error.
#[derive(Serialize, Deserialize)]
pub(crate) struct ReplyEnvelope {
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
    /// Bytes of the body, which came compressed; absent when it did not.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<u32>,
}

/// A message ready to be sent.
pub(crate) struct Encoded {
    /// Prefix, envelope and body; also the attached bytes when they are few.
    head: Vec<u8>,
    data: Bytes,
}

/// A message as received.
pub(crate) struct Received {
    head: Vec<u8>,
    envelope_bytes: usize,
    pub data: Bytes,
}

/// The lengths of a message whose content has not been read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    envelope: usize,
    body: usize,
    data: usize,
}

impl Lengths {
    /// Memory the whole message takes.
    pub(crate) fn total(self) -> usize {
        self.envelope + self.body + self.data
    }

    fn check(self) -> Result<Self, MessageError> {
        let head = self.envelope + self.body;
        if head > HEAD_BYTES_MAX {
            return Err(MessageError::TooLong { what: "a message head", claimed: head, max: HEAD_BYTES_MAX });
        }
        if self.data > DATA_BYTES_MAX {
            return Err(MessageError::TooLong { what: "attached data", claimed: self.data, max: DATA_BYTES_MAX });
        }
        Ok(self)
    }
}

/// Makes a message. Fails before anything is sent when it is longer than the other side would take.
pub(crate) fn encode(envelope: &impl Serialize, body: &impl Serialize, data: Bytes) -> Result<Encoded, MessageError> {
    assemble(envelope, |head| append(head, body), data)
}

/// Makes the reply to a request that said from which length on it may be compressed.
pub(crate) fn encode_reply(body: &impl Serialize, data: Bytes, packed_from: Option<u32>) -> Result<Encoded, MessageError> {
    let Some(packed_from) = packed_from else {
        return encode(&ReplyEnvelope { error: None, unpacked: None }, body, data);
    };
    let mut plain = Vec::new();
    append(&mut plain, body)?;
    let length = u32::try_from(plain.len()).ok().filter(|length| *length > packed_from);
    let packed = length.and_then(|length| Some((packing::pack(&plain)?, length)));
    let (body, unpacked) = packed.map_or((plain, None), |(packed, length)| (packed, Some(length)));
    let append_body = |head: &mut Vec<u8>| {
        head.extend_from_slice(&body);
        Ok(())
    };
    assemble(&ReplyEnvelope { error: None, unpacked }, append_body, data)
}

fn assemble(
    envelope: &impl Serialize,
    append_body: impl FnOnce(&mut Vec<u8>) -> Result<(), MessageError>,
    data: Bytes,
) -> Result<Encoded, MessageError> {
    let mut head = Vec::with_capacity(256 + if data.len() <= JOINED_BYTES_MAX { data.len() } else { 0 });
    head.resize(PREFIX_BYTES, 0);
    append(&mut head, envelope)?;
    let envelope_bytes = head.len() - PREFIX_BYTES;
    append_body(&mut head)?;
    let body_bytes = head.len() - PREFIX_BYTES - envelope_bytes;
    let lengths = Lengths { envelope: envelope_bytes, body: body_bytes, data: data.len() }.check()?;
    for (at, length) in [lengths.envelope, lengths.body, lengths.data].into_iter().enumerate() {
        head[4 * at..4 * at + 4].copy_from_slice(&(length as u32).to_be_bytes());
    }
    if data.len() > JOINED_BYTES_MAX {
        return Ok(Encoded { head, data });
    }
    head.extend_from_slice(&data);
    Ok(Encoded { head, data: Bytes::new() })
}

fn append(out: &mut Vec<u8>, value: &impl Serialize) -> Result<(), MessageError> {
    value.serialize(&mut rmp_serde::Serializer::new(out).with_struct_map())?;
    Ok(())
}

impl Encoded {
    /// Bytes of the whole message.
    pub(crate) fn length(&self) -> usize {
        self.head.len() + self.data.len()
    }

    /// Sends the message and flushes.
    pub(crate) async fn send(&self, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), MessageError> {
        for chunk in self.head.chunks(PROGRESS_BYTES).chain(self.data.chunks(PROGRESS_BYTES)) {
            with_progress(stream.write_all(chunk)).await?;
        }
        with_progress(stream.flush()).await
    }
}

/// Waits for the next message and reads its lengths.
///
/// # Errors
/// [`MessageError::Ended`] when the stream ends before its first byte.
pub(crate) async fn receive_lengths(stream: &mut (impl AsyncRead + Unpin)) -> Result<Lengths, MessageError> {
    let mut prefix = [0; PREFIX_BYTES];
    // The wait for a first byte has no limit: the stream is idle, or the call's own time-out runs.
    let first = stream.read(&mut prefix).await?;
    if first == 0 {
        return Err(MessageError::Ended);
    }
    with_progress(stream.read_exact(&mut prefix[first..])).await?;
    let (lengths, _) = prefix.as_chunks::<4>();
    let [envelope, body, data] = [0, 1, 2].map(|at| u32::from_be_bytes(lengths[at]) as usize);
    Lengths { envelope, body, data }.check()
}

/// Reads the rest of a message.
pub(crate) async fn receive_content(stream: &mut (impl AsyncRead + Unpin), lengths: Lengths) -> Result<Received, MessageError> {
    let head = receive_bytes(stream, lengths.envelope + lengths.body).await?;
    let data = Bytes::from(receive_bytes(stream, lengths.data).await?);
    Ok(Received { head, envelope_bytes: lengths.envelope, data })
}

/// Reads a field, taking memory as it arrives, so that a claim alone costs nothing.
async fn receive_bytes(stream: &mut (impl AsyncRead + Unpin), length: usize) -> Result<Vec<u8>, MessageError> {
    let mut bytes = vec![0; length.min(FIRST_ALLOCATION_BYTES)];
    let mut filled = 0;
    while filled < length {
        if filled == bytes.len() {
            bytes.resize(length.min(2 * filled), 0);
        }
        let end = bytes.len().min(filled + PROGRESS_BYTES);
        with_progress(stream.read_exact(&mut bytes[filled..end])).await?;
        filled = end;
    }
    Ok(bytes)
}

async fn with_progress<T>(work: impl Future<Output = io::Result<T>>) -> Result<(), MessageError> {
    match tokio::time::timeout(PROGRESS_TIMEOUT, work).await {
        Ok(result) => Ok(result.map(drop)?),
        Err(_elapsed) => Err(MessageError::Stalled),
    }
}

impl Received {
    pub(crate) fn envelope<'a, T: Deserialize<'a>>(&'a self) -> Result<T, MessageError> {
        Ok(rmp_serde::from_slice(&self.head[..self.envelope_bytes])?)
    }

    /// The message with the body as it was before it was compressed to be sent.
    pub(crate) fn unpack(self, unpacked: Option<u32>) -> Result<Received, MessageError> {
        let Some(unpacked) = unpacked else { return Ok(self) };
        let head = packing::unpack(self.body(), unpacked as usize)?;
        Ok(Received { head, envelope_bytes: 0, data: self.data })
    }

    /// The body, still encoded.
    pub(crate) fn body(&self) -> &[u8] {
        &self.head[self.envelope_bytes..]
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::{DATA_BYTES_MAX, HEAD_BYTES_MAX, JOINED_BYTES_MAX, MessageError, Received, ReplyEnvelope, RequestEnvelope};
    use super::{encode, encode_reply, receive_content, receive_lengths};

    fn request(data: usize) -> super::Encoded {
        let envelope = RequestEnvelope { endpoint: "test/1".into(), packed_from: None };
        encode(&envelope, &"body", Bytes::from(vec![7; data])).unwrap()
    }

    async fn bytes_of(data: usize) -> Vec<u8> {
        let (mut near, mut far) = duplex(16 << 20);
        request(data).send(&mut near).await.unwrap();
        drop(near);
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    async fn receive(bytes: &[u8]) -> Result<Received, MessageError> {
        let (mut near, mut far) = duplex(16 << 20);
        near.write_all(bytes).await.unwrap();
        drop(near);
        let lengths = receive_lengths(&mut far).await?;
        receive_content(&mut far, lengths).await
    }

    #[tokio::test]
    async fn messages_with_data_of_all_lengths_arrive() {
        for data in [0, 1, JOINED_BYTES_MAX, JOINED_BYTES_MAX + 1, 5 << 20] {
            let received = receive(&bytes_of(data).await).await.unwrap();
            assert_eq!(received.envelope::<RequestEnvelope>().unwrap().endpoint, "test/1");
            assert_eq!(rmp_serde::from_slice::<String>(received.body()).unwrap(), "body");
            assert!(received.data.len() == data && received.data.iter().all(|byte| *byte == 7));
        }
    }

    #[tokio::test]
    async fn a_message_cut_anywhere_is_an_error() {
        let bytes = bytes_of(5).await;
        assert!(matches!(receive(&[]).await, Err(MessageError::Ended)));
        for end in 1..bytes.len() {
            assert!(matches!(receive(&bytes[..end]).await, Err(MessageError::Io(_))), "cut at {end}");
        }
    }

    #[tokio::test]
    async fn claims_beyond_the_limits_are_refused_unread() {
        let head = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0];
        let data = [0, 0, 0, 1, 0, 0, 0, 1, 0x10, 0, 0, 1];
        assert!(matches!(receive(&head).await, Err(MessageError::TooLong { max: HEAD_BYTES_MAX, .. })));
        assert!(matches!(receive(&data).await, Err(MessageError::TooLong { max: DATA_BYTES_MAX, .. })));
        assert!(matches!(receive(&[0xff; 12]).await, Err(MessageError::TooLong { .. })));
    }

    proptest! {
        /// Each field is small, so that most claims are within the limits.
        #[test]
        fn no_bytes_make_it_panic_or_read_beyond_their_claim(
            lengths in [0_u32..40, 0..40, 0..40],
            rest in vec(any::<u8>(), 0..120),
            flips in vec((0_usize..200, any::<u8>()), 0..4),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let mut bytes: Vec<u8> = lengths.iter().flat_map(|length| length.to_be_bytes()).chain(rest).collect();
            let received = runtime.block_on(receive(&bytes));
            if let Ok(received) = received {
                let [envelope, body, data] = lengths.map(|length| length as usize);
                assert_eq!((received.envelope_bytes, received.body().len(), received.data.len()), (envelope, body, data));
                drop((received.envelope::<RequestEnvelope>(), received.envelope::<ReplyEnvelope>()));
            }
            // And a good message with some bytes changed.
            bytes = runtime.block_on(bytes_of(30));
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Ok(received) = runtime.block_on(receive(&bytes)) {
                drop(received.envelope::<RequestEnvelope>());
            }
        }
    }

    #[tokio::test]
    async fn a_long_reply_is_compressed_for_who_can_undo_it() {
        let body = "key ".repeat(50_000);
        for (packed_from, is_packed) in [(None, false), (Some(1000), true), (Some(1 << 20), false)] {
            let (mut near, mut far) = duplex(16 << 20);
            encode_reply(&body, Bytes::from_static(b"data"), packed_from).unwrap().send(&mut near).await.unwrap();
            let lengths = receive_lengths(&mut far).await.unwrap();
            let received = receive_content(&mut far, lengths).await.unwrap();
            assert_eq!(lengths.total() < body.len() / 10, is_packed, "{packed_from:?}");
            let envelope: ReplyEnvelope = received.envelope().unwrap();
            let received = received.unpack(envelope.unpacked).unwrap();
            assert_eq!(
                (rmp_serde::from_slice::<String>(received.body()).unwrap(), &received.data[..]),
                (body.clone(), &b"data"[..])
            );
        }
    }

    #[test]
    fn we_refuse_to_send_what_the_other_side_would_refuse() {
        let body = "x".repeat(HEAD_BYTES_MAX);
        assert!(matches!(encode(&(), &body, Bytes::new()), Err(MessageError::TooLong { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stops_half_way_times_out() {
        let (mut near, mut far) = duplex(1024);
        near.write_all(&bytes_of(0).await[..5]).await.unwrap();
        assert!(matches!(receive_lengths(&mut far).await, Err(MessageError::Stalled)));
    }
}
