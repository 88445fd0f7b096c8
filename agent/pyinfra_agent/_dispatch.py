"""What a welcomed controller may ask, as a table, and how every answer gets back to it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

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

from ._account import find_account
from ._audit import log_request
from ._commands import run_exec, start_exec
from ._log import describe_failure, log
from ._transfers import run_get, run_put, run_stat
from ._user_files import get_as_user, put_as_user, stat_as_user
from ._version import software_version

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pyinfra_agent_protocol import Request, Result

    from ._channel import RequestChannel
    from ._commands import ExecRun
    from ._context import Context
    from ._session import AgentSession

    Handler: TypeAlias = Callable[[Context, RequestChannel, Any], Awaitable[Result]]

__all__ = ["HANDLERS", "begin_request", "handle_request"]


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
            "uid": context.account.uid if context.account is not None else os.geteuid(),
            "boot_id": context.boot_id,
        }
    )


async def _run_close_session(context: Context, channel: RequestChannel, request: CloseSession) -> CloseSessionResult:
    """End the session once this answer is written; `handle_request` tells the session."""
    await trio.lowlevel.checkpoint()
    return CloseSessionResult()


#: Everything that can be asked; nothing can be before the agent has welcomed the controller.
HANDLERS: Final[Mapping[type[Request], Handler]] = {
    Exec: run_exec,
    Put: run_put,
    Get: run_get,
    Stat: run_stat,
    Info: _run_info,
    CloseSession: _run_close_session,
}


#: The same where another user than the agent's has to open a file.
USER_HANDLERS: Final[Mapping[type[Request], Handler]] = {
    Put: put_as_user,
    Get: get_as_user,
    Stat: stat_as_user,
}


def begin_request(context: Context, session: AgentSession, channel: RequestChannel, request: Request) -> Handler:
    """Begin *request* as far as that takes no waiting; return what `handle_request` has to do then.

    A plain command is begun here: it runs while the task that is to wait for it gets its turn.
    """
    if not isinstance(request, Exec) or request.script_index is not None:
        return partial(_carry_out, session)
    try:
        run = start_exec(_admitted(session, context, request), channel, request)
    except Exception as error:
        return partial(_fail, error)
    return partial(_go_on, run)


async def handle_request(
    context: Context,
    session: AgentSession,
    channel: RequestChannel,
    request: Request,
    begun: Handler | None = None,
) -> None:
    """Carry *request* out and answer it, exactly once; no exception leaves but the agent's own end.

    With *begun*, it was begun (by `begin_request`, or by the agent before this one), and that is what is left to do.
    """
    started = trio.current_time()
    # As it was asked: the session's controller may be another object by the end.
    controller, peer = session.controller, session.peer
    outcome = "done"
    result: Result | None = None
    try:
        go_on = begun if begun is not None else begin_request(context, session, channel, request)
        result = await go_on(context, channel, request)
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
    finally:
        channel.release()
    log_request(controller, peer, session, channel, request, result, outcome, trio.current_time() - started)


async def _fail(error: Exception, context: Context, channel: RequestChannel, request: Request) -> Result:
    await trio.lowlevel.checkpoint()
    raise error


async def _go_on(run: ExecRun, context: Context, channel: RequestChannel, request: Request) -> Result:
    return await run.until_over()


async def _carry_out(session: AgentSession, context: Context, channel: RequestChannel, request: Request) -> Result:
    if isinstance(request, CloseSession):
        return await HANDLERS[CloseSession](context, channel, request)
    context = _admitted(session, context, request)
    handlers = HANDLERS
    if context.account is not None and getattr(request, "argv", None) is None:
        handlers = {**HANDLERS, **USER_HANDLERS}
    return await handlers[type(request)](context, channel, request)


def _admitted(session: AgentSession, context: Context, request: Request) -> Context:
    """Return the context that *request* is to be carried out in.

    Raises:
        RequestRefused: it is not to be carried out.
    """
    if session.is_over:
        # Between its arrival and now its controller may have been shut out: nothing may begin any more.
        raise RequestRefused("cancelled", "the session has ended")
    if context.is_stopping:
        raise RequestRefused("stopping", "the agent is stopping: try again when it is back")
    policy = session.controller.policy
    option = policy.refusal(request)
    if option is not None:
        raise RequestRefused(
            "denied", f"{request.NAME} is not allowed to this controller: its line on the agent says {option}"
        )
    if policy.user is not None and (account := find_account(policy.user)) is not None:
        return replace(context, account=account)
    return context
