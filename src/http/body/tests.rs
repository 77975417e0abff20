use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::{Full, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert, proptest};
use sha2::{Digest, Sha256};

use super::{BodyError, BodyLimits, ChunkedDecoder, ChunkedSpec, Payload, stored_content_encoding};
use crate::head::RequestHead;
use crate::sigv4::{ChunkSignatures, PayloadKind, Trailers};

fn head(headers: &[(&str, &str)]) -> RequestHead {
    let mut request = Request::builder();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    RequestHead::read(&request.body(()).expect("a request").into_parts().0).expect("a head")
}

fn payload(kind: PayloadKind, headers: &[(&str, &str)], body: &'static str) -> Payload {
    Payload::new(Full::new(Bytes::from_static(body.as_bytes())), kind, &head(headers), &BodyLimits::default()).expect("a payload")
}

#[expect(clippy::unnecessary_wraps, reason = "others refuse")]
fn any_length(_length: u64) -> Result<(), BodyError> {
    Ok(())
}

/// An unsigned chunked body with these trailers declared, decoded in pieces of `step` bytes.
fn decode(body: &[u8], decoded_length: u64, trailers: &[&str], step: usize) -> Result<(Vec<u8>, Vec<super::Trailer>), BodyError> {
    let trailers = Trailers::Declared(trailers.iter().map(|name| (*name).to_owned()).collect());
    let spec = ChunkedSpec { signatures: ChunkSignatures::None, trailers, decoded_length };
    let mut decoder = ChunkedDecoder::new(spec);
    let mut output = VecDeque::new();
    for piece in body.chunks(step) {
        decoder.push(Bytes::copy_from_slice(piece), &mut output)?;
    }
    let trailers = decoder.finish()?;
    Ok((output.into_iter().flatten().collect(), trailers))
}

#[test]
fn unsigned_chunks_with_trailers_are_decoded_however_they_are_cut() {
    // As AWS's SDKs send it, and as minio-go does.
    for body in ["5\r\nhello\r\n1\r\n!\r\n0\r\nx-a: 1 \r\nx-b:2\r\n\r\n", "6\r\nhello!\r\n0\r\nx-b:2\nx-a:1\n\r\n\r\n"] {
        for step in 1..body.len() {
            let (data, trailers) = decode(body.as_bytes(), 6, &["x-a", "x-b"], step).expect("well formed");
            assert_eq!(data, b"hello!");
            assert_eq!(trailers.iter().find(|trailer| trailer.name == "x-a").map(|trailer| trailer.value.as_str()), Some("1"));
        }
    }
}

#[test]
fn anything_short_of_the_exact_form_is_refused() {
    let cases = [
        ("5\r\nhello\r\n0\r\n\r\n", "MalformedTrailerError"),
        ("5\r\nhello\r\n0\r\nx-a:1\r\nx-a:1\r\n\r\n", "MalformedTrailerError"),
        ("5\r\nhello\r\n0\r\nx-c:1\r\nx-a:1\r\n\r\n", "MalformedTrailerError"),
        ("5\r\nhello\r\n0\r\nx-a\r\n\r\n", "MalformedTrailerError"),
        ("5\r\nhello\r\n0\r\nx-a:1\r\nx-amz-trailer-signature:00\r\n\r\n", "MalformedTrailerError"),
        ("5\r\nhello\r\n0\r\nx-a:1\r\n\r\n\r\n\r\n", "InvalidRequest"),
        ("5\r\nhello\r\n0\r\nx-a:1\r\n\r\nmore", "InvalidRequest"),
        ("5\r\nhello\r\n", "IncompleteBody"),
        ("5\r\nhel", "IncompleteBody"),
        ("", "IncompleteBody"),
        ("5\r\nhello\r\n0\r\nx-a:1\r\n", "IncompleteBody"),
        ("4\r\nhell\r\n0\r\nx-a:1\r\n\r\n", "IncompleteBody"),
        ("6\r\nhello!\r\n0\r\nx-a:1\r\n\r\n", "IncompleteBody"),
        ("ffffffffffffffff\r\nx", "IncompleteBody"),
        ("5\r\nhello0\r\nx-a:1\r\n\r\n", "InvalidRequest"),
        ("5\nhello\r\n0\r\nx-a:1\r\n\r\n", "InvalidRequest"),
        ("+5\r\nhello\r\n0\r\nx-a:1\r\n\r\n", "InvalidRequest"),
        ("\r\n", "InvalidRequest"),
        ("5;x=y\r\nhello\r\n0\r\nx-a:1\r\n\r\n", "InvalidRequest"),
        ("5;chunk-signature=0000000000000000000000000000000000000000000000000000000000000000\r\nhello\r\n", "InvalidRequest"),
        ("11111111111111111\r\n", "InvalidRequest"),
    ];
    for (body, code) in cases {
        for step in [1, 1000] {
            let refused = decode(body.as_bytes(), 5, &["x-a"], step).map_err(|error| error.code());
            assert_eq!(refused.err(), Some(code), "{body:?}");
        }
    }
}

#[tokio::test]
async fn a_signed_body_ends_only_if_its_digest_is_right() {
    let digest: [u8; 32] = Sha256::digest(b"hello").into();
    let mut right = payload(PayloadKind::Signed(digest), &[("content-length", "5")], "hello");
    assert_eq!(right.read_to_limit(5, any_length).await.expect("right"), "hello");
    let mut wrong = payload(PayloadKind::Signed(digest), &[], "hellO");
    assert!(matches!(wrong.next().await, Some(Ok(_))));
    assert!(matches!(wrong.next().await, Some(Err(BodyError::DigestMismatch { .. }))));
    assert!(wrong.next().await.is_none());
    let mut empty = payload(PayloadKind::Signed(digest), &[], "");
    assert!(matches!(empty.next().await, Some(Err(BodyError::DigestMismatch { .. }))));
}

#[tokio::test]
async fn a_body_shorter_than_announced_is_incomplete() {
    let mut short = payload(PayloadKind::Unsigned, &[("content-length", "6")], "hello");
    assert!(matches!(short.read_to_limit(10, any_length).await, Err(BodyError::Incomplete { expected: 6, received: 5 })));
}

#[tokio::test]
async fn a_document_has_a_limit_announced_or_not() {
    let mut announced = payload(PayloadKind::Unsigned, &[("content-length", "5")], "hello");
    assert!(matches!(announced.read_to_limit(4, any_length).await, Err(BodyError::TooLarge { length_max: 4 })));
    let mut open = payload(PayloadKind::Unsigned, &[], "hello");
    assert!(matches!(open.read_to_limit(4, any_length).await, Err(BodyError::TooLarge { length_max: 4 })));
}

#[tokio::test]
async fn trailers_are_there_after_the_end() {
    let trailers = Trailers::Declared(vec!["x-a".to_owned()]);
    let kind = PayloadKind::Chunked { signatures: ChunkSignatures::None, trailers };
    let mut body = payload(kind.clone(), &[("x-amz-decoded-content-length", "5")], "5\r\nhello\r\n0\r\nx-a:1\r\n\r\n");
    assert_eq!(body.decoded_length(), Some(5));
    assert_eq!(body.read_to_limit(5, any_length).await.expect("well formed"), "hello");
    assert_eq!(body.trailers().len(), 1);
    let missing = Payload::new(Full::new(Bytes::new()), kind, &head(&[]), &BodyLimits::default());
    assert!(matches!(missing, Err(BodyError::MissingLength)));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_silent_is_given_up() {
    let first = stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x")))]);
    let body = StreamBody::new(first.chain(stream::pending()));
    let limits = BodyLimits { idle: Duration::from_secs(60), ..BodyLimits::default() };
    let mut payload = Payload::new(body, PayloadKind::Unsigned, &head(&[]), &limits).expect("a payload");
    assert!(matches!(payload.next().await, Some(Ok(_))));
    let started = tokio::time::Instant::now();
    assert!(matches!(payload.next().await, Some(Err(BodyError::Idle))));
    assert_eq!(started.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_document_that_comes_in_drops_is_given_up_and_one_that_is_only_slow_is_not() {
    let document = |bytes_a_second: usize| {
        let drops = stream::unfold(100, move |left: u32| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let drop = Frame::data(Bytes::from(vec![b'x'; bytes_a_second]));
            (left > 0).then(|| (Ok::<_, std::io::Error>(drop), left - 1))
        });
        let body = StreamBody::new(drops);
        Payload::new(body, PayloadKind::Unsigned, &head(&[]), &BodyLimits::default()).expect("a payload")
    };
    let started = tokio::time::Instant::now();
    let mut longest = 0;
    let room = |length| {
        longest = length;
        Ok(())
    };
    assert!(matches!(document(100).read_to_limit(1 << 23, room).await, Err(BodyError::TooSlow)));
    assert_eq!((started.elapsed(), longest), (Duration::from_secs(60), 6000), "and room was taken for what had come");
    let slow = document(8 << 10).read_to_limit(1 << 23, any_length).await.expect("all of it");
    assert_eq!(slow.len(), 100 * (8 << 10));
    let refused = document(1).read_to_limit(1 << 23, |_length| Err(BodyError::Truncated)).await;
    assert!(matches!(refused, Err(BodyError::Truncated)));
}

#[tokio::test]
async fn lengths_must_be_plain_numbers() {
    for text in ["+5", "-1", "", "5 5", "0x5", "99999999999999999999"] {
        let refused = Payload::new(
            Full::new(Bytes::new()),
            PayloadKind::Unsigned,
            &head(&[("content-length", text)]),
            &BodyLimits::default(),
        );
        assert!(matches!(refused, Err(BodyError::MalformedLength)), "{text}");
    }
}

#[test]
fn aws_chunked_is_no_encoding_of_the_object() {
    assert_eq!(stored_content_encoding("aws-chunked"), None);
    assert_eq!(stored_content_encoding("aws-chunked, gzip").as_deref(), Some("gzip"));
    assert_eq!(stored_content_encoding("gzip,br").as_deref(), Some("gzip,br"));
    assert_eq!(stored_content_encoding("gzip, br").as_deref(), Some("gzip, br"));
    assert_eq!(stored_content_encoding("gzip , aws-chunked,  br").as_deref(), Some("gzip ,  br"));
    assert_eq!(stored_content_encoding("AWS-Chunked , gzip, br").as_deref(), Some("gzip, br"));
    assert_eq!(stored_content_encoding(" , aws-chunked").as_deref(), None);
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic_or_exceed_its_length(body in vec(any::<u8>(), 0..100), text in "[0-5a\r\n;:x-]{0,60}", step in 1_usize..9) {
        for bytes in [&body[..], text.as_bytes()] {
            if let Ok((data, _)) = decode(bytes, 5, &["x-a"], step) {
                prop_assert!(data.len() == 5);
            }
        }
    }

    #[test]
    fn what_is_sent_in_chunks_comes_out_whole(chunks in vec(vec(any::<u8>(), 1..300), 0..6), step in 1_usize..700) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            body.extend(chunk);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n\r\n");
        let whole = chunks.concat();
        let (data, _) = decode(&body, whole.len() as u64, &[], step).expect("well formed");
        prop_assert!(data == whole);
    }
}
