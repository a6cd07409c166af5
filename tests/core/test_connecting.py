"""connect(): it connects, or says within its time which server failed, why, and what to do."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trustme
from waiting import eventually, running_tasks

from rosey import (
    AuthenticationError,
    ConnectError,
    EventBus,
    InvalidOptionError,
    NotConnectedError,
    State,
    TLSError,
)
from rosey.server import LocalServer


@pytest.fixture(autouse=True)
async def nothing_left_running() -> AsyncIterator[None]:
    before = running_tasks()
    yield
    await eventually(lambda: running_tasks() <= before, "tasks end")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls_config(authority: trustme.CA, folder: Path) -> str:
    issued = authority.issue_cert("127.0.0.1", "localhost")
    certificate, key = folder / "server.pem", folder / "server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def fake_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Something that listens, and is not a nats-server."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()


def unused_url() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"nats://127.0.0.1:{probe.getsockname()[1]}"


async def test_a_server_that_is_down_is_named_with_what_to_do() -> None:
    url = unused_url()
    bus = EventBus([url], connect_timeout=0.3)
    with pytest.raises(ConnectError, match="rosey server") as caught:
        await bus.connect()
    assert url in str(caught.value)
    assert caught.value.__cause__ is not None
    assert bus.state is State.CLOSED
    with pytest.raises(NotConnectedError):
        await bus.publish("a", {})


async def test_a_server_that_starts_a_moment_later_is_found(server: LocalServer) -> None:
    await server.stop()
    bus = EventBus([server.url])
    connecting = asyncio.create_task(bus.connect())
    await eventually(lambda: bus.state is State.CONNECTING)
    await server.start()
    await connecting
    assert bus.connected
    await bus.disconnect()


async def test_the_first_refusal_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectError):
        await EventBus([unused_url()], connect_timeout=0.3).connect()
    assert [r for r in caplog.records if "trying again" in r.message]


async def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with fake_server(say_nothing) as url:
        started = time.monotonic()
        with pytest.raises(ConnectError, match="did not answer"):
            await EventBus([url], connect_timeout=0.5).connect()
        assert time.monotonic() - started < 5


async def test_something_that_is_no_nats_server_is_named() -> None:
    async def speak_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with fake_server(speak_http) as url:
        with pytest.raises(ConnectError, match=url):
            await EventBus([url], connect_timeout=0.3).connect()


async def test_a_server_that_greets_and_hangs_up_is_an_error_in_time() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload":1048576,"headers":true}\r\n')
        await reader.readline()
        writer.write(b"PONG\r\n")
        await writer.drain()

    async with fake_server(hang_up) as url:
        started = time.monotonic()
        with pytest.raises(ConnectError, match="closed it"):
            await EventBus([url], connect_timeout=0.5).connect()
        assert time.monotonic() - started < 10


async def test_of_several_servers_each_is_named_with_its_cause() -> None:
    urls = [unused_url(), unused_url()]
    with pytest.raises(ConnectError) as caught:
        await EventBus(urls, connect_timeout=0.3).connect()
    assert all(url in str(caught.value) for url in urls)


async def test_one_live_server_in_the_list_is_enough(server: LocalServer) -> None:
    async with EventBus([unused_url(), server.url, unused_url()]) as bus:
        assert (await bus.health()).server == server.url


@pytest.mark.parametrize("given", ["wrong", None])
async def test_a_wrong_or_missing_token_is_an_error_at_once(given: str | None) -> None:
    async with LocalServer(token="s3cret") as server:
        started = time.monotonic()
        with pytest.raises(AuthenticationError, match="token") as caught:
            await EventBus([server.url], token=given, connect_timeout=30).connect()
        assert time.monotonic() - started < 15
        assert "wrong" not in str(caught.value)


async def test_the_right_token_works_as_argument_and_in_the_url() -> None:
    async with LocalServer(token="s3cret") as server:
        with_token = server.url.replace("nats://", "nats://s3cret@")
        async with EventBus([server.url], token="s3cret") as first, EventBus([with_token]) as other:
            assert first.connected
            assert other.connected


async def test_user_and_password_work_as_arguments_and_percent_encoded_in_the_url() -> None:
    config = 'authorization { user: bot, password: "p:w" }'
    async with LocalServer(config=config) as server:
        with_user = server.url.replace("nats://", "nats://bot:p%3Aw@")
        async with (
            EventBus([server.url], user="bot", password="p:w") as first,
            EventBus([with_user]) as other,
        ):
            assert first.connected
            assert other.connected


async def test_an_untrusted_certificate_is_an_error_at_once(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with LocalServer(config=tls_config(authority, tmp_path)) as server:
        for tls in (trusting(trustme.CA()), None):
            started = time.monotonic()
            with pytest.raises(TLSError, match="certificate"):
                await EventBus([server.url], tls=tls, connect_timeout=30).connect()
            assert time.monotonic() - started < 15


async def test_a_trusted_certificate_works(authority: trustme.CA, tmp_path: Path) -> None:
    async with (
        LocalServer(config=tls_config(authority, tmp_path)) as server,
        EventBus([server.url], tls=trusting(authority)) as bus,
    ):
        assert (await bus.health()).ok


@pytest.mark.parametrize("token", ["s3cret", None])
async def test_nothing_is_sent_to_a_server_without_tls_where_tls_was_asked_for(
    authority: trustme.CA, token: str | None
) -> None:
    heard = b""

    async def plain_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        writer.write(b'INFO {"max_payload":1048576,"headers":true}\r\n')
        heard += await reader.readline()
        writer.write(b"PONG\r\n")
        await reader.read()

    async with fake_server(plain_server) as url:
        bus = EventBus([url], token=token, tls=trusting(authority), connect_timeout=1)
        with pytest.raises(TLSError, match="no TLS"):
            await bus.connect()
    assert b"s3cret" not in heard


async def test_a_user_that_may_not_have_an_inbox_is_told_so() -> None:
    config = """authorization { users: [ { user: bot, password: pw, permissions: {
        publish: ">", subscribe: ["rosey.>", "_INBOX_bot.>"] } } ] }"""
    async with LocalServer(config=config) as server:
        with pytest.raises(AuthenticationError, match="inbox_prefix"):
            await EventBus([server.url], user="bot", password="pw").connect()
        bus = EventBus([server.url], user="bot", password="pw", inbox_prefix="_INBOX_bot")
        async with bus:
            assert (await bus.health()).ok


async def test_a_cancelled_connect_leaves_nothing_running_and_can_be_repeated(
    server: LocalServer,
) -> None:
    await server.stop()
    bus = EventBus([server.url])
    connecting = asyncio.create_task(bus.connect())
    await eventually(lambda: bus.state is State.CONNECTING)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert bus.state is State.CLOSED
    await server.start()
    await bus.connect()
    await bus.disconnect()


async def test_connecting_twice_warns_and_changes_nothing(
    bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    client = bus.nc
    await bus.connect()
    assert bus.nc is client
    assert "already connected" in caplog.text


async def test_connecting_from_two_tasks_makes_one_connection(url: str) -> None:
    bus = EventBus([url])
    await asyncio.gather(bus.connect(), bus.connect())
    assert bus.connected
    await bus.disconnect()


@pytest.mark.parametrize(
    "options",
    [
        {"servers": ["http://x"]},
        {"servers": [None]},
        {"connect_timeout": 0},
        {"inbox_prefix": "answers"},
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidOptionError):
        EventBus(**options)  # type: ignore[arg-type]


async def test_no_secret_reaches_a_log_line_a_repr_or_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    async with LocalServer(config="authorization { user: bot, password: s3cret }") as server:
        url = server.url.replace("nats://", "nats://bot:s3cret@")
        async with EventBus([url]) as bus:
            shown += [repr(bus), repr(await bus.health()), str(bus.servers), repr(vars(bus))]
            await server.kill()
            await eventually(lambda: bus.state is State.RECONNECTING)
            with pytest.raises(NotConnectedError) as outage:
                await bus.publish("a", {}, timeout=0.05)
        wrong = server.url.replace("nats://", "nats://bot:s3cret-wrong@")
        await server.start()
        with pytest.raises(AuthenticationError) as refused:
            await EventBus([wrong]).connect()
    for error in (outage.value, refused.value, refused.value.__cause__):
        shown += [str(error), repr(error)]
    assert "s3cret" not in caplog.text + "".join(shown)
