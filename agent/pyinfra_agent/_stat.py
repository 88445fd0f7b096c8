"""What a path is."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING, Final, TypedDict

from ._refusal import translating

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FileStat", "stat_path", "type_of"]

_TYPES: Final[Mapping[int, str]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
}


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
