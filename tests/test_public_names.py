"""The names that the specification promises, where it promises them."""

from __future__ import annotations

import pytest

import rosey
from rosey.core import event_bus

SPECIFIED = [
    "CommandEvent",
    "Event",
    "EventBus",
    "EventBusError",
    "EventPriority",
    "NotConnectedError",
    "PlatformEvent",
    "PublishError",
    "SubscriptionError",
    "event_bus_context",
    "get_event_bus",
    "initialize_event_bus",
    "shutdown_event_bus",
]


@pytest.mark.parametrize("name", SPECIFIED)
def test_a_specified_name_is_importable_from_both_places(name: str) -> None:
    assert getattr(rosey, name) is getattr(event_bus, name)
    assert name in event_bus.__all__


def test_all_names_what_there_is() -> None:
    assert [name for name in rosey.__all__ if not hasattr(rosey, name)] == []
    assert sorted(rosey.__all__) == sorted(set(rosey.__all__))
