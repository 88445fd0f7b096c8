"""A private agent on 127.0.0.1: started for `@agent/loopback`, gone with this process.

The agent is a process of its own, because trio cannot run where gevent has patched.  It is started, not
imported.  Its standard input is a pipe that only we hold: however we end, the pipe ends, and with it
the agent and the commands that it still runs.  Keys are made for this run and are never on a disk.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import sys
import weakref
from dataclasses import dataclass
from typing import Any, Final

import gevent
from gevent import subprocess

from pyinfra_agent_protocol.keys import KeyPair, format_public, parse_public

from ._errors import AgentError
from ._identity import Identity

__all__ = ["LoopbackAgent", "start_loopback"]

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 5.0
# The current directory is not searched for modules: a deploy's own trio.py must not become part of an agent.
_PROGRAM: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; from pyinfra_agent._loopback import main; sys.exit(main())"
)

#: Agents of this process that were not stopped: at exit they are.
_agents: weakref.WeakSet[LoopbackAgent] = weakref.WeakSet()


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

    def stop(self) -> None:
        """End the agent and every command that still runs in it; harmless when it has ended."""
        _agents.discard(self)
        process = self._process
        if process.poll() is None:
            process.stdin.close()
            with gevent.Timeout(_STOP_SECONDS, False):
                process.wait()
            if process.poll() is None:
                process.kill()
                process.wait()
        process.stdout.close()


def start_loopback() -> LoopbackAgent:
    """Start a private agent with this process's environment and current directory.

    Raises:
        AgentError: it cannot be started; the text says what to install.
    """
    if importlib.util.find_spec("trio") is None:
        raise AgentError("@agent/loopback runs an agent and needs trio: pip install 'pyinfra-agentd[agent]'")
    identity = Identity(KeyPair.generate(), "loopback")
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=dict(os.environ),
    )
    try:
        process.stdin.write(f"{format_public(identity.keypair.public, identity.comment)}\n".encode())
        process.stdin.flush()
        with gevent.Timeout(_START_SECONDS, False):
            port, _, line = process.stdout.readline().decode().strip().partition(" ")
            agent = LoopbackAgent(int(port), format_public(parse_public(line).key), identity, process)
            _agents.add(agent)
            return agent
        raise AgentError(f"the loopback agent did not start within {_START_SECONDS:g} s")
    except (OSError, ValueError) as error:
        process.kill()
        process.wait()
        if isinstance(error, AgentError):
            raise
        raise AgentError("the loopback agent did not start: see its message above") from error


@atexit.register
def _stop_all() -> None:
    for agent in tuple(_agents):
        agent.stop()
