"""Reading a file of this machine for a transfer, without ever hanging on something that is no file."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from ._file_systems import is_in_memory
from ._refusal import FileRefused, refused, show_path, translating
from ._stat import type_of

if TYPE_CHECKING:
    from ._incoming import RunningDigest

__all__ = ["Download"]

_SMALL_BYTES: Final = 64 * 1024


class Download:
    """An open file being read from its start to its end; made by `Download.open`.

    The calls block and may come from different threads, one at a time. As with `cp`, the end is where a read finds
    nothing more: a file that grows meanwhile is sent with what was added, and files of /proc and /sys, which claim to
    be empty, are sent whole.

    Attributes:
        size: bytes, as the file says; a hint that may be wrong in both directions.
        mode: permission bits, at most 0o7777.
    """

    def __init__(self, fd: int, path: bytes, state: os.stat_result, digest: RunningDigest | None) -> None:
        self._fd = fd
        self._path = path
        self._digest = digest
        self._device = state.st_dev
        self.size = state.st_size
        self.mode = stat.S_IMODE(state.st_mode)

    @classmethod
    def open(cls, path: bytes, *, digest: RunningDigest | None = None) -> Download:
        """Open *path*, following symbolic links; whatever is read goes into *digest* too.

        Raises:
            FileRefused: it cannot be read, or is no regular file.
        """
        if b"\0" in path:
            raise FileRefused("not-found", f"cannot read {show_path(path)}: a path holds no NUL byte")
        with translating("read", path):
            # Before opening: to open a device can act on it (a tape rewinds, a watchdog starts).
            _require_regular(os.stat(path), path)
            # After opening: the path may have changed hands in between, and must not hang us on a FIFO.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                state = os.fstat(fd)
                _require_regular(state, path)
                _advise_sequential(fd)
            except BaseException:
                os.close(fd)
                raise
        return cls(fd, path, state, digest)

    def read(self, max_bytes: int) -> bytes:
        """Return the next 1 to *max_bytes* bytes, b"" at the end.

        Raises:
            FileRefused: reading failed, or would have to wait (/proc/kmsg).
        """
        # Without translating(): a generator-based context per chunk is most of the cost of a small read.
        try:
            chunk = os.read(self._fd, max_bytes)
        except OSError as error:
            raise refused(error, "read", self._path) from error
        if self._digest is not None:
            self._digest.update(chunk)
        return chunk

    def read_block(self, max_bytes: int) -> bytes:
        """Return the next *max_bytes* bytes, fewer only at the end; raises as `read`."""
        # Python makes a buffer of all that is asked for, which takes longer than reading a small file into it.
        most = min(max_bytes, max(self.size + 1, _SMALL_BYTES))
        block = self.read(most)
        while len(block) < max_bytes and (more := self.read(min(most, max_bytes - len(block)))):
            block += more
        return block

    def is_in_memory(self) -> bool:
        """Tell whether reading never waits for a disk; to ask takes longer than reading a small file."""
        return is_in_memory(self._device)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _require_regular(state: os.stat_result, path: bytes) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(state.st_mode):
        kind = type_of(state.st_mode)
        raise FileRefused("not-regular", f"cannot read {show_path(path)}: it is a {kind}; only files are transferred")


def _advise_sequential(fd: int) -> None:
    # Only advice, and only worth a system call; a file system that takes none is no reason to refuse.
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    except OSError:
        return
