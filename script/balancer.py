"""A TCP balancer for tests: each connection goes to the next address in turn, as behind a load balancer of an operator.

A client that opens one connection after another so meets a different node each time. An address that refuses is passed over.
"""

import asyncio
import threading

CONNECT_SECONDS_MAX = 2


class Balancer:
    """Listens on a free port of 127.0.0.1 from `start` to `stop`, in a thread of its own."""

    def __init__(self, addresses):
        self.addresses = [(host, int(port)) for host, port in (address.rsplit(":", 1) for address in addresses)]
        self.turn = 0
        self.address = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self):
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        self.address = "127.0.0.1:%d" % server.sockets[0].getsockname()[1]

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _connect(self):
        """A connection to the next address that accepts one."""
        for _ in self.addresses:
            address = self.addresses[self.turn % len(self.addresses)]
            self.turn += 1
            try:
                return await asyncio.wait_for(asyncio.open_connection(*address), CONNECT_SECONDS_MAX)
            except OSError:
                continue
        raise ConnectionRefusedError("no address accepts connections")

    async def _serve(self, reader, writer):
        try:
            backend_reader, backend_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pump(reader, backend_writer), _pump(backend_reader, writer))
        except OSError:
            # A reset on one side becomes a reset on the other.
            writer.transport.abort()
            backend_writer.transport.abort()
        writer.close()
        backend_writer.close()


async def _pump(reader, writer):
    """Passes bytes on until the end, and the end itself."""
    while received := await reader.read(1 << 16):
        writer.write(received)
        await writer.drain()
    writer.write_eof()
