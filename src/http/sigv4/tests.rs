//! AWS's published examples, what botocore signs, and the round trip through our own signer.

use std::collections::VecDeque;

use bytes::Bytes;
use garage_types::{Secret, Timestamp};
use hyper::Request;
use proptest::prelude::{any, prop_assert, proptest};
use sha2::{Digest, Sha256};

use super::signer::Signer;
use super::{
    AuthError, Authenticated, ChunkSignatures, Claim, PathEncoding, PayloadKind, PolicyClaim, PolicyFields, RegionPolicy, Rules,
    SigningKey, SigningKeys, Trailers, parse,
};
use crate::body::{BodyError, ChunkedDecoder, ChunkedSpec};
use crate::dates::parse_amz_basic;
use crate::head::RequestHead;

pub(super) const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const CREDENTIAL: &str = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request";

pub(super) fn rules() -> Rules {
    Rules { region: RegionPolicy::Exactly("us-east-1".to_owned()), service: "s3", path: PathEncoding::Once }
}

pub(super) fn at(text: &str) -> Timestamp {
    parse_amz_basic(text).expect("a date")
}

fn example_time() -> Timestamp {
    at("20130524T000000Z")
}

pub(super) fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    RequestHead::read(&request.body(()).expect("a request").into_parts().0).expect("a head")
}

/// Both steps with the secret of the examples.
pub(super) fn authenticate(head: &RequestHead, rules: &Rules, now: Timestamp) -> Result<Option<Authenticated>, AuthError> {
    let Some(claim) = parse(head)? else { return Ok(None) };
    let key = SigningKey::derive(&Secret::new(SECRET), &claim.scope);
    claim.verify(head, &key, rules, now).map(Some)
}

fn example(method: &str, uri: &str, headers: &[(&str, &str)], signed: &str, signature: &str) -> RequestHead {
    let authorization = format!("AWS4-HMAC-SHA256 Credential={CREDENTIAL},SignedHeaders={signed},Signature={signature}");
    let all = [headers, &[("x-amz-date", "20130524T000000Z"), ("authorization", &authorization)]].concat();
    head(method, uri, &all)
}

const HOST: (&str, &str) = ("host", "examplebucket.s3.amazonaws.com");
const NO_BODY: (&str, &str) = ("x-amz-content-sha256", EMPTY);

#[test]
fn the_published_header_examples_verify() {
    let put = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    let examples = [
        example(
            "GET",
            "/test.txt",
            &[HOST, NO_BODY, ("range", "bytes=0-9")],
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        example(
            "PUT",
            "/test$file.text",
            &[
                HOST,
                ("x-amz-content-sha256", put),
                ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ],
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        example(
            "GET",
            "/?lifecycle",
            &[HOST, NO_BODY],
            "host;x-amz-content-sha256;x-amz-date",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        example(
            "GET",
            "/?max-keys=2&prefix=J",
            &[HOST, NO_BODY],
            "host;x-amz-content-sha256;x-amz-date",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ];
    for head in examples {
        let verified = authenticate(&head, &rules(), example_time()).expect("the signature holds").expect("signed");
        assert_eq!(verified.key_id, "AKIAIOSFODNN7EXAMPLE");
        assert!(matches!(verified.payload, PayloadKind::Signed(_)));
    }
}

const PRESIGNED: &str = "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";

#[test]
fn the_published_presigned_example_verifies_until_it_expires() {
    let head = head("GET", PRESIGNED, &[HOST]);
    let verified = authenticate(&head, &rules(), at("20130525T000000Z")).expect("the signature holds").expect("signed");
    assert!(matches!(verified.payload, PayloadKind::Unsigned));
    assert!(matches!(authenticate(&head, &rules(), at("20130525T000001Z")), Err(AuthError::Expired { .. })));
    assert!(authenticate(&head, &rules(), at("20130523T234500Z")).is_ok());
    assert!(matches!(authenticate(&head, &rules(), at("20130523T234459Z")), Err(AuthError::NotYetValid { .. })));
}

#[test]
fn a_presigned_request_does_not_cover_an_added_header() {
    let head = head("GET", PRESIGNED, &[HOST, ("x-amz-copy-source", "/other/object")]);
    let refused = authenticate(&head, &rules(), example_time());
    assert!(matches!(refused, Err(AuthError::HeadersNotSigned { names }) if names == ["x-amz-copy-source"]));
}

#[test]
fn what_a_proxy_adds_by_itself_need_not_be_signed() {
    assert!(authenticate(&head("GET", PRESIGNED, &[HOST, ("x-amz-cf-id", "Zx1")]), &rules(), example_time()).is_ok());
    let refused = authenticate(&head("GET", PRESIGNED, &[HOST, ("x-amz-cf-other", "Zx1")]), &rules(), example_time());
    assert!(matches!(refused, Err(AuthError::HeadersNotSigned { .. })), "who can tell what that means?");
}

/// Decodes the published chunked body: 65 KiB of `a` in chunks of 64 KiB, 1 KiB and 0, cut in pieces of `step` bytes.
fn decode(payload: PayloadKind, body: &[u8], step: usize) -> Result<(Vec<u8>, usize), BodyError> {
    let PayloadKind::Chunked { signatures, trailers } = payload else { panic!("not chunked") };
    let spec = ChunkedSpec { signatures, trailers, decoded_length: 66560 };
    let mut decoder = ChunkedDecoder::new(spec);
    let mut output = VecDeque::new();
    for piece in body.chunks(step) {
        decoder.push(Bytes::copy_from_slice(piece), &mut output)?;
    }
    let trailers = decoder.finish()?;
    Ok((output.into_iter().flatten().collect(), trailers.len()))
}

fn chunked_body(signatures: [&str; 3], end: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (length, signature) in [65536, 1024, 0].into_iter().zip(signatures) {
        body.extend(format!("{length:x};chunk-signature={signature}\r\n").into_bytes());
        body.extend(std::iter::repeat_n(b'a', length));
        if length > 0 {
            body.extend(b"\r\n");
        }
    }
    body.extend(end.as_bytes());
    body
}

fn published_chunked() -> (PayloadKind, Vec<u8>) {
    let head = example(
        "PUT",
        "/examplebucket/chunkObject.txt",
        &[
            ("host", "s3.amazonaws.com"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("content-length", "66824"),
        ],
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    );
    let verified = authenticate(&head, &rules(), example_time()).expect("the signature holds").expect("signed");
    let signatures = [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ];
    (verified.payload, chunked_body(signatures, "\r\n"))
}

#[test]
fn the_published_chunked_example_verifies_however_it_is_cut() {
    let (payload, body) = published_chunked();
    assert_eq!(body.len(), 66824);
    for step in [1, 7, 1000, 65536, 70000] {
        let (data, _) = decode(payload.clone(), &body, step).expect("the chain holds");
        assert!(data == vec![b'a'; 66560], "step {step}");
    }
}

#[test]
fn data_of_a_signed_chunk_pass_on_at_once_and_a_forged_signature_ends_the_body() {
    let (payload, body) = published_chunked();
    let PayloadKind::Chunked { signatures, trailers } = payload else { panic!("not chunked") };
    let mut decoder = ChunkedDecoder::new(ChunkedSpec { signatures, trailers, decoded_length: 66560 });
    let (first, mut rest) = (Bytes::copy_from_slice(&body[..40_000]), body[40_000..].to_vec());
    let mut output = VecDeque::new();
    decoder.push(first, &mut output).expect("nothing is wrong yet");
    let passed: usize = output.iter().map(Bytes::len).sum();
    assert!(passed > 39_800, "{passed} bytes have left, of 40000 that came");
    assert!(matches!(decoder.finish(), Err(BodyError::Truncated)), "and none of them is proven");
    rest[0] ^= 1;
    assert!(matches!(decoder.push(rest.into(), &mut output), Err(BodyError::ChunkSignatureMismatch)));
}

#[test]
fn a_changed_byte_anywhere_in_a_chunked_body_is_noticed() {
    let (payload, body) = published_chunked();
    for position in (0..body.len()).step_by(997).chain(0..90).chain(body.len() - 90..body.len()) {
        let mut changed = body.clone();
        changed[position] ^= 1;
        assert!(decode(payload.clone(), &changed, 4096).is_err(), "byte {position}");
    }
}

#[test]
fn a_body_cut_anywhere_is_never_complete() {
    let (payload, body) = published_chunked();
    for length in (0..body.len()).step_by(1009).chain(65600..65720).chain(body.len() - 120..body.len()) {
        assert!(decode(payload.clone(), &body[..length], 4096).is_err(), "cut at {length}");
    }
    let longer = [&body[..], b"x"].concat();
    assert!(decode(payload, &longer, 4096).is_err());
}

#[test]
fn the_published_trailer_example_verifies() {
    let head = example(
        "PUT",
        "/examplebucket/chunkObject.txt",
        &[
            ("host", "s3.amazonaws.com"),
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("content-encoding", "aws-chunked"),
            ("x-amz-decoded-content-length", "66560"),
            ("x-amz-trailer", "x-amz-checksum-crc32c"),
        ],
        "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer",
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
    );
    let verified = authenticate(&head, &rules(), example_time()).expect("the signature holds").expect("signed");
    let signatures = [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ];
    let signature = "x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435";
    // As AWS's SDKs write it, and as its documentation and minio-go do.
    for end in [
        format!("x-amz-checksum-crc32c:sOO8/Q==\r\n{signature}\r\n\r\n"),
        format!("x-amz-checksum-crc32c:sOO8/Q==\n\r\n{signature}\r\n\r\n"),
    ] {
        let (data, trailers) = decode(verified.payload.clone(), &chunked_body(signatures, &end), 1000).expect("the chain holds");
        assert_eq!((data.len(), trailers), (66560, 1));
    }
    for end in [
        format!("x-amz-checksum-crc32c:sOO8/R==\r\n{signature}\r\n\r\n"),
        format!("{signature}\r\n\r\n"),
        "x-amz-checksum-crc32c:sOO8/Q==\r\n\r\n".to_owned(),
        "x-amz-checksum-crc32c:sOO8/Q==\r\n\r\n\r\n".to_owned(),
        format!("x-amz-checksum-crc32c:sOO8/Q==\r\n{signature}\r\n"),
        format!("x-amz-checksum-crc32c:sOO8/Q==\r\n{signature}\r\n\r\n\r\n"),
        "\r\n".to_owned(),
    ] {
        assert!(decode(verified.payload.clone(), &chunked_body(signatures, &end), 1000).is_err(), "{end:?}");
    }
}

fn signer(service: &str) -> Signer {
    Signer {
        key_id: "GK31c2f218a2e44f485b94239e".to_owned(),
        secret: Secret::new(SECRET),
        region: "us-east-1".to_owned(),
        service: service.to_owned(),
    }
}

#[test]
fn a_path_is_believed_as_sent_or_as_the_book_encodes_it() {
    // (what is sent, what the client signed)
    let same = [
        ("/b/a$b", "/b/a%24b"),
        ("/b/a%2fb", "/b/a/b"),
        ("/b/a+b", "/b/a%2Bb"),
        ("/b//x/../y", "/b//x/../y"),
        ("/b/a%24b", "/b/a%24b"),
    ];
    for (sent, signed) in same {
        let mut parts = Request::builder().uri(signed).header("host", "h").body(()).expect("a request").into_parts().0;
        drop(signer("s3").sign(&mut parts, EMPTY, example_time()));
        parts.uri = sent.parse().expect("a URI");
        let head = RequestHead::read(&parts).expect("a head");
        assert!(authenticate(&head, &rules(), example_time()).is_ok(), "{sent}");
    }
}

#[test]
fn a_policy_is_verified_and_has_its_age_bounded() {
    let policy = "eyAiZXhwaXJhdGlvbiI6IC4uLiB9";
    let signature = signer("s3").sign_policy(policy, example_time()).to_hex();
    let fields = PolicyFields {
        algorithm: "AWS4-HMAC-SHA256",
        credential: CREDENTIAL,
        date: "20130524T000000Z",
        signature: &signature,
        policy,
    };
    let claim = PolicyClaim::parse(&fields).expect("well formed");
    let key = SigningKey::derive(&Secret::new(SECRET), &claim.scope);
    assert_eq!(claim.verify(&key, &rules(), at("20130531T000000Z")), Ok(()));
    assert!(matches!(claim.verify(&key, &rules(), at("20130531T000001Z")), Err(AuthError::Expired { .. })));
    let other = PolicyClaim::parse(&PolicyFields { policy: "e30=", ..fields }).expect("well formed");
    assert_eq!(other.verify(&key, &rules(), example_time()), Err(AuthError::SignatureMismatch));
}

#[test]
fn a_cached_key_is_not_used_for_another_secret() {
    let cache = SigningKeys::default();
    let scope = parse(&head("GET", PRESIGNED, &[HOST])).expect("well formed").map(|claim: Claim| claim.scope).expect("signed");
    let first = cache.get("k", &Secret::new("one"), &scope).sign(b"x");
    assert!(first == cache.get("k", &Secret::new("one"), &scope).sign(b"x"));
    assert!(first != cache.get("k", &Secret::new("two"), &scope).sign(b"x"));
}

#[test]
fn an_anonymous_request_still_has_its_framing_decoded() {
    let headers = [
        ("host", "h"),
        ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        ("x-amz-trailer", "X-Amz-Checksum-Crc32"),
    ];
    let head = head("PUT", "/b/k", &headers);
    assert!(parse(&head).expect("no credential").is_none());
    match PayloadKind::of_anonymous(&head).expect("well formed") {
        PayloadKind::Chunked { signatures: ChunkSignatures::None, trailers } => {
            assert_eq!(trailers, Trailers::Declared(vec!["x-amz-checksum-crc32".to_owned()]));
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn what_the_signer_signs_verifies_and_nothing_else(key in "[^\0]{0,20}", name in "[a-z+ &=é]{0,6}", value in any::<String>(), body in any::<Vec<u8>>()) {
        let uri = format!("/b/{}?{}={}", crate::uri::encode_path(&key), crate::uri::encode(&name), crate::uri::encode(&value));
        let digest = hex::encode(Sha256::digest(&body));
        let request = || Request::builder().method("PUT").uri(&uri).header("host", "h").header("x-amz-meta-a", "  a   b ").body(()).expect("a request").into_parts().0;
        let mut parts = request();
        drop(signer("s3").sign(&mut parts, &digest, example_time()));
        let head = RequestHead::read(&parts).expect("a head");
        prop_assert!(authenticate(&head, &rules(), example_time()).expect("holds").is_some());
        let mut presigned = request();
        signer("s3").presign(&mut presigned, 60, example_time());
        let head = RequestHead::read(&presigned).expect("a head");
        prop_assert!(authenticate(&head, &rules(), example_time()).expect("holds").is_some());
        parts.method = hyper::Method::DELETE;
        let head = RequestHead::read(&parts).expect("a head");
        prop_assert!(matches!(authenticate(&head, &rules(), example_time()), Err(AuthError::SignatureMismatch)));
    }

    #[test]
    fn no_authorization_makes_the_parser_panic(text in "[ -~]{0,100}", mixed in "(AWS4-HMAC-SHA256 )?(Credential=|/|,|SignedHeaders=|Signature=|;|[a-z0-9]{0,3}){0,12}") {
        for value in [text, mixed] {
            let head = head("GET", "/", &[("host", "h"), ("x-amz-date", "20130524T000000Z"), ("authorization", &value)]);
            prop_assert!(authenticate(&head, &rules(), example_time()).is_err());
        }
    }
}
