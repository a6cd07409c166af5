"""Every error the bus raises: one tree under `EventBusError`.

EventBusError
├── NotConnectedError          a call that needs the connection found none
│   ├── ConnectError           connect() failed: no server answered in time
│   │   ├── AuthenticationError    the server refused who we are
│   │   └── TLSError               no trusted encrypted connection
│   └── ConnectionLostError    the connection went down under a call in flight
├── PublishError               the event was not published
│   ├── EventEncodeError       it cannot be written as JSON         (ValueError)
│   ├── PayloadTooLargeError   it is larger than the server takes   (ValueError)
│   ├── NoStreamError          no stream stores its subject
│   ├── StreamFullError        the stream takes no more
│   ├── WrongStreamError       another stream than the expected one
│   ├── WrongSequenceError     another event came before the expected one
│   ├── NotAllowedByStreamError    the stream has no TTL, or no atomic batches
│   ├── SeveralStreamsError    a batch is stored by one stream
│   ├── PublishManyError       some of several events were not stored
│   ├── PublishTimeoutError    JetStream did not acknowledge in time (TimeoutError)
│   ├── InvalidHeaderError     a header breaks the rules of `headers.py`    (ValueError)
│   └── NoReplySubjectError    reply() to something nobody waits for (ValueError)
├── SubscriptionError          the subscription was not made
├── InvalidSubjectError        also a PublishError, SubscriptionError and ValueError
├── PermissionDeniedError      also a PublishError and SubscriptionError
├── EventDecodeError           bytes that are not an event          (ValueError)
├── RequestTimeoutError        nobody answered in time              (TimeoutError)
├── NoRespondersError          nobody serves the subject
├── RemoteError                the handler answered with an error
├── StreamError                a stream cannot be looked up, created or changed
│   ├── ConsumerMismatchError  a durable exists with another configuration
│   ├── ConsumerGoneError      the consumer or its stream was deleted
│   ├── NoSuchDeadLetterError  no dead letter has that number
│   └── PlanRefusedError       a change of streams would lose data
├── UnsupportedServerError     the server is too old for what was asked
├── NotOnceError               an event has no batch to publish into     (RuntimeError)
├── WrongEventLoopError        a bus used outside its event loop    (RuntimeError)
├── InvalidOptionError         an option of the bus that cannot work    (ValueError)
└── NotInitializedError        there is no global bus               (RuntimeError)
"""

from __future__ import annotations

from typing import Any


class EventBusError(Exception):
    """Whatever the bus raises is one of these."""


class NotConnectedError(EventBusError):
    """The call needs a connection and there is none, or none came back in time."""


class ConnectError(NotConnectedError):
    """No server could be connected to before `connect_timeout`; `__cause__` is the last reason."""

    final = False
    """Whether trying again is of no use."""


class AuthenticationError(ConnectError):
    """The server refused the credentials; trying again with the same ones is of no use."""

    final = True


class TLSError(ConnectError):
    """No encrypted connection to a server we trust could be made; nothing secret was sent."""


class ConnectionLostError(NotConnectedError):
    """The connection went down while the call waited; whether the server acted is unknown."""


class PublishError(EventBusError):
    """The event was not published, or nobody knows whether it was."""


class EventEncodeError(PublishError, ValueError):
    """The event cannot be written as JSON; `path` says which part, as in `$.data.when`."""

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class PayloadTooLargeError(PublishError, ValueError):
    """The message, headers included, is larger than the server accepts; nothing was sent.

    `size` and `limit` are bytes.
    """

    def __init__(self, message: str, *, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class NoStreamError(PublishError):
    """No stream stores the subject, so JetStream cannot keep the event."""


class StreamFullError(PublishError):
    """The stream is full, and refuses new events rather than drop old ones."""


class WrongStreamError(PublishError):
    """Another stream than the expected one stores the subject."""


class WrongSequenceError(PublishError):
    """The stream's, or the subject's, last sequence is not the one that was expected."""


class NotAllowedByStreamError(PublishError):
    """The stream's configuration does not allow it; `StreamSpec` has the option."""


class SeveralStreamsError(PublishError):
    """The events of a batch belong to several streams, which cannot store them together."""


class PublishManyError(PublishError):
    """Some events of `publish_many` were not stored, or nobody knows.

    `acks` has, in the events' order, an acknowledgement or None; `failures` the errors, by the
    event's place.
    """

    def __init__(self, acks: list[Any], failures: dict[int, EventBusError]) -> None:
        first = min(failures)
        super().__init__(
            f"{len(failures)} of {len(acks)} events were not stored; "
            f"the first is number {first}: {failures[first]}"
        )
        self.acks = acks
        self.failures = failures


class PublishTimeoutError(PublishError, TimeoutError):
    """JetStream did not acknowledge before the deadline; the event may be stored all the same."""


class InvalidHeaderError(PublishError, ValueError):
    """A header's name or value breaks the rules of `headers.py`."""


class NoReplySubjectError(PublishError, ValueError):
    """The event or message has no reply subject: nobody waits for an answer."""


class SubscriptionError(EventBusError):
    """The subscription was not made."""


class InvalidSubjectError(PublishError, SubscriptionError, ValueError):
    """The subject, pattern or queue group name breaks the rules of `subjects.py`."""


class PermissionDeniedError(PublishError, SubscriptionError):
    """The server's permissions do not let this user publish or subscribe there."""


class EventDecodeError(EventBusError, ValueError):
    """Bytes that are not an event."""


class RequestTimeoutError(EventBusError, TimeoutError):
    """Nobody answered the request in time."""


class NoRespondersError(EventBusError):
    """Nobody is subscribed to the request's subject."""


class RemoteError(EventBusError):
    """The handler of a request failed, or says no.

    A handler raises it to answer with an error; `request` raises it at the caller.
    `code` is the handler's own (500 when it failed without choosing one), `message` its text.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class StreamError(EventBusError):
    """JetStream refused to look up or create a stream; the message says what to do.

    `code` is JetStream's own error number (`err_code`), 0 where it gave none.
    """

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ConsumerMismatchError(StreamError):
    """A durable of that name exists, and what differs cannot be changed on it.

    `differences` has, by configuration key, what was asked for and what the server has.
    """

    def __init__(self, stream: str, name: str, differences: dict[str, tuple[Any, Any]]) -> None:
        parts = (f"{key} is {has!r}, not {asked!r}" for key, (asked, has) in differences.items())
        super().__init__(
            f"the durable {name} of stream {stream} exists with another configuration: "
            f"{'; '.join(parts)}; use another name, or delete it"
        )
        self.differences = differences


class NoSuchDeadLetterError(StreamError):
    """No dead letter has that number."""


class PlanRefusedError(StreamError):
    """A plan would lose events, or ask of the server what it cannot change; nothing was done."""


class ConsumerGoneError(StreamError):
    """The consumer, or its stream, was deleted while it was in use."""


class UnsupportedServerError(EventBusError):
    """The server is too old for what was asked of it; the message names the version."""


class NotOnceError(EventBusError, RuntimeError):
    """`Event.publish` outside a handler of a consumer with `once=True`."""


class WrongEventLoopError(EventBusError, RuntimeError):
    """A bus belongs to the event loop it connected on."""


class InvalidOptionError(EventBusError, ValueError):
    """An option of the bus that cannot work."""


class NotInitializedError(EventBusError, RuntimeError):
    """`get_event_bus` before `initialize_event_bus`."""
