"""The ``@agent`` connector executes on machines that run the pyinfra agent, a small daemon.

A command or a small file takes one round trip, over a connection that survives a bad network.

.. code:: shell

    # A private agent on this machine, for a first try and for tests
    pyinfra @agent/loopback exec -- uname -a

    # A machine on which `pyinfra-agent serve` runs
    pyinfra @agent/web1.example.com exec -- uname -a
"""

# The face for pyinfra 2: a module with a description of its host data, and functions.

from __future__ import annotations

from typing import Final

from pyinfra.api.connectors import BaseConnectorMeta  # type: ignore[attr-defined]  # pyinfra 3 has none

from .._settings import DATA_KEYS as _KEYS
from ._functions import (
    check_can_rsync,
    connect,
    disconnect,
    get_file,
    make_names_data,
    put_file,
    rsync,
    run_shell_command,
)

__all__ = [
    "DATA_KEYS",
    "Meta",
    "check_can_rsync",
    "connect",
    "disconnect",
    "get_file",
    "make_names_data",
    "put_file",
    "rsync",
    "run_shell_command",
]


class Meta(BaseConnectorMeta):  # type: ignore[misc]
    """What pyinfra asks a connector for."""

    handles_execution = True
    keys_prefix = "agent"

    # Names without the prefix, each with its description.
    DataKeys = type("DataKeys", (), {name.removeprefix("agent_"): key.description for name, key in _KEYS.items()})


DATA_KEYS: Final = Meta.keys()
