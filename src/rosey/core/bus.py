"""`EventBus`: publish, subscribe, request and store events; the one class a bot author needs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from rosey.core import addresses, batches, publishing, requests
from rosey.core import headers as nats_headers
from rosey.core.batches import Batch, commit
from rosey.core.connection import Connection, State
from rosey.core.consumer_config import (
    MAX_ACK_PENDING,
    ConsumerSpec,
    Start,
    new_name,
    stream_of,
    validate_durable,
)
from rosey.core.consumers import (
    ADVISORY_ATTEMPTS,
    DELIVERIES_BEYOND,
    Consumer,
    Handling,
    Key,
    OnDeleted,
    decode_advisory,
)
from rosey.core.dead_letters import MAX_DELIVERIES, DeadLetterLog, DeadLetters, bury_advised
from rosey.core.dialing import ConnectOptions
from rosey.core.errors import (
    ConnectError,
    ConnectionLostError,
    EventBusError,
    EventDecodeError,
    InvalidOptionError,
    NoReplySubjectError,
    NotConnectedError,
    PublishError,
    StreamError,
    SubscriptionError,
)
from rosey.core.events import (
    Event,
    EventFields,
    new_event,
)
from rosey.core.handlers import Handler, current_worker
from rosey.core.jetstream import PubAck, require_server
from rosey.core.plans import Plan, plan
from rosey.core.pool import ServerPool
from rosey.core.reports import ErrorHook, ErrorReports
from rosey.core.retries import Retry
from rosey.core.signals import stop_requested
from rosey.core.streams import DEFAULT_STREAMS, StreamDrift, StreamSpec, ensure_streams
from rosey.core.subjects import validate_pattern, validate_queue, validate_subject
from rosey.core.subscriptions import Subscription

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

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
        self._consumers: set[Consumer] = set()
        self._reconciler: Consumer | None = None
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

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The consumers that receive events."""
        return tuple(
            found for found in self._consumers if not found.ended and found is not self._reconciler
        )

    @property
    def dead_letters(self) -> DeadLetters:
        """The events that nobody could handle: list, look at, send again, purge."""
        return DeadLetters(self._connection)

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
            # A list, because the sets shrink as what is in them ends.
            receivers: list[Subscription | Consumer] = [*self._subscriptions, *self._consumers]
            try:
                await asyncio.gather(*(receiver.finish(deadline, us) for receiver in receivers))
            finally:
                for receiver in receivers:
                    receiver.abort(us)
                self._reconciler = None
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
        msg_id: str | None = None,
        expect_last_sequence: int | None = None,
        expect_last_subject_sequence: int | None = None,
        ttl: float | timedelta | None = None,
        timeout: float = 5.0,
        **fields: Unpack[EventFields],
    ) -> PubAck:
        """Store an event in the stream of its subject, and return JetStream's acknowledgement.

        Tries again, under one message id, until `timeout` seconds are over, so the event is
        stored once.

        Args:
            subject: where to; or a whole `Event` (or subclass), and no data.
            data: as for `publish`.
            source: as for `publish`.
            event_type: as for `publish`.
            headers: as for `publish`.
            timeout: seconds in which the event is stored, or an error raised.
            **fields: as for `publish`.
            msg_id: the message id; of two events with the same id, within the stream's duplicate
                window, one is stored. Default: a new one.
            expect_last_sequence: store it only if the stream's last sequence is this.
            expect_last_subject_sequence: store it only if the last sequence of the event's
                subject is this; 0: if there is none.
            ttl: seconds, or a timedelta, after which this event is deleted; whole seconds, and a
                stream with `allow_ttl` (nats-server 2.11).

        Raises:
            NotConnectedError: as for `publish`.
            PublishError: as for `publish`, and `NoStreamError` if no stream stores the subject,
                `PublishTimeoutError` if no acknowledgement came: it may be stored all the same;
                `WrongSequenceError`, `StreamFullError`, `NotAllowedByStreamError`.
        """
        deadline = self._deadline(timeout)
        event = _outgoing(subject, data, source, event_type, fields)
        conditions = publishing.conditions(expect_last_sequence, expect_last_subject_sequence, ttl)
        return await publishing.publish_stored(
            self._connection,
            event.subject,
            event.to_json(),
            deadline=deadline,
            headers={**(_checked(headers) or {}), **conditions},
            msg_id=msg_id,
        )

    async def publish_many(
        self, events: Iterable[Event], *, max_in_flight: int = 256, timeout: float = 5.0
    ) -> list[PubAck]:
        """Store many events, several at a time, and return their acknowledgements in order.

        `max_in_flight` are on their way at once, so they may be stored in another order; each gets
        `timeout` seconds. All are tried, whatever happens to some.

        Raises `PublishManyError`, which has the acknowledgements of those that are stored and
        names those that failed.
        """
        self._connection.check_loop()
        if max_in_flight < 1:
            raise InvalidOptionError("max_in_flight must be at least 1")
        return await publishing.publish_many(
            self._connection, events, max_in_flight=max_in_flight, timeout=timeout
        )

    @asynccontextmanager
    async def batch(self, stream: str, *, timeout: float = 5.0) -> AsyncIterator[Batch]:
        """Collect events in a block, and have `stream` store all of them at its end, or none.

        Needs nats-server 2.12 and a stream with `allow_atomic`. A block that raises stores
        nothing. At most 1,000 events.

        Raises, at the end of the block, `PublishTimeoutError` if no acknowledgement came (they
        may be stored all the same: it is not tried again), `SeveralStreamsError`,
        `NotAllowedByStreamError`, `UnsupportedServerError`, and as `publish`.
        """
        self._connection.check_loop()
        batch = Batch()
        yield batch
        if batch.entries:
            batch.ack = await commit(
                self._connection, stream, batch.entries, deadline=self._deadline(timeout)
            )

    async def plan(self, specs: Iterable[StreamSpec] | None = None) -> Plan:
        """Compare streams with what the server has; print the plan, then `await plan.apply()`.

        Without `specs` those of this bus. Raises `StreamError`, `NotConnectedError`.
        """
        self._connection.check_loop()
        return await plan(self._connection, self._streams if specs is None else specs)

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

    async def consume(
        self,
        subject: str | Sequence[str],
        handler: Handler,
        durable: str | None = None,
        *,
        stream: str | None = None,
        start: Start = "all",
        concurrency: int = 1,
        key: Key | None = None,
        max_in_flight: int = 256,
        ack_wait: float = 30.0,
        retry: Retry | None = None,
        batch: int | None = None,
        once: bool = False,
        on_deleted: OnDeleted = "recreate",
        timeout: float = 5.0,
    ) -> Consumer:
        """Call `handler` with each event that a stream stores, at least once.

        An event is acknowledged after its handler returned, so what a crash interrupts is
        delivered again. What a handler raises is tried again (`retry`), and then kept among the
        dead letters; so is what is no event, and what kills its worker each time.

        Args:
            subject: a subject or pattern, or several that do not overlap.
            handler: as for `subscribe`; what it returns is ignored. It may raise `Reject` for an
                event that can never be handled, and `RetryLater` for one that must wait.
            durable: the name under which the server remembers what was handled. Replicas that
                give the same name share the events. Without a name the consumer is gone when it
                is stopped.
            stream: the stream; found by the subject if not given.
            start: where a new consumer begins: "all", "new", "last", "last_per_subject", a
                sequence, a datetime, or how long ago, as a timedelta or as in "1h ago".
            concurrency: how many events are handled at a time; 1 keeps their order, but for those
                that are tried again.
            key: events that share one are handled one after the other, in order, also when they
                are tried again: a callable that takes the event, or the path of a field as
                "data.user". One replica then handles all, and another takes over when it dies
                (nats-server 2.11).
            max_in_flight: events that may be here and not yet acknowledged.
            ack_wait: seconds after which the server gives an event of a dead worker to another
                one; a handler may take longer, as long as the event loop runs.
            retry: attempts and the pauses between them; default: 5, half a second, doubled.
            batch: the handler gets a list of so many events at most, and they are acknowledged
                together. One that was delivered before comes alone.
            once: what the handler publishes by `event.publish` is stored exactly once, in one
                batch with a mark of the event; the stream must be a `StreamSpec(..., once=True)`.
            on_deleted: when somebody deletes the consumer or its stream: make it again, from the
                start of what the stream has, or end it, with `Consumer.failure` and `on_error`.
            timeout: seconds for the server to confirm.

        Raises:
            NotConnectedError: as for `publish`.
            NoStreamError: no stream stores the subject.
            ConsumerMismatchError: the durable exists and differs in what cannot be changed.
            StreamError: JetStream refuses.
            InvalidOptionError, InvalidSubjectError, SubscriptionError: arguments that cannot work.
            UnsupportedServerError: the server is too old for `key` or `once`.
        """
        deadline = self._deadline(timeout)
        filters = (subject,) if isinstance(subject, str) else tuple(subject)
        if not filters:
            raise InvalidOptionError("subject: name at least one")
        for pattern in filters:
            validate_pattern(pattern)
        if not callable(handler):
            raise SubscriptionError(f"handler must be callable, not a {type(handler).__name__}")
        if ack_wait <= 0:
            raise InvalidOptionError("ack_wait must be more than 0 seconds")
        handling = Handling(
            retry or Retry(), concurrency, key, max_in_flight, batch, once, on_deleted
        )
        spec = ConsumerSpec(
            stream=stream or await stream_of(self._connection, filters[0], deadline),
            name=validate_durable(durable) if durable is not None else new_name(),
            durable=durable is not None,
            filters=filters,
            start=start,
            ack_wait=ack_wait,
            max_deliver=handling.retry.attempts + DELIVERIES_BEYOND,
            max_ack_pending=max_in_flight if key is not None else MAX_ACK_PENDING,
            pinned=key is not None,
        )
        if once:
            require_server(self._connection, batches.SERVER, "once=True")
        await self._reconcile(deadline)
        return await self._start_consumer(spec, handler, handling, deadline)

    async def _start_consumer(
        self,
        spec: ConsumerSpec,
        handler: Handler,
        handling: Handling,
        deadline: float,
        decode: Callable[[Msg], Event] | None = None,
    ) -> Consumer:
        consumer = Consumer(
            self._connection,
            self._reports,
            DeadLetterLog(self._connection),
            spec,
            handler,
            handling,
            self._consumers.discard,
            decode,
        )
        self._consumers.add(consumer)
        try:
            await consumer.start(deadline)
        except BaseException:
            self._consumers.discard(consumer)
            raise
        return consumer

    async def _reconcile(self, deadline: float) -> None:
        """Make dead letters of what the server gave up, together with other buses."""
        if self._reconciler is not None:
            return
        log = DeadLetterLog(self._connection)
        if not await log.ensure():
            return  # a bus that may do so does it

        async def bury(event: Event) -> None:
            await bury_advised(self._connection, log, event.data)

        handling = Handling(retry=Retry(attempts=ADVISORY_ATTEMPTS))
        spec = ConsumerSpec(
            stream=MAX_DELIVERIES.name,
            name="dead-letters",
            durable=True,
            filters=MAX_DELIVERIES.subjects,
            start="all",
            ack_wait=30.0,
            max_deliver=-1,
            max_ack_pending=MAX_ACK_PENDING,
            pinned=False,
        )
        try:
            self._reconciler = await self._start_consumer(
                spec, bury, handling, deadline, decode_advisory
            )
        except StreamError as error:
            _logger.warning("what the server gives up is left to other buses: %s", error)

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
