"""What an operator runs: the scripts start and stop a real server with the configuration."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import is_running

from rosey import AuthenticationError, EventBus
from rosey.server import find_binary

SOURCE = Path(__file__).parents[2] / "infrastructure" / "nats"
TOKEN = "0123456789012345"  # all digits: nats-server would read it as a number


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Installation:
    """A copy of the directory, as an operator would make, with ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.monitor, self.websocket = free_ports(3)
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("data", "logs", ".env.nats"))
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("NATS_")
        } | {"NATS_SERVER": str(find_binary())}
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
        )

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
    ended = installation.run("stop-nats.sh")
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def running(stopped: Installation) -> Installation:
    started = stopped.run("start-nats.sh")
    assert started.returncode == 0, started.stderr
    assert f"nats://127.0.0.1:{stopped.port}" in started.stdout
    assert TOKEN not in started.stdout + started.stderr
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
    for folder in ("data", "logs"):
        assert (running.folder / folder).stat().st_mode & 0o77 == 0


def test_starting_twice_is_refused_and_stopping_twice_is_not(running: Installation) -> None:
    pid = running.pid
    again = running.run("start-nats.sh")
    assert again.returncode == 1
    assert f"already runs, as process {pid}" in again.stderr
    assert "stopped" in running.run("stop-nats.sh").stdout
    assert not is_running(pid)
    assert "does not run" in running.run("stop-nats.sh").stdout
    assert running.run("start-nats.sh").returncode == 0


def test_a_pid_that_is_another_programs_by_now_is_left_alone(stopped: Installation) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (stopped.folder / "data").mkdir()
        (stopped.folder / "data" / "nats-server.pid").write_text(str(bystander.pid))
        assert "does not run" in stopped.run("stop-nats.sh").stdout
        assert bystander.poll() is None
        assert stopped.run("start-nats.sh").returncode == 0
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "NATS_TOKEN is not set"),
        ({"NATS_TOKEN": ""}, "NATS_TOKEN is not set"),
        ({"NATS_TOKEN": "short"}, "shorter than 16"),
        ({"NATS_TOKEN": 'quotes"and$dollars'}, "letters, digits"),
        ({"NATS_TOKEN": "spaces are not good either"}, "letters, digits"),
        ({"NATS_TOKEN": TOKEN, "NATS_SERVER": "/nowhere"}, None),
        ({"NATS_TOKEN": TOKEN, "NATS_PORT": "lots"}, "ended at once"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(
    stopped: Installation, settings: dict[str, object], said: str | None
) -> None:
    stopped.configure(**settings)
    started = stopped.run("start-nats.sh")
    if said is None:  # the environment wins over the file
        assert started.returncode == 0
    else:
        assert started.returncode == 1
        assert said in started.stderr
        assert "$dollars" not in started.stderr


@pytest.mark.parametrize("line", ["rm -rf $HOME", "NATS_X;id=1", "NATS_TOKEN"])
def test_the_settings_file_is_read_and_never_run(stopped: Installation, line: str) -> None:
    (stopped.folder / ".env.nats").write_text(f"{line}\n")
    started = stopped.run("start-nats.sh")
    assert started.returncode == 1
    assert ".env.nats" in started.stderr


def test_a_missing_program_is_named(stopped: Installation) -> None:
    started = stopped.run("start-nats.sh", NATS_SERVER="/nowhere/nats-server")
    assert started.returncode == 1
    assert "/nowhere/nats-server" in started.stderr


def test_in_the_foreground_it_is_the_server_itself(stopped: Installation) -> None:
    program = subprocess.Popen(
        [str(stopped.folder / "start-nats.sh"), "--foreground"], env=stopped.environment
    )
    try:
        log = stopped.folder / "logs" / "nats-server.log"
        deadline = time.monotonic() + 20
        while not log.exists() or "Server is ready" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert stopped.pid == program.pid
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(timeout=20)


def test_the_check_and_the_monitor_work_on_it(running: Installation) -> None:
    checked = running.run("test-connection.py", NATS_URL=running.url, NATS_TOKEN=TOKEN)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("works") == 3
    refused = running.run("test-connection.py", NATS_URL=running.url, NATS_TOKEN="wrong")
    assert refused.returncode == 1
    assert "Authorization" in refused.stderr
    assert "Traceback" not in refused.stderr
    shown = running.run("monitor.py", "--once", "--url", f"http://127.0.0.1:{running.monitor}")
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 2
    nowhere = running.run("monitor.py", "--once", "--url", "http://127.0.0.1:1")
    assert nowhere.returncode == 1
    assert "no answer" in nowhere.stderr


def test_compose_sets_every_name_that_the_configuration_uses(running: Installation) -> None:
    words = (SOURCE / "nats-server.conf").read_text().replace(",", " ").split()
    used = {word[1:] for word in words if word.startswith("$NATS")}
    composed = (SOURCE / "compose.yaml").read_text()
    assert used
    assert [name for name in used if f"{name}:" not in composed] == []
