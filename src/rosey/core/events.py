"""What travels on the bus: `Event` and its kinds, as the specification's JSON, key for key."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Self, TypedDict

from rosey.core import codec
from rosey.core.acks import Origin
from rosey.core.errors import EventEncodeError, NotOnceError
from rosey.core.subjects import validate_subject


class EventFields(TypedDict, total=False):
    """Fields of an event that publishing fills in where they are not given, or None."""

    timestamp: str | None
    correlation_id: str | None
    priority: EventPriority | str | None
    metadata: dict[str, Any] | None


class EventPriority(Enum):
    """How urgent the sender thinks an event is; the bus itself treats all alike."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"


@dataclass(slots=True)
class Delivery:
    """How an event reached this process; never on the wire."""

    subject: str
    """The subject it arrived on."""
    pattern: str
    """The subscription's subject or pattern that matched."""
    reply: str
    """Where an answer goes, empty if nobody waits for one."""
    headers: dict[str, str]
    """The message's NATS headers."""
    size: int
    """Bytes of the payload."""
    origin: Origin | None = None
    """Where a stored event comes from, and how often it came; None for one heard live."""
    outbox: list[Event] | None = None
    """What `Event.publish` collects for a consumer with `once=True`."""


class _Delivered:
    """Holds `delivery` outside the dataclass fields, so that it is neither compared nor sent."""

    __slots__ = ("_delivery",)
    _delivery: Delivery

    @property
    def delivery(self) -> Delivery | None:
        """How the event arrived; None for one that was made here."""
        try:
            return self._delivery
        except AttributeError:
            return None


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _new_id() -> str:
    return str(uuid.uuid4())


@dataclass(slots=True, repr=False)
class Event(_Delivered):
    """One thing that happened, or one thing that is asked for.

    `event_type` is free text (publishing defaults it to the subject's last token), `timestamp`
    ISO 8601 in UTC, `correlation_id` a random UUID shared by a request and its answer.
    """

    subject: str
    event_type: str
    source: str
    data: dict[str, Any]
    timestamp: str = field(default_factory=_now)
    correlation_id: str = field(default_factory=_new_id)
    priority: EventPriority = EventPriority.NORMAL
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The event as JSON in UTF-8.

        Raises `EventEncodeError` naming the field that has no JSON form or the wrong type.
        """
        if (
            type(self.data) is not dict
            or type(self.metadata) is not dict
            or type(self.subject) is not str
            or type(self.event_type) is not str
            or type(self.source) is not str
            or type(self.timestamp) is not str
            or type(self.correlation_id) is not str
            or type(self.priority) is not EventPriority
        ):
            _check_types(self)
        return codec.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read an event; the bytes of a subclass are accepted too, their extra keys ignored.

        Raises `EventDecodeError`.
        """
        return codec.decode(data, cls)

    def publish(
        self, subject: str, data: dict[str, Any] | None = None, source: str = "core"
    ) -> Event:
        """Publish because of this event, once, however often this event is delivered.

        For handlers of a consumer with `once=True`: what they publish so is stored together with
        a mark of this event when they return, and not at all if they raise. Returns the new
        event; it shares this one's correlation_id. Raises `NotOnceError` elsewhere, and
        `InvalidSubjectError`.
        """
        if self.delivery is None or self.delivery.outbox is None:
            raise NotOnceError(
                "event.publish() is for handlers of bus.consume(..., once=True): use bus.publish()"
            )
        event = Event(validate_subject(subject), subject.rpartition(".")[2], source, data or {})
        event.correlation_id = self.correlation_id
        self.delivery.outbox.append(event)
        return event

    def __repr__(self) -> str:
        # No data: a repr ends up in logs, and data may be private or large.
        return (
            f"{type(self).__name__}(subject={self.subject}, type={self.event_type}, "
            f"source={self.source}, id={self.correlation_id[:8]}...)"
        )


@dataclass(slots=True, repr=False)
class PlatformEvent(Event):
    """An event of one chat platform; `metadata["platform"]` always says the same as `platform`."""

    platform: str = "unknown"

    def __post_init__(self) -> None:
        self.platform = _shared_with_metadata(self, "platform", self.platform, "unknown")


@dataclass(slots=True, repr=False)
class CommandEvent(Event):
    """A command to run; `metadata["command"]` always says the same as `command`."""

    command: str = ""
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.command = _shared_with_metadata(self, "command", self.command, "")


def new_event(
    subject: str, event_type: str, source: str, data: dict[str, Any], fields: EventFields
) -> Event:
    """Make an event; of `fields` those that are None are left out.

    Raises `EventEncodeError` for a priority that does not exist.
    """
    event = Event(subject, event_type, source, data)
    for name, value in fields.items():
        if value is None:
            continue
        if name == "priority":
            try:
                value = EventPriority(value)
            except ValueError as error:
                raise EventEncodeError(str(error), path="$.priority") from None
        elif name not in EventFields.__optional_keys__:
            raise TypeError(f"an event has no field {name!r}")
        setattr(event, name, value)
    return event


def mark_delivered(event: Event, delivery: Delivery) -> None:
    """Say where `event` came from; what its own bytes claimed as subject is overruled."""
    event.subject = delivery.subject
    event._delivery = delivery  # type: ignore[misc]  # a slot of the base class


def _shared_with_metadata(event: Event, key: str, value: str, default: str) -> str:
    in_metadata = event.metadata.get(key)
    if value == default and isinstance(in_metadata, str):
        return in_metadata
    if in_metadata != value:
        event.metadata = {**event.metadata, key: value}  # the caller's dict is left as it was
    return value


def _check_types(event: Event) -> None:
    wanted = dict.fromkeys(("subject", "event_type", "source", "timestamp", "correlation_id"), str)
    for name, kind in {**wanted, "data": dict, "metadata": dict, "priority": EventPriority}.items():
        value = getattr(event, name)
        if isinstance(value, kind):
            continue
        hint = ': put it in a dict, as in {"items": [...]}' if name == "data" else ""
        raise EventEncodeError(
            f"$.{name} is a {type(value).__name__}, not a {kind.__name__}{hint}",
            path=f"$.{name}",
        )
