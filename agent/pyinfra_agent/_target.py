"""Where a file is to be written: the directory, the name in it, and what has that name.

A target that is a symbolic link is followed by hand, one link at a time, so that the directory is one that we hold open
and cannot be exchanged between the temporary file and the rename.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Final

from ._refusal import FileRefused, show_path
from ._stat import type_of

__all__ = ["Target"]

_MAX_LINKS: Final = 40  # as the kernel's own limit
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

# Belongs to the old content: the kernel drops or recomputes it when a file is written.
_NEVER_COPIED: Final = frozenset({"security.capability", "security.ima", "security.evm"})
_ACCESS_ACL: Final = "system.posix_acl_access"

# include/uapi/linux/fs.h: declared with a long, and yet four bytes are what every file system writes.
_FLAGS: Final = struct.Struct("=I4x" if struct.calcsize("l") == 8 else "=I")
_FS_IOC_GETFLAGS: Final = 2 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
_FS_APPEND_FL: Final = 0x20


class Target:
    """A name in a directory that we hold open, and what was there when it was found."""

    def __init__(self, fd: int, path: bytes, name: bytes, state: os.stat_result | None) -> None:
        self.fd = fd
        self.path = path
        self.name = name
        self.state = state

    @property
    def directory(self) -> bytes:
        """The directory as the path has it, for people: what is held open is `fd`."""
        return os.path.dirname(self.path) or b"."

    def absolute(self, name: bytes) -> bytes:
        """Return the absolute path of *name* in the directory."""
        path = os.path.join(self.directory, name)
        return path if path.startswith(b"/") else os.path.join(os.getcwdb(), path)

    @classmethod
    def find(cls, path: bytes) -> Target:
        """Follow *path* to the name of a file that is, or could be made, there."""
        if not path or b"\0" in path:
            raise FileRefused("not-found", f"cannot write '{show_path(path)}': a path has a name and no NUL byte")
        fd: int | None = None
        try:
            for _ in range(_MAX_LINKS + 1):
                parent, name = path[: path.rfind(b"/") + 1], path[path.rfind(b"/") + 1 :]
                if name in {b"", b".", b".."}:
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                previous, fd = fd, None
                try:
                    fd = _open_directory(parent or b".", path)
                finally:
                    if previous is not None:
                        os.close(previous)
                try:
                    state = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    return cls(fd, path, name, None)
                if not stat.S_ISLNK(state.st_mode):
                    return cls(fd, path, name, state)
                _require_followable(name, fd)
                path = os.path.join(parent, os.readlink(name, dir_fd=fd))  # unnormalised: the kernel knows what `..` is
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise

    def look(self) -> os.stat_result | None:
        """Return what has the name now."""
        try:
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def require_writable_kind(self, state: os.stat_result) -> None:
        """Refuse what is neither a regular file nor a character device (`/dev/null`)."""
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not (stat.S_ISREG(state.st_mode) or stat.S_ISCHR(state.st_mode)):
            kind = type_of(state.st_mode)
            raise FileRefused("not-regular", f"cannot write {show_path(self.path)}: it is a {kind}, not a file")

    def open_in_place(self) -> int:
        """Open the file that is there for writing, never making one and never waiting for it."""
        fd = os.open(self.name, _WRITE_FLAGS, dir_fd=self.fd)
        try:
            self.require_writable_kind(os.fstat(fd))
            os.set_blocking(fd, True)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def copy_attributes(self, fd: int) -> bool:
        """Give *fd* all that the file that is there has; False where only that file can have it."""
        try:
            source = os.open(self.name, _READ_FLAGS, dir_fd=self.fd)
        except OSError:
            return False  # attributes that we cannot read, or a target that is changing under us
        try:
            old, new = os.fstat(source), os.fstat(fd)
            if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
                os.fchown(fd, old.st_uid, old.st_gid)
            _copy_xattrs(source, fd)
            os.fchmod(fd, stat.S_IMODE(old.st_mode))  # last: a change of owner clears set-user-ID, an ACL sets the rest
        except OSError:
            return False
        finally:
            os.close(source)
        return True

    def keeps_every_name(self) -> bool:
        """True for an append-only directory (chattr +a): it takes new names, and none is removed or replaced.

        A temporary that had a name there would stay for ever.
        """
        try:
            fd = self._open_directory()
        except OSError:
            return False  # one that we may not read; the rename will tell
        try:
            flags = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_FLAGS.size))
        except OSError:
            return False  # a file system without such flags
        finally:
            os.close(fd)
        return bool(_FLAGS.unpack(flags)[0] & _FS_APPEND_FL)

    def sync_directory(self) -> None:
        """Flush the directory, and with it the names in it, to the disk."""
        fd = self._open_directory()
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _open_directory(self) -> int:
        # `fd` only names it (O_PATH).
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)

    def close(self) -> None:
        """Close the directory; closing twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open_directory(directory: bytes, path: bytes) -> int:
    try:
        return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        shown = show_path(directory.rstrip(b"/"))
        raise FileRefused(
            "not-found", f"cannot write {show_path(path)}: its directory {shown} does not exist; make it first"
        ) from error


def _require_followable(name: bytes, directory_fd: int) -> None:
    """Let the kernel judge a link that we are about to follow by hand.

    Following by hand would sidestep fs.protected_symlinks: root would write through a link that somebody planted in
    /tmp. The kernel applies that rule before it looks whether the link leads anywhere: dangling links are judged too.
    """
    try:
        os.stat(name, dir_fd=directory_fd)
    except PermissionError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise


def _copy_xattrs(source: int, destination: int) -> None:
    """Make *destination*'s ACL and extended attributes those of *source*; OSError where one cannot be given."""
    wanted, present = _xattrs(source), _xattrs(destination)
    if _ACCESS_ACL in present and _ACCESS_ACL not in wanted:
        os.removexattr(destination, _ACCESS_ACL)  # inherited from the directory; it would widen the old file's
    for name, value in wanted.items():
        if present.get(name) != value:
            os.setxattr(destination, name, value)


def _xattrs(fd: int) -> dict[str, bytes]:
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {name: os.getxattr(fd, name) for name in names if name not in _NEVER_COPIED}
