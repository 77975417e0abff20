"""The table of script/bad-requests: what is sent, what must be answered, and who says so; a module a theme.

Every write that must fail goes to a key below `bad/`, which is looked for afterwards; `kept` must stay as it is.
"""

from .contents import copies, documents, multipart, ranges_and_conditions
from .requests import access, broken_http, headers, listings, methods, names, sizes, sub_resources
from .row import World
from .signing import chunked_bodies, digests, presigned_urls, signatures

__all__ = ["World", "table"]


def table(w):
    """All rows, signed now."""
    parts = (signatures, presigned_urls, chunked_bodies, digests, ranges_and_conditions, documents, multipart, copies, names,
             headers, sub_resources, methods, access, sizes, listings, broken_http)
    return [row for part in parts for row in part(w)]
