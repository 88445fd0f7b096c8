"""Limits for each command (`max_memory`, `max_tasks`): a transient scope of systemd, beside the agent's unit.

Not in the agent's own cgroup: with a controller enabled below it, and a command that lives on there, systemd could
not start the agent again (EBUSY). systemd-run asks for the scope, moves itself into it, and executes the command: the
same process, with the same streams. It takes about 10 ms a command, so there is no limit unless one is wanted.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._settings import Settings

__all__ = ["limiting_prefix", "why_not_limited"]

_SYSTEMD: Final = Path("/run/systemd/system")
_CGROUPS: Final = Path("/sys/fs/cgroup")


def why_not_limited(settings: Settings) -> str | None:
    """Say which limit of *settings* would not be kept, and why; None if all will be."""
    for key, value, controller in (
        ("max_memory", settings.memory_max_bytes, "memory"),
        ("max_tasks", settings.tasks_max, "pids"),
    ):
        if value is not None and (why := _why_not(controller)):
            return f"{key} cannot be kept here: {why}"
    return None


def limiting_prefix(settings: Settings) -> Sequence[bytes]:
    """Return the words before a command's own by which it gets its limits; none if there are none."""
    properties = []
    if settings.memory_max_bytes is not None:
        properties.append(f"--property=MemoryMax={settings.memory_max_bytes}")
    if settings.tasks_max is not None:
        properties.append(f"--property=TasksMax={settings.tasks_max}")
    if not properties:
        return ()
    program = shutil.which("systemd-run") or "systemd-run"
    # The description: it would be the command line, which may hold secrets, and everybody may read it.
    words = [program, "--scope", "--quiet", "--collect", "--description=a command of the pyinfra agent", *properties]
    return [word.encode() for word in (*words, "--")]


def _why_not(controller: str) -> str | None:
    if not _SYSTEMD.is_dir() or shutil.which("systemd-run") is None:
        return "it needs systemd and systemd-run"
    if os.geteuid() != 0:
        return "only root's agent may ask systemd for it"
    try:
        offered = (_CGROUPS / "cgroup.controllers").read_text().split()
    except OSError:  # version 1, or both: each controller has a directory
        offered = [directory.name for directory in _CGROUPS.iterdir()] if _CGROUPS.is_dir() else []
    return None if controller in offered else f"the kernel offers no {controller} controller"
