"""`_stdin` as bytes."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.connectors.util import write_stdin

from pyinfra_agent_connector._stdin import (
    CHUNK_BYTES,
    MAX_LINE_BYTES,
    MAX_REMEMBERED_BYTES,
    StdinError,
    stdin_source,
    typed,
)

if TYPE_CHECKING:
    from pathlib import Path


def sent(source: Any) -> bytes:
    """Carry what *source* would send."""
    return source if isinstance(source, bytes) else b"".join(source or ())


def chunks_of(stdin: object) -> list[bytes]:
    """Return the chunks of what is sent in chunks."""
    source = stdin_source(stdin)
    assert source is not None
    assert not isinstance(source, bytes)
    return list(source)


class Sink(io.BytesIO):
    """What pyinfra writes to, readable after it is closed."""

    content = b""

    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


@pytest.mark.parametrize("stdin", [None, "", b"", [], (), False])
def test_stdin_source_of_nothing_is_none(stdin):
    """What pyinfra takes for no stdin is none."""
    assert stdin_source(stdin) is None


@pytest.mark.parametrize(
    ("stdin", "expected"),
    [
        ("a", b"a\n"),
        ("a\n", b"a\n"),
        ("a\n\n", b"a\n\n"),
        ("é\udcff", b"\xc3\xa9\xff\n"),
        (b"a", b"a"),
        (bytearray(b"a\x00"), b"a\x00"),
        (memoryview(b"ab")[1:], b"b"),
        (["a", "b\n", ""], b"a\nb\n\n"),
        (("a", b"b", "c"), b"a\nbc\n"),
        (io.StringIO("a\nb"), b"a\nb\n"),
        (io.StringIO("a\nb\n"), b"a\nb\n"),
        (io.StringIO(""), b""),
        (io.BytesIO(b"a\xff"), b"a\xff"),
    ],
)
def test_stdin_source_sends_the_same_bytes_twice(stdin, expected):
    """Each kind of stdin has its bytes, and the sudo retry sends them again."""
    source = stdin_source(stdin)
    assert sent(source) == expected
    assert sent(source) == expected


@given(st.lists(st.text(), min_size=1) | st.text(min_size=1))
def test_stdin_source_sends_what_pyinfra_would(stdin):
    """For text and lists of text, the bytes are those that pyinfra's own write_stdin writes."""
    sink = Sink()
    try:
        write_stdin(stdin, sink)
    except UnicodeEncodeError:
        return
    assert sent(stdin_source(stdin)) == sink.content


def test_stdin_source_joins_short_items():
    """Many short items of a list become few chunks."""
    chunks = chunks_of(["line"] * 100_000)
    assert len(chunks) == 2
    assert sent(chunks) == b"line\n" * 100_000


def test_stdin_source_sends_a_generator_again_from_its_beginning():
    """A retry in the middle sees the items that were sent, and then the rest."""
    source = stdin_source(f"item {number}" for number in range(4))
    assert source is not None
    first = iter(source)
    assert [next(first), next(first)] == [b"item 0\n", b"item 1\n"]
    assert sent(source) == b"item 0\nitem 1\nitem 2\nitem 3\n"
    assert sent(source) == b"item 0\nitem 1\nitem 2\nitem 3\n"


def test_stdin_source_makes_items_only_when_they_are_sent():
    """A generator is not run ahead of its reader."""
    made = []

    def items():
        for number in range(3):
            made.append(number)
            yield str(number)

    source = stdin_source(items())
    assert source is not None
    assert made == []
    assert next(iter(source)) == b"0\n"
    assert made == [0]


def test_stdin_source_refuses_to_repeat_more_than_it_remembers():
    """A generator beyond the bound is sent once, and a retry is one clear OSError."""
    piece = b"x" * (1 << 20)
    count = MAX_REMEMBERED_BYTES // len(piece)
    within = stdin_source(piece for _ in range(count))
    assert within is not None
    assert len(sent(within)) == len(sent(within)) == MAX_REMEMBERED_BYTES
    beyond = stdin_source(piece for _ in range(count + 1))
    assert beyond is not None
    assert len(sent(beyond)) == MAX_REMEMBERED_BYTES + len(piece)
    with pytest.raises(OSError, match=r"second time.*_sudo_password"):
        iter(beyond)


def test_stdin_source_refuses_to_repeat_a_generator_that_was_stopped_inside():
    """A generator that its greenlet's end has ended is no generator at its end: the rest would be missing."""

    def items():
        yield "first"
        gevent.sleep(60)
        yield "second"

    source = stdin_source(items())
    received: list[bytes] = []
    reader = gevent.spawn(lambda: received.extend(source))
    gevent.sleep(0)
    reader.kill()
    assert source is not None
    with pytest.raises(OSError, match=r"while an item was being made.*_sudo_password"):
        iter(source)


@pytest.mark.parametrize("mode", ["rb", "r"])
def test_stdin_source_streams_a_file_in_chunks_from_its_beginning(tmp_path: Path, mode):
    """A file is read in chunks, from the start each time, whatever was read of it before."""
    content = "".join(f"liné {number}\n" for number in range(100_000))
    path = tmp_path / "file"
    path.write_bytes(content.encode())
    with open(path, mode, encoding=None if "b" in mode else "utf-8") as file:
        file.readline()
        chunks = chunks_of(file)
        assert len(chunks) > 2
        assert max(len(chunk) for chunk in chunks) <= 2 * CHUNK_BYTES
        assert sent(chunks) == sent(stdin_source(file)) == content.encode()


def test_stdin_source_lets_many_hosts_send_one_file():
    """Readers of one file that take turns each get all of it."""
    content = os.urandom(3 * CHUNK_BYTES + 1)
    file = io.BytesIO(content)
    sources = [stdin_source(file) for _ in range(3)]
    readers = [iter(source) for source in sources if source is not None]
    received = [b"" for _ in readers]
    for _ in range(4):
        for number, reader in enumerate(readers):
            received[number] += next(reader)
    assert received == [content] * 3


def test_stdin_source_does_not_seek_in_a_file_that_only_it_reads():
    """A compressed file, where each seek back starts all over, is decompressed once."""

    class Unmoved(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            raise AssertionError("seek")

    assert sent(stdin_source(Unmoved(bytes(3 * CHUNK_BYTES)))) == bytes(3 * CHUNK_BYTES)


def test_stdin_source_remembers_a_pipe():
    """What cannot seek is remembered like a generator."""
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo")
    os.close(writing)
    with open(reading, "rb") as file:
        source = stdin_source(file)
        assert sent(source) == b"one\ntwo"
        assert sent(source) == b"one\ntwo"


@pytest.mark.parametrize("stdin", [7, {"a": 1}, object()])
def test_stdin_source_refuses_another_type(stdin):
    """A stdin that cannot be sent is an OSError that names its type."""
    with pytest.raises(StdinError, match=type(stdin).__name__) as caught:
        stdin_source(stdin)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("stdin", [["a", 7], (item for item in ["a", 7])])
def test_stdin_source_refuses_a_bad_item_when_it_comes_to_it(stdin):
    """A bad item is an OSError that names its type."""
    with pytest.raises(StdinError, match="item of _stdin is of type int"):
        sent(stdin_source(stdin))


def test_stdin_source_refuses_a_closed_file_and_a_file_that_does_not_wait():
    """A file that cannot be read is an OSError, not an end of file."""
    closed = io.BytesIO(b"a")
    closed.close()
    with pytest.raises(StdinError, match="closed file"):
        sent(stdin_source(closed))
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as file, open(writing, "wb"), pytest.raises(StdinError, match="NoneType"):
        sent(stdin_source(file))


def test_stdin_source_refuses_text_without_bytes():
    """A surrogate that stands for no byte is an OSError that names it."""
    with pytest.raises(StdinError, match=r"U\+D800"):
        stdin_source("a\ud800")


def test_stdin_source_refuses_a_file_whose_text_cannot_be_decoded(tmp_path: Path):
    """Text in another encoding than the file was opened with is an OSError."""
    path = tmp_path / "file"
    path.write_bytes(b"\xff")
    with open(path, encoding="utf-8") as file, pytest.raises(StdinError, match="cannot be read"):
        sent(stdin_source(file))


LONGEST = b"x" * MAX_LINE_BYTES


@pytest.mark.parametrize("by_sudo", [False, True])
@pytest.mark.parametrize(
    "stdin", [None, b"", b"a\nb\n", b"a\r", LONGEST + b"\n" + LONGEST + b"\r", [LONGEST[:-1], b"x\n", LONGEST, b"\n"]]
)
def test_typed_passes_on_what_a_terminal_takes(stdin: Any, by_sudo: bool):
    """Lines that a terminal can hold are sent as they are, wherever chunks end."""
    source = typed(stdin, by_sudo=by_sudo)
    assert (source is None) == (stdin is None)
    assert b"".join(source or ()) == (stdin if isinstance(stdin, bytes) else b"".join(stdin or ()))


@pytest.mark.parametrize("stdin", [LONGEST + b"x", b"a\n" + LONGEST + b"x\n", [b"a\nx", LONGEST]])
def test_typed_refuses_a_line_that_a_terminal_would_cut(stdin: Any):
    """The text says what to do instead."""
    with pytest.raises(StdinError, match=r"more than 4095 bytes.*leave out _get_pty"):
        sent(typed(stdin, by_sudo=False))


@pytest.mark.parametrize("stdin", [b"a\nb", [b"a\n", b"b"]])
def test_typed_refuses_an_unfinished_line_where_sudo_would_wait_for_its_end(stdin: Any):
    """Without sudo it is typed, and handed over with the end."""
    assert sent(typed(stdin, by_sudo=False)) == b"".join([stdin] if isinstance(stdin, bytes) else stdin)
    with pytest.raises(StdinError, match="must end in a newline"):
        sent(typed(stdin, by_sudo=True))


def test_typed_takes_no_longer_for_long_lines():
    """20 MiB of lines of 4,000 bytes are looked at in one pass."""
    line = b"x" * 4000 + b"\n"
    chunk = line * 64
    with gevent.Timeout(10):
        assert sum(map(len, typed((chunk for _ in range(80)), by_sudo=True) or ())) == 80 * len(chunk)
