"""The pull loop of one consumer: keeps events coming, whatever happens to servers and requests.

A pull request asks for a number of messages and ends by itself; JetStream forgets it when the
consumer's leader changes, and says nothing. So each request asks for heartbeats too, and where
they fail to come another request is made. (NATS ADR-13 and ADR-37.)
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from rosey.core import acks
from rosey.core import headers as nats_headers
from rosey.core.connection import Connection, Route
from rosey.core.errors import EventBusError, NotConnectedError, PermissionDeniedError
from rosey.core.reports import ErrorReports

if TYPE_CHECKING:
    from nats.aio.msg import Msg

EXPIRES = 30.0
"""Seconds after which a request that was not filled ends."""
IDLE_HEARTBEAT = 0.5
"""Seconds of silence after which the server says that a request still stands."""
MISSED_AFTER = 1.25
"""Seconds of silence after which the server is thought to have forgotten our requests."""
KEEP_PLACE = 1.0
"""Seconds after a reconnection in which only the one that got a group's messages asks for more."""
RETRY_PAUSE = 0.25
"""Seconds between requests while the consumer has no leader."""
SEND_TIMEOUT = 5.0
STOP_TIMEOUT = 2.0
"""Seconds that the server gets to send what it has sent already."""

_WRONG_PIN = "423"
_NO_RESPONDERS = "503"
_HEARTBEAT = "100"
_GONE = ("consumer deleted", "consumer is push based", "stream deleted")

_logger = logging.getLogger("rosey.consumer")


class PullLoop:
    """Asks for messages as long as `wanted` says that there is room for more."""

    def __init__(
        self,
        connection: Connection,
        reports: ErrorReports,
        *,
        take: Callable[[Msg], None],
        wanted: Callable[[], int],
        gone: Callable[[str], None],
        reconnected: Callable[[], None],
        unpinned: Callable[[], None],
        group: str = "",
    ) -> None:
        self._connection = connection
        self._reports = reports
        self._take = take
        self._wanted = wanted
        self._gone = gone
        self._reconnected = reconnected
        self._unpinned = unpinned
        self._group = group
        self._request_subject = ""
        inbox = f"{connection.inbox_prefix}.{secrets.token_hex(12)}"
        self._reply_to = f"{inbox}.pull"
        self._route = Route(f"{inbox}.*", "", self._receive, self._on_reconnected)
        self.pin = ""
        """The server's name for us while we are the one that gets a group's messages."""
        self.kept_until = 0.0
        """Loop time until which our place in the group is kept for us after a reconnection."""
        self.outstanding = 0
        """Messages asked for and not yet come."""
        self._heard = 0.0
        self._wake = asyncio.Event()
        self._refused_until = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self, stream: str, consumer: str, deadline: float) -> None:
        """Subscribe for what comes, and begin to ask; raises what `Connection.subscribe` does."""
        self._request_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        await self._connection.subscribe(self._route, deadline)
        self._heard = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._ask(), name=f"rosey-pull {consumer}")

    async def stop(self) -> None:
        """Ask for nothing more; when it returns, all that was on its way has been taken."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._connection.drain(self._route, self._connection.time() + STOP_TIMEOUT)

    def abandon(self) -> None:
        """As `close`, without telling the server."""
        if self._task is not None:
            self._task.cancel()
        self._connection.forget(self._route)

    def restart(self) -> None:
        """Take it that the server has forgotten our requests."""
        self.outstanding = 0
        self.pin = ""
        self._wake.set()

    def _on_reconnected(self) -> None:
        """A server that restarted knows no pins: whoever had it asks first, so that it stays."""
        if self._group:
            kept_until = self._connection.time() + KEEP_PLACE
            if self.pin:
                self.kept_until = kept_until
                asyncio.get_running_loop().call_at(kept_until, self._missed_its_place)
            else:
                self._refused_until = kept_until
        self.restart()
        self._reconnected()

    def _missed_its_place(self) -> None:
        if not self.pin:
            self._unpinned()

    def wake(self) -> None:
        """There may be room for more."""
        self._wake.set()

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            if self.outstanding > 0 and loop.time() - self._heard > MISSED_AFTER:
                if self._connection.lag.blocked_until < self._heard:
                    _logger.info("no heartbeat on %s: asking again", self._request_subject)
                self.restart()
            room = self._wanted()
            pause = max(0.0, self._refused_until - loop.time())
            if not pause and room > 0 and 2 * self.outstanding <= room:
                await self._request(room - self.outstanding)
            try:
                async with asyncio.timeout(pause or IDLE_HEARTBEAT):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _request(self, batch: int) -> None:
        loop = asyncio.get_running_loop()
        body: dict[str, Any] = {
            "batch": batch,
            "expires": acks.nanoseconds(EXPIRES),
            "idle_heartbeat": acks.nanoseconds(IDLE_HEARTBEAT),
        }
        if self._group:
            body["group"] = self._group
        if self.pin:
            body["id"] = self.pin
        self.outstanding += batch
        self._heard = loop.time()
        try:
            await self._connection.send(
                self._request_subject,
                msgspec.json.encode(body),
                deadline=self._heard + SEND_TIMEOUT,
                reply=self._reply_to,
            )
        except NotConnectedError:
            # `restart` comes with the next connection.
            self.outstanding = 0
            self._refused_until = loop.time() + RETRY_PAUSE
        except EventBusError as error:
            self.outstanding = 0
            self._refused_until = loop.time() + SEND_TIMEOUT
            self._reports.report(error, where=f"cannot ask for events on {self._request_subject}")
            if not isinstance(error, PermissionDeniedError):
                raise

    def _receive(self, msg: Msg) -> None:
        """Take what comes for us; never waits, never raises."""
        self._heard = self._connection.time()
        if msg.reply:
            if self.outstanding:
                self.outstanding -= 1
            self._take(msg)
            if 2 * self.outstanding <= self._wanted() and not self._wake.is_set():
                self._wake.set()
            return
        self._read_status(msg.headers or {})

    def _read_status(self, headers: dict[str, str]) -> None:
        code = headers.get(nats_headers.STATUS, "")
        text = headers.get(nats_headers.DESCRIPTION, "").lower()
        if code == _HEARTBEAT:
            return
        if any(reason in text for reason in _GONE):
            self._gone(text)
        elif code == _WRONG_PIN:
            self.pin = ""
            self._unpinned()
        elif code == _NO_RESPONDERS:
            # No leader now, or no such consumer: who started us finds out.
            self.outstanding = 0
            self._refused_until = self._connection.time() + RETRY_PAUSE
            self._gone("")
            return
        # The end of a request, or its refusal; how much of it was not delivered is told.
        unfilled = headers.get(nats_headers.PENDING_MESSAGES, "")
        self.outstanding -= int(unfilled) if unfilled.isdigit() else self.outstanding
        self.outstanding = max(0, self.outstanding)
        if code.startswith("4") and not unfilled:
            self._refused_until = self._connection.time() + RETRY_PAUSE
        self._wake.set()
