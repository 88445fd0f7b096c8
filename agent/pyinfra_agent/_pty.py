"""The terminal of a command that asked for one."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "PtySize",
    "end_of_file",
    "has_unread_input",
    "in_terminal",
    "open_slave",
    "open_terminal",
    "set_size",
    "terminal_environment",
]

_TIOCGPTPEER: Final = 0x5441  # Linux 4.13: opens the slave of a master

# A terminal becomes the controlling one of a new session when its leader opens it, and only the command itself can be
# that leader: preexec_fn could do it, at the price of a full fork (8 to 31 ms). The shell opens it once, by name, and
# turns into the command; its standard streams are the terminal already. `:` is a special built-in, so that a
# terminal that cannot be opened ends the shell instead of starting the command without one.
_WRAPPER: Final = (b"/bin/sh", b"-c", b': <>"$0"; exec "$@"')


@dataclass(frozen=True, slots=True)
class PtySize:
    """A terminal as a command sees it: its size in characters, and the TERM that says what it understands."""

    rows: int
    columns: int
    term: str = "xterm"


def open_terminal(size: PtySize) -> tuple[int, int]:
    """Return the master and the slave descriptor of a new terminal that has its size already.

    The caller keeps the slave open until the command has it: a master without a slave reads as ended.

    Raises:
        OSError: no terminal is left, or /dev/pts is not there.
    """
    master, slave = os.openpty()
    set_size(master, size.rows, size.columns)
    return master, slave


def set_size(master: int, rows: int, columns: int) -> None:
    """Resize the terminal; the kernel sends SIGWINCH to its foreground processes. Sizes are clamped to 1..65535."""
    rows, columns = (min(max(number, 1), 0xFFFF) for number in (rows, columns))
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def in_terminal(argv: Sequence[bytes], slave: int) -> list[bytes]:
    """Return `argv` wrapped so that it runs, as a session leader, with `slave` as its controlling terminal."""
    return [*_WRAPPER, os.fsencode(os.ttyname(slave)), *argv]


def terminal_environment(environment: Mapping[bytes, bytes], size: PtySize) -> dict[bytes, bytes]:
    """Return `environment` for a terminal: with TERM, and without a LINES or COLUMNS that is not its size.

    Programs believe these two before they ask the terminal. They are not set here, because they would be wrong after
    the first resize; a controller that will not resize may set them.
    """
    true_size = {b"LINES": b"%d" % size.rows, b"COLUMNS": b"%d" % size.columns}
    kept = {name: value for name, value in environment.items() if value == true_size.get(name, value)}
    return kept | {b"TERM": os.fsencode(size.term)}


def open_slave(master: int) -> tuple[int, ...]:
    """Return a new descriptor for the slave of *master*, which is not to become our controlling terminal; or none."""
    try:
        return (fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC),)
    except OSError:
        return ()


def has_unread_input(master: int) -> bool:
    """Return whether a line that was typed, or with a raw terminal a byte, was not read yet.

    An end-of-file character that is typed while one is, is lost where the reader is about to switch to raw: sudo does
    so before it reads, to hand all on to a terminal of its own, and would read it as a NUL.
    """
    opened = open_slave(master)
    try:
        poll = select.poll()
        for slave in opened:
            poll.register(slave, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))
    finally:
        for slave in opened:
            os.close(slave)


def end_of_file(master: int, last_byte: int | None) -> bytes:
    """Return what to type for "no more input" after `last_byte` (None: nothing was typed).

    The end-of-file character ends the input at the start of a line; within a line it only hands the line over, so
    there it takes two. A program that reads raw sees the character as from a keyboard.
    """
    attributes = termios.tcgetattr(master)
    local_flags, characters = attributes[3], attributes[6]
    typed: bytes = characters[termios.VEOF]
    if typed == b"\0":
        return b""  # switched off
    within_line = last_byte is not None and last_byte not in b"\n\r" and bool(local_flags & termios.ICANON)
    return typed * 2 if within_line else typed
