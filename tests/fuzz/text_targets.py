"""Texts of people and of targets: keys, names of agents, the known agents, and output on its way to a terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pyinfra_agent_connector._known import _parse
from pyinfra_agent_connector._names import (
    MAX_HOST_CHARACTERS,
    BadAgentName,
    NameKind,
    parse_agent_name,
    parse_pin_name,
    pin_name,
)
from pyinfra_agent_connector._output import MAX_PENDING_BYTES, LazyCommandOutput, LinePrinter, Stream, printable
from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import (
    check_public,
    fingerprint,
    format_public,
    format_secret,
    parse_public,
    parse_secret,
)
from tests.fuzz.reader import Reader, chunks

#: Characters that mean something in a name, among them ones whose lower case, digit value or width is a trap.
_NAME_ALPHABET: Final = "abkno019xf.-_:/[]%@, dsuet#\t\0\n\xa0\xb2\u0130\u017f\u0660\u212a\u3000\uff11\udcff"

#: What a terminal obeys: controls but the tab, half characters, line ends, and overrides of direction.
_DANGEROUS: Final = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]"  # SGR is taken out before
)
_SGR: Final = re.compile("\x1b\\[[0-9;:]*m")


def fuzz_key_lines(data: bytes) -> None:
    """A line as a public key, and a text as a secret key file."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        public = parse_public(text)
    except KeyFormatError as error:
        _assert_keeps_secret(str(error), text)
    else:
        check_public(public.key)
        assert parse_public(format_public(public.key, public.comment)) == public
        assert format_public(public.key).split()[1] in text.split(), "one key in two spellings"
        assert len(fingerprint(public.key)) == 29
    try:
        pair = parse_secret(text)
    except KeyFormatError as error:
        _assert_keeps_secret(str(error), text)
    else:
        assert parse_secret(format_secret(pair)) == pair


def fuzz_names(data: bytes) -> None:
    """What may stand after `@agent/`: as UTF-8, or letter by letter out of those that matter."""
    if data[:1] < b"\x80":
        text = data[1:].decode("utf-8", "surrogateescape")
    else:
        text = "".join(_NAME_ALPHABET[byte % len(_NAME_ALPHABET)] for byte in data[1:])
    try:
        name = parse_agent_name(text)
    except BadAgentName as error:
        _assert_line(str(error))
        return
    assert text.isascii(), "a name that no resolver is asked for as it was written"
    assert name.host.isprintable(), "a name that a terminal would obey"
    if name.kind is NameKind.AGENT:
        assert name.host
        assert len(name.host) <= MAX_HOST_CHARACTERS + 1
        assert 1 <= name.port <= 65535
        pinned = pin_name(name.host, name.port)
        assert parse_pin_name(text) == pinned
        assert parse_pin_name(pinned) == pinned, "a pin that is written and cannot be found again"
        assert len(pinned.split()) == 1
    else:
        assert not name.port


def fuzz_known_agents(data: bytes) -> None:
    """A known_agents file: every line is a pin, is reported, or means nothing."""
    contents = _parse(data, Path("known_agents"))
    lines = data.count(b"\n") + 1
    assert len(contents.pins) + len(contents.problems) <= lines
    for name, pin in contents.pins.items():
        assert parse_pin_name(name) == name
        check_public(pin.key)
        assert 1 <= pin.line_number <= lines
    assert len(contents.damaged) <= len(contents.problems)
    # What pin() would have written is read back as it is.
    again = "".join(f"{name} {format_public(pin.key, pin.comment)}\n" for name, pin in contents.pins.items())
    read = _parse(again.encode(), Path("known_agents"))
    assert not read.problems
    assert {name: (pin.key, pin.comment) for name, pin in read.pins.items()} == {
        name: (pin.key, pin.comment) for name, pin in contents.pins.items()
    }


def fuzz_printable(data: bytes) -> None:
    """A line of a hostile target: nothing that a terminal obeys passes, but colours that end with the line."""
    shown = printable(data)
    found = _DANGEROUS.search(_SGR.sub("", shown))
    assert found is None, f"{found} passes"
    assert "\x1b" not in shown or shown.endswith("\x1b[0m"), "a colour runs on into the next line"


def fuzz_output(data: bytes) -> None:
    """A command's output in pieces: the same lines however it is cut, and nothing held without bound."""
    reader = Reader(data)
    filler = b"x" * (MAX_PENDING_BYTES - reader.number(255)) if reader.one_in(16) else b""
    output = reader.take(reader.number(0xFFFF))
    output += filler + output  # a line that does not end is printed in parts: what stands at the cut matters
    cut: list[tuple[Stream, bytes]] = [("stdout", chunk) for chunk in chunks(output, reader)]
    whole = LazyCommandOutput([("stdout", output)])
    pieces = LazyCommandOutput(cut)
    assert pieces == whole
    assert pieces.stdout_bytes == output
    assert pieces.stdout == whole.stdout
    assert pieces.stdout_lines == pieces.output_lines
    assert pieces.stdout.encode("utf-8", "surrogateescape") == output.removesuffix(b"\n")

    printer, reference = _Printed(), _Printed()
    for _, chunk in cut:
        printer.feed("stdout", chunk)
        assert len(printer._pending["stdout"]) <= MAX_PENDING_BYTES
    reference.feed("stdout", output)
    printer.finish()
    reference.finish()
    if all(len(line) <= MAX_PENDING_BYTES for line in output.split(b"\n")):
        assert printer.lines == reference.lines


class _Printed(LinePrinter):
    """Keeps what would be printed."""

    def __init__(self) -> None:
        super().__init__("")
        self.lines: list[str] = []

    def _print(self, stream: Stream, line: bytes) -> None:
        self.lines.append(printable(line))


def _assert_line(error: str) -> None:
    assert len(error) < 1000
    assert error.isprintable(), "an error that a terminal would obey"


def _assert_keeps_secret(error: str, text: str) -> None:
    for word in text.split():
        assert len(word) < 40 or word not in error, "an error repeats what may be a secret key"
