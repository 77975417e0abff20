"""A light, steady mix of requests through one node, and how long each took: what users of a busy cluster feel.

Requests are due at fixed times, whatever became of those before (an open loop): a server that stalls is charged for every
request that had to wait. The objects read are those that the load tool left.
"""

import http.client
import random
import threading
import time
from dataclasses import dataclass

from s3client import S3Error

SMALL, LARGE = 1 << 10, 256 << 10
RANGE_BYTES = 64 << 10
LIST_KEYS = 100
# Keys that puts overwrite in turn.
PUT_KEYS = 500
THREADS = 12
WEIGHTS = {"GET": 35, "GET range": 10, "HEAD": 20, "LIST": 10, "PUT": 20, "PUT block": 5}
BROKEN = (S3Error, OSError, http.client.HTTPException, AssertionError)


@dataclass
class Sample:
    kind: str
    due: float  # of the monotonic clock
    seconds: float
    error: str | None


def percentile(seconds, share):
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class SteadyLoad:
    """`small`, `large`: keys that exist, of SMALL bytes and of many. `rate`: requests a second, all threads together."""

    def __init__(self, make_client, rate, small, large, seed):
        self.make_client, self.small, self.large = make_client, small, large
        self.samples, self.stopping = [], threading.Event()
        seeds, began, interval = random.Random(seed), time.monotonic() + 0.5, THREADS / rate
        self.threads = [threading.Thread(target=self._run, args=(began + index * interval / THREADS, interval, random.Random(seeds.random())))
                        for index in range(THREADS)]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join()

    def between(self, begin, end):
        """The samples that were due in this time."""
        return [sample for sample in list(self.samples) if begin <= sample.due < end]

    def _run(self, due, interval, plan):
        client, free_at = self.make_client(), 0.0
        while not self.stopping.wait(max(0.0, due - time.monotonic())):
            # The server is charged with a thread that was still busy, not with one that woke up late.
            started = due if free_at > due else time.monotonic()
            kind, error = plan.choices(list(WEIGHTS), list(WEIGHTS.values()))[0], None
            try:
                self._request(client, kind, plan)
            except BROKEN as failed:
                client.close()
                error = repr(failed)
            free_at = time.monotonic()
            self.samples.append(Sample(kind, due, free_at - started, error))
            due += interval

    def _request(self, client, kind, plan):
        match kind:
            case "GET":
                body = client.request("GET", plan.choice(self.small)).body
                assert len(body) == SMALL, f"{len(body)} bytes"
            case "GET range":
                begin = plan.randrange(1 << 20)
                headers = {"range": f"bytes={begin}-{begin + RANGE_BYTES - 1}"}
                body = client.request("GET", plan.choice(self.large), headers=headers).body
                assert len(body) == RANGE_BYTES, f"{len(body)} bytes"
            case "HEAD":
                client.request("HEAD", plan.choice(self.small))
            case "LIST":
                after = self.small[plan.randrange(max(1, len(self.small) - LIST_KEYS))]
                body = client.request("GET", query={"list-type": 2, "max-keys": LIST_KEYS, "start-after": after}).body
                assert b"<Key>" in body, body[:200]
            case "PUT" | "PUT block":
                size = SMALL if kind == "PUT" else LARGE
                client.request("PUT", f"steady/{size}/{plan.randrange(PUT_KEYS)}", body=plan.randbytes(size))


def table(before, during):
    """Lines that compare two times by kind, latencies in milliseconds."""
    lines = ["| request | idle: n | p50 ms | p99 ms | move: n | p50 ms | p99 ms | max ms | p50 ratio | p99 ratio |",
             "|---|" + "---:|" * 9]
    for kind in [*WEIGHTS, "all"]:
        idle, move = ([1e3 * sample.seconds for sample in samples if kind in (sample.kind, "all")] for samples in (before, during))
        half, nearly = ([percentile(samples, share) for samples in (idle, move)] for share in (0.5, 0.99))
        cells = [f"{len(idle)}", f"{half[0]:.1f}", f"{nearly[0]:.1f}", f"{len(move)}", f"{half[1]:.1f}", f"{nearly[1]:.1f}",
                 f"{max(move, default=float('nan')):.0f}", f"{half[1] / half[0]:.2f}", f"{nearly[1] / nearly[0]:.2f}"]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines
