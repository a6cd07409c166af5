"""Durable consumption: every stored event handled, acknowledged afterwards, or a dead letter."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from rosey.core import acks, once
from rosey.core import headers as nats_headers
from rosey.core.connection import Connection
from rosey.core.consumer_config import PIN_GROUP, ConsumerSpec, ensure_consumer
from rosey.core.dead_letters import DeadLetterLog
from rosey.core.errors import (
    ConsumerGoneError,
    EventBusError,
    EventDecodeError,
    InvalidOptionError,
    NotConnectedError,
    PermissionDeniedError,
    StreamError,
    SubscriptionError,
)
from rosey.core.events import Delivery, Event, mark_delivered
from rosey.core.handlers import Handler, current_worker, event_type_of, take_back_cancellation
from rosey.core.jetstream import API_TIMEOUT, CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, api
from rosey.core.pulling import PullLoop
from rosey.core.reports import ErrorReports
from rosey.core.retries import Reject, Retry, RetryLater
from rosey.core.subjects import matches

if TYPE_CHECKING:
    from nats.aio.msg import Msg

Key = Callable[[Any], Hashable] | str
"""Takes an event and returns what events share whose order matters; or the path of a field, as
`data.user` or `source`."""
OnDeleted = Literal["recreate", "fail"]

ACK_TIMEOUT = 5.0
"""Seconds that an acknowledgement waits for the connection to come back."""
DEAD_LETTER_PAUSE = 5.0
"""Seconds between tries to store a dead letter."""
DELIVERIES_BEYOND = 20
"""Deliveries that JetStream may make beyond `Retry.attempts`: a worker's death costs one to every
event it held, although it had begun only some."""
LOOK_AGAIN = 0.25
"""Seconds between looks at a consumer that is being taken over or was deleted."""
ADVISORY_ATTEMPTS = 1_000_000
"""What the server gave up is tried until it is stored."""
_YIELD_EVERY = 64  # events after which other tasks get their turn, whatever the handler does
_REMEMBERED = 4096  # events handled lately, whose acknowledgement may have been lost


@dataclass(frozen=True, slots=True)
class Handling:
    """How a consumer's events are handled; `EventBus.consume` documents each."""

    retry: Retry = field(default_factory=Retry)
    concurrency: int = 1
    key: Key | None = None
    max_in_flight: int = 256
    batch: int | None = None
    once: bool = False
    on_deleted: OnDeleted = "recreate"

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_in_flight", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidOptionError(f"{name} must be at least 1")
        if self.batch is not None and (self.key is not None or self.once):
            raise InvalidOptionError("batch= goes neither with key= nor with once=True")
        if self.on_deleted not in ("recreate", "fail"):
            raise InvalidOptionError('on_deleted is "recreate" or "fail"')


@dataclass(slots=True)
class ConsumerStats:
    """What happened to the events of one consumer here, in this process."""

    received: int = 0
    """Deliveries, those again included."""
    handled: int = 0
    """Events whose handler returned, and that were acknowledged."""
    failed: int = 0
    """Times that a handler raised."""
    redelivered: int = 0
    """Deliveries that were not an event's first."""
    dead: int = 0
    """Events that became dead letters."""
    deferred: int = 0
    """Times that a handler raised `RetryLater`."""
    mismatched: int = 0
    """Messages that are not of this consumer: a peer's forgery."""


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """What the server says of a consumer."""

    pending: int
    """Events stored and not yet delivered: how far it lags behind."""
    in_flight: int
    """Events delivered and not yet acknowledged."""
    redelivered: int
    """Events in flight that were delivered more than once."""
    last_sequence: int
    """The stream's sequence that was delivered last."""
    acknowledged_to: int
    """The stream's sequence up to which everything is acknowledged."""
    paused: bool
    """Whether the server delivers nothing until `resume`, or the moment that `pause` set."""


class _Held:
    """An event that is here and not yet acknowledged."""

    __slots__ = ("event", "key", "msg", "origin", "running", "signalled", "timer", "tries")

    def __init__(self, msg: Msg, origin: acks.Origin, now: float) -> None:
        self.msg = msg
        self.origin = origin
        self.signalled = now  # when the server last heard that we have it
        self.event: Event | None = None
        self.key: Hashable = None
        self.running = False
        self.timer: asyncio.TimerHandle | None = None
        self.tries = origin.attempt - 1  # attempts before the next one


class Consumer:
    """A live consumer, as `EventBus.consume` returns it; an async context manager too."""

    def __init__(
        self,
        connection: Connection,
        reports: ErrorReports,
        dead_letters: DeadLetterLog,
        spec: ConsumerSpec,
        handler: Handler,
        handling: Handling,
        forget: Callable[[Consumer], None],
        decode: Callable[[Msg], Event] | None = None,
    ) -> None:
        self._connection = connection
        self._reports = reports
        self._dead_letters = dead_letters
        self._spec = spec
        self._handler = handler
        self._handling = handling
        self._forget = forget
        self._event_type = event_type_of(handler)
        self._decode = decode or (lambda msg: self._event_type.from_json(msg.data))
        self._key_of = _key_function(handling.key)
        self._held: dict[tuple[int, int], _Held] = {}
        self._lanes: dict[Hashable, deque[_Held]] = {}
        self._ready: deque[_Held] = deque()
        self._done: dict[tuple[int, int], str] = {}  # and how each was acknowledged
        self._streams: dict[str, str] = {}
        self._arrived = asyncio.Event()
        self._ending = False
        self._aborted = False
        self._gated = False
        self._repairing: asyncio.Task[None] | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.stats = ConsumerStats()
        self.failure: EventBusError | None = None
        """Why it ended by itself; None while it goes on, or was stopped."""
        self._pulls = PullLoop(
            connection,
            reports,
            take=self._take,
            wanted=self._room,
            gone=self._on_gone,
            reconnected=self._acknowledge_again,
            unpinned=self._make_way,
            group=PIN_GROUP if spec.pinned else "",
        )

    @property
    def stream(self) -> str:
        """The stream it reads."""
        return self._spec.stream

    @property
    def name(self) -> str:
        """Its name at the server: the durable one, if it has one."""
        return self._spec.name

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects and patterns it reads."""
        return self._spec.filters

    @property
    def ended(self) -> bool:
        """Whether it was stopped, or ended with `failure`."""
        return self._ending

    def __repr__(self) -> str:
        return f"Consumer({self.name} of {self.stream}, {self.stats})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, deadline: float) -> None:
        """Make or bind the consumer and begin; `EventBus.consume` says what it raises."""
        await ensure_consumer(self._connection, self._spec)
        self._workers = {
            asyncio.create_task(self._work(), name=f"rosey-consumer {self.name}")
            for _ in range(self._handling.concurrency)
        }
        self._ticker = asyncio.create_task(self._keep_in_progress())
        try:
            await self._pulls.start(self._spec.stream, self._spec.name, deadline)
        except BaseException:
            self.abort(None)
            raise

    async def stop(self, drain: bool = True, timeout: float = 10.0) -> None:
        """Take no more events; handle and acknowledge those that are here, and end.

        With `drain=False`, or for what is left after `timeout` seconds: handlers are cancelled,
        and the events go back, to be delivered again at once. A durable stays at the server and
        goes on where it was; one without a name is deleted. Repeating it is harmless.
        """
        deadline = self._connection.time() + timeout
        await self.finish(deadline if drain else 0.0, current_worker.get())

    async def pause(self, until: datetime) -> None:
        """Have the server deliver nothing until then, to no replica (needs nats-server 2.11).

        Raises `StreamError`, `NotConnectedError`.
        """
        if until.tzinfo is None:
            raise InvalidOptionError("until needs a time zone, as in datetime.now(UTC)")
        await self._call("CONSUMER.PAUSE", {"pause_until": until.isoformat()})

    async def resume(self) -> None:
        """End a pause. Raises as `pause`."""
        await self._call("CONSUMER.PAUSE", {})

    async def info(self) -> ConsumerInfo:
        """What the server says of it. Raises `StreamError`, `NotConnectedError`."""
        found = await self._call("CONSUMER.INFO", None)
        return ConsumerInfo(
            pending=found["num_pending"],
            in_flight=found["num_ack_pending"],
            redelivered=found["num_redelivered"],
            last_sequence=found["delivered"]["stream_seq"],
            acknowledged_to=found["ack_floor"]["stream_seq"],
            paused=found.get("paused", False),
        )

    async def finish(self, deadline: float, besides: asyncio.Task[Any] | None) -> None:
        """Stop, draining until `deadline` (loop time), not waiting for what task `besides` runs."""
        if self._ending and not self._workers:
            return
        await self._pulls.stop()
        self._end()
        workers = self._workers - {besides}
        left = deadline - self._connection.time()
        if workers and left > 0:
            await asyncio.wait(workers, timeout=left)
        late = self.abort(besides, at_once=False)
        if late:
            await asyncio.wait(late, timeout=1.0)
        if besides not in self._workers:
            await self._give_back()
        if not self._spec.durable:
            await self._delete()

    def abort(
        self, besides: asyncio.Task[Any] | None, *, at_once: bool = True
    ) -> set[asyncio.Task[None]]:
        """End now: cancel what runs but for task `besides`; return what ran."""
        self._end()
        running = {task for task in self._workers if task is not besides and not task.done()}
        if running:
            self._aborted = True
            self._reports.report(
                SubscriptionError(
                    f"consumer {self.name}: {len(running)} handler(s) were cancelled, because the "
                    "time to finish was over; their events are delivered again"
                )
            )
        if at_once:
            self._pulls.abandon()
        for task in (*running, self._ticker, self._repairing, self._taking_over):
            if task is not None and task is not besides:
                task.cancel()
        if not self._workers:
            self._forget(self)
        return running

    def _end(self) -> None:
        self._ending = True
        self._arrived.set()
        for held in self._held.values():
            if held.timer is not None:
                held.timer.cancel()

    async def _delete(self) -> None:
        try:
            await self._call("CONSUMER.DELETE", None)
        except (EventBusError, TimeoutError):
            return  # it is removed by itself after a while

    async def _give_back(self) -> None:
        """Hand what was not handled to other replicas, or to ourselves another time."""
        for held in tuple(self._held.values()):
            if not held.running:
                await self._answer(held, acks.NAK)
        self._held.clear()
        self._lanes.clear()
        self._ready.clear()

    async def _call(self, path: str, body: Any) -> dict[str, Any]:
        deadline = self._connection.time() + API_TIMEOUT
        return await api(
            self._connection, f"{path}.{self._spec.stream}.{self._spec.name}", body, deadline
        )

    # What comes

    def _room(self) -> int:
        return 0 if self._ending else self._handling.max_in_flight - len(self._held)

    def _take(self, msg: Msg) -> None:
        """Take a message from the pull loop; never waits, never raises."""
        origin = acks.parse(msg.reply)
        spec = self._spec
        if (
            origin is None
            or origin.stream != spec.stream
            or origin.consumer != spec.name
            or not any(matches(pattern, msg.subject) for pattern in spec.filters)
        ):
            self.stats.mismatched += 1
            if self._reports.is_due(f"mismatched {spec.name}"):
                self._reports.report(
                    SubscriptionError(f"{spec.name} dropped a message on {msg.subject!r}")
                )
            return
        self.stats.received += 1
        if origin.attempt > 1:
            self.stats.redelivered += 1
        identity = origin.sequence, origin.stored_at
        held = self._held.get(identity)
        if held is not None:
            # We have it, and the server did not hear so: the next answer goes by the new subject.
            held.msg, held.origin = msg, origin
            held.signalled = self._connection.time()
            return
        held = _Held(msg, origin, self._connection.time())
        if identity in self._done:
            self._held[identity] = held
            self._background(self._acknowledge(held))
            return
        self._held[identity] = held
        if spec.pinned:
            self._note_pin(msg)
        if self._key_of is None:
            self._ready.append(held)
        elif not self._enter_lane(held):
            return
        if not self._arrived.is_set():
            self._arrived.set()

    def _enter_lane(self, held: _Held) -> bool:
        """Put an event behind those of its key; whether it may be handled now."""
        assert self._key_of is not None
        try:
            held.event = self._decode(held.msg)
            mark_delivered(held.event, self._delivery(held))
            held.key = self._key_of(held.event)
            hash(held.key)
        except Exception as error:
            held.key = held  # a lane of its own: the handler's place is where it fails
            if not isinstance(error, EventDecodeError):
                self._reports.report(error, held.event, where=f"the key of {self.name} failed")
        lane = self._lanes.setdefault(held.key, deque())
        lane.append(held)
        if self._gated or len(lane) > 1:
            return False
        self._ready.append(held)
        return True

    def _note_pin(self, msg: Msg) -> None:
        pin = (msg.headers or {}).get(nats_headers.PIN_ID)
        if pin is None or pin == self._pulls.pin:
            return
        self._pulls.pin = pin
        if self._connection.time() < self._pulls.kept_until:
            return  # nobody else had it meanwhile
        if self._taking_over is None or self._taking_over.done():
            self._gated = True
            self._taking_over = asyncio.create_task(self._take_over())

    def _make_way(self) -> None:
        """Another replica is given the events now: begin no more of those that wait here."""
        for held in [held for held in self._held.values() if not held.running]:
            if held.timer is not None:
                held.timer.cancel()
            self._held.pop((held.origin.sequence, held.origin.stored_at))
        self._ready.clear()
        running = set(self._held.values())
        for key, lane in tuple(self._lanes.items()):
            left = deque(held for held in lane if held in running)
            if left:
                self._lanes[key] = left
            else:
                del self._lanes[key]

    async def _take_over(self) -> None:
        """Begin only when all that a predecessor left unfinished is here, and in order."""
        at_the_latest = self._connection.time() + self._spec.ack_wait
        agreed = 0
        while agreed < 2:
            await asyncio.sleep(LOOK_AGAIN)
            try:
                found = await self._call("CONSUMER.INFO", None)
            except (EventBusError, TimeoutError):
                continue  # no leader, or no connection: events do not come either
            pending, floor = found["num_ack_pending"], found["ack_floor"]["stream_seq"]
            first = min((held.origin.sequence for held in self._held.values()), default=floor + 1)
            # The predecessor may live, and acknowledge what it had begun: then the counts differ,
            # and only after `ack_wait` is all that it does not go on with surely here.
            if pending == len(self._held) and first > floor:
                agreed += 1
            elif pending <= len(self._held) and self._connection.time() > at_the_latest:
                break
            else:
                agreed = 0
        self._gated = False
        for key, lane in self._lanes.items():
            if lane and not any(held.running or held.timer for held in lane):
                ordered = sorted(lane, key=lambda held: held.origin.sequence)
                self._lanes[key] = deque(ordered)
                if ordered[0] not in self._ready:
                    self._ready.append(ordered[0])
        self._arrived.set()

    def _on_gone(self, reason: str) -> None:
        if self._ending or (self._repairing is not None and not self._repairing.done()):
            return
        self._repairing = asyncio.create_task(self._repair(reason))

    async def _repair(self, reason: str) -> None:
        """The server answers no requests: the consumer was deleted, or has no leader just now."""
        while True:
            try:
                await self._call("CONSUMER.INFO", None)
            except StreamError as error:
                if error.code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
                    break
            except (EventBusError, TimeoutError):
                pass
            else:
                return
            await asyncio.sleep(LOOK_AGAIN)
        gone = ConsumerGoneError(
            f"the consumer {self.name} of stream {self.stream} was deleted"
            f"{f' ({reason})' if reason else ''}"
        )
        if self._handling.on_deleted == "fail":
            await self._fail_for_good(gone)
            return
        self._reports.report(gone, where="it is made again")
        self._done.clear()
        # What came after the deletion must not be missed; what comes twice is the lesser evil.
        if self._spec.start in ("new", "last", "last_per_subject") and self._spec.durable:
            self._spec = replace(self._spec, start="all")
        while True:
            try:
                await ensure_consumer(self._connection, self._spec)
            except (EventBusError, TimeoutError) as error:
                if self._reports.is_due(f"recreate {self.name}"):
                    self._reports.report(
                        error if isinstance(error, EventBusError) else gone,
                        where=f"consumer {self.name} cannot be made again yet",
                    )
                await asyncio.sleep(1.0)
            else:
                self._pulls.restart()
                return

    async def _fail_for_good(self, failure: EventBusError) -> None:
        self.failure = failure
        self._reports.report(failure)
        self._end()
        self._held.clear()
        self._ready.clear()
        await self._pulls.stop()

    # What is done with it

    async def _work(self) -> None:
        """Handle events until the consumer ends and nothing is left."""
        current_worker.set(asyncio.current_task())
        try:
            for turn in itertools.count(1):
                while not self._ready:
                    if self._ending:
                        return
                    self._arrived.clear()
                    await self._arrived.wait()
                await self._handle(self._next())
                self._pulls.wake()
                if turn % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        finally:
            self._workers.discard(asyncio.current_task())
            if not self._workers:
                if self._ticker is not None:
                    self._ticker.cancel()
                self._forget(self)

    def _next(self) -> list[_Held]:
        first = self._ready.popleft()
        first.running = True
        taken = [first]
        # What failed before is handled alone, so that it cannot fail others again.
        if self._handling.batch is not None and first.origin.attempt == 1:
            while (
                self._ready
                and len(taken) < self._handling.batch
                and self._ready[0].origin.attempt == 1
            ):
                following = self._ready.popleft()
                following.running = True
                taken.append(following)
        return taken

    async def _handle(self, taken: list[_Held]) -> None:
        events: list[Event] = []
        fit: list[_Held] = []
        for held in taken:
            if held.origin.attempt > 1 and not await self._begin(held):
                continue
            try:
                event = held.event or self._decode(held.msg)
            except EventDecodeError as error:
                await self._bury(held, error)
                continue
            delivery = self._delivery(held)
            mark_delivered(event, delivery)
            held.event = None  # a second try gets an event that nobody changed
            events.append(event)
            fit.append(held)
        if not fit:
            return
        try:
            result = self._handler(events if self._handling.batch is not None else events[0])
            if inspect.isawaitable(result):
                await result
            if self._handling.once:
                await once.commit(self._connection, events[0], self.name, self._streams)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                if self._aborted or self._connection.is_ending:
                    for held in fit:
                        held.running = False
                    raise
                take_back_cancellation()
            for held, event in zip(fit, events, strict=True):
                await self._failed(held, event, error)
        else:
            for held in fit:
                self.stats.handled += 1
                await self._acknowledge(held)

    def _delivery(self, held: _Held) -> Delivery:
        msg = held.msg
        pattern = next(p for p in self._spec.filters if matches(p, msg.subject))
        headers = msg.headers or {}
        outbox: list[Event] | None = [] if self._handling.once else None
        return Delivery(msg.subject, pattern, "", headers, len(msg.data), held.origin, outbox)

    async def _begin(self, held: _Held) -> bool:
        """Write down that a repeated event is begun; bury it if that killed too many workers."""
        attempts = self._handling.retry.attempts
        if held.origin.attempt > attempts:
            begun = await self._dead_letters.begun(held.origin)
            if begun is None or begun + 1 >= attempts:
                died = SubscriptionError(
                    f"{held.origin.attempt - 1} deliveries ended without an answer: its handler "
                    "killed its worker, or hung until another one got it"
                )
                await self._bury(held, died)
                return False
        await self._dead_letters.begin(held.origin)
        return True

    async def _failed(
        self, held: _Held, event: Event, error: Exception | asyncio.CancelledError
    ) -> None:
        if isinstance(error, RetryLater):
            self.stats.deferred += 1
            self._park(held, error.seconds)
            return
        self.stats.failed += 1
        if isinstance(error, asyncio.CancelledError):
            cancelled = error
            error = SubscriptionError("the handler was cancelled")
            error.__cause__ = cancelled
        held.tries += 1
        retry = self._handling.retry
        if isinstance(error, Reject) or held.tries >= retry.attempts:
            self._reports.report(error, event, where=f"a dead letter of {self.name}")
            await self._bury(held, error)
            return
        delay = retry.backoff(held.tries)
        self._reports.report(
            error,
            event,
            where=f"the handler of {self.name} failed, attempt {held.tries} of {retry.attempts}",
            once=f"failed {self.name}",
        )
        if self._key_of is not None:
            self._park(held, delay)  # those behind it wait, or their order would be lost
            return
        await self._answer(held, acks.nak(delay))
        self._release(held)

    def _park(self, held: _Held, delay: float) -> None:
        """Handle it again later, here; the server is told that it is in progress."""

        def ripe() -> None:
            held.timer = None
            self._ready.append(held)
            self._arrived.set()

        held.running = False
        if not self._ending:
            held.timer = asyncio.get_running_loop().call_later(delay, ripe)

    async def _bury(self, held: _Held, error: Exception) -> None:
        """Store it as a dead letter, and only then end it; if that cannot be, try again later."""
        while True:
            try:
                await self._dead_letters.write(held.msg, held.origin, held.tries, error)
                break
            except EventBusError as failure:
                self._reports.report(
                    failure,
                    where=f"a dead letter of {self.name} cannot be stored",
                    once=f"bury {self.name}",
                )
            if self._ending:
                held.running = False
                return  # it goes back, and comes again
            await asyncio.sleep(DEAD_LETTER_PAUSE)
        self.stats.dead += 1
        await self._answer(held, acks.TERM)
        self._remember(held)

    async def _acknowledge(self, held: _Held) -> None:
        await self._answer(held, acks.ACK)
        self._remember(held)

    def _acknowledge_again(self) -> None:
        """What was acknowledged last may have gone with the connection."""
        latest = list(self._done.values())[-self._handling.max_in_flight :]

        async def send() -> None:
            deadline = self._connection.time() + ACK_TIMEOUT
            with contextlib.suppress(NotConnectedError, PermissionDeniedError):
                for reply in latest:
                    await self._connection.send(reply, acks.ACK, deadline=deadline)

        if latest:
            self._background(send())

    async def _answer(self, held: _Held, answer: bytes) -> None:
        try:
            await self._connection.send(
                held.msg.reply, answer, deadline=self._connection.time() + ACK_TIMEOUT
            )
        except NotConnectedError:
            pass  # it is delivered again, and known then
        except PermissionDeniedError as error:
            self._reports.report(error, where=f"{self.name} may not acknowledge")

    def _remember(self, held: _Held) -> None:
        """It is done: if the server delivers it again, only the acknowledgement was lost."""
        if self._ending and self._aborted:
            return
        done = self._done
        done[held.origin.sequence, held.origin.stored_at] = held.msg.reply
        if len(done) > _REMEMBERED:
            del done[next(iter(done))]
        self._release(held)

    def _release(self, held: _Held) -> None:
        self._held.pop((held.origin.sequence, held.origin.stored_at), None)
        if self._key_of is None:
            return
        lane = self._lanes.get(held.key)
        if lane is None or held not in lane:
            return
        lane.remove(held)
        if not lane:
            del self._lanes[held.key]
        elif not self._gated and not lane[0].running and lane[0].timer is None:
            self._ready.append(lane[0])
            self._arrived.set()

    def _unpinned(self) -> bool:
        """Whether another replica is given the events, and should get these too."""
        return self._spec.pinned and not self._pulls.pin and not self._connection.is_reconnecting

    async def _keep_in_progress(self) -> None:
        """Tell the server of what is here and not yet done, so that it is not delivered again."""
        interval = self._spec.ack_wait / 3
        while True:
            await asyncio.sleep(interval / 2)
            now = self._connection.time()
            for held in tuple(self._held.values()):
                if now - held.signalled >= interval and not self._unpinned():
                    held.signalled = now
                    await self._answer(held, acks.IN_PROGRESS)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key_function(key: Key | None) -> Callable[[Event], Hashable] | None:
    if key is None or callable(key):
        return key
    first, *rest = key.split(".")
    if first not in Event.__dataclass_fields__:
        raise InvalidOptionError(f"key={key!r}: an event has no field {first!r}")

    def look_up(event: Event) -> Hashable:
        found: Any = getattr(event, first)
        for name in rest:
            found = found[name] if isinstance(found, dict) and name in found else None
        return found if isinstance(found, Hashable) else str(found)

    return look_up


def decode_advisory(msg: Msg) -> Event:
    """An advisory of JetStream as an event; it is JSON, but not ours."""
    try:
        data = msgspec.json.decode(msg.data, type=dict[str, Any])
    except ValueError as error:
        raise EventDecodeError(f"not an advisory: {error}") from error
    return Event(msg.subject, "advisory", "nats-server", data)
