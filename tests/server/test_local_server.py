"""`LocalServer`: ready when it says so, gone when it should be, and never two on one store."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import nats
import pytest
from nats.errors import Error as NatsError
from processes import in_group, is_running
from waiting import eventually, running_tasks

from rosey import AuthenticationError, EventBus, local_event_bus
from rosey.server import (
    LocalServer,
    ServerError,
    ServerNotFoundError,
    ServerStartError,
    StoreLockedError,
    find_binary,
)

STARTS_A_SERVER = """
import asyncio, sys
from rosey.server import LocalServer

async def main():
    server = LocalServer(store_dir=sys.argv[1])
    await server.start()
    print(server.pid, server.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def child_with_a_server(store: Path) -> tuple[subprocess.Popen[str], int, str]:
    """Another program that started a server: the program, the server's pid and URL."""
    child = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_SERVER, str(store)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    pid, url = child.stdout.readline().split()
    return child, int(pid), url


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


async def test_when_start_returns_jetstream_answers(capsys: pytest.CaptureFixture[str]) -> None:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        async with LocalServer() as server:
            took.append(time.perf_counter() - began)
            client = await nats.connect(server.url)
            assert (await client.jetstream().account_info()).streams == 0
            await client.close()
    with capsys.disabled():
        print(f"\n  LocalServer ready after {sorted(took)[2] * 1000:.1f} ms (median of 5)")


async def test_it_listens_on_loopback_only(server: LocalServer) -> None:
    assert server.url == f"nats://127.0.0.1:{server.port}"
    sockets = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {line.split()[1] for line in sockets if line.split()[3] == "0A"}
    port = f"{server.port:04X}"
    assert {address for address in listening if address.endswith(f":{port}")} == {
        f"0100007F:{port}"
    }


async def test_a_killed_server_starts_again_on_the_same_port_and_store(
    server: LocalServer,
) -> None:
    url, pid = server.url, server.pid
    assert pid is not None
    async with EventBus([url]) as bus:
        first = await bus.publish_js("rosey.platform.x", {"n": 1})
        await server.kill()
        assert not is_running(pid)
        assert server.pid is None
        await server.start()
        assert server.url == url
        second = await bus.publish_js("rosey.platform.x", {"n": 2})
    assert (first.seq, second.seq) == (1, 2)


async def test_stopping_removes_the_temporary_store_and_every_process(
    unstarted_server: LocalServer,
) -> None:
    server = unstarted_server
    await server.start()
    pid, store = server.pid, server.store_dir
    assert pid is not None
    assert len(in_group(pid)) == 2  # the server, and what guards it
    await server.stop()
    await eventually(lambda: in_group(pid) == [])
    assert not store.exists()
    await server.stop()


async def test_starting_twice_is_one_server(server: LocalServer) -> None:
    pid = server.pid
    await server.start()
    assert server.pid == pid


async def test_a_given_store_is_private_and_stays(tmp_path: Path) -> None:
    store = tmp_path / "a store, mit Umlaut ü" / "deep"
    async with LocalServer(store_dir=store) as server:
        assert server.store_dir == store
        assert stat.S_IMODE(store.stat().st_mode) == 0o700
        async with EventBus([server.url]) as bus:
            await bus.publish_js("rosey.platform.x", {})
    async with local_event_bus(store) as bus:
        assert (await bus.publish_js("rosey.platform.x", {})).seq == 2


async def test_two_servers_on_one_store_are_refused(tmp_path: Path) -> None:
    async with LocalServer(store_dir=tmp_path) as server:
        with pytest.raises(StoreLockedError, match=str(tmp_path)):
            await LocalServer(store_dir=tmp_path).start()
        await server.kill()
        with pytest.raises(StoreLockedError):
            await LocalServer(store_dir=tmp_path).start()
    async with LocalServer(store_dir=tmp_path):
        pass


async def test_the_store_of_another_program_is_refused_until_its_server_is_gone(
    tmp_path: Path,
) -> None:
    child, pid, _ = child_with_a_server(tmp_path)
    try:
        with pytest.raises(StoreLockedError):
            await LocalServer(store_dir=tmp_path).start()
    finally:
        end(child)
    await eventually(lambda: in_group(pid) == [])
    async with LocalServer(store_dir=tmp_path):
        pass


async def test_it_dies_with_a_program_that_is_killed(tmp_path: Path) -> None:
    child, pid, url = child_with_a_server(tmp_path)
    try:
        client = await nats.connect(url)
        await client.close()
    finally:
        end(child)
    await eventually(lambda: in_group(pid) == [])


async def test_a_fork_of_the_program_does_not_keep_the_store_locked_after_stop(
    tmp_path: Path,
) -> None:
    async with LocalServer(store_dir=tmp_path):
        other = subprocess.Popen(["sleep", "60"])
    try:
        async with LocalServer(store_dir=tmp_path):
            pass
    finally:
        other.kill()
        other.wait()


async def test_ctrl_c_in_the_terminal_does_not_reach_it(server: LocalServer) -> None:
    assert server.pid is not None
    assert os.getpgid(server.pid) != os.getpgid(0)


async def test_a_token_is_required_and_shown_nowhere() -> None:
    for token in ("s3cret", "12345", "1e5", 'a b#c"d\\e', "$NATS", "ü"):
        server = LocalServer(token=token)
        async with server:
            commands = Path(f"/proc/{server.pid}/cmdline").read_text()
            assert token not in commands + repr(server) + server.url
            async with EventBus([server.url], token=token) as bus:
                assert bus.connected
            with pytest.raises(AuthenticationError):
                await EventBus([server.url]).connect()


async def test_a_configuration_it_does_not_take_is_an_error_with_its_words() -> None:
    before = running_tasks()
    server = LocalServer(config="nonsense: 1", token="s3cret")
    with pytest.raises(ServerStartError, match="nonsense") as caught:
        await server.start()
    assert "s3cret" not in str(caught.value)
    assert server.pid is None
    assert running_tasks() <= before


async def test_a_port_in_use_is_an_error_with_its_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServerStartError, match="in use"):
            await LocalServer(port=taken.getsockname()[1]).start()


async def test_one_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("ROSEY_NATS_SERVER", str(program))
    monkeypatch.setattr("rosey.server.local_server.START_TIMEOUT", 0.2)
    with pytest.raises(ServerStartError, match="not ready"):
        await LocalServer().start()


async def test_a_cancelled_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nats-server"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("ROSEY_NATS_SERVER", str(program))
    server = LocalServer(store_dir=tmp_path / "store")
    starting = asyncio.create_task(server.start())
    await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not is_running(int((tmp_path / "pid").read_text()))
    monkeypatch.delenv("ROSEY_NATS_SERVER")
    await server.start()
    await server.stop()


async def test_a_frozen_server_is_ended_all_the_same(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rosey.server.local_server.STOP_TIMEOUT", 0.2)
    pid = server.pid
    assert pid is not None
    server.send_signal(signal.SIGSTOP)
    await server.stop()
    assert not is_running(pid)


async def test_asking_too_early_is_an_error(unstarted_server: LocalServer) -> None:
    for ask in (
        lambda: unstarted_server.url,
        lambda: unstarted_server.store_dir,
        lambda: unstarted_server.send_signal(signal.SIGTERM),
    ):
        with pytest.raises(ServerError):
            ask()
    assert repr(unstarted_server) == "LocalServer(not started)"
    await unstarted_server.kill()
    await unstarted_server.stop()


async def test_without_jetstream_there_is_none() -> None:
    async with LocalServer(jetstream=False) as server:
        client = await nats.connect(server.url)
        with pytest.raises(NatsError):
            await client.jetstream().account_info()
        await client.close()


def test_it_can_be_used_from_one_loop_after_another(unstarted_server: LocalServer) -> None:
    asyncio.run(unstarted_server.start())
    asyncio.run(unstarted_server.stop())


async def test_a_bus_of_its_own_is_three_lines() -> None:
    async with local_event_bus(name="tiny") as bus:
        assert bus.name == "tiny"
        assert (await bus.publish_js("rosey.platform.x", {})).seq == 1


def test_the_named_program_is_used_and_a_wrong_name_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_binary()
    monkeypatch.setenv("ROSEY_NATS_SERVER", str(found))
    assert find_binary() == found
    monkeypatch.setenv("ROSEY_NATS_SERVER", str(tmp_path / "none"))
    with pytest.raises(ServerNotFoundError, match="ROSEY_NATS_SERVER"):
        find_binary()


def test_without_the_package_the_path_counts_and_else_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nats-server"
    program.touch(mode=0o755)
    monkeypatch.delenv("ROSEY_NATS_SERVER", raising=False)
    monkeypatch.setattr("rosey.server.binary._PACKAGE", "no-such-package")
    monkeypatch.setattr(
        "rosey.server.binary.sysconfig.get_paths", lambda *_: {"scripts": str(tmp_path / "none")}
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == program
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerNotFoundError, match=r"rosey\[server\]"):
        find_binary()


def test_the_guard_for_systems_without_a_shell_ends_its_program(tmp_path: Path) -> None:
    from rosey.server import guard

    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(json.dumps(os.getpid()));"
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, sys.executable, "-c",
         f"import json; {code} time.sleep(60)"],
        stdin=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert child.stdin is not None
    child.stdin.close()
    child.wait(timeout=10)
    assert not is_running(json.loads((tmp_path / "pid").read_text()))
