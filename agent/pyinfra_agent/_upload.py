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
    mount point, is in a directory that we may not change or from which nothing can be removed (chattr +a), has an
    owner or attribute that we cannot give to another file, or is a device; or where the caller says so. All data is
    spooled and verified first, so a transfer that fails leaves the old file, and space is reserved before the first
    byte is overwritten.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ._in_place import overwrite
from ._incoming import Incoming, open_spool, report_late_errors
from ._refusal import refused, translating
from ._replaced import hold_replaced
from ._target import Target
from ._temporary import create_temporary, record_temporary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._incoming import RunningDigest
    from ._litter import Litter

__all__ = ["SyncPolicy", "Upload", "UploadResult"]

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


@dataclass(frozen=True, slots=True)
class UploadResult:
    """What `Upload.commit` did.

    Attributes:
        size: bytes written.
        path: the file that was written, symbolic links followed.
        in_place: the old file was overwritten, not replaced.
        created: there was no such file before.
        replaced: a descriptor for the file that was, for the caller to close; None if it is gone already.
    """

    size: int
    path: bytes
    in_place: bool
    created: bool
    replaced: int | None = None


class Upload:
    """One file being written; made by `Upload.open`, ended by `commit` or `abort`.

    The calls block and may come from different threads, one at a time. A file that is new gets its permissions from
    umask and default ACLs; an old one keeps mode, owner, group, ACL and extended attributes, except those that speak
    of the old content (file capabilities, IMA and EVM).
    """

    def __init__(
        self,
        target: Target,
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
        self._holds_replaced = False
        self._replaced: int | None = None

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
            target = Target.find(path)
            try:
                return cls._begin(target, digest, mode, in_place, size, sync, litter)
            except BaseException:
                target.close()
                raise

    @classmethod
    def _begin(
        cls,
        target: Target,
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
        in_place = old is not None and (
            in_place or old.st_nlink > 1 or stat.S_ISCHR(old.st_mode) or target.keeps_every_name()
        )
        name = None
        if not in_place:
            # The temporary of an old file is private until it has that file's permissions: those may be tighter.
            permissions = 0o666 if old is None and mode is None else 0o600
            try:
                fd, name = create_temporary(target, permissions, litter)
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

    def write(self, chunks: Sequence[bytes | bytearray]) -> None:
        """Append *chunks*, as few system calls as they need.

        Raises:
            FileRefused: the disk is full, or writing failed otherwise; call `abort`.
        """
        self._incoming.write(chunks)

    def is_in_memory(self) -> bool:
        """Tell whether `write` never waits for a disk; to ask takes longer than writing a small file."""
        return self._incoming.is_in_memory()

    def commit(self, size: int, digest: bytes, *, holds_replaced: bool = False) -> UploadResult:
        """Verify what has arrived and let it become the file; the upload is over, whatever happens.

        With *holds_replaced* a large file that it replaces may be left to the caller (`UploadResult.replaced`).

        Raises:
            FileRefused: it is not what was sent, or cannot be put there. The old file is as it was, unless the text
                says that it was being written in place.
        """
        self._holds_replaced = holds_replaced
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
        if self._replaced is not None:
            os.close(self._replaced)
            self._replaced = None
        self._target.close()

    def _replace(self) -> UploadResult:
        old = self._target.look()
        if old is not None:
            self._target.require_writable_kind(old)
        if old is not None and (old.st_nlink > 1 or not self._target.copy_attributes(self._incoming.fd)):
            return self._write_in_place()
        fd = self._incoming.fd
        if self._mode is not None:
            os.fchmod(fd, self._mode)
        elif old is None and self._target.state is not None:
            # Deleted while we received: the file that was there at the start is still the one that was meant.
            with suppress(PermissionError):
                os.fchown(fd, self._target.state.st_uid, self._target.state.st_gid)
            os.fchmod(fd, stat.S_IMODE(self._target.state.st_mode))
        if self._sync is SyncPolicy.NONE:
            report_late_errors(fd)
        else:
            os.fdatasync(fd)
        try:
            self._publish(old)
        except OSError as error:
            if old is None or error.errno not in _NAME_FIXED:
                raise
            return self._write_in_place()
        if self._sync is SyncPolicy.FULL:
            self._target.sync_directory()
        replaced, self._replaced = self._replaced, None
        size, path = self._incoming.size, self._target.path
        return UploadResult(size, path, in_place=False, created=old is None, replaced=replaced)

    def _publish(self, old: os.stat_result | None) -> None:
        target = self._target
        if self._temporary is None:
            unnamed = b"/proc/self/fd/%d" % self._incoming.fd
            if old is None:
                # FileExistsError: somebody made it since we looked; then the later of the two stays, as with rename.
                with suppress(FileExistsError):
                    os.link(unnamed, target.name, dst_dir_fd=target.fd, follow_symlinks=True)
                    return
            name = record_temporary(target, self._litter)
            self._temporary = name
            os.link(unnamed, name, dst_dir_fd=target.fd, follow_symlinks=True)
        if old is not None and self._holds_replaced:
            self._replaced = hold_replaced(target, old)
        os.rename(self._temporary, target.name, src_dir_fd=target.fd, dst_dir_fd=target.fd)
        self._forget_temporary()

    def _forget_temporary(self) -> None:
        if self._litter is not None and self._temporary is not None:
            self._litter.forget(self._target.absolute(self._temporary))
        self._temporary = None

    def _write_in_place(self) -> UploadResult:
        flush = self._sync is not SyncPolicy.NONE
        overwrite(self._target, self._incoming, mode=self._mode, flush=flush)
        return UploadResult(self._incoming.size, self._target.path, in_place=True, created=False)
