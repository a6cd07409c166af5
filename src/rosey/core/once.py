"""Effects that happen once although an event may come twice.

What a handler publishes through its event is stored in one atomic batch with a marker that names
the event. The stream takes the marker only where there is none yet; so a second delivery's batch
is refused as a whole, and that is known to mean: done before.
"""

from __future__ import annotations

from rosey.core import headers as nats_headers
from rosey.core.batches import Entry
from rosey.core.batches import commit as commit_batch
from rosey.core.connection import Connection
from rosey.core.consumer_config import stream_of
from rosey.core.errors import (
    NotAllowedByStreamError,
    NotConnectedError,
    PublishTimeoutError,
    SeveralStreamsError,
    WrongSequenceError,
)
from rosey.core.events import Event
from rosey.core.subjects import ONCE

MARKER_LIFE = "24h"
"""How long an event is known to be done; a delivery later than that would have its effect again."""
COMMIT_TIMEOUT = 5.0
"""Seconds that each try to commit gets."""
TRIES = 4
_REMEMBERED = 1024


async def commit(
    connection: Connection, event: Event, consumer: str, streams: dict[str, str]
) -> None:
    """Store what `event`'s handler published through it, unless an earlier delivery did.

    `streams` remembers which stream stores a subject. Raises `NotAllowedByStreamError` with what
    to do, `NoStreamError`, and what `batches.commit` raises.
    """
    delivery = event.delivery
    assert delivery is not None
    assert delivery.origin is not None
    if not delivery.outbox:
        return
    effects = [Entry(out.subject, out.to_json(), {}) for out in delivery.outbox]
    origin = delivery.origin
    for attempt in range(1, TRIES + 1):
        deadline = connection.time() + COMMIT_TIMEOUT
        subject = effects[0].subject
        if subject not in streams:
            if len(streams) >= _REMEMBERED:
                streams.clear()
            streams[subject] = await stream_of(connection, subject, deadline)
        stream = streams[subject]
        marker = Entry(
            f"{ONCE}.{stream}.{origin.stream}.{consumer}.{origin.sequence}-{origin.stored_at}",
            b"",
            {nats_headers.EXPECTED_LAST_SUBJECT_SEQUENCE: "0", nats_headers.TTL: MARKER_LIFE},
        )
        try:
            await commit_batch(connection, stream, [marker, *effects], deadline=deadline)
            return
        except WrongSequenceError:
            return  # the marker is there: an earlier delivery, or try, committed
        except (NotConnectedError, PublishTimeoutError):
            if attempt == TRIES:
                raise
        except (NotAllowedByStreamError, SeveralStreamsError) as error:
            raise NotAllowedByStreamError(
                f"once=True needs one stream, {stream}, for all that a handler publishes, and one "
                f"that keeps marks: StreamSpec({stream!r}, ..., once=True); bus.plan can change "
                "one that exists"
            ) from error
