"""Server URLs taken apart: where to connect, and the secrets that must never be shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

DEFAULT_PORT = 4222
_SCHEMES = ("nats", "tls", "ws", "wss")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """One server; `url` is free of credentials, which are kept out of every repr."""

    url: str
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    certified_as: str | None = None
    """The name that its certificate must hold, if not the URL's."""

    @property
    def is_local(self) -> bool:
        """Whether it is this machine's loopback address."""
        host = urlsplit(self.url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")


def parse(url: str) -> ServerAddress:
    """Read `nats://user:password@host:port`, `tls://token@host`, `host:port` or `host`.

    Credentials are percent-decoded; the port defaults to 4222 (for ws and wss to their own).
    Raises `ValueError`, without repeating the URL.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "nats", url
    if scheme not in _SCHEMES:
        raise ValueError("a server URL starts with nats://, tls://, ws:// or wss://")
    userinfo, _, location = rest.rpartition("@")
    try:
        parts = urlsplit(f"{scheme}://{location}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("a server URL looks like nats://host:4222") from None
    if not host:
        raise ValueError("a server URL needs a host, as in nats://localhost:4222")
    shown_host = f"[{host}]" if ":" in host else host
    if port is None and scheme in ("nats", "tls"):
        port = DEFAULT_PORT
    clean = f"{scheme}://{shown_host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"
    first, has_password, second = userinfo.partition(":")
    if has_password:
        return ServerAddress(clean, user=unquote(first), password=unquote(second))
    return ServerAddress(clean, token=unquote(first) if first else None)
