"""NATS message headers: the names the bus uses, the rules for a caller's own, their size."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from rosey.core.errors import InvalidHeaderError

MSG_ID: Final = "Nats-Msg-Id"
"""JetStream stores one message for each id within the stream's duplicate window."""
EXPECTED_LAST_SEQUENCE: Final = "Nats-Expected-Last-Sequence"
EXPECTED_LAST_SUBJECT_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
TTL: Final = "Nats-TTL"
BATCH_ID: Final = "Nats-Batch-Id"
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
BATCH_COMMIT: Final = "Nats-Batch-Commit"
EXPECTED_STREAM: Final = "Nats-Expected-Stream"
PIN_ID: Final = "Nats-Pin-Id"
PENDING_MESSAGES: Final = "Nats-Pending-Messages"
SERVICE_ERROR: Final = "Nats-Service-Error"
SERVICE_ERROR_CODE: Final = "Nats-Service-Error-Code"
STATUS: Final = "Status"
"""Where nats-py puts the status of a header line such as `NATS/1.0 503`."""
DESCRIPTION: Final = "Description"
"""Where nats-py puts the words after the status."""

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 7230, section 3.2.6
_FRAME = len("NATS/1.0\r\n\r\n")
_LINE = len(": \r\n")


def validate(headers: Mapping[str, str]) -> dict[str, str]:
    """Check a caller's headers; `Nats-` names are the server's and refused.

    Raises `InvalidHeaderError`.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidHeaderError(f"{name!r} is not a header name: use letters, digits and -")
        if name.lower().startswith("nats-") or name == STATUS:
            raise InvalidHeaderError(f"the header {name} is reserved for NATS itself")
        if not isinstance(value, str) or value != value.strip() or not value.isprintable():
            raise InvalidHeaderError(
                f"the value of header {name} must be a str of printable characters "
                "with no space at either end"
            )
    return dict(headers)


def fits(name: str, value: str) -> bool:
    """Whether a header can be sent as it is; a peer's may be anything."""
    return bool(_NAME.fullmatch(name)) and value.isprintable() and value == value.strip()


def parse(raw: bytes) -> dict[str, str]:
    """Read headers as the wire and streams have them; of one name the last value counts."""
    found = {}
    for line in raw.decode(errors="replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found


def one_line(text: str, limit: int = 500) -> str:
    """`text` made fit for a header value: printable, one line, at most `limit` characters."""
    return "".join(c if c.isprintable() else " " for c in text[:limit]).strip()


def size(headers: Mapping[str, str] | None) -> int:
    """Bytes that `headers` take on the wire; the server counts them as payload."""
    if not headers:
        return 0
    lines = (len(name.encode()) + len(value.encode()) + _LINE for name, value in headers.items())
    return _FRAME + sum(lines)
