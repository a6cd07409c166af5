"""What a stream says with each event it delivers, and what may be answered to it.

JetStream hides both in the reply subject: tokens that say where the event comes from, to which an
acknowledgement is published (NATS ADR-15; with an account's hash and a domain since 2.14).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

ACK = b"+ACK"
IN_PROGRESS = b"+WPI"
TERM = b"+TERM"
NAK = b"-NAK"
PREFIX = "$JS.ACK."

_NS = 1_000_000_000


class Origin(NamedTuple):
    """Where a stored event comes from."""

    stream: str
    consumer: str
    attempt: int
    """1 for the first delivery."""
    sequence: int
    """Its place in the stream."""
    stored_at: int
    """When it was stored, in nanoseconds since 1970."""
    pending: int
    """Events that were still to come when this one was delivered."""


def parse(reply: str) -> Origin | None:
    """Read an acknowledgement's subject; None if it is none."""
    tokens = reply.split(".")
    count = len(tokens)
    if count < 9 or tokens[0] != "$JS" or tokens[1] != "ACK":
        return None
    first = 2 if count == 9 else 4
    try:
        _, _, attempt, sequence, _, stored_at, pending = tokens[first : first + 7]
        return Origin(
            tokens[first],
            tokens[first + 1],
            int(attempt),
            int(sequence),
            int(stored_at),
            int(pending),
        )
    except ValueError:
        return None


def nak(delay: float) -> bytes:
    """Not done: deliver it again after `delay` seconds."""
    return NAK + b" " + msgspec.json.encode({"delay": int(delay * _NS)}) if delay > 0 else NAK


def nanoseconds(seconds: float) -> int:
    """JetStream's unit of time."""
    return int(seconds * _NS)
