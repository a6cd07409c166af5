"""`FaultProxy`: stands between a client and its server, and breaks what goes through."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Self

HOST = "127.0.0.1"
_CHUNK = 64 * 1024

Filter = Callable[[bytes], bytes]
"""Gets what the server sent, in pieces of any size, and returns what the client is to see."""


class FaultProxy:
    """A TCP proxy on loopback, to put in front of a server.

    Used as an async context manager; clients connect to `url`. Faults act on connections that
    exist and on those to come, until `heal`.
    """

    def __init__(self, server_port: int, port: int = 0) -> None:
        self._server_port = server_port
        self._port = port
        self._listening: asyncio.Server | None = None
        self._connections: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._refuses = False
        self._left: int | None = None
        self._swallows = False
        self._delay = 0.0
        self._filter: Filter | None = None

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self._port

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        return f"nats://{HOST}:{self._port}"

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        self._flows.set()
        self._listening = await asyncio.start_server(self._serve, HOST, self._port)
        self._port = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listening is not None
        self._listening.close()
        self.reset()
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)

    def reset(self) -> None:
        """End every connection with a TCP reset, on both sides."""
        for writers in tuple(self._connections):
            for writer in writers:
                _reset(writer)

    def refuse(self) -> None:
        """Reset every connection, and each new one at once."""
        self._refuses = True
        self.reset()

    def stall(self) -> None:
        """Take no more bytes from either side: a network that swallows everything."""
        self._flows.clear()

    def delay(self, seconds: float) -> None:
        """Hold what the server says back for so long."""
        self._delay = seconds

    def swallow(self) -> None:
        """Pass on nothing more of what clients send, although it is taken."""
        self._swallows = True

    def cut_after(self, count: int) -> None:
        """Pass on `count` more bytes of what clients send, and then reset all connections."""
        self._left = count

    def filter(self, change: Filter) -> None:
        """Send what the server says through `change` first."""
        self._filter = change

    def heal(self) -> None:
        """End every fault; connections that were not reset go on."""
        self._refuses = self._swallows = False
        self._left = self._filter = None
        self._delay = 0.0
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            _reset(writer)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, self._server_port)
        except OSError:
            _reset(writer)
            return
        pair = writer, up_writer
        self._connections.add(pair)
        pumps = {
            asyncio.create_task(self._pump(reader, up_writer, self._to_server)),
            asyncio.create_task(self._pump(up_reader, writer, self._to_client, delayed=True)),
        }
        self._pumps |= pumps
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections.discard(pair)
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            self._pumps -= pumps
            for each in pair:
                each.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        change: Callable[[bytes], bytes],
        *,
        delayed: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._flows.wait()
                if delayed and self._delay:
                    await asyncio.sleep(self._delay)
                writer.write(change(data))
                await writer.drain()
                if self._left == 0:
                    self._left = None
                    self.reset()
                    return

    def _to_server(self, data: bytes) -> bytes:
        if self._swallows:
            return b""
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        return data

    def _to_client(self, data: bytes) -> bytes:
        return data if self._filter is None else self._filter(data)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
