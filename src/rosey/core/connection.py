"""The connection: owns the nats-py client, notices when it is dead, puts a new one in its place.

nats-py's own reconnection is switched off. It can stop for good, or go deaf while it says that
it is connected; so every client here lives for one server connection, and this module decides
when it is over, connects the next one and makes all subscriptions again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import nats.errors

from rosey.core import headers as nats_headers
from rosey.core.dialing import CLOSE_TIMEOUT, Callbacks, discard, take_result
from rosey.core.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    EventBusError,
    NoRespondersError,
    NotConnectedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    SubscriptionError,
    WrongEventLoopError,
)
from rosey.core.inbox import Accept, Exchange, Inbox, anything
from rosey.core.loop_lag import LoopLag
from rosey.core.pool import ServerPool, delays
from rosey.core.reports import ErrorReports

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as NatsSubscription

ROUND_TRIP_TIMEOUT = 2.0
"""Seconds in which a healthy server answers; one that does not is given up."""
HEARTBEAT = 5.0
"""Seconds without traffic after which the connection proves itself with a round trip."""
DENIED_FOR = 5.0
"""Seconds in which `send` refuses a subject itself after the server did; permissions may change."""
MAX_UNCONFIRMED = 512 * 1024
"""Bytes published after which a publisher waits until the server has taken them."""

_logger = logging.getLogger("rosey.connection")
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


class State(Enum):
    """What the connection is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class Route:
    """One NATS subscription that outlives clients: what is wanted and where messages go."""

    pattern: str
    queue: str
    deliver: Callable[[Msg], None]
    reattached: Callable[[], None] | None = None
    """Called when a new connection has it, because what was asked on the old one is forgotten."""
    at_server: NatsSubscription | None = None
    denied: PermissionDeniedError | None = None


class Connection:
    """A connection to one server at a time, of a pool, that replaces itself when it fails."""

    def __init__(
        self,
        pool: ServerPool,
        reports: ErrorReports,
        *,
        max_reconnect_attempts: int,
        connect_timeout: float,
        inbox_prefix: str,
        needs_jetstream: bool,
    ) -> None:
        self._pool = pool
        self._reports = reports
        self._max_reconnect_attempts = max_reconnect_attempts
        self._connect_timeout = connect_timeout
        self._needs_jetstream = needs_jetstream
        self._callbacks = Callbacks(
            self._on_error, self._on_lost, self._on_lame_duck, self._pool.learn
        )
        self.lag = LoopLag()
        self._state = State.CLOSED
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Client | None = None
        self.inbox_prefix = inbox_prefix
        self._inbox = Inbox(inbox_prefix)
        self._routes: list[Route] = []
        self._failure: EventBusError | None = None
        self._settled = asyncio.Event()  # the state is neither connecting nor reconnecting
        self._lost = asyncio.Event()  # the current client is of no more use
        self._move = asyncio.Event()  # the current server should be left for another
        self._listeners: weakref.WeakSet[asyncio.Queue[State]] = weakref.WeakSet()
        self._denied: dict[str, float] = {}  # subjects, and until when publishing there is refused
        self._watch: asyncio.Task[None] | None = None
        self._establishing: asyncio.Task[None] | None = None
        self._drains: set[asyncio.Future[None]] = set()
        self._unconfirmed = 0
        self._posted = self._proven = 0  # messages sent that nobody answers; known to have arrived
        self._lost_some = False
        self._confirming = asyncio.Lock()

    @property
    def state(self) -> State:
        """What the connection is doing now."""
        return self._state

    @property
    def is_usable(self) -> bool:
        """Whether it is connected, or may be again without a call of `connect`."""
        return self._state not in (State.CLOSING, State.CLOSED)

    @property
    def is_reconnecting(self) -> bool:
        """Whether the connection is down and may come back."""
        return self._state is State.RECONNECTING

    @property
    def is_ending(self) -> bool:
        """Whether nobody keeps it connected any more, be it that the event loop ends."""
        return self._watch is None or self._watch.done() or self._watch.cancelling() > 0

    @property
    def client(self) -> Client | None:
        """The nats-py client in use; another one after each reconnection."""
        return self._client

    @property
    def server(self) -> str:
        """The URL of the server connected to, without credentials; empty before the first."""
        return self._pool.current.url if self._pool.current is not None else ""

    @property
    def server_version(self) -> tuple[int, int]:
        """Major and minor version of the server connected to; (0, 0) while there is none."""
        if self._client is None:
            return 0, 0
        version = self._client.connected_server_version
        return version.major, version.minor

    def time(self) -> float:
        """Now, as deadlines are given."""
        return self._loop.time() if self._loop is not None else time.monotonic()

    def check_loop(self) -> None:
        """Raise `WrongEventLoopError` unless called on the loop the connection was made on."""
        if self._loop is None or self._loop is asyncio.get_running_loop():
            return
        if self._loop.is_closed():
            self._forget_loop()
        else:
            raise WrongEventLoopError(
                "this bus is connected on another event loop; use it there "
                "(asyncio.run_coroutine_threadsafe), or make one bus for each loop"
            )

    async def connect(self) -> None:
        """Connect to one of the servers and make all subscriptions again.

        Raises `ConnectError`, within `connect_timeout`; passing failures are tried again until
        then, wrong credentials and failed TLS verification are not.
        """
        loop = asyncio.get_running_loop()
        self._loop, self._failure = loop, None
        self._change(State.CONNECTING)
        deadline = loop.time() + self._connect_timeout
        # A task of its own, so that `stop_reconnecting` can end it without ending our caller.
        self._establishing = loop.create_task(self._establish(deadline))
        try:
            await self._establishing
        except BaseException as error:
            by_close = self._state is State.CLOSING and isinstance(error, asyncio.CancelledError)
            self._change(State.CLOSED)
            self._loop = None
            if self._client is not None:  # it connected just when our caller was cancelled
                await self._drop(self._client)
            if by_close:
                raise ConnectError("the bus was disconnected while it connected") from error
            raise
        finally:
            self._establishing = None
        self._watch = loop.create_task(self._keep_connected(), name="rosey-connection")
        self.lag.start()

    async def close(self, deadline: float) -> None:
        """Send what is pending and close, until `deadline`; routes are kept for a `connect`."""
        self.stop_reconnecting()
        try:
            if self._watch is not None:
                await asyncio.wait([self._watch], timeout=2 * CLOSE_TIMEOUT)
            if self._client is not None and not self._lost.is_set():
                with contextlib.suppress(EventBusError, TimeoutError):
                    await self._round_trip(self._client, deadline)
        finally:
            client, self._client, self._watch = self._client, None, None
            self._change(State.CLOSED)
            self._inbox.fail(lambda: NotConnectedError("the bus was disconnected"))
            self.lag.stop()
            self._loop = None
            if client is not None:
                await discard(client)
            self._end_drains()

    def states(self) -> AsyncIterator[State]:
        """Every change of state from now on, in order; ends with `State.CLOSED`.

        Whoever iterates does so at its own pace: the connection does not wait for it.
        """
        changes: asyncio.Queue[State] = asyncio.Queue()
        self._listeners.add(changes)
        return self._iterate(changes)

    async def _iterate(self, changes: asyncio.Queue[State]) -> AsyncIterator[State]:
        state = None
        while state is not State.CLOSED:
            state = await changes.get()
            yield state

    def stop_reconnecting(self) -> None:
        """Begin to close: what is connected stays so until `close`, but is not replaced."""
        if self._state is not State.CLOSED:
            self._change(State.CLOSING)
        if self._establishing is not None:
            self._establishing.cancel()
        if self._watch is not None:
            self._watch.cancel()

    async def settled(self, deadline: float) -> None:
        """Return when it is connected, waiting until `deadline`; raises `NotConnectedError`."""
        await self._live_client(deadline)

    async def send(
        self,
        subject: str,
        payload: bytes,
        *,
        deadline: float,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Hand a message to a live connection, waiting for one until `deadline` (loop time).

        Raises `NotConnectedError`, `PayloadTooLargeError`; `PermissionDeniedError` for a subject
        that the server refused a moment ago.
        """
        # nats-py tells a denied subject in lower case; another case may be allowed.
        if self._denied and self._denied.get(subject, 0.0) > time.monotonic():
            raise _denied("publish", subject)
        while True:
            client = await self._live_client(deadline)
            size = len(payload) + nats_headers.size(headers)
            if size > client.max_payload:
                raise PayloadTooLargeError(
                    f"an event of {size:,} bytes for {subject} is over the server's limit of "
                    f"{client.max_payload:,}; send less, or raise max_payload in the server's "
                    "configuration",
                    size=size,
                    limit=client.max_payload,
                )
            if self._unconfirmed >= MAX_UNCONFIRMED:
                await self._confirm(client, deadline)
                continue  # the connection may be another one by now
            try:
                await client.publish(subject, payload, reply, dict(headers) if headers else None)
            except (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError):
                self._on_lost(client)
                continue
            self._unconfirmed += size + len(subject) + 64
            if reply:
                self._inbox.mark_sent(reply)
            else:
                self._posted += 1
            return

    async def exchange(
        self,
        subject: str,
        payload: bytes,
        *,
        deadline: float,
        headers: Mapping[str, str] | None = None,
        accept: Accept = anything,
    ) -> Msg:
        """Send a message and return the first accepted one that comes back.

        Raises `TimeoutError` at `deadline`, with the last message passed over as its argument,
        `NoRespondersError`, `PermissionDeniedError` and what `send` raises.
        """
        with self.expecting(subject, accept) as exchange:
            await self.send(
                subject, payload, deadline=deadline, reply=exchange.reply_subject, headers=headers
            )
            try:
                async with asyncio.timeout_at(deadline):
                    msg = await exchange.answer
            except TimeoutError:
                raise TimeoutError(exchange.passed_over) from None
        if is_no_responders(msg):
            raise NoRespondersError(f"nobody is subscribed to {subject}")
        return msg

    @contextlib.contextmanager
    def expecting(self, subject: str, accept: Accept = anything) -> Iterator[Exchange]:
        """An exchange for answers to what is sent to `subject` in a block, once or repeatedly."""
        exchange = self._inbox.open(subject, accept)
        try:
            yield exchange
        finally:
            self._inbox.close(exchange)

    async def round_trip(self, deadline: float) -> float:
        """Send a message to ourselves through the server; return the seconds it took."""
        return await self._round_trip(await self._live_client(deadline), deadline)

    async def flush(self, deadline: float) -> None:
        """Return when the server has processed all that was sent before.

        Raises `ConnectionLostError`, once, if some of it may have gone with a connection.
        """
        await self.round_trip(deadline)
        if self._lost_some:
            self._lost_some = False
            raise ConnectionLostError(
                "the connection was lost since the last flush: what was published just before "
                "may not have arrived"
            )

    async def subscribe(self, route: Route, deadline: float) -> None:
        """Make a subscription and keep it across reconnections.

        When it returns, the server knows it. Raises `PermissionDeniedError`,
        `SubscriptionError`, `NotConnectedError`.
        """
        client = await self._live_client(deadline)
        if self._state is State.CLOSING:
            raise NotConnectedError("the bus is being disconnected")
        self._routes.append(route)
        try:
            while True:
                try:
                    if route.at_server is None:
                        await self._attach(route, client)
                    await self._round_trip(client, deadline)
                    break
                except ConnectionLostError:
                    client = await self._live_client(deadline)  # it subscribed to all routes
            if route.denied:
                raise route.denied
        except TimeoutError:
            await self.unsubscribe(route)
            raise SubscriptionError(
                f"the server did not confirm the subscription to {route.pattern} in time"
            ) from None
        except BaseException:
            await self.unsubscribe(route)
            raise

    async def unsubscribe(self, route: Route) -> None:
        """End a subscription at once; messages on their way are dropped."""
        if self.forget(route) and route.at_server is not None:
            with contextlib.suppress(nats.errors.Error):
                await route.at_server.unsubscribe()

    async def drain(self, route: Route, deadline: float) -> None:
        """End a subscription after delivering what the server has sent already."""
        if self.forget(route) and route.at_server is not None:
            await self._drain(route.at_server, deadline)

    async def _drain(self, at_server: NatsSubscription, deadline: float) -> None:
        # Not cancelled while the client lives: its reader would die of the answer to a cancelled
        # flush. Cancelled once it is dead: it would wait for that answer.
        draining = asyncio.ensure_future(at_server.drain())  # type: ignore[no-untyped-call]
        draining.add_done_callback(take_result)
        draining.add_done_callback(self._drains.discard)
        self._drains.add(draining)
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait([draining], timeout=left)

    def forget(self, route: Route) -> bool:
        """Do not make this subscription again; whether it was one."""
        if route not in self._routes:
            return False
        self._routes.remove(route)
        return True

    def _change(self, state: State) -> None:
        if state is self._state:
            return
        self._state = state
        for changes in tuple(self._listeners):
            changes.put_nowait(state)
        if state in (State.CONNECTING, State.RECONNECTING):
            self._settled.clear()
        else:
            self._settled.set()
        _logger.info("%s%s", state.value, f" to {self.server}" if state is State.CONNECTED else "")

    def _forget_loop(self) -> None:
        """The loop ended without a `close`: nothing of it can be used or cleaned up any more."""
        self._client = self._watch = self._loop = None
        self._settled, self._lost, self._move = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._confirming = asyncio.Lock()
        self._routes.clear()
        self._drains.clear()
        self._listeners.clear()
        self.lag = LoopLag()
        self._state = State.CLOSED

    async def _live_client(self, deadline: float) -> Client:
        while self._state in (State.CONNECTING, State.RECONNECTING):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._settled.wait()
            except TimeoutError:
                raise NotConnectedError(
                    f"the connection to {self._pool} is down and did not come back in time"
                ) from None
        if self._client is not None and not self._lost.is_set():
            return self._client
        if self._failure is not None:
            raise NotConnectedError(f"the bus gave up: {self._failure}") from self._failure
        if self._state is State.CLOSING:
            raise NotConnectedError("the bus is being disconnected and its connection is down")
        raise NotConnectedError("the bus is not connected: await connect() first")

    async def _establish(self, deadline: float) -> None:
        """Connect, trying again until `deadline` where that can help."""
        loop = asyncio.get_running_loop()
        first: ConnectError | None = None
        for delay in delays():
            try:
                await self._adopt(await self._pool.dial(deadline, self._callbacks), deadline)
                return
            except ConnectError as error:
                if error.final:
                    raise
                if loop.time() + delay >= deadline:
                    # The last try may have failed only because its time was so short.
                    raise first or error from error.__cause__
                if first is None:
                    first = error
                    _logger.warning("%s; trying again", error)
                await asyncio.sleep(delay)

    async def _adopt(self, client: Client, deadline: float) -> None:
        """Make `client` the current one, with all subscriptions.

        Raises `ConnectError` if it dies meanwhile, `AuthenticationError` if it may have no inbox.
        """
        self._client = client
        self._lost.clear()
        self._move.clear()
        self._denied.clear()
        self._unconfirmed = 0
        inbox = Route(self._inbox.pattern, "", self._inbox.deliver)
        try:
            self._routes.insert(0, inbox)
            async with asyncio.timeout_at(deadline):
                for route in tuple(self._routes):
                    await self._attach(route, client)
            limit = asyncio.get_running_loop().time() + ROUND_TRIP_TIMEOUT
            await self._round_trip(client, min(deadline, limit))
            if self._lost.is_set() or self._state in (State.CLOSING, State.CLOSED):
                raise ConnectionLostError(f"the connection to {self.server} was lost")
        except PermissionDeniedError as error:
            await self._drop(client)
            raise AuthenticationError(
                f"{self.server} lets this user connect, but not publish to its own inbox, which "
                f"is how the connection is watched: allow publish to {self.inbox_prefix}.>"
            ) from error
        except (ConnectionLostError, TimeoutError) as error:
            await self._drop(client)
            if inbox.denied:
                raise AuthenticationError(
                    f"{self.server} lets this user connect, but not subscribe to "
                    f"{self.inbox_prefix}.>, where answers arrive: allow that, or set inbox_prefix"
                ) from inbox.denied
            raise ConnectError(
                f"{self.server} took the connection and then did not answer, or closed it"
            ) from error
        except BaseException:
            await self._drop(client)
            raise
        finally:
            self._routes.remove(inbox)
        self._change(State.CONNECTED)
        for route in tuple(self._routes):
            if route.reattached is not None:
                route.reattached()
            if route.denied is not None:  # allowed before, and no more
                self._reports.report(route.denied)

    async def _attach(self, route: Route, client: Client) -> None:
        async def on_message(msg: Msg) -> None:
            route.deliver(msg)

        route.denied = None
        if route not in self._routes:
            return
        try:
            # The limits are ours (`deliver` never waits), so that a drop is always counted.
            at_server = await client.subscribe(
                route.pattern,
                route.queue,
                cb=on_message,
                pending_msgs_limit=0,
                pending_bytes_limit=0,
            )
        except nats.errors.Error:
            self._on_lost(client)
            raise ConnectionLostError(f"the connection to {self.server} was lost") from None
        if client is not self._client:
            raise ConnectionLostError(f"the connection to {self.server} was lost")
        if route in self._routes:
            route.at_server = at_server
        else:  # unsubscribed while it was being made
            with contextlib.suppress(nats.errors.Error):
                await at_server.unsubscribe()

    async def _keep_connected(self) -> None:
        """Runs as long as the bus is connected: notices a dead client and replaces it."""
        while self.is_usable:
            client = self._client
            if client is not None:
                if not await self._is_lost(client):
                    if self._move.is_set():
                        await self._leave(client)
                    continue
                self._on_lost(client)
                await self._drop(client)
            try:
                await self._reconnect()
            except EventBusError as error:
                self._failure = error
                self._change(State.CLOSED)
                self._reports.report(error)
                return

    async def _is_lost(self, client: Client) -> bool:
        """Wait for one heartbeat at the longest; whether `client` is of no more use."""
        seen = self._inbox.answered
        ends = [asyncio.ensure_future(event.wait()) for event in (self._lost, self._move)]
        try:
            await asyncio.wait(ends, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        if self._lost.is_set() or client.is_closed:
            return True
        if self._move.is_set():
            return False
        loop = asyncio.get_running_loop()
        try:
            # What only arrives proves nothing of what we send: an answer proves both.
            if self._inbox.answered == seen:
                started = loop.time()
                try:
                    await self._round_trip(client, started + ROUND_TRIP_TIMEOUT)
                except TimeoutError:
                    if self.lag.blocked_until < started:
                        raise
                    # We were blocked, not the server: its answer may be waiting in the socket.
                    await self._round_trip(client, loop.time() + ROUND_TRIP_TIMEOUT)
            if self._needs_jetstream and self._pool.others():
                await self._check_jetstream()
        except (TimeoutError, EventBusError):
            _logger.warning("%s does not answer", self.server)
            return True
        return False

    async def _check_jetstream(self) -> None:
        """Leave a server that lost the majority of its cluster: it answers, but stores nothing."""
        for _ in range(2):
            if await self.jetstream_answers(ROUND_TRIP_TIMEOUT) is not False:
                return
        _logger.warning("JetStream does not answer at %s", self.server)
        self._move.set()

    async def jetstream_answers(self, timeout: float) -> bool | None:
        """Whether JetStream answers within `timeout` seconds; None if this user may not ask."""
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            answer = await self.exchange("$JS.API.INFO", b"", deadline=deadline)
        except PermissionDeniedError:
            return None
        except (TimeoutError, NoRespondersError, NotConnectedError):
            return False
        return b'"error"' not in answer.data

    async def _leave(self, client: Client) -> None:
        """Move to another server, which is connected to before this one is left."""
        self._move.clear()
        deadline = asyncio.get_running_loop().time() + self._connect_timeout
        try:
            other = await self._pool.dial(deadline, self._callbacks, elsewhere=True)
        except ConnectError as error:
            _logger.warning("cannot leave %s: %s", self.server, error)
            return
        try:
            # One after the other, because a message would come to both. What is on its way comes
            # along; calls wait, those in flight are failed as after a loss.
            self._change(State.RECONNECTING)
            limit = asyncio.get_running_loop().time() + ROUND_TRIP_TIMEOUT
            subscribed = [route.at_server for route in self._routes if route.at_server is not None]
            await asyncio.gather(*(self._drain(one, limit) for one in subscribed))
        except BaseException:
            await discard(other)
            raise
        self._inbox.fail(lambda: ConnectionLostError(f"the bus moved to {self.server}"))
        self._client = None
        for route in self._routes:
            route.at_server = None
        try:
            await self._adopt(other, deadline)
        except ConnectError as error:
            _logger.warning("%s", error)
        finally:
            await discard(client)

    async def _reconnect(self) -> None:
        tries = self._max_reconnect_attempts
        pauses = delays()
        error = ConnectError(f"the connection to {self.server} was lost")
        for _ in itertools.count() if tries < 0 else range(tries):
            await asyncio.sleep(next(pauses))
            if not self.is_usable:
                return
            limit = asyncio.get_running_loop().time() + self._connect_timeout
            try:
                await self._adopt(await self._pool.dial(limit, self._callbacks), limit)
                return
            except ConnectError as failure:
                if failure.final:
                    raise
                error = failure
            except Exception as failure:
                # Whatever it was, staying deaf would be worse than trying again.
                self._reports.report(failure)
        raise error

    async def _drop(self, client: Client) -> None:
        if self._client is client:
            self._client = None
        for route in self._routes:
            route.at_server = None
        await discard(client, at_once=True)

    def _on_lost(self, client: Client, cause: Exception | None = None) -> None:
        if client is not self._client or self._lost.is_set():
            return
        self._lost.set()
        self._lost_some |= self._posted > self._proven
        self._proven = self._posted
        if self._state is State.CONNECTED:
            self._change(State.RECONNECTING)
        reason = cause or client.last_error

        def lost() -> ConnectionLostError:
            error = ConnectionLostError(f"the connection to {self.server} was lost")
            error.__cause__ = reason
            return error

        self._inbox.fail(lost)
        self._end_drains()

    def _end_drains(self) -> None:
        for draining in self._drains:
            draining.cancel()

    def _on_error(self, client: Client, error: Exception) -> None:
        """Take what nats-py reports; must never raise, nor wait: nats-py's reader runs it."""
        if client is not self._client:
            return
        if isinstance(error, (nats.errors.UnexpectedEOF, OSError)):
            self._on_lost(client, error)
            return
        denied = _DENIED.search(str(error))
        if denied is None:
            self._reports.report(error)
            return
        action, subject = denied.groups()
        if action == "subscription":
            for route in self._routes:
                if route.pattern.lower() == subject:
                    route.denied = _denied(action, subject)
            return
        now = time.monotonic()
        self._denied = {denied: until for denied, until in self._denied.items() if until > now}
        self._denied[subject] = now + DENIED_FOR
        if not self._inbox.fail(lambda: _denied(action, subject), asked=subject):
            if subject.startswith(self.inbox_prefix.lower()):
                subject = f"{self.inbox_prefix}.>"  # the rest of it is nobody's business
            self._reports.report(_denied(action, subject))

    def _on_lame_duck(self, client: Client) -> None:
        """The server will close soon, and has said so: leave before it does."""
        if client is self._client:
            _logger.info("%s is about to shut down", self.server)
            self._move.set()

    async def _round_trip(self, client: Client, deadline: float) -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        unconfirmed, posted = self._unconfirmed, self._posted
        exchange = self._inbox.open("", anything)
        try:
            async with asyncio.timeout_at(deadline):
                exchange.asked, exchange.sent = exchange.reply_subject, True
                await client.publish(exchange.reply_subject, b"")
                await exchange.answer
        except nats.errors.Error:
            self._on_lost(client)
            raise ConnectionLostError(f"the connection to {self.server} was lost") from None
        finally:
            self._inbox.close(exchange)
        self._unconfirmed = max(0, self._unconfirmed - unconfirmed)
        self._proven = max(self._proven, posted)
        return loop.time() - start

    async def _confirm(self, client: Client, deadline: float) -> None:
        """Wait until the server has taken what was published, so that memory stays bounded.

        One publisher asks; others that come to the bound meanwhile wait for their turn.
        """
        try:
            async with asyncio.timeout_at(deadline), self._confirming:
                if self._unconfirmed >= MAX_UNCONFIRMED and client is self._client:
                    await self._round_trip(client, deadline)
        except ConnectionLostError:
            return  # and wait for the next connection
        except TimeoutError:
            raise NotConnectedError(f"{self.server} takes no more data") from None


def _denied(action: str, subject: str) -> PermissionDeniedError:
    return PermissionDeniedError(
        f"the server's permissions do not allow {action} to {subject} for this user"
    )


def is_no_responders(msg: Msg) -> bool:
    """Whether the server says that nobody is subscribed (an empty message with status 503)."""
    return not msg.data and (msg.headers or {}).get(nats_headers.STATUS) == "503"
