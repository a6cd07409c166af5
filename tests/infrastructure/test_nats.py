"""What an operator runs: the scripts start and stop a real server with the configuration."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import is_running

from rosey import AuthenticationError, EventBus
from rosey.server import LocalServer, StoreLockedError, find_binary

SOURCE = Path(__file__).parents[2] / "infrastructure" / "nats"
TOKEN = "0123456789012345"  # all digits: nats-server would read it as a number


def free_ports(count: int) -> list[int]:
    """Ports below those that the system hands out, so that nothing takes one before the server."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 30_000), 200):
        with socket.socket() as probe:
            if len(found) < count and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Installation:
    """A copy of the directory, as an operator would make, with ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.monitor, self.websocket = free_ports(3)
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("data", "logs", ".env.nats"))
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("NATS_")
        } | {"ROSEY_NATS_SERVER": str(find_binary())}
        self.configure(NATS_TOKEN=TOKEN)

    def configure(self, **settings: object) -> None:
        lines = {
            "NATS_PORT": self.port,
            "NATS_MONITOR_PORT": self.monitor,
            "NATS_WEBSOCKET_PORT": self.websocket,
        } | settings
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        (self.folder / ".env.nats").write_text(f"# settings\n\n{text}")

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / command[0]), *command[1:]]
            if command[0].endswith(".sh")
            else [sys.executable, str(self.folder / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
            env=self.environment | environment,
            start_new_session=True,
        )

    def start(self, **environment: str) -> None:
        started = self.run("start-nats.sh", **environment)
        assert started.returncode == 0, started.stderr
        assert TOKEN not in started.stdout + started.stderr

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "nats-server.log"

    @property
    def pid(self) -> int:
        return int((self.folder / "data" / "nats-server.pid").read_text())

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def ask(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/{path}") as answer:
            parsed: dict[str, Any] = json.load(answer)
            return parsed


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path / 'a place "with" spaces')
    yield installation
    (installation.folder / ".env.nats").unlink()
    ended = installation.run("stop-nats.sh")
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def running(stopped: Installation) -> Installation:
    stopped.start()
    return stopped


async def test_the_bus_connects_with_the_token_and_not_without(running: Installation) -> None:
    async with EventBus([running.url], token=TOKEN) as bus:
        assert (await bus.publish_js("rosey.platform.x", {})).seq == 1
        text = "x" * 7_000_000
        await bus.publish("a", {"text": text})
    with pytest.raises(AuthenticationError):
        await EventBus([running.url]).connect()


def test_every_limit_is_as_written(running: Installation) -> None:
    found = running.ask("varz")
    mib, gib = 2**20, 2**30
    assert found["server_name"] == "rosey-nats"
    assert (found["host"], found["port"]) == ("127.0.0.1", running.port)
    assert found["auth_required"] is True
    assert (found["max_connections"], found["max_payload"]) == (100, 8 * mib)
    assert (found["max_pending"], found["ping_interval"]) == (64 * mib, 120 * 10**9)
    assert found["websocket"] == {"host": "127.0.0.1", "port": running.websocket, "no_tls": True}
    jetstream = found["jetstream"]["config"]
    assert (jetstream["max_memory"], jetstream["max_storage"]) == (gib, 10 * gib)
    assert jetstream["sync_always"] is True
    assert running.ask("healthz") == {"status": "ok"}
    for made in ("data", "logs", "data/jetstream", "logs/nats-server.log"):
        assert (running.folder / made).stat().st_mode & 0o77 == 0


def test_starting_twice_is_refused_and_stopping_twice_is_not(running: Installation) -> None:
    pid = running.pid
    again = running.run("start-nats.sh")
    assert again.returncode == 1
    assert f"already runs, as process {pid}" in again.stderr
    assert running.pid == pid
    assert "stopped" in running.run("stop-nats.sh").stdout
    assert not is_running(pid)
    assert "does not run" in running.run("stop-nats.sh").stdout
    assert running.run("start-nats.sh").returncode == 0


def test_a_start_names_the_addresses(stopped: Installation) -> None:
    started = stopped.run("start-nats.sh", NATS_HOST="127.0.0.2")
    assert len(started.stdout.splitlines()) == 1
    assert f"nats://127.0.0.2:{stopped.port}" in started.stdout
    assert f"http://127.0.0.1:{stopped.monitor}" in started.stdout
    found = stopped.ask("varz")  # which has not moved with the server
    assert (found["host"], found["websocket"]["host"]) == ("127.0.0.2", "127.0.0.1")


def test_of_two_starts_at_once_one_becomes_the_server(stopped: Installation) -> None:
    with ThreadPoolExecutor() as pool:
        starts = list(pool.map(lambda _: stopped.run("start-nats.sh"), range(4)))
    assert sorted(start.returncode for start in starts) == [0, 1, 1, 1]
    assert is_running(stopped.pid)
    assert stopped.ask("healthz") == {"status": "ok"}


async def test_a_store_has_one_server_whoever_starts_it(
    running: Installation, tmp_path: Path
) -> None:
    data = running.folder / "data"
    link = tmp_path / "link"
    link.symlink_to(data)
    other = Installation(tmp_path / "other")
    refused = other.run("start-nats.sh", NATS_DATA_DIR=str(link))
    assert refused.returncode == 1
    assert f"already runs, as process {running.pid}" in refused.stderr
    (data / "nats-server.pid").rename(data / "hidden")
    assert (
        f"another server uses {data}" in other.run("start-nats.sh", NATS_DATA_DIR=str(data)).stderr
    )
    with pytest.raises(StoreLockedError):
        await LocalServer(store_dir=data).start()
    (data / "hidden").rename(data / "nats-server.pid")


def test_after_a_crash_it_starts_again(running: Installation) -> None:
    pid = running.pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid))
    assert "does not run" in running.run("stop-nats.sh").stdout
    running.start()
    assert running.pid != pid


def test_a_pid_that_is_another_programs_by_now_is_left_alone(stopped: Installation) -> None:
    bystander = subprocess.Popen(
        ["tail", "-f", str(stopped.folder / "nats-server.conf")], stdout=subprocess.DEVNULL
    )
    try:
        (stopped.folder / "data").mkdir()
        for pid in (str(bystander.pid), "", "-1", "self", "all"):
            (stopped.folder / "data" / "nats-server.pid").write_text(pid)
            assert "does not run" in stopped.run("stop-nats.sh").stdout
        (stopped.folder / "data" / "nats-server.pid").write_text(str(bystander.pid))
        stopped.start()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_interrupt_of_who_started_it_does_not_end_it(stopped: Installation) -> None:
    script = 'trap "" INT; "$0" >&2; kill -INT 0; echo interrupted'
    start = str(stopped.folder / "start-nats.sh")
    done = subprocess.run(
        ["sh", "-c", script, start],
        env=stopped.environment,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "interrupted" in done.stdout
    assert stopped.ask("healthz") == {"status": "ok"}


def test_a_full_log_starts_a_new_file(stopped: Installation) -> None:
    stopped.log.parent.mkdir()
    stopped.log.write_bytes(b"x" * 79 + b"\n")
    with stopped.log.open("ab") as log:
        log.truncate(10 * 2**20)
    stopped.start()
    assert stopped.log.stat().st_size < 100_000
    assert len(list(stopped.log.parent.glob("nats-server.log.*"))) == 1


def test_a_directory_that_exists_keeps_its_mode(stopped: Installation, tmp_path: Path) -> None:
    logs = tmp_path / "var log"
    logs.mkdir(mode=0o755)
    stopped.start(NATS_LOG_DIR=str(logs))
    assert logs.stat().st_mode & 0o777 == 0o755
    assert (logs / "nats-server.log").exists()


@pytest.mark.parametrize("token", [TOKEN, "1e50000000000000", "0x123456789abcdef", "-._~+/=k" * 2])
async def test_a_token_is_what_it_looks_like(stopped: Installation, token: str) -> None:
    stopped.start(NATS_TOKEN=token)
    async with EventBus([stopped.url], token=token) as bus:
        await bus.publish("rosey.events.x", {})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "NATS_TOKEN is not set"),
        ({"NATS_TOKEN": ""}, "NATS_TOKEN is not set"),
        ({"NATS_TOKEN": "short"}, "shorter than 16"),
        ({"NATS_TOKEN": "12345"}, "shorter than 16"),
        ({"NATS_TOKEN": "1e5"}, "shorter than 16"),
        ({"NATS_TOKEN": "$2a$11$0123456789012345"}, "letters, digits"),
        ({"NATS_TOKEN": 'quotes"and$dollars'}, "letters, digits"),
        ({"NATS_TOKEN": "spaces are not good either"}, "letters, digits"),
        ({"NATS_TOKEN": TOKEN, "NATS_PORT": "lots"}, "lots is no port"),
        ({"NATS_TOKEN": TOKEN, "NATS_PORT": "99999"}, "ended at once"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(
    stopped: Installation, settings: dict[str, object], said: str
) -> None:
    stopped.configure(**settings)
    started = stopped.run("start-nats.sh")
    assert started.returncode == 1
    assert said in started.stderr
    assert "$dollars" not in started.stderr


def test_a_port_that_is_taken_is_named(stopped: Installation) -> None:
    with socket.create_server(("127.0.0.1", stopped.port)):
        started = stopped.run("start-nats.sh")
    assert started.returncode == 1
    assert f":{stopped.port}: bind: address already in use" in started.stderr


@pytest.mark.parametrize("line", ["rm -rf $HOME", "NATS_X;id=1", "NATS_TOKEN"])
@pytest.mark.parametrize("script", ["start-nats.sh", "stop-nats.sh"])
def test_the_settings_file_is_read_and_never_run(
    stopped: Installation, script: str, line: str
) -> None:
    (stopped.folder / ".env.nats").write_text(f"# settings\n{line}\n")
    done = stopped.run(script)
    assert done.returncode == 1
    assert ".env.nats, line 2" in done.stderr


def test_the_settings_file_may_have_quotes_and_come_from_windows(stopped: Installation) -> None:
    text = (stopped.folder / ".env.nats").read_text()
    text = text.replace(TOKEN, f'"{TOKEN}"') + "NATS_DATA_DIR='$HOME `id`'"
    (stopped.folder / ".env.nats").write_bytes(text.replace("\n", "\r\n").encode())
    stopped.start()
    data = stopped.folder / "$HOME `id`"
    assert (data / "nats-server.pid").exists()
    assert "stopped" in stopped.run("stop-nats.sh").stdout


def test_the_environment_wins_over_the_settings_file(stopped: Installation) -> None:
    stopped.configure(NATS_TOKEN=TOKEN, NATS_SERVER="/nowhere")
    stopped.start(NATS_SERVER=str(find_binary()))


def test_the_program_may_be_on_the_path(stopped: Installation) -> None:
    path = f"{find_binary().parent}{os.pathsep}{os.environ['PATH']}"
    stopped.start(ROSEY_NATS_SERVER="", PATH=path)


def test_a_missing_program_is_named(stopped: Installation) -> None:
    started = stopped.run("start-nats.sh", NATS_SERVER="/nowhere/nats-server")
    assert started.returncode == 1
    assert "/nowhere/nats-server" in started.stderr


def test_in_the_foreground_it_is_the_server_itself(stopped: Installation) -> None:
    program = subprocess.Popen(
        [str(stopped.folder / "start-nats.sh"), "--foreground"], env=stopped.environment
    )
    try:
        eventually(lambda: stopped.log.exists() and "Server is ready" in stopped.log.read_text())
        assert stopped.pid == program.pid
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(timeout=20)


def test_the_check_and_the_monitor_work_on_it(running: Installation) -> None:
    checked = running.run("test-connection.py", NATS_URL=running.url, NATS_TOKEN=TOKEN)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(" works") == 3
    assert running.ask("jsz")["streams"] == 0
    refused = running.run("test-connection.py", NATS_URL=running.url, NATS_TOKEN="wrong")
    assert refused.returncode == 2
    assert "Authorization" in refused.stderr
    assert "Traceback" not in refused.stderr
    shown = running.run("monitor.py", "--once", "--url", f"http://127.0.0.1:{running.monitor}")
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 2
    nowhere = running.run("monitor.py", "--once", "--url", "http://127.0.0.1:1")
    assert nowhere.returncode == 1
    assert "no answer" in nowhere.stderr


async def test_the_check_says_what_does_not_work() -> None:
    async with LocalServer(jetstream=False) as server:
        checked = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(SOURCE / "test-connection.py")],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"NATS_URL": server.url, "NATS_TOKEN": ""},
        )
    assert checked.returncode == 1
    assert checked.stdout.count(" works") == 2
    assert "JetStream              does not work" in checked.stdout


def composed(token: str) -> dict[str, str]:
    """What compose.yaml sets in the container."""
    text = (SOURCE / "compose.yaml").read_text()
    block = text.partition("environment:\n")[2].partition("    ports:")[0]
    assert "${NATS_TOKEN:?" in block
    block = re.sub(r"\$\{NATS_TOKEN:[^}]*}", token, block)
    found = re.findall(r"""^ +(NATS_\w+): (?:'([^']*)'|"([^"]*)")""", block, re.MULTILINE)
    return {name: single or double for name, single, double in found}


def accepted(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(find_binary()), "-t", "-c", str(SOURCE / "nats-server.conf")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )


def test_compose_sets_every_name_that_the_configuration_uses() -> None:
    environment = composed(TOKEN)
    done = accepted(environment)
    assert done.returncode == 0, done.stderr
    for name in environment:
        assert accepted({key: environment[key] for key in environment if key != name}).returncode


def test_what_compose_publishes_is_published_on_this_machine_only() -> None:
    ports = re.findall(r'^ +- "(.*):(\d+)"$', (SOURCE / "compose.yaml").read_text(), re.MULTILINE)
    assert [inside for _, inside in ports] == ["4222", "8222", "8223"]
    assert all(outside.startswith("127.0.0.1:") for outside, _ in ports)
