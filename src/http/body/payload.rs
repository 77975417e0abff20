//! The payload as operations see it: bytes, then trailers, or one error.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::Instant;

use super::Trailer;
use super::chunked::{ChunkedDecoder, ChunkedSpec};
use super::error::BodyError;
use super::plain::PlainCheck;
use crate::head::RequestHead;
use crate::sigv4::PayloadKind;

/// Bounds on reading a body.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// How long the client may send nothing.
    pub idle: Duration,
    /// How fast it must send a document, on the average after `idle`.
    pub document_bytes_per_second_min: u64,
}

impl Default for BodyLimits {
    fn default() -> Self {
        BodyLimits { idle: Duration::from_secs(60), document_bytes_per_second_min: 16 << 10 }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Source = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// A request's body, decoded and checked as it is read.
pub struct Payload {
    source: Source,
    limits: BodyLimits,
    decoded_length: Option<u64>,
    framing: Framing,
    ready: VecDeque<Bytes>,
    progress: Progress,
    trailers: Vec<Trailer>,
}

enum Framing {
    Plain(PlainCheck),
    Chunked(Box<ChunkedDecoder>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Reading,
    /// Ended well, or failed: nothing more comes.
    Over,
}

impl Payload {
    /// `kind`: what authentication found (`Authenticated::payload`), or `PayloadKind::of_anonymous`.
    ///
    /// # Errors
    /// [`BodyError::MissingLength`], [`BodyError::MalformedLength`]: a chunked body must say its decoded length.
    pub fn new<B>(source: B, kind: PayloadKind, head: &RequestHead, limits: &BodyLimits) -> Result<Self, BodyError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let announced = length_header(head, "content-length")?;
        let (framing, decoded_length) = match kind {
            PayloadKind::Unsigned => (Framing::Plain(PlainCheck::new(announced, None)), announced),
            PayloadKind::Signed(sha256) => (Framing::Plain(PlainCheck::new(announced, Some(sha256))), announced),
            PayloadKind::Chunked { signatures, trailers } => {
                let decoded_length = length_header(head, "x-amz-decoded-content-length")?.ok_or(BodyError::MissingLength)?;
                let spec = ChunkedSpec { signatures, trailers, decoded_length };
                (Framing::Chunked(Box::new(ChunkedDecoder::new(spec))), Some(decoded_length))
            }
        };
        Ok(Payload {
            source: Box::pin(source.map_err(Into::into)),
            limits: *limits,
            decoded_length,
            framing,
            ready: VecDeque::new(),
            progress: Progress::Reading,
            trailers: Vec::new(),
        })
    }

    /// How many bytes [`Payload::next`] will give in all, when the client has said so.
    pub fn decoded_length(&self) -> Option<u64> {
        self.decoded_length
    }

    /// The next bytes, never empty; `None` once everything came and was found right. Until then nothing is proven, not even of a signed
    /// chunk: the bytes may be stored, but nobody may see them. After an error nothing more comes, and what came before must be
    /// thrown away. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(Ok(bytes));
            }
            if self.progress == Progress::Over {
                return None;
            }
            if let Err(error) = self.advance().await {
                self.progress = Progress::Over;
                self.ready.clear();
                return Some(Err(error));
            }
        }
    }

    /// The trailers, all of them declared and (if the body is signed) verified; empty before the end.
    pub fn trailers(&self) -> &[Trailer] {
        &self.trailers
    }

    /// The whole payload, for documents that fit in memory. `room`: told how long it is going to be before so much of it is kept.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] beyond `length_max` bytes, which need not be read first when the length was announced;
    /// [`BodyError::TooSlow`]; what `room` says.
    pub async fn read_to_limit<E: From<BodyError>>(
        &mut self,
        length_max: u64,
        mut room: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        if self.decoded_length.is_some_and(|length| length > length_max) {
            return Err(BodyError::TooLarge { length_max }.into());
        }
        let began = Instant::now();
        let mut whole = BytesMut::new();
        loop {
            let earned = Duration::from_secs(whole.len() as u64 / self.limits.document_bytes_per_second_min.max(1));
            let due = began + self.limits.idle + earned;
            let next = tokio::time::timeout_at(due, self.next()).await.map_err(|_elapsed| BodyError::TooSlow)?;
            let Some(bytes) = next.transpose()? else { return Ok(whole.freeze()) };
            let length = (whole.len() + bytes.len()) as u64;
            if length > length_max {
                return Err(BodyError::TooLarge { length_max }.into());
            }
            room(length)?;
            whole.extend_from_slice(&bytes);
        }
    }

    /// Reads one frame and makes of it what it gives.
    async fn advance(&mut self) -> Result<(), BodyError> {
        let frame = tokio::time::timeout(self.limits.idle, self.source.frame()).await.map_err(|_elapsed| BodyError::Idle)?;
        let Some(frame) = frame.transpose().map_err(BodyError::Transport)? else {
            self.trailers = self.finish()?;
            self.progress = Progress::Over;
            return Ok(());
        };
        // HTTP's own trailers mean nothing in S3.
        let Ok(bytes) = frame.into_data() else { return Ok(()) };
        match &mut self.framing {
            Framing::Plain(check) => {
                check.pass(&bytes);
                if !bytes.is_empty() {
                    self.ready.push_back(bytes);
                }
                Ok(())
            }
            Framing::Chunked(decoder) => decoder.push(bytes, &mut self.ready),
        }
    }

    fn finish(&mut self) -> Result<Vec<Trailer>, BodyError> {
        match &mut self.framing {
            Framing::Plain(check) => check.finish().map(|()| Vec::new()),
            Framing::Chunked(decoder) => decoder.finish(),
        }
    }
}

fn length_header(head: &RequestHead, name: &str) -> Result<Option<u64>, BodyError> {
    let text = head.header(name).map_err(|_repeated_or_not_text| BodyError::MalformedLength)?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.map(|text| text.parse().ok().filter(|_| digits(text)).ok_or(BodyError::MalformedLength)).transpose()
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("decoded_length", &self.decoded_length).finish_non_exhaustive()
    }
}
