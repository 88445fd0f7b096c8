"""The private agent of `@agent/loopback`: one controller, keys for this run only, nothing on disk.

The connector starts it as `python -m pyinfra_agent._loopback` with a pipe as standard input: the first
line is the controller's key, and the end of the pipe, which comes even if the controller is killed
with SIGKILL, is the end of the agent and of every command that still runs.  It answers with one line
on standard output: its port and its key.
"""

from __future__ import annotations

import os
import sys

import trio

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import KeyPair, format_public, parse_public

from ._authorized import OneController
from ._controllers import Controller
from ._log import be_quiet
from ._server import Agent, prepare_process
from ._settings import Settings

__all__ = ["main"]


def main() -> int:
    """Serve the controller whose key is on standard input, until that ends."""
    line = sys.stdin.readline()
    if not line:
        return 0  # the controller ended before it came to it: Ctrl-C
    try:
        public = parse_public(line.rstrip("\n"))
    except KeyFormatError as error:
        print(f"pyinfra-agent: the loopback agent was given no key: {error}", file=sys.stderr)
        return 2
    prepare_process()
    be_quiet()
    key = KeyPair.generate()
    settings = Settings(
        inherited_environment=dict(os.environb), home=os.getcwdb(), session_ttl_seconds=60.0, stop_seconds=0.0
    )
    agent = Agent(settings, key, OneController(Controller(public.key, public.comment)))

    async def run() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        try:
            os.write(1, f"{listeners[0].socket.getsockname()[1]} {format_public(key.public)}\n".encode())
        except BrokenPipeError:
            return  # the controller has ended meanwhile
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at_end_of_input, agent)
            await agent.run(listeners)
            nursery.cancel_scope.cancel()
        agent.kill_commands()  # one may have been about to start when the others were killed

    trio.run(run)
    return 0


async def _stop_at_end_of_input(agent: Agent) -> None:
    while True:
        await trio.lowlevel.wait_readable(0)
        if not os.read(0, 4096):
            break
    agent.kill_commands()
    agent.stop()


if __name__ == "__main__":
    sys.exit(main())
