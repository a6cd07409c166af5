"""JetStream's own protocol: its JSON API, and its acknowledgement of what was stored."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from rosey.core import headers as nats_headers
from rosey.core.connection import Connection, is_no_responders
from rosey.core.errors import NoRespondersError, StreamError, UnsupportedServerError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

API_TIMEOUT = 5.0
"""Seconds that JetStream gets for each question about a stream or consumer."""

CONSUMER_NOT_FOUND = 10014
CONSUMER_EXISTS = 10148
MESSAGE_NOT_FOUND = 10037
STREAM_NOT_FOUND = 10059
STREAM_NAME_IN_USE = 10058
SUBJECTS_OVERLAP = 10065
NO_STORAGE = 10047

_REMEDIES = {
    STREAM_NAME_IN_USE: "a stream of that name exists with another configuration",
    SUBJECTS_OVERLAP: "another stream stores some of its subjects: change or delete that one",
    NO_STORAGE: "raise max_file or max_mem under jetstream in the server's configuration, "
    "or lower max_bytes of the streams",
}


class ApiError(msgspec.Struct, frozen=True):
    """An error as JetStream writes it; `err_code` is what it documents."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """JetStream's acknowledgement: the event is stored in `stream` under sequence `seq`."""

    stream: str
    seq: int
    duplicate: bool = False
    """It was stored before, by an earlier try with the same message id."""
    domain: str = ""


class _PubReply(msgspec.Struct):
    stream: str
    seq: int = 0
    duplicate: bool = False
    domain: str = ""
    error: ApiError | None = None
    event_type: Any = msgspec.UNSET  # only an event has one: then it is no acknowledgement


_PUB_REPLY = msgspec.json.Decoder(_PubReply)


def read_ack(msg: Msg) -> PubAck | ApiError | None:
    """The acknowledgement or refusal in a message; None if the message is something else.

    A stream answers whatever has a reply subject, requests included, so both a publisher and a
    requester must tell its answer from a handler's.
    """
    if msg.headers or not msg.data.startswith((b'{"stream":', b'{"error":')):
        return None
    try:
        reply = _PUB_REPLY.decode(msg.data)
    except msgspec.DecodeError:
        return None
    if reply.event_type is not msgspec.UNSET:
        return None
    return reply.error or PubAck(reply.stream, reply.seq, reply.duplicate, reply.domain)


def is_ack(msg: Msg) -> bool:
    """Whether a publisher waited for this message (the server's "no responders" counts)."""
    return is_no_responders(msg) or read_ack(msg) is not None


def is_answer(msg: Msg) -> bool:
    """Whether a requester waited for this message: anything but a stream's acknowledgement."""
    return read_ack(msg) is None


async def api(connection: Connection, path: str, body: Any, deadline: float) -> dict[str, Any]:
    """Call `$JS.API.<path>` and return its answer.

    Raises `StreamError` with JetStream's error code and a remedy.
    """
    payload = msgspec.json.encode(body) if body is not None else b""
    try:
        msg = await connection.exchange(f"$JS.API.{path}", payload, deadline=deadline)
    except NoRespondersError:
        raise StreamError(
            f"JetStream does not answer at {connection.server}: start nats-server with -js or a "
            "jetstream section, or connect with EventBus(streams=()) to do without"
        ) from None
    except TimeoutError:
        raise StreamError(f"JetStream did not answer {path} in time") from None
    answer: dict[str, Any] = msgspec.json.decode(msg.data)
    if "error" in answer:
        error = msgspec.convert(answer["error"], ApiError)
        remedy = _REMEDIES.get(error.err_code)
        hint = f" ({remedy})" if remedy else ""
        raise StreamError(
            f"JetStream refused {path}: {error.description}{hint}", code=error.err_code
        )
    return answer


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as its stream has it."""

    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str]
    stored_at: int
    """Nanoseconds since 1970."""


async def get_message(
    connection: Connection,
    stream: str,
    *,
    sequence: int | None = None,
    next_from: int | None = None,
    subject: str | None = None,
) -> StoredMessage:
    """Read one message: that of `sequence`, or the next from a sequence on that fits `subject`.

    Raises `StreamError` with code `MESSAGE_NOT_FOUND` if there is none.
    """
    body: dict[str, Any] = {"seq": sequence or next_from}
    if sequence is None and subject is not None:
        body["next_by_subj"] = subject
    deadline = connection.time() + API_TIMEOUT
    found = (await api(connection, f"STREAM.MSG.GET.{stream}", body, deadline))["message"]
    return StoredMessage(
        found["seq"],
        found["subject"],
        b64decode(found.get("data") or ""),
        nats_headers.parse(b64decode(found.get("hdrs") or "")),
        _nanoseconds(found["time"]),
    )


def _nanoseconds(time: str) -> int:
    """RFC 3339 with up to nine digits after the point, as nanoseconds since 1970."""
    seconds, _, fraction = time.rstrip("Z").partition(".")
    whole = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
    return int(whole.timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)


def require_server(connection: Connection, version: tuple[int, int], feature: str) -> None:
    """Raise `UnsupportedServerError` if the server connected to is older than `version`."""
    have = connection.server_version
    if have < version:
        raise UnsupportedServerError(
            f"{feature} needs nats-server {'.'.join(map(str, version))}; {connection.server} "
            f"runs {'.'.join(map(str, have))}"
        )
