"""Streams changed on purpose: a plan that a person can read, and that is then applied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rosey.core.connection import Connection
from rosey.core.errors import PlanRefusedError, StreamError
from rosey.core.jetstream import API_TIMEOUT, STREAM_NOT_FOUND, api
from rosey.core.streams import StreamSpec

_FIXED = {
    "storage": "a stream cannot move between file and memory",
    "retention": "JetStream does not change to or from workqueue",
}
_VERSIONS = {"allow_msg_ttl": (2, 11), "allow_atomic": (2, 12), "compression": (2, 10)}


@dataclass(frozen=True, slots=True)
class Change:
    """What a plan does with one stream."""

    spec: StreamSpec
    action: Literal["create", "change", "refuse", "keep"]
    differences: dict[str, tuple[Any, Any]]
    """By configuration key: what is specified, what the server has."""
    losses: tuple[str, ...] = ()
    """What the change deletes."""
    reason: str = ""
    """Why it is refused."""

    def __str__(self) -> str:
        if self.action == "keep":
            return f"  {self.spec.name}: as specified"
        lines = [f"{_SIGNS[self.action]} {self.spec.name}: {self.action}"]
        for key, (wanted, found) in self.differences.items():
            was = f"{_shown(key, found)} -> " if self.action != "create" else ""
            lines.append(f"    {key}: {was}{_shown(key, wanted)}")
        lines += [f"    ! {loss}" for loss in self.losses]
        if self.reason:
            lines.append(f"    ! {self.reason}")
        return "\n".join(lines)


_SIGNS = {"create": "+", "change": "~", "refuse": "x"}


class Plan:
    """What `apply` would do, stream by stream; print it to read it."""

    def __init__(self, connection: Connection, changes: tuple[Change, ...]) -> None:
        self._connection = connection
        self.changes = changes

    def __str__(self) -> str:
        return "\n".join(map(str, self.changes)) or "  no streams are specified"

    @property
    def empty(self) -> bool:
        """Whether everything is as specified already."""
        return all(change.action == "keep" for change in self.changes)

    async def apply(self, *, allow_data_loss: bool = False) -> None:
        """Create and change streams, one after the other; others are not touched.

        Raises `PlanRefusedError`, before anything is done, if a change is refused or, without
        `allow_data_loss`, would delete events; `StreamError` where the server refuses.
        """
        for change in self.changes:
            if change.action == "refuse":
                raise PlanRefusedError(f"{change.spec.name}: {change.reason}")
            if change.losses and not allow_data_loss:
                raise PlanRefusedError(
                    f"{change.spec.name}: {'; '.join(change.losses)}; say "
                    "apply(allow_data_loss=True) if that is meant"
                )
        for change in self.changes:
            await self._apply(change)

    async def _apply(self, change: Change) -> None:
        if change.action == "keep":
            return
        name, wanted = change.spec.name, change.spec.config()
        deadline = self._connection.time() + API_TIMEOUT
        if change.action == "create":
            await api(self._connection, f"STREAM.CREATE.{name}", wanted, deadline)
            return
        # As the server has it now, so that what we know nothing of stays.
        found = await api(self._connection, f"STREAM.INFO.{name}", None, deadline)
        await api(
            self._connection, f"STREAM.UPDATE.{name}", {**found["config"], **wanted}, deadline
        )


async def plan(connection: Connection, specs: Iterable[StreamSpec]) -> Plan:
    """Compare `specs` with what the server has. Raises `StreamError`, `NotConnectedError`."""
    return Plan(connection, tuple([await _compare(connection, spec) for spec in specs]))


async def _compare(connection: Connection, spec: StreamSpec) -> Change:
    wanted = spec.config()
    deadline = connection.time() + API_TIMEOUT
    try:
        info = await api(connection, f"STREAM.INFO.{spec.name}", None, deadline)
    except StreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise
        new = {key: (value, None) for key, value in wanted.items() if key != "name"}
        reason = _too_old(connection, new)
        return Change(spec, "refuse" if reason else "create", new, reason=reason)
    found = info["config"]
    differences = {
        key: (value, found.get(key)) for key, value in wanted.items() if found.get(key) != value
    }
    if not differences:
        return Change(spec, "keep", {})
    reason = _too_old(connection, differences) or next(
        (why for key, why in _FIXED.items() if key in differences), ""
    )
    if "retention" in differences and "workqueue" not in differences["retention"]:
        reason = _too_old(connection, differences)
    return Change(
        spec,
        "refuse" if reason else "change",
        differences,
        () if reason else tuple(_losses(info["state"], differences)),
        reason,
    )


def _too_old(connection: Connection, differences: dict[str, tuple[Any, Any]]) -> str:
    for key, version in _VERSIONS.items():
        if key in differences and connection.server_version < version:
            have = ".".join(map(str, connection.server_version))
            return f"{key} needs nats-server {'.'.join(map(str, version))}, this one is {have}"
    return ""


def _losses(state: dict[str, Any], differences: dict[str, tuple[Any, Any]]) -> list[str]:
    """What the stream holds that it would not hold after the change."""
    losses = []
    held = {"max_bytes": state["bytes"], "max_msgs": state["messages"]}
    for key, holds in held.items():
        wanted = differences.get(key, (-1, -1))[0]
        if 0 < wanted < holds:
            losses.append(f"{key} of {wanted:,} deletes the oldest of {holds:,}")
    if "max_age" in differences and state["messages"]:
        wanted, found = differences["max_age"]
        if wanted and (not found or wanted < found):
            losses.append("a shorter max_age deletes what is older")
    if "subjects" in differences:
        wanted, found = differences["subjects"]
        gone = sorted(set(found or ()) - set(wanted))
        if gone:
            losses.append(f"what is published on {', '.join(gone)} will no longer be kept")
    if "retention" in differences and state["messages"]:
        losses.append("another retention deletes what consumers have done with")
    return losses


def _shown(key: str, value: Any) -> str:
    if key in ("max_age", "duplicate_window") and isinstance(value, int):
        return f"{value / 1e9:,.0f} s" if value else "for ever"
    if isinstance(value, bool) or not isinstance(value, int):
        return ", ".join(value) if isinstance(value, list) else str(value)
    return f"{value:,}" if value >= 0 else "no limit"
