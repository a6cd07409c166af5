"""What runs on this machine, as tests need to know it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether process `pid` exists and is more than a zombie."""
    return any(found == pid for found, _, _ in _processes())


def in_group(group: int) -> list[int]:
    """The processes of a process group."""
    return [pid for pid, _, pgrp in _processes() if pgrp == group]


def children_of(parent: int) -> list[int]:
    """The processes that `parent` started and that still run."""
    return [pid for pid, ppid, _ in _processes() if ppid == parent]


def _processes() -> Iterator[tuple[int, int, int]]:
    """Id, parent and group of every process but zombies."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            yield int(folder.name), int(fields[1]), int(fields[2])
