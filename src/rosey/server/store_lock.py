"""The lock on a store directory: nats-server has none, and two servers on one store lose data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rosey.server.errors import StoreLockedError

if sys.platform == "win32":  # pragma: no cover - tested on POSIX only
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def lock_store(store: Path) -> int:
    """Lock `store` and return the descriptor that holds the lock until all copies are closed.

    The server inherits it, so the store stays locked as long as the server lives, even if the
    program that started it is gone. Raises `StoreLockedError`.
    """
    descriptor = os.open(store / "rosey.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise StoreLockedError(
            f"another server uses the store {store}: stop that one, or choose another store_dir"
        ) from None
    return descriptor


def unlock_store(descriptor: int) -> None:
    """Give the store free at once, whoever else still has a copy of the descriptor."""
    _unlock(descriptor)
    os.close(descriptor)
