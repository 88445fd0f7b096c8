"""The agent is the last that the out-of-memory killer ends, and its commands are what the commands of a login are.

A child inherits its parent's score (proc(5), oom_score_adj), so the agent has its commands' score for the moment in
which one is born. Setting the child's afterwards would miss what it has forked by then.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from ._log import log

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["spare_commands", "with_score_of_a_login"]

_FILE: Final = "/proc/self/oom_score_adj"
_OF_A_LOGIN: Final = b"0"

_own: tuple[int, bytes] | None = None  # a descriptor for the file, and what stands in it


def spare_commands() -> None:
    """Let commands start with the score of a login, if this process's own is lower; a higher one is theirs, too."""
    global _own
    with contextlib.suppress(OSError):  # no Linux, or no /proc
        descriptor = os.open(_FILE, os.O_RDWR | os.O_CLOEXEC)
        score = os.read(descriptor, 16).strip()
        if int(score) < 0 and _own is None:
            try:
                os.pwrite(descriptor, _OF_A_LOGIN, 0)
                os.pwrite(descriptor, score, 0)
            except OSError as error:  # it went up and not down again, as for a user whose agent nobody protected
                log("without-oom-protection", error=error.strerror)
            else:
                _own = (descriptor, score)
                return
        os.close(descriptor)


class _ScoreOfALogin:
    def __enter__(self) -> None:
        if _own is not None:
            os.pwrite(_own[0], _OF_A_LOGIN, 0)

    def __exit__(self, *error: object) -> None:
        if _own is not None:
            os.pwrite(*_own, 0)


_SCORE_OF_A_LOGIN: Final = _ScoreOfALogin()


def with_score_of_a_login() -> AbstractContextManager[None]:
    """Let a process be born with the score of a login within the block."""
    return _SCORE_OF_A_LOGIN
