r"""A command's output: kept as the bytes that arrived, made into lines when somebody asks, and printed as it comes.

Lines are those of @ssh: split at `\n` and nowhere else, the `\n` not kept, a `\r` kept, no line after a last `\n`. The
lines of both streams stand in the order in which they ended; what never ended comes last. Bytes that are not UTF-8 are
not lost: they are lone surrogates in the text (PEP 383), and `surrogateescape` makes the same bytes of them again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

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

__all__ = ["LazyCommandOutput", "LinePrinter", "Stream", "printable"]

Stream = Literal["stdout", "stderr"]

SMALL_CHUNK_BYTES: Final = 4 * 1024  # smaller ones are joined, as each object costs some 150 bytes beside its content
JOINED_CHUNK_BYTES: Final = 64 * 1024
MAX_PENDING_BYTES: Final = 64 * 1024  # of a line that does not end, before a part of it is printed

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

    200 MiB of output take 200 MiB until `combined_lines` is asked for; `stdout` and `stdout_lines` never build it.

    Args:
        chunks: what arrived, in that order; more may follow by `feed`.
        errors: how bytes that are not UTF-8 become text, as for `bytes.decode`; it must not depend on where chunks
            end, which holds for every handler that works byte by byte.
    """

    def __init__(self, chunks: Iterable[tuple[Stream, bytes]] = (), errors: str = "surrogateescape") -> None:
        # Not super().__init__(): a dataclass would set combined_lines, which is a property here.
        self._chunks: list[tuple[Stream, bytes | bytearray]] = []
        self._errors = errors
        self._lines: list[OutputLine] | None = None
        for stream, data in chunks:
            self.feed(stream, data)

    def feed(self, stream: Stream, data: bytes) -> None:
        """Add *data* that arrived on *stream*."""
        self._lines = None
        if len(data) < SMALL_CHUNK_BYTES:
            if self._chunks:
                last_stream, last = self._chunks[-1]
                if last_stream == stream and isinstance(last, bytearray) and len(last) < JOINED_CHUNK_BYTES:
                    last += data
                    return
            self._chunks.append((stream, bytearray(data)))
        else:
            self._chunks.append((stream, data))

    @property
    def stdout_bytes(self) -> bytes:
        """Everything that arrived on stdout, exactly."""
        return self._joined("stdout")

    @property
    def stderr_bytes(self) -> bytes:
        """Everything that arrived on stderr, exactly."""
        return self._joined("stderr")

    @property
    def stdout(self) -> str:
        """The lines of stdout, joined by newlines: without one at the end."""
        return self._text(self.stdout_bytes)

    @property
    def stderr(self) -> str:
        """The lines of stderr, joined by newlines: without one at the end."""
        return self._text(self.stderr_bytes)

    @property
    def stdout_lines(self) -> list[str]:
        """The lines of stdout."""
        return self._split(self.stdout_bytes)

    @property
    def stderr_lines(self) -> list[str]:
        """The lines of stderr."""
        return self._split(self.stderr_bytes)

    # The base has a plain attribute, whose value nobody replaces; the list, once made, is the same each time.
    @property
    def combined_lines(self) -> list[OutputLine]:  # type: ignore[override]
        """The lines of both streams, in the order in which they ended."""
        if self._lines is None:
            self._lines = [OutputLine(stream, line) for stream, line in self._in_order()]
        return self._lines

    @property
    def output_lines(self) -> list[str]:
        """The text of `combined_lines`."""
        return [line for _, line in self._in_order()]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CommandOutput):
            return NotImplemented
        return self.combined_lines == other.combined_lines

    def __repr__(self) -> str:
        # The base's name: nothing that a deployment prints or compares depends on the connector.
        return f"{CommandOutput.__name__}(combined_lines={self.combined_lines!r})"

    def _joined(self, stream: Stream) -> bytes:
        return b"".join(data for name, data in self._chunks if name == stream)

    def _text(self, data: bytes) -> str:
        # A view, because cutting the newline off bytes or text would copy all of it once more.
        end = len(data) - data.endswith(b"\n")
        return str(memoryview(data)[:end], "utf-8", self._errors)

    def _split(self, data: bytes) -> list[str]:
        return self._text(data).split("\n") if data else []

    def _in_order(self) -> Iterator[tuple[Stream, str]]:
        unfinished: dict[Stream, list[bytes | bytearray]] = {"stdout": [], "stderr": []}
        for stream, data in self._chunks:
            end = data.rfind(b"\n")
            if end < 0:
                unfinished[stream].append(data)
                continue
            whole = b"".join([*unfinished[stream], data[:end]])
            unfinished[stream] = [data[end + 1 :]]
            for line in whole.decode("utf-8", self._errors).split("\n"):
                yield stream, line
        for stream, parts in unfinished.items():
            rest = b"".join(parts)
            if rest:
                yield stream, rest.decode("utf-8", self._errors)


class LinePrinter:
    r"""Prints a command's output as pyinfra does, each line when it ends: prefix, and red for stderr.

    A target cannot write outside its lines: see `printable`. Of a line that was overwritten with `\r`, as progress
    bars are, the last state is printed, when the line ends. A line that does not end is printed in parts of 64 KiB.

    Call it from the greenlet that runs the command: printing may raise, for example OSError for a closed terminal.
    """

    def __init__(self, print_prefix: str) -> None:
        self._prefix = print_prefix
        self._pending: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}

    def feed(self, stream: Stream, data: bytes) -> None:
        """Print what *data* completes."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._pending[stream] + lines[0]
        else:
            rest = self._pending[stream] + rest
        for line in lines:
            self._print(stream, _last_state(line))
        if len(rest) > MAX_PENDING_BYTES:
            rest = self._shorten(stream, rest)
        self._pending[stream] = rest

    def finish(self) -> None:
        """Print what did not end with a newline; call it once, when both streams are at their end."""
        for stream, rest in self._pending.items():
            if rest:
                self._print(stream, _last_state(rest))
                self._pending[stream] = b""

    def _shorten(self, stream: Stream, rest: bytes) -> bytes:
        # A \r at the end stays: a \n may follow, and then it overwrites nothing.
        content = rest.rstrip(b"\r")
        rest = content[content.rfind(b"\r") + 1 :] + rest[len(content) :][:1]
        while len(rest) > MAX_PENDING_BYTES:
            cut = _safe_cut(rest, MAX_PENDING_BYTES)
            self._print(stream, _last_state(rest[:cut]))
            rest = rest[cut:]
        return rest

    def _print(self, stream: Stream, line: bytes) -> None:
        text = printable(line)
        echo(f"{self._prefix}{format_text(text, 'red') if stream == 'stderr' else text}", err=True)


def printable(line: bytes) -> str:
    r"""Return *line* as text that stays on its line of a terminal.

    UTF-8, tabs and SGR sequences (`ESC [ ... m`: colours) pass, and colours end with the line. All other controls, the
    escape character of other sequences among them, bytes that are not UTF-8, and characters that reorder text are
    shown as `\x1b` or `\u202e`.
    """
    text = line.decode("utf-8", "surrogateescape")
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
    line = line.rstrip(b"\r")
    return line[line.rfind(b"\r") + 1 :]


def _safe_cut(data: bytes, limit: int) -> int:
    """Return where to cut *data* at or shortly before *limit*: not within a character or an escape sequence."""
    escape = data.rfind(b"\x1b", limit - _MAX_SEQUENCE_BYTES, limit)
    if escape >= 0 and b"m" not in data[escape:limit]:
        return escape
    cut = limit
    while limit - cut < 3 and data[cut] & 0xC0 == 0x80:  # a continuation byte (RFC 3629 section 3)
        cut -= 1
    return cut
