"""Subjects: what is valid, what matches what, and the names of the `rosey.` tree.

A subject is tokens joined by dots, each of one or more printable ASCII characters without space,
`*` or `>`; at most 1,024 characters. A pattern may also have `*` for one token and, at its end,
`>` for one or more. nats-server would take more, but what it takes beyond this breaks clients:
control characters and non-UTF-8 bytes end other clients' connections.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from rosey.core.errors import InvalidSubjectError

MAX_SUBJECT_LENGTH: Final = 1024
"""Characters; well below nats-server's `max_control_line` of 4 KiB."""

PLATFORM: Final = "rosey.platform"
EVENTS: Final = "rosey.events"
COMMANDS: Final = "rosey.commands"
PLUGINS: Final = "rosey.plugins"
API: Final = "rosey.api"
MEDIACMS: Final = "rosey.mediacms"
SECURITY: Final = "rosey.security"
MONITORING: Final = "rosey.monitoring"
DB: Final = "rosey.db"
DEAD: Final = "rosey.dead"
ONCE: Final = "rosey.once"

_TOKEN = r"[!-)+-\-/-=?-~]+"  # printable ASCII but for space, dot, * and >
_SUBJECT = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_PATTERN = re.compile(rf"(?:(?:{_TOKEN}|\*)\.)*(?:{_TOKEN}|\*|>)")
_NAME = re.compile(_TOKEN)


def validate_subject(subject: str) -> str:
    """Return `subject` if an event may be published on it, else raise `InvalidSubjectError`.

    Subjects that start with `$` belong to the server and are refused too.
    """
    if isinstance(subject, str) and _is_subject(subject):
        return subject
    raise InvalidSubjectError(f"{_shown(subject)} is no subject to publish on: {_rules(subject)}")


def validate_pattern(pattern: str) -> str:
    """Return `pattern` if it may be subscribed to, else raise `InvalidSubjectError`."""
    if isinstance(pattern, str) and _fits(_PATTERN, pattern):
        return pattern
    raise InvalidSubjectError(f"{_shown(pattern)} is no subject pattern: {_rules(pattern)}")


def validate_queue(queue: str) -> str:
    """Return `queue` if it may name a queue group, else raise `InvalidSubjectError`."""
    if isinstance(queue, str) and _fits(_SUBJECT, queue):
        return queue
    raise InvalidSubjectError(
        f"{_shown(queue)} is not a queue group name: use printable ASCII without spaces or "
        "wildcards; a handler goes in `handler=`"
    )


@functools.lru_cache(maxsize=8192)
def matches(pattern: str, subject: str) -> bool:
    """Whether a subscription to `pattern` receives what is published on `subject`."""
    wanted = pattern.split(".")
    tokens = subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(want in ("*", token) for want, token in zip(wanted, tokens, strict=False))


def platform(name: str, what: str) -> str:
    """`rosey.platform.<name>.<what>`: raw events of a chat platform, stored for 7 days."""
    return _build(PLATFORM, name, what)


def send(platform_name: str, action: str) -> str:
    """`rosey.platform.<platform>.send.<action>`: what a connector is asked to do."""
    return _build(PLATFORM, platform_name, f"send.{action}")


def event(what: str) -> str:
    """`rosey.events.<what>`: normalised events, the same for every platform; not stored."""
    return _build(EVENTS, None, what)


def command(plugin_name: str, what: str = "execute") -> str:
    """`rosey.commands.<plugin>.<what>`: commands to a plugin, stored for 24 hours."""
    return _build(COMMANDS, plugin_name, what)


def plugin(name: str, what: str) -> str:
    """`rosey.plugins.<name>.<what>`: what a plugin says of itself, stored for 24 hours."""
    return _build(PLUGINS, name, what)


def _build(root: str, name: str | None, what: str) -> str:
    if name is None:
        return validate_subject(f"{root}.{what}")
    if not isinstance(name, str) or not _fits(_NAME, name):
        raise InvalidSubjectError(
            f"{_shown(name)} is not a name for one token of a subject: use printable ASCII "
            "without spaces, dots or wildcards"
        )
    return validate_subject(f"{root}.{name}.{what}")


@functools.lru_cache(maxsize=4096)
def _is_subject(text: str) -> bool:
    return _fits(_SUBJECT, text) and not text.startswith("$")


def _fits(rule: re.Pattern[str], text: str) -> bool:
    return len(text) <= MAX_SUBJECT_LENGTH and rule.fullmatch(text) is not None


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _rules(text: object) -> str:
    if not isinstance(text, str):
        return f"it is a {type(text).__name__}, not a str"
    if not text:
        return "it is empty"
    if len(text) > MAX_SUBJECT_LENGTH:
        return f"it has {len(text)} characters, the limit is {MAX_SUBJECT_LENGTH}"
    if text.startswith("$"):
        return "subjects that start with $ belong to the server"
    if not text.isascii() or not text.isprintable() or " " in text:
        return "it has a character that is not printable ASCII, or a space"
    if "" in text.split("."):
        return "it has an empty token"
    return "a wildcard (* or >) must be a whole token, > the last one, and only in subscriptions"
