"""What can go wrong between a controller and its agents, as exceptions with a line for a person each.

All are OSErrors: pyinfra fails one operation on those, and the whole run on anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._output import LazyCommandOutput

__all__ = [
    "AgentError",
    "CommandTimeout",
    "ConnectionLost",
    "HungUp",
    "NotAuthorized",
    "Refused",
    "Unreachable",
    "one_line",
]


def one_line(text: str) -> str:
    """Return an agent's *text* as one line that no terminal obeys."""
    return "".join(character if character.isprintable() else "?" for character in text)


class AgentError(OSError):
    """Base of them; the text names the agent and says what to do."""


class Unreachable(AgentError):
    """No agent answers at this address, or not in time."""


class HungUp(Unreachable):
    """The connection was closed before the agent had said who it is: it may have had to make room for others."""


class NotAuthorized(AgentError):
    """The agent does not let this controller in."""


class ConnectionLost(AgentError):
    """The connection was lost and the session with it; what became of the request is in the text.

    Attributes:
        was_sent: the request had been written, so the agent may have acted on it.
    """

    def __init__(self, text: str, *, was_sent: bool = False) -> None:
        super().__init__(text)
        self.was_sent = was_sent


class Refused(AgentError):
    """The agent refused one request, or failed at it.

    Attributes:
        code: for programs, one of SPEC.md section 10.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class CommandTimeout(TimeoutError):
    """A command's time was over; the agent has ended it and all that it started, unless the text says otherwise.

    Attributes:
        output: what it wrote before.
    """

    def __init__(self, text: str, output: LazyCommandOutput | None = None) -> None:
        super().__init__(text)
        self.output = output
