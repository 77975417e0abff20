"""Load for fault tests: writers, deleters and readers over several nodes, whose contents say what they are.

Used by script/fault-test. Must stay true, and is checked by every read: what is read was written to this very key, whole, and
is no older than what had been acknowledged before the read began. An operation without an answer may take effect at any later
time, so its key is written no more; either outcome is right for it, but only one, for good.
"""

import hashlib
import http.client
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from s3client import S3Error

SIZES = (0, 200, 3000, 20_000, 150_000, 1_500_000)
SIZE_WEIGHTS = (10, 30, 20, 25, 12, 3)
DELETE_SHARE = 0.2
KEYS_PER_WRITER = 12
# Servers close connections that nobody uses.
IDLE_SECONDS_MAX = 10
BROKEN = (S3Error, OSError, http.client.HTTPException)


def content(key, number, size):
    """A line that names the key, the operation and the size, then bytes that follow from it."""
    line = f"{key} {number} {size}\n".encode()
    return line + random.Random(line).randbytes(size)


def number_of(key, body):
    """Which operation wrote this body; raises if it is not exactly what that operation wrote."""
    line = body.split(b"\n", 1)[0].decode(errors="replace").split(" ")
    assert len(line) == 3 and line[0] == key, f"{key} holds something else: {body[:80]!r}"
    number, size = int(line[1]), int(line[2])
    assert body == content(key, number, size), f"{key}: the content of operation {number} is damaged ({len(body)} bytes)"
    return number


@dataclass
class Record:
    """The operations on one key. Its writer appends; readers look at prefixes that do not change any more."""

    key: str
    operations: list = field(default_factory=lambda: ["delete"])  # "put" or "delete"; the first: it was never there
    acknowledged: int = 0
    doubtful: bool = False  # the last operation got no answer

    def check(self, found, floor, what):
        """`found`: the number of the operation read, or None for 404. `floor`: acknowledged before the read began."""
        latest = len(self.operations) - 1
        if found is None:
            deleted = any(kind == "delete" for kind in self.operations[floor:])
            assert deleted, f"{what}: {self.key} is not there, although operation {floor} put it and nothing deleted it since"
        else:
            assert floor <= found <= latest and self.operations[found] == "put", (
                f"{what}: {self.key} holds operation {found}, although {floor} was acknowledged and {latest} is the latest")


class Nodes:
    """Which nodes clients may use now, and who is at it."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.lock = threading.Lock()
        self.usable = list(cluster.nodes)
        self.busy = Counter()
        self.resting = False

    def choose(self, plan):
        """A node to send one request through, given back with `done`; None while there is none."""
        with self.lock:
            if self.resting or not self.usable:
                return None
            node = plan.choice(self.usable)
            self.busy[node] += 1
            return node

    def done(self, node):
        with self.lock:
            self.busy[node] -= 1

    def is_idle(self, node):
        with self.lock:
            return self.busy[node] == 0

    def leave(self, node):
        """From now on, nobody begins a request through this node."""
        with self.lock:
            if node in self.usable:
                self.usable.remove(node)

    def join(self, node):
        with self.lock:
            if node not in self.usable:
                self.usable.append(node)

    def is_usable(self, node):
        with self.lock:
            return node in self.usable


class SlowPut:
    """A PUT that the server has begun to read and that has sent half of its body; it waits to be told to go on."""

    def __init__(self, client, key, body):
        self.body = body
        self.connection = http.client.HTTPConnection(client.host, timeout=60)
        path = f"/{client.bucket}/{key}"
        headers = client.sign("PUT", path, "", hashlib.sha256(body).hexdigest(), {})
        self.connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            self.connection.putheader(name, value)
        self.connection.putheader("content-length", str(len(body)))
        # Before it has answered this, the server may not even have accepted the connection.
        self.connection.putheader("expect", "100-continue")
        self.connection.endheaders()
        go_on = b""
        while not go_on.endswith(b"\r\n\r\n"):
            received = self.connection.sock.recv(1)
            if not received:
                raise ConnectionResetError("the server closed the connection before it read the body")
            go_on += received
        assert go_on.startswith(b"HTTP/1.1 100 "), go_on
        self.connection.send(body[:len(body) // 2])

    def finish(self):
        """The status of the answer."""
        self.connection.send(self.body[len(self.body) // 2:])
        answer = self.connection.getresponse()
        answer.read()
        self.connection.close()
        return answer.status


class Load:
    """All threads and what they found. `strict`: a request through a usable node must succeed."""

    def __init__(self, cluster, writers, readers, seed):
        self.cluster, self.nodes = cluster, Nodes(cluster)
        self.records, self.lock = [], threading.Lock()
        self.strict, self.stopping = True, threading.Event()
        self.problems, self.counts, self.slowest = [], Counter(), 0.0
        seeds = random.Random(seed)
        self.threads = [threading.Thread(target=self._write, args=(index, random.Random(seeds.random()))) for index in range(writers)]
        self.threads += [threading.Thread(target=self._read, args=(random.Random(seeds.random()),)) for _ in range(readers)]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def check(self):
        """Raises the first problem that any thread found."""
        with self.lock:
            if self.problems:
                raise AssertionError(self.problems[0])

    def take_slowest(self):
        with self.lock:
            slowest, self.slowest = self.slowest, 0.0
            return slowest

    def _problem(self, text):
        with self.lock:
            self.problems.append(text)

    def _request(self, clients, node, *arguments, **keywords):
        """The answer, or None for 404; raises when there is none, and says so if there had to be one."""
        # Connections end with their process.
        process = (node.directory, node.process.pid)
        if process not in clients:
            clients[process] = self.cluster.client(node), time.monotonic()
        client, used = clients[process]
        if time.monotonic() - used > IDLE_SECONDS_MAX:
            client.close()
        strict, started = self.strict, time.monotonic()
        try:
            answer = client.request(*arguments, **keywords)
        except BROKEN as error:
            client.close()
            if isinstance(error, S3Error) and error.status == 404:
                answer = None
            else:
                with self.lock:
                    self.counts["failed"] += 1
                # With fewer nodes than a quorum missing, whoever asks a node that is up is served.
                if strict and self.strict and self.nodes.is_usable(node):
                    seconds = time.monotonic() - started
                    self._problem(f"a request through {node.name}, which was up, failed after {seconds:.1f} s: {error!r}")
                raise
        clients[process] = client, time.monotonic()
        with self.lock:
            self.counts[arguments[0]] += 1
            if self.nodes.is_usable(node):
                self.slowest = max(self.slowest, time.monotonic() - started)
        return answer

    def _guarded(self, operate, what):
        """Runs one operation; an operation that had no answer is no problem by itself, all else is."""
        try:
            operate()
        except BROKEN:
            # Counted, and judged where it happened. Not at once again: the node may be going.
            self.stopping.wait(0.05)
        except Exception as error:
            self._problem(f"{what}: {error}")
            self.stopping.set()

    def _write(self, index, plan):
        clients, records, made = {}, [], 0

        def operate():
            nonlocal made
            records[:] = [record for record in records if not record.doubtful]
            while len(records) < KEYS_PER_WRITER:
                record = Record(f"fault/{index}-{made:05}")
                made += 1
                records.append(record)
                with self.lock:
                    self.records.append(record)
            node = self.nodes.choose(plan)
            if node is None:
                self.stopping.wait(0.05)
                return
            record = plan.choice(records)
            delete = record.operations[-1] == "put" and plan.random() < DELETE_SHARE
            number = len(record.operations)
            record.operations.append("delete" if delete else "put")
            try:
                if delete:
                    self._request(clients, node, "DELETE", record.key)
                else:
                    body = content(record.key, number, plan.choices(SIZES, SIZE_WEIGHTS)[0])
                    answer = self._request(clients, node, "PUT", record.key, body=body)
                    assert answer is not None, f"PUT of {record.key} through {node.name} answered 404"
                    assert answer.headers["etag"] == f'"{hashlib.md5(body).hexdigest()}"'
            except BROKEN:
                record.doubtful = True
                raise
            finally:
                self.nodes.done(node)
            record.acknowledged = number

        while not self.stopping.is_set():
            self._guarded(operate, "a writer")

    def _read(self, plan):
        clients = {}

        def operate():
            with self.lock:
                record = plan.choice(self.records) if self.records else None
            node = self.nodes.choose(plan) if record else None
            if node is None:
                self.stopping.wait(0.05)
                return
            try:
                floor = record.acknowledged
                answer = self._request(clients, node, "GET", record.key)
            finally:
                self.nodes.done(node)
            found = None if answer is None else number_of(record.key, answer.body)
            record.check(found, floor, f"read through {node.name}")

        while not self.stopping.is_set():
            self._guarded(operate, "a reader")

    def verify(self):
        """Every key through every usable node, and the listings: they agree with the records and with each other."""
        for node in self.nodes.usable:
            client = self.cluster.client(node)
            there = set()
            for record in self.records:
                try:
                    found = number_of(record.key, client.request("GET", record.key).body)
                    there.add(record.key)
                except S3Error as error:
                    if error.status != 404:
                        raise
                    found = None
                record.check(found, record.acknowledged, f"at the end, through {node.name}")
                if record.doubtful:
                    # It did or it did not: from here on that is settled.
                    record.doubtful, record.acknowledged = False, self._settled(record, found)
                    record.operations = record.operations[:record.acknowledged + 1]
            for page_size in (1000, 17):
                listed = [key for key, *_ in client.list("fault/", page_size)]
                assert listed == sorted(there), (
                    f"the listing through {node.name} differs from the objects in {sorted(set(listed) ^ there)[:5]}")
        return len(self.records)

    @staticmethod
    def _settled(record, found):
        if found is not None:
            return found
        return len(record.operations) - 1 if record.operations[-1] == "delete" else record.acknowledged
