r"""A command's output: kept as the bytes that arrived, made into lines when somebody asks, and printed as it comes.

Lines are those of @ssh: split at `\n` and nowhere else, the `\n` not kept, a `\r` kept, no line after a last `\n`. The
lines of both streams stand in the order in which they ended; what never ended comes last. Bytes that are not UTF-8 are
not lost: they are lone surrogates in the text (PEP 383), and `surrogateescape` makes the same bytes of them again.
"""

from __future__ import annotations

import re
from collections import UserList
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import gevent

from ._arrived import Arrived, Stream

try:
    from pyinfra.api.output import echo, format_text
except ImportError:  # the first releases of pyinfra 3, and all before, print with click itself
    from click import echo  # type: ignore[assignment]
    from click import style as format_text

try:
    from pyinfra.connectors.util import CommandOutput, OutputLine
except ImportError:  # pyinfra 1 and 2 have no such classes; these have the same shape

    @dataclass
    class OutputLine:  # type: ignore[no-redef]
        """One line and the stream that it came from."""

        buffer_name: str
        line: str

    @dataclass
    class CommandOutput:  # type: ignore[no-redef]
        """Lines in the order in which they ended."""

        combined_lines: list[OutputLine]

        def __iter__(self) -> Iterator[OutputLine]:
            yield from self.combined_lines

        @property
        def output(self) -> str:
            """All lines, joined by newlines."""
            return "\n".join(line.line for line in self.combined_lines)


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["LazyCommandOutput", "LinePrinter", "Lines", "Stream", "echo", "printable", "shown"]

MAX_PENDING_BYTES: Final = 64 * 1024  # of a line that does not end, before a part of it is printed

_TURN_LINES: Final = 200  # printed at once, after which other greenlets have their turn

_MAX_SEQUENCE_BYTES: Final = 64  # of an escape sequence that passes
_RESET: Final = "\x1b[0m"

# What passes unchanged: printable text, tabs, and SGR sequences (ECMA-48 section 8.3.117: colour, bold and the like).
# Everything else that a terminal may obey is shown: C0 and C1 controls with ESC among them, bytes that are not UTF-8
# (lone surrogates here), line separators, and the controls that reorder text (Unicode TR 9: LRE to RLO, LRI to PDI).
_UNSAFE: Final = re.compile(
    r"(?P<sgr>\x1b\[[0-9;:]{0,61}m)|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class LazyCommandOutput(CommandOutput):
    """pyinfra's `CommandOutput` for bytes: equal, in all that it answers, to the one @ssh makes of the same bytes.

    200 MiB of output take 200 MiB. Lines are made when they are asked for: all of them for a list, one after the
    other for a loop over this object or over its `combined_lines`.

    Args:
        chunks: what arrived, in that order; more may follow by `feed`.
        errors: how bytes that are not UTF-8 become text, as for `bytes.decode`; it must not depend on where chunks
            end, which holds for every handler that works byte by byte.

    Attributes:
        signal_name: the signal that ended the command's main process, "SIGKILL" for example, as the target's system
            calls it; None if the process exited by itself. A shell that exits with 137 because its child was killed
            has exited by itself.
    """

    signal_name: str | None = None

    def __init__(self, chunks: Iterable[tuple[Stream, bytes]] = (), errors: str = "surrogateescape") -> None:
        # Not super().__init__(): a dataclass would set combined_lines, which is a property here.
        self._arrived = Arrived(errors)
        self._lines: Lines | None = None
        for stream, data in chunks:
            self.feed(stream, data)

    def feed(self, stream: Stream, data: bytes) -> None:
        """Add *data* that arrived on *stream*."""
        self._lines = None
        self._arrived.feed(stream, data)

    @property
    def stdout_bytes(self) -> bytes:
        """Everything that arrived on stdout, exactly."""
        return self._arrived.content("stdout")

    @property
    def stderr_bytes(self) -> bytes:
        """Everything that arrived on stderr, exactly."""
        return self._arrived.content("stderr")

    @property
    def stdout(self) -> str:
        """The lines of stdout, joined by newlines: without one at the end."""
        return self._arrived.text("stdout")

    @property
    def stderr(self) -> str:
        """The lines of stderr, joined by newlines: without one at the end."""
        return self._arrived.text("stderr")

    @property
    def stdout_lines(self) -> list[str]:
        """The lines of stdout."""
        return self._arrived.lines_of("stdout")

    @property
    def stderr_lines(self) -> list[str]:
        """The lines of stderr."""
        return self._arrived.lines_of("stderr")

    # The base has a plain attribute, whose value nobody replaces; the list, once made, is the same each time.
    @property
    def combined_lines(self) -> Lines:  # type: ignore[override]
        """The lines of both streams, in the order in which they ended."""
        if self._lines is None:
            self._lines = Lines(self._arrived)
        return self._lines

    @property
    def output_lines(self) -> list[str]:
        """The text of `combined_lines`."""
        return [line for _, lines in self._arrived.blocks() for line in lines]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CommandOutput):
            return NotImplemented
        return self.combined_lines == other.combined_lines

    def __repr__(self) -> str:
        # The base's name: nothing that a deployment prints or compares depends on the connector.
        return f"{CommandOutput.__name__}(combined_lines={self.combined_lines!r})"


class Lines(UserList[OutputLine]):
    """A list of lines that are made one by one for whoever iterates, and all at once for whoever needs a list.

    Not a subclass of list: CPython reads the elements of one past every method of its own.
    """

    def __init__(self, source: Arrived | Iterable[OutputLine] = ()) -> None:
        # Not super().__init__(): it would set data, which is a property here.
        self._arrived: Arrived | None = None
        self._made: list[OutputLine] = []
        if isinstance(source, Arrived):
            self._arrived = source
        else:  # how a UserList makes another: slices, sums, copies
            self._made = list(source)

    @property
    def data(self) -> list[OutputLine]:
        """The list."""
        if self._arrived is not None:
            self._made, self._arrived = list(self), None
        return self._made

    @data.setter
    def data(self, lines: list[OutputLine]) -> None:
        self._made, self._arrived = lines, None

    def __iter__(self) -> Iterator[OutputLine]:
        if self._arrived is None:
            return iter(self._made)
        return (OutputLine(stream, line) for stream, lines in self._arrived.blocks() for line in lines)

    def __reversed__(self) -> Iterator[OutputLine]:
        if self._arrived is None:
            return reversed(self._made)
        blocks = self._arrived.blocks_backwards()
        return (OutputLine(stream, line) for stream, lines in blocks for line in reversed(lines))

    def __len__(self) -> int:
        return len(self._made if self._arrived is None else self._arrived)

    def __copy__(self) -> Lines:
        return self.copy()


class LinePrinter:
    r"""Prints a command's output as pyinfra does, each line when it ends: prefix, and red for stderr.

    A target cannot write outside its lines: see `printable`. Of a line that was overwritten with `\r`, as progress
    bars are, the last state is printed, when the line ends. A line that does not end is printed in parts of 64 KiB.

    Call it from the greenlet that runs the command: printing may raise, for example OSError for a closed terminal, and
    lets other greenlets run.
    """

    def __init__(self, print_prefix: str) -> None:
        self._prefix = print_prefix
        self._pending: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def feed(self, stream: Stream, data: bytes) -> None:
        """Print what *data* completes."""
        pending = self._pending[stream]
        end = data.rfind(b"\n")
        if end >= 0:
            pending += data[:end]
            lines = bytes(pending).split(b"\n")
            pending.clear()
            for line in lines:
                self._print(stream, _last_state(line))
            if len(lines) >= _TURN_LINES:
                gevent.sleep(0)  # printing takes ten times as long as anything else here, and other hosts wait
        pending += data[end + 1 :]
        if len(pending) > MAX_PENDING_BYTES:
            pending[:] = self._shorten(stream, bytes(pending))

    def finish(self) -> None:
        """Print what did not end with a newline; call it once, when both streams are at their end."""
        for stream, rest in self._pending.items():
            if rest:
                self._print(stream, _last_state(bytes(rest)))
                rest.clear()

    def _shorten(self, stream: Stream, rest: bytes) -> bytes:
        # A \r at the end stays: a \n may follow, and then it overwrites nothing.
        content = rest.rstrip(b"\r")
        rest = content[content.rfind(b"\r") + 1 :] + rest[len(content) :][:1]
        start = 0
        while len(rest) - start > MAX_PENDING_BYTES:
            cut = start + _safe_cut(rest[start : start + MAX_PENDING_BYTES + 1])
            self._print(stream, _last_state(rest[start:cut]))
            start = cut
        return rest[start:]

    def _print(self, stream: Stream, line: bytes) -> None:
        text = printable(line)
        echo(f"{self._prefix}{format_text(text, 'red') if stream == 'stderr' else text}", err=True)


def printable(line: bytes) -> str:
    """Return *line* as text that stays on its line of a terminal: `shown`, of UTF-8."""
    return shown(line.decode("utf-8", "surrogateescape"))


def shown(text: str) -> str:
    r"""Return *text* with all that a terminal would obey made visible.

    Printable characters, tabs and SGR sequences (`ESC [ ... m`: colours) pass, and colours end with the text. All
    other controls, the escape character of other sequences among them, bytes that are not UTF-8, and characters that
    reorder text are shown as `\x1b` or `\u202e`.
    """
    if text.isprintable():
        return text
    text = _UNSAFE.sub(_show, text)
    # An escape character that is left belongs to an SGR sequence.
    return f"{text}{_RESET}" if "\x1b" in text and not text.endswith(_RESET) else text


def _show(match: re.Match[str]) -> str:
    if match["sgr"] is not None:
        return match["sgr"]
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # what surrogateescape makes of the byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def _last_state(line: bytes) -> bytes:
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def _safe_cut(data: bytes) -> int:
    """Return where to cut *data*, before its last byte or earlier: not within a character or an escape sequence."""
    limit = len(data) - 1
    escape = data.rfind(b"\x1b", limit - _MAX_SEQUENCE_BYTES, limit)
    if escape >= 0 and b"m" not in data[escape:limit]:
        return escape
    cut = limit
    while limit - cut < 3 and data[cut] & 0xC0 == 0x80:  # a continuation byte (RFC 3629 section 3)
        cut -= 1
    return cut
