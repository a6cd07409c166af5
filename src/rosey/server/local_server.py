"""`LocalServer`: a nats-server as a child process, on loopback, with a locked store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from rosey.server import guard
from rosey.server.binary import find_binary
from rosey.server.errors import ServerError, ServerStartError
from rosey.server.store_lock import lock_store, unlock_store

HOST = "127.0.0.1"
START_TIMEOUT = 10.0
"""Seconds in which the server answers, or is given up."""
STOP_TIMEOUT = 10.0
"""Seconds the server gets to end by itself before it is killed."""
MAX_FILE_STORE = "10GB"
"""What streams may reserve; without it a small disk refuses the bus's default streams."""
_POLL = 0.002  # seconds between looks at a process that starts or ends
_LOG_LINES = 8  # of the server's log in an error message

# The shell becomes the server. What it leaves behind waits for the end of our pipe, which comes
# with our own end however we die, and then ends the server.
_GUARDED = 'exec 3<&0; (read _ <&3; kill -TERM $$ 2>/dev/null) & exec "$0" "$@" </dev/null 3<&-'


class LocalServer:
    """A nats-server on 127.0.0.1 that ends when the program does.

    Args:
        port: where it listens; None takes a free one, which `start` after `kill` takes again.
        store_dir: where JetStream keeps its data, created readable by its owner only; None is a
            temporary directory, removed by `stop`.
        token: what clients must present; None lets everybody on this machine in.
        jetstream: whether streams can be kept.
        config: more lines of nats-server configuration.

    Used as an async context manager, or by `start` and `stop`. Raises `ServerNotFoundError`,
    `ServerStartError`, `StoreLockedError`.
    """

    def __init__(
        self,
        port: int | None = None,
        store_dir: str | Path | None = None,
        *,
        token: str | None = None,
        jetstream: bool = True,
        config: str = "",
    ) -> None:
        self._port = port
        self._given_store = Path(store_dir) if store_dir is not None else None
        self._token = token
        self._jetstream = jetstream
        self._config = config
        self._folder: Path | None = None
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"LocalServer({self.url if self._port else 'not started'})"

    @property
    def port(self) -> int:
        """The port it listens on. Raises `ServerError` before the first start."""
        if self._port is None:
            raise ServerError("the server was not started yet")
        return self._port

    @property
    def url(self) -> str:
        """The URL to connect to, without the token."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id, None while it does not run."""
        return self._process.pid if self._process is not None else None

    @property
    def store_dir(self) -> Path:
        """Where JetStream keeps its data. Raises `ServerError` before the first start."""
        if self._given_store is not None:
            return self._given_store
        return self._private_folder() / "store"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and return when it answers; a running one stays as it is."""
        if self._process is not None:
            return
        binary = find_binary()
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="rosey-nats-"))
            self.store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = lock_store(self.store_dir)
            self._spawn(binary, self._lock)
            await self._ready(time.monotonic() + START_TIMEOUT)
        except BaseException:
            self._kill()
            self._clean_up()
            raise

    async def stop(self) -> None:
        """End the server, remove what is temporary, unlock the store. Repeating it is harmless."""
        try:
            if self._process is not None:
                self._ask_to_end(self._process)
                await self._ended(self._process, STOP_TIMEOUT)
        finally:
            self._kill()
            self._clean_up()

    async def kill(self) -> None:
        """End the server as a crash does; its store stays, and locked, for the next `start`."""
        self._kill()

    def send_signal(self, number: int) -> None:
        """Send the server a signal. Raises `ServerError` if it does not run."""
        if self._process is None:
            raise ServerError("the server does not run")
        self._process.send_signal(number)

    def _private_folder(self) -> Path:
        if self._folder is None:
            raise ServerError("the server was not started yet")
        return self._folder

    def _spawn(self, binary: Path, lock: int) -> None:
        folder = self._private_folder()
        for stale in folder.glob("*.ports"):
            stale.unlink()
        (folder / "nats-server.conf").write_text(self._configuration(), encoding="utf-8")
        command = [str(binary), "-c", str(folder / "nats-server.conf")]
        with (folder / "nats-server.log").open("wb") as log:
            # A session of its own, so that Ctrl-C does not end it before the bus has drained.
            if sys.platform == "win32":  # pragma: no cover - tested on POSIX only
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", guard.__file__, *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
                )
            else:
                self._process = subprocess.Popen(
                    ["sh", "-c", _GUARDED, *command],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock],
                )

    def _configuration(self) -> str:
        folder = self._private_folder()
        lines = [
            f"listen: {_quoted(f'{HOST}:{-1 if self._port is None else self._port}')}",
            f"ports_file_dir: {_quoted(str(folder))}",
        ]
        if self._jetstream:
            store = _quoted(str(self.store_dir))
            lines.append(f"jetstream {{ store_dir: {store}, max_file_store: {MAX_FILE_STORE} }}")
        if self._token is not None:
            lines.append(f"authorization {{ token: {_quoted(self._token)} }}")
        return "\n".join([*lines, self._config, ""])

    async def _ready(self, deadline: float) -> None:
        """Wait for the ports file, then for the greeting of a server that takes clients."""
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerStartError(f"nats-server ended at once: {self._log_tail()}")
            port = self._announced_port()
            if port is not None and await _greets(port):
                self._port = port
                return
            await asyncio.sleep(_POLL)
        raise ServerStartError(
            f"nats-server was not ready within {START_TIMEOUT:g} s: {self._log_tail()}"
        )

    def _announced_port(self) -> int | None:
        for file in self._private_folder().glob("*.ports"):
            with contextlib.suppress(ValueError, KeyError, IndexError):  # half written
                url: str = json.loads(file.read_text())["nats"][0]
                return int(url.rpartition(":")[2])
        return None

    def _log_tail(self) -> str:
        log = (self._private_folder() / "nats-server.log").read_text(errors="replace")
        tail = " / ".join(log.splitlines()[-_LOG_LINES:]) or "it logged nothing"
        return tail if self._token is None else tail.replace(self._token, "***")

    async def _ended(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 - a process
            await asyncio.sleep(_POLL)

    def _ask_to_end(self, process: subprocess.Popen[bytes]) -> None:
        if sys.platform == "win32":  # pragma: no cover - tested on POSIX only
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.terminate()

    def _kill(self) -> None:
        """End the server and its guard now; what is dead already does no harm."""
        process, self._process = self._process, None
        if process is None:
            return
        if sys.platform == "win32":  # pragma: no cover - tested on POSIX only
            self._ask_to_end(process)
        else:
            # The guard is of the server's group, and outlives it until its pipe closes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def _clean_up(self) -> None:
        if self._lock is not None:
            unlock_store(self._lock)
            self._lock = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _quoted(text: str) -> str:
    """`text` as a string of nats-server's configuration."""
    return json.dumps(text, ensure_ascii=False)


async def _greets(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        return (await asyncio.wait_for(reader.readline(), START_TIMEOUT)).startswith(b"INFO ")
    finally:
        writer.transport.abort()
