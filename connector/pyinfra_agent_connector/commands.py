"""Subcommands of `pyinfra-agent` that belong to the controller; found by their entry points."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from pyinfra_agent_protocol.keys import format_secret

from .identity_command import identity

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["identity", "loopback"]


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, as the agent's own subcommands give."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def loopback(argv: Sequence[str]) -> int:
    """Run a private agent in the foreground and print the inventory name to use."""
    import tempfile
    from pathlib import Path

    from gevent import signal_handler
    from gevent.event import Event

    from ._errors import AgentError
    from ._identity import IDENTITY_FILE
    from ._loopback import start_loopback

    parser = _Parser(
        prog="pyinfra-agent loopback",
        description="Run a private agent on 127.0.0.1 until Ctrl-C, and print how to reach it from another terminal.",
    )
    parser.parse_args(argv)
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal_handler(number, stopped.set)
    try:
        agent = start_loopback()
    except AgentError as error:
        print(f"pyinfra-agent: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="pyinfra-agent-loopback-") as home:
        key = Path(home, IDENTITY_FILE)
        key.touch(mode=0o600)
        key.write_text(f"{format_secret(agent.identity.keypair, agent.identity.comment)}\n")
        print("A private agent runs until Ctrl-C. In another terminal:\n")
        print(f"  pyinfra @agent/127.0.0.1:{agent.port} --data agent_home={home} fact server.Hostname", flush=True)
        _wait(stopped)
    agent.stop()
    return 0


def _wait(stopped: Any) -> None:  # noqa: ANN401 - gevent has no types
    stopped.wait()
