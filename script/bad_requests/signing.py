"""Signatures, presigned URLs, bodies in signed chunks, and digests that do not fit."""

from dataclasses import replace
from urllib.parse import quote

from raw_s3 import Chunked, anonymous, crc32, md5, presigned, signed

from .row import ERRORS, HEADER, QUERY, CHUNKS, TRAILERS, INTEGRITY, HTTP, OWN, Row


def signatures(w):
    s = w.signer
    good = signed(s, "GET", w.object)
    altered = good.replace(b"Signature=", b"Signature=0", 1)
    wrong = signed(replace(s, secret="0" * 64), "GET", w.object)
    authorization = next(line for line in good.split(b"\r\n") if line.startswith(b"authorization"))

    def with_authorization(value):
        return good.replace(authorization, b"authorization: " + value)

    yield Row("the right signature (to see that the others fail for their own reason)", good, 200, "", HEADER)
    yield Row("a wrong secret", wrong, 403, "SignatureDoesNotMatch", ERRORS)
    yield Row("a signature of 65 digits", altered, 400, "AuthorizationHeaderMalformed", HEADER)
    yield Row("a signature for another path", signed(s, "GET", w.object).replace(b"/kept HTTP", b"/other HTTP"), 403,
              "SignatureDoesNotMatch", ERRORS)
    yield Row("a signature for another method", b"DELETE" + good[3:], 403, "SignatureDoesNotMatch", ERRORS)
    yield Row("16 minutes late", signed(s, "GET", w.object, shift_seconds=-960), 403, "RequestTimeTooSkewed", ERRORS)
    yield Row("16 minutes early", signed(s, "GET", w.object, shift_seconds=960), 403, "RequestTimeTooSkewed", ERRORS)
    yield Row("the credential of another day", signed(s, "GET", w.object, scope_day="20200101"), 400,
              "AuthorizationHeaderMalformed", HEADER)
    yield Row("another region", signed(replace(s, region="us-east-1"), "GET", w.object), 400, "AuthorizationHeaderMalformed",
              ERRORS, region="garage")
    yield Row("another service", signed(replace(s, service="iam"), "GET", w.object), 400, "AuthorizationHeaderMalformed", HEADER)
    yield Row("two Authorization headers", good.replace(authorization, authorization + b"\r\n" + authorization), 400,
              "InvalidArgument", ERRORS)
    yield Row("an empty Authorization header", with_authorization(b""), 400, "InvalidRequest", HEADER)
    yield Row("a Bearer token", with_authorization(b"Bearer abc"), 400, "InvalidRequest", HEADER)
    yield Row("signature version 2", with_authorization(b"AWS " + s.key_id.encode() + b":c2lnbmF0dXJl"), 400, "InvalidRequest",
              ERRORS)
    yield Row("an Authorization without its fields", with_authorization(b"AWS4-HMAC-SHA256 "), 400,
              "AuthorizationHeaderMalformed", HEADER)
    yield Row("an Authorization with a credential of two parts", with_authorization(
        b"AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=" + b"0" * 64), 400, "AuthorizationHeaderMalformed", HEADER)
    yield Row("an x-amz header that is not signed", signed(s, "GET", w.object, unsigned=[("x-amz-checksum-mode", "ENABLED")]), 403,
              "AccessDenied", HEADER)
    yield Row("an unsigned x-amz-copy-source", signed(s, "PUT", w.bad(), unsigned=[("x-amz-copy-source", w.object)]), 403,
              "AccessDenied", HEADER)
    yield Row("the host is not signed", signed(s, "GET", w.object, leave_out=("host",)), 403, "AccessDenied", HEADER)
    yield Row("a signed header that is not there", signed(s, "GET", w.object, headers=[("x-amz-meta-a", "b")], hide=("x-amz-meta-a",)),
              403, "SignatureDoesNotMatch", HEADER)
    yield Row("no date", signed(s, "GET", w.object, hide=("x-amz-date",)), 403, "AccessDenied", HEADER)
    yield Row("no x-amz-content-sha256", signed(s, "GET", w.object, hide=("x-amz-content-sha256",)), 400, "InvalidRequest", HEADER)
    yield Row("an x-amz-content-sha256 that is none", signed(s, "GET", w.object, digest="abc"), 400, "InvalidArgument", HEADER)
    yield Row("a session token, which nobody was given", signed(s, "GET", w.object, headers=[("x-amz-security-token", "t")]), 400,
              "InvalidToken", ERRORS)


def presigned_urls(w):
    s, malformed = w.signer, "AuthorizationQueryParametersError"
    yield Row("presigned: right", presigned(s, "GET", w.object), 200, "", QUERY)
    yield Row("presigned: expired", presigned(s, "GET", w.object, shift_seconds=-700), 403, "AccessDenied", QUERY)
    yield Row("presigned: not yet valid", presigned(s, "GET", w.object, shift_seconds=1200), 403, "AccessDenied", QUERY)
    yield Row("presigned: for more than a week", presigned(s, "GET", w.object, expires="604801"), 400, malformed, QUERY)
    yield Row("presigned: for no time at all", presigned(s, "GET", w.object, expires="0"), 400, malformed, QUERY)
    yield Row("presigned: for a negative time", presigned(s, "GET", w.object, expires="-1"), 400, malformed, QUERY)
    yield Row("presigned: for more seconds than fit", presigned(s, "GET", w.object, expires="9" * 30), 400, malformed, QUERY)
    yield Row("presigned: no expiry", presigned(s, "GET", w.object, drop=("X-Amz-Expires",)), 400, malformed, QUERY)
    yield Row("presigned: no date", presigned(s, "GET", w.object, drop=("X-Amz-Date",)), 400, malformed, QUERY)
    yield Row("presigned: another region", presigned(replace(s, region="us-east-1"), "GET", w.object), 400, malformed, QUERY,
              region="garage")
    yield Row("presigned: an added unsigned x-amz-copy-source",
              presigned(s, "PUT", w.bad(), unsigned=[("x-amz-copy-source", w.object)]), 403, "AccessDenied", QUERY, "PUT")
    yield Row("presigned: an x-amz-copy-source added to the query",
              presigned(s, "PUT", w.bad(), appended="&x-amz-copy-source=" + quote(w.object, safe="")), 403, "SignatureDoesNotMatch",
              QUERY, "PUT")
    yield Row("presigned: a parameter added", presigned(s, "GET", w.object, appended="&response-content-type=text%2Fhtml"), 403,
              "SignatureDoesNotMatch", QUERY)
    yield Row("presigned: a signature given twice", presigned(s, "GET", w.object, appended="&X-Amz-Signature=" + "0" * 64), 400,
              malformed, QUERY)
    yield Row("presigned: another method", presigned(s, "GET", w.object, sent_method="DELETE"), 403, "SignatureDoesNotMatch", QUERY)
    yield Row("presigned and Authorization", presigned(s, "GET", w.object, unsigned=[("authorization", "AWS4-HMAC-SHA256 a=b")]),
              400, "InvalidArgument", ERRORS)
    yield Row("presigned: version 2", anonymous(s, "GET", w.object, query=f"AWSAccessKeyId={s.key_id}&Signature=a&Expires=9999999999"),
              400, "InvalidRequest", ERRORS)


def chunked_bodies(w):
    good = Chunked(w.signer, w.bad("chunked"))
    data = b"".join(good.data)
    checked = replace(good, declared="x-amz-checksum-crc32", trailers=(("x-amz-checksum-crc32", crc32(data)),))
    plain = replace(checked, signatures=False)

    def row(name, sent, status, code, source=CHUNKS, **more):
        return Row("chunked: " + name, sent, status, code, source, "PUT", **more)

    def damage(at):
        """Changes the last byte before the line end of one piece."""
        return lambda pieces: [*pieces[:at], pieces[at][:-3] + b"0\r\n" if pieces[at][-3:-2] != b"0" else pieces[at][:-3] + b"1\r\n",
                               *pieces[at + 1:]]

    kept = replace(good, path=f"/{w.bucket}/chunked")
    yield row("right", kept.request(), 200, "")
    yield row("right, with a signed trailer", replace(checked, path=kept.path).request(), 200, "", TRAILERS)
    yield row("right, unsigned with a trailer", replace(plain, path=kept.path).request(), 200, "", TRAILERS)
    yield row("ends after the first chunk", good.request(lambda p: p[:3]), 400, "IncompleteBody")
    yield row("no zero chunk", good.request(lambda p: p[:6]), 400, "IncompleteBody")
    yield row("no line end after the zero chunk", good.request(lambda p: p[:-1]), 400, "IncompleteBody")
    yield row("empty", good.request(lambda p: []), 400, "IncompleteBody")
    yield row("the first signature is wrong", good.request(damage(0)), 403, "SignatureDoesNotMatch")
    yield row("the last signature is wrong", good.request(damage(6)), 403, "SignatureDoesNotMatch")
    yield row("data are changed", good.request(lambda p: [p[0], b"x" + p[1][1:], *p[2:]]), 403, "SignatureDoesNotMatch")
    yield row("chunks change places", replace(good, data=(b"a" * 100, b"b" * 100)).request(lambda p: [*p[3:6], *p[:3], *p[6:]]), 403,
              "SignatureDoesNotMatch")
    yield row("a chunk without a signature", good.request(lambda p: [p[0].split(b";")[0] + b"\r\n", *p[1:]]), 400, "InvalidRequest")
    yield row("bytes behind the end", good.request(lambda p: [*p, b"more"]), 400, "InvalidRequest")
    yield row("a second body behind the end", good.request(lambda p: p + p), 400, "InvalidRequest")
    yield row("fewer bytes than decoded length", replace(good, decoded_length="80000").request(), 400, "IncompleteBody")
    yield row("more bytes than decoded length", replace(good, decoded_length="70000").request(), 400, "IncompleteBody")
    yield row("no decoded length", replace(good, decoded_length="").request(), 411, "MissingContentLength")
    yield row("a negative decoded length", replace(good, decoded_length="-1").request(), 400, "InvalidArgument")
    yield row("a decoded length beyond all numbers", replace(good, decoded_length="9" * 40).request(), 400, "InvalidArgument")
    yield row("a decoded length of more than 5 GiB", replace(good, decoded_length=str(5 * 2**30 + 1)).request(), 400, "EntityTooLarge")
    yield row("a chunk length that is no number", good.request(lambda p: [b"xyz" + p[0], *p[1:]]), 400, "InvalidRequest")
    yield row("a negative chunk length", good.request(lambda p: [b"-" + p[0], *p[1:]]), 400, "InvalidRequest")
    yield row("a chunk length of 17 digits", good.request(lambda p: [b"f" * 17 + b"\r\n", *p[1:]]), 400, "InvalidRequest")
    yield row("a chunk length of 2^64-1", good.request(lambda p: [b"f" * 16 + p[0][5:], *p[1:]]), 400, "IncompleteBody")
    yield row("a chunk header of 100 kB", good.request(lambda p: [p[0][:-2] + b";x=" + b"y" * 100_000 + b"\r\n", *p[1:]]), 400,
              "InvalidRequest", OWN)
    yield row("a chunk of 17 MiB that breaks off", replace(good, decoded_length=str(17 << 20)).request(
        lambda p: [f"{17 << 20:x}".encode() + p[0][5:], p[1]]), 400, "IncompleteBody")
    yield row("no line end behind the data", good.request(lambda p: [*p[:2], b"xx", *p[3:]]), 400, "InvalidRequest")
    yield row("line feeds instead of line ends", good.request(lambda p: [piece.replace(b"\r\n", b"\n") for piece in p]), 400,
              "InvalidRequest")
    yield row("plain bytes", good.request(lambda p: [b"a" * 71_000]), 400, "InvalidRequest")
    yield row("the connection breaks in a chunk", good.request()[:-500], 400, "IncompleteBody", half_close=True)

    yield row("a wrong checksum in the trailer", replace(checked, trailers=(("x-amz-checksum-crc32", crc32(b"other")),)).request(), 400,
              "BadDigest", TRAILERS)
    yield row("a wrong checksum in an unsigned trailer", replace(plain, trailers=(("x-amz-checksum-crc32", crc32(b"other")),)).request(),
              400, "BadDigest", TRAILERS)
    yield row("a malformed checksum in the trailer", replace(checked, trailers=(("x-amz-checksum-crc32", "!"),)).request(), 400,
              "InvalidRequest", TRAILERS)
    yield row("the trailer is missing", replace(checked, trailers=()).request(), 400, "MalformedTrailerError", TRAILERS)
    yield row("the unsigned trailer is missing", replace(plain, trailers=()).request(), 400, "MalformedTrailerError", TRAILERS)
    yield row("a trailer that was not declared", replace(checked, trailers=(*checked.trailers, ("x-amz-meta-a", "b"))).request(), 400,
              "MalformedTrailerError", TRAILERS)
    yield row("a trailer twice", replace(checked, trailers=checked.trailers * 2).request(), 400, "MalformedTrailerError", TRAILERS)
    yield row("the trailer's signature is wrong", checked.request(damage(8)), 403, "SignatureDoesNotMatch", TRAILERS)
    yield row("the trailer's signature is missing", checked.request(lambda p: [*p[:8], p[9]]), 400, "IncompleteBody", TRAILERS)
    yield row("a trailer of 100 kB", checked.request(lambda p: [*p[:7], b"x-amz-checksum-crc32:" + b"a" * 100_000 + b"\r\n", *p[8:]]), 400,
              "MalformedTrailerError", OWN)
    yield row("a trailer without a colon", plain.request(lambda p: [*p[:7], b"x-amz-checksum-crc32\r\n", *p[8:]]), 400,
              "MalformedTrailerError", TRAILERS)
    yield row("bytes behind the trailers", plain.request(lambda p: [*p, b"more"]), 400, "InvalidRequest", TRAILERS)
    yield row("a trailer of an unknown kind is declared",
              replace(checked, declared="x-amz-checksum-crc9", trailers=(("x-amz-checksum-crc9", "a"),)).request(), 400,
              "InvalidRequest", TRAILERS)
    yield row("a checksum in the head and another in the trailer",
              replace(checked, headers=(("x-amz-checksum-sha1", "2jmj7l5rSw0yVb/vlWAYkK/YBwk="),)).request(), 400, "InvalidRequest", TRAILERS)
    yield row("trailers are declared for a plain body", signed(w.signer, "PUT", w.bad(), headers=[("x-amz-trailer", "x-amz-checksum-crc32")]),
              400, "InvalidRequest", TRAILERS)


def digests(w):
    body = b"hello"

    def put(name, headers, code, **asked):
        sent = signed(w.signer, "PUT", w.bad("digest"), headers=headers, body=body, **asked)
        return Row(name, sent, 400, code, INTEGRITY, "PUT")

    wrong = "0" * 64
    yield put("x-amz-content-sha256 of another body", [], "XAmzContentSHA256Mismatch", digest=wrong)
    yield put("Content-MD5 of another body", [("content-md5", md5(b"other"))], "BadDigest")
    yield put("a Content-MD5 that is no Base64", [("content-md5", "!!!")], "InvalidDigest")
    yield put("a Content-MD5 that is too short", [("content-md5", "aGVsbG8=")], "InvalidDigest")
    yield put("an empty Content-MD5", [("content-md5", "")], "InvalidDigest")
    yield put("a checksum of another body", [("x-amz-checksum-crc32", crc32(b"other"))], "BadDigest")
    yield put("a checksum that is no Base64", [("x-amz-checksum-crc32", "!!!")], "InvalidRequest")
    yield put("a checksum of the wrong length", [("x-amz-checksum-sha256", crc32(body))], "InvalidRequest")
    yield put("two checksums", [("x-amz-checksum-crc32", crc32(body)), ("x-amz-checksum-crc32c", "mnG7TA==")], "InvalidRequest")
    yield put("an unknown checksum algorithm", [("x-amz-sdk-checksum-algorithm", "CRC9")], "InvalidRequest")
    yield put("the algorithm of another checksum", [("x-amz-sdk-checksum-algorithm", "SHA1"), ("x-amz-checksum-crc32", crc32(body))],
              "InvalidRequest")
