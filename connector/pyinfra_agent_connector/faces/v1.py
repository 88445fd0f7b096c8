"""The face for pyinfra 1: a module that says that it executes, and functions."""

from __future__ import annotations

from typing import Final

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
    "EXECUTION_CONNECTOR",
    "check_can_rsync",
    "connect",
    "disconnect",
    "get_file",
    "make_names_data",
    "put_file",
    "rsync",
    "run_shell_command",
]

EXECUTION_CONNECTOR: Final = True
