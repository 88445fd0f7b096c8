"""Writing a file of this machine from a download: the old file or the whole new one, as the agent writes its own.

The data goes to a file without a name in the target's directory where there are such (Linux), else to one with a name,
and gets the target's name when all of it is there. What another file cannot stand in for, one that has other hard
links, is mounted, or lies in a directory that we may not change, is written in place from a spool once all is there.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final

from ._errors import AgentError
from ._replaced import hold_replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["replacing"]

_DIRECTORY_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# This name cannot be given to another file: a mount point, an immutable file, somebody else's in a sticky directory.
_NAME_FIXED: Final = frozenset({errno.EBUSY, errno.EPERM, errno.EACCES, errno.EXDEV})
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_REASONS: Final[Mapping[int, str]] = {
    errno.ENOENT: "its directory does not exist; make it first",
    errno.ENOSPC: "no space left on the file system; free blocks (df -h) or inodes (df -i)",
    errno.EDQUOT: "the disk quota is used up; raise it or delete something",
}

_ACCESS_ACL: Final = "system.posix_acl_access"
# Belongs to the old content: the kernel drops or recomputes it when a file is written.
_NEVER_COPIED: Final = frozenset({"security.capability", "security.ima", "security.evm"})


@contextmanager
def replacing(
    name: str | os.PathLike[str], free: Callable[[int], object] = os.close
) -> Iterator[Callable[[bytes | bytearray], object]]:
    """Give a function that takes the content of the file *name*, which appears when the block ends well.

    A large file that it replaces is given to *free*, as a descriptor to close: that may take a while.

    Symbolic links are followed. A new file gets its permissions from the umask; an old one keeps mode, owner, ACL and
    extended attributes. A device or a FIFO is written as the data comes.

    Raises:
        OSError: it cannot be written; the text names it. The old file is as it was, unless the text says otherwise.
    """
    shown = os.fspath(name)
    with _explaining(shown):
        # The name as it was given: where /dev/stdout leads to need not have a path.
        old = _stat(name)
        if not os.path.basename(name) or (old is not None and stat.S_ISDIR(old.st_mode)):
            raise IsADirectoryError(f"{shown} is a directory: name a file in it")
        if old is not None and not stat.S_ISREG(old.st_mode):
            new = _Sink(open(name, "wb", buffering=0))  # noqa: SIM115 - closed below, as the others are
        else:
            new = _open_new(os.path.realpath(name), old, free)

    def write(data: bytes | bytearray) -> None:
        # Without _explaining(): a generator-based context for each record takes longer than the rest of this.
        try:
            _write_all(new.file, data)
        except OSError as error:
            raise _explained(shown, error) from error

    try:
        yield write
        with _explaining(shown):
            new.commit()
    finally:
        new.abort()


class _Sink:
    """A file that takes the data as it comes; base of those that keep it until all is there."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def commit(self) -> None:
        """Let what was written become the file."""

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        self.file.close()


class _InPlace(_Sink):
    """Data on its way over an old file that keeps its inode."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        super().__init__(file)
        self._path = path

    def commit(self) -> None:
        _overwrite(self._path, self.file)


class _Replacement(_Sink):
    """Data on its way into a new file beside its place, *temporary* if it has a name."""

    def __init__(
        self,
        file: IO[bytes],
        path: str,
        temporary: str | None,
        old: os.stat_result | None,
        free: Callable[[int], object],
    ) -> None:
        super().__init__(file)
        self._path = path
        self._temporary = temporary
        self._old = old
        self._free = free

    def commit(self) -> None:
        if self._old is not None and not _copy_attributes(self._path, self.file.fileno()):
            _overwrite(self._path, self.file)
            return
        _report_late_errors(self.file)
        try:
            self._publish()
        except OSError as error:
            if self._old is None or error.errno not in _NAME_FIXED:
                raise
            _overwrite(self._path, self.file)

    def _publish(self) -> None:
        if self._temporary is None:
            if self._old is None:
                with suppress(FileExistsError):  # made meanwhile: the later of the two stays, as with rename
                    _name(self.file.fileno(), self._path)
                    return
            temporary = _temporary_name(self._path)
            _name(self.file.fileno(), temporary)
            self._temporary = temporary
        replaced = hold_replaced(self._path, self._old) if self._old is not None else None
        try:
            os.replace(self._temporary, self._path)
        finally:
            if replaced is not None:
                self._free(replaced)
        self._temporary = None

    def abort(self) -> None:
        super().abort()
        if self._temporary is not None:
            with suppress(OSError):
                os.unlink(self._temporary)


def _open_new(path: str, old: os.stat_result | None, free: Callable[[int], object]) -> _Sink:
    if old is not None and old.st_nlink > 1:
        return _InPlace(_spool(), path)
    try:
        # The temporary of an old file is private until it has that file's permissions: those may be tighter.
        fd, temporary = _create_temporary(path, 0o666 if old is None else 0o600)
    except OSError as error:
        if old is None or error.errno not in _DIRECTORY_CLOSED or not os.access(path, os.W_OK):
            raise
        return _InPlace(_spool(), path)
    # Unbuffered for large chunks; a small file is one write either way.
    return _Replacement(open(fd, "w+b", buffering=0), path, temporary, old, free)


def _spool() -> IO[bytes]:
    return tempfile.TemporaryFile(buffering=0)


def _temporary_name(path: str) -> str:
    # Nothing of the name is in it, which may be as long as a name can be.
    return os.path.join(os.path.dirname(path), f".pyinfra-agent-{secrets.token_hex(8)}.part")


def _name(fd: int, path: str) -> None:
    # Given some src_dir_fd, which an absolute path makes meaningless, os.link calls linkat(2) and follows the link of
    # /proc. Without one it calls link(2), which does not.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def _create_temporary(path: str, permissions: int) -> tuple[int, str | None]:
    if sys.platform == "linux":
        # Without /proc an unnamed file cannot be given a name.
        with suppress(OSError):  # whatever is wrong here, the named one succeeds or says it better
            os.stat("/proc/self/fd")
            fd = os.open(os.path.dirname(path), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, permissions)
            # Before Linux 6.0, O_TMPFILE forgot the umask on file systems without ACLs.
            if permissions == 0o600 or stat.S_IMODE(os.fstat(fd).st_mode) != permissions:
                return fd, None
            os.close(fd)
    name = _temporary_name(path)
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, permissions), name


def _copy_attributes(path: str, fd: int) -> bool:
    """Give *fd* all that the file *path* has; False where only that file can have it."""
    try:
        old, new = os.stat(path), os.fstat(fd)
        if old.st_nlink > 1:
            return False
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(fd, old.st_uid, old.st_gid)
        if sys.platform == "linux":
            wanted, present = _xattrs(path), _xattrs(fd)
            if _ACCESS_ACL in present and _ACCESS_ACL not in wanted:
                os.removexattr(fd, _ACCESS_ACL)  # inherited from the directory; it would widen the old file's
            for name, value in wanted.items():
                if present.get(name) != value:
                    os.setxattr(fd, name, value)
        os.fchmod(fd, stat.S_IMODE(old.st_mode))  # last: a change of owner clears bits, an ACL sets some
    except FileNotFoundError:
        pass  # deleted meanwhile
    except OSError:
        return False
    return True


def _xattrs(file: str | int) -> dict[str, bytes]:
    if sys.platform != "linux":
        return {}
    try:
        return {name: os.getxattr(file, name) for name in os.listxattr(file) if name not in _NEVER_COPIED}
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise


def _overwrite(path: str, content: IO[bytes]) -> None:
    content.seek(0)
    # Not truncated first: blocks that are overwritten need no space, so a full disk cannot lose the old ones.
    with open(path, "r+b", buffering=0) as file:
        size = os.fstat(content.fileno()).st_size
        _reserve(file, size)
        try:
            shutil.copyfileobj(content, _Whole(file), 1 << 20)
            file.truncate(size)
            _report_late_errors(file)
        except OSError as error:
            text = f"{error.strerror}; it was being written in place and may be incomplete now"
            raise OSError(error.errno, text) from error


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space for a file that grows before any of it is overwritten; OSError, and no change, if there is none.

    Not for one that has no blocks, which has nothing to lose and may be one of /proc. macOS has no such call.
    """
    old = os.fstat(file.fileno())
    if size <= old.st_size or not old.st_blocks or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), old.st_size, size - old.st_size)
    except OSError as error:
        if error.errno in _NO_SPACE:
            file.truncate(old.st_size)
            raise


class _Whole:
    """A raw file whose `write` writes all."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        _write_all(self._file, data)


def _write_all(file: IO[bytes], data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _report_late_errors(file: IO[bytes]) -> None:
    # NFS and FUSE report a full disk or quota when a descriptor is closed, any of the file's.
    os.close(os.dup(file.fileno()))


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Let an OSError name the file that was asked for, and this machine: the other one has disks, too."""
    try:
        yield
    except AgentError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise _explained(name, error) from error


def _explained(name: str, error: OSError) -> AgentError:
    why = _REASONS.get(error.errno or 0, error.strerror)
    return AgentError(f"cannot write {name} on this machine: {why}")


def _stat(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
