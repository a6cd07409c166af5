"""Atomic batches: several events stored by one stream together, or none of them.

NATS ADR-50; needs nats-server 2.12, and `allow_atomic` on the stream.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rosey.core import headers as nats_headers
from rosey.core import publishing
from rosey.core.connection import Connection
from rosey.core.errors import PublishError, PublishTimeoutError, SeveralStreamsError
from rosey.core.events import Event
from rosey.core.jetstream import ApiError, PubAck, is_ack, read_ack, require_server
from rosey.core.subjects import validate_subject

SERVER = (2, 12)
_INCOMPLETE = 10176
_OTHER_STREAM = 10060
LIMIT = 1000
"""Events that one batch may have; the server's limit."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a batch."""

    subject: str
    payload: bytes
    headers: dict[str, str]


class Batch:
    """Events that are to be stored together; `ack` is the acknowledgement, once they are."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ack: PubAck | None = None

    def publish(
        self,
        subject: str | Event,
        data: dict[str, Any] | None = None,
        source: str = "core",
        *,
        expect_last_subject_sequence: int | None = None,
    ) -> None:
        """Add an event, or a subject and data; as `EventBus.publish_js` takes them.

        Raises `InvalidSubjectError`, `EventEncodeError`.
        """
        if isinstance(subject, str):
            event = Event(validate_subject(subject), subject.rpartition(".")[2], source, data or {})
        else:
            event = subject
            validate_subject(event.subject)
        conditions = publishing.conditions(None, expect_last_subject_sequence, None)
        self.entries.append(Entry(event.subject, event.to_json(), conditions))


async def commit(
    connection: Connection, stream: str, entries: Sequence[Entry], *, deadline: float
) -> PubAck:
    """Have `stream` store all entries at once; the acknowledgement is the last one's.

    Tried once: a batch whose answer is lost may be stored. Raises `PublishTimeoutError` then,
    `SeveralStreamsError`, what `publishing.refusal` makes of the stream's reason,
    `UnsupportedServerError`, and what `Connection.send` raises.
    """
    require_server(connection, SERVER, "an atomic batch")
    if not 0 < len(entries) <= LIMIT:
        raise PublishError(f"a batch holds 1 to {LIMIT} events, not {len(entries)}")
    batch = secrets.token_hex(16)
    last = len(entries)
    for number, entry in enumerate(entries, 1):
        tags = {
            nats_headers.BATCH_ID: batch,
            nats_headers.BATCH_SEQUENCE: str(number),
            # One that strays into another stream must not be half of a batch there.
            nats_headers.EXPECTED_STREAM: stream,
        }
        if number < last:
            await connection.send(
                entry.subject, entry.payload, deadline=deadline, headers={**entry.headers, **tags}
            )
            continue
        tags[nats_headers.BATCH_COMMIT] = "1"
        try:
            msg = await connection.exchange(
                entry.subject,
                entry.payload,
                deadline=deadline,
                headers={**entry.headers, **tags},
                accept=is_ack,
            )
        except TimeoutError as error:
            raise PublishTimeoutError(
                f"the batch of {last} events was not acknowledged in time; whether it is stored "
                "is unknown"
            ) from error
    reply = read_ack(msg)
    if isinstance(reply, PubAck):
        return reply
    if isinstance(reply, ApiError) and reply.err_code not in (_INCOMPLETE, _OTHER_STREAM):
        raise publishing.refusal(entries[-1].subject, reply)
    raise SeveralStreamsError(
        f"a batch is stored by one stream, and {stream} does not store all of "
        + ", ".join(sorted({entry.subject for entry in entries}))
    )
