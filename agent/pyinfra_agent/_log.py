"""One line per event, for a person and for grep: `event name=value ...` on stderr.

Or one JSON object a line, or an entry of the systemd journal with a field for each value (systemd.journal-fields(7)),
whose message is the same line: `use_format`.

Output of commands and secrets never get here.  Whatever a peer chose is shown with its control
characters escaped, so that nobody can write lines of his own into the log.

A reader of the log that has stopped must not stop the agent: while it takes nothing, lines are dropped, and
counted in the next one that gets through.
"""

from __future__ import annotations

import enum
import json
import os
import re
import select
import socket
import sys
import traceback
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FIELD_PREFIX", "IDENTIFIER", "LogFormat", "be_quiet", "describe_failure", "log", "shown", "use_format"]


class LogFormat(enum.Enum):
    """How the log is written."""

    AUTO = "auto"
    """To the journal where stderr leads there, else as text."""
    TEXT = "text"
    """One line per event, for people."""
    JSON = "json"
    """One JSON object a line, for programs."""
    JOURNAL = "journal"
    """Entries of the systemd journal, with a field for each value."""


#: What `journalctl -t` finds, and how the fields of an entry begin.
IDENTIFIER: Final = "pyinfra-agent"
FIELD_PREFIX: Final = "PYINFRA_AGENT_"

_JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
_INFORMATION: Final = 6  # of syslog(3)

# The journal stamps each line itself.
_WITH_TIME = "JOURNAL_STREAM" not in os.environ


#: Printable ASCII without space, quotes and the equals sign; what needs no second look.
_PLAIN: Final = re.compile(r"[!#-&(-<>-~]+")
#: A pipe that poll calls writable takes as much without waiting (PIPE_BUF, pipe(7)).
_LINE_MAX_BYTES: Final = 4096

#: In JSON: of a text, where its object would be longer than that.
_SHORT_CHARACTERS: Final = 200

_quiet = False
_dropped = 0
_format = LogFormat.TEXT
_journal: socket.socket | None = None


def be_quiet() -> None:
    """Write nothing from now on: a loopback agent shares its controller's terminal."""
    global _quiet
    _quiet = True


def use_format(wanted: LogFormat) -> None:
    """Write like that from now on."""
    global _format, _journal
    if wanted is LogFormat.AUTO:
        wanted = LogFormat.JOURNAL if _leads_to_the_journal() else LogFormat.TEXT
    if wanted is LogFormat.JOURNAL and _journal is None:
        _journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    _format = wanted


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
    known = {name: value for name, value in facts.items() if value is not None}
    if _dropped:
        known["dropped"] = _dropped
    try:
        if _format is LogFormat.JOURNAL:
            is_written = _send_to_journal(event, known)
        elif is_written := _takes_a_line():
            sys.stderr.write(_json_line(event, known) if _format is LogFormat.JSON else _text_line(event, known))
            sys.stderr.flush()
        _dropped = 0 if is_written else _dropped + 1
    except OSError:
        # A log that cannot be written (disk full, reader gone) must not take the agent down.
        return


def _words(event: str, facts: Mapping[str, object]) -> str:
    return " ".join([event.replace(" ", "-"), *[f"{name}={shown(value)}" for name, value in facts.items()]])


def _text_line(event: str, facts: Mapping[str, object]) -> str:
    words = _words(event, facts)
    if _WITH_TIME:
        words = f"{datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')} {words}"
    line = words.encode("utf-8", "backslashreplace")[: _LINE_MAX_BYTES - 1]
    return line.decode("utf-8", "ignore") + "\n"


def _json_line(event: str, facts: Mapping[str, object]) -> str:
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = {"time": time, "event": event} | {name: _plain(value) for name, value in facts.items()}
    line = json.dumps(values)
    if len(line) >= _LINE_MAX_BYTES:
        short = {name: value[:_SHORT_CHARACTERS] if type(value) is str else value for name, value in values.items()}
        line = json.dumps(short)
    return line + "\n"


def _plain(value: object) -> str | int | float:
    if type(value) is int or type(value) is float:
        return value
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _send_to_journal(event: str, facts: Mapping[str, object]) -> bool:
    """Send one datagram of journald's native protocol: `NAME=value`, or with a length where a newline is in it."""
    fields = [f"MESSAGE={_words(event, facts)}\nPRIORITY={_INFORMATION}\nSYSLOG_IDENTIFIER={IDENTIFIER}\n".encode()]
    for name, value in (("event", event), *facts.items()):
        word = f"{FIELD_PREFIX}{name.upper()}".encode()
        data = str(_plain(value)).encode("utf-8", "backslashreplace")
        if b"\n" in data:
            fields.append(word + b"\n" + len(data).to_bytes(8, "little") + data + b"\n")
        else:
            fields.append(word + b"=" + data + b"\n")
    assert _journal is not None
    try:
        _journal.sendto(b"".join(fields), _JOURNAL_SOCKET)
    except OSError:  # it takes nothing at the moment, or is being restarted
        return False
    return True


def _leads_to_the_journal() -> bool:
    """Tell whether stderr is the stream that systemd gave us (JOURNAL_STREAM of systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    stream = os.environ.get("JOURNAL_STREAM", "")
    return stream == f"{status.st_dev}:{status.st_ino}" and os.path.exists(_JOURNAL_SOCKET)


def _takes_a_line() -> bool:
    try:
        descriptor = sys.stderr.fileno()
    except OSError:  # no file: io.UnsupportedOperation, as under pytest
        return True
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    return bool(ready.poll(0))
