"""What is left when a process is killed before each of its system calls in turn: no moment is left to chance."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Forked here and not in the test's process, whose threads a fork would leave behind.
_FORKS = """
import os, signal, sys
from itertools import count
{program}

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        step, calls = int(line), count()

        def kill_at_step(frame, event, argument):
            if event == "c_call" and getattr(argument, "__module__", "") == "posix" and next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.setprofile(kill_at_step)
            act()
            sys.setprofile(None)
            status = 0
        finally:
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@contextmanager
def killed_at_each_step(program: str, *arguments: object) -> Iterator[Callable[[], Iterator[bool]]]:
    """Yield an iterator of runs of `act`, which *program* defines, each killed one system call later than the last.

    It gives False for each that was killed, and ends with True for the one that got through. *arguments* are the
    program's sys.argv[1:].
    """
    with subprocess.Popen(
        [sys.executable, "-c", _FORKS.format(program=program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def runs() -> Iterator[bool]:
            for step in count():
                stdin.write(f"{step}\n")
                stdin.flush()
                status = int(stdout.readline())
                assert status in (0, -9)
                yield status == 0
                if status == 0:
                    return

        yield runs
        stdin.close()
