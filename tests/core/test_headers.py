"""Headers: what a caller may set, and how many bytes they cost."""

from __future__ import annotations

from typing import Any

import pytest

from rosey import InvalidHeaderError
from rosey.core import headers


def test_ordinary_headers_pass() -> None:
    assert headers.validate({"X-Room": "lobby", "traceparent": ""}) == {
        "X-Room": "lobby",
        "traceparent": "",
    }


@pytest.mark.parametrize(
    "bad",
    [
        {"": "x"},
        {"a b": "x"},
        {"a:": "x"},
        {"caf\u00e9": "x"},
        {1: "x"},
        {"Nats-Msg-Id": "x"},
        {"nats-expected-stream": "x"},
        {"Status": "503"},
        {"a": "x\r\nb: y"},
        {"a": " x"},
        {"a": 1},
    ],
)
def test_bad_headers_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidHeaderError):
        headers.validate(bad)


def test_size_is_what_the_wire_carries() -> None:
    wire = "NATS/1.0\r\nX-Room: caf\u00e9\r\n\r\n"
    assert headers.size({"X-Room": "caf\u00e9"}) == len(wire.encode())
    assert headers.size(None) == headers.size({}) == 0


def test_one_line_is_printable_and_short() -> None:
    assert headers.one_line(" a\nb\x00c ") == "a b c"
    assert len(headers.one_line("x" * 1000)) == 500
