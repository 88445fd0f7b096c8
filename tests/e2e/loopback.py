"""pyinfra in this process, connected to one host: what a deploy's `host` is, without a deploy."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.context import ctx_host, ctx_state

ROOT = Path(__file__).parents[2]
"""Where a Python that a test starts can import `tests`."""


@contextlib.contextmanager
def connected(name="@agent/loopback", **data):
    """Connect to *name* and give pyinfra's host; disconnect in the end."""
    state = State(Inventory(([(name, data)], {})), Config())
    with ctx_state.use(state):
        connect_all(state)
        host = state.inventory.get_host(name)
        try:
            with ctx_host.use(host):
                yield host
        finally:
            disconnect_all(state)


def succeeded(answer):
    """Return the output of a command that must have succeeded."""
    success, output = answer
    assert success, output.output
    return output


def ends_with_status(host, script, status, **arguments):
    """Assert that *script* ends with just this *status*, and return its output."""
    success, output = host.run_shell_command(script, _success_exit_codes=[status], **arguments)
    assert success, f"`{script}` did not end with {status}"
    return output
