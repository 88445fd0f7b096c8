"""A large file that a download replaced is freed behind its back, as the agent frees its own.

A gibibyte takes a tenth of a second, a large file on a disk more, and the rename that replaces it would do that while
every other host waits. So the old file is held open over the rename, for somebody else to close, where several times
what it has is free besides: nobody misses its space meanwhile.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["hold_replaced"]

#: Less is freed in a moment.
_LARGE_BYTES: Final = 16 << 20
_FREE_TIMES: Final = 4
_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system's are: stat(2)
#: Over NFS, a file that is held open when it is replaced lives on under a name of its own (`.nfs...`).
_OF_THIS_MACHINE: Final = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})


def hold_replaced(path: str, old: os.stat_result) -> int | None:
    """Return a descriptor that keeps *old*, which is at *path*, from being freed; None if that may be."""
    size = old.st_blocks * _BLOCK_BYTES
    if size < _LARGE_BYTES or not hasattr(os, "O_PATH"):  # macOS has none
        return None
    try:
        system = os.statvfs(path)
        if system.f_bavail * system.f_frsize < _FREE_TIMES * size or not _is_of_this_machine(old.st_dev):
            return None
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None


def _is_of_this_machine(device: int) -> bool:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")  # proc_pid_mountinfo(5): the device is the third, the type follows a hyphen
            if fields[2] == wanted:
                return fields[fields.index("-") + 1] in _OF_THIS_MACHINE
    return False
