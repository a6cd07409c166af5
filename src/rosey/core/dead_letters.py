"""Dead letters: events that nobody could handle, kept whole, with why, until somebody decides.

Each is a message on `rosey.dead.letter.<stream>.<consumer>` of the stream `DEAD_LETTERS`: payload
and headers as they were, and headers `Rosey-Dead-*` that say where it comes from and what went
wrong. `rosey.dead.redriven.<sequence>` marks those that were sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rosey.core import acks
from rosey.core import headers as nats_headers
from rosey.core.connection import Connection
from rosey.core.errors import (
    EventBusError,
    InvalidOptionError,
    NoSuchDeadLetterError,
    PayloadTooLargeError,
    PermissionDeniedError,
    StreamError,
)
from rosey.core.jetstream import (
    API_TIMEOUT,
    MESSAGE_NOT_FOUND,
    STREAM_NOT_FOUND,
    StoredMessage,
    api,
    get_message,
)
from rosey.core.publishing import publish_stored
from rosey.core.streams import StreamSpec, ensure_streams
from rosey.core.subjects import DEAD

if TYPE_CHECKING:
    from nats.aio.msg import Msg

LETTER = f"{DEAD}.letter"
REDRIVEN = f"{DEAD}.redriven"
BEGUN = f"{DEAD}.begun"

DEAD_LETTERS = StreamSpec(
    "DEAD_LETTERS",
    (f"{DEAD}.>",),
    # As long as a worker may take from storing a letter to ending its original.
    duplicate_window=timedelta(days=1),
    allow_ttl=True,
)
"""The stream of dead letters; `consume` makes it where it is missing."""
MAX_DELIVERIES = StreamSpec(
    "MAX_DELIVERIES",
    ("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",),
    max_age=timedelta(days=7),
    max_bytes=64 * 1024 * 1024,
)
"""The stream of the server's own words that it gave an event up."""

STORE_TIMEOUT = 5.0
"""Seconds that storing a letter may take."""
BEGUN_LIFE = "24h"
_BEGIN_TIMEOUT = 1.0
_TRACEBACK_LIMIT = 16 * 1024  # characters, the last ones
_ERROR_LIMIT = 2000
_PREFIX = "Rosey-Dead-"
_BY_REFERENCE = f"{_PREFIX}By-Reference"
_REDRIVEN_FROM = "Rosey-Redriven-From"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that nobody could handle."""

    sequence: int
    """Its number among the dead letters."""
    subject: str
    """Where it was published."""
    stream: str
    stream_sequence: int
    """Its place in the stream that it comes from."""
    consumer: str
    attempts: int
    error_type: str
    error: str
    traceback: str
    """Of the last attempt; empty where no handler raised."""
    first: datetime
    """When the event was stored."""
    last: datetime
    """When it became a dead letter."""
    headers: dict[str, str]
    """The event's own."""
    payload: bytes
    redriven: bool
    """Whether it was sent again already."""

    def __str__(self) -> str:
        return (
            f"{self.sequence}: {self.subject} ({self.stream} {self.stream_sequence}, consumer "
            f"{self.consumer}), {self.attempts} attempts, {self.error_type}: {self.error}"
        )


class DeadLetterLog:
    """Writes dead letters, and what is known of deliveries that may become some."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ensure(self) -> bool:
        """Make the streams that are missing; whether this user may and could."""
        try:
            await ensure_streams(self._connection, (DEAD_LETTERS, MAX_DELIVERIES))
        except StreamError:
            return False  # whoever administers JetStream makes them
        return True

    async def write(
        self, msg: Msg | StoredMessage, origin: acks.Origin, attempts: int, error: Exception
    ) -> None:
        """Store an event as a dead letter, once; raises what storing an event raises."""
        about = {
            "Subject": msg.subject,
            "Stream": origin.stream,
            "Sequence": str(origin.sequence),
            "Consumer": origin.consumer,
            "Attempts": str(max(attempts, 1)),
            "Error-Type": type(error).__name__,
            "Error": _line(str(error)[:_ERROR_LIMIT]),
            "First": str(origin.stored_at),
            "Last": str(time.time_ns()),
        }
        if error.__traceback__ is not None:
            text = "".join(traceback.format_exception(error))
            about["Traceback"] = _line(text[-_TRACEBACK_LIMIT:])
        headers = {f"{_PREFIX}{name}": value for name, value in about.items()}
        for name, value in (msg.headers or {}).items():
            if not name.lower().startswith("nats-") and nats_headers.fits(name, value):
                headers.setdefault(name, value)
        identity = f"{origin.stream}.{origin.consumer}.{origin.sequence}.{origin.stored_at}"
        try:
            await self._store(origin, msg.data or b"", headers, identity)
        except PayloadTooLargeError:
            # With its headers it is larger than the server takes: its stream still has it.
            headers[_BY_REFERENCE] = "1"
            await self._store(origin, b"", headers, identity)

    async def _store(
        self, origin: acks.Origin, payload: bytes, headers: dict[str, str], identity: str
    ) -> None:
        await publish_stored(
            self._connection,
            f"{LETTER}.{origin.stream}.{origin.consumer}",
            payload,
            deadline=self._connection.time() + STORE_TIMEOUT,
            headers=headers,
            msg_id=identity,
        )

    async def begin(self, origin: acks.Origin) -> None:
        """Write down that a repeated delivery is about to be handled, as far as that can be."""
        with contextlib.suppress(EventBusError):
            await publish_stored(
                self._connection,
                _begun_subject(origin),
                b"",
                deadline=self._connection.time() + _BEGIN_TIMEOUT,
                headers={nats_headers.TTL: BEGUN_LIFE},
            )

    async def begun(self, origin: acks.Origin) -> int | None:
        """How many repeated deliveries were begun; None if that is not known."""
        subject = _begun_subject(origin)
        try:
            state = await api(
                self._connection,
                f"STREAM.INFO.{DEAD_LETTERS.name}",
                {"subjects_filter": subject},
                self._connection.time() + _BEGIN_TIMEOUT,
            )
        except EventBusError:
            return None
        return int((state["state"].get("subjects") or {}).get(subject, 0))


class DeadLetters:
    """The dead letters: `async for letter in bus.dead_letters.find(...)`, `redrive`, `purge`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def find(
        self,
        *,
        stream: str | None = None,
        consumer: str | None = None,
        subject: str | None = None,
        error_type: str | None = None,
        redriven: bool | None = None,
    ) -> AsyncIterator[DeadLetter]:
        """Iterate over the letters there are, oldest first; each argument leaves out others.

        Args:
            stream: of the stream they come from.
            consumer: of the consumer that could not handle them.
            subject: published on exactly this subject.
            error_type: with this class of error, as `ValueError`.
            redriven: True for those sent again, False for those that were not.

        Raises `StreamError`, `NotConnectedError`.
        """
        try:
            marks = await self._redriven()
        except StreamError as error:
            if error.code == STREAM_NOT_FOUND:
                return  # nothing failed yet, so nobody made it
            raise
        pattern = f"{LETTER}.{stream or '*'}.{consumer or '*'}"
        sequence = 0
        while True:
            try:
                found = await get_message(
                    self._connection, DEAD_LETTERS.name, next_from=sequence + 1, subject=pattern
                )
            except StreamError as error:
                if error.code == MESSAGE_NOT_FOUND:
                    return
                raise
            sequence = found.sequence
            letter = await self._read(found, sequence in marks)
            if (
                (subject is None or letter.subject == subject)
                and (error_type is None or letter.error_type == error_type)
                and (redriven is None or letter.redriven is redriven)
            ):
                yield letter

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        return self.find()

    async def get(self, sequence: int) -> DeadLetter:
        """The letter of that number. Raises `NoSuchDeadLetterError`, and as `find`."""
        try:
            found = await get_message(self._connection, DEAD_LETTERS.name, sequence=sequence)
        except StreamError as error:
            if error.code == MESSAGE_NOT_FOUND:
                raise NoSuchDeadLetterError(f"there is no dead letter {sequence}") from error
            raise
        if not found.subject.startswith(f"{LETTER}."):
            raise NoSuchDeadLetterError(f"there is no dead letter {sequence}")
        return await self._read(found, sequence in await self._redriven())

    async def redrive(
        self, *sequences: int, rate: float = 100.0, dry_run: bool = False, **filters: Any
    ) -> list[DeadLetter]:
        """Publish letters again where they came from, and return which.

        Only those that were not redriven yet. Each gets a message id of its own, and a header
        that says so. All consumers of its stream see it again, not only the one that failed.

        Args:
            *sequences: which; without any, all that `filters` leave.
            rate: how many a second at most.
            dry_run: only return which would be.
            **filters: as for `find`.

        Raises as `find`, and what `publish_js` raises; what was sent before stays sent.
        """
        if rate <= 0:
            raise InvalidOptionError("rate must be more than 0 a second")
        if sequences and filters:
            raise InvalidOptionError("name letters by their numbers or by filters, not both")
        if sequences:
            chosen = [await self.get(sequence) for sequence in sequences]
        else:
            chosen = [letter async for letter in self.find(**{**filters, "redriven": False})]
        chosen = [letter for letter in chosen if not letter.redriven]
        if dry_run:
            return chosen
        for number, letter in enumerate(chosen):
            if number:
                await asyncio.sleep(1.0 / rate)
            await self._send_again(letter)
        return chosen

    async def purge(self, *sequences: int, **filters: Any) -> int:
        """Delete letters for good and return how many; without arguments none.

        Takes numbers, or filters as `find` does. Raises as `find`.
        """
        if sequences and filters:
            raise InvalidOptionError("name letters by their numbers or by filters, not both")
        if not sequences and not filters:
            raise InvalidOptionError("say which: numbers, or filters such as redriven=True")
        if not sequences:
            sequences = tuple([letter.sequence async for letter in self.find(**filters)])
        for sequence in sequences:
            await self.get(sequence)
            await self._delete(sequence)
        return len(sequences)

    async def _send_again(self, letter: DeadLetter) -> None:
        created = (await self._info())["created"]
        deadline = self._connection.time() + STORE_TIMEOUT
        await publish_stored(
            self._connection,
            letter.subject,
            letter.payload,
            deadline=deadline,
            headers={**letter.headers, _REDRIVEN_FROM: str(letter.sequence)},
            # The same for each try, so that one that ended half-way is not sent twice.
            msg_id=f"redriven.{letter.sequence}.{created}",
        )
        await publish_stored(
            self._connection, f"{REDRIVEN}.{letter.sequence}", b"", deadline=deadline
        )

    async def _read(self, found: StoredMessage, redriven: bool) -> DeadLetter:
        about = {
            name.removeprefix(_PREFIX): value
            for name, value in found.headers.items()
            if name.startswith(_PREFIX)
        }
        payload = found.data
        stream, sequence = about.get("Stream", ""), int(about.get("Sequence", "0"))
        if _BY_REFERENCE in found.headers:
            with contextlib.suppress(StreamError):  # its stream keeps it no more
                payload = (await get_message(self._connection, stream, sequence=sequence)).data
        return DeadLetter(
            sequence=found.sequence,
            subject=about.get("Subject", ""),
            stream=stream,
            stream_sequence=sequence,
            consumer=about.get("Consumer", ""),
            attempts=int(about.get("Attempts", "1")),
            error_type=about.get("Error-Type", ""),
            error=_text(about.get("Error", "")),
            traceback=_text(about.get("Traceback", "")),
            first=_moment(about.get("First", "0")),
            last=_moment(about.get("Last", "0")),
            headers={
                name: value
                for name, value in found.headers.items()
                if not name.startswith((_PREFIX, "Nats-"))
            },
            payload=payload,
            redriven=redriven,
        )

    async def _redriven(self) -> set[int]:
        state = (await self._info(f"{REDRIVEN}.*"))["state"]
        return {int(subject.rpartition(".")[2]) for subject in state.get("subjects") or {}}

    async def _info(self, subjects_filter: str | None = None) -> dict[str, Any]:
        body = {"subjects_filter": subjects_filter} if subjects_filter else None
        deadline = self._connection.time() + API_TIMEOUT
        return await api(self._connection, f"STREAM.INFO.{DEAD_LETTERS.name}", body, deadline)

    async def _delete(self, sequence: int) -> None:
        deadline = self._connection.time() + API_TIMEOUT
        path = f"STREAM.MSG.DELETE.{DEAD_LETTERS.name}"
        await api(self._connection, path, {"seq": sequence}, deadline)


class GivenUp(Exception):  # noqa: N818 - it names what the server did
    """The server delivered an event as often as its consumer allows, and no more."""


async def bury_advised(
    connection: Connection, log: DeadLetterLog, advisory: dict[str, Any]
) -> None:
    """Make a dead letter of an event that the server gave up; its worker died too often to do so.

    Raises what storing an event raises.
    """
    try:
        stream, consumer = str(advisory["stream"]), str(advisory["consumer"])
        sequence, deliveries = int(advisory["stream_seq"]), int(advisory["deliveries"])
    except (KeyError, ValueError, TypeError):
        return  # no advisory, whoever wrote it
    if stream in (DEAD_LETTERS.name, MAX_DELIVERIES.name):
        return
    try:
        found = await get_message(connection, stream, sequence=sequence)
    except StreamError as error:
        if error.code:
            return  # its stream keeps it no more
        raise
    origin = acks.Origin(stream, consumer, deliveries, sequence, found.stored_at, 0)
    reason = GivenUp(f"delivered {deliveries} times without an acknowledgement")
    await log.write(found, origin, deliveries, reason)
    config = (
        await api(connection, f"STREAM.INFO.{stream}", None, connection.time() + API_TIMEOUT)
    )["config"]
    if config.get("retention") == "workqueue":
        # There an event stays until it is acknowledged, and nobody will.
        deadline = connection.time() + API_TIMEOUT
        with contextlib.suppress(StreamError, PermissionDeniedError):
            await api(connection, f"STREAM.MSG.DELETE.{stream}", {"seq": sequence}, deadline)


def _begun_subject(origin: acks.Origin) -> str:
    return f"{BEGUN}.{origin.stream}.{origin.consumer}.{origin.sequence}-{origin.stored_at}"


def _line(text: str) -> str:
    """Any text as a header value: as in JSON, in ASCII, without its quotes."""
    return json.dumps(text)[1:-1]


def _text(line: str) -> str:
    try:
        return str(json.loads(f'"{line}"'))
    except ValueError:
        return line  # not written by us


def _moment(nanoseconds: str) -> datetime:
    return datetime.fromtimestamp(int(nanoseconds) / 1e9, UTC)
