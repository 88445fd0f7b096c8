"""How a process ended that is not our child.

After `systemctl restart` the commands of the old agent are nobody's but init's, which takes their exit status. A
descriptor for the process (pidfd) tells it afterwards, from Linux 6.15 on. On older kernels the exit itself is seen,
and how it ended is unknown.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from typing import Final

__all__ = ["UNKNOWN", "is_our_child", "wait_status"]

#: How a process ended of which nobody can say it.
UNKNOWN: Final = -1

# <linux/pidfd.h>: struct pidfd_info as of PIDFD_INFO_SIZE_VER0, and the bit that asks for `exit_code`.
_INFO: Final = struct.Struct("=QQ11Ii")
_WANT_EXIT: Final = 1 << 3
_PIDFD_GET_INFO: Final = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11


def is_our_child(pid: int) -> bool:
    """Tell whether this process may wait for *pid*, which is not reaped by this."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def wait_status(pidfd: int) -> int | None:
    """Return how a process ended, in the form of wait(2); None before init has reaped it.

    It is `UNKNOWN` where the kernel does not say. The descriptor must have been opened before the process was reaped.
    Once it is readable and this returns None, it becomes EPOLLHUP when there is more to know.
    """
    # Twice: Linux looks for the exit first and then for the process, and fails if it is reaped in between.
    for _ in range(2):
        answer = bytearray(_INFO.size)
        struct.pack_into("=Q", answer, 0, _WANT_EXIT)
        try:
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, answer)
        except OSError:  # before Linux 6.13 always; before 6.15 once the process is gone
            if not _is_over(pidfd):
                return None
        else:
            mask, *_, status = _INFO.unpack(answer)
            return int(status) if mask & _WANT_EXIT else None
    return UNKNOWN


def _is_over(pidfd: int) -> bool:
    asked = select.poll()
    asked.register(pidfd, select.POLLIN)
    return bool(asked.poll(0))
