"""What the client tests written in Python share: the environment, named steps, comparisons.

A test is a function decorated with @step("what it shows"); `main` runs them in order, stops at the first failure and
names it. Every test works on keys below its own prefix, so that tests may share a bucket.
"""

import hashlib
import os
import random
import socket
import sys
import traceback
from urllib.parse import urlsplit

ENDPOINT = os.environ["ENDPOINT"]
ACCESS_KEY = os.environ["ACCESS_KEY"]
SECRET_KEY = os.environ["SECRET_KEY"]
BUCKET = os.environ["BUCKET"]
REGION = os.environ.get("REGION", "garage")
# Buckets are served as BUCKET.VHOST_DOMAIN as well.
VHOST_DOMAIN = os.environ.get("VHOST_DOMAIN", "localhost")
PREFIX = f"{os.path.basename(sys.argv[0])}-{os.getpid()}/"

_steps = []


def step(title):
    """Registers a function as a step of the test."""

    def register(function):
        _steps.append((title, function))
        return function

    return register


def main():
    for title, function in _steps:
        print(f"step: {title}", flush=True)
        try:
            function()
        except BaseException:
            traceback.print_exc()
            sys.exit(f"FAILED in step: {title}")


def data(size, seed=0):
    """`size` bytes that depend on both arguments only."""
    return random.Random(size * 1_000_003 + seed).randbytes(size)


def same(wanted, actual):
    """Compares two byte strings without printing them."""
    if wanted != actual:
        raise AssertionError(f"wanted {len(wanted)} bytes with sha256 {hashlib.sha256(wanted).hexdigest()}, "
                             f"got {len(actual)} with {hashlib.sha256(actual).hexdigest()}")


def equal(what, wanted, actual):
    if wanted != actual:
        raise AssertionError(f"{what}: wanted {wanted!r}, got {actual!r}")


def resolve_to_server(domain):
    """Makes every name below `domain` resolve to the host of ENDPOINT, as a wildcard DNS record would."""
    server = urlsplit(ENDPOINT).hostname
    original = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **keywords):
        name = host.decode() if isinstance(host, bytes) else host
        below = name is not None and (name == domain or name.endswith("." + domain))
        return original(server if below else host, *arguments, **keywords)

    socket.getaddrinfo = getaddrinfo
