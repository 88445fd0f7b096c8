"""How to tell a program and a person that a file cannot be had.

Every refusal of the file classes is a `FileRefused`, and every OSError that they meet becomes one in `refused`. Paths
are bytes throughout, as the kernel has them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FileRefused", "refused", "show_path", "translating"]

_SHOWN_PATH_CHARACTERS: Final = 512

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
