"""Start a process on the controller's side; Ctrl-C in the moment of its birth meets only the parent.

gevent's Popen forks in Python.  Until the child runs its program it has our signal handlers, and a SIGINT that the
terminal sends to the whole process group would run pyinfra's handler, which leaves by SystemExit, in the child.
"""

from __future__ import annotations

import signal
from typing import Any

from gevent import subprocess

__all__ = ["start_process"]


def start_process(argv: list[str], **options: Any) -> Any:  # noqa: ANN401 - gevent has no types
    """Return gevent's Popen for *argv*; *options* are Popen's, except `preexec_fn`.

    Raises:
        OSError: the program cannot be started.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def start_afresh() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # drops one that came between fork and here
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    try:
        return subprocess.Popen(argv, preexec_fn=start_afresh, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
