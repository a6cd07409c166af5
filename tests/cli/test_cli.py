"""The `rosey` command as a person runs it: a process of its own, judged by what it prints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner
from processes import children_of, is_running

from rosey.cli.commands import rosey as command
from rosey.demo import scenario


def rosey(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rosey", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | environment,
        check=False,
    )


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command in the background; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start_one(*arguments: str) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, "-m", "rosey", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where a shell runs the tests in the background, SIGINT is ignored: not in a terminal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(program)
        return program

    yield start_one
    for program in started:
        program.kill()
        program.communicate()


def read_until(program: subprocess.Popen[str], words: str) -> str:
    assert program.stdout is not None
    said = ""
    for line in program.stdout:
        if words in line:
            return line
        said += line
    raise AssertionError(f"it ended without saying {words!r}: {said}")


def rest_of(program: subprocess.Popen[str]) -> str:
    output, _ = program.communicate(timeout=60)
    return output


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    done = rosey("demo", "--json")
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def test_the_demo_stores_what_is_acknowledged_and_answers_every_command(
    outcome: dict[str, Any],
) -> None:
    assert outcome["ok"] is True
    assert outcome["frames"] == 1358
    assert outcome["published"] == outcome["acknowledged"] == outcome["frames"] + 108
    assert outcome["stored"]["PLATFORM_EVENTS"] == outcome["acknowledged"]
    assert outcome["stored"]["COMMANDS"] >= 108
    assert outcome["messages_routed"] == 1082
    assert outcome["commands"] == outcome["commands_answered"] == 108
    assert all(outcome["handled_by"])
    assert 0 < outcome["restart"] <= outcome["recovery"]
    assert 0 < outcome["request_p50"] <= outcome["request_p99"]


def test_the_demo_prints_a_table_that_fits_and_needs_no_unicode() -> None:
    done = rosey("demo", PYTHONIOENCODING="ascii", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) <= 80
    for said in ("1,466", "stored in PLATFORM_EVENTS", "request p50, p99", "back after"):
        assert said in done.stdout
    assert done.stderr == ""


def test_another_session_is_replayed_at_its_speed(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    chat = {"username": "Ann", "msg": "!help"}
    frames = [
        {"t": 10, "event": "chatMsg", "args": [chat]},
        {"t": 11, "event": "newThing", "args": [1, [2]]},
        {"t": 12, "event": "usercount", "args": [3]},
    ]
    file.write_text("\n".join(map(json.dumps, frames)))
    done = rosey("demo", "--json", "--session", str(file), "--speed", "10")
    outcome = json.loads(done.stdout)
    assert done.returncode == 0
    assert outcome["published"] == 4
    assert outcome["duration"] >= 0.2


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["demo", "--session", "/nowhere"], {}, "cannot read the session"),
        (["demo", "--speed", "0"], {}, "--speed"),
        (["demo"], {"ROSEY_NATS_SERVER": "/nowhere"}, "ROSEY_NATS_SERVER"),
        (["server"], {"ROSEY_NATS_SERVER": "/nowhere"}, "ROSEY_NATS_SERVER"),
        (["dance"], {}, "No such command"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(
    arguments: list[str], environment: dict[str, str], said: str
) -> None:
    done = rosey(*arguments, **environment)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text('raise ModuleNotFoundError("no click", name="click")')
    done = rosey("demo", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'rosey[cli,server]'" in done.stderr


def test_version_and_help() -> None:
    assert rosey("--version").stdout.startswith("rosey, version 0.")
    assert "demo" in rosey("--help").stdout


def test_ctrl_c_during_the_demo_ends_it_without_a_traceback_or_a_server(start: Start) -> None:
    demo = start("demo", "--speed", "0.01")
    servers: list[int] = []
    deadline = time.monotonic() + 30
    while not servers:
        assert time.monotonic() < deadline
        servers = children_of(demo.pid)
    demo.send_signal(signal.SIGINT)
    output = rest_of(demo)
    assert demo.returncode != 0
    assert "Traceback" not in output
    wait_until_gone(servers)


def test_keep_leaves_the_server_up_until_ctrl_c(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    file.write_text('{"t":0,"event":"usercount","args":[3]}\n')
    demo = start("demo", "--keep", "--session", str(file))
    url = read_until(demo, "keeps running").split("running at ")[1].split(";")[0]
    servers = children_of(demo.pid)
    assert servers

    async def stored() -> int:
        client = await nats.connect(url)
        info = await client.jetstream().stream_info("PLATFORM_EVENTS")
        await client.close()
        return info.state.messages

    assert asyncio.run(stored()) == 1
    demo.send_signal(signal.SIGINT)
    assert "Traceback" not in rest_of(demo)
    assert demo.returncode == 0
    wait_until_gone(servers)


def test_the_server_command_runs_until_told_to_end(start: Start, tmp_path: Path) -> None:
    program = start("server", "--port", "0", "--store", str(tmp_path / "store"))
    line = read_until(program, "nats-server is at")
    assert str(tmp_path / "store") in line
    servers = children_of(program.pid)
    program.send_signal(signal.SIGTERM)
    assert "Traceback" not in rest_of(program)
    assert program.returncode == 0
    wait_until_gone(servers)


def test_a_failed_verdict_is_a_failed_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario.Outcome, "problems", lambda _: ["two commands were lost"])
    done = CliRunner().invoke(command, ["demo", "--json"])
    assert done.exit_code == 1
    assert "two commands were lost" in done.output
    assert json.loads(done.stdout)["ok"] is False
