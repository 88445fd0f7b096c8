"""The local side of transfers: reading what pyinfra uploads, writing what it downloads."""

from __future__ import annotations

import codecs
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from io import StringIO
from typing import IO, TYPE_CHECKING, Any, Final

from pyinfra_agent_protocol import DATA_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["local_chunks", "local_sink"]

#: A multiple of a frame's body, so that no crumb of a frame is left over from each read.
_CHUNK_BYTES: Final = 8 * DATA_BODY_BYTES


def local_chunks(filename_or_io: str | os.PathLike[str] | IO[Any]) -> Iterator[bytes]:
    """Yield the content of a local file or IO object from its start, about half a mebibyte at a time.

    Text is sent as UTF-8.  An IO object is left where its reading ended, as pyinfra leaves it.

    Raises:
        OSError: it cannot be read.
        TypeError: it is neither a name nor a readable object.
    """
    if isinstance(filename_or_io, str | os.PathLike):
        with open(filename_or_io, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
        return
    if not hasattr(filename_or_io, "read"):
        raise TypeError(f"cannot upload {type(filename_or_io).__name__}: give a file name or an IO object")
    if hasattr(filename_or_io, "seek"):
        filename_or_io.seek(0)
    while data := filename_or_io.read(_CHUNK_BYTES):
        yield data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)


@contextmanager
def local_sink(filename_or_io: str | os.PathLike[str] | IO[Any]) -> Iterator[Callable[[bytes], object]]:
    """Give a function that takes a downloaded file's bytes; a named file appears when the block ends well.

    It is written beside its place and renamed, so it is the old file or the whole new one.  An IO object
    gets bytes as they arrive; a text one gets them decoded as UTF-8.

    Raises:
        OSError: the file cannot be written.
        TypeError: it is neither a name nor a writable object.
    """
    if isinstance(filename_or_io, str | os.PathLike):
        with _replacing(os.path.realpath(filename_or_io)) as write:
            yield write
        return
    if not hasattr(filename_or_io, "write"):
        raise TypeError(f"cannot download to {type(filename_or_io).__name__}: give a file name or an IO object")
    if hasattr(filename_or_io, "seek"):
        filename_or_io.seek(0)
    if not isinstance(filename_or_io, StringIO):
        yield filename_or_io.write
        return
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    yield lambda data: filename_or_io.write(decoder.decode(data))
    filename_or_io.write(decoder.decode(b"", final=True))


@contextmanager
def _replacing(path: str) -> Iterator[Callable[[bytes], object]]:
    old = _stat(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        if stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(f"{path} is a directory: name a file in it")
        # A device or a FIFO: there is nothing to replace.
        with open(path, "wb", buffering=0) as file:
            yield file.write
        return
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name[:128]}.{secrets.token_hex(8)}.part")
    mode = stat.S_IMODE(old.st_mode) if old is not None else 0o666
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        # Unbuffered for large chunks; a small file is one write either way.
        with open(fd, "wb", buffering=0) as file:
            if old is not None:
                os.fchmod(fd, mode)
                with suppress(PermissionError):
                    os.fchown(fd, old.st_uid, old.st_gid)
            yield lambda data: _write_all(file, data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
