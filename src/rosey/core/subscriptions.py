"""Subscriptions: messages in, handlers called, answers out; nothing a handler does ends one."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rosey.core import requests
from rosey.core.connection import Connection, Route
from rosey.core.errors import (
    EventBusError,
    EventDecodeError,
    EventEncodeError,
    RemoteError,
    SubscriptionError,
)
from rosey.core.events import Delivery, Event, mark_delivered
from rosey.core.handlers import Handler, current_worker, event_type_of, take_back_cancellation
from rosey.core.reports import ErrorReports
from rosey.core.subjects import matches

if TYPE_CHECKING:
    from nats.aio.msg import Msg

PENDING_MSGS_LIMIT = 65_536
"""Messages that may wait for a subscription's handler; later ones are dropped and counted."""
PENDING_BYTES_LIMIT = 64 * 1024 * 1024
"""Bytes of payload that may wait; later messages are dropped and counted."""
_YIELD_EVERY = 64  # messages after which other tasks get their turn, whatever the handler does


@dataclass(slots=True)
class SubscriptionStats:
    """What happened to the messages of one subscription so far."""

    received: int = 0
    """Messages that arrived."""
    handled: int = 0
    """Events whose handler returned."""
    failed: int = 0
    """Events whose handler raised, or returned what cannot be an answer."""
    dropped: int = 0
    """Messages dropped because too many waited for the handler."""
    undecodable: int = 0
    """Messages that were not an event."""
    mismatched: int = 0
    """Messages whose subject the subscription does not match: a peer's forgery."""


class Subscription:
    """A live subscription, as `EventBus.subscribe` returns it."""

    def __init__(
        self,
        connection: Connection,
        reports: ErrorReports,
        pattern: str,
        handler: Handler,
        queue: str,
        concurrency: int,
        forget: Callable[[Subscription], None],
    ) -> None:
        self._connection = connection
        self._reports = reports
        self._handler = handler
        self._event_type = event_type_of(handler)
        self._route = Route(pattern, queue, self._receive)
        self._pending: deque[Msg] = deque()
        self._pending_bytes = 0
        self._arrived = asyncio.Event()
        self._ending = False
        self._aborted = False
        self._forget = forget
        self._workers = {
            asyncio.create_task(self._work(), name=f"rosey-subscription {pattern}")
            for _ in range(concurrency)
        }
        for worker in self._workers:
            worker.add_done_callback(self._worker_ended)
        self.stats = SubscriptionStats()

    @property
    def subject(self) -> str:
        """The subject or pattern subscribed to."""
        return self._route.pattern

    @property
    def queue(self) -> str | None:
        """The queue group, None if there is none."""
        return self._route.queue or None

    @property
    def pending(self) -> int:
        """Messages that wait for the handler."""
        return len(self._pending)

    @property
    def ended(self) -> bool:
        """Whether it was unsubscribed or drained."""
        return self._ending

    def __repr__(self) -> str:
        queue = f", queue={self.queue}" if self.queue else ""
        return f"Subscription({self.subject}{queue}, {self.stats})"

    async def start(self, deadline: float) -> None:
        """Subscribe at the server; raises what `Connection.subscribe` raises."""
        try:
            await self._connection.subscribe(self._route, deadline)
        except BaseException:
            self._end()
            raise

    async def unsubscribe(self) -> None:
        """Take no more messages and drop those that wait; a handler that runs may finish."""
        self._pending.clear()
        self._pending_bytes = 0
        self._end()
        await self._connection.unsubscribe(self._route)

    async def drain(self, timeout: float = 10.0) -> None:
        """Take no more messages, handle those that wait, and end.

        After `timeout` seconds handlers that still run are cancelled and the rest is dropped,
        counted and reported. Called from its own handler, it does not wait for that one.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        await self.finish(deadline, current_worker.get())

    async def finish(self, deadline: float, besides: asyncio.Task[Any] | None) -> None:
        """Drain until `deadline` (loop time), but do not wait for what task `besides` runs."""
        try:
            await self._connection.drain(self._route, deadline)
        finally:
            self._end()  # the server was told: nothing comes any more, whoever cancels this
        workers = self._workers - {besides}
        if not workers:
            return
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            await asyncio.wait(workers, timeout=left)
        finally:
            late = self.abort(besides)
        if late:
            await asyncio.wait(late, timeout=1.0)

    def abort(self, besides: asyncio.Task[Any] | None) -> set[asyncio.Task[None]]:
        """End now: cancel what runs but for task `besides`, and report it; return what ran."""
        self._connection.forget(self._route)
        self._end()
        running = {task for task in self._workers if task is not besides and not task.done()}
        if running or self._pending:
            self._cancel(running)
        return running

    def _end(self) -> None:
        self._ending = True
        self._arrived.set()

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        if not self._workers:
            self._forget(self)

    def _cancel(self, workers: set[asyncio.Task[None]]) -> None:
        dropped = len(self._pending)
        self._aborted = True
        self._pending.clear()
        self._pending_bytes = 0
        for task in workers:
            task.cancel()
        self.stats.dropped += dropped
        self._reports.report(
            SubscriptionError(
                f"{self.subject}: {len(workers)} handler(s) were cancelled and {dropped} "
                "message(s) dropped, because the time to finish was over"
            )
        )

    def _receive(self, msg: Msg) -> None:
        """Take a message from the connection; never waits, never raises."""
        stats = self.stats
        stats.received += 1
        if msg.subject != self._route.pattern and not matches(self._route.pattern, msg.subject):
            stats.mismatched += 1
            self._report_drop("mismatched", f"a message on {msg.subject!r}, never asked for")
            return
        size = len(msg.data)
        if (
            len(self._pending) >= PENDING_MSGS_LIMIT
            or self._pending_bytes + size > PENDING_BYTES_LIMIT
        ):
            stats.dropped += 1
            self._report_drop("slow", f"{stats.dropped} message(s) so far, its handler is too slow")
            return
        self._pending.append(msg)
        self._pending_bytes += size
        if not self._arrived.is_set():
            self._arrived.set()

    def _report_drop(self, why: str, text: str) -> None:
        if self._reports.is_due(f"{why} {self.subject}"):
            self._reports.report(SubscriptionError(f"{self.subject} dropped: {text}"))

    async def _work(self) -> None:
        """Handle messages one after the other until the subscription ends."""
        current_worker.set(asyncio.current_task())
        for turn in itertools.count(1):
            while not self._pending:
                if self._ending:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            msg = self._pending.popleft()
            self._pending_bytes -= len(msg.data)
            try:
                await self._handle(msg)
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                # Whatever it is, no message may end the subscription.
                self.stats.failed += 1
                failure = SubscriptionError(f"{self.subject}: a message could not be handled")
                failure.__cause__ = error
                self._reports.report(failure)
            if turn % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _handle(self, msg: Msg) -> None:
        delivery = requests.delivery_of(msg, self._route.pattern)
        try:
            event = self._event_type.from_json(msg.data)
        except EventDecodeError as error:
            self.stats.undecodable += 1
            where = f"{self.subject} dropped a message of {delivery.size} bytes on {msg.subject}"
            self._reports.report(error, where=where, once=f"undecodable {self.subject}")
            await self._refuse(delivery, RemoteError(requests.BAD_REQUEST, str(error)), None)
            return
        mark_delivered(event, delivery)
        try:
            answer = self._handler(event)
            if inspect.isawaitable(answer):
                answer = await answer
            if answer is not None and requests.awaits_answer(delivery):
                await requests.respond(self._connection, delivery, _as_event(answer, event))
        except (Exception, asyncio.CancelledError) as error:
            await self._fail(event, delivery, error)
        else:
            self.stats.handled += 1

    async def _fail(
        self, event: Event, delivery: Delivery, error: Exception | asyncio.CancelledError
    ) -> None:
        if isinstance(error, RemoteError) and requests.awaits_answer(delivery):
            self.stats.handled += 1  # the handler's way to say no
            await self._refuse(delivery, error, event.correlation_id)
            return
        self.stats.failed += 1
        if isinstance(error, asyncio.CancelledError):
            if self._aborted or self._connection.is_ending:
                raise error
            # By the handler, or what it awaited: a failure like others, even if it meant our task.
            take_back_cancellation()
            cancelled = error
            error = SubscriptionError("the handler was cancelled")
            error.__cause__ = cancelled
        self._reports.report(error, event, where=f"the handler of {self.subject} failed")
        refusal = RemoteError(requests.INTERNAL_ERROR, f"the handler failed: {_name(error)}")
        await self._refuse(delivery, refusal, event.correlation_id)

    async def _refuse(
        self, delivery: Delivery, error: RemoteError, correlation_id: str | None
    ) -> None:
        if not requests.awaits_answer(delivery):
            return
        try:
            await requests.respond_error(self._connection, delivery, error, correlation_id)
        except EventBusError as failure:
            self._reports.report(failure, where=f"no answer could be sent to {delivery.subject}")


def _as_event(answer: object, asked: Event) -> Event:
    """A handler's returned value as the event that answers `asked`."""
    if isinstance(answer, Event):
        answer.correlation_id = asked.correlation_id
        return answer
    if isinstance(answer, dict):
        return requests.answer_to(asked.subject, answer, asked.correlation_id)
    raise EventEncodeError(
        f"a handler returned a {type(answer).__name__}: an answer is a dict or an Event"
    )


def _name(error: Exception) -> str:
    """What a requester may know of a failure: its text may hold what is none of their business."""
    return type(error.__cause__ or error).__name__
