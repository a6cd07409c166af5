"""Between an event and its bytes: JSON by msgspec, strict both ways.

Besides JSON's own types, `datetime`, `date`, `time` and `timedelta` (ISO 8601), `bytes` (base64),
`Decimal` and `UUID` (strings), enums (their value), sets and tuples (arrays), dataclasses,
attrs classes, msgspec Structs and objects with pydantic's `model_dump` (objects) travel; a reader
sees the JSON. Anything else, NaN and infinities included, is an `EventEncodeError`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from rosey.core.errors import EventDecodeError, EventEncodeError

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Write `value` as JSON.

    Raises `EventEncodeError`, whose `path` names the first part that has no JSON form.
    """
    try:
        payload = _ENCODER.encode(value)
    except RecursionError:
        raise EventEncodeError("nested too deeply to be written as JSON") from None
    except (TypeError, ValueError) as error:
        path = _path_of_unencodable(value) or "$"
        raise EventEncodeError(f"{path} cannot be written as JSON: {error}", path=path) from error
    # msgspec writes NaN and infinities as null, which would change the data in silence.
    if b"null" in payload:
        nan = _path_of_non_finite(value)
        if nan:
            raise EventEncodeError(f"{nan} is NaN or infinite: JSON has no such number", path=nan)
    return payload


def decode(payload: bytes, as_type: type[T]) -> T:
    """Read JSON as a dataclass; unknown keys are ignored, missing optional ones defaulted.

    An optional key that holds null counts as missing, because some programs send it so.
    Raises `EventDecodeError`, with the path of the first part that does not fit.
    """
    try:
        decoded: T = _decoder(as_type).decode(payload)  # type: ignore[arg-type]
        return decoded
    except msgspec.ValidationError as error:
        failure: Exception = error
    except Exception as error:  # `__post_init__` of a class that is not ours may raise anything
        raise EventDecodeError(f"not an event: {error}") from error
    try:
        fields = msgspec.json.decode(payload, type=dict[str, Any])
        present = {key: value for key, value in fields.items() if value is not None}
        return msgspec.convert(present, as_type)
    except Exception:
        raise EventDecodeError(f"not an event: {failure}") from failure


def _json_form(value: Any) -> Any:
    model_dump = getattr(value, "model_dump", None)
    if model_dump is not None and not isinstance(value, type):
        return model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_ENCODER = msgspec.json.Encoder(enc_hook=_json_form)


@functools.cache
def _decoder(as_type: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(as_type)


def _children(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield child, f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r}]"
    elif isinstance(value, list | tuple | set | frozenset):
        for index, child in enumerate(value):
            yield child, f"{path}[{index}]"
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        for name in value.__dataclass_fields__:
            yield getattr(value, name), f"{path}.{name}"


def _path_of_unencodable(value: Any, path: str = "$") -> str | None:
    try:
        _ENCODER.encode(value)
    except (TypeError, ValueError):
        below = (_path_of_unencodable(child, where) for child, where in _children(value, path))
        return next(filter(None, below), path)
    return None


def _path_of_non_finite(value: Any, path: str = "$") -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, str | bytes | int | None):
        return None
    if isinstance(value, list | tuple | set | frozenset | Mapping) or hasattr(
        value, "__dataclass_fields__"
    ):
        below = (_path_of_non_finite(child, where) for child, where in _children(value, path))
        return next(filter(None, below), None)
    return _path_of_non_finite(msgspec.to_builtins(value, enc_hook=_json_form), path)
