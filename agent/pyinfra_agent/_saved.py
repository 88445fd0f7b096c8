"""What an agent hands over to its successor: values, and their form as bytes.

A successor may be newer or older than its predecessor, so the state carries a version, and each value is checked
against its declared type when it is read. There is no reading of other versions: `SavedStateInvalid` leads to the
documented end (`_handover`), in which sessions are lost and commands live on.

Descriptors are stated as positions in the list that travels beside the state (`Descriptors`).
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgpack

__all__ = [
    "Descriptors",
    "SavedAgent",
    "SavedProcess",
    "SavedRequest",
    "SavedRun",
    "SavedSession",
    "SavedStateInvalid",
    "decode_agent",
    "encode_agent",
]

#: Changes with every change of what follows, or of what it means.
_VERSION: Final = 1


class SavedStateInvalid(Exception):
    """The bytes are no state, or one that only another version of this program understands."""


@dataclass(frozen=True, slots=True)
class SavedProcess:
    """A running command, or one whose main process has exited and whose outputs are still listened to.

    Attributes:
        pidfd, stdin, stdout, stderr: descriptors; None for what is over or never was. With a terminal, `stdin` is None
            or the same as `stdout`.
        has_exited: the main process was reaped; it ended as `exit_code` and `exit_signal` say, or nobody knows how.
        unwritten: the rest of what was being written to its standard input.
        last_byte: the last byte that was written there.
        drain_seconds: what is left of the time in which its outputs are listened to after the exit.
        rest: of stdout and of stderr, what had been written when that time was spent; None before.
        cgroup: where it lives, if it has a cgroup of its own.
        tree: what was last seen of those whom it started: id, parent, group, session, start time.
    """

    pid: int
    has_terminal: bool
    pidfd: int | None
    stdin: int | None
    stdout: int | None
    stderr: int | None
    has_exited: bool
    exit_code: int | None
    exit_signal: int | None
    unwritten: bytes
    last_byte: int | None
    drain_seconds: float
    rest: tuple[int | None, int | None]
    cgroup: str | None
    tree: tuple[tuple[int, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class SavedRun:
    """An exec request that is being carried out.

    Attributes:
        timeout_seconds: what is left to it, if it has a limit.
        reason: why it ends: "exited", or what the agent ended it for.
    """

    process: SavedProcess
    timeout_seconds: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class SavedRequest:
    """A request that was not answered, and its streams.

    Attributes:
        name, fields: the request's name and, as msgpack, its fields.
        age_seconds: how long ago it arrived.
        run: its command; None if it was not begun.
        returned: data that its handler took and gave back.
        inbox: data that arrived and was not taken.
        has_ended: no more will come; `end_size` and `end_digest` are what the controller said of it.
        is_cancelled: the controller does not want it any more.
        signals: what came before there was a command; `size` likewise, rows and columns.
        unsent: output that was read and is not yet the session's, of stream `unsent_stream`.
    """

    number: int
    name: str
    fields: bytes
    age_seconds: float
    run: SavedRun | None
    returned: bytes
    inbox: tuple[bytes, ...]
    has_ended: bool
    end_size: int | None
    end_digest: bytes | None
    is_cancelled: bool
    signals: tuple[int, ...]
    size: tuple[int, int] | None
    unsent: bytes
    unsent_stream: int


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A session.

    Attributes:
        controller: who holds it, as msgpack of `Controller.to_state`.
        protocol: `Session.export`; None for a session that is over and whose commands run on.
    """

    controller: bytes
    ident: bytes
    attempt: int
    protocol: bytes | None
    requests: tuple[SavedRequest, ...]


@dataclass(frozen=True, slots=True)
class SavedAgent:
    """Everything.

    Attributes:
        software: who wrote it, for the log.
        written_at: seconds of the system's monotonic clock, which both processes share.
        listen: the addresses that it was told to listen on.
        listeners: the sockets that do.
        discarding: outputs that nobody wants, and that must not be closed before their end.
    """

    software: str
    written_at: float
    listen: tuple[tuple[str | None, int], ...]
    listeners: tuple[int, ...]
    sessions: tuple[SavedSession, ...]
    discarding: tuple[int, ...]


class Descriptors:
    """Descriptors that are handed over, each once."""

    def __init__(self, numbers: typing.Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self.numbers: list[int] = list(numbers)
        self._taken: set[int] = set()

    def put(self, number: int) -> int:
        """Return the place in the list of a descriptor."""
        if number not in self._places:
            self._places[number] = len(self.numbers)
            self.numbers.append(number)
        return self._places[number]

    def add(self, number: int | None) -> int | None:
        """Return the place in the list of a descriptor; None for none."""
        return self.put(number) if number is not None else None

    def take(self, place: int | None) -> int | None:
        """Return the descriptor at a place of the list; it is the caller's from now on.

        Raises:
            SavedStateInvalid: the list has no such place.
        """
        if place is None:
            return None
        if not 0 <= place < len(self.numbers):
            raise SavedStateInvalid(f"there is no descriptor {place}")
        self._taken.add(place)
        return self.numbers[place]

    def left(self) -> list[int]:
        """Return those that nobody took."""
        return [number for place, number in enumerate(self.numbers) if place not in self._taken]


def encode_agent(saved: SavedAgent) -> bytes:
    """Return the state as bytes."""
    return bytes(msgpack.packb([_VERSION, dataclasses.asdict(saved)], use_bin_type=True))


def decode_agent(data: bytes | memoryview) -> SavedAgent:
    """Read what `encode_agent` returned.

    Raises:
        SavedStateInvalid: it is something else, or of another version.
    """
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException):
        raise SavedStateInvalid("it is not msgpack") from None
    if type(value) is not list or len(value) != 2 or type(value[0]) is not int:
        raise SavedStateInvalid("it has no version")
    if value[0] != _VERSION:
        raise SavedStateInvalid(f"it has version {value[0]}, and this agent understands version {_VERSION}")
    saved: SavedAgent = _read(SavedAgent, value[1], "state")
    return saved


T = TypeVar("T")


@functools.cache
def _types_of(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401  # what *kind* says
    """Return *value* as the declared type *kind*, exactly: a bool is no integer."""
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        names = _types_of(kind)
        if type(value) is not dict or value.keys() != names.keys():
            raise SavedStateInvalid(f"{where} does not have the fields of {kind.__name__}")
        return kind(**{name: _read(names[name], value[name], f"{where}.{name}") for name in names})
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if type(value) is not list or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise SavedStateInvalid(f"{where} is not a list of the right length")
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return tuple(_read(item, entry, where) for item, entry in zip(kinds, value, strict=True))
    if isinstance(kind, types.UnionType):
        return None if value is None else _read(arguments[0], value, where)
    if type(value) is not kind:
        raise SavedStateInvalid(f"{where} is not {kind.__name__}")
    return value
