"""One server: from its address to a live nats-py client, and from a client back to nothing."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import nats.errors
from nats.aio.client import Client

from rosey.core.addresses import ServerAddress
from rosey.core.errors import AuthenticationError, ConnectError, TLSError

# What nats-server says of credentials; "authentication timeout" only means that ours came late.
_REFUSED = re.compile(r"authorization violation|authentication (?:expired|revoked)", re.I)

CLOSE_TIMEOUT = 1.0
"""Seconds a client gets to close its socket before the socket is aborted."""


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How to connect; `EventBus` documents each."""

    name: str
    inbox_prefix: str
    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    credentials: str | None = None
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What nats-py's reader tells us; it runs them itself, so they must neither wait nor raise."""

    on_error: Callable[[Client, Exception], None]
    on_closed: Callable[[Client], None]
    on_lame_duck: Callable[[Client], None]
    """The server is about to go, and says so."""
    on_discovered: Callable[[Client], None]
    """The server announced others."""


async def dial(
    address: ServerAddress, options: ConnectOptions, deadline: float, callbacks: Callbacks
) -> Client:
    """Connect to one server until `deadline` (loop time); a failure leaves nothing behind.

    Raises `ConnectError`, `AuthenticationError`, `TLSError`.
    """
    client = Client()
    reasons: list[Exception] = []
    user, password = (address.user or options.user), (address.password or options.password)
    token = address.token or options.token
    needs_tls = options.tls is not None or address.url.startswith("tls:")
    task = asyncio.current_task()
    assert task is not None
    cancelled_before = task.cancelling()

    async def error_cb(error: Exception) -> None:
        reasons.append(error)
        callbacks.on_error(client, error)

    async def closed_cb() -> None:
        callbacks.on_closed(client)

    async def lame_duck_cb() -> None:
        callbacks.on_lame_duck(client)

    async def discovered_cb() -> None:
        callbacks.on_discovered(client)

    try:
        async with asyncio.timeout_at(deadline):
            await client.connect(
                servers=[address.url],
                name=options.name,
                error_cb=error_cb,
                disconnected_cb=closed_cb,
                closed_cb=closed_cb,
                lame_duck_mode_cb=lame_duck_cb,
                discovered_server_cb=discovered_cb,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                pending_size=0,  # `Connection.send` bounds it; nats-py's bound eats cancellation
                inbox_prefix=options.inbox_prefix,
                tls=options.tls,
                tls_hostname=address.certified_as,
                user=user,
                password=_only_encrypted(client, password) if needs_tls else password,
                token=_only_encrypted(client, token) if needs_tls else token,
                user_credentials=options.credentials,
            )
            if needs_tls:
                _require_tls(client)
        if task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
    except asyncio.CancelledError:
        await discard(client)
        raise
    except Exception as error:
        await discard(client)
        if task.cancelling() > cancelled_before:
            # asyncio.wait_for inside nats-py lost the cancellation (before Python 3.12).
            raise asyncio.CancelledError from error
        cause = reasons[-1] if reasons and not isinstance(error, TimeoutError) else error
        raise _connect_error(address, cause) from cause
    reasons.clear()
    _watch_reader(client, callbacks)
    return client


def _watch_reader(client: Client, callbacks: Callbacks) -> None:
    """Learn at once that nats-py's reader has ended: without one, a client is deaf.

    It ends without a callback where closing fails, where a peer's bytes are not UTF-8, and after
    a cancelled flush. Where nats-py keeps its task elsewhere, the heartbeat finds out.
    """

    def ended(reader: asyncio.Future[None]) -> None:
        take_result(reader)
        callbacks.on_closed(client)

    reader = getattr(client, "_reading_task", None)
    if reader is not None:
        reader.add_done_callback(ended)


def _only_encrypted(client: Client, secret: str | None) -> Callable[[], str] | None:
    """Hold `secret` back from a server that offers no TLS although we asked for it.

    nats-py would go on in plaintext (nats.py issue 912); it asks for the secret just before it
    sends it, when the server's offer is known.
    """
    if secret is None:
        return None

    def reveal() -> str:
        _require_tls(client)
        return secret

    return reveal


class _NoTLS(ssl.SSLError):
    """The server would have us go on in plaintext."""


def _require_tls(client: Client) -> None:
    if not client._server_info.get("tls_required"):
        raise _NoTLS("the server offers no TLS")


def _connect_error(address: ServerAddress, cause: Exception) -> ConnectError:
    if isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or str(cause)
        error = TLSError(f"no trusted encrypted connection to {address.url}: {reason}")
        # A handshake may also fail because a full or stopping server hangs up; that passes.
        error.final = isinstance(cause, (ssl.SSLCertVerificationError, _NoTLS))
        return error
    if isinstance(cause, nats.errors.Error) and _REFUSED.search(str(cause)):
        return AuthenticationError(
            f"{address.url} refused the credentials; check token, user and password"
        )
    if isinstance(cause, TimeoutError):
        return ConnectError(f"{address.url} did not answer in time")
    # Where a name has several addresses, asyncio folds their errors into the text of one.
    refused = f"[Errno {errno.ECONNREFUSED}]" in str(cause)
    if refused and address.is_local:
        return ConnectError(
            f"nothing listens at {address.url}: start a server with `rosey server` or "
            "`nats-server -js`, or use rosey.local_event_bus(), which brings its own"
        )
    return ConnectError(f"no connection to {address.url}: {cause or type(cause).__name__}")


async def discard(client: Client, *, at_once: bool = False) -> None:
    """Close a client whatever state it is in, with all its tasks and its socket.

    What it has not sent yet is sent, unless `at_once`: a dead server would not take it.
    """
    if at_once:
        _abort(client)
    closing = asyncio.ensure_future(client.close())
    closing.add_done_callback(take_result)
    try:
        await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
    finally:
        closing.cancel()
        _abort(client)


def _abort(client: Client) -> None:
    """End what a `close` that hangs or fails leaves behind; nothing public leads there."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()
    for subscription in client._subs.values():
        task = subscription._wait_for_msgs_task
        if task is not None:
            task.cancel()


def take_result(task: asyncio.Future[None]) -> None:
    """Mark a failure as seen; what is being given up may fail as it likes."""
    if not task.cancelled():
        task.exception()
