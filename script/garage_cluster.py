"""Several garage processes on this machine, each with its own directory, ports and zone: for tests.

Everything is done as an operator would: configuration files, `node connect`, `layout assign`, `layout apply`, keys, a bucket.
"""

import json
import os
import secrets
import signal
import subprocess
import time

from garage_server import START_SECONDS_MAX, STOP_SECONDS_MAX, ServerError, free_ports
from s3client import S3Client

CONFIGURATION = """\
metadata_dir = "{directory}/meta"
data_dir = "{directory}/data"
replication_factor = {replication_factor}
rpc_bind_addr = "{rpc_address}"
rpc_public_addr = "{rpc_address}"
rpc_secret = "{rpc_secret}"

[s3_api]
s3_region = "garage"
api_bind_addr = "{s3_address}"
root_domain = ".localhost"
"""


class Node:
    """One process, which may be killed and started again."""

    def __init__(self, binary, directory, zone, s3_address, rpc_address):
        self.binary, self.directory, self.zone = binary, directory, zone
        self.s3_address, self.rpc_address = s3_address, rpc_address
        self.configuration = os.path.join(directory, "garage.toml")
        self.process = None

    def configure(self, replication_factor, rpc_secret, settings=""):
        """Makes the directory and the configuration file."""
        os.makedirs(self.directory)
        text = settings + CONFIGURATION.format(directory=self.directory, replication_factor=replication_factor, rpc_secret=rpc_secret,
                                    rpc_address=self.rpc_address, s3_address=self.s3_address)
        with open(os.open(self.configuration, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(text)

    @property
    def name(self):
        return os.path.basename(self.directory)

    @property
    def endpoint(self):
        return f"http://{self.s3_address}"

    def command(self, *arguments):
        """Runs a command of the command line against this node; returns what it prints."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GARAGE_")}
        done = subprocess.run([self.binary, "-c", self.configuration, *arguments], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ServerError(f"garage {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def identity(self):
        """The node's id and address, as `node connect` takes them."""
        return self.command("node", "id", "-q").strip()

    def start(self):
        """Starts the process and waits until it answers the command line."""
        self.spawn()
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                return self.command("status")
            except ServerError:
                if not self.runs() or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def spawn(self):
        with open(os.path.join(self.directory, "server.log"), "ab") as log:
            self.process = subprocess.Popen([self.binary, "-c", self.configuration, "server"], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)

    def runs(self):
        return self.process is not None and self.process.poll() is None

    def stop(self):
        """SIGTERM; the process must then end with status 0."""
        self.terminate()
        self.wait_stopped()

    def terminate(self):
        if self.process.poll() is not None:
            raise ServerError(f"{self.name} ended by itself (status {self.process.returncode})")
        self.process.send_signal(signal.SIGTERM)

    def wait_stopped(self):
        try:
            status = self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise ServerError(f"{self.name} did not stop within {STOP_SECONDS_MAX} s of SIGTERM") from None
        if status != 0:
            raise ServerError(f"{self.name} stopped with status {status}")

    def kill(self):
        """SIGKILL, if it runs."""
        if self.runs():
            self.process.kill()
            self.process.wait()

    def pause(self):
        """SIGSTOP: the process neither runs nor closes its connections, like a machine that hangs."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def log_tail(self, lines=40):
        with open(os.path.join(self.directory, "server.log"), encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-lines:])


class Cluster:
    """Nodes with a layout, a key and a bucket."""

    def __init__(self, binary, directory, count, replication_factor, bucket="test", zones=None, settings=""):
        """`zones`: how many, which nodes are in by turns; without it, each node has its own. `settings`: lines of configuration."""
        self.binary, self.directory, self.zones, self.settings = binary, directory, zones, settings
        self.replication_factor, self.rpc_secret = replication_factor, secrets.token_hex(32)
        self.bucket = bucket
        self.access_key, self.secret_key = "GK" + secrets.token_hex(12), secrets.token_hex(32)
        self.nodes = []
        for _ in range(count):
            self.new_node()

    def new_node(self):
        """One more node: configured, not started, in no layout."""
        number = len(self.nodes) + 1
        zone = (number - 1) % self.zones + 1 if self.zones else number
        s3_port, rpc_port = free_ports(2)
        node = Node(self.binary, os.path.join(self.directory, f"node{number}"), f"zone{zone}",
                    f"127.0.0.1:{s3_port}", f"127.0.0.1:{rpc_port}")
        node.configure(self.replication_factor, self.rpc_secret, self.settings)
        self.nodes.append(node)
        return node

    def start(self):
        for node in self.nodes:
            node.start()
        form(self.nodes, [node.zone for node in self.nodes], "10G")
        make_bucket(self.nodes[0], self.bucket, self.access_key, self.secret_key)
        self.wait_for("every node knows the layout", self._all_know_the_layout)

    def _all_know_the_layout(self):
        layouts = [json.loads(node.command("layout", "show", "--json")) for node in self.nodes if node.runs()]
        return all(layout.get("version") == 1 for layout in layouts)

    def client_environment(self, endpoint):
        """What a client test needs to know; `endpoint` leads to any of the nodes."""
        return {"ENDPOINT": endpoint, "ENDPOINTS": " ".join(node.endpoint for node in self.nodes),
                "ACCESS_KEY": self.access_key, "SECRET_KEY": self.secret_key, "BUCKET": self.bucket}

    def client(self, node):
        return S3Client(node.endpoint, self.access_key, self.secret_key, self.bucket)

    @staticmethod
    def is_one_layout_live(nodes):
        """Whether each of these nodes goes by the newest layout version alone."""
        shown = [json.loads(node.command("layout", "history", "--json")) for node in nodes]
        return all(sum(version["status"].lower() != "historical" for version in history["versions"]) == 1 for history in shown)

    @staticmethod
    def behind(nodes):
        """What each of these nodes, that is not where it should be, says of itself; None while one does not answer."""
        stats = json.loads(nodes[0].command("stats", "-a", "--json"))["success"]
        missing = len(nodes) - len(stats)
        return None if missing > 0 else {node[:16]: answer for node, answer in stats.items() if is_behind(answer)}

    @staticmethod
    def introduce(node, others):
        """Starts a node and makes it known to others."""
        node.start()
        for other in others:
            node.command("node", "connect", other.identity())

    @staticmethod
    def assignment(node, *capacity):
        """The command that stages a role for a node in its zone."""
        return ("layout", "assign", "-z", node.zone, *capacity, node.identity().split("@")[0])

    def stop(self):
        for node in self.nodes:
            node.stop()

    def kill(self):
        for node in self.nodes:
            node.kill()

    def log_tail(self):
        return "\n".join(f"--- log of {node.name}\n{node.log_tail()}" for node in self.nodes if node.process is not None)

    @staticmethod
    def wait_for(what, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise ServerError(f"waited {seconds} s in vain until {what}")
            time.sleep(0.05)


def is_behind(stats):
    """Whether a node still has to fetch or hand over what it knows to be missing."""
    moves = stats["moves"]
    return (moves["rebuilding"] or moves["stillCounting"] or moves["blocksToFetch"] + moves["blocksToHandOver"] > 0
            or moves["blocksFailed"] > 0)


def form(nodes, zones, capacity):
    """Connects running nodes to the first, and applies a layout of all of them."""
    first = nodes[0]
    for node in nodes[1:]:
        first.command("node", "connect", node.identity())
    for node, zone in zip(nodes, zones, strict=True):
        first.command("layout", "assign", "-z", zone, "-c", capacity, node.identity().split("@")[0])
    first.command("layout", "apply", "--version", "1")


def make_bucket(node, bucket, access_key, secret_key):
    """A key that may do everything with a bucket, and make others."""
    node.command("key", "import", access_key, secret_key, "-n", "test", "--yes")
    node.command("key", "allow", "--create-bucket", access_key)
    node.command("bucket", "create", bucket)
    node.command("bucket", "allow", "--read", "--write", "--owner", bucket, "--key", access_key)
