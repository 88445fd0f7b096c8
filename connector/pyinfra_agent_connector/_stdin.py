"""pyinfra's `_stdin` as bytes, in a form that can be sent twice: once, and again when sudo wanted a password.

What it may be, and what is sent:

    None, "", b"", [], False    nothing
    str                         UTF-8, and a newline at the end if there is none, as pyinfra does
    bytes                       unchanged (pyinfra itself takes no bytes)
    list, tuple                 one item after the other, each as above
    binary file                 unchanged; from its beginning if it can seek, as pyinfra does for files.put
    text file                   likewise, as UTF-8 whatever the file's encoding is, newline at the end as above
    other iterables             items as they are made; remembered up to 8 MiB for a second sending

A file that cannot seek, such as a pipe, is sent as other iterables are.

An iterable that waits has to wait as greenlets do, by gevent.sleep() or a gevent queue for example: while it blocks
the process, nothing is sent, to no host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

__all__ = ["StdinError", "stdin_source", "typed"]

CHUNK_BYTES: Final = 256 * 1024
MAX_REMEMBERED_BYTES: Final = 8 * 1024 * 1024
#: Linux's N_TTY_BUF_SIZE less the newline: of a longer line a terminal drops the rest, without a word.
MAX_LINE_BYTES: Final = 4095


class StdinError(OSError):
    """`_stdin` cannot be sent, or not a second time. An OSError, because pyinfra handles no other from a command."""


def stdin_source(stdin: object) -> bytes | Iterable[bytes] | None:
    """Return what to send for pyinfra's *stdin*: nothing, bytes, or chunks of bytes.

    Call it once per command, outside the closure of the sudo retry. An iterable result starts from the beginning each
    time that it is iterated, so the retry sends the same bytes. Greenlets of many hosts may send one file at once if
    it can seek.

    Raises:
        StdinError: *stdin* is of another type. Iterating raises it for a bad item, for a file that cannot be read, and
            for the second sending of an iterable that has made more than `MAX_REMEMBERED_BYTES`.
    """
    if not stdin:
        return None
    if isinstance(stdin, str | bytes | bytearray | memoryview):
        return _encode(stdin)
    if isinstance(stdin, list | tuple):
        return _Items(stdin)
    if hasattr(stdin, "read"):
        return _SeekableFile(stdin) if _is_seekable(stdin) else _Remembered(_read_chunks(stdin.read))
    if isinstance(stdin, Iterable) and not isinstance(stdin, dict):
        return _Remembered(_encode(item) for item in stdin)
    raise StdinError(
        f"_stdin is of type {type(stdin).__name__}: give str, bytes, a file, or an iterable of str or bytes"
    )


def typed(stdin: bytes | Iterable[bytes] | None, *, by_sudo: bool) -> Iterator[bytes] | None:
    """Return what `stdin_source` gave, checked as it goes for what a terminal would lose.

    Args:
        stdin: for one sending.
        by_sudo: sudo reads it, and hands it on to a terminal of its own.

    Raises:
        StdinError: when iterated, for a line that is too long, and with *by_sudo* for a last line that does not end.
    """
    return None if stdin is None else _typed([stdin] if isinstance(stdin, bytes) else stdin, by_sudo)


def _typed(chunks: Iterable[bytes], by_sudo: bool) -> Iterator[bytes]:
    line = b""
    for chunk in chunks:
        lines = (line + chunk).replace(b"\r", b"\n").split(b"\n")  # a terminal takes either for the end of a line
        if max(map(len, lines)) > MAX_LINE_BYTES:
            raise StdinError(
                f"_stdin has a line of more than {MAX_LINE_BYTES} bytes, and a terminal drops the rest of such a line:"
                " leave out _get_pty, or upload a file"
            )
        line = lines[-1]
        yield chunk
    # What stands in an unfinished line is no input yet; sudo then sees no end of it, and its command would wait.
    if line and by_sudo:
        raise StdinError("_stdin ends within a line: with _sudo and _get_pty it must end in a newline")


class _Items:
    """A list of items, joined to chunks: a thousand short lines are one message, not a thousand."""

    def __init__(self, items: list[object] | tuple[object, ...]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[bytes]:
        chunk = bytearray()
        for item in self._items:
            chunk += _encode(item)
            if len(chunk) >= CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        if chunk:
            yield bytes(chunk)


class _SeekableFile:
    """A file from its beginning; each reader keeps its own place, because those of other hosts move the file's."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - text and binary files share no useful type
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        place = 0

        def read(size: int) -> object:
            nonlocal place
            # A reader that is alone never seeks: in a compressed file, seeking back means reading all of it again.
            if self._file.tell() != place:
                self._file.seek(place)
            data = self._file.read(size)
            place = self._file.tell()
            return data

        return _read_chunks(read)


class _Remembered:
    """Chunks that can be made only once, kept for a second reader as long as they are few."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._made = bytearray()
        self._made_bytes = 0
        self._was_interrupted = False

    def __iter__(self) -> Iterator[bytes]:
        if self._was_interrupted:
            raise StdinError(
                "_stdin cannot be sent a second time: the command ended while an item was being made; set"
                " _sudo_password, or give a list, bytes or a seekable file"
            )
        if self._made_bytes > MAX_REMEMBERED_BYTES:
            raise StdinError(
                f"_stdin cannot be sent a second time after {self._made_bytes} bytes: set _sudo_password, or give a"
                " list, bytes or a seekable file"
            )
        return self._iterate()

    def _iterate(self) -> Iterator[bytes]:
        if self._made:
            yield bytes(self._made)
        while (chunk := self._next()) is not None:
            self._made_bytes += len(chunk)
            if self._made_bytes <= MAX_REMEMBERED_BYTES:
                self._made += chunk
            else:
                self._made.clear()
            yield chunk

    def _next(self) -> bytes | None:
        try:
            return next(self._chunks, None)
        except BaseException:
            # A generator that was left by an exception, such as the end of its greenlet, looks like one at its end.
            self._was_interrupted = True
            raise


def _read_chunks(read: Any) -> Iterator[bytes]:  # noqa: ANN401 - as above
    unfinished_line = False
    while True:
        data = _checked(read, CHUNK_BYTES)
        if not isinstance(data, str | bytes):  # such as None from a file in non-blocking mode
            raise StdinError(
                f"reading _stdin gave {type(data).__name__}: give a file that reads str or bytes, and waits"
            )
        if not data:
            break
        if isinstance(data, str):
            unfinished_line = not data.endswith("\n")
            data = _encode_text(data)
        yield data
    if unfinished_line:
        yield b"\n"


def _checked(call: Any, *arguments: int) -> Any:  # noqa: ANN401 - as above
    try:
        return call(*arguments)
    except ValueError as error:  # a closed file, or text that the file's encoding does not allow
        raise StdinError(f"_stdin cannot be read: {error}") from error


def _is_seekable(file: Any) -> bool:  # noqa: ANN401 - as above
    seekable = getattr(file, "seekable", None)
    return seekable is not None and bool(_checked(seekable))


def _encode(item: object) -> bytes:
    if isinstance(item, str):
        return _encode_text(item if item.endswith("\n") else f"{item}\n")
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    raise StdinError(f"an item of _stdin is of type {type(item).__name__}: give str or bytes")


def _encode_text(text: str) -> bytes:
    try:
        # surrogateescape: text that came out of a command goes in again as the same bytes.
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise StdinError(
            f"_stdin holds a character that UTF-8 has no bytes for: U+{ord(text[error.start]):04X}"
        ) from None
