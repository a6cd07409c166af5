"""Three servers that form a cluster, with a breakable line between each two."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from itertools import permutations
from typing import Any, Self

import nats.errors
from nats.js.api import StreamConfig
from waiting import LONGEST

from rosey import EventBus, EventBusError
from rosey.server import LocalServer
from rosey.testing import FaultProxy

SIZE = 3


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """An async context manager; `servers` may be killed, frozen and started one by one."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self.servers: list[LocalServer] = []
        self.lines: dict[tuple[int, int], FaultProxy] = {}

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def index(self, url: str) -> int:
        return self.urls.index(url)

    def lines_of(self, index: int) -> Iterator[FaultProxy]:
        """Every line that server `index` has to the others."""
        return (line for ends, line in self.lines.items() if index in ends)

    def isolate(self, index: int) -> None:
        for line in self.lines_of(index):
            line.refuse()

    def heal(self) -> None:
        for line in self.lines.values():
            line.heal()

    async def __aenter__(self) -> Self:
        ports = free_ports(SIZE)
        for ends in permutations(range(SIZE), 2):
            line = FaultProxy(ports[ends[1]])
            self.lines[ends] = await self._stack.enter_async_context(line)
        for index in range(SIZE):
            routes = ", ".join(
                f'"nats-route://127.0.0.1:{self.lines[index, other].port}"'
                for other in range(SIZE)
                if other != index
            )
            config = f"""
                server_name: n{index}
                lame_duck_duration: "30s"
                lame_duck_grace_period: "3s"
                cluster {{
                    name: rosey
                    listen: "127.0.0.1:{ports[index]}"
                    advertise: "127.0.0.1:1"  # or servers would tell each other a way around
                    routes: [{routes}]
                }}"""
            server = LocalServer(config=config)
            self.servers.append(server)
            self._stack.push_async_callback(server.stop)
        try:
            await asyncio.gather(*(server.start() for server in self.servers))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._stack.aclose()

    async def make_stream(self, bus: EventBus, name: str, subject: str) -> None:
        """Make a stream with a copy on each server, as soon as the cluster can."""
        config = StreamConfig(name=name, subjects=[subject], num_replicas=SIZE)
        deadline = time.monotonic() + 3 * LONGEST
        while True:
            try:
                assert bus.js is not None
                await bus.js.add_stream(config)
                return
            except (nats.errors.Error, AssertionError):
                assert time.monotonic() < deadline, "the cluster never formed"
                await asyncio.sleep(0.1)

    async def whole(self, bus: EventBus, stream: str) -> None:
        """Wait until every server has a current copy, so that any one may die."""
        deadline = time.monotonic() + 6 * LONGEST
        while True:
            assert time.monotonic() < deadline, "the cluster never became whole"
            try:
                await bus.flush()
                assert bus.js is not None
                found = (await bus.js.stream_info(stream)).cluster
                copies = (found.replicas or []) if found is not None else []
                if len(copies) == SIZE - 1 and all(copy.current for copy in copies):
                    return
            except (nats.errors.Error, EventBusError):
                pass  # not even a leader yet
            await asyncio.sleep(0.1)

    async def leader(self, bus: EventBus, stream: str) -> int:
        assert bus.js is not None
        info = await bus.js.stream_info(stream)
        assert info.cluster is not None
        return int((info.cluster.leader or "n-1")[1:])
