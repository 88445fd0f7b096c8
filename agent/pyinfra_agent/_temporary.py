"""The file beside the target that receives an upload: without a name where the file system can, else with one."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from ._litter import make_temporary_name

if TYPE_CHECKING:
    from ._litter import Litter
    from ._target import Target

__all__ = ["create_temporary", "record_temporary"]


def create_temporary(target: Target, permissions: int, litter: Litter | None) -> tuple[int, bytes | None]:
    """Make the file that receives the data; return its descriptor and its name, if it had to have one."""
    with suppress(OSError):  # whatever is wrong here, the named one succeeds or says it better
        # Without /proc an unnamed file cannot be given a name.
        if os.access("/proc/self/fd", os.X_OK):
            fd = os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, permissions, dir_fd=target.fd)
            # Before Linux 6.0, O_TMPFILE forgot the umask on file systems without ACLs. A file that kept all of 0666 is
            # either that, or a umask of 0: the named file is right in both.
            if permissions == 0o600 or stat.S_IMODE(os.fstat(fd).st_mode) != permissions:
                return fd, None
            os.close(fd)
    name = record_temporary(target, litter)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, permissions, dir_fd=target.fd), name
    except OSError:
        if litter is not None:
            litter.forget(target.absolute(name))
        raise


def record_temporary(target: Target, litter: Litter | None) -> bytes:
    """Choose a name beside *target* for a temporary, and have it remembered before the file is made."""
    name = make_temporary_name()
    if litter is not None:
        litter.record(target.absolute(name))
    return name
