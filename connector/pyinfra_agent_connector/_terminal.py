"""This process's standard streams for a command elsewhere: its terminal made raw and back, and bytes in and out."""

from __future__ import annotations

import os
import signal
import stat
import sys
import termios
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import gevent

from pyinfra_agent_protocol import PtySize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["RawTerminal", "fill_standard_streams", "read_input", "terminal_size", "writer"]

_READ_BYTES: Final = 64 * 1024
_WAIT_READ: Final = 1
_WAIT_WRITE: Final = 2
_TERM_MAX_CHARACTERS: Final = 64


class RawTerminal:
    """The terminal at *descriptor*, which passes every key on while it is raw; *descriptor* may be no terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved: list[Any] | None = None

    @property
    def is_raw(self) -> bool:
        """True between `make_raw` and `restore`."""
        return self._saved is not None

    def make_raw(self) -> None:
        """Make it raw, unless this process is in its background: then it belongs to somebody else."""
        if self._saved is not None or not os.isatty(self._descriptor):
            return
        with suppress(OSError, termios.error):  # hung up
            if os.tcgetpgrp(self._descriptor) == os.getpgrp():
                saved = termios.tcgetattr(self._descriptor)
                tty.setraw(self._descriptor, termios.TCSANOW)
                self._saved = saved

    def restore(self) -> None:
        """Make it what it was; harmless at any time."""
        saved, self._saved = self._saved, None
        if saved is not None:
            # In the background too, where the kernel would stop this process for it. Not TCSADRAIN: a terminal that was
            # stopped with Ctrl-S never drains.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            try:
                with suppress(termios.error):
                    termios.tcsetattr(self._descriptor, termios.TCSANOW, saved)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)


def terminal_size() -> PtySize:
    """Return the size of the terminal that a standard stream is, with TERM; 24 by 80 where none is."""
    term = os.environ.get("TERM") or "xterm"
    size = PtySize(term=term if len(term) <= _TERM_MAX_CHARACTERS else "xterm")
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            columns, rows = os.get_terminal_size(descriptor)
            if columns and rows:
                return PtySize(rows, columns, size.term)
    return size


def fill_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed: else a socket gets its number, and output would go there."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    # Python has None in their place, which no caller of ours expects.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def read_input(descriptor: int) -> Iterator[bytes]:
    """Give what comes from *descriptor*, until its end; other greenlets run meanwhile."""
    hub = gevent.get_hub()
    while True:
        hub.wait(hub.loop.io(descriptor, _WAIT_READ))
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            continue  # somebody else made it non-blocking, and read what was there
        except OSError:
            return  # a terminal that was hung up: there is no more
        if not data:
            return
        yield data


def writer(descriptor: int) -> Callable[[bytes], None]:
    """Return a function that writes all of its argument to *descriptor*; other greenlets run meanwhile.

    It raises OSError: BrokenPipeError where nobody reads.
    """
    # A file never waits for long. For all else a thread does the waiting: a terminal or a pipe cannot be made
    # non-blocking for this process alone, and the programs that share it may not be prepared for that.
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def write_all(data: bytes) -> None:
        view = memoryview(data)
        hub = gevent.get_hub()
        while view:
            arguments = (descriptor, view)
            written = _try_to_write(*arguments) if is_file else hub.threadpool.apply(_try_to_write, arguments)
            if isinstance(written, BlockingIOError):  # somebody else made it non-blocking
                hub.wait(hub.loop.io(descriptor, _WAIT_WRITE))
            elif isinstance(written, OSError):
                raise written
            else:
                view = view[written:]

    return write_all


def _try_to_write(descriptor: int, data: memoryview) -> int | OSError:
    # Not raised: gevent prints what is raised in its threads.
    try:
        return os.write(descriptor, data)
    except OSError as error:
        return error
