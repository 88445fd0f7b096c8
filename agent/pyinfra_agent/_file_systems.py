"""What kind of file system a file is on: some keep their files on other machines, and some in memory."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["is_in_memory", "is_of_this_machine"]

#: Nothing there waits for a disk or for another machine, unless memory itself does, the agent's own included.
_IN_MEMORY: Final = frozenset({"ramfs", "tmpfs"})
_OF_THIS_MACHINE: Final = _IN_MEMORY | {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "xfs", "zfs"}


def is_in_memory(device: int) -> bool:
    """Tell whether what is on *device*, a file's `st_dev`, is read and written without ever waiting for a disk."""
    return _type_of(device) in _IN_MEMORY


def is_of_this_machine(device: int) -> bool:
    """Tell whether *device*, a file's `st_dev`, is certainly no other machine's."""
    return _type_of(device) in _OF_THIS_MACHINE


def _type_of(device: int) -> str | None:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                fields = line.split(" ")  # proc_pid_mountinfo(5): the device is the third, the type follows a hyphen
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1]
    except OSError:
        return None
    return None
