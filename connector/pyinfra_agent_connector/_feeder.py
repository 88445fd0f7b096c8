"""A command's standard input, sent while its output is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event

from pyinfra_agent_protocol import DATA_BODY_BYTES

from ._errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._call import Call

__all__ = ["Feeder"]

#: What follows the request at once: no greenlet, no further round trip.
_FIRST_FLIGHT_BYTES: Final = 32 * 1024


class Feeder:
    """Greenlets that send input; made by `start`, and stopped when the command's answer is there.

    One makes the items of an iterable, and another sends what there is: a generator of a million short lines takes
    thousands of messages and not a million, and an item is never kept back until the next one is made.
    """

    def __init__(self, call: Call, script: bytes, stdin: bytes | Iterable[bytes] | None) -> None:
        self._call = call
        self._script = script
        self._stdin = stdin
        self._error: BaseException | None = None
        self._greenlets: list[Any] = []
        self._made: list[bytes] = []
        self._made_bytes = 0
        self._is_made = False  # to its end, or to an error
        self._more = Event()
        self._room = Event()

    @classmethod
    def start(cls, call: Call, script: bytes, stdin: bytes | Iterable[bytes] | None) -> Feeder:
        """Send what can be sent at once, and spawn greenlets for the rest."""
        feeder = cls(call, script, stdin)
        if isinstance(stdin, bytes) and len(script) + len(stdin) <= _FIRST_FLIGHT_BYTES:
            feeder._run()
        elif script or stdin is not None:
            feeder._greenlets.append(gevent.spawn(feeder._run))
        return feeder

    def stop(self) -> None:
        """Send no more."""
        gevent.killall(self._greenlets)

    def check(self) -> None:
        """Raise, as an OSError, what reading the input raised: the command has seen less than it should have."""
        if isinstance(self._error, OSError):
            raise self._error
        if self._error is not None:
            text = f"the input of {self._call.what} could not be read, and it was cancelled: {self._error!r}"
            raise AgentError(text) from self._error

    def _run(self) -> None:
        try:
            if self._send(self._script) and (
                self._send(self._stdin) if isinstance(self._stdin, bytes | None) else self._send_made(self._stdin)
            ):
                self._call.end()
        except (Exception, gevent.Timeout) as error:
            self._fail(error)

    def _send(self, data: bytes | None) -> bool:
        return not data or self._call.send(data)

    def _send_made(self, stdin: Iterable[bytes]) -> bool:
        self._greenlets.append(gevent.spawn(self._make, stdin))
        while self._made or not self._is_made:
            if not self._made:
                self._more.clear()
                self._more.wait()
                continue
            data = b"".join(self._made)
            self._made.clear()
            self._made_bytes = 0
            self._room.set()
            if not self._call.send(data):
                return False
        return self._error is None

    def _make(self, stdin: Iterable[bytes]) -> None:
        try:
            for chunk in stdin:
                self._made.append(chunk)
                self._made_bytes += len(chunk)
                self._more.set()
                while self._made_bytes >= DATA_BODY_BYTES:
                    self._room.clear()
                    self._room.wait()
        except (Exception, gevent.Timeout) as error:
            self._fail(error)
        self._is_made = True
        self._more.set()

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._call.cancel()
