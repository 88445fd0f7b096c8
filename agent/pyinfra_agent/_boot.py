"""Which boot of the machine this is."""

from __future__ import annotations

import contextlib
from typing import Final

__all__ = ["boot_id"]

_KERNEL: Final = "/proc/sys/kernel/random/boot_id"
_INIT: Final = "/proc/1/stat"
#: Of the fields behind the name of the process, its start time in clock ticks since boot: proc(5), field 22.
_START_FIELD: Final = 19
_MAX_CHARACTERS: Final = 1024


def boot_id() -> str:
    """Return what is another after each boot and the same until then; "" where that is not known.

    Many containers share their machine's kernel, and so its boot id: when they reboot, only their init is another one.
    """
    parts = []
    with contextlib.suppress(OSError):  # not Linux, or no /proc
        parts.append(_read(_KERNEL).strip())
    with contextlib.suppress(OSError, IndexError):  # hidepid= shows an ordinary user no process of root's
        parts.append(_read(_INIT).rpartition(")")[2].split()[_START_FIELD])
    return "-".join(parts)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read(_MAX_CHARACTERS)
