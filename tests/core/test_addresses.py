"""Server URLs: read right, and never shown with their secrets."""

from __future__ import annotations

import pytest

from rosey.core.addresses import ServerAddress, parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost", ServerAddress("nats://localhost:4222")),
        ("localhost:4333", ServerAddress("nats://localhost:4333")),
        ("tls://h", ServerAddress("tls://h:4222")),
        ("nats://[::1]:1", ServerAddress("nats://[::1]:1")),
        ("wss://h/nats/", ServerAddress("wss://h/nats")),
        ("nats://t%40ken@h", ServerAddress("nats://h:4222", token="t@ken")),
        ("nats://u:p%3Aw@h", ServerAddress("nats://h:4222", user="u", password="p:w")),
        ("u:p@ss@h:1", ServerAddress("nats://h:1", user="u", password="p@ss")),
    ],
)
def test_reading(url: str, expected: ServerAddress) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize("url", ["", "http://u:s3cret@h", "nats://u:s3cret@", "nats://s3cret@h:x"])
def test_a_bad_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="server URL") as caught:
        parse(url)
    assert "s3cret" not in str(caught.value)


def test_a_repr_shows_no_secret() -> None:
    assert "s3cret" not in repr(parse("nats://s3cret:s3cret@h"))
    assert "s3cret" not in repr(parse("nats://s3cret@h"))


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("localhost", True),
        ("nats://127.0.0.9", True),
        ("nats://[::1]", True),
        ("nats://example.org", False),
    ],
)
def test_loopback_is_recognised(url: str, local: bool) -> None:
    assert parse(url).is_local is local
