"""Requests to an S3 server as raw bytes, signed rightly or wrongly on purpose, and the strict reading of replies.

For tests of what no library would send. Nothing here corrects what it is given.
"""

import base64
import datetime
import hashlib
import hmac
import http.client
import socket
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import dataclass, field
from urllib.parse import quote

TIMEOUT_SECONDS = 20
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
LENGTH_OF_BODY = "the length of the body"


@dataclass(frozen=True)
class Signer:
    """Whose signature, for what service and region, and the address it is meant for."""

    host: str
    key_id: str
    secret: str
    region: str = "garage"
    service: str = "s3"


@dataclass
class Ask:
    """A request before it is signed. Paths, queries and headers go out exactly as given."""

    method: str
    path: str
    query: str = ""
    headers: list = field(default_factory=list)  # (name in lower case, value), signed
    unsigned: list = field(default_factory=list)  # the same, added after signing
    body: bytes = b""
    digest: str | None = None  # x-amz-content-sha256; the body's own by default
    shift_seconds: int = 0  # added to the present time
    scope_day: str | None = None
    hide: tuple = ()  # headers that are signed, and then not sent
    leave_out: tuple = ()  # headers that are sent and not signed, though the protocol wants them to be
    length: str | None = LENGTH_OF_BODY  # Content-Length; None: no such header

    def head(self, headers):
        target = self.path + ("?" + self.query if self.query else "")
        length = str(len(self.body)) if self.length == LENGTH_OF_BODY else self.length
        if length is not None and (self.method not in ("GET", "HEAD", "DELETE") or self.body):
            headers = [*headers, ("content-length", length)]
        lines = [f"{self.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def time_text(shift_seconds=0):
    now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=shift_seconds)
    return now.strftime("%Y%m%dT%H%M%SZ")


def scope_of(signer, day):
    return f"{day}/{signer.region}/{signer.service}/aws4_request"


def signature(signer, scope, date, kind, text):
    """HMAC of a string to sign: kind, date, scope, text."""
    key = ("AWS4" + signer.secret).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, f"{kind}\n{date}\n{scope}\n{text}".encode(), "sha256").hex()


def canonical_digest(ask, query, headers, digest):
    names = sorted({name for name, _ in headers})
    lines = "".join(f"{name}:{','.join(value.strip() for each, value in headers if each == name)}\n" for name in names)
    pairs = sorted(pair if "=" in pair else pair + "=" for pair in query.split("&") if pair)
    text = f"{ask.method}\n{ask.path}\n{'&'.join(pairs)}\n{lines}\n{';'.join(names)}\n{digest}"
    return ";".join(names), hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def signed_head(signer, ask):
    """The head with an Authorization header, and what chunk signatures start from."""
    date = time_text(ask.shift_seconds)
    digest = hashlib.sha256(ask.body).hexdigest() if ask.digest is None else ask.digest
    headers = [("host", signer.host), ("x-amz-content-sha256", digest), ("x-amz-date", date), *ask.headers]
    scope = scope_of(signer, ask.scope_day or date[:8])
    names, canonical = canonical_digest(ask, ask.query, [pair for pair in headers if pair[0] not in ask.leave_out], digest)
    seed = signature(signer, scope, date, "AWS4-HMAC-SHA256", canonical)
    authorization = f"AWS4-HMAC-SHA256 Credential={signer.key_id}/{scope}, SignedHeaders={names}, Signature={seed}"
    sent = [pair for pair in headers if pair[0] not in ask.hide]
    return ask.head([*sent, ("authorization", authorization), *ask.unsigned]), (date, scope, seed)


def signed(signer, method, path, **asked):
    ask = Ask(method, path, **asked)
    return signed_head(signer, ask)[0] + ask.body


def anonymous(signer, method, path, headers=(), **asked):
    ask = Ask(method, path, **asked)
    return ask.head([("host", signer.host), *headers]) + ask.body


def presigned(signer, method, path, *, expires="600", drop=(), appended="", sent_method=None, **asked):
    """A presigned URL. `drop`: parameters left out before signing; `appended`: added to the query after it."""
    ask = Ask(method, path, **asked)
    date = time_text(ask.shift_seconds)
    scope = scope_of(signer, ask.scope_day or date[:8])
    headers = [("host", signer.host), *ask.headers]
    names = ";".join(sorted(name for name, _ in headers))
    parameters = {"X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": f"{signer.key_id}/{scope}", "X-Amz-Date": date,
                  "X-Amz-Expires": expires, "X-Amz-SignedHeaders": names}
    pairs = [f"{name}={quote(value, safe='')}" for name, value in parameters.items() if name not in drop]
    query = "&".join([*pairs, *([ask.query] if ask.query else [])])
    digest = canonical_digest(ask, query, headers, "UNSIGNED-PAYLOAD")[1]
    ask.query = f"{query}&X-Amz-Signature={signature(signer, scope, date, 'AWS4-HMAC-SHA256', digest)}{appended}"
    ask.method = sent_method or method
    return ask.head([*headers, *ask.unsigned]) + ask.body


@dataclass
class Chunked:
    """An `aws-chunked` upload of two chunks. `pieces` of the encoded body may be edited before they are sent."""

    signer: Signer
    path: str
    signatures: bool = True
    trailers: tuple = ()  # (name, value) that come
    declared: str | None = None  # x-amz-trailer
    decoded_length: str | None = None  # that of the data by default; "" sends none
    headers: tuple = ()
    data: tuple = (b"a" * 70_000, b"b" * 1000)

    def request(self, edit=lambda pieces: pieces):
        with_trailers = self.declared is not None
        digest = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" if self.signatures else "STREAMING-UNSIGNED-PAYLOAD"
        headers = [("content-encoding", "aws-chunked"), *self.headers]
        length = str(sum(map(len, self.data))) if self.decoded_length is None else self.decoded_length
        if length:
            headers.append(("x-amz-decoded-content-length", length))
        if with_trailers:
            headers.append(("x-amz-trailer", self.declared))
        ask = Ask("PUT", self.path, headers=headers, digest=digest + ("-TRAILER" if with_trailers else ""))
        # Signed first: the body hangs on the head's signature, and Content-Length is not signed.
        _, seed = signed_head(self.signer, ask)
        ask.body = b"".join(edit(self.pieces(seed, with_trailers)))
        head, seed_again = signed_head(self.signer, ask)
        if seed_again != seed:  # The second changed in between.
            return self.request(edit)
        return head + ask.body

    def pieces(self, seed, with_trailers):
        """Header, data and CRLF of each chunk, then the zero chunk, then what follows it."""
        date, scope, previous = seed
        pieces = []
        for data in (*self.data, b""):
            line = f"{len(data):x}"
            if self.signatures:
                text = f"{previous}\n{EMPTY_SHA256}\n{hashlib.sha256(data).hexdigest()}"
                previous = signature(self.signer, scope, date, "AWS4-HMAC-SHA256-PAYLOAD", text)
                line += f";chunk-signature={previous}"
            pieces += [line.encode() + b"\r\n"] + ([data, b"\r\n"] if data else [])
        lines = [f"{name}:{value}" for name, value in self.trailers]
        if with_trailers and self.signatures:
            text = f"{previous}\n{hashlib.sha256(''.join(line + chr(10) for line in lines).encode()).hexdigest()}"
            lines.append("x-amz-trailer-signature:" + signature(self.signer, scope, date, "AWS4-HMAC-SHA256-TRAILER", text))
        return [*pieces, *(line.encode() + b"\r\n" for line in lines), b"\r\n"]


def crc32(data):
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@dataclass
class Reply:
    status: int
    headers: dict  # names in lower case
    body: bytes
    code: str = ""  # of an error document
    region: str | None = None


class BadReply(Exception):
    """The reply itself is not what a reply must be."""


def exchange(address, data, methods=("GET",), half_close=False, timeout=TIMEOUT_SECONDS):
    """Sends the bytes over a connection of its own and reads one reply per method; fewer when the server closes.

    `half_close`: our direction is closed after the bytes, as when a client dies in the middle of a body.
    """
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # Refused before everything was sent; the reply may still be there to read.
        # One reader for all replies: http.client makes one for each, and the first would swallow the second's bytes.
        reader = connection.makefile("rb")
        replies = []
        for method in methods:
            reply = _read_reply(reader, method)
            if reply is None:
                break
            replies.append(reply)
        return replies


class _Stream:
    """What http.client takes for a socket: the same reader every time, which outlives the replies."""

    def __init__(self, reader):
        self.reader = reader

    def makefile(self, _mode):
        return self

    def __getattr__(self, name):
        return getattr(self.reader, name)

    def close(self):
        pass

    def flush(self):
        pass


def _read_reply(reader, method):
    response = http.client.HTTPResponse(_Stream(reader), method=method)
    try:
        response.begin()
        body = response.read()
    except (http.client.BadStatusLine, ConnectionResetError):
        return None  # Closed without a reply.
    return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


def check_document(reply, method):
    """Reads the error document into the reply.

    Raises BadReply when a refusal has none, a reply that must not have a body has one, or ids are missing or differ.
    """
    request_id = reply.headers.get("x-amz-request-id")
    if not request_id:
        raise BadReply("no x-amz-request-id")
    if method == "HEAD" or reply.status in (204, 304):
        if reply.body:
            raise BadReply(f"a body where there must be none: {reply.body[:100]!r}")
        return
    if reply.status < 400:
        return
    if reply.headers.get("content-type") != "application/xml":
        raise BadReply(f"the error's type is {reply.headers.get('content-type')}")
    try:
        root = ElementTree.fromstring(reply.body)
    except ElementTree.ParseError as error:
        raise BadReply(f"the error is no XML ({error}): {reply.body[:200]!r}") from error
    missing = [name for name in ("Code", "Message", "Resource", "RequestId") if root.find(name) is None]
    if root.tag != "Error" or missing:
        raise BadReply(f"the error document <{root.tag}> lacks {missing}")
    if root.findtext("RequestId") != request_id:
        raise BadReply("document and header differ in the request id")
    reply.code, reply.region = root.findtext("Code"), root.findtext("Region")
