"""How many descriptors the agent may have open, how many its commands, and a few for when there are none left.

The agent raises its own soft limit (RLIMIT_NOFILE) as far as it may. A command gets the one that the agent was started
with, which is a login's: some programs make tables of that size, or close every number below it.
"""

from __future__ import annotations

import contextlib
import resource
import time
from typing import TYPE_CHECKING, Final

from ._log import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["RareLog", "raise_own_limit", "reserved_descriptors", "restore_limit", "start_limited"]

#: Kept back from the agent's own use: what ending a tree of processes needs.
_RESERVED: Final = 16
#: Descriptors that other threads may open while a command starts.
_ROOM: Final = 64
_SILENCE_SECONDS: Final = 10.0

_at_start: tuple[int, int] | None = None


def raise_own_limit() -> None:
    """Raise this process's soft limit to its hard one, less a reserve; commands do not get it (`start_limited`)."""
    global _at_start
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _at_start is None and soft != resource.RLIM_INFINITY and soft - _RESERVED > _ROOM:
        _at_start = (soft, hard)
        _set(_usual())


def restore_limit() -> None:
    """Set this process's soft limit back to what it was started with: before it executes a program in its place."""
    global _at_start
    if _at_start is not None:
        _set(_at_start[0])
        _at_start = None


# Here and at the other two things around each command's start, no generator: it takes as long as what it does.
class _Reserve:
    def __enter__(self) -> None:
        if _at_start is not None:
            _set(_at_start[1])

    def __exit__(self, *error: object) -> None:
        if _at_start is not None:
            _set(_usual())


_RESERVE: Final = _Reserve()


def reserved_descriptors() -> AbstractContextManager[None]:
    """Let the block use the reserve, too."""
    return _RESERVE


def start_limited(start: Callable[[], int], newest: int) -> int:
    """Return the id of the process that *start* starts, with the limit of a login.

    *newest* is a descriptor opened just now. The kernel gives out the lowest number that is free, so it tells how many
    are in use: a child inherits the limit of the moment, but only while we have less open than that can we live with
    it ourselves. Otherwise the child's is set once it runs; only a program that looked at its limit within its first
    microseconds would notice.
    """
    if _at_start is None:
        return start()
    soft, hard = _at_start
    if newest + _ROOM < soft:
        _set(soft)
        try:
            return start()
        finally:
            _set(_usual())
    pid = start()
    with contextlib.suppress(OSError):  # gone already, or sudo in an unprivileged agent: it sets limits itself
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    return pid


class RareLog:
    """Logs what may happen a thousand times a second: *least* lines in ten seconds, and then how often it was."""

    def __init__(self, event: str, least: int = 1) -> None:
        self._event = event
        self._least = least
        self._written = 0
        self._count = 0
        self._again = 0.0

    def note(self, **facts: object) -> None:
        """Count one more, and write a line unless there were enough of them a moment ago."""
        self._count += 1
        now = time.monotonic()
        if now >= self._again:
            self._again, self._written = now + _SILENCE_SECONDS, 0
        if self._written < self._least:
            self._written += 1
            log(self._event, **facts, times=self._count if self._count > 1 or self._least == 1 else None)
            self._count = 0


def _usual() -> int:
    assert _at_start is not None
    hard = _at_start[1]
    return hard if hard == resource.RLIM_INFINITY else hard - _RESERVED


def _set(soft: int) -> None:
    assert _at_start is not None
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _at_start[1]))
