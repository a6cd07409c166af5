"""`EventBus`: publish, subscribe, request and store events; the one class a bot author needs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from rosey.core import addresses, publishing, requests
from rosey.core import headers as nats_headers
from rosey.core.connection import Connection, State
from rosey.core.dialing import ConnectOptions
from rosey.core.errors import (
    ConnectError,
    ConnectionLostError,
    EventBusError,
    EventDecodeError,
    InvalidOptionError,
    NoReplySubjectError,
    NotConnectedError,
    NotInitializedError,
    PublishError,
    SubscriptionError,
    WrongEventLoopError,
)
from rosey.core.events import (
    CommandEvent,
    Event,
    EventFields,
    EventPriority,
    PlatformEvent,
    new_event,
)
from rosey.core.handlers import Handler, current_worker
from rosey.core.jetstream import PubAck
from rosey.core.pool import ServerPool
from rosey.core.reports import ErrorHook, ErrorReports
from rosey.core.signals import stop_requested
from rosey.core.streams import DEFAULT_STREAMS, StreamDrift, StreamSpec, ensure_streams
from rosey.core.subjects import validate_pattern, validate_queue, validate_subject
from rosey.core.subscriptions import Subscription

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

__all__ = [
    "CommandEvent",
    "Event",
    "EventBus",
    "EventBusError",
    "EventPriority",
    "NotConnectedError",
    "PlatformEvent",
    "PublishError",
    "SubscriptionError",
    "event_bus_context",
    "get_event_bus",
    "initialize_event_bus",
    "shutdown_event_bus",
]

DEFAULT_SERVER = "nats://localhost:4222"

_logger = logging.getLogger("rosey.bus")


class BusOptions(TypedDict, total=False):
    """What `EventBus` takes beside servers and token."""

    name: str
    max_reconnect_attempts: int
    connect_timeout: float
    user: str | None
    password: str | None
    credentials: str | None
    tls: ssl.SSLContext | None
    inbox_prefix: str
    streams: Iterable[StreamSpec]
    on_error: ErrorHook | None


@dataclass(frozen=True, slots=True)
class Health:
    """What `EventBus.health` found."""

    ok: bool
    """Whether a message went to the server and came back."""
    state: str
    """What the connection is doing: connected, reconnecting, closed, ..."""
    server: str
    """The server's URL without credentials, empty if there never was one."""
    round_trip: float | None
    """Seconds the message took, None if it did not come back."""
    error: str = ""
    """Why it did not."""
    jetstream: bool | None = None
    """Whether JetStream answered; None for a bus without streams, which does not ask."""
    pending_bytes: int = 0
    """What was published and is still to be written to the socket."""
    loop_lag: float = 0.0
    """Seconds by which the event loop was late, at the worst, in the last ten seconds."""


class EventBus:
    """A connection to NATS over which events are published, handled, requested and stored.

    Args:
        servers: URLs of one cluster's servers, tried in random order; credentials may be in them.
        token: authentication token.
        name: how the server's monitoring shows this client.
        max_reconnect_attempts: how often all servers are tried again after a connection is lost
            before the bus gives up; -1: for ever, 0: never.
        connect_timeout: seconds in which `connect` succeeds or raises.
        user, password: credentials of a user.
        credentials: path of a `.creds` file (needs nats-py's `nkeys` extra).
        tls: context for encrypted connections; a server that offers no TLS is then refused.
        inbox_prefix: where answers to this client arrive, as permissions require it; starts with
            `_INBOX`, because answers are sent nowhere else.
        streams: streams that `connect` creates where they are missing; `()` for a client that
            may not administer JetStream.
        on_error: called with every failure that has no caller to raise to, and its event if
            there is one; must return quickly.

    A bus belongs to the event loop it connected on.
    """

    def __init__(
        self,
        servers: Sequence[str] | str | None = None,
        token: str | None = None,
        name: str = "rosey-core",
        max_reconnect_attempts: int = -1,
        *,
        connect_timeout: float = 5.0,
        user: str | None = None,
        password: str | None = None,
        credentials: str | None = None,
        tls: ssl.SSLContext | None = None,
        inbox_prefix: str = "_INBOX",
        streams: Iterable[StreamSpec] = DEFAULT_STREAMS,
        on_error: ErrorHook | None = None,
    ) -> None:
        urls = [servers] if isinstance(servers, str) else list(servers or [DEFAULT_SERVER])
        try:
            pool = tuple(addresses.parse(url) for url in urls)
        except (ValueError, AttributeError) as error:
            raise InvalidOptionError(f"servers: {error}") from None
        if not inbox_prefix.startswith(requests.INBOX):
            raise InvalidOptionError(f"inbox_prefix must start with {requests.INBOX}")
        if connect_timeout <= 0:
            raise InvalidOptionError("connect_timeout must be more than 0 seconds")
        self.servers = [address.url for address in pool]
        self.token = token
        self.name = name
        self.max_reconnect_attempts = max_reconnect_attempts
        self.stream_drift: tuple[StreamDrift, ...] = ()
        """Streams that `connect` found different from their specification, and left alone."""
        self._streams = tuple(streams)
        self._connect_timeout = connect_timeout
        self._reports = ErrorReports(on_error)
        self._subscriptions: set[Subscription] = set()
        self._lifecycle: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        options = ConnectOptions(
            name=name,
            inbox_prefix=validate_subject(inbox_prefix),
            token=token,
            user=user,
            password=password,
            credentials=credentials,
            tls=tls,
        )
        self._connection = Connection(
            ServerPool(pool, options),
            self._reports,
            max_reconnect_attempts=max_reconnect_attempts,
            connect_timeout=connect_timeout,
            inbox_prefix=inbox_prefix,
            needs_jetstream=bool(self._streams),
        )

    def __repr__(self) -> str:
        return f"EventBus({self.name}, {self.state.value}, servers={self.servers})"

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    # State

    @property
    def connected(self) -> bool:
        """Whether there is a live connection now."""
        return self._connection.state is State.CONNECTED

    @property
    def state(self) -> State:
        """What the connection is doing."""
        return self._connection.state

    def states(self) -> AsyncIterator[State]:
        """Iterate over every change of `state` from now on, in order, until the bus is closed.

        Whoever iterates may be as slow as it likes: the connection does not wait for it.
        """
        return self._connection.states()

    @property
    def nc(self) -> Client | None:
        """The nats-py client in use, for what the bus does not offer; None while there is none.

        Ask each time: after a reconnection it is another one. Never cancel its `flush` or `rtt`,
        nor let them time out: nats-py then stops receiving without saying so.
        """
        return self._connection.client

    @property
    def js(self) -> JetStreamContext | None:
        """nats-py's JetStream context over `nc`; None while there is no connection."""
        client = self._connection.client
        return client.jetstream() if client is not None else None

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions that receive events."""
        return tuple(found for found in self._subscriptions if not found.ended)

    async def health(self, timeout: float = 2.0) -> Health:
        """Send a message to ourselves through the server, and say how that went.

        Waits at most `timeout` seconds for each of server and JetStream, and raises nothing but
        `WrongEventLoopError`.
        """
        deadline = self._deadline(timeout)
        took: float | None = None
        problem = ""
        try:
            took = await self._connection.round_trip(deadline)
        except TimeoutError:
            problem = f"no answer from the server within {timeout:g} s"
        except EventBusError as error:
            problem = str(error)
        jetstream = None
        if took is not None and self._streams:
            jetstream = await self._connection.jetstream_answers(timeout)
        client = self._connection.client
        return Health(
            ok=took is not None,
            state=self._connection.state.value,
            server=self._connection.server,
            round_trip=took,
            error=problem,
            jetstream=jetstream,
            pending_bytes=client.pending_data_size if client is not None else 0,
            loop_lag=self._connection.lag.worst,
        )

    # Connection

    async def connect(self) -> None:
        """Connect, and create the streams that are missing.

        Raises `ConnectError` (`AuthenticationError`, `TLSError`) within `connect_timeout`, with
        nothing left running, and `StreamError` if the server refuses a stream. Subscriptions
        survive from before, if the bus had given up. A connected bus stays as it is.
        """
        self._connection.check_loop()
        async with self._lock():
            if self._connection.is_usable:
                await self._connection.settled(self._deadline(self._connect_timeout))
                _logger.warning("already connected to %s", self._connection.server)
                return
            await self._connection.connect()
            try:
                self.stream_drift = await ensure_streams(self._connection, self._streams)
            except BaseException as error:
                await self._connection.close(self._deadline(0.0))
                if isinstance(error, ConnectionLostError):
                    raise ConnectError(f"while looking at streams: {error}") from error
                raise
        for drift in self.stream_drift:
            _logger.warning("%s", drift)

    async def disconnect(self, timeout: float = 10.0) -> None:
        """Take no more events, let handlers finish, send what is pending, and close.

        All of it within `timeout` seconds; handlers that still run then are cancelled and
        reported. Does nothing on a bus that is not connected; ends every subscription, and a
        `connect` under way. In a handler it does not wait for that one, and returns at once if
        another call is closing already.
        """
        deadline = self._deadline(timeout)
        us = current_worker.get()  # the handler that asks, if one does
        if us is not None and self._lock().locked() and self.state is State.CLOSING:
            return  # whoever closes waits for this handler
        self._connection.stop_reconnecting()
        async with self._lock():
            try:
                await asyncio.gather(*(sub.finish(deadline, us) for sub in self._subscriptions))
            finally:
                for subscription in tuple(self._subscriptions):
                    subscription.abort(us)
                await self._connection.close(deadline)

    async def run_until_signal(self, grace: float = 10.0) -> None:
        """Return after SIGINT or SIGTERM, once the bus is disconnected.

        Handlers get `grace` seconds to finish; a second signal ends the program at once. Call it
        on the main thread.
        """
        self._connection.check_loop()
        with stop_requested() as stopping:
            await stopping.wait()
            await self.disconnect(grace)

    async def flush(self, timeout: float = 5.0) -> None:
        """Return when the server has received all that was published before.

        Raises `NotConnectedError` if that takes more than `timeout` seconds, and, once,
        `ConnectionLostError` if some of it may have been lost with a connection.
        """
        try:
            await self._connection.flush(self._deadline(timeout))
        except TimeoutError:
            raise NotConnectedError(f"the server did not answer within {timeout:g} s") from None

    # Events

    async def publish(
        self,
        subject: str | Event,
        data: dict[str, Any] | None = None,
        source: str = "core",
        event_type: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        **fields: Unpack[EventFields],
    ) -> None:
        """Publish to whoever is subscribed now, at most once: nobody confirms that it arrived.

        On a subject that a stream stores the event is stored all the same.

        Args:
            subject: where to; or a whole `Event` (or subclass), and no data.
            data: what happened; anything `rosey.core.codec` can write.
            source: who says so.
            event_type: defaults to the subject's last token.
            headers: NATS message headers.
            timeout: seconds to wait for the connection during an outage.
            **fields: `timestamp`, `correlation_id`, `priority`, `metadata` of the event.

        Raises:
            NotConnectedError: before `connect`, after `disconnect`, or after `timeout`.
            PublishError: `InvalidSubjectError`, `EventEncodeError`, `PayloadTooLargeError`,
                `InvalidHeaderError`.
        """
        deadline = self._deadline(timeout)
        event = _outgoing(subject, data, source, event_type, fields)
        await self._connection.send(
            event.subject, event.to_json(), deadline=deadline, headers=_checked(headers)
        )

    async def publish_js(
        self,
        subject: str | Event,
        data: dict[str, Any] | None = None,
        source: str = "core",
        event_type: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        **fields: Unpack[EventFields],
    ) -> PubAck:
        """Store an event in the stream of its subject, and return JetStream's acknowledgement.

        Tries again, under one message id, until `timeout` seconds are over, so the event is
        stored once. Arguments as for `publish`.

        Raises:
            NotConnectedError: as for `publish`.
            PublishError: as for `publish`, and `NoStreamError` if no stream stores the subject,
                `PublishTimeoutError` if no acknowledgement came: it may be stored all the same.
        """
        deadline = self._deadline(timeout)
        event = _outgoing(subject, data, source, event_type, fields)
        return await publishing.publish_stored(
            self._connection,
            event.subject,
            event.to_json(),
            deadline=deadline,
            headers=_checked(headers),
        )

    async def subscribe(
        self,
        subject: str,
        handler: Handler,
        queue: str | None = None,
        *,
        concurrency: int = 1,
        timeout: float = 5.0,
    ) -> Subscription:
        """Call `handler` with each event published on `subject` from now on.

        When it returns, the server knows the subscription. It outlives reconnections; what the
        handler raises is logged, counted and handed to `on_error`, and never ends it.

        Args:
            subject: a subject or pattern: `*` is one token, `>` at the end one or more.
            handler: takes an `Event`; async or not (a sync one blocks the event loop while it
                runs). If its parameter is annotated with a subclass of `Event`, it gets that.
                A dict or `Event` it returns answers a request; None is no answer.
            queue: queue group; each event goes to one of the group's subscriptions.
            concurrency: how many events are handled at a time; 1 keeps their order.
            timeout: seconds for the server to confirm.

        Raises:
            NotConnectedError: as for `publish`.
            SubscriptionError: `InvalidSubjectError`, `PermissionDeniedError`, or no confirmation.
        """
        deadline = self._deadline(timeout)
        validate_pattern(subject)
        if not callable(handler):
            raise SubscriptionError(f"handler must be callable, not a {type(handler).__name__}")
        if concurrency < 1:
            raise SubscriptionError("concurrency must be at least 1")
        subscription = Subscription(
            self._connection,
            self._reports,
            subject,
            handler,
            validate_queue(queue) if queue is not None else "",
            concurrency,
            self._subscriptions.discard,
        )
        self._subscriptions.add(subscription)
        await subscription.start(deadline)
        return subscription

    async def request(
        self,
        subject: str | Event,
        data: dict[str, Any] | None = None,
        timeout: float = 5.0,
        *,
        source: str = "core",
        event_type: str = "request",
        headers: Mapping[str, str] | None = None,
        **fields: Unpack[EventFields],
    ) -> Event:
        """Ask, and return the first handler's answer; it carries the request's correlation_id.

        On a subject that a stream stores the request is stored too, and that nobody serves it
        only shows after `timeout`; elsewhere it shows at once.

        Raises:
            NotConnectedError: as for `publish`; `ConnectionLostError` if the connection went
                down while waiting: the handler may or may not have run.
            TimeoutError: `RequestTimeoutError`, nobody answered within `timeout` seconds.
            NoRespondersError: nobody is subscribed.
            RemoteError: the handler failed, or answered with an error.
            EventDecodeError: the answer is not an event.
            PublishError: as for `publish`.
        """
        self._connection.check_loop()
        event = _outgoing(subject, data, source, event_type, fields)
        return await requests.request(
            self._connection, event, timeout=timeout, headers=_checked(headers)
        )

    async def reply(self, msg: Event | Msg, data: dict[str, Any], source: str = "core") -> None:
        """Answer a request from inside or outside its handler.

        Args:
            msg: the event the handler got, or a nats-py message.
            data: the answer.
            source: who answers.

        Raises `NoReplySubjectError` if nobody waits, else as `publish`.
        """
        self._connection.check_loop()
        if isinstance(msg, Event):
            if msg.delivery is None:
                raise NoReplySubjectError("this event was made here: nobody waits for a reply")
            delivery = msg.delivery
            correlation_id: str | None = msg.correlation_id
        else:
            delivery = requests.delivery_of(msg, msg.subject)
            correlation_id = _correlation_id(msg.data)
        answer = requests.answer_to(delivery.subject, data, correlation_id, source)
        await requests.respond(self._connection, delivery, answer)

    def _deadline(self, timeout: float) -> float:
        """`timeout` seconds from now as loop time; every call on the bus passes here or nearby."""
        self._connection.check_loop()
        return asyncio.get_running_loop().time() + timeout

    def _lock(self) -> asyncio.Lock:
        """What keeps connecting and disconnecting apart; a loop's own, for locks bind to loops."""
        loop = asyncio.get_running_loop()
        if self._lifecycle is None or self._lifecycle[0] is not loop:
            self._lifecycle = loop, asyncio.Lock()
        return self._lifecycle[1]


def _outgoing(
    subject: str | Event,
    data: dict[str, Any] | None,
    source: str,
    event_type: str | None,
    fields: EventFields,
) -> Event:
    if isinstance(subject, Event):
        if data is not None or fields:
            raise PublishError("a whole Event is published as it is: change the event instead")
        validate_subject(subject.subject)
        return subject
    validate_subject(subject)
    event_type = event_type or subject.rpartition(".")[2]
    return new_event(subject, event_type, source, {} if data is None else data, fields)


def _checked(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    return nats_headers.validate(headers) if headers else None


def _correlation_id(payload: bytes) -> str | None:
    try:
        return Event.from_json(payload).correlation_id
    except EventDecodeError:
        return None


# The global bus: one for a program that does not want to pass its bus around.


@dataclass(slots=True)
class _Global:
    """The global bus and who needs it: it goes when nobody does."""

    bus: EventBus
    loop: asyncio.AbstractEventLoop
    connecting: asyncio.Task[None]
    users: int = 0
    """Contexts that are open, and callers that wait for the connection."""
    initialized: bool = False
    """`initialize_event_bus` made or took it, so that the last user must not end it."""


_global: _Global | None = None


async def initialize_event_bus(
    servers: Sequence[str] | str | None = None,
    token: str | None = None,
    **options: Unpack[BusOptions],
) -> EventBus:
    """Connect the global bus, or return the one there is, with a warning.

    Several tasks may call it at once: all get the same bus. Takes the options of `EventBus` and
    raises what `EventBus.connect` raises; then there is no global bus.
    """
    if _current() is not None:
        _logger.warning("the event bus is already initialized; its first options stay")
    async with _using(servers, token, options) as found:
        found.initialized = True
    return found.bus


async def get_event_bus() -> EventBus:
    """Return the global bus. Raises `NotInitializedError` (a `RuntimeError`) if there is none."""
    found = _current()
    if found is None or not found.connecting.done():
        raise NotInitializedError(
            "the event bus is not initialized: await initialize_event_bus() first"
        )
    return found.bus


async def shutdown_event_bus() -> None:
    """Disconnect the global bus, also from under contexts that use it; without one do nothing."""
    global _global
    found = _current()
    if found is None:
        return
    _global = None
    found.connecting.cancel()
    await found.bus.disconnect()


@asynccontextmanager
async def event_bus_context(
    servers: Sequence[str] | str | None = None,
    token: str | None = None,
    **options: Unpack[BusOptions],
) -> AsyncIterator[EventBus]:
    """The global bus for the length of a block, connected if there was none.

    The last context to end disconnects it, unless `initialize_event_bus` asked for it too.
    """
    async with _using(servers, token, options) as found:
        yield found.bus


def _current() -> _Global | None:
    """The global bus, unless the loop it lived on is gone."""
    global _global
    if _global is not None and _global.loop.is_closed():
        _global = None
    if _global is not None and _global.loop is not asyncio.get_running_loop():
        raise WrongEventLoopError(
            "the global event bus is connected on another event loop; "
            "make an EventBus of your own for this one"
        )
    return _global


@asynccontextmanager
async def _using(
    servers: Sequence[str] | str | None, token: str | None, options: BusOptions
) -> AsyncIterator[_Global]:
    """Keep the global bus alive for a block; the first user connects it for all."""
    global _global
    found = _current()
    if found is None:
        bus = EventBus(servers, token, **options)
        # A task, so that a caller who is cancelled does not end it for the others.
        connecting = asyncio.create_task(bus.connect())
        found = _global = _Global(bus, asyncio.get_running_loop(), connecting)
    found.users += 1
    try:
        await asyncio.wait([found.connecting])
        if found.connecting.cancelled():
            raise NotConnectedError("the event bus was shut down while it was being initialized")
        found.connecting.result()
        yield found
    finally:
        found.users -= 1
        if found.users == 0 and not found.initialized and found is _global:
            await shutdown_event_bus()
