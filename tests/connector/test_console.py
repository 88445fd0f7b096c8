"""What pyinfra's own log says of targets."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_connector._console import guard_log

STYLED = "\x1b[0m[\x1b[1m@agent/[::1]:7963\x1b[0m]  "


class Kept(logging.Handler):
    """Keeps what pyinfra's handler would print: `msg`, with `args` if there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.msg % record.args if record.args else record.msg)


@pytest.fixture(scope="module")
def log():
    logger = logging.Logger("guarded")
    logger.addHandler(Kept())
    guard_log(logger)
    guard_log(logger)
    assert len(logger.filters) == 1
    return logger


def logged(log, message, *arguments):
    (handler,) = log.handlers
    handler.messages.clear()
    log.error(message, *arguments)
    (message,) = handler.messages
    return message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("plain", "plain"),
        ("--> \x1b[1mbold\x1b[0m", "--> \x1b[1mbold\x1b[0m"),
        ("[@agent/web1] \x1b]0;title\x07", "[@agent/web1] \\x1b]0;title\\x07"),
        (f"{STYLED}\x1b[2J", f"{STYLED}\\x1b[2J"),
        (f"{STYLED}\x1b[31mred \x1b[2J\x1b[0m", f"{STYLED}\x1b[31mred \\x1b[2J\x1b[0m"),
        ("[@agent/web1]  10%\r 50%\r100%\r", "[@agent/web1] 100%"),
        ("[@agent/web1] \x1b[31m10%\r100%\r\x1b[0m", "[@agent/web1] \x1b[31m100%\x1b[0m"),
        ("[@agent/web1] a\r\x1b[32mb", "[@agent/web1] \x1b[32mb\x1b[0m"),
        ("- old\r\n+ new\rfalse\x1b[A\n", "- old\r\n+ new\\x0dfalse\\x1b[A\n"),
        ("Traceback:\n\tline", "Traceback:\n\tline"),
        ("\udcff", "\\xff"),
    ],
)
def test_guarded_log_keeps_colours_and_ends_of_lines_and_shows_the_rest(message, expected, log):
    """A host's line is in its last state, and nothing in any message is for the terminal to obey."""
    assert logged(log, message) == expected


def test_guarded_log_looks_at_arguments_too(log):
    """A message with arguments is made first."""
    assert logged(log, "%s: %d", "\x1b[A", 3) == "\\x1b[A: 3"


def test_guarded_log_leaves_what_is_no_message_to_the_handler(log, capsys):
    """Arguments that do not fit are the handler's to report, and an exception is not raised in its place."""
    with pytest.raises(TypeError, match="not enough arguments"):  # raised by this test's own handler
        logged(log, "%s %s", "one")


@given(
    st.sampled_from(["", "[@agent/a] ", STYLED, f"{STYLED}\x1b[31m"]),
    st.lists(st.sampled_from(["\x1b", "[", "]", " ", "1", "m", "J", "0", "\x9b", "\r", "\n", "\x07", "a"])),
)
def test_guarded_log_lets_no_control_through_but_colours_and_ends_of_lines(head, parts):
    """Whatever stands where, what is left without colours is text and whole line ends."""
    logger = logging.Logger("guarded")
    logger.addHandler(Kept())
    guard_log(logger)
    text = logged(logger, head + "".join(parts))
    while (start := text.find("\x1b[")) >= 0:
        end = text.index("m", start)
        assert set(text[start + 2 : end]) <= set("0123456789;:")
        text = text[:start] + text[end + 1 :]
    assert all(line.isprintable() for line in text.replace("\r\n", "\n").split("\n"))
