"""Names, headers, sub-resources, methods, access, sizes, listings, and what is no HTTP at all."""

from base64 import b64encode
from dataclasses import replace

from raw_s3 import Chunked, anonymous, signed

from .row import ERRORS, NAMES, OWN, KEYS, HTTP, MESSAGES, api, Row


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
    yield put("what Amazon has not invented yet", "x-amz-invented-tomorrow", "1")
    yield put("a checksum of an algorithm that nobody has", "x-amz-checksum-crc9", "AAAAAA==", 400, "InvalidRequest")
    for algorithm, length in (("sha512", 64), ("md5", 16), ("xxhash64", 8), ("xxhash3", 8), ("xxhash128", 16)):
        wrong = b64encode(bytes(length)).decode()
        yield put(f"a wrong {algorithm}", f"x-amz-checksum-{algorithm}", wrong, 400, "BadDigest")
    for name, value in (("x-amz-server-side-encryption-customer-algorithm", "AES256"), ("x-amz-expected-bucket-owner", "123456789012")):
        for method, path in (("GET", w.object), ("HEAD", w.object), ("GET", f"/{w.bucket}"), ("DELETE", w.bad("header"))):
            code = "" if method == "HEAD" else "NotImplemented"
            yield Row(f"{name} on {method} of {path}", signed(w.signer, method, path, headers=[(name, value)]), 501, code, OWN, method)
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
