"""How long the outputs of a command are listened to after its exit: while bytes come, and at most so long in all.

Only a reader's time counts, not the time in which it could not take more: quiet is counted while a read waits, and a
pause between two reads counts as no more than one quiet time.
"""

from __future__ import annotations

import fcntl
import math
import struct
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Drain", "Draining"]


@dataclass(frozen=True, slots=True)
class Drain:
    """Seconds of quiet that end the outputs of a command that has exited, and seconds that do in any case."""

    quiet_seconds: float = 0.25
    most_seconds: float = 5.0


class Draining:
    """The clock that ends the outputs of a command after its exit: one for both, as either may be still written to."""

    def __init__(self, drain: Drain) -> None:
        #: Set when enough was waited, whatever may still come.
        self.is_over = False
        self._quiet_seconds = drain.quiet_seconds
        self._left_seconds = drain.most_seconds
        self._marked_at = math.inf  # when time was last charged; infinite until the exit
        self._rest: dict[int, int] = {}

    @property
    def is_spent(self) -> bool:
        """True when all the time after the exit is used up."""
        return self._left_seconds <= 0 and self._marked_at < math.inf

    @property
    def patience_seconds(self) -> float:
        """How long a reader may wait now."""
        return max(0.0, min(self._quiet_seconds, self._left_seconds))

    def begin(self) -> None:
        """Note the exit."""
        self._marked_at = trio.current_time()

    def export(self, outputs: Sequence[int | None]) -> tuple[float, tuple[int | None, int | None]]:
        """Return the seconds that are left, and what `rest_of` has said of stdout and stderr."""
        if self.is_over:
            return 0.0, (0, 0)
        stdout, stderr = (self._rest.get(number) if number is not None else None for number in outputs)
        return max(0.0, self._left_seconds), (stdout, stderr)

    def resume(self, seconds: float, rest: Mapping[int | None, int | None]) -> None:
        """Go on after the exit, from what was exported."""
        self.begin()
        self._left_seconds = seconds
        self._rest = {number: count for number, count in rest.items() if number is not None and count is not None}

    def charge(self) -> None:
        """Count the time since the last call, or no more than one quiet time of it."""
        if self._marked_at < math.inf:
            now = trio.current_time()
            self._left_seconds -= min(now - self._marked_at, self._quiet_seconds)
            self._marked_at = now

    def rest_of(self, descriptor: int) -> int:
        """Return how many bytes of those that were there when the time was spent are not yet taken."""
        if descriptor not in self._rest:
            self._rest[descriptor] = _readable_bytes(descriptor)
        return self._rest[descriptor]

    def take(self, descriptor: int, count: int) -> None:
        """Note that *count* of them were."""
        self._rest[descriptor] -= count


def _readable_bytes(descriptor: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))
    return int(count)
