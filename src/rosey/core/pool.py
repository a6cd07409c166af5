"""The servers of one cluster: those that were named, and those that it announced."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rosey.core.addresses import ServerAddress
from rosey.core.dialing import Callbacks, ConnectOptions, dial
from rosey.core.errors import ConnectError

if TYPE_CHECKING:
    from nats.aio.client import Client

DIAL_TIMEOUT = 2.0
"""Seconds that one server gets at least to complete a handshake before the next one is tried."""
FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0
"""Seconds: between tries there is a random time below a bound that doubles from one to other."""


class ServerPool:
    """Tries servers in random order; knows which one the last connection went to."""

    def __init__(self, named: Sequence[ServerAddress], options: ConnectOptions) -> None:
        self._named = named
        self._announced: tuple[ServerAddress, ...] = ()
        self._options = options
        self.current: ServerAddress | None = None

    def __str__(self) -> str:
        return ", ".join(address.url for address in self._named)

    def others(self) -> list[ServerAddress]:
        """All servers but the current one."""
        return [address for address in self._all() if address != self.current]

    def learn(self, client: Client) -> None:
        """Remember the servers that `client` was told of; they get the same credentials."""
        if self.current is None:
            return
        urls = {address.url for address in self._named}
        found = []
        for uri in client.discovered_servers:
            url = f"{urlsplit(self.current.url).scheme}://{uri.netloc.rpartition('@')[2]}"
            if url not in urls:
                urls.add(url)
                found.append(replace(self.current, url=url, certified_as=self._name_for(url)))
        self._announced = tuple(found)

    async def dial(
        self, deadline: float, callbacks: Callbacks, *, elsewhere: bool = False
    ) -> Client:
        """Try each server once and return the first client that connects.

        `elsewhere` leaves out the current server. Raises `ConnectError`; of several failures the
        one that trying again cannot mend.
        """
        servers = self.others() if elsewhere else self._all()
        failures: list[ConnectError] = []
        for address in random.sample(servers, len(servers)):
            now = asyncio.get_running_loop().time()
            limit = min(deadline, now + max(DIAL_TIMEOUT, (deadline - now) / len(servers)))
            try:
                client = await dial(address, self._options, limit, callbacks)
            except ConnectError as error:
                failures.append(error)
            else:
                self.current = address
                self.learn(client)
                return client
        for failure in failures:
            if len(failures) == 1 or failure.final:
                raise failure
        raise ConnectError("; ".join(map(str, failures)) or "there is no other server")

    def _all(self) -> list[ServerAddress]:
        return [*self._named, *self._announced]

    def _name_for(self, url: str) -> str | None:
        """Servers are announced by number; their certificates hold the name we were given."""
        try:
            ipaddress.ip_address(urlsplit(url).hostname or "")
        except ValueError:
            return None
        assert self.current is not None
        return self.current.certified_as or urlsplit(self.current.url).hostname


def delays() -> Iterator[float]:
    """Full jitter: a random time below a doubling bound, so that many clients spread out."""
    bound = FIRST_DELAY
    while True:
        yield random.uniform(0.0, bound)
        bound = min(bound * 2, LONGEST_DELAY)
