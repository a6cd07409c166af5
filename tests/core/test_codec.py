"""What travels as JSON and what is refused, with the path of the culprit."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest

from rosey import EventEncodeError
from rosey.core import codec


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: float


class Struct(msgspec.Struct):
    x: float


class PydanticLike:
    def model_dump(self, mode: str) -> dict[str, str]:
        return {"mode": mode}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(seconds=90), "PT90S"),
        (b"\xff\x00", "/wA="),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        ({1}, [1]),
        ((1, 2), [1, 2]),
        (Point(1), {"x": 1}),
        (Struct(1), {"x": 1}),
        (PydanticLike(), {"mode": "json"}),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (OrderedDict(a=1), {"a": 1}),
        ({1: "a"}, {"1": "a"}),
        (2**70, 2**70),
        (None, None),
        ("null", "null"),
        ("\x00é🎲", "\x00é🎲"),
    ],
)
def test_it_travels(value: Any, written: Any) -> None:
    assert json.loads(codec.encode({"a": value})) == {"a": written}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": math.nan}, "$.a"),
        ({"a": [1, {"b c": -math.inf}]}, "$.a[1].b c"),
        ({"a": Point(math.inf)}, "$.a.x"),
        ({"a": Struct(math.nan)}, "$.a.x"),
        ({"a": {1.5: math.nan}}, "$.a[1.5]"),
        ({"a": object()}, "$.a"),
        ({"a": [0, {"b": complex(1)}]}, "$.a[1].b"),
        ({"a": Point(object())}, "$.a.x"),  # type: ignore[arg-type]
        ({"a": PydanticLike}, "$.a"),
        ({"a": iter([1])}, "$.a"),
        ({"a": {(1, 2): 3}}, "$.a"),
        ({"a": "\ud800"}, "$.a"),
        ({"a": {"\ud800": 1}}, "$.a"),
        ({"a": 10**5000}, "$.a"),
    ],
)
def test_it_is_refused_by_name(value: Any, path: str) -> None:
    with pytest.raises(EventEncodeError) as caught:
        codec.encode(value)
    assert caught.value.path == path
    assert path in str(caught.value).encode("utf-8", "replace").decode()


def test_what_is_nested_too_deeply_is_refused() -> None:
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(EventEncodeError, match="nested"):
        codec.encode(nested)


def test_a_failing_model_dump_is_refused_by_name() -> None:
    class Broken:
        def model_dump(self, mode: str) -> dict[str, Any]:
            raise ValueError("no")

    with pytest.raises(EventEncodeError) as caught:
        codec.encode({"a": [Broken()]})
    assert caught.value.path == "$.a[0]"
