"""The local side of transfers: reading what pyinfra uploads, writing what it downloads."""

from __future__ import annotations

import codecs
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from pyinfra_agent_protocol import DATA_BODY_BYTES

from ._errors import AgentError
from ._replacement import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["is_rewindable", "local_chunks", "local_sink"]

#: A multiple of a frame's body, so that no crumb of a frame is left over from each read.
_CHUNK_BYTES: Final = 8 * DATA_BODY_BYTES


def local_chunks(filename_or_io: str | os.PathLike[str] | IO[Any]) -> Iterator[bytes]:
    """Yield the content of a local file or IO object from its start, about half a mebibyte at a time.

    Text is sent as UTF-8.  An IO object is left where its reading ended, as pyinfra leaves it.

    Raises:
        OSError: it cannot be read, or it is neither a name nor a readable object.
    """
    if isinstance(filename_or_io, str | os.PathLike):
        # Python makes a buffer of all that is asked for, which takes longer than reading a small file into it.
        most = DATA_BODY_BYTES
        with open(filename_or_io, "rb", buffering=0) as file:
            while chunk := file.read(most):
                yield chunk
                if len(chunk) == most:
                    most = _CHUNK_BYTES
        return
    if not hasattr(filename_or_io, "read"):
        raise AgentError(f"cannot upload {type(filename_or_io).__name__}: give a file name or an IO object")
    with _as_os_error("read"):
        _rewind(filename_or_io)
    while data := _read(filename_or_io):
        yield data


def _read(file: IO[Any]) -> bytes:
    with _as_os_error("read"):
        data = file.read(_CHUNK_BYTES)
        return data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)


@contextmanager
def local_sink(
    filename_or_io: str | os.PathLike[str] | IO[Any], free: Callable[[int], object] = os.close
) -> Iterator[Callable[[bytes | bytearray], object]]:
    """Give a function that takes a downloaded file's bytes; a named file appears when the block ends well.

    It is the old file or the whole new one (`replacing`, whose *free* this is).  An IO object gets bytes as they
    arrive; a text one gets them decoded as UTF-8.

    Raises:
        OSError: the file cannot be written, or it is neither a name nor a writable object.
    """
    if isinstance(filename_or_io, str | os.PathLike):
        with replacing(filename_or_io, free) as write:
            yield write
        return
    if not hasattr(filename_or_io, "write"):
        raise AgentError(f"cannot download to {type(filename_or_io).__name__}: give a file name or an IO object")
    with _as_os_error("written"):
        _rewind(filename_or_io)
    # Not by its class: the objects that tempfile makes are wrappers.  Every text file has the attribute.
    if not hasattr(filename_or_io, "encoding"):
        yield lambda data: _write_all(filename_or_io, bytes(data))
        return
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def write_text(data: bytes | bytearray, *, final: bool = False) -> None:
        with _as_os_error("written"):
            filename_or_io.write(decoder.decode(data, final))

    yield write_text
    write_text(b"", final=True)


@contextmanager
def _as_os_error(done: str) -> Iterator[None]:
    """Make one of what a closed file, and text that does not fit its encoding, raise: pyinfra handles no other."""
    try:
        yield
    except OSError:
        raise
    except (ValueError, TypeError) as error:
        raise AgentError(f"the local file object cannot be {done}: {error}") from error


def is_rewindable(filename_or_io: str | os.PathLike[str] | IO[Any]) -> bool:
    """Return whether a transfer of it can begin anew: a pipe's content is gone once it was read."""
    if isinstance(filename_or_io, str | os.PathLike):
        return True
    seekable = getattr(filename_or_io, "seekable", None)
    return hasattr(filename_or_io, "seek") and (seekable is None or bool(seekable()))


def _rewind(file: IO[Any]) -> None:
    if is_rewindable(file):
        file.seek(0)


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        with _as_os_error("written"):
            written = file.write(view)
        if written is None:  # an object that does not say takes all of it
            return
        view = view[written:]
