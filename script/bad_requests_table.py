"""The table of script/bad-requests: what is sent, what must be answered, and who says so.

Every write that must fail goes to a key below `bad/`, which is looked for afterwards; `kept` must stay as it is.
"""

from dataclasses import dataclass, replace
from urllib.parse import quote

from raw_s3 import Chunked, Signer, anonymous, crc32, md5, presigned, signed

# Where an expectation comes from.
ERRORS = "AWS, S3 API, Error responses"
HEADER = "AWS, SigV4, Authorization header"
QUERY = "AWS, SigV4, query parameters"
CHUNKS = "AWS, SigV4, payload in multiple chunks"
TRAILERS = "AWS, SigV4, payload with trailing headers"
INTEGRITY = "AWS, Checking object integrity"
CONDITIONAL = "AWS, Conditional requests"
NAMES = "AWS, Bucket naming rules"
KEYS = "AWS, Object key names"
HTTP = "RFC 9110"
MESSAGES = "RFC 9112"
OWN = "own limit"


def api(operation):
    return f"AWS, S3 API, {operation}"


@dataclass(frozen=True)
class Row:
    name: str
    sent: bytes
    status: int | None  # None: the connection is closed without a reply
    code: str  # of the error document; "" where there is none
    source: str
    method: str = "GET"
    half_close: bool = False
    # HTTP itself is broken: answered below S3, without a document, or by closing.
    below_s3: bool = False
    header: tuple | None = None  # a header of the reply and its value
    region: str | None = None  # <Region> of the error document


@dataclass(frozen=True)
class World:
    """What the table may rely on. The object `kept` holds `kept`; parts 1 and 2 of `upload` are small and alike."""

    signer: Signer
    reader: Signer  # may only read
    stranger: Signer  # may do nothing
    bucket: str
    foreign_bucket: str  # nobody's but another's
    kept: bytes
    kept_etag: str
    upload: str
    part_etag: str

    @property
    def object(self):
        return f"/{self.bucket}/kept"

    def bad(self, name="k"):
        return f"/{self.bucket}/bad/{name}"


def table(w):
    """All rows, signed now."""
    parts = (signatures, presigned_urls, chunked_bodies, digests, ranges_and_conditions, documents, multipart, copies, names,
             headers, sub_resources, methods, access, sizes, listings, broken_http)
    return [row for part in parts for row in part(w)]


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
    yield row("a chunk of 17 MiB is announced", replace(good, decoded_length=str(17 << 20)).request(
        lambda p: [f"{17 << 20:x}".encode() + p[0][5:], p[1]]), 403, "InvalidChunkSizeError", OWN)
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


def ranges_and_conditions(w):
    s, etag, last = w.signer, f'"{w.kept_etag}"', len(w.kept) - 1

    def get(name, asked, value, status, code="", source=HTTP, **more):
        return Row(name, signed(s, "GET", w.object, headers=[(asked, value)]), status, code, source, **more)

    def put(name, path, header, value, status, code, source=CONDITIONAL):
        return Row(name, signed(s, "PUT", path, headers=[(header, value)], body=b"new"), status, code, source, "PUT")

    yield get("a range behind the end", "range", f"bytes={last + 1}-", 416, "InvalidRange", header=("content-range", f"bytes */{last + 1}"))
    yield get("a range of the last 0 bytes", "range", "bytes=-0", 416, "InvalidRange")
    yield get("a range of the last 2 bytes", "range", "bytes=-2", 206, header=("content-range", f"bytes {last - 1}-{last}/{last + 1}"))
    yield get("a range of more than there is", "range", "bytes=1-" + "9" * 40, 206, header=("content-range", f"bytes 1-{last}/{last + 1}"))
    for value in ("bytes=3-1", "bytes=a-b", "bytes=", "lines=1-2", "bytes=0-0,2-3", "bytes=--1", "bytes=+1-2"):
        yield get(f"the range {value} is ignored", "range", value, 200, header=("content-length", str(last + 1)))
    yield get("If-Match of another ETag", "if-match", '"0"', 412, "PreconditionFailed")
    yield get("If-None-Match of this ETag", "if-none-match", etag, 304)
    yield get("If-Unmodified-Since long ago", "if-unmodified-since", "Sat, 01 Jan 2000 00:00:00 GMT", 412, "PreconditionFailed")
    yield get("a malformed If-Modified-Since is ignored", "if-modified-since", "yesterday", 200)
    yield Row("HEAD with If-Match of another ETag", signed(s, "HEAD", w.object, headers=[("if-match", '"0"')]), 412, "", HTTP, "HEAD")
    yield put("If-Match on a key that is not there", w.bad(), "if-match", etag, 404, "NoSuchKey")
    yield put("If-Match of another ETag on a write", w.object, "if-match", '"0"', 412, "PreconditionFailed")
    yield put("If-None-Match: * on a key that is there", w.object, "if-none-match", "*", 412, "PreconditionFailed")
    yield put("If-None-Match of an ETag on a write", w.object, "if-none-match", etag, 501, "NotImplemented")


ENTITIES = (b'<!DOCTYPE Delete [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
            b"<Delete><Object><Key>&c;</Key></Object></Delete>")
EXTERNAL = b'<!DOCTYPE Delete [<!ENTITY x SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&x;</Key></Object></Delete>'


def documents(w):
    s, location = w.signer, "<CreateBucketConfiguration><LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>"

    def delete(name, body, code="MalformedXML", headers=None, status=400, source=api("DeleteObjects"), **asked):
        headers = [("content-md5", md5(body))] if headers is None else headers
        sent = signed(s, "POST", f"/{w.bucket}", query="delete", headers=headers, body=body, **asked)
        return Row("DeleteObjects: " + name, sent, status, code, source, "POST")

    one = b"<Delete><Object><Key>kept</Key></Object></Delete>"
    yield delete("empty", b"")
    yield delete("no XML", b"kept")
    yield delete("cut off", one[:-5])
    yield delete("another root", one.replace(b"Delete>", b"Remove>"))
    yield delete("no key", b"<Delete><Object></Object></Delete>")
    yield delete("no object", b"<Delete></Delete>")
    yield delete("an empty key", b"<Delete><Object><Key></Key></Object></Delete>")
    yield delete("two roots", one + one)
    yield delete("not UTF-8", one.replace(b"kept", b"\xff\xfe"))
    yield delete("1001 keys", b"<Delete>" + b"<Object><Key>a</Key></Object>" * 1001 + b"</Delete>")
    yield delete("entities that grow", ENTITIES)
    yield delete("an external entity", EXTERNAL)
    yield delete("an entity nobody defined", one.replace(b"kept", b"&kept;"))
    yield delete("10 000 levels deep", b"<Delete>" + b"<a>" * 10_000 + b"</a>" * 10_000 + b"</Delete>")
    yield delete("100 000 attributes", b"<Delete " + b" ".join(b'a%d="b"' % n for n in range(100_000)) + b"/>")
    yield delete("the MD5 of another document", one, "BadDigest", [("content-md5", md5(b"other"))])
    yield delete("the checksum of another document", one, "BadDigest", [("x-amz-checksum-crc32", crc32(b"other"))])
    yield delete("the SHA-256 of another document", one, "XAmzContentSHA256Mismatch", digest="0" * 64)
    yield delete("9 MiB are announced", b"", "MaxMessageLengthExceeded", [], source=OWN, length=str(9 << 20))

    def create(name, body, code, status=400, **asked):
        sent = signed(s, "PUT", "/another-bucket", body=body, **asked)
        return Row("CreateBucket: " + name, sent, status, code, api("CreateBucket"), "PUT")

    yield create("another region", location.format("eu-west-3").encode(), "IllegalLocationConstraintException")
    yield create("cut off", location.format("garage").encode()[:-5], "MalformedXML")
    yield create("another root", b"<Other/>", "MalformedXML")
    yield create("entities that grow", ENTITIES, "MalformedXML")
    yield create("1 MiB is announced", b"", "MaxMessageLengthExceeded", length=str(1 << 20))


def multipart(w):
    s, upload = w.signer, f"uploadId={quote(w.upload, safe='')}"
    path = w.bad("multipart")

    def row(name, method, query, status, code, operation, **asked):
        return Row(f"{operation}: {name}", signed(s, method, path, query=query, **asked), status, code, api(operation), method)

    def part(name, query, status, code, **asked):
        return row(name, "PUT", query, status, code, "UploadPart", **{"body": b"part", **asked})

    yield part("number 0", f"partNumber=0&{upload}", 400, "InvalidArgument")
    yield part("number 10001", f"partNumber=10001&{upload}", 400, "InvalidArgument")
    yield part("number -1", f"partNumber=-1&{upload}", 400, "InvalidArgument")
    yield part("a number that is none", f"partNumber=one&{upload}", 400, "InvalidArgument")
    yield part("an upload that is not there", "partNumber=1&uploadId=" + "0" * len(w.upload), 404, "NoSuchUpload")
    yield part("an upload id that is none", "partNumber=1&uploadId=%00%00..%2F", 404, "NoSuchUpload")
    yield part("the SHA-256 of another part", f"partNumber=2&{upload}", 400, "XAmzContentSHA256Mismatch", digest="0" * 64)
    yield part("the MD5 of another part", f"partNumber=2&{upload}", 400, "BadDigest", headers=[("content-md5", md5(b"other"))])
    yield part("6 GiB", f"partNumber=2&{upload}", 400, "EntityTooLarge", body=b"", length=str(6 << 30))
    yield part("no length", f"partNumber=2&{upload}", 411, "MissingContentLength", body=b"", length=None)

    def complete(name, body, code, status=400, query=upload, **asked):
        return row(name, "POST", query, status, code, "CompleteMultipartUpload", body=body, **asked)

    def listing(*parts):
        parts = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in parts)
        return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()

    right = (1, w.part_etag)
    yield complete("empty", b"", "MalformedXML")
    yield complete("no parts", listing(), "MalformedXML")
    yield complete("cut off", listing(right)[:-4], "MalformedXML")
    yield complete("entities that grow", ENTITIES, "MalformedXML")
    yield complete("another root", listing(right).replace(b"Complete", b"Incomplete"), "MalformedXML")
    yield complete("a number that is none", listing(("one", w.part_etag)), "MalformedXML")
    yield complete("a part without its ETag", b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
                   "MalformedXML")
    yield complete("10 001 parts", listing(*[(number, "a") for number in range(1, 10_002)]), "MalformedXML")
    yield complete("another ETag", listing((1, '"' + "0" * 32 + '"')), "InvalidPart")
    yield complete("a part that is not there", listing(right, (3, w.part_etag)), "InvalidPart")
    yield complete("parts out of order", listing((2, w.part_etag), right), "InvalidPartOrder")
    yield complete("a first part of 4 bytes", listing(right, (2, w.part_etag)), "EntityTooSmall")
    yield complete("a part twice", listing(right, right), "InvalidPartOrder")
    yield complete("an upload that is not there", listing(right), "NoSuchUpload", 404, "uploadId=" + "0" * len(w.upload))
    yield Row(
        "CompleteMultipartUpload: an upload of another key", signed(s, "POST", w.bad("other"), query=upload, body=listing(right)), 404,
        "NoSuchUpload", api("CompleteMultipartUpload"), "POST")
    yield complete("9 MiB are announced", b"", "MaxMessageLengthExceeded", length=str(9 << 20))
    yield complete("the size of another object", listing(right), "InvalidRequest", headers=[("x-amz-mp-object-size", "9")])
    yield complete("a size that is none", listing(right), "InvalidRequest", headers=[("x-amz-mp-object-size", "many")])
    yield row("an upload that is not there", "DELETE", "uploadId=" + "0" * len(w.upload), 404, "NoSuchUpload", "AbortMultipartUpload")
    yield row("an upload that is not there", "GET", "uploadId=" + "0" * len(w.upload), 404, "NoSuchUpload", "ListParts")
    yield row("a marker that is none", "GET", f"part-number-marker=x&{upload}", 400, "InvalidArgument", "ListParts")
    yield row("encryption", "POST", "uploads", 501, "NotImplemented", "CreateMultipartUpload", headers=[("x-amz-server-side-encryption", "AES256")])
    yield row("an unknown algorithm", "POST", "uploads", 400, "InvalidRequest", "CreateMultipartUpload",
              headers=[("x-amz-checksum-algorithm", "CRC9")])
    yield Row("GetObject: part 2 of an object of one", signed(s, "GET", w.object, query="partNumber=2"), 416, "InvalidPartNumber", ERRORS)
    yield Row("GetObject: part 0", signed(s, "GET", w.object, query="partNumber=0"), 400, "InvalidArgument", api("GetObject"))


def copies(w):
    def copy(name, source, status, code, *more, signer=w.signer, path=w.bad("copy"), query="", operation="CopyObject"):
        sent = signed(signer, "PUT", path, query=query, headers=[("x-amz-copy-source", source), *more])
        return Row(f"{operation}: {name}", sent, status, code, api(operation), "PUT")

    yield copy("a source that is not there", f"/{w.bucket}/nowhere", 404, "NoSuchKey")
    yield copy("a bucket that is not there", "/no-such-bucket/a", 404, "NoSuchBucket")
    yield copy("a source without a key", f"/{w.bucket}", 400, "InvalidArgument")
    yield copy("an empty source", "", 400, "InvalidArgument")
    yield copy("a source that does not decode", f"/{w.bucket}/%zz", 400, "InvalidArgument")
    yield copy("a bucket the key may not read", f"/{w.foreign_bucket}/a", 403, "AccessDenied")
    yield copy("onto itself, changing nothing", w.object, 400, "InvalidRequest", path=w.object)
    yield copy("an unknown directive", w.object, 400, "InvalidArgument", ("x-amz-metadata-directive", "MERGE"))
    yield copy("If-Match of another ETag", w.object, 412, "PreconditionFailed", ("x-amz-copy-source-if-match", '"0"'))
    yield copy("a version that is not there", w.object + "?versionId=abc", 400, "InvalidArgument")
    yield copy("by a key that may only read", w.object, 403, "AccessDenied", signer=w.reader)
    part = {"path": w.bad("multipart"), "query": f"partNumber=2&uploadId={quote(w.upload, safe='')}", "operation": "UploadPartCopy"}
    yield copy("a malformed range", w.object, 400, "InvalidArgument", ("x-amz-copy-source-range", "bytes=a-b"), **part)
    yield copy("a range behind the end", w.object, 400, "InvalidArgument", ("x-amz-copy-source-range", "bytes=5000-6000"), **part)


def names(w):
    s = w.signer

    def put(name, key, code):
        return Row(name, signed(s, "PUT", f"/{w.bucket}/{key}", body=b"a"), 400, code, KEYS, "PUT")

    yield put("a key of 1025 bytes", "bad/" + "a" * 1021, "KeyTooLongError")
    yield put("a key of 1026 bytes in 345 characters", "bad/" + "%E2%82%AC" * 340 + "aa", "KeyTooLongError")
    yield put("a key that is not UTF-8", "bad/%ff%fe", "InvalidURI")
    yield put("a key with half a surrogate pair", "bad/%ed%a0%80", "InvalidURI")
    yield put("a key with a percent sign alone", "bad/%", "InvalidURI")
    yield put("a key with digits that are none", "bad/%zz", "InvalidURI")
    yield Row("a query that does not decode", signed(s, "GET", f"/{w.bucket}", query="prefix=%ff"), 400, "InvalidURI", ERRORS)
    yield Row("no bucket named /../", signed(s, "GET", "/../../etc/passwd"), 404, "NoSuchBucket", ERRORS)
    yield Row("dots in a key are no folders", signed(s, "GET", f"/{w.bucket}/../{w.bucket}/kept"), 404, "NoSuchKey", KEYS)
    yield Row("a key is not cleaned of slashes", signed(s, "GET", f"/{w.bucket}//kept"), 404, "NoSuchKey", KEYS)
    for bucket in ("ab", "a" * 64, "Upper", "under_score", "192.168.5.4", "-a-b", "a-b-", "a..b", "xn--abc", "a%2Fb", "%00abc", "a%20b"):
        yield Row(f"CreateBucket {bucket}", signed(s, "PUT", f"/{bucket}"), 400, "InvalidBucketName", NAMES, "PUT")
    yield Row("CreateBucket of another's name", signed(s, "PUT", f"/{w.foreign_bucket}"), 409, "BucketAlreadyExists", api("CreateBucket"), "PUT")
    yield Row("DeleteBucket with objects in it", signed(s, "DELETE", f"/{w.bucket}"), 409, "BucketNotEmpty", api("DeleteBucket"), "DELETE")
    yield Row("a bucket that is not there", signed(s, "GET", "/no-such-bucket/k"), 404, "NoSuchBucket", ERRORS)
    yield Row("HEAD of a bucket that is not there", signed(s, "HEAD", "/no-such-bucket"), 404, "", api("HeadBucket"), "HEAD")
    yield Row("HEAD of a key that is not there", signed(s, "HEAD", w.bad()), 404, "", api("HeadObject"), "HEAD")


def headers(w):
    def put(name, header, value, status=501, code="NotImplemented"):
        sent = signed(w.signer, "PUT", w.bad("header"), headers=[(header, value)], body=b"a")
        return Row(name, sent, status, code, api("PutObject"), "PUT")

    yield put("metadata of 2049 bytes", "x-amz-meta-a", "b" * 2048, 400, "MetadataTooLarge")
    yield put("a storage class", "x-amz-storage-class", "GLACIER")
    yield put("an ACL for all", "x-amz-acl", "public-read")
    yield put("a grant", "x-amz-grant-read", 'id="a"')
    yield put("encryption by the server", "x-amz-server-side-encryption", "AES256")
    yield put("encryption with the client's key", "x-amz-server-side-encryption-customer-algorithm", "AES256")
    yield put("tags", "x-amz-tagging", "a=b")
    yield put("a lock", "x-amz-object-lock-mode", "COMPLIANCE")
    yield put("a redirect", "x-amz-website-redirect-location", "/a")
    yield put("an append", "x-amz-write-offset-bytes", "0")
    yield put("metadata that is not UTF-8", "x-amz-meta-a", "\udcff\udcfe", 400, "InvalidRequest")


def sub_resources(w):
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        code = "" if method == "HEAD" else "NotImplemented"
        for path, query in ((f"/{w.bucket}", "accelerate"), (f"/{w.bucket}", "nonsense=1"), (w.object, "acl"), (w.object, "nonsense")):
            name = f"{method} with the sub-resource {query} of {'an object' if path == w.object else 'a bucket'}"
            yield Row(name, signed(w.signer, method, path, query=query), 501, code, ERRORS, method)
    for method, query in (("PUT", "versioning"), ("PUT", "object-lock"), ("DELETE", "policy"), ("GET", "metrics"), ("GET", "list-type=3")):
        yield Row(f"{method} with the sub-resource {query}", signed(w.signer, method, f"/{w.bucket}", query=query), 501, "NotImplemented",
                  ERRORS, method)
    yield Row("POST of a form", signed(w.signer, "POST", f"/{w.bucket}", headers=[("content-type", "multipart/form-data; boundary=a")],
                                       body=b"--a--"), 501, "NotImplemented", ERRORS, "POST")


def methods(w):
    for method in ("PATCH", "TRACE", "BREW"):
        yield Row(method, signed(w.signer, method, w.object), 405, "MethodNotAllowed", ERRORS, method)
    yield Row("PUT on the service", signed(w.signer, "PUT", "/"), 405, "MethodNotAllowed", ERRORS, "PUT")
    yield Row("OPTIONS without a CORS configuration", anonymous(w.signer, "OPTIONS", w.object, [
        ("origin", "https://example.org"), ("access-control-request-method", "GET")]), 403, "AccessForbidden", "AWS, S3 API, OPTIONS object")


def access(w):
    for method in ("GET", "PUT", "DELETE", "HEAD"):
        code = "" if method == "HEAD" else "AccessDenied"
        yield Row(f"anonymous {method}", anonymous(w.signer, method, w.object), 403, code, ERRORS, method)
        yield Row(f"{method} by a key without permissions", signed(w.stranger, method, w.object), 403, code, ERRORS, method)
    unsigned_stream = Chunked(w.signer, w.bad("anonymous")).request()
    start = unsigned_stream.index(b"authorization")
    yield Row("an anonymous chunked write", unsigned_stream[:start] + b"x-a" + unsigned_stream[start + 13:], 403, "AccessDenied", ERRORS, "PUT")
    yield Row("a key that is not there", signed(replace(w.signer, key_id="GK" + "0" * 24), "GET", w.object), 403, "InvalidAccessKeyId", ERRORS)
    yield Row("a key id that is none", signed(replace(w.signer, key_id="%s%n<>&"), "GET", w.object), 403, "InvalidAccessKeyId", ERRORS)
    yield Row("a key id of 10 kB", signed(replace(w.signer, key_id="a" * 10_000), "GET", w.object), 403, "InvalidAccessKeyId", ERRORS)
    yield Row("a write by a key that may only read", signed(w.reader, "PUT", w.bad("reader"), body=b"a"), 403, "AccessDenied", ERRORS, "PUT")
    yield Row("a deletion by a key that may only read", signed(w.reader, "DELETE", w.object), 403, "AccessDenied", ERRORS, "DELETE")
    yield Row("a listing by a key without permissions", signed(w.stranger, "GET", f"/{w.bucket}"), 403, "AccessDenied", ERRORS)
    yield Row("CreateBucket by a key that may not", signed(w.reader, "PUT", "/another-bucket"), 403, "AccessDenied", ERRORS, "PUT")
    yield Row("a configuration asked for by a reader", signed(w.reader, "GET", f"/{w.bucket}", query="policy"), 403, "AccessDenied", ERRORS)


def sizes(w):
    s = w.signer

    def put(name, status, code, source=ERRORS, below_s3=False, half_close=False, **asked):
        sent = signed(s, "PUT", w.bad("size"), **asked)
        return Row(name, sent, status, code, source, "PUT", below_s3=below_s3, half_close=half_close)

    yield put("no Content-Length", 411, "MissingContentLength", length=None)
    yield put("chunks of HTTP without a length", 411, "MissingContentLength", length=None, unsigned=[("transfer-encoding", "chunked")])
    yield put("5 GiB and a byte", 400, "EntityTooLarge", api("PutObject"), length=str(5 * 2**30 + 1), digest="UNSIGNED-PAYLOAD")
    yield put("a negative Content-Length", 400, "", MESSAGES, True, length="-1")
    yield put("a Content-Length that is no number", 400, "", MESSAGES, True, length="ten")
    yield put("a Content-Length of 2^64", 400, "", MESSAGES, True, length=str(2**64))
    yield put("two Content-Lengths", 400, "", MESSAGES, True, body=b"hello", unsigned=[("content-length", "4")])
    yield put("an unknown Transfer-Encoding", 400, "", MESSAGES, True, length=None, unsigned=[("transfer-encoding", "rot13")])
    yield put("the client hangs up in a small body", 400, "IncompleteBody", body=b"x" * 100, length="2000", half_close=True)
    yield put("the client hangs up in a large body", 400, "IncompleteBody", body=b"x" * 3_000_000, length="9000000",
              digest="UNSIGNED-PAYLOAD", half_close=True)


def listings(w):
    for query in ("max-keys=-1", "max-keys=many", "max-keys=99999999999999999999", "encoding-type=rot13"):
        for version in ("", "list-type=2&"):
            yield Row(f"a listing with {version}{query}", signed(w.signer, "GET", f"/{w.bucket}", query=version + query), 400, "InvalidArgument",
                      api("ListObjectsV2"))
    yield Row("a continuation token of nobody", signed(w.signer, "GET", f"/{w.bucket}", query="list-type=2&continuation-token=%21%21"), 400,
              "InvalidArgument", api("ListObjectsV2"))
    yield Row("an empty continuation token", signed(w.signer, "GET", f"/{w.bucket}", query="list-type=2&continuation-token="), 400,
              "InvalidArgument", api("ListObjectsV2"))
    yield Row("a prefix of 3000 bytes", signed(w.signer, "GET", f"/{w.bucket}", query="prefix=" + "a" * 3000), 200, "", api("ListObjects"))
    yield Row("max-uploads that is no number", signed(w.signer, "GET", f"/{w.bucket}", query="uploads&max-uploads=x"), 400, "InvalidArgument",
              api("ListMultipartUploads"))


def broken_http(w):
    host = w.signer.host

    def row(name, sent, status, **more):
        return Row(name, sent, status, "", MESSAGES, below_s3=True, **more)

    yield row("noise", bytes(range(256)) * 4, 400)
    yield row("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500, 400)
    yield row("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None)
    yield row("a request line without a version", b"GET /\r\n\r\n", 400)
    yield row("a header without a colon", b"GET / HTTP/1.1\r\nhost\r\n\r\n", 400)
    yield row("a header name with a space", f"GET / HTTP/1.1\r\nhost: {host}\r\nx y: z\r\n\r\n".encode(), 400)
    yield row("a NUL in a header", f"GET / HTTP/1.1\r\nhost: {host}\r\nx: a\0b\r\n\r\n".encode(), 400)
    yield row("headers of 40 kB", f"GET / HTTP/1.1\r\nhost: {host}\r\nx: {'a' * 40_000}\r\n\r\n".encode(), 431)
    yield row("headers of 1 MB", f"GET / HTTP/1.1\r\nhost: {host}\r\nx: {'a' * 1_000_000}\r\n\r\n".encode(), 431)
    yield row("129 headers", f"GET / HTTP/1.1\r\nhost: {host}\r\n{'x: y' + chr(13) + chr(10)}".encode() + b"x: y\r\n" * 128 + b"\r\n", 431)
    yield row("a path of 100 kB", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431)
    yield row("nothing", b"", None, half_close=True)
    yield row("half a head", b"GET / HTTP/1.1\r\nhost: a", None, half_close=True)
    yield Row("two hosts", f"GET / HTTP/1.1\r\nhost: {host}\r\nhost: other\r\n\r\n".encode(), 400, "InvalidArgument", MESSAGES)
    yield Row("no host", b"GET / HTTP/1.1\r\n\r\n", 400, "InvalidRequest", MESSAGES)
