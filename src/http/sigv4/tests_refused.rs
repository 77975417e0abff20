//! The negative space: requests that must be refused, each with the code a client of AWS would see.

use garage_types::Secret;
use hyper::Request;

use super::signer::Signer;
use super::tests::{SECRET, at, authenticate, head, rules};
use super::{PathEncoding, RegionPolicy, Rules};
use crate::error::ErrorReply;
use crate::head::RequestHead;

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const SIG: &str = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";

/// Code and status the request is refused with; `(none)` when it is let through.
fn outcome(head: &RequestHead) -> String {
    match authenticate(head, &rules(), at("20130524T000000Z")) {
        Ok(None) => "anonymous".to_owned(),
        Ok(Some(_)) => "accepted".to_owned(),
        Err(error) => {
            let reply = ErrorReply::from(error);
            format!("{} {}", reply.code, reply.status.as_u16())
        }
    }
}

/// A request with one `Authorization`, otherwise complete.
fn with_authorization(authorization: &str) -> RequestHead {
    head(
        "GET",
        "/",
        &[("host", "h"), ("x-amz-date", "20130524T000000Z"), ("x-amz-content-sha256", EMPTY), ("authorization", authorization)],
    )
}

#[test]
fn malformed_authorizations_are_refused_and_never_anonymous() {
    const MALFORMED: &str = "AuthorizationHeaderMalformed 400";
    let good = "Credential=K/20130524/us-east-1/s3/aws4_request";
    let headers = "SignedHeaders=host;x-amz-content-sha256;x-amz-date";
    let with = |credential: &str| format!("AWS4-HMAC-SHA256 Credential={credential}, {headers}, Signature={SIG}");
    let cases = [
        ("".to_owned(), "InvalidRequest 400"),
        ("AWS AKID:c2lnbmF0dXJl".to_owned(), "InvalidRequest 400"),
        ("Bearer token".to_owned(), "InvalidRequest 400"),
        ("aws4-hmac-sha256 x".to_owned(), "InvalidRequest 400"),
        ("AWS4-ECDSA-P256-SHA256 x".to_owned(), "InvalidRequest 400"),
        ("AWS4-HMAC-SHA256".to_owned(), MALFORMED),
        ("AWS4-HMAC-SHA256 ".to_owned(), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {headers}, Signature={SIG}"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, Signature={SIG}"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, {headers}"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, {good}, {headers}, Signature={SIG}"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, {headers}, Signature={SIG}, Extra=1"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, {headers}, Signature={SIG},"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, {headers}, Signature={}", &SIG[1..]), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, {headers}, Signature={}", SIG.to_uppercase()), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, SignedHeaders=, Signature={SIG}"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, SignedHeaders=Host;x-amz-date, Signature={SIG}"), MALFORMED),
        (format!("AWS4-HMAC-SHA256 {good}, SignedHeaders=host;host;x-amz-date, Signature={SIG}"), MALFORMED),
        (with("K"), MALFORMED),
        (with("/20130524/us-east-1/s3/aws4_request"), MALFORMED),
        (with("K/20130524/us-east-1/s3/aws4_request/x"), MALFORMED),
        (with("K/2013052/us-east-1/s3/aws4_request"), MALFORMED),
        (with("K/20130524/us-east-1/s3/aws5_request"), MALFORMED),
        (with("K/20130524//s3/aws4_request"), MALFORMED),
        (with("K/20130525/us-east-1/s3/aws4_request"), MALFORMED),
        (with("K/20130524/us-east-1/k2v/aws4_request"), MALFORMED),
        (with("K/20130524/garage/s3/aws4_request"), MALFORMED),
        (with("K/20130524/us-east-1/s3/aws4_request"), "SignatureDoesNotMatch 403"),
    ];
    for (authorization, expected) in cases {
        assert_eq!(outcome(&with_authorization(&authorization)), expected, "{authorization}");
    }
}

#[test]
fn headers_around_a_credential_are_checked() {
    let authorization = |names: &str| {
        format!("AWS4-HMAC-SHA256 Credential=K/20130524/us-east-1/s3/aws4_request, SignedHeaders={names}, Signature={SIG}")
    };
    let full = authorization("host;x-amz-content-sha256;x-amz-date");
    let (date, content) = (("x-amz-date", "20130524T000000Z"), ("x-amz-content-sha256", EMPTY));
    let host = ("host", "h");
    let signed = ("authorization", full.as_str());
    let without_host = authorization("x-amz-content-sha256;x-amz-date");
    let without_date = authorization("host;x-amz-content-sha256");
    let with_range = authorization("host;range;x-amz-content-sha256;x-amz-date");
    let cases: [(&[(&str, &str)], &str); 14] = [
        (&[host, content, signed], "AccessDenied 403"),
        (&[host, content, ("x-amz-date", "yesterday"), signed], "AccessDenied 403"),
        (&[host, content, ("date", "never"), signed], "AccessDenied 403"),
        (&[host, content, date, date, signed], "InvalidArgument 400"),
        (&[host, content, date, signed, signed], "InvalidArgument 400"),
        (&[host, content, content, date, signed], "InvalidArgument 400"),
        (&[host, date, signed], "InvalidRequest 400"),
        (&[host, date, ("x-amz-content-sha256", "beef"), signed], "InvalidArgument 400"),
        (&[host, date, ("x-amz-content-sha256", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"), signed], "InvalidArgument 400"),
        (&[host, content, date, ("x-amz-acl", "public-read"), signed], "AccessDenied 403"),
        (&[host, content, date, ("authorization", &without_host)], "AccessDenied 403"),
        (&[host, content, date, ("authorization", &without_date)], "AccessDenied 403"),
        (&[host, content, date, ("authorization", &with_range)], "SignatureDoesNotMatch 403"),
        (&[content, date, signed], "SignatureDoesNotMatch 403"),
    ];
    for (headers, expected) in cases {
        assert_eq!(outcome(&head("GET", "/", headers)), expected, "{headers:?}");
    }
}

#[test]
fn malformed_presigned_requests_are_refused_and_never_anonymous() {
    const MALFORMED: &str = "AuthorizationQueryParametersError 400";
    let good = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", "K/20130524/us-east-1/s3/aws4_request"),
        ("X-Amz-Date", "20130524T000000Z"),
        ("X-Amz-Expires", "60"),
        ("X-Amz-SignedHeaders", "host"),
        ("X-Amz-Signature", SIG),
    ];
    let uri = |pairs: &[(&str, &str)]| {
        let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("/b/k?{}", pairs.join("&"))
    };
    let refused = |uri: &str| outcome(&head("GET", uri, &[("host", "h")]));
    assert_eq!(refused(&uri(&good)), "SignatureDoesNotMatch 403");
    for missing in 0..good.len() {
        let kept: Vec<_> = good.iter().enumerate().filter(|(index, _)| *index != missing).map(|(_, pair)| *pair).collect();
        assert_eq!(refused(&uri(&kept)), MALFORMED, "without {}", good[missing].0);
        let twice = [&good[..], &good[missing..=missing]].concat();
        assert_eq!(refused(&uri(&twice)), MALFORMED, "twice {}", good[missing].0);
    }
    let changes = [
        (0, "AWS4-HMAC-SHA1"),
        (1, "K/20130524/us-east-1/s3"),
        (1, "K/20130523/us-east-1/s3/aws4_request"),
        (1, "K/20130524/garage/s3/aws4_request"),
        (2, "2013-05-24"),
        (3, "0"),
        (3, "-1"),
        (3, "604801"),
        (3, "99999999999999999999999"),
        (3, "ten"),
        (3, ""),
        (4, "Host"),
        (5, "abc"),
    ];
    for (index, value) in changes {
        let mut changed = good;
        changed[index].1 = value;
        assert_eq!(refused(&uri(&changed)), MALFORMED, "{}={value}", good[index].0);
    }
    let mut bare = good;
    bare[4].1 = "range";
    assert_eq!(refused(&uri(&bare)), "AccessDenied 403");
    assert_eq!(refused("/b/k?x-amz-signature=abc"), MALFORMED);
    assert_eq!(refused("/b/k?AWSAccessKeyId=K&Signature=x&Expires=1"), "InvalidRequest 400");
    let both = head("GET", &uri(&good), &[("host", "h"), ("authorization", "AWS4-HMAC-SHA256 x")]);
    assert_eq!(outcome(&both), "InvalidArgument 400");
}

#[test]
fn a_clock_more_than_a_quarter_of_an_hour_off_is_refused() {
    let signer =
        Signer { key_id: "K".to_owned(), secret: Secret::new(SECRET), region: "us-east-1".to_owned(), service: "s3".to_owned() };
    let cases = [
        ("20130523T234500Z", "accepted"),
        ("20130523T234459Z", "RequestTimeTooSkewed 403"),
        ("20130524T001500Z", "accepted"),
        ("20130524T001501Z", "RequestTimeTooSkewed 403"),
    ];
    for (time, expected) in cases {
        let mut parts = Request::builder().uri("/").header("host", "h").body(()).expect("a request").into_parts().0;
        drop(signer.sign(&mut parts, EMPTY, at(time)));
        assert_eq!(outcome(&RequestHead::read(&parts).expect("a head")), expected, "{time}");
    }
}

#[test]
fn a_wrong_region_is_answered_with_the_right_one() {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=K/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={SIG}"
    );
    let garage = Rules { region: RegionPolicy::Exactly("garage".to_owned()), ..rules() };
    let error = authenticate(&with_authorization(&authorization), &garage, at("20130524T000000Z")).expect_err("another region");
    let reply = ErrorReply::from(error);
    assert_eq!(reply.code, "AuthorizationHeaderMalformed");
    assert!(reply.extra.iter().any(|extra| extra.name == "Region" && extra.text == "garage"));
    let any = Rules { region: RegionPolicy::Any, ..rules() };
    let error = authenticate(&with_authorization(&authorization), &any, at("20130524T000000Z")).expect_err("another signature");
    assert_eq!(error.code(), "SignatureDoesNotMatch");
}

#[test]
fn trailers_must_be_declared_where_they_can_come() {
    let cases = [
        ("UNSIGNED-PAYLOAD", "x-amz-checksum-crc32", "InvalidRequest 400"),
        ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "x-amz-checksum-crc32", "InvalidRequest 400"),
        ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", "a,,b", "InvalidRequest 400"),
        ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", "a,A", "InvalidRequest 400"),
        ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", "x-amz-trailer-signature", "InvalidRequest 400"),
        ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", "a, b", "accepted"),
    ];
    let signer =
        Signer { key_id: "K".to_owned(), secret: Secret::new(SECRET), region: "us-east-1".to_owned(), service: "s3".to_owned() };
    for (content, trailer, expected) in cases {
        let request = Request::builder().method("PUT").uri("/b/k").header("host", "h").header("x-amz-trailer", trailer);
        let mut parts = request.body(()).expect("a request").into_parts().0;
        drop(signer.sign(&mut parts, content, at("20130524T000000Z")));
        assert_eq!(outcome(&RequestHead::read(&parts).expect("a head")), expected, "{content} {trailer}");
    }
}

/// Signed by botocore 1.43 (`SigV4Auth`, service `k2v`), which encodes the path a second time.
#[test]
fn a_path_encoded_twice_is_believed_for_services_that_do_so() {
    let authorization = "AWS4-HMAC-SHA256 Credential=K/20130524/us-east-1/k2v/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature=f28226bd561410f07804e4169f48e56076d00c4b4266c3957017e8fec40082b1";
    let head = head(
        "GET",
        "/b/a%20b%2Fc?sort_key=x%2By",
        &[
            ("host", "localhost:3904"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-content-sha256", EMPTY),
            ("authorization", authorization),
        ],
    );
    let twice = Rules { service: "k2v", path: PathEncoding::Twice, ..rules() };
    assert!(authenticate(&head, &twice, at("20130524T000000Z")).expect("the signature holds").is_some());
    let once = Rules { path: PathEncoding::Once, ..twice };
    assert!(authenticate(&head, &once, at("20130524T000000Z")).is_err());
}

/// Signed by botocore 1.43 (`S3SigV4Auth`).
#[test]
fn what_botocore_signs_for_s3_verifies() {
    let authorization = "AWS4-HMAC-SHA256 Credential=K/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-meta-name, Signature=ab6ab185303d89460d4c0af9a1026d7b9994e5feb3e3432be2582c2973a5baaa";
    let head = head(
        "PUT",
        "/b/a%20b%2B%C3%A9//~x.%2A?tagging&versionId=a%2Fb%3D",
        &[
            ("host", "localhost:3900"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-content-sha256", EMPTY),
            ("x-amz-meta-name", "a   b"),
            ("authorization", authorization),
        ],
    );
    assert!(authenticate(&head, &rules(), at("20130524T000000Z")).expect("the signature holds").is_some());
}
