"""One line per event on stderr, for a person and for grep: `event name=value ...`.

Output of commands and secrets never get here.  Whatever a peer chose is shown with its control
characters escaped, so that nobody can write lines of his own into the log.

A reader of the log that has stopped must not stop the agent: while stderr takes nothing, lines are
dropped, and counted in the next one that gets through.
"""

from __future__ import annotations

import os
import re
import select
import sys
import traceback
from datetime import datetime, timezone
from typing import Final

__all__ = ["be_quiet", "describe_failure", "log", "shown"]

# The journal stamps each line itself.
_WITH_TIME = "JOURNAL_STREAM" not in os.environ


#: Printable ASCII without space, quotes and the equals sign; what needs no second look.
_PLAIN: Final = re.compile(r"[!#-&(-<>-~]+")
#: A pipe that poll calls writable takes as much without waiting (PIPE_BUF, pipe(7)).
_LINE_MAX_BYTES: Final = 4096

_quiet = False
_dropped = 0


def be_quiet() -> None:
    """Write nothing from now on: a loopback agent shares its controller's terminal."""
    global _quiet
    _quiet = True


def shown(value: object) -> str:
    """Return *value* as one word of printable text; quoted where it would not be one."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    if _PLAIN.fullmatch(text) or (text.isprintable() and text.isalnum()):
        return text
    escaped = "".join(c if c.isprintable() and c not in '"\\' else c.encode("unicode_escape").decode() for c in text)
    return '"' + escaped.replace('"', '\\"') + '"'


def describe_failure(error: BaseException) -> str:
    """Name an exception that nobody expected, and where it came from.

    Its text is left out, because it may quote what it choked on: a command line, a password, a file's content.
    """
    while inner := getattr(error, "exceptions", ()):
        error = inner[0]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    what = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
    return f"{type(error).__name__}{what}{where}"


def log(event: str, **facts: object) -> None:
    """Write one line about *event*; facts that are None are left out."""
    if _quiet or sys.stderr is None:  # None: started with descriptor 2 closed
        return
    global _dropped
    words = [event.replace(" ", "-"), *(f"{name}={shown(value)}" for name, value in facts.items() if value is not None)]
    try:
        if not _takes_a_line():
            _dropped += 1
            return
        if _dropped:
            words.append(f"dropped={_dropped}")
        sys.stderr.write(_line(words))
        sys.stderr.flush()
        _dropped = 0
    except OSError:
        # A log that cannot be written (disk full, reader gone) must not take the agent down.
        return


def _line(words: list[str]) -> str:
    if _WITH_TIME:
        words.insert(0, datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    line = " ".join(words).encode("utf-8", "backslashreplace")[: _LINE_MAX_BYTES - 1]
    return line.decode("utf-8", "ignore") + "\n"


def _takes_a_line() -> bool:
    try:
        descriptor = sys.stderr.fileno()
    except OSError:  # no file: io.UnsupportedOperation, as under pytest
        return True
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    return bool(ready.poll(0))
