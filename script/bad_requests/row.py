"""What a row of the table is, what it may rely on, and who says what must be answered."""

from dataclasses import dataclass

from raw_s3 import Signer

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
