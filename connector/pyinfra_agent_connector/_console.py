"""pyinfra's own messages, which quote what targets say: a failed command's output, a file's difference, an error.

pyinfra prints a failed operation's output through its logger and not through a connector, with whatever escape
sequences are in it. So a filter on that logger makes every message of the process one that stays in its place.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import Final

from ._output import shown

__all__ = ["guard_log"]

# A line of a host's as pyinfra logs it: the host's name in brackets, and for stderr a colour around the line.
_COLOURS: Final = r"(?:\x1b\[[0-9;]*m)*"
_HOST_LINE: Final = re.compile(
    rf"(?P<head>{_COLOURS}\[{_COLOURS}[^\x00-\x1f]*?{_COLOURS}\] {_COLOURS})(?P<line>[^\n]*?)(?P<tail>(?:\x1b\[0m)?)"
)


class _Guard(logging.Filter):
    """Rewrites, and lets everything pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        with contextlib.suppress(TypeError, ValueError):  # arguments that do not fit: the handler reports it
            message = record.getMessage()
            if not message.isprintable():
                record.msg, record.args = _tamed(message), ()
        return True


_GUARD: Final = _Guard()


def guard_log(logger: logging.Logger) -> None:
    """Let no message of *logger* move the cursor or set a title; calling it again changes nothing."""
    logger.addFilter(_GUARD)


def _tamed(message: str) -> str:
    found = _HOST_LINE.fullmatch(message)
    if found is not None:  # of what was overwritten, as progress bars are, the last state
        line = found["line"].rstrip("\r").rpartition("\r")[2]
        return found["head"] + shown(line + found["tail"])
    parts = re.split(r"(\r?\n)", message)
    parts[::2] = map(shown, parts[::2])
    return "".join(parts)
