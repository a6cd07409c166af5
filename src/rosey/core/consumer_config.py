"""What a consumer is to be, as JetStream writes it, and whether the server has it so."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rosey.core import acks
from rosey.core.connection import Connection
from rosey.core.errors import (
    ConsumerMismatchError,
    InvalidOptionError,
    NoStreamError,
    PermissionDeniedError,
    StreamError,
    SubscriptionError,
)
from rosey.core.jetstream import (
    API_TIMEOUT,
    CONSUMER_EXISTS,
    CONSUMER_NOT_FOUND,
    api,
    require_server,
)

Start = str | int | datetime | timedelta
"""Where a new consumer begins: "all", "new", "last", "last_per_subject", a sequence of the stream,
a moment, or how long ago, as a timedelta or as in "90s ago", "15m ago", "1h ago", "7d ago"."""

PIN_GROUP = "rosey"
PIN_TIMEOUT = 5.0
"""Seconds without a request after which the server gives a group's messages to another client."""
EPHEMERAL_LIFE = 300.0
"""Seconds without a client after which the server removes a consumer that has no durable name."""

MAX_ACK_PENDING = 10_000
"""Events that all replicas of a durable together may have and not yet acknowledged."""

_POLICIES = {"all": "all", "new": "new", "last": "last", "last_per_subject": "last_per_subject"}
_AGO = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s+ago\s*")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_NAME = re.compile(r"[A-Za-z0-9_\-/=]{1,255}")
# What JetStream lets an existing consumer change; the rest would need a new one.
_CHANGEABLE = frozenset(
    {"ack_wait", "max_deliver", "max_ack_pending", "filter_subject", "filter_subjects"}
)


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A consumer as it should be; `EventBus.consume` documents each."""

    stream: str
    name: str
    durable: bool
    filters: tuple[str, ...]
    start: Start
    ack_wait: float
    max_deliver: int
    max_ack_pending: int
    pinned: bool

    def config(self) -> dict[str, Any]:
        """The configuration as JetStream writes it."""
        config: dict[str, Any] = {
            "name": self.name,
            "ack_policy": "explicit",
            "ack_wait": acks.nanoseconds(self.ack_wait),
            "max_deliver": self.max_deliver,
            "max_ack_pending": self.max_ack_pending,
            **_start_config(self.start),
        }
        if self.durable:
            config["durable_name"] = self.name
        else:
            config["inactive_threshold"] = acks.nanoseconds(EPHEMERAL_LIFE)
        if len(self.filters) == 1:
            config["filter_subject"] = self.filters[0]
        else:
            config["filter_subjects"] = list(self.filters)
        if self.pinned:
            config["priority_groups"] = [PIN_GROUP]
            config["priority_policy"] = "pinned_client"
            config["priority_timeout"] = acks.nanoseconds(PIN_TIMEOUT)
        return config


def new_name() -> str:
    """A name for a consumer that needs none."""
    return f"rosey-{secrets.token_hex(8)}"


def validate_durable(name: str) -> str:
    """Return `name` if it may name a consumer, else raise `SubscriptionError`."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise SubscriptionError(
        f"{name!r} is no durable name: use letters, digits, - and _, at most 255"
    )


def _start_config(start: Start) -> dict[str, Any]:
    if isinstance(start, bool) or not isinstance(start, str | int | datetime | timedelta):
        raise InvalidOptionError(f"start cannot be a {type(start).__name__}")
    if isinstance(start, int):
        if start < 1:
            raise InvalidOptionError("start: the first sequence of a stream is 1")
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": start}
    if isinstance(start, str):
        if start in _POLICIES:
            return {"deliver_policy": _POLICIES[start]}
        ago = _AGO.fullmatch(start)
        if ago is None:
            raise InvalidOptionError(
                f"start={start!r} is unknown: use all, new, last, last_per_subject, a sequence, "
                'a datetime, a timedelta, or "1h ago"'
            )
        start = timedelta(**{_UNITS[ago[2]]: float(ago[1])})
    if isinstance(start, timedelta):
        start = datetime.now(UTC) - start
    if start.tzinfo is None:
        raise InvalidOptionError("start: a datetime needs a time zone, as in datetime.now(UTC)")
    return {"deliver_policy": "by_start_time", "opt_start_time": start.isoformat()}


async def stream_of(connection: Connection, subject: str, deadline: float) -> str:
    """The stream that stores `subject`.

    Raises `NoStreamError`; `StreamError` if there are several, or nobody may ask.
    """
    try:
        found = await api(connection, "STREAM.NAMES", {"subject": subject}, deadline)
    except PermissionDeniedError as error:
        raise StreamError(
            f"this user may not ask which stream stores {subject}: name it with stream="
        ) from error
    names = found.get("streams") or []
    if not names:
        raise NoStreamError(
            f"no stream stores {subject}: add a StreamSpec for it to EventBus(streams=...)"
        )
    if len(names) > 1:
        raise StreamError(f"{subject} is stored by {', '.join(names)}: say which with stream=")
    return str(names[0])


async def ensure_consumer(connection: Connection, spec: ConsumerSpec) -> None:
    """Make the consumer, or bind to the one there is, brought up to date where that is allowed.

    Raises `ConsumerMismatchError` with the difference where it is not, `UnsupportedServerError`,
    `StreamError`. A user who may not look consumers up binds unseen.
    """
    deadline = asyncio.get_running_loop().time() + API_TIMEOUT
    wanted = spec.config()
    if spec.pinned:
        require_server(connection, (2, 11), "key=")
    where = f"{spec.stream}.{spec.name}"
    try:
        found = (await api(connection, f"CONSUMER.INFO.{where}", None, deadline))["config"]
    except PermissionDeniedError:
        return
    except StreamError as error:
        if error.code != CONSUMER_NOT_FOUND:
            raise
        try:
            await _create(connection, spec, wanted, "create", deadline)
            return
        except StreamError as refused:
            if refused.code != CONSUMER_EXISTS:
                raise
            # Another replica made it in between.
            found = (await api(connection, f"CONSUMER.INFO.{where}", None, deadline))["config"]
    differences = _differences(wanted, found, spec)
    if not differences:
        return
    if not _CHANGEABLE.issuperset(differences):
        raise ConsumerMismatchError(spec.stream, spec.name, differences)
    changed = {**found, **wanted}
    for key in ("filter_subject", "filter_subjects"):
        if key not in wanted:
            changed.pop(key, None)
    await _create(connection, spec, changed, "update", deadline)


async def _create(
    connection: Connection,
    spec: ConsumerSpec,
    config: Mapping[str, Any],
    action: str,
    deadline: float,
) -> None:
    # The filter is in the subject, so that a server can permit or forbid it (NATS ADR-30).
    tail = f".{spec.filters[0]}" if len(spec.filters) == 1 else ""
    await api(
        connection,
        f"CONSUMER.CREATE.{spec.stream}.{spec.name}{tail}",
        {"stream_name": spec.stream, "config": config, "action": action},
        deadline,
    )


def _differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], spec: ConsumerSpec
) -> dict[str, tuple[Any, Any]]:
    keys = {*wanted, "filter_subject", "filter_subjects", "deliver_subject", "priority_policy"}
    keys -= {"name", "priority_groups", "opt_start_time"}  # "1h ago" is another moment each time
    if isinstance(spec.start, datetime):
        keys.add("opt_start_time")
    pairs = {key: (wanted.get(key), found.get(key)) for key in keys}
    if isinstance(spec.start, datetime) and found.get("opt_start_time"):
        stored = datetime.fromisoformat(found["opt_start_time"])
        if abs((stored - spec.start).total_seconds()) < 0.001:
            del pairs["opt_start_time"]
    return {key: (ours, theirs) for key, (ours, theirs) in pairs.items() if ours != theirs}
