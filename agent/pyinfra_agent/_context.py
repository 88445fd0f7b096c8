"""What the handlers of requests share: one object per agent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._litter import Litter
    from ._process import Supervisor
    from ._settings import Settings

__all__ = ["Context"]


@dataclass(slots=True)
class Context:
    """The agent as its handlers see it.

    Attributes:
        boot_id: changes with each boot of this machine, and tells a reboot from a lost connection.
        is_stopping: no new request is begun.
    """

    settings: Settings
    supervisor: Supervisor
    litter: Litter | None
    boot_id: str
    is_stopping: bool = False

    def locate(self, path: bytes) -> bytes:
        """Return *path* as an absolute one: relative names begin where commands start."""
        if path.startswith(b"/"):
            return path
        return os.path.join(self.settings.directory(self.settings.environment()), path)
