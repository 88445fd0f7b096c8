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

from ._addresses import announced_port, bound_addresses
from ._announce import announce
from ._authorized import AuthorizedControllers
from ._handover import REPLACE, hold_signals, inherit, inherited_listeners, pass_on, take_over
from ._keys import load_or_create_key
from ._lean import settle
from ._limited import why_not_limited
from ._limits import RareLog
from ._log import log, use_format
from ._profile import profile
from ._register import register
from ._reload import Reloader
from ._server import Agent, format_address, prepare_process
from ._service import Service
from ._socket_activation import passed_listeners
from ._watchdog import ObservedListener

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ._settings import Settings

__all__ = ["serve"]

_BACKLOG = 4096


def serve(settings: Settings, state_dir: Path, read_settings: Callable[[], Settings]) -> int:
    """Run an agent that keeps its state in *state_dir*; returns the exit status.

    *read_settings* reads the configuration file, once more at each SIGHUP.
    """
    use_format(settings.log)
    if (complaint := why_not_limited(settings)) is not None:
        print(f"pyinfra-agent: {complaint}", file=sys.stderr)
        return 1
    came = hold_signals()
    _log_failures_to_accept()
    end = inherit(os.environ)
    while True:
        prepare_process()
        if settings.umask is not None:
            os.umask(settings.umask)
        agent = _serve_once(settings, state_dir, read_settings, came, end)
        if isinstance(agent, int):
            return agent
        assert agent.estate is not None
        assert agent.successor is not None
        end = pass_on(*agent.estate, agent.successor, os.environ)
        if agent.successor == REPLACE:
            # At once: controllers wait, and the interpreter takes a quarter of a second to tidy up.
            os._exit(0)


def _serve_once(
    settings: Settings,
    state_dir: Path,
    read_settings: Callable[[], Settings],
    came: list[int],
    end: int | None,
) -> Agent | int:
    """Return the exit status, or an agent that is to be handed over."""
    key = load_or_create_key(state_dir)
    agent = Agent(replace(settings, state_dir=state_dir), key, AuthorizedControllers(state_dir))
    inheritance = take_over(end, os.environ) if end is not None else None
    early, came[:] = list(came), []

    async def run() -> int:
        passed = passed_listeners(os.environ)
        listeners = inherited_listeners(inheritance, settings.listen, is_wanted=not passed) or passed
        for host, port in () if listeners else settings.listen:
            try:
                listeners += await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
            except OSError as error:
                where = format_address((host or "*", port))
                print(f"pyinfra-agent: cannot listen on {where}: {_why(error)}", file=sys.stderr)
                return 1
        addresses = [format_address(listener.socket.getsockname()) for listener in listeners]
        for address in addresses:
            log("listening", address=address, key=fingerprint(key.public))
        observed = list(map(ObservedListener, listeners))
        reloader = Reloader(settings, read_settings, agent.use)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.stop_on_signals)
            nursery.start_soon(agent.hand_over_on_signals, early, "NOTIFY_SOCKET" in os.environ)
            async with trio.open_nursery() as serving:
                await serving.start(agent.run, observed, inheritance)
                await nursery.start(Service(agent, observed, addresses, reloader).run, state_dir)
                # Who waits for the agent need not wait for these.
                settle()
                nursery.start_soon(_make_known, agent, settings, key.public, listeners)
            nursery.cancel_scope.cancel()
        if agent.estate is None:
            log("stopped")
        return 0

    status = trio.run(run)
    return status if agent.estate is None else agent


async def _make_known(agent: Agent, settings: Settings, key: bytes, listeners: list[trio.SocketListener]) -> None:
    """Tell the network where the agent is, as far as it is to know and can reach it."""
    bound = bound_addresses(listener.socket for listener in listeners)
    port = announced_port(bound)
    if port is None:
        return
    about = profile(key, port, settings.groups)
    chosen = settings.announce_interfaces
    async with trio.open_nursery() as nursery:
        if settings.announce:
            nursery.start_soon(announce, about, bound, chosen, agent.wait_stopping)
        if settings.dns is not None:
            nursery.start_soon(register, about, bound, settings.dns, chosen, agent.wait_stopping)


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
