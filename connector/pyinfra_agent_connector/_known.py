"""The agents this user knows: one `NAME pyinfra-agent-key BASE64 [comment]` a line, as OpenSSH's known_hosts.

NAME is `host:port`, in lower case, IPv6 in brackets. Empty lines and lines that start with `#` mean nothing. Where two
lines name the same agent the first one counts, and the other is reported.

A line that cannot be read never makes an agent unknown: the agent that it names is refused until somebody mends it,
or else damaging one line would be enough to have a new key pinned.
"""

from __future__ import annotations

import enum
import fcntl
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import gevent

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import check_public, fingerprint, format_public, parse_public

from ._names import BadAgentName, parse_pin_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["KnownAgents", "Pin", "PinResult", "UntrustedAgent"]

LOCK_TIMEOUT_SECONDS: Final = 10.0
LOCK_RETRY_SECONDS: Final = 0.01
MAX_COMMENT_CHARACTERS: Final = 128

_HOME_MODE: Final = 0o700
_FILE_MODE: Final = 0o600

_Signature = tuple[int, int, int, int, int]


class UntrustedAgent(Exception):
    """An agent's key is not the one that the user pinned, or cannot be pinned; the text says what to do."""


class PinResult(enum.Enum):
    """How an accepted key is known."""

    KNOWN = "known"
    PINNED = "pinned"  # it is in the file from now on


@dataclass(frozen=True, slots=True)
class Pin:
    """A key of 32 bytes and the line, counted from 1, that pins it."""

    key: bytes
    line_number: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class _Contents:
    pins: dict[str, Pin] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)  # names whose only line cannot be read, and why
    problems: tuple[str, ...] = ()


class KnownAgents:
    """The known_agents file at *path*; it need not exist, and is made with its directory at the first pin.

    Everything is read again when the file changes, so an editor or another process may write it at any time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._contents = _Contents()
        self._signature: _Signature | None = None

    def lookup(self, name: str) -> Pin | None:
        """Return the pin of *name* (`host:port`), or None if the file has none.

        Raises:
            UntrustedAgent: the file, or the line of this name, cannot be read.
            BadAgentName: *name* does not name one agent.
        """
        name = parse_pin_name(name)
        contents = self._read()
        pin = contents.pins.get(name)
        if pin is None and name in contents.damaged:
            raise UntrustedAgent(f"{name} is refused until its pin can be read: {contents.damaged[name]}")
        return pin

    def pins(self) -> dict[str, Pin]:
        """Return every pin by name, in the order of the file.

        Raises:
            UntrustedAgent: the file cannot be read.
        """
        return dict(self._read().pins)

    def problems(self) -> tuple[str, ...]:
        """Return one text for each line that is ignored, with its number and the reason.

        Raises:
            UntrustedAgent: the file cannot be read.
        """
        return self._read().problems

    def pin(self, name: str, key: bytes, comment: str = "") -> PinResult:
        """Add *key* as the pin of *name*; a pin is never replaced.

        Of several processes that see different keys of one name at once, one pins and the others raise.

        Raises:
            UntrustedAgent: another key is pinned, *key* is none, or the file cannot be read or written.
            BadAgentName: *name* does not name one agent.
        """
        name = parse_pin_name(name)
        _check_key(name, key)
        try:
            self.path.parent.mkdir(mode=_HOME_MODE, parents=True, exist_ok=True)
            with self._locked():
                known = self.lookup(name)
                if known is not None:
                    self._compare(name, known, key)
                    return PinResult.KNOWN
                self._append(f"{name} {format_public(key, _clean(comment))}\n".encode())
        except OSError as error:
            raise UntrustedAgent(f"{name} cannot be pinned in {self.path}: {error.strerror or error}") from error
        return PinResult.PINNED

    def check(self, name: str, key: bytes, policy: str, comment: str = "") -> PinResult:
        """Accept *key* as that of *name* by *policy*, which is `strict` or `accept-new`.

        Raises:
            UntrustedAgent: another key is pinned; or none is and *policy* is `strict`; or the file cannot be used.
            BadAgentName: *name* does not name one agent.
        """
        if policy not in ("strict", "accept-new"):
            raise UntrustedAgent(f"agent_trust is {policy!r}: it must be strict or accept-new")
        name = parse_pin_name(name)
        _check_key(name, key)
        known = self.lookup(name)
        if known is not None:
            self._compare(name, known, key)
            return PinResult.KNOWN
        if policy == "strict":
            raise UntrustedAgent(
                f"{name} is not in {self.path} and agent_trust is strict; its key is {fingerprint(key)}: if the agent"
                f" itself shows the same one, add this line there: {name} {format_public(key)}"
            )
        return self.pin(name, key, comment)

    def _compare(self, name: str, known: Pin, key: bytes) -> None:
        if key != known.key:
            raise UntrustedAgent(
                f"the key of {name} has changed from {fingerprint(known.key)} to {fingerprint(key)}: the agent was set"
                f" up anew, or somebody else answers in its place; if you expected this, remove line"
                f" {known.line_number} of {self.path} and connect again"
            )

    def _read(self) -> _Contents:
        try:
            with open(self.path, "rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                if signature != self._signature:
                    self._contents = _parse(file.read(), self.path)
                    self._signature = signature
        except FileNotFoundError:
            self._contents, self._signature = _Contents(), None
        except OSError as error:
            # Not an empty file: a pin that cannot be read must not turn into a first meeting.
            raise UntrustedAgent(f"the known agents in {self.path} cannot be read: {error.strerror}") from error
        return self._contents

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # A file of its own: the one that is protected may be replaced by an editor, and its lock with it.
        fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
            # Asked for again and again, because a flock that waits would stop every greenlet of the process.
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has held {self.path}.lock for {LOCK_TIMEOUT_SECONDS:.0f} s")
                gevent.sleep(LOCK_RETRY_SECONDS)
            yield
        finally:
            os.close(fd)

    def _append(self, line: bytes) -> None:
        # Appended, not rewritten: a whole new file for each of ten thousand new agents costs the square of that. No
        # reader takes a half-written line for a pin, because its base64 is not a whole key.
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line
            try:
                if os.write(fd, line) != len(line):
                    raise OSError("the disk is full")
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)


def _check_key(name: str, key: bytes) -> None:
    try:
        check_public(key)
    except KeyFormatError as error:
        raise UntrustedAgent(f"{name} shows a key that nobody can have: {error}") from None


def _parse(data: bytes, path: Path) -> _Contents:
    pins: dict[str, Pin] = {}
    damaged: dict[str, str] = {}
    problems: list[str] = []
    # Not splitlines(), which would also break at form feeds and count other lines than an editor does.
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), start=1):
        words = line.split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        try:
            name = parse_pin_name(words[0])
        except BadAgentName as error:
            problems.append(f"line {number} of {path}: {error}")
            continue
        if name in pins:
            problems.append(f"line {number} of {path} is ignored: line {pins[name].line_number} already pins {name}")
            continue
        try:
            public = parse_public(words[1] if len(words) > 1 else "")
        except KeyFormatError as error:
            damaged[name] = f"line {number} of {path}: {error}"
            problems.append(damaged[name])
        else:
            pins[name] = Pin(public.key, number, public.comment)
    return _Contents(pins, damaged, tuple(problems))


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clean(comment: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in comment)
    return " ".join(printable.split())[:MAX_COMMENT_CHARACTERS].rstrip()
