"""What the handlers of requests share: one object per agent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._account import Account
    from ._litter import Litter
    from ._settings import Settings
    from ._supervisor import Supervisor

__all__ = ["Context"]


@dataclass(slots=True)
class Context:
    """The agent as its handlers see it.

    Attributes:
        boot_id: changes with each boot of this machine, and tells a reboot from a lost connection.
        is_stopping: no new request is begun.
        account: whom everything is done as; None is the agent's own user.
    """

    settings: Settings
    supervisor: Supervisor
    litter: Litter | None
    boot_id: str
    is_stopping: bool = False
    account: Account | None = None

    def environment(self) -> dict[bytes, bytes]:
        """Return a fresh environment for a command."""
        return self.account.environment() if self.account is not None else self.settings.environment()

    def directory(self, environment: Mapping[bytes, bytes]) -> bytes:
        """Return where a command starts and relative names begin."""
        if self.account is not None:
            return environment.get(b"HOME", b"/")  # whether it can be entered is for that user to find out
        return self.settings.directory(environment)

    def locate(self, path: bytes) -> bytes:
        """Return *path* as an absolute one: relative names begin where commands start."""
        if path.startswith(b"/"):
            return path
        return os.path.join(self.directory(self.environment()), path)
