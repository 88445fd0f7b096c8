"""The named temporary files of uploads, and how those of a killed agent are found and removed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import threading
from contextlib import suppress
from typing import Final

from ._incoming import write_all
from ._keys import StateError

__all__ = ["Litter", "make_temporary_name"]

_PREFIX: Final = b".pyinfra-agent-"
_SUFFIX: Final = b".tmp"
_TEMPORARY_NAME: Final = re.compile(re.escape(_PREFIX) + rb"[0-9a-f]{16}" + re.escape(_SUFFIX))

_JOURNAL_NAME: Final = "unfinished-uploads"
_JOURNAL_BYTES: Final = 64 << 10
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


def make_temporary_name() -> bytes:
    """Return a new name, by which `Litter.sweep` knows the file as a temporary of an agent."""
    # 64 random bits: a name that is taken is an attack or a miracle, and O_EXCL refuses both. It does not contain the
    # target's name, which may already be as long as names can be.
    return _PREFIX + secrets.token_hex(8).encode() + _SUFFIX


class Litter:
    """The names of temporary files under way, kept in the agent's state directory for the next start.

    An append-only journal (2 us a name), rewritten when it has grown: it has to outlive a killed agent, not a power
    cut, and is therefore never flushed. Safe to use from several threads.

    One agent owns one state directory: to another, the files that the first is writing would be litter. The journal is
    locked (flock) as long as the object is open, and the kernel unlocks it when the agent is killed.

    Raises:
        StateError: another agent has this state directory.
    """

    def __init__(self, state_directory: str) -> None:
        self._journal = os.path.join(state_directory, _JOURNAL_NAME)
        self._live: set[bytes] = set()
        self._lock = threading.Lock()
        self._fd = self._open_locked(self._journal)
        # An agent that rewrote its journal after we opened it has its lock on the new one, and left us the old.
        if not os.path.samestat(os.fstat(self._fd), os.stat(self._journal)):
            os.close(self._fd)
            raise _taken(self._journal)

    @staticmethod
    def _open_locked(path: str) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise _taken(path) from error
        except OSError as error:
            # NFS without a lock service has no locks: an agent there is better than none.
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise
        return fd

    def record(self, path: bytes) -> None:
        """Remember that *path* (absolute) is about to be made."""
        with self._lock:
            self._live.add(path)
            write_all(self._fd, [path + b"\0"])

    def forget(self, path: bytes) -> None:
        """Forget *path*: it is gone."""
        with self._lock:
            self._live.discard(path)
            if os.fstat(self._fd).st_size > _JOURNAL_BYTES:
                self._rewrite()

    def sweep(self) -> list[bytes]:
        """Remove what a killed agent left behind, and return the names removed; to be called before any upload.

        Only a regular file of our naming, with no other link, that is ours (or anybody's, for root: it had perhaps been
        given its owner already) is removed. A journal that somebody spoilt can do no more harm than that.
        """
        with self._lock, open(self._journal, "rb") as journal:
            paths = set(journal.read().split(b"\0"))
        removed = []
        for path in sorted(paths - self._live):
            with suppress(OSError):
                if os.path.isabs(path) and _is_litter(path):
                    os.unlink(path)
                    removed.append(path)
        with self._lock:
            self._rewrite()
        return removed

    def close(self) -> None:
        """Close the journal; the object is of no use afterwards."""
        os.close(self._fd)

    def _rewrite(self) -> None:
        fresh = self._open_locked(self._journal + ".new")  # before anybody can find it
        os.ftruncate(fresh, 0)
        write_all(fresh, [path + b"\0" for path in self._live])
        os.rename(self._journal + ".new", self._journal)
        os.close(self._fd)
        self._fd = fresh


def _taken(journal: str) -> StateError:
    directory = os.path.dirname(journal)
    return StateError(
        f"another agent runs with --state-dir {directory}: stop that one, or give this one another --state-dir"
    )


def _is_litter(path: bytes) -> bool:
    if _TEMPORARY_NAME.fullmatch(os.path.basename(path)) is None:
        return False
    state = os.lstat(path)
    return stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and os.geteuid() in {0, state.st_uid}
