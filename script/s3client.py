"""A small S3 client on the standard library: one keep-alive connection, SigV4 in the Authorization header.

For the tools in this folder that must run on any machine and see exactly what the server answers: no retries, no
checksums added, keys of any bytes. Not safe to share between threads: make one client per thread.
"""

import datetime
import hashlib
import hmac
import http.client
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

TIMEOUT_SECONDS = 60


@dataclass
class Answer:
    status: int
    headers: dict  # names in lower case
    body: bytes


class S3Error(Exception):
    """The server answered with something else than success."""

    def __init__(self, method, key, answer):
        super().__init__(f"{method} {key!r}: {answer.status} {answer.body[:300]!r}")
        self.status, self.body = answer.status, answer.body


class S3Client:
    def __init__(self, endpoint, access_key, secret_key, bucket, region="garage"):
        self.host = urlsplit(endpoint).netloc
        self.access_key, self.secret_key = access_key, secret_key
        self.bucket, self.region = bucket, region
        self.connection = None

    def request(self, method, key="", query=None, body=b"", headers=None):
        """Sends one request for a key of the bucket, or for the bucket itself; header values may be bytes.

        Raises S3Error on any status from 300, OSError or http.client.HTTPException when the connection breaks.
        """
        path = "/" + quote(self.bucket) + ("/" + quote(key) if key else "")
        pairs = sorted((quote(name, safe=""), quote(str(value), safe="")) for name, value in (query or {}).items())
        query_text = "&".join(f"{name}={value}" for name, value in pairs)
        signed = self.sign(method, path, query_text, hashlib.sha256(body).hexdigest(), headers or {})
        answer = self._send(method, path + ("?" + query_text if query_text else ""), body, signed)
        if answer.status >= 300:
            raise S3Error(method, key, answer)
        return answer

    def sign(self, method, path, query, digest, headers):
        """The headers of a signed request, for those who send it themselves."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        sent = {"host": self.host, "x-amz-content-sha256": digest, "x-amz-date": now, **headers}
        sent = {name: value if isinstance(value, bytes) else value.encode() for name, value in sent.items()}
        names = ";".join(sorted(sent))
        lines = b"".join(name.encode() + b":" + sent[name] + b"\n" for name in sorted(sent))
        canonical = f"{method}\n{path}\n{query}\n".encode() + lines + f"\n{names}\n{digest}".encode()
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        signing_key = ("AWS4" + self.secret_key).encode()
        for part in scope.split("/"):
            signing_key = hmac.digest(signing_key, part.encode(), "sha256")
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
        signature = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
        authorization = f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        return {**sent, "authorization": authorization.encode()}

    def _send(self, method, target, body, headers):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, timeout=TIMEOUT_SECONDS)
        try:
            try:
                self.connection.request(method, target, body=body, headers=headers)
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses need not read everything first: its answer may be there.
                pass
            answer = self.connection.getresponse()
            received = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if answer.will_close:
            self.close()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, received)

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def put_multipart(self, key, parts, headers=None):
        """Uploads the parts in order and completes; returns the ETag."""
        created = self.request("POST", key, {"uploads": ""}, headers=headers)
        upload = _text(ElementTree.fromstring(created.body), "UploadId")
        listing = ""
        for number, part in enumerate(parts, 1):
            etag = self.request("PUT", key, {"partNumber": number, "uploadId": upload}, part).headers["etag"]
            listing += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        body = f"<CompleteMultipartUpload>{listing}</CompleteMultipartUpload>".encode()
        completed = self.request("POST", key, {"uploadId": upload}, body)
        answer = ElementTree.fromstring(completed.body)
        if answer.tag.endswith("Error"):
            raise S3Error("CompleteMultipartUpload", key, completed)
        return _text(answer, "ETag")

    def list(self, prefix="", page_size=1000):
        """All keys below a prefix, through as many pages as it takes: (key, size, ETag) in the order received."""
        found, token = [], None
        while True:
            query = {"list-type": 2, "prefix": prefix, "max-keys": page_size}
            if token is not None:
                query["continuation-token"] = token
            page = ElementTree.fromstring(self.request("GET", query=query).body)
            for entry in page.iterfind("{*}Contents"):
                found.append((_text(entry, "Key"), int(_text(entry, "Size")), _text(entry, "ETag")))
            if _text(page, "IsTruncated") != "true":
                return found
            token = _text(page, "NextContinuationToken")


def _text(element, name):
    found = element.find("{*}" + name)
    return None if found is None else found.text or ""
