"""A private agent on 127.0.0.1: started for `@agent/loopback`, gone with this process.

The agent is a process of its own, because trio cannot run where gevent has patched.  It is started, not
imported.  Its standard input is a pipe that only we hold: however we end, the pipe ends, and with it
the agent and the commands that it still runs.  Keys are made for this run and are never on a disk.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import sys
import weakref
from dataclasses import dataclass
from typing import Any, Final

import gevent
from gevent import monkey, subprocess

from pyinfra_agent_protocol.keys import KeyPair, format_public, parse_public

from ._errors import AgentError
from ._identity import SECRET_VARIABLES, Identity
from ._interrupt import interrupts
from ._processes import start_process

__all__ = ["LoopbackAgent", "start_loopback"]

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0
# The current directory is not searched for modules: a deploy's own trio.py must not become part of an agent.
_PROGRAM: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; from pyinfra_agent._loopback import main; sys.exit(main())"
)

# Not gevent's: where gevent has patched, that one may close later, and in a forked child never.
_close: Final = monkey.get_original("os", "close")

#: Agents of this process that were not stopped: at exit they are.
_agents: weakref.WeakSet[LoopbackAgent] = weakref.WeakSet()


class _Lifeline:
    """Our end of an agent's pipe; it is closed, too, when nobody holds it any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _close(descriptor)

    __del__ = close


@dataclass(frozen=True, eq=False)  # no slots: a weak set holds it
class LoopbackAgent:
    """A running private agent.

    Attributes:
        port: where it listens on 127.0.0.1.
        key_line: its public key, as `agent_public_key` takes it.
        identity: the one controller that it lets in.
    """

    port: int
    key_line: str
    identity: Identity
    _process: Any
    _lifeline: _Lifeline

    def stop(self) -> None:
        """End the agent and every command that still runs in it; harmless when it has ended."""
        if self not in _agents:
            return  # stopped, or the agent of a process that this one was forked from
        self.let_go()
        if interrupts.is_interrupted:
            return  # it ends by itself, in a moment that nobody wants to wait for
        process = self._process
        if process.poll() is None:
            with gevent.Timeout(_STOP_SECONDS, False):
                process.wait()
            if process.poll() is None:
                process.kill()
                process.wait()
        process.stdout.close()

    def let_go(self) -> None:
        """Close our end of the pipe: the agent ends unless somebody else holds it too."""
        _agents.discard(self)
        self._lifeline.close()


def start_loopback() -> LoopbackAgent:
    """Start a private agent with this process's environment and current directory.

    Raises:
        AgentError: it cannot be started; the text says what to install.
    """
    if importlib.util.find_spec("trio") is None:
        raise AgentError("@agent/loopback runs an agent and needs trio: pip install 'pyinfra-agentd[agent]'")
    identity = Identity(KeyPair.generate(), "loopback")
    # A plain descriptor: in a forked child it can be closed before gevent is fit for use there.
    stdin, lifeline = os.pipe()
    try:
        process = start_process(
            [sys.executable, "-c", _PROGRAM],
            stdin=stdin,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
        )
    except OSError as error:
        _close(lifeline)
        raise AgentError(f"the loopback agent cannot be started: {error}") from error
    finally:
        _close(stdin)
    try:
        os.write(lifeline, f"{format_public(identity.keypair.public, identity.comment)}\n".encode())
        port, line = _read_answer(process)
        agent = LoopbackAgent(int(port), format_public(parse_public(line).key), identity, process, _Lifeline(lifeline))
    except BaseException as error:
        _close(lifeline)
        process.kill()
        process.wait()
        process.stdout.close()
        if isinstance(error, OSError | ValueError) and not isinstance(error, AgentError):
            raise AgentError("the loopback agent did not start: see its message above") from error
        raise
    _agents.add(agent)
    return agent


def _read_answer(process: Any) -> tuple[str, str]:  # noqa: ANN401 - gevent has no types
    with gevent.Timeout(_START_SECONDS, False):
        port, _, line = process.stdout.readline().decode().strip().partition(" ")
        return port, line
    raise AgentError(f"the loopback agent did not start within {_START_SECONDS:g} s")


@atexit.register
def _stop_all() -> None:
    for agent in tuple(_agents):
        agent.stop()


def _let_go_in_child() -> None:
    # Else the agent would outlive its controller in a child, and the child's exit would end it for the controller.
    for agent in tuple(_agents):
        with contextlib.suppress(OSError):
            agent.let_go()


os.register_at_fork(after_in_child=_let_go_in_child)
