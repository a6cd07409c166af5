"""Events: the specification's JSON, and a round trip that keeps class and values."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosey import (
    CommandEvent,
    Event,
    EventDecodeError,
    EventEncodeError,
    EventPriority,
    PlatformEvent,
    PublishError,
)
from rosey.core.events import new_event

texts = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=15,
)
objects = st.dictionaries(texts, json_values, max_size=4)
common = {
    "subject": texts,
    "event_type": texts,
    "source": texts,
    "data": objects,
    "correlation_id": texts,
    "priority": st.sampled_from(EventPriority),
    "metadata": objects,
}


def an_event(**values: Any) -> Event:
    return Event(**{"subject": "a.b", "event_type": "b", "source": "test", "data": {}} | values)


@given(
    st.builds(Event, **common)
    | st.builds(PlatformEvent, **common, platform=texts)
    | st.builds(CommandEvent, **common, command=texts, args=st.lists(json_values), kwargs=objects)
)
def test_a_round_trip_keeps_class_and_values(event: Event) -> None:
    assert type(event).from_json(event.to_json()) == event


@given(st.builds(CommandEvent, **common, command=texts))
def test_a_plain_reader_accepts_a_subclass(event: CommandEvent) -> None:
    read = Event.from_json(event.to_json())
    assert type(read) is Event
    assert read.data == event.data


@given(st.binary())
def test_any_bytes_are_an_event_or_a_decode_error(payload: bytes) -> None:
    with contextlib.suppress(EventDecodeError):
        Event.from_json(payload)


def test_the_json_has_the_specifications_keys() -> None:
    event = an_event(data={"x": 1}, priority=EventPriority.HIGH)
    assert json.loads(event.to_json()) == {
        "subject": "a.b",
        "event_type": "b",
        "source": "test",
        "data": {"x": 1},
        "timestamp": event.timestamp,
        "correlation_id": event.correlation_id,
        "priority": "high",
        "metadata": {},
    }


def test_timestamps_are_aware_and_now() -> None:
    written = datetime.fromisoformat(an_event().timestamp)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)


def test_ids_differ() -> None:
    assert an_event().correlation_id != an_event().correlation_id


def test_a_subclass_fills_in_metadata_and_leaves_the_callers_dict_alone() -> None:
    given_metadata: dict[str, Any] = {"room": "lobby"}
    platform = PlatformEvent("a", "b", "c", {}, metadata=given_metadata, platform="cytube")
    command = CommandEvent("a", "b", "c", {}, command="roll", args=["2d6"])
    assert platform.metadata == {"room": "lobby", "platform": "cytube"}
    assert command.metadata == {"command": "roll"}
    assert given_metadata == {"room": "lobby"}


def test_field_and_metadata_of_a_subclass_never_disagree() -> None:
    taken = PlatformEvent("a", "b", "c", {}, metadata={"platform": "irc"})
    overruled = PlatformEvent("a", "b", "c", {}, metadata={"platform": "irc"}, platform="cytube")
    assert (taken.platform, taken.metadata["platform"]) == ("irc", "irc")
    assert (overruled.platform, overruled.metadata["platform"]) == ("cytube", "cytube")


def test_unknown_keys_are_ignored_and_missing_or_null_optional_ones_defaulted() -> None:
    event = Event.from_json(
        b'{"subject":"a","event_type":"t","source":"s","data":{},"new":1,"correlation_id":null}'
    )
    assert event.priority is EventPriority.NORMAL
    assert event.metadata == {}
    assert event.correlation_id


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        (b"", "truncated"),
        (b"hello", "malformed"),
        (b"[1]", "array"),
        (b'{"subject":"a"}', "event_type"),
        (b'{"subject":"a","event_type":"t","source":"s","data":[]}', "$.data"),
        (b'{"subject":"a","event_type":"t","source":"s","data":null}', "$.data"),
        (b'{"subject":1,"event_type":"t","source":"s","data":{}}', "$.subject"),
        (
            b'{"subject":"a","event_type":"t","source":"s","data":{},"priority":"soon"}',
            "$.priority",
        ),
        (b'{"subject":"a","event_type":"t","source":"s","data":{"x":NaN}}', "malformed"),
        (b'{"subject":"a","event_type":"t","source":"s","data":{"x":"\xff"}}', "utf-8"),
        (
            b'{"subject":"a","event_type":"t","source":"s","data":{"x":"\\ud800"}}',
            "not an event",
        ),
        (
            b'{"subject":"a","event_type":"t","source":"s","data":{"x":' + b"9" * 5000 + b"}}",
            "range",
        ),
        (
            b'{"subject":"a","event_type":"t","source":"s","data":{"x":' + b"[" * 100_000,
            "recursion",
        ),
    ],
)
def test_what_is_not_an_event_is_an_error_that_says_where(payload: bytes, where: str) -> None:
    with pytest.raises(EventDecodeError, match=f"(?s){where}".replace("$", r"\$")):
        Event.from_json(payload)


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"data": [1]}, "$.data"),
        ({"data": None}, "$.data"),
        ({"metadata": "x"}, "$.metadata"),
        ({"subject": 1}, "$.subject"),
        ({"source": None}, "$.source"),
        ({"timestamp": datetime.now(UTC)}, "$.timestamp"),
        ({"correlation_id": 7}, "$.correlation_id"),
        ({"priority": "high"}, "$.priority"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_when_written(
    changed: dict[str, Any], path: str
) -> None:
    with pytest.raises(EventEncodeError) as caught:
        an_event(**changed).to_json()
    assert caught.value.path == path
    assert isinstance(caught.value, PublishError)


def test_a_dict_subclass_is_fine_as_data() -> None:
    class Settings(dict[str, int]):
        pass

    assert Event.from_json(an_event(data=Settings(a=1)).to_json()).data == {"a": 1}


def test_a_repr_shows_no_data() -> None:
    event = an_event(data={"password": "s3cret"})
    assert "s3cret" not in repr(event)
    assert repr(CommandEvent("a", "b", "c", {})).startswith("CommandEvent(subject=a, type=b")


def test_an_event_made_here_was_not_delivered() -> None:
    assert an_event().delivery is None


def test_new_event_leaves_out_what_is_none() -> None:
    event = new_event("a", "b", "c", {}, {"correlation_id": None, "priority": "low"})
    assert event.correlation_id
    assert event.priority is EventPriority.LOW


def test_new_event_refuses_an_unknown_priority_or_field() -> None:
    with pytest.raises(EventEncodeError, match="soon"):
        new_event("a", "b", "c", {}, {"priority": "soon"})
    with pytest.raises(TypeError, match="colour"):
        new_event("a", "b", "c", {}, {"colour": "red"})  # type: ignore[typeddict-unknown-key]
