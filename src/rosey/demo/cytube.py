"""CyTube's socket.io frames as events on the bus: where each goes, and what it carries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from rosey.core.events import PlatformEvent
from rosey.core.subjects import platform

PLATFORM = "cytube"

_WHAT = {
    "addUser": "user.join",
    "changeMedia": "media.change",
    "channelCSSJS": "channel.style",
    "channelOpts": "channel.options",
    "chatMsg": "chat",
    "clearchat": "chat.clear",
    "closePoll": "poll.close",
    "drinkCount": "channel.drinks",
    "emoteList": "emote.list",
    "login": "self.login",
    "mediaUpdate": "media.update",
    "newPoll": "poll.open",
    "playlist": "playlist.update",
    "pm": "pm",
    "queue": "media.queue",
    "rank": "self.rank",
    "setAFK": "user.afk",
    "setCurrent": "playlist.current",
    "setMotd": "channel.motd",
    "setPermissions": "channel.permissions",
    "setPlaylistLocked": "playlist.locked",
    "setPlaylistMeta": "playlist.meta",
    "setUserMeta": "user.meta",
    "setUserRank": "user.rank",
    "updateEmote": "emote.update",
    "updatePoll": "poll.update",
    "usercount": "user.count",
    "userLeave": "user.leave",
    "userlist": "user.list",
    "voteskip": "vote.skip",
}


class Frame(msgspec.Struct, frozen=True):
    """One socket.io event as received: `t` is seconds since the recording began."""

    t: float
    event: str
    args: list[Any]


class SessionError(ValueError):
    """A session file that cannot be read; the message names the line."""


@dataclass(frozen=True, slots=True)
class Session:
    """A recording, in the order it was received."""

    frames: tuple[Frame, ...]


def read_session(path: Path | None = None) -> Session:
    """Read a recording, one JSON frame a line; None is the one that comes with rosey.

    Raises `SessionError`.
    """
    source = path or resources.files("rosey.demo") / "cytube-session.jsonl"
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SessionError(f"cannot read the session {source}: {error}") from error
    frames = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            frames.append(msgspec.json.decode(line, type=Frame))
        except msgspec.DecodeError as error:
            raise SessionError(f"{source}, line {number}: {error}") from error
    if not frames:
        raise SessionError(f"the session {source} has no frames")
    return Session(tuple(frames))


def to_event(frame: Frame) -> PlatformEvent:
    """The event that a frame becomes.

    An object stays as it is; lists, numbers and the like are wrapped as `{"args": [...]}`,
    because an event's data is an object. Frames of an unknown kind go to `other.<event>`.
    """
    what = _WHAT.get(frame.event) or f"other.{re.sub('[^0-9A-Za-z_-]', '_', frame.event) or '_'}"
    alone = frame.args[0] if len(frame.args) == 1 else None
    return PlatformEvent(
        subject=platform(PLATFORM, what),
        event_type=what,
        source=PLATFORM,
        data=alone if isinstance(alone, dict) else {"args": frame.args},
        platform=PLATFORM,
    )
