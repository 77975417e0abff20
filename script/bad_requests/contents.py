"""Ranges, conditions, documents, multipart uploads and copies."""

from urllib.parse import quote

from raw_s3 import crc32, md5, signed

from .row import ERRORS, CONDITIONAL, HTTP, OWN, api, Row


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
    yield get("an If-Modified-Since of the future is ignored", "if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT", 200)
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
    yield create("the MD5 of another document", location.format("garage").encode(), "BadDigest", headers=[("content-md5", md5(b"other"))])
    yield create("the checksum of another document", location.format("garage").encode(), "BadDigest",
                 headers=[("x-amz-checksum-crc32", crc32(b"other"))])
    for name, value in (("x-amz-acl", "public-read"), ("x-amz-grant-read", 'id="a"'), ("x-amz-object-ownership", "ObjectWriter")):
        yield create(f"with {name}", b"", "NotImplemented", 501, headers=[(name, value)])


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
    yield copy("a checksum of what is copied", w.object, 400, "InvalidRequest", ("x-amz-checksum-crc32", "AAAAAA=="))
    yield copy("a version that is not there", w.object + "?versionId=abc", 400, "InvalidArgument")
    yield copy("by a key that may only read", w.object, 403, "AccessDenied", signer=w.reader)
    part = {"path": w.bad("multipart"), "query": f"partNumber=2&uploadId={quote(w.upload, safe='')}", "operation": "UploadPartCopy"}
    yield copy("a malformed range", w.object, 400, "InvalidArgument", ("x-amz-copy-source-range", "bytes=a-b"), **part)
    yield copy("a range behind the end", w.object, 400, "InvalidArgument", ("x-amz-copy-source-range", "bytes=5000-6000"), **part)
