"""Writing a file of this machine from a transfer: the old file or the whole new one, nothing between and nothing left.

How a file is written, in order of preference:

1.  **An unnamed file** in the target's directory (O_TMPFILE) takes the data. When length and digest are right it gets
    the old file's attributes and then a name: a new file is linked to its own name, an old one is replaced by rename.
    The kernel removes an unnamed file by itself when the agent is killed or the power fails, and no program that reads
    the whole directory (cron.d, sudoers.d) sees it. On ext4 it costs half of a named one when the file is new, and
    the same when it replaces.
2.  **A named temporary** where the file system has no unnamed files (NFS, older overlayfs and FUSE); the same from
    there on. `Litter` remembers the name, so that a killed agent's are removed when it starts again.
3.  **In place**, as `cp` writes, where another file cannot stand in for the old one: it has other hard links, is a
    mount point, is in a directory that we may not change, has an owner or attribute that we cannot give to another
    file, or is a device; or where the caller says so. All data is spooled and verified first, so a transfer that fails
    leaves the old file, and space is reserved before the first byte is overwritten.

A target that is a symbolic link is followed by hand, one link at a time, so that the directory is one that we hold open
and cannot be exchanged between the temporary file and the rename.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import secrets
import stat
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from ._stat import FileRefused, refused, show_path, translating, type_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Incoming", "Litter", "RunningDigest", "SyncPolicy", "Upload", "UploadResult", "open_spool"]

TEMPORARY_PREFIX: Final = b".pyinfra-agent-"
TEMPORARY_SUFFIX: Final = b".tmp"
_TEMPORARY_NAME: Final = re.compile(re.escape(TEMPORARY_PREFIX) + rb"[0-9a-f]{16}" + re.escape(TEMPORARY_SUFFIX))

_MAX_LINKS: Final = 40  # as the kernel's own limit
_MAX_VECTORS: Final = 1024  # IOV_MAX of Linux
_COPY_BYTES: Final = 1 << 20
_MEMORY_SPOOL_BYTES: Final = 1 << 20
_SPOOL_DIRECTORIES: Final = ("/var/tmp", "/tmp")  # the one that is never memory first
_JOURNAL_NAME: Final = "unfinished-uploads"
_JOURNAL_BYTES: Final = 64 << 10

# Belongs to the old content: the kernel drops or recomputes it when a file is written.
_NEVER_COPIED: Final = frozenset({"security.capability", "security.ima", "security.evm"})
_ACCESS_ACL: Final = "system.posix_acl_access"

# No file can be made in this directory; ENOENT and EOPNOTSUPP is how /proc/sys and other invented ones say it.
_DIRECTORY_CLOSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EOPNOTSUPP})
# This name cannot be given to another file: a mount point, an immutable file, somebody else's in a sticky directory.
_NAME_FIXED: Final = frozenset({errno.EBUSY, errno.EPERM, errno.EACCES, errno.EXDEV})


class SyncPolicy(enum.Enum):
    """How far a written file is pushed to the disk before `commit` returns.

    NONE asks for nothing, as cp, scp and sftp do. DATA flushes the content before the file gets its name, so that a
    power cut leaves the old file or the new one on every file system; FULL flushes the directory as well, so that it
    leaves the new one.
    """

    NONE = "none"
    DATA = "data"
    FULL = "full"


class RunningDigest(Protocol):
    """What both ends compute over the content as it passes."""

    def update(self, chunk: bytes, /) -> None:
        """Add *chunk*."""

    def digest(self) -> bytes:
        """Return the digest of all chunks so far."""


@dataclass(frozen=True, slots=True)
class UploadResult:
    """What `Upload.commit` did.

    Attributes:
        size: bytes written.
        path: the file that was written, symbolic links followed.
        in_place: the old file was overwritten, not replaced.
        created: there was no such file before.
    """

    size: int
    path: bytes
    in_place: bool
    created: bool


class Incoming:
    """Bytes on their way into an open file, counted and digested as they come; owns *fd* (O_RDWR)."""

    def __init__(self, fd: int, path: bytes, digest: RunningDigest) -> None:
        self.fd = fd
        self.size = 0
        self._path = path
        self._digest = digest

    def write(self, chunks: Sequence[bytes]) -> None:
        """Append *chunks*.

        Raises:
            FileRefused: the disk is full, or writing failed otherwise.
        """
        try:
            self.size += _write_all(self.fd, chunks)
        except OSError as error:
            raise refused(error, "write", self._path) from error
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
                return Incoming(os.dup(spool.fileno()), path, digest)
        except OSError as error:
            failure = error
    raise refused(failure, "make a temporary file in", _SPOOL_DIRECTORIES[-1].encode()) from failure


class Litter:
    """The names of temporary files under way, kept in the agent's state directory for the next start.

    An append-only journal (2 us a name), rewritten when it has grown: it has to outlive a killed agent, not a power
    cut, and is therefore never flushed. Safe to use from several threads. One agent owns one state directory.
    """

    def __init__(self, state_directory: str) -> None:
        self._journal = os.path.join(state_directory, _JOURNAL_NAME)
        self._live: set[bytes] = set()
        self._lock = threading.Lock()
        self._fd = self._open(self._journal)

    @staticmethod
    def _open(path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def record(self, path: bytes) -> None:
        """Remember that *path* (absolute) is about to be made."""
        with self._lock:
            self._live.add(path)
            _write_all(self._fd, [path + b"\0"])

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
        fresh = self._open(self._journal + ".new")
        os.ftruncate(fresh, 0)
        _write_all(fresh, [path + b"\0" for path in self._live])
        os.rename(self._journal + ".new", self._journal)
        os.close(self._fd)
        self._fd = fresh


class Upload:
    """One file being written; made by `Upload.open`, ended by `commit` or `abort`.

    The calls block and may come from different threads, one at a time. A file that is new gets its permissions from
    umask and default ACLs; an old one keeps mode, owner, group, ACL and extended attributes, except those that speak
    of the old content (file capabilities, IMA and EVM).
    """

    def __init__(
        self,
        target: _Target,
        incoming: Incoming,
        *,
        name: bytes | None,
        in_place: bool,
        mode: int | None,
        sync: SyncPolicy,
        litter: Litter | None,
    ) -> None:
        self._target = target
        self._incoming = incoming
        self._temporary = name
        self._in_place = in_place
        self._mode = mode
        self._sync = sync
        self._litter = litter

    @classmethod
    def open(
        cls,
        path: bytes,
        *,
        digest: RunningDigest,
        mode: int | None = None,
        in_place: bool = False,
        size: int | None = None,
        sync: SyncPolicy = SyncPolicy.NONE,
        litter: Litter | None = None,
    ) -> Upload:
        """Prepare to write *path*; nothing is changed before `commit`.

        Args:
            path: the target; relative to the process's working directory unless it begins with a slash.
            digest: a fresh running digest.
            mode: permission bits for the file, new or old; None leaves them to umask and default ACLs, or as they are.
            in_place: overwrite an existing file instead of replacing it, for one that is bind-mounted elsewhere.
            size: bytes to expect, if known: a hint, not a check.
            sync: how far to push the file to the disk.
            litter: remembers named temporary files, so that they can be removed after a crash.

        Raises:
            FileRefused: it is no file, cannot be written, or its directory is missing.
        """
        with translating("write", path):
            target = _Target.find(path)
            try:
                return cls._begin(target, digest, mode, in_place, size, sync, litter)
            except BaseException:
                target.close()
                raise

    @classmethod
    def _begin(
        cls,
        target: _Target,
        digest: RunningDigest,
        mode: int | None,
        in_place: bool,
        size: int | None,
        sync: SyncPolicy,
        litter: Litter | None,
    ) -> Upload:
        old = target.state
        if old is not None:
            target.require_writable_kind(old)
        in_place = old is not None and (in_place or old.st_nlink > 1 or stat.S_ISCHR(old.st_mode))
        name = None
        if not in_place:
            # The temporary of an old file is private until it has that file's permissions: those may be tighter.
            permissions = 0o666 if old is None and mode is None else 0o600
            try:
                fd, name = _create_temporary(target, permissions, litter)
            except OSError as error:
                if old is None or error.errno not in _DIRECTORY_CLOSED:
                    raise refused(error, "make a file in", target.directory) from error
                in_place = True
        if in_place:
            if old is not None and stat.S_ISREG(old.st_mode):
                # Refuse now and not after gigabytes; not held open, for a program cannot be started meanwhile.
                os.close(target.open_in_place())
            incoming = open_spool(target.path, digest, size)
        else:
            incoming = Incoming(fd, target.path, digest)
        return cls(target, incoming, name=name, in_place=in_place, mode=mode, sync=sync, litter=litter)

    def write(self, chunks: Sequence[bytes]) -> None:
        """Append *chunks*, as few system calls as they need.

        Raises:
            FileRefused: the disk is full, or writing failed otherwise; call `abort`.
        """
        self._incoming.write(chunks)

    def commit(self, size: int, digest: bytes) -> UploadResult:
        """Verify what has arrived and let it become the file; the upload is over, whatever happens.

        Raises:
            FileRefused: it is not what was sent, or cannot be put there. The old file is as it was, unless the text
                says that it was being written in place.
        """
        try:
            with translating("write", self._target.path):
                self._incoming.verify(size, digest)
                return self._write_in_place() if self._in_place else self._replace()
        finally:
            self.abort()

    def abort(self) -> None:
        """Give up: remove what was received and leave the old file. Harmless when the upload is over."""
        self._incoming.close()
        if self._temporary is not None:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._target.fd)
            self._forget_temporary()
        self._target.close()

    def _replace(self) -> UploadResult:
        old = self._target.look()
        if old is not None:
            self._target.require_writable_kind(old)
        if old is not None and (old.st_nlink > 1 or not self._keep_attributes()):
            return self._write_in_place()
        fd = self._incoming.fd
        if self._mode is not None:
            os.fchmod(fd, self._mode)
        elif old is None and self._target.state is not None:
            # Deleted while we received: the file that was there at the start is still the one that was meant.
            with suppress(PermissionError):
                os.fchown(fd, self._target.state.st_uid, self._target.state.st_gid)
            os.fchmod(fd, stat.S_IMODE(self._target.state.st_mode))
        if self._sync is not SyncPolicy.NONE:
            os.fdatasync(fd)
        try:
            self._publish(new=old is None)
        except OSError as error:
            if old is None or error.errno not in _NAME_FIXED:
                raise
            return self._write_in_place()
        if self._sync is SyncPolicy.FULL:
            self._target.sync_directory()
        return self._result(in_place=False, created=old is None)

    def _keep_attributes(self) -> bool:
        """Give the temporary all that the old file has; False where only the old file can have it."""
        fd = self._incoming.fd
        try:
            source = os.open(self._target.name, _READ_FLAGS, dir_fd=self._target.fd)
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

    def _publish(self, *, new: bool) -> None:
        target = self._target
        if self._temporary is None:
            unnamed = b"/proc/self/fd/%d" % self._incoming.fd
            if new:
                # FileExistsError: somebody made it since we looked; then the later of the two stays, as with rename.
                with suppress(FileExistsError):
                    os.link(unnamed, target.name, dst_dir_fd=target.fd, follow_symlinks=True)
                    return
            name = _record_temporary(target, self._litter)
            self._temporary = name
            os.link(unnamed, name, dst_dir_fd=target.fd, follow_symlinks=True)
        os.rename(self._temporary, target.name, src_dir_fd=target.fd, dst_dir_fd=target.fd)
        self._forget_temporary()

    def _forget_temporary(self) -> None:
        if self._litter is not None and self._temporary is not None:
            self._litter.forget(self._target.absolute(self._temporary))
        self._temporary = None

    def _write_in_place(self) -> UploadResult:
        fd = self._target.open_in_place()
        try:
            old = os.fstat(fd)
            regular = stat.S_ISREG(old.st_mode)
            if regular:
                _reserve(fd, old, self._incoming.size)
                if self._mode is not None:
                    os.fchmod(fd, self._mode)
            # Not truncated first: blocks that are overwritten need no space, so a full disk cannot lose the old ones.
            try:
                _copy(self._incoming.fd, fd)
                if regular and old.st_size > self._incoming.size:
                    os.ftruncate(fd, self._incoming.size)
                if regular and self._sync is not SyncPolicy.NONE:
                    os.fsync(fd)
            except OSError as error:
                failure = refused(error, "write", self._target.path)
                raise FileRefused(
                    failure.code, f"{failure.text}; it was being written in place and may be incomplete now"
                ) from error
        finally:
            os.close(fd)
        return self._result(in_place=True, created=False)

    def _result(self, *, in_place: bool, created: bool) -> UploadResult:
        return UploadResult(self._incoming.size, self._target.path, in_place, created)


_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class _Target:
    """A name in a directory that we hold open, and what was there when it was found."""

    def __init__(self, fd: int, path: bytes, name: bytes, state: os.stat_result | None) -> None:
        self.fd = fd
        self.path = path
        self.name = name
        self.state = state

    @property
    def directory(self) -> bytes:
        return os.path.dirname(self.path) or b"."

    def absolute(self, name: bytes) -> bytes:
        path = os.path.join(self.directory, name)
        return path if path.startswith(b"/") else os.path.join(os.getcwdb(), path)

    @classmethod
    def find(cls, path: bytes) -> _Target:
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

    def sync_directory(self) -> None:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
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


def _create_temporary(target: _Target, permissions: int, litter: Litter | None) -> tuple[int, bytes | None]:
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
    name = _record_temporary(target, litter)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, permissions, dir_fd=target.fd), name
    except OSError:
        if litter is not None:
            litter.forget(target.absolute(name))
        raise


def _record_temporary(target: _Target, litter: Litter | None) -> bytes:
    # 64 random bits: a name that is taken is an attack or a miracle, and O_EXCL refuses both. It does not contain the
    # target's name, which may already be as long as names can be.
    name = TEMPORARY_PREFIX + secrets.token_hex(8).encode() + TEMPORARY_SUFFIX
    if litter is not None:
        litter.record(target.absolute(name))
    return name


def _is_litter(path: bytes) -> bool:
    if _TEMPORARY_NAME.fullmatch(os.path.basename(path)) is None:
        return False
    state = os.lstat(path)
    return stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and os.geteuid() in {0, state.st_uid}


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
        _write_all(destination, [chunk])


def _write_all(fd: int, chunks: Sequence[bytes]) -> int:
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
