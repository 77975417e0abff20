"""One garage process for tests: a fresh single-node server on free ports of 127.0.0.1.

Used by script/with-server and script/crash-test. Only the standard library is needed.
"""

import http.client
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path

from s3client import S3Client, S3Error

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 60


class ServerError(Exception):
    """The server did not start, ended by itself, or did not stop when asked."""


def find_binary(path=None):
    """The binary named, else the release build, else the debug build of this checkout."""
    if path:
        return os.path.abspath(path)
    top = Path(__file__).resolve().parent.parent
    target = Path(os.environ.get("CARGO_TARGET_DIR", top / "target"))
    for profile in ("release", "debug"):
        candidate = target / profile / "garage"
        if candidate.exists():
            return str(candidate)
    raise SystemExit("no garage binary found: run cargo build, or name one")


# Below those from which the kernel takes the ports of outgoing connections.
PORTS = range(10_000, 32_000)
given_ports = set()


def free_ports(count):
    """Ports that nothing listens on right now, none of which this process was given before."""
    ports = []
    while len(ports) < count:
        port = random.SystemRandom().choice(PORTS)
        if port in given_ports:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        given_ports.add(port)
        ports.append(port)
    return ports


class GarageServer:
    """A server that keeps its directory, ports and keys over restarts."""

    def __init__(self, binary, directory, bucket="test", extra_arguments=()):
        self.binary = binary
        self.directory = directory
        self.bucket = bucket
        self.extra_arguments = list(extra_arguments)
        self.access_key = "GK" + secrets.token_hex(12)
        self.secret_key = secrets.token_hex(32)
        self.log_path = os.path.join(directory, "server.log")
        s3_port, rpc_port = free_ports(2)
        self.s3_address = f"127.0.0.1:{s3_port}"
        self.rpc_address = f"127.0.0.1:{rpc_port}"
        self.process = None

    @property
    def endpoint(self):
        return f"http://{self.s3_address}"

    def client_environment(self):
        """What a client test needs to know."""
        return {"ENDPOINT": self.endpoint, "ACCESS_KEY": self.access_key, "SECRET_KEY": self.secret_key, "BUCKET": self.bucket,
                "SERVER_PID": str(self.process.pid), "SERVER_DIR": self.directory, "SERVER_BINARY": self.binary}

    def start(self):
        """Starts the process and waits until the bucket answers to its key."""
        keys = {"GARAGE_DEFAULT_ACCESS_KEY": self.access_key, "GARAGE_DEFAULT_SECRET_KEY": self.secret_key,
                "GARAGE_DEFAULT_BUCKET": self.bucket}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GARAGE_")} | keys
        command = [self.binary, "server", "--single-node", "--default-bucket", "--dir", os.path.join(self.directory, "node"),
                   "--s3-bind", self.s3_address, "--rpc-bind", self.rpc_address, *self.extra_arguments]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            if self.process.poll() is not None:
                raise ServerError(f"the server ended while starting (status {self.process.returncode})")
            if time.monotonic() > deadline:
                raise ServerError(f"the server did not answer within {START_SECONDS_MAX} s")
            time.sleep(0.01)

    def _answers(self):
        client = S3Client(self.endpoint, self.access_key, self.secret_key, self.bucket)
        try:
            client.request("HEAD")
        except (OSError, http.client.HTTPException, S3Error):
            return False
        finally:
            client.close()
        return True

    def stop(self):
        """SIGTERM; the server must then end with status 0."""
        if self.process.poll() is not None:
            raise ServerError(f"the server ended by itself (status {self.process.returncode})")
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server did not stop within {STOP_SECONDS_MAX} s of SIGTERM") from None
        if status != 0:
            raise ServerError(f"the server stopped with status {status}")

    def kill(self):
        """SIGKILL, if it runs; returns once the process is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log_tail(self, lines=60):
        try:
            return "".join(open(self.log_path, encoding="utf-8", errors="replace").readlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"
