"""What the log says of each request: who, from where, what, as whom, how it ended, how much and how long.

Of a command only its label is written, which its controller has masked; never argv, a variable, or what it printed.
"""

from __future__ import annotations

import os
import pwd
from functools import lru_cache
from typing import TYPE_CHECKING

from pyinfra_agent_protocol import Exec, ExecResult, Get, Put, Stat

from ._log import log

if TYPE_CHECKING:
    from pyinfra_agent_protocol import Request, Result

    from ._channel import RequestChannel
    from ._controllers import Controller
    from ._session import AgentSession

__all__ = ["log_request", "own_name"]


def log_request(
    controller: Controller,
    peer: str,
    session: AgentSession,
    channel: RequestChannel,
    request: Request,
    result: Result | None,
    outcome: str,
    seconds: float,
) -> None:
    """Write the one line that stays of *request*; *outcome* is `done`, or the code that it was refused with."""
    what: str | None = None
    path: bytes | None = None
    if isinstance(request, Exec):
        what = request.label or None
    elif isinstance(request, Put | Get | Stat):
        path = request.path
    status = number = None
    if isinstance(result, ExecResult):
        status, number = result.exit, result.signal
        if result.reason != "exited":
            outcome = result.reason
    log(
        "request",
        controller=controller,
        key=controller.fingerprint,
        peer=peer or None,
        session=session,
        request=request.NAME,
        outcome=outcome,
        exit=status,
        signal=number,
        what=what,
        path=path,
        user=controller.policy.user or own_name(),
        received=channel.received_bytes or None,
        sent=channel.sent_bytes or None,
        ms=round(seconds * 1000),
    )


@lru_cache(maxsize=1)
def own_name() -> str:
    """Return the name of the user that this process runs as; its number if it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
