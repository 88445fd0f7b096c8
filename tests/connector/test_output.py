"""A command's output, kept and printed."""

from __future__ import annotations

import copy
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import gevent
import paramiko.file
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api import output as pyinfra_output
from pyinfra.connectors.util import CommandOutput, OutputLine

from pyinfra_agent_connector._output import MAX_PENDING_BYTES, LazyCommandOutput, LinePrinter, Stream, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20

streams: st.SearchStrategy[Stream] = st.sampled_from(["stdout", "stderr"])
pieces = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"\xc3", b"\xa9", b"\xff", b"\x00", b"\xe2\x80\xa8"]))
arrivals = st.lists(st.tuples(streams, pieces.map(b"".join)))


class FakeChannelFile(paramiko.file.BufferedFile):
    """A paramiko file as exec_command opens it, over bytes that are already there."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._set_mode("r")  # type: ignore[attr-defined]  # the stubs leave it out
        self._data = data

    def _read(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data


def by_definition(chunks: list[tuple[Stream, bytes]]) -> CommandOutput:
    """Build pyinfra's own object byte by byte."""
    lines = []
    pending: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    for stream, data in chunks:
        for byte in data:
            if byte == 0x0A:
                lines.append(OutputLine(stream, pending[stream].decode(errors="surrogateescape")))
                pending[stream] = b""
            else:
                pending[stream] += bytes([byte])
    for stream in ("stdout", "stderr"):
        if pending[stream]:
            lines.append(OutputLine(stream, pending[stream].decode(errors="surrogateescape")))
    return CommandOutput(lines)


@given(arrivals)
def test_lazy_output_answers_as_pyinfra_does(chunks):
    """For any bytes in any chunks, all that pyinfra's object answers is the same."""
    lazy, plain = LazyCommandOutput(chunks), by_definition(chunks)
    assert lazy.combined_lines == plain.combined_lines
    assert list(lazy) == list(plain)
    for name in ("output", "stdout", "stderr", "output_lines", "stdout_lines", "stderr_lines"):
        assert getattr(lazy, name) == getattr(plain, name)
    assert lazy == plain
    assert plain == lazy
    assert list(reversed(lazy.combined_lines)) == plain.combined_lines[::-1]
    assert len(lazy.combined_lines) == len(plain.combined_lines)
    assert repr(lazy) == repr(plain)
    assert bool(lazy) is bool(plain) is True
    assert lazy.stdout_bytes == b"".join(data for stream, data in chunks if stream == "stdout")
    assert lazy.stderr_bytes == b"".join(data for stream, data in chunks if stream == "stderr")


@given(st.lists(st.sampled_from([b"\n", b"\r", b"a", "é".encode(), b"\x0c", b"\x00", "\u2028".encode()])).map(b"".join))
def test_lazy_output_has_the_lines_that_ssh_has(data):
    """For UTF-8, the lines are those that pyinfra makes of a paramiko channel."""
    lines = [line.rstrip("\n") for line in FakeChannelFile(data)]
    assert LazyCommandOutput([("stdout", data)]).stdout_lines == lines


@given(st.binary())
def test_lazy_output_loses_no_byte(data):
    """Text of any bytes can be turned into the same bytes again."""
    lazy = LazyCommandOutput([("stdout", data + b"\n")])
    assert lazy.stdout.encode("utf-8", "surrogateescape") == data


def test_lazy_output_orders_lines_by_when_they_end():
    """A line that is interrupted by the other stream comes after what ended before it."""
    lazy = LazyCommandOutput([("stdout", b"1"), ("stderr", b"2\n3"), ("stdout", b"4\n5"), ("stderr", b"6\n")])
    assert lazy.output_lines == ["2", "14", "36", "5"]


def test_lazy_output_differs_from_other_lines_and_other_types():
    """Equality is about lines and streams, not about bytes, and nothing else equals an output."""
    assert LazyCommandOutput([("stdout", b"a")]) == LazyCommandOutput([("stdout", b"a\n")])
    assert LazyCommandOutput([("stdout", b"a")]) != LazyCommandOutput([("stderr", b"a")])
    assert LazyCommandOutput() != []
    with pytest.raises(TypeError):
        hash(LazyCommandOutput())


def test_lazy_output_sees_what_is_fed_after_it_was_asked():
    """Lines that were made are made again when more arrives, and are the same list otherwise."""
    lazy = LazyCommandOutput([("stdout", b"a")])
    assert lazy.combined_lines is lazy.combined_lines
    lazy.feed("stdout", b"b\n")
    assert lazy.output == "ab"


def test_lazy_output_decodes_as_it_is_told():
    """Where text is printed as it is, bytes that are not UTF-8 can be backslashes."""
    assert LazyCommandOutput([("stdout", b"a\xff")], errors="backslashreplace").stdout == "a\\xff"


@pytest.mark.parametrize(("size", "total"), [(16, MIB), (64 * 1024, 8 * MIB)])
def test_lazy_output_takes_about_the_size_of_its_bytes(size, total):
    """Output that arrives in large or small chunks costs at most a fifth more than itself, and no objects a line."""
    chunk = b"0123456789abcd\n\n" * (size // 16)
    tracemalloc.start()
    try:
        lazy = LazyCommandOutput(("stdout", bytes(bytearray(chunk))) for _ in range(total // size))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert len(lazy.stdout) == total - 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.2 * total
    assert peak < kept + 2.2 * total  # the joined bytes and the text, for a moment


@pytest.mark.parametrize(
    ("look", "most_bytes"),
    [
        (lambda output: sum(len(line.line) for line in output), MIB),
        (lambda output: sum(len(line.line) for line in output.combined_lines), MIB),
        (lambda output: next(reversed(output.combined_lines)), MIB),
        (lambda output: len(output.combined_lines), MIB),
        (lambda output: output.stdout_lines, 5 * MIB),
    ],
    ids=["loop", "loop over combined_lines", "from the end", "length", "stdout_lines"],
)
def test_lazy_output_makes_no_objects_that_were_not_asked_for(look, most_bytes):
    """A reader that drops each line pays for a few, and one that wants their text for the text."""
    lazy = LazyCommandOutput(
        [("stdout", b"some line of output of sixty-four bytes, of which there are many\n" * 30_000)]
    )
    tracemalloc.start()
    try:
        look(lazy)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most_bytes


def test_lazy_output_has_lines_that_are_used_as_a_list():
    """What a deploy does with a list of lines, it may do here, and the output's own list is one."""
    lines = LazyCommandOutput([("stdout", b"1\n2\n"), ("stderr", b"3\n")]).combined_lines
    plain = [OutputLine("stdout", "1"), OutputLine("stdout", "2"), OutputLine("stderr", "3")]
    assert (lines[0], lines[-1], lines[1:]) == (plain[0], plain[-1], plain[1:])
    assert lines + plain == plain + lines == plain * 2
    assert plain[1] in lines
    assert lines.index(plain[2]) == 2
    assert list(lines) == list(reversed(lines))[::-1] == plain
    assert len(lines) == 3
    assert lines == copy.copy(lines) == copy.deepcopy(lines) == lines.copy()
    lines.append(plain[0])
    assert list(lines) == [*plain, plain[0]]
    assert next(reversed(lines)) is plain[0]


def test_lazy_output_makes_lines_from_the_end_as_from_the_beginning():
    """Lines longer and shorter than what is looked at in one piece, on both streams, are the same backwards."""
    chunks: list[tuple[Stream, bytes]] = [
        ("stdout", b"a" * 200_000 + b"\n" + b"b\n" * 100_000),
        ("stderr", b"c" * 100_000),
        ("stdout", b"d" * 150_000 + b"\n\n\n"),
        ("stderr", b"e\nf"),
        ("stdout", b"g"),
    ]
    lines = LazyCommandOutput(chunks).combined_lines
    assert list(reversed(lines)) == list(lines)[::-1]
    assert [(line.buffer_name, line.line[:1], len(line.line)) for line in lines if line.line != "b"] == [
        ("stdout", "a", 200_000),
        ("stdout", "d", 150_000),
        ("stdout", "", 0),
        ("stdout", "", 0),
        ("stderr", "c", 100_001),
        ("stdout", "g", 1),
        ("stderr", "f", 1),
    ]


@pytest.fixture
def printed() -> Iterator[list[str]]:
    """Capture what goes through pyinfra's echo, with a format_text that shows itself."""
    lines: list[str] = []

    def echo(message: str, **options: Any) -> None:
        assert options == {"err": True}
        lines.append(message)

    old = pyinfra_output._echo, pyinfra_output._format_text
    pyinfra_output.set_echo(echo)
    pyinfra_output.set_formatter(lambda text, colour: f"<{colour}>{text}</>")
    yield lines
    pyinfra_output.set_echo(old[0])
    pyinfra_output.set_formatter(old[1])


def test_printer_prints_each_line_when_it_ends(printed):
    """A line is printed as soon as it is complete, with prefix and colour, and the rest at the end."""
    printer = LinePrinter("[web1] ")
    printer.feed("stdout", b"one\ntw")
    assert printed == ["[web1] one"]
    printer.feed("stderr", b"bad\n")
    printer.feed("stdout", b"o\n\nthree")
    assert printed[1:] == ["[web1] <red>bad</>", "[web1] two", "[web1] "]
    printer.finish()
    assert printed[4:] == ["[web1] three"]


@given(arrivals)
def test_printer_prints_the_lines_of_the_output_whatever_the_chunks_are(chunks):
    """Every line of the output is printed once, in its order."""
    printed = []
    old = pyinfra_output._echo
    pyinfra_output.set_echo(lambda message, err: printed.append(message))
    try:
        printer = LinePrinter("")
        for stream, data in chunks:
            printer.feed(stream, data)
        printer.finish()
    finally:
        pyinfra_output.set_echo(old)
    lines = LazyCommandOutput(chunks).output_lines
    assert printed == [
        printable(line.rstrip("\r").rpartition("\r")[2].encode("utf-8", "surrogateescape")) for line in lines
    ]


def test_printer_prints_the_last_state_of_a_progress_bar(printed):
    """Of what was overwritten, what stood there last is printed; a terminal's line end overwrites nothing."""
    printer = LinePrinter("")
    printer.feed("stdout", b" 10%\r 50%\r100%\n")
    printer.feed("stdout", b" 10%\r100%\r")
    printer.feed("stdout", b"\nplain\r\n")
    assert printed == ["100%", "100%", "plain"]


def test_printer_keeps_little_of_an_endless_progress_bar(printed):
    """A bar that never ends a line is not printed in between and does not grow."""
    printer = LinePrinter("")
    for percent in range(100_000):
        printer.feed("stdout", b"%d%%\r" % percent)
    assert len(printer._pending["stdout"]) <= MAX_PENDING_BYTES
    printer.feed("stderr", b"\r" * 10 * MAX_PENDING_BYTES)
    assert printed == []
    printer.finish()
    assert printed == ["99999%", "<red></>"]


def test_printer_prints_an_endless_line_in_parts(printed):
    """A line without an end is printed every 64 KiB, and never cut within a character or a colour."""
    unit = "aé漢😀\x1b[38;2;1;2;3mb".encode()
    content = unit * (5 * MAX_PENDING_BYTES // len(unit))
    printer = LinePrinter("")
    for start in range(0, len(content), 1000):
        printer.feed("stdout", content[start : start + 1000])
        assert len(printer._pending["stdout"]) <= MAX_PENDING_BYTES
    assert len(printed) >= 4
    printer.finish()
    assert "".join(printed).replace("\x1b[0m", "") == content.decode()


def test_printer_of_a_flood_lets_other_hosts_have_their_turn(printed):
    """Greenlets that can go on do so between pieces of a command's output."""
    seen = []

    def look():
        while True:
            seen.append(len(printed))
            gevent.sleep(0)

    other = gevent.spawn(look)
    printer = LinePrinter("")
    for _ in range(10):
        printer.feed("stdout", b"line\n" * 1000)
    other.kill()
    assert seen[:10] == [1000 * number for number in range(1, 11)]


@pytest.mark.parametrize(
    "piece",
    [b"a" * 50, b"\n" * 10, b"10%\r" * 12, b"\r" * 50, b"\x1b[31m" * 10, b"a\n" * 10, b"text\xe2\x80" * 8],
    ids=["endless line", "empty lines", "progress", "returns", "colours", "short lines", "not UTF-8"],
)
def test_printer_takes_time_in_proportion_to_what_is_printed(piece, monkeypatch):
    """Four times as much takes about four times as long; if all were looked at again and again, sixteen times."""
    monkeypatch.setattr(pyinfra_output, "_echo", lambda message, err: None)

    def seconds(count: int) -> float:
        printer = LinePrinter("")
        started = time.process_time()
        for _ in range(count):
            printer.feed("stdout", piece)
        return time.process_time() - started

    assert seconds(16_000) < 10 * min(seconds(4_000) for _ in range(3))


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain \t text", "plain \t text"),
        ("naïve 漢字 😀 \u200f".encode(), "naïve 漢字 😀 \u200f"),
        (b"C:\\x1b", "C:\\x1b"),
        (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        (b"\x1b[1;38:5:200mbold", "\x1b[1;38:5:200mbold\x1b[0m"),
        (b"\x1b[m", "\x1b[m\x1b[0m"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\x1b[1A\x1b[31mx", "\\x1b[1A\x1b[31mx\x1b[0m"),
        (b"\x1b[>4;1m", "\\x1b[>4;1m"),
        (b"\x1b[" + b"1" * 100 + b"m", "\\x1b[" + "1" * 100 + "m"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x1b]8;;http://x\x1b\\", "\\x1b]8;;http://x\\x1b\\"),
        (b"\x1bc\x1b7\x1bP", "\\x1bc\\x1b7\\x1bP"),
        (b"a\x08\x0b\x0c\x00\x7f\x0e", "a\\x08\\x0b\\x0c\\x00\\x7f\\x0e"),
        ("\x9b2J\x85".encode(), "\\x9b2J\\x85"),
        (b"\x9b2J\xff\xc3", "\\x9b2J\\xff\\xc3"),
        ("a\u202eb\u2066\u2028".encode(), "a\\u202eb\\u2066\\u2028"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        (b"a\rb", "a\\x0db"),
    ],
)
def test_printable_shows_what_a_terminal_would_obey(line, shown):
    """Text, tabs and colours pass; whatever moves, erases, renames or reorders is shown instead."""
    assert printable(line) == shown


@given(st.lists(st.sampled_from([b"\x1b", b"[", b"1", b";", b"m", b"J", b"]", b"\x9b", b"\xc2", b"\r", b"\x07"])))
def test_printable_leaves_no_control_but_colours_and_tabs(parts):
    """Without its colour sequences, a printable line holds no control character at all."""
    text = printable(b"".join(parts))
    while (start := text.find("\x1b[")) >= 0:
        end = text.index("m", start)
        assert set(text[start + 2 : end]) <= set("0123456789;:")
        text = text[:start] + text[end + 1 :]
    assert text.replace("\t", "").isprintable()
    text.encode()
