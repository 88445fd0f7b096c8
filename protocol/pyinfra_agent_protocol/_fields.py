"""Typed msgpack maps: what a message's fields may be, checked in one place (SPEC.md section 9).

A message is a frozen dataclass whose fields carry a *kind* in their metadata.  Decoding takes hostile
bytes: types are exact (a bool is no integer), lengths are bounded, duplicate keys, extension types
and deep nesting are refused, and every way in which unpacking can fail ends in `MessageInvalid`.
Unknown fields are ignored, so that either side may be newer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, TypeVar

import msgpack

from ._constants import FRAME_BODY_MAX_BYTES, MESSAGE_DEPTH_MAX, MESSAGE_ITEMS_MAX
from ._errors import LocalProtocolError, MessageInvalid

__all__ = [
    "Kind",
    "Message",
    "array",
    "binary",
    "boolean",
    "choice",
    "decode_map",
    "environment",
    "integer",
    "mapping",
    "nullable",
    "pack",
    "record",
    "text",
]

#: Checks one decoded value: returns it in its Python form or raises `_Bad` with what was wrong.
Kind = Callable[[object], Any]

_MISSING: Final = dataclasses.MISSING


class _Bad(Exception):
    """Why a value is refused; the field's name is put in front."""


def integer(low: int, high: int) -> Kind:
    """Integers from *low* to *high*, both included."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _Bad("is not an integer")
        if not low <= value <= high:
            raise _Bad(f"is not from {low} to {high}")
        return value

    return check


def boolean() -> Kind:
    """True or false."""

    def check(value: object) -> bool:
        if type(value) is not bool:
            raise _Bad("is not a boolean")
        return value

    return check


def text(most: int) -> Kind:
    """UTF-8 strings of at most *most* characters."""

    def check(value: object) -> str:
        if type(value) is not str:
            raise _Bad("is not a string")
        if len(value) > most:
            raise _Bad(f"is longer than {most} characters")
        return value

    return check


def choice(*words: str) -> Kind:
    """One of *words*."""

    def check(value: object) -> str:
        if type(value) is not str or value not in words:
            raise _Bad(f"is none of {', '.join(words)}")
        return value

    return check


def binary(most: int, *, least: int = 0, nul: bool = True) -> Kind:
    """Byte strings of *least* to *most* bytes; with ``nul=False`` without NUL, as names in Unix are."""

    def check(value: object) -> bytes:
        if type(value) is not bytes:
            raise _Bad("is not binary")
        if not least <= len(value) <= most:
            raise _Bad(f"is not {least} to {most} bytes long")
        if not nul and b"\0" in value:
            raise _Bad("contains a NUL byte")
        return value

    return check


def array(item: Kind, *, least: int = 0, most: int) -> Kind:
    """Arrays of *least* to *most* items, as tuples; what is to be packed may be a tuple already."""

    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _Bad("is not an array")
        if not least <= len(value) <= most:
            raise _Bad(f"does not have {least} to {most} items")
        return tuple(item(entry) for entry in value)

    return check


def environment(most: int) -> Kind:
    """Maps of variable names to values, both binary without NUL; a name is not empty and has no ``=``."""
    content = binary(FRAME_BODY_MAX_BYTES, nul=False)

    def check(value: object) -> dict[bytes, bytes]:
        if type(value) is not dict:
            raise _Bad("is not a map")
        if len(value) > most:
            raise _Bad(f"has more than {most} variables")
        for name in value:
            if not content(name) or b"=" in name:
                raise _Bad("has a variable name that is empty or contains =")
        return {name: content(entry) for name, entry in value.items()}

    return check


def mapping(most: int) -> Kind:
    """Maps of strings to plain scalars, for facts that are shown and not acted on."""
    scalar = (str, bytes, int, bool, float, type(None))

    def check(value: object) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Bad("is not a map")
        if len(value) > most:
            raise _Bad(f"has more than {most} entries")
        if any(type(name) is not str or type(entry) not in scalar for name, entry in value.items()):
            raise _Bad("has a key that is no string or a value that is no scalar")
        return value

    return check


def record(kind: type[Message]) -> Kind:
    """A message inside a message."""

    def check(value: object) -> Message:
        if type(value) is not dict:
            raise _Bad("is not a map")
        return kind.from_fields(value)

    return check


def nullable(kind: Kind) -> Kind:
    """Nil, or what *kind* takes."""
    return lambda value: None if value is None else kind(value)


def _pairs(pairs: Iterable[tuple[object, object]]) -> dict[object, object]:
    found: dict[object, object] = {}
    for key, value in pairs:
        if type(key) not in (str, bytes):
            raise _Bad("has a key that is neither a string nor binary")
        if key in found:
            raise _Bad("has a key twice")
        found[key] = value
    return found


def _no_extension(code: int, data: bytes) -> object:
    raise _Bad("has an extension type")


def _check_nesting(container: dict[Any, Any] | list[Any], left: int) -> None:
    if not left:
        raise _Bad(f"is nested deeper than {MESSAGE_DEPTH_MAX}")
    for value in container.values() if isinstance(container, dict) else container:
        if type(value) in (dict, list):
            _check_nesting(value, left - 1)
        # The one extension type that msgpack makes a value of without asking `ext_hook`.
        elif type(value) is msgpack.Timestamp:
            raise _Bad("has an extension type")


def decode_map(data: bytes | bytearray) -> dict[Any, Any]:
    """Unpack one msgpack map from hostile *data*.

    Raises:
        MessageInvalid: *data* is not exactly one map of plain types within the bounds.
    """
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=_pairs,
            ext_hook=_no_extension,
            max_array_len=MESSAGE_ITEMS_MAX,
            max_map_len=MESSAGE_ITEMS_MAX,
        )
        if type(value) is not dict:
            raise _Bad("is not a map")
        _check_nesting(value, MESSAGE_DEPTH_MAX)
    except _Bad as bad:
        raise MessageInvalid(f"the message {bad}") from None
    # msgpack raises its own subclasses of ValueError, and on odd input OverflowError, TypeError or
    # RecursionError; hostile bytes choose which, so all of them are one refusal.
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException):
        raise MessageInvalid("the message is not msgpack within its bounds") from None
    return value


def pack(name: str, fields: dict[str, Any]) -> bytes:
    """Pack *fields* of the message called *name* into a frame's body.

    Raises:
        LocalProtocolError: it does not fit a frame, or a field is not packable.
    """
    try:
        data = bytes(msgpack.packb(fields, use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{name} cannot be packed: {error}") from error
    if len(data) > FRAME_BODY_MAX_BYTES:
        raise LocalProtocolError(f"{name} takes {len(data)} bytes, a frame holds {FRAME_BODY_MAX_BYTES}")
    return data


_FIELDS: Final[dict[type[Message], tuple[tuple[str, Any, Kind], ...]]] = {}


def _fields_of(kind: type[Message]) -> tuple[tuple[str, Any, Kind], ...]:
    """Return name, default and kind of each field; asked for at every message, so looked up once."""
    found = _FIELDS.get(kind)
    if found is None:
        declared = dataclasses.fields(kind)  # type: ignore[arg-type]  # every subclass is a dataclass
        found = _FIELDS[kind] = tuple((entry.name, entry.default, entry.metadata["kind"]) for entry in declared)
    return found


M = TypeVar("M", bound="Message")


class Message:
    """Base of all messages: frozen dataclasses whose fields' metadata name their kinds.

    `NAME` is the message's name in SPEC.md section 9, used in texts and, for requests, on the wire.
    """

    NAME: ClassVar[str]

    @classmethod
    def from_fields(cls: type[M], fields: dict[Any, Any]) -> M:
        """Build the message from decoded *fields*, ignoring those it does not know.

        Raises:
            MessageInvalid: a field is missing or not of its kind.
        """
        values: dict[str, Any] = {}
        for name, default, check in _fields_of(cls):
            if name not in fields:
                if default is _MISSING:
                    raise MessageInvalid(f"{cls.NAME}: {name} is missing")
                continue
            try:
                values[name] = check(fields[name])
            except _Bad as bad:
                raise MessageInvalid(f"{cls.NAME}: {name} {bad}") from None
        return cls(**values)

    @classmethod
    def decode(cls: type[M], data: bytes | bytearray) -> M:
        """Read the message from a frame's body; raises `MessageInvalid`."""
        return cls.from_fields(decode_map(data))

    def to_fields(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults: an absent field means its default."""
        fields: dict[str, Any] = {}
        for name, default, _ in _fields_of(self.__class__):
            value = getattr(self, name)
            if default is _MISSING or value != default:
                fields[name] = value.to_fields() if isinstance(value, Message) else value
        return fields

    def encode(self) -> bytes:
        """Pack the message into a frame's body.

        Raises:
            LocalProtocolError: it does not fit a frame, or a field is not of its kind.
        """
        fields = self.to_fields()
        data = pack(self.NAME, fields)
        # One bad field would end the peer's session with all of its commands: we hold ourselves to the same table.
        try:
            self.from_fields(fields)
        except MessageInvalid as error:
            raise LocalProtocolError(str(error)) from None
        return data


def field(kind: Kind, default: object = _MISSING) -> Any:  # noqa: ANN401  # whatever the field's annotation says
    """Declare a message's field: its kind, and its default if it may be absent."""
    return dataclasses.field(default=default, metadata={"kind": kind})
