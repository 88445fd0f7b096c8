"""The agents this user knows: one `NAME pyinfra-agent-key BASE64 [comment]` a line, as OpenSSH's known_hosts.

NAME is `host:port`, in lower case, IPv6 in brackets. Empty lines and lines that start with `#` mean nothing. Where two
lines name the same agent the first one counts, and the other is reported. A line `@next NAME pyinfra-agent-key ...` is
the key that the agent itself, known by the one it had, has announced for after its rotation: once the agent shows that
one, it takes the place of the pin.

A line that cannot be read never makes an agent unknown: the agent that it names is refused until somebody mends it,
or else damaging one line would be enough to have a new key pinned.
"""

from __future__ import annotations

import enum
import fcntl
import os
import secrets
import shlex
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gevent

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import check_public, fingerprint, format_public, parse_public

from ._identity import agent_home
from ._names import BadAgentName, parse_pin_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["POLICIES", "KnownAgents", "Pin", "PinResult", "UntrustedAgent"]

#: What a user may choose; `pinned` is for agents that nobody but discovery has named.
POLICIES: Final = ("strict", "accept-new", "ca")

LOCK_TIMEOUT_SECONDS: Final = 10.0
LOCK_RETRY_SECONDS: Final = 0.01
MAX_COMMENT_CHARACTERS: Final = 128

_HOME_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_NEXT: Final = "@next"

_Signature = tuple[int, int, int, int, int]


class UntrustedAgent(Exception):
    """An agent's key is not the one that the user pinned, or cannot be pinned; the text says what to do."""


class PinResult(enum.Enum):
    """How an accepted key is known."""

    KNOWN = "known"
    PINNED = "pinned"  # it is in the file from now on
    ROTATED = "rotated"  # it was announced by the one that it has replaced


@dataclass(frozen=True, slots=True)
class Pin:
    """A key of 32 bytes and the line, counted from 1, that pins it."""

    key: bytes
    line_number: int
    comment: str = ""


@dataclass(frozen=True, slots=True)
class _Contents:
    pins: dict[str, Pin] = field(default_factory=dict)
    next_pins: dict[str, Pin] = field(default_factory=dict)
    lines: int = 0
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

    def next_pins(self) -> dict[str, Pin]:
        """Return the keys that agents have announced for after their rotation, by name.

        Raises:
            UntrustedAgent: the file cannot be read.
        """
        return dict(self._read().next_pins)

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
        with self._writing(f"{name} cannot be pinned in {self.path}"):
            known = self.lookup(name)
            if known is not None:
                self._compare(name, known, key)
                return PinResult.KNOWN
            comment = _clean(comment)
            contents, size = self._contents, self._signature[2] if self._signature else 0
            line = f"{name} {format_public(key, comment)}\n".encode()
            status = self._append(line)
            # What was just written is not read back: ten thousand new agents would cost the square of that.
            if status.st_size == size + len(line):
                contents.pins[name] = Pin(key, contents.lines + 1, comment)
                self._contents = replace(contents, lines=contents.lines + 1)
                self._signature = _signature(status)
        return PinResult.PINNED

    def learn_next(self, name: str, key: bytes, next_key: bytes) -> None:
        """Note that the agent *name*, pinned with *key*, will have *next_key*; b"" if it plans no rotation.

        Nothing happens for an agent that is not pinned, or pinned with another key.

        Raises:
            UntrustedAgent: the file cannot be read or written.
        """
        name = parse_pin_name(name)
        if not self._has_news(name, key, next_key):
            return
        with self._writing(f"the next key of {name} cannot be noted in {self.path}"):
            if not self._has_news(name, key, next_key):
                return

            def change(lines: list[str]) -> list[str]:
                kept = [line for line in lines if not (_is_next(line) and _name_of(line) == name)]
                return [*kept, f"{_NEXT} {name} {format_public(next_key)}"] if next_key else kept

            self._rewrite(change)

    def remove(self, name_or_fingerprint: str) -> tuple[str, ...]:
        """Remove the lines of an agent, or of every agent with a key; return the names of what was pinned there.

        Raises:
            UntrustedAgent: the file cannot be read or written.
        """
        if not self.path.exists():
            return ()
        with self._writing(f"nothing can be removed from {self.path}"):
            contents = self._read()
            names = {
                name
                for pins in (contents.pins, contents.next_pins)
                for name, pin in pins.items()
                if fingerprint(pin.key) == name_or_fingerprint
            }
            if not names:
                try:
                    names = {parse_pin_name(name_or_fingerprint)}
                except BadAgentName:
                    return ()
            removed: dict[str, None] = {}

            def change(lines: list[str]) -> list[str]:
                gone = [line for line in lines if _name_of(line) in names]
                removed.update((_name_of(line), None) for line in gone)
                return [line for line in lines if line not in gone]

            self._rewrite(change)
        return tuple(removed)

    def check(
        self,
        name: str,
        key: bytes,
        policy: str,
        comment: str = "",
        *,
        uncertified: str = "shows no certificate",
    ) -> PinResult:
        """Accept *key* as that of *name*, whose agent is not certified, by *policy*: one of `POLICIES` or `pinned`.

        `pinned` is `strict` for an agent that nobody but discovery has named, and says so.

        Args:
            name: `host:port`.
            key: that it has proved.
            policy: as above.
            comment: of a new pin.
            uncertified: why its certificate does not count, behind its name.

        Raises:
            UntrustedAgent: another key is pinned; or none is and *policy* is not `accept-new`; or the file cannot be
                used.
            BadAgentName: *name* does not name one agent.
        """
        if policy not in (*POLICIES, "pinned"):
            raise UntrustedAgent(f"agent_trust is {policy!r}: it must be {', '.join(POLICIES[:-1])} or {POLICIES[-1]}")
        name = parse_pin_name(name)
        _check_key(name, key)
        known = self.lookup(name)
        if known is not None:
            following = self._contents.next_pins.get(name)
            if key != known.key and following is not None and key == following.key:
                return self._promote(name, key)
            self._compare(name, known, key)
            return PinResult.KNOWN
        if policy == "ca":
            raise UntrustedAgent(
                f"{name} {uncertified}, it is not pinned, and agent_trust is ca; its key is {fingerprint(key)}: have it"
                f" signed there with `pyinfra-agent ca sign`, or type: {self._command('add')} {name}"
                f" '{format_public(key)}'"
            )
        if policy == "pinned":
            raise UntrustedAgent(
                f"{name} was found by discovery, which proves nothing, and its key is not pinned; if"
                f" `pyinfra-agent key` on that machine shows {fingerprint(key)} too, type:"
                f" {self._command('add')} {name} '{format_public(key)}'"
            )
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
                f" up anew, or somebody else answers in its place; if you expected this, type:"
                f" {self._command('remove')} {name} (or remove line {known.line_number} of {self.path})"
                " and connect again"
            )

    def _command(self, verb: str) -> str:
        usual = agent_home()
        home = "" if self.path.parent == usual else f" --home {shlex.quote(str(self.path.parent))}"
        return f"pyinfra-agent trust {verb}{home}"

    def _promote(self, name: str, key: bytes) -> PinResult:
        with self._writing(f"the rotated key of {name} cannot be pinned in {self.path}"):
            known = self.lookup(name)
            following = self._contents.next_pins.get(name)
            if known is not None and known.key == key:
                return PinResult.ROTATED  # another process was faster
            if known is None or following is None or following.key != key:
                raise UntrustedAgent(f"the pin of {name} in {self.path} was changed meanwhile: connect again")

            def change(lines: list[str]) -> list[str]:
                lines = list(lines)
                lines[known.line_number - 1] = f"{name} {format_public(key, known.comment)}"
                return [line for line in lines if not (_is_next(line) and _name_of(line) == name)]

            self._rewrite(change)
        return PinResult.ROTATED

    def _has_news(self, name: str, key: bytes, next_key: bytes) -> bool:
        contents = self._read()
        pin, following = contents.pins.get(name), contents.next_pins.get(name)
        if pin is None or pin.key != key or next_key == key:
            return False
        return (following.key if following is not None else b"") != next_key

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
    def _writing(self, failure: str) -> Iterator[None]:
        """Keep other processes, and other greenlets, from writing the file; *failure* begins what OSErrors become."""
        try:
            self.path.parent.mkdir(mode=_HOME_MODE, parents=True, exist_ok=True)
            with self._locked():
                yield
        except OSError as error:
            raise UntrustedAgent(f"{failure}: {error.strerror or error}") from error

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

    def _append(self, line: bytes) -> os.stat_result:
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
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        """Put what *change* makes of the lines in the place of the file: whole, or not at all."""
        path = Path(os.path.realpath(self.path))  # a link stays one
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = file.read().decode("utf-8", "surrogateescape").split("\n")
        has_last_newline = lines[-1] == ""
        lines = lines[:-1] if has_last_newline else lines
        changed = change(lines)
        if changed == lines:
            return
        text = "".join(f"{line}\n" for line in changed)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            with open(fd, "wb") as file:
                os.fchmod(fd, mode)
                file.write(text.encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(fd)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _check_key(name: str, key: bytes) -> None:
    try:
        check_public(key)
    except KeyFormatError as error:
        raise UntrustedAgent(f"{name} shows a key that nobody can have: {error}") from None


def _parse(data: bytes, path: Path) -> _Contents:
    pins: dict[str, Pin] = {}
    next_pins: dict[str, Pin] = {}
    damaged: dict[str, str] = {}
    problems: list[str] = []
    # Not splitlines(), which would also break at form feeds and count other lines than an editor does.
    lines = data.decode("utf-8", "replace").split("\n")
    for number, line in enumerate(lines, start=1):
        words = line.split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        of = pins
        if words[0] == _NEXT:
            of, words = next_pins, (words[1] if len(words) > 1 else "").split(None, 1) or [""]
        try:
            name = parse_pin_name(words[0])
        except BadAgentName as error:
            problems.append(f"line {number} of {path}: {error}")
            continue
        if name in of:
            problems.append(f"line {number} of {path} is ignored: line {of[name].line_number} already pins {name}")
            continue
        try:
            public = parse_public(words[1] if len(words) > 1 else "")
        except KeyFormatError as error:
            problems.append(f"line {number} of {path}: {error}")
            if of is pins:
                damaged[name] = problems[-1]
        else:
            of[name] = Pin(public.key, number, public.comment)
    return _Contents(pins, next_pins, len(lines) - (lines[-1] == ""), damaged, tuple(problems))


def _is_next(line: str) -> bool:
    return line.split(None, 1)[:1] == [_NEXT]


def _name_of(line: str) -> str:
    """Return the name that *line* pins; "" if it pins none."""
    words = line.split()
    try:
        return parse_pin_name(words[1] if _is_next(line) else words[0])
    except (BadAgentName, IndexError):
        return ""


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
