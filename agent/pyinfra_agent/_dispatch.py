"""What a welcomed controller may ask, as a table, and how every answer gets back to it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from pyinfra_agent_protocol import (
    CloseSession,
    CloseSessionResult,
    Exec,
    Get,
    Info,
    InfoResult,
    LocalProtocolError,
    Put,
    RequestRefused,
    Stat,
)

from ._commands import run_exec
from ._log import describe_failure, log
from ._transfers import run_get, run_put, run_stat
from ._version import software_version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pyinfra_agent_protocol import Request, Result

    from ._channel import RequestChannel
    from ._context import Context
    from ._session import AgentSession

__all__ = ["HANDLERS", "handle_request"]


async def _run_info(context: Context, channel: RequestChannel, request: Info) -> InfoResult:
    """Say who the agent is."""
    await trio.lowlevel.checkpoint()
    return InfoResult(
        {
            "version": software_version(),
            "hostname": platform.node(),
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "uid": os.geteuid(),
            "boot_id": context.boot_id,
        }
    )


async def _run_close_session(context: Context, channel: RequestChannel, request: CloseSession) -> CloseSessionResult:
    """End the session once this answer is written; `handle_request` tells the session."""
    await trio.lowlevel.checkpoint()
    return CloseSessionResult()


#: Everything that can be asked; nothing can be before the agent has welcomed the controller.
HANDLERS: Final[Mapping[type[Request], Callable[[Context, RequestChannel, Any], Awaitable[Result]]]] = {
    Exec: run_exec,
    Put: run_put,
    Get: run_get,
    Stat: run_stat,
    Info: _run_info,
    CloseSession: _run_close_session,
}


async def handle_request(context: Context, session: AgentSession, channel: RequestChannel, request: Request) -> None:
    """Carry *request* out and answer it, exactly once; no exception leaves but the agent's own end."""
    started = trio.current_time()
    outcome = "done"
    try:
        if context.is_stopping and not isinstance(request, CloseSession):
            raise RequestRefused("stopping", "the agent is stopping: try again when it is back")
        result = await HANDLERS[type(request)](context, channel, request)
        session.answer(channel, result)
        if isinstance(request, CloseSession):
            session.begin_closing()
    except RequestRefused as refusal:
        outcome = refusal.code
        session.refuse(channel, refusal.code, refusal.text)
    except Exception as error:
        # A fence that nothing is expected to reach: one request fails, the agent lives on.
        outcome = "internal"
        log("request-failed", request=request.NAME, error=describe_failure(error))
        with suppress(LocalProtocolError):  # it was answered already
            session.refuse(channel, "internal", f"the agent failed at {request.NAME}: its log says where")
    milliseconds = round((trio.current_time() - started) * 1000)
    log(
        "request",
        controller=session.controller,
        session=session,
        request=request.NAME,
        outcome=outcome,
        ms=milliseconds,
    )
