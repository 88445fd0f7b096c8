"""Writing over a file that another file cannot stand in for, as `cp` writes."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from ._incoming import report_late_errors, write_all
from ._refusal import FileRefused, refused

if TYPE_CHECKING:
    from ._incoming import Incoming
    from ._target import Target

__all__ = ["overwrite"]

_COPY_BYTES: Final = 1 << 20


def overwrite(target: Target, incoming: Incoming, *, mode: int | None, flush: bool) -> None:
    """Write *incoming*, verified, over what *target* names.

    Args:
        target: a regular file, or a character device.
        incoming: the content; read from its start.
        mode: permission bits for a regular file; None leaves them.
        flush: push a regular file to the disk.

    Raises:
        FileRefused: writing failed when it had begun; the text says that the file may be incomplete.
        OSError: nothing was written.
    """
    fd = target.open_in_place()
    try:
        old = os.fstat(fd)
        regular = stat.S_ISREG(old.st_mode)
        if regular:
            _reserve(fd, old, incoming.size)
            if mode is not None:
                os.fchmod(fd, mode)
        # Not truncated first: blocks that are overwritten need no space, so a full disk cannot lose the old ones.
        try:
            _copy(incoming.fd, fd)
            if regular and old.st_size > incoming.size:
                os.ftruncate(fd, incoming.size)
            if regular and flush:
                os.fsync(fd)
            report_late_errors(fd)
        except OSError as error:
            failure = refused(error, "write", target.path)
            raise FileRefused(
                failure.code, f"{failure.text}; it was being written in place and may be incomplete now"
            ) from error
    finally:
        os.close(fd)


def _reserve(fd: int, old: os.stat_result, size: int) -> None:
    """Take the space for a file that grows before any of it is overwritten; OSError, and no change, if there is none.

    Not for a file that has no blocks: it has nothing to lose, and may be one of /proc or /sys, where the C library
    would imitate the missing call by writing zeros.
    """
    if size <= old.st_size or not old.st_blocks:
        return
    try:
        os.posix_fallocate(fd, old.st_size, size - old.st_size)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            os.ftruncate(fd, old.st_size)
            raise


def _copy(source: int, destination: int) -> None:
    while chunk := os.read(source, _COPY_BYTES):
        write_all(destination, [chunk])
