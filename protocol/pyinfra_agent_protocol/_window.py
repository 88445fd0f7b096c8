"""Flow control as arithmetic: how much may be sent, how much may be granted (SPEC.md section 8).

Limits are absolute: bytes since the channel was opened, never differences.  Restating one after a
resume is therefore harmless, and none can be lost or counted twice.

The sender says BLOCKED when it has data and no credit.  This is the whole evidence that a window is
too small for its path, and needs no clock: a reader with less than half a window left to read and a
peer that waits for credit mean that the credit came too late.  The window then doubles, out of a
budget.  A reader that lags leaves its window as it is: a larger one would only fill memory.  (To ask
for a reader with nothing at all to read would be too much: one that takes its data in large pieces
never is, and its peer would stand still between them.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._constants import WINDOW_INITIAL_BYTES, WINDOW_MAX_BYTES
from ._errors import WindowExceeded

if TYPE_CHECKING:
    from ._saved import SavedChannel

__all__ = ["Budget", "ReceiveWindow", "SendWindow"]


class Budget:
    """Bytes that windows may grow by, shared by all who were given this object.

    A session's budget has the agent's as its parent: growth must fit both.
    """

    def __init__(self, total_bytes: int, parent: Budget | None = None) -> None:
        self.total_bytes = total_bytes
        self.reserved_bytes = 0
        self._parent = parent

    def reserve(self, count: int) -> bool:
        """Take *count* bytes if all of them are there; tell whether they were."""
        if self.reserved_bytes + count > self.total_bytes:
            return False
        if self._parent is not None and not self._parent.reserve(count):
            return False
        self.reserved_bytes += count
        return True

    def take(self, count: int) -> None:
        """Reserve *count* bytes even if they are not there: a window that was granted cannot be taken back."""
        self.reserved_bytes += count
        if self._parent is not None:
            self._parent.take(count)

    def release(self, count: int) -> None:
        """Give back *count* bytes that were reserved."""
        self.reserved_bytes -= count
        if self._parent is not None:
            self._parent.release(count)


class SendWindow:
    """What the peer lets us send on one channel, and how much of it is used."""

    def __init__(self) -> None:
        self.limit = WINDOW_INITIAL_BYTES
        self.sent = 0
        self._blocked_at = -1

    @property
    def available(self) -> int:
        """Bytes of DATA that may still be sent; never negative."""
        return self.limit - self.sent

    def use(self, count: int) -> int:
        """Return how many of *count* bytes may be sent now; those count as sent."""
        allowed = min(count, self.limit - self.sent)
        self.sent += allowed
        return allowed

    def grant(self, limit: int) -> bool:
        """Take a CREDIT; tell whether it allows more than before.  A restated one changes nothing."""
        if limit <= self.limit:
            return False
        self.limit = limit
        return True

    def note_blocked(self) -> bool:
        """Tell whether BLOCKED is to be sent: once for each limit that was reached."""
        if self.available or self._blocked_at == self.limit:
            return False
        self._blocked_at = self.limit
        return True

    @property
    def is_blocked(self) -> bool:
        """True when nothing may be sent and the peer was told so: it is up to the peer now."""
        return not self.available and self._blocked_at == self.limit

    def forget_blocked(self) -> None:
        """Say BLOCKED again on a new link: the old one may have lost it."""
        self._blocked_at = -1


class ReceiveWindow:
    """What we let the peer send on one channel; grown when the path is longer than the window."""

    def __init__(self, budget: Budget) -> None:
        self.limit = WINDOW_INITIAL_BYTES
        self.received = 0
        self.consumed = 0
        self.size = WINDOW_INITIAL_BYTES
        #: What the peer knows without a CREDIT: the initial window, or what OPEN said.
        self.stated = WINDOW_INITIAL_BYTES
        self._budget = budget
        self._peer_waits = False
        # The highest limit at which the peer was blocked; there is none below the one to begin with.
        self._peer_reached = WINDOW_INITIAL_BYTES - 1

    @property
    def buffered(self) -> int:
        """Bytes received and not yet consumed."""
        return self.received - self.consumed

    def widen(self, size: int) -> bool:
        """Grow to *size* bytes before there is any evidence, as far as the budget goes; tell whether it grew."""
        before = self.size
        while self.size < size and self._budget.reserve(self.size):
            self.size *= 2
        self.limit = self.consumed + self.size
        # A BLOCKED below it that crosses the CREDIT shows what is known already: the initial window is too small.
        self._peer_reached = self.limit - 1
        return self.size > before

    def receive(self, count: int) -> None:
        """Note *count* bytes of DATA.

        Raises:
            WindowExceeded: the peer was not granted so many; nothing was noted.
        """
        if self.received + count > self.limit:
            raise WindowExceeded(f"{self.received + count} bytes on a channel that was granted {self.limit}")
        self.received += count

    def receive_blocked(self, limit: int) -> int | None:
        """Take a BLOCKED at *limit*; return a limit to announce, or None.

        It comes behind all that was sent up to that limit, once for each.  One that does not is no
        evidence: nobody gets a share of the budget for words alone.
        """
        if limit != self.received or limit <= self._peer_reached:
            return None
        self._peer_reached = limit
        self._peer_waits = True
        return self._next_limit()

    def consume(self, count: int) -> int | None:
        """Note that the reader took *count* bytes; return a limit to announce, or None."""
        self.consumed += count
        return self._next_limit()

    def restore(self, saved: SavedChannel) -> None:
        """Become as a window was when it was saved; what it grew by counts against the budget."""
        self.limit, self.received, self.consumed = saved.limit, saved.received, saved.consumed
        self.size, self.stated = max(saved.size, WINDOW_INITIAL_BYTES), saved.stated
        self._peer_waits, self._peer_reached = saved.peer_waits, saved.peer_reached
        self._budget.take(self.size - WINDOW_INITIAL_BYTES)

    @property
    def peer_waits(self) -> bool:
        """True when a BLOCKED counted and was not used yet."""
        return self._peer_waits

    @property
    def peer_reached(self) -> int:
        """The highest limit at which the peer was blocked."""
        return self._peer_reached

    def close(self) -> None:
        """Give what the window grew by back to the budget."""
        self._budget.release(self.size - WINDOW_INITIAL_BYTES)
        self.size = WINDOW_INITIAL_BYTES

    def _next_limit(self) -> int | None:
        if self._peer_waits and self.buffered <= self.size // 2:
            self._peer_waits = False
            if self.size < WINDOW_MAX_BYTES and self._budget.reserve(self.size):
                self.size *= 2
        # Half a window is the usual compromise: fewer CREDITs, and none comes too late.
        elif self.limit - self.consumed > self.size // 2:
            return None
        limit = self.consumed + self.size
        if limit <= self.limit:
            return None
        self.limit = limit
        return limit
