"""Bytes on their way into a file of this machine: written, counted, digested, and in the end verified."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from ._file_systems import is_in_memory
from ._refusal import FileRefused, refused, show_path, translating

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Incoming", "RunningDigest", "open_spool", "report_late_errors", "write_all"]

_MAX_VECTORS: Final = 1024  # IOV_MAX of Linux
_MEMORY_SPOOL_BYTES: Final = 1 << 20
_SPOOL_DIRECTORIES: Final = ("/var/tmp", "/tmp")  # the one that is never memory first


class RunningDigest(Protocol):
    """What both ends compute over the content as it passes."""

    def update(self, chunk: bytes | bytearray, /) -> None:
        """Add *chunk*."""

    def digest(self) -> bytes:
        """Return the digest of all chunks so far."""


class Incoming:
    """Bytes on their way into an open file, counted and digested as they come; owns *fd* (O_RDWR).

    *doing* says in messages what is being done for *path*.
    """

    def __init__(self, fd: int, path: bytes, digest: RunningDigest, doing: str = "write") -> None:
        self.fd = fd
        self.size = 0
        self._path = path
        self._digest = digest
        self._doing = doing

    def write(self, chunks: Sequence[bytes | bytearray]) -> None:
        """Append *chunks*.

        Raises:
            FileRefused: the disk is full, or writing failed otherwise.
        """
        # In one call: each that releases the GIL has to wait for the event loop to get it back.
        try:
            self.size += write_all(self.fd, chunks)
        except OSError as error:
            raise refused(error, self._doing, self._path) from error
        for chunk in chunks:
            self._digest.update(chunk)

    def verify(self, size: int, digest: bytes) -> None:
        """Check that exactly what was sent has arrived, and rewind for reading.

        Raises:
            FileRefused: "size-mismatch" or "digest-mismatch".
        """
        if self.size != size:
            raise FileRefused(
                "size-mismatch",
                f"cannot write {show_path(self._path)}: {self.size} of {size} bytes arrived; send it again",
            )
        if not secrets.compare_digest(self._digest.digest(), digest):
            raise FileRefused(
                "digest-mismatch",
                f"cannot write {show_path(self._path)}: what arrived is not what was sent; send it again",
            )
        os.lseek(self.fd, 0, os.SEEK_SET)

    def is_in_memory(self) -> bool:
        """Tell whether `write` never waits for a disk."""
        return is_in_memory(os.fstat(self.fd).st_dev)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_spool(path: bytes, digest: RunningDigest, size: int | None = None) -> Incoming:
    """Open a nameless 0600 file for content that must have arrived wholly before *path* is touched.

    Args:
        path: for messages only.
        digest: a fresh running digest.
        size: bytes to expect, if known; only a small spool of known size is kept in memory.

    Raises:
        FileRefused: there is nowhere to keep it.
    """
    if size is not None and size <= _MEMORY_SPOOL_BYTES:
        with translating("spool", path):
            return Incoming(os.memfd_create("pyinfra-agent-spool", os.MFD_CLOEXEC), path, digest)
    failure = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    for directory in _SPOOL_DIRECTORIES:
        try:
            with tempfile.TemporaryFile(dir=directory, buffering=0) as spool:
                return Incoming(os.dup(spool.fileno()), path, digest, f"keep in {directory} the new content of")
        except OSError as error:
            failure = error
    raise refused(failure, "make a temporary file in", _SPOOL_DIRECTORIES[-1].encode()) from failure


def report_late_errors(fd: int) -> None:
    """Raise now, as OSError, what *fd*'s file system would otherwise say when the file is closed.

    NFS and FUSE report a full disk or quota only then, and do so for each descriptor. Others do nothing here.
    """
    os.close(os.dup(fd))


def write_all(fd: int, chunks: Sequence[bytes | bytearray]) -> int:
    """Write *chunks* wholly; return how many bytes that was."""
    total = 0
    pending = [memoryview(chunk) for chunk in chunks if chunk]
    pending.reverse()
    while pending:
        written = os.writev(fd, list(islice(reversed(pending), _MAX_VECTORS)))
        total += written
        while written:
            first = pending.pop()
            if written < len(first):
                pending.append(first[written:])
                break
            written -= len(first)
    return total
