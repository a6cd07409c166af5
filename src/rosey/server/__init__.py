"""A nats-server of one's own: found, started, and ended with the program that started it."""

from rosey.server.binary import find_binary
from rosey.server.errors import (
    ServerError,
    ServerNotFoundError,
    ServerStartError,
    StoreLockedError,
)
from rosey.server.local_server import LocalServer

__all__ = [
    "LocalServer",
    "ServerError",
    "ServerNotFoundError",
    "ServerStartError",
    "StoreLockedError",
    "find_binary",
]
