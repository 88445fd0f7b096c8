"""Terminals for tests that need one: a process in the foreground of its own, as a login shell would start it."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress
from typing import Any

SECONDS = 15.0
"""How long a test waits for what must happen."""

# What a login shell does: it leads the session, puts its job into the foreground, and outlives it, so that the state in
# which the job left the terminal can be seen. It tells the job's wait statuses on a descriptor.
_LEADER = """
import fcntl, os, signal, sys, termios
report, words = int(sys.argv[1]), sys.argv[2:]
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if not pid:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.close(report)
    os.execvp(words[0], words)
os.write(report, b"%d\\n" % pid)
while True:
    _, status = os.waitpid(pid, os.WUNTRACED)
    os.write(report, b"%d\\n" % status)
    if not os.WIFSTOPPED(status):
        break
signal.pause()
"""


class Job:
    """A process in the foreground of a terminal of its own."""

    def __init__(self, words, rows=24, columns=80, **options):
        self.master, slave = os.openpty()
        os.set_blocking(self.master, False)
        self.resize(rows, columns)
        self.cooked = termios.tcgetattr(self.master)
        self._report, report = os.pipe()
        os.set_blocking(self._report, False)
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        self._leader = subprocess.Popen(
            [sys.executable, "-c", _LEADER, str(report), *words], pass_fds=[report], **streams, **options
        )
        os.close(slave)
        os.close(report)
        self._reports = b""
        self._unseen = b""
        self.shown = b""
        self.pid = self._next_report(SECONDS)

    def _next_report(self, seconds):
        def read():
            with suppress(BlockingIOError):
                self._reports += os.read(self._report, 100)
            self._look()
            return b"\n" in self._reports

        assert _until(read, seconds), f"nothing became of the job; the terminal shows {self.shown!r}"
        line, _, self._reports = self._reports.partition(b"\n")
        return int(line)

    def _look(self):
        with suppress(BlockingIOError, OSError):
            data = os.read(self.master, 65536)
            self._unseen += data
            self.shown += data

    def status(self, seconds=SECONDS):
        """Wait for its end; return its exit status, or minus the signal that ended it."""
        status = self._next_report(seconds)
        assert not os.WIFSTOPPED(status), "it stopped"
        self._look()
        return os.waitstatus_to_exitcode(status)

    def wait_stopped(self):
        """Wait until it is stopped."""
        assert os.WIFSTOPPED(self._next_report(SECONDS))

    def type(self, keys):
        os.write(self.master, keys)

    def shows(self, text):
        """Wait until the terminal has shown *text*; return what came before it, since the last such call."""

        def look():
            self._look()
            return text in self._unseen

        assert _until(look, SECONDS), f"{text!r} was not shown, but {self._unseen!r}"
        before, _, self._unseen = self._unseen.partition(text)
        return before

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def is_raw(self):
        return not termios.tcgetattr(self.master)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)

    def wait_raw(self):
        assert _until(lambda: self.is_raw, SECONDS)

    @property
    def is_restored(self):
        return termios.tcgetattr(self.master) == self.cooked

    def close(self):
        for pid in (self.pid, self._leader.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._leader.wait()
        os.close(self.master)
        os.close(self._report)


@contextmanager
def job(*words: Any, **options: Any):
    """Run *words* in the foreground of a terminal; it is killed when the block ends."""
    job = Job([str(word) for word in words], **options)
    try:
        yield job
    finally:
        job.close()


def _until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            return value
        time.sleep(0.005)
    return value
