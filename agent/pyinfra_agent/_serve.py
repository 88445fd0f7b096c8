"""`pyinfra-agent serve`: an agent with a state directory, until SIGTERM."""

from __future__ import annotations

import errno
import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from pyinfra_agent_protocol.keys import fingerprint

from ._authorized import AuthorizedControllers
from ._keys import load_or_create_key
from ._limits import RareLog
from ._log import log
from ._server import Agent, format_address, prepare_process

if TYPE_CHECKING:
    from pathlib import Path

    from ._settings import Settings

__all__ = ["serve"]

_BACKLOG = 4096


def serve(settings: Settings, state_dir: Path) -> int:
    """Run an agent that keeps its state in *state_dir*; returns the exit status."""
    prepare_process()
    if settings.umask is not None:
        os.umask(settings.umask)
    _log_failures_to_accept()
    key = load_or_create_key(state_dir)
    agent = Agent(replace(settings, state_dir=state_dir), key, AuthorizedControllers(state_dir))

    async def run() -> int:
        listeners: list[trio.SocketListener] = []
        for host, port in settings.listen:
            try:
                listeners += await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
            except OSError as error:
                where = format_address((host or "*", port))
                print(f"pyinfra-agent: cannot listen on {where}: {_why(error)}", file=sys.stderr)
                return 1
        for listener in listeners:
            log("listening", address=format_address(listener.socket.getsockname()), key=fingerprint(key.public))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.stop_on_signals)
            await agent.run(listeners)
            nursery.cancel_scope.cancel()
        log("stopped")
        return 0

    return trio.run(run)


class _AcceptFailures(logging.Handler):
    """Turns what trio says each time that it cannot accept a connection, ten times a second, into a line now and then.

    It goes on trying: connections wait in the kernel until there are descriptors again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._log = RareLog("accept-failed")

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._log.note(error=getattr(error, "strerror", None) or record.msg)


def _log_failures_to_accept() -> None:
    logger = logging.getLogger("trio.serve_listeners")
    logger.propagate = False
    logger.handlers[:] = [_AcceptFailures()]


def _why(error: OSError) -> str:
    """Say what to do; trio puts several failures into one exception without a number."""
    causes = [error, *getattr(error.__cause__, "exceptions", ())]
    if any(getattr(cause, "errno", None) == errno.EADDRINUSE for cause in causes):
        return "the address is in use: is an agent running already? Choose another --listen HOST:PORT"
    if any(getattr(cause, "errno", None) == errno.EACCES for cause in causes):
        return "not permitted: ports below 1024 need root"
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
