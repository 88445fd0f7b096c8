"""What the phases of a link share: the two sides of a handshake, and the transport that each turns into."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ._errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Phase"]


class Phase:
    """An object that failed, or that has turned into the next phase, does nothing more."""

    _ended: str | None = None

    def _require_usable(self) -> None:
        if self._ended is not None:
            raise LocalProtocolError(f"{type(self).__name__} used after {self._ended}")

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """Refuse a dead object, and let any exception within be the last thing that this one does."""
        self._require_usable()
        try:
            yield
        except BaseException:
            self._ended = "an error"
            raise
