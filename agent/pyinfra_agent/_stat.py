"""What a path is, and how to tell a person that a file cannot be had.

Every refusal of the file classes (`_upload`, `_download`, and here) is a `FileRefused`, and every OSError becomes one
in `refused`. Paths are bytes throughout, as the kernel has them.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING, Final, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FileRefused", "FileStat", "refused", "show_path", "stat_path", "translating", "type_of"]

_SHOWN_PATH_CHARACTERS: Final = 512

_TYPES: Final[Mapping[int, str]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
}

# errno: the code for programs; the reason and the remedy for people.
_REASONS: Final[Mapping[int, tuple[str, str]]] = {
    errno.ENOENT: ("not-found", "no such file or directory"),
    errno.ENOTDIR: ("not-found", "a part of the path is not a directory"),
    errno.EISDIR: ("is-directory", "it is a directory; name a file in it"),
    errno.EACCES: ("permission", "permission denied; use another user or change the permissions"),
    errno.EPERM: ("permission", "not permitted; it may be immutable (see lsattr) or belong to another user"),
    errno.ENXIO: ("not-regular", "it is a socket, a FIFO or a device that is not there; only files are transferred"),
    errno.ENOSPC: ("no-space", "no space left on the file system; free blocks (df -h) or inodes (df -i)"),
    errno.EDQUOT: ("quota", "the disk quota is used up; raise it or delete something"),
    errno.EROFS: ("read-only", "the file system is read-only; remount it writable"),
    errno.ENAMETOOLONG: ("name-too-long", "the name is longer than the file system allows"),
    errno.ELOOP: ("too-many-links", "too many symbolic links; one may lead back to itself"),
    errno.ETXTBSY: ("io", "it is a running program and has to be written in place; stop the program first"),
    errno.EFBIG: ("io", "it would be larger than the file system or `ulimit -f` allows"),
    errno.EAGAIN: ("io", "it would have to be waited for; it is a stream rather than a file, or leased to a server"),
}


class FileRefused(Exception):
    """One file operation was refused, or failed; nothing else is affected.

    Attributes:
        code: for programs; one of "not-found", "is-directory", "not-regular", "permission", "no-space", "quota",
            "read-only", "name-too-long", "too-many-links", "digest-mismatch", "size-mismatch", "io".
        text: one line for a person, naming the path and what to do.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class FileStat(TypedDict):
    """What `stat_path` knows about a path; plain values only.

    `type` is "file", "directory", "link", "fifo", "socket", "block", "char" or "unknown"; `mode` has the permission
    bits (at most 0o7777); `user` and `group` are None where the ids have no name; `size` is in bytes; `target` is what
    a symbolic link says, and None for everything else.
    """

    type: str
    mode: int
    uid: int
    gid: int
    user: str | None
    group: str | None
    size: int
    mtime_ns: int
    target: bytes | None


def show_path(path: bytes) -> str:
    """Return *path* as one line of printable text: control characters and invalid UTF-8 as backslash escapes."""
    text = path.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(shown) > _SHOWN_PATH_CHARACTERS:
        half = _SHOWN_PATH_CHARACTERS // 2
        shown = f"{shown[:half]}[...]{shown[-half:]}"
    return shown


def refused(error: OSError, doing: str, path: bytes) -> FileRefused:
    """Translate *error*, met while *doing* ("write", "read", ...) something to *path*."""
    number = error.errno or 0
    code, why = _REASONS.get(number, ("io", os.strerror(number)))
    return FileRefused(code, f"cannot {doing} {show_path(path)}: {why}")


@contextlib.contextmanager
def translating(doing: str, path: bytes) -> Iterator[None]:
    """Turn any OSError of the block into its `FileRefused`."""
    try:
        yield
    except OSError as error:
        raise refused(error, doing, path) from error


def type_of(mode: int) -> str:
    """Name the type in an `st_mode` as `FileStat.type` does."""
    return _TYPES.get(stat.S_IFMT(mode), "unknown")


def stat_path(path: bytes, follow: bool) -> FileStat | None:
    """Look at *path*, or with *follow* at what its symbolic links lead to.

    Returns:
        None when nothing is there, a dangling link with *follow* included.

    Raises:
        FileRefused: it cannot be looked at.
    """
    with translating("look at", path):
        if b"\0" in path:
            return None
        try:
            state = os.stat(path, follow_symlinks=follow)
            target = os.readlink(path) if stat.S_ISLNK(state.st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return None
    return FileStat(
        type=type_of(state.st_mode),
        mode=stat.S_IMODE(state.st_mode),
        uid=state.st_uid,
        gid=state.st_gid,
        user=_user_name(state.st_uid),
        group=_group_name(state.st_gid),
        size=state.st_size,
        mtime_ns=state.st_mtime_ns,
        target=target,
    )


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None
