"""Streams: created as specified, drift reported, every refusal an error with a remedy."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from nats.aio.client import Client

from rosey import DEFAULT_STREAMS, EventBus, State, StreamError, StreamSpec
from rosey.core import jetstream, streams
from rosey.server import LocalServer


async def test_the_specifications_streams_are_created(server: LocalServer) -> None:
    async with EventBus([server.url]) as bus:
        assert bus.js is not None
        found = {
            info.config.name: (info.config.subjects, info.config.max_age, info.config.max_bytes)
            for info in await bus.js.streams_info()
        }
        assert bus.stream_drift == ()
    day, mib = 24 * 60 * 60, 1024 * 1024
    assert found == {
        "PLATFORM_EVENTS": (["rosey.platform.>"], 7 * day, 1024 * mib),
        "COMMANDS": (["rosey.commands.>"], day, 100 * mib),
        "PLUGINS": (["rosey.plugins.>"], day, 100 * mib),
    }


async def test_connecting_again_finds_them_as_they_are(bus: EventBus, url: str) -> None:
    async with EventBus([url]) as again:
        assert again.stream_drift == ()


async def test_many_at_once_do_not_disturb_each_other(server: LocalServer) -> None:
    buses = [EventBus([server.url]) for _ in range(8)]
    await asyncio.gather(*(bus.connect() for bus in buses))
    assert all(bus.stream_drift == () for bus in buses)
    await asyncio.gather(*(bus.disconnect() for bus in buses))


async def test_one_that_differs_is_left_alone_and_reported(
    server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    old = StreamSpec("EVENTS", ("events.>",), max_age=timedelta(hours=1))
    new = StreamSpec("EVENTS", ("events.>", "more.>"), max_age=timedelta(hours=1))
    async with EventBus([server.url], streams=[old]):
        pass
    async with EventBus([server.url], streams=[new]) as bus:
        [drift] = bus.stream_drift
        assert drift.name == "EVENTS"
        assert drift.differences == {"subjects": (["events.>", "more.>"], ["events.>"])}
        assert bus.js is not None
        assert (await bus.js.stream_info("EVENTS")).config.subjects == ["events.>"]
    assert "stream EVENTS differs" in caplog.text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (StreamSpec("OTHER", ("rosey.platform.x",)), "another stream stores"),
        (StreamSpec("HUGE", ("huge.>",), max_bytes=2**60), "max_bytes"),
    ],
)
async def test_a_refusal_is_raised_with_the_remedy_and_leaves_nothing_connected(
    server: LocalServer, spec: StreamSpec, said: str
) -> None:
    bus = EventBus([server.url], streams=[*DEFAULT_STREAMS, spec])
    with pytest.raises(StreamError, match=said) as caught:
        await bus.connect()
    assert caught.value.code
    assert bus.state is State.CLOSED
    assert bus.nc is None


async def test_a_server_without_jetstream_is_named_with_the_remedy() -> None:
    async with LocalServer(jetstream=False) as server:
        with pytest.raises(StreamError, match=r"-js.*streams=\(\)"):
            await EventBus([server.url]).connect()
        async with EventBus([server.url], streams=()) as bus:
            assert (await bus.health()).ok


async def test_a_user_without_permission_is_told_what_to_do() -> None:
    config = """authorization { users: [ { user: bot, password: pw, permissions: {
        publish: ["rosey.>", "_INBOX.>"], subscribe: ">" } } ] }"""
    async with LocalServer(config=config) as server:
        with pytest.raises(StreamError, match=r"may not .*streams=\(\)"):
            await EventBus([server.url], user="bot", password="pw").connect()


async def test_a_stream_created_differently_in_between_is_drift(
    server: LocalServer, raw: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = jetstream.api
    spec = StreamSpec("RACE", ("race.>",))

    async def somebody_is_faster(connection, path, body, deadline):  # type: ignore[no-untyped-def]
        if path.startswith("STREAM.CREATE"):
            await asked(connection, path, {"name": "RACE", "subjects": ["race.x"]}, deadline)
        return await asked(connection, path, body, deadline)

    monkeypatch.setattr(streams, "api", somebody_is_faster)
    async with EventBus([server.url], streams=[spec]) as bus:
        assert [drift.name for drift in bus.stream_drift] == ["RACE"]
