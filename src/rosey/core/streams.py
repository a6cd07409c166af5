"""Streams as code: what should be stored, for how long, and whether the server agrees."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from rosey.core.connection import Connection
from rosey.core.errors import PermissionDeniedError, StreamError
from rosey.core.jetstream import API_TIMEOUT, STREAM_NAME_IN_USE, STREAM_NOT_FOUND, api
from rosey.core.subjects import COMMANDS, ONCE, PLATFORM, PLUGINS

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream as it should be: it keeps what is published on `subjects`.

    `name` is letters, digits, `-` and `_`. What is None is left to the server, and not compared
    with what it has.
    """

    name: str
    subjects: tuple[str, ...]
    max_age: timedelta = timedelta(0)
    """How long an event is kept; 0: for ever."""
    max_bytes: int = -1
    """How much is kept, in bytes; -1: no limit. The oldest events make room."""
    max_messages: int | None = None
    """How many events are kept."""
    retention: Literal["limits", "interest", "workqueue"] = "limits"
    """Whether events go by the limits, when all consumers have them, or when one has."""
    discard: Literal["old", "new"] | None = None
    """Whether a full stream drops old events (the server's default) or refuses new ones."""
    storage: Literal["file", "memory"] | None = None
    replicas: int | None = None
    """On how many servers of a cluster; an odd number up to 5."""
    duplicate_window: timedelta | None = None
    """How long a message id is known; the server's default is 2 minutes."""
    compression: Literal["none", "s2"] | None = None
    allow_ttl: bool = False
    """Whether events may have a time to live of their own (nats-server 2.11)."""
    allow_atomic: bool = False
    """Whether `bus.batch` may be used (nats-server 2.12)."""
    once: bool = False
    """Whether handlers of consumers with `once=True` may publish here: the stream then keeps
    their marks too, on `rosey.once.<name>.>`, and allows what they need (nats-server 2.12)."""

    def config(self) -> dict[str, Any]:
        """The configuration as JetStream writes it."""
        config: dict[str, Any] = {
            "name": self.name,
            "subjects": [*self.subjects, *([f"{ONCE}.{self.name}.>"] if self.once else [])],
            "retention": self.retention,
            "max_age": _nanoseconds(self.max_age),
            "max_bytes": self.max_bytes,
        }
        optional = {
            "max_msgs": self.max_messages,
            "discard": self.discard,
            "storage": self.storage,
            "num_replicas": self.replicas,
            "duplicate_window": None
            if self.duplicate_window is None
            else _nanoseconds(self.duplicate_window),
            "compression": self.compression,
            "allow_msg_ttl": self.allow_ttl or self.once or None,
            "allow_atomic": self.allow_atomic or self.once or None,
        }
        return config | {key: value for key, value in optional.items() if value is not None}


def _nanoseconds(time: timedelta) -> int:
    return time // timedelta(microseconds=1) * 1000


@dataclass(frozen=True, slots=True)
class StreamDrift:
    """A stream that exists, but not as specified; it was left alone."""

    name: str
    differences: dict[str, tuple[Any, Any]]
    """By configuration key: what was specified, what the server has."""

    def __str__(self) -> str:
        parts = (
            f"{key} is {found!r}, specified {wanted!r}"
            for key, (wanted, found) in self.differences.items()
        )
        return f"stream {self.name} differs from its specification: {'; '.join(parts)}"


DEFAULT_STREAMS = (
    StreamSpec("PLATFORM_EVENTS", (f"{PLATFORM}.>",), timedelta(days=7), 1024 * _MIB),
    StreamSpec("COMMANDS", (f"{COMMANDS}.>",), timedelta(hours=24), 100 * _MIB),
    StreamSpec("PLUGINS", (f"{PLUGINS}.>",), timedelta(hours=24), 100 * _MIB),
)
"""The specification's three streams."""


async def ensure_streams(
    connection: Connection, specs: Iterable[StreamSpec]
) -> tuple[StreamDrift, ...]:
    """Create the streams that are missing; return how existing ones differ from their spec.

    Raises `StreamError` where the server refuses, with what to do about it.
    """
    # One after the other: nats-server misses that two streams overlap if it makes both at once.
    drifts = [await _ensure(connection, spec) for spec in specs]
    return tuple(drift for drift in drifts if drift is not None)


async def _ensure(connection: Connection, spec: StreamSpec) -> StreamDrift | None:
    deadline = asyncio.get_running_loop().time() + API_TIMEOUT
    wanted = spec.config()
    try:
        try:
            found = await api(connection, f"STREAM.INFO.{spec.name}", None, deadline)
        except StreamError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            try:
                found = await api(connection, f"STREAM.CREATE.{spec.name}", wanted, deadline)
            except StreamError as refused:
                if refused.code != STREAM_NAME_IN_USE:
                    raise
                # Somebody else created it in between, and differently.
                found = await api(connection, f"STREAM.INFO.{spec.name}", None, deadline)
    except PermissionDeniedError as error:
        raise StreamError(
            f"this user may not look up or create stream {spec.name}: let one that may do it, "
            "and connect this one with EventBus(streams=())"
        ) from error
    config = found["config"]
    differences = {
        key: (value, config.get(key)) for key, value in wanted.items() if config.get(key) != value
    }
    return StreamDrift(spec.name, differences) if differences else None
