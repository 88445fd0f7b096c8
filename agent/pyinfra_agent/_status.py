"""`pyinfra-agent status`: the running agent tells about itself, over a socket that only root and its own user may use.

The socket is `status` in the state directory, which one agent owns. Whoever connects gets one JSON object and the end
of the stream; nothing is read from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from ._keys import StateError
from ._log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["ask_status", "serve_status"]

_NAME: Final = "status"
_PRIVATE: Final = 0o177
_BACKLOG: Final = 16
_ANSWER_SECONDS: Final = 5.0
_REPORT_MAX_BYTES: Final = 64 << 20


async def serve_status(state_dir: Path, report: Callable[[], Mapping[str, Any]]) -> None:
    """Answer with *report* until cancelled; an agent that cannot have the socket works without."""

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(_ANSWER_SECONDS), suppress(trio.BrokenResourceError, OSError):
            if _peer_user(stream.socket) in (0, os.geteuid()):
                await stream.send_all(json.dumps(report()).encode() + b"\n")
        await trio.aclose_forcefully(stream)

    try:
        listener = _listen(state_dir)
    except OSError as error:
        log("without-status", path=state_dir / _NAME, reason=error.strerror)
        return
    try:
        await trio.serve_listeners(answer, [trio.SocketListener(listener)])
    finally:
        with suppress(OSError):
            (state_dir / _NAME).unlink()


def ask_status(state_dir: Path) -> dict[str, Any] | None:
    """Return what the agent with *state_dir* reports; None if there is none, or it has no answer.

    Raises:
        StateError: this user may not ask.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ANSWER_SECONDS)
        try:
            with _short_name(state_dir) as name:
                asking.connect(name)
            data = bytearray()
            while len(data) < _REPORT_MAX_BYTES and (chunk := asking.recv(1 << 16)):
                data += chunk
        except PermissionError as error:
            raise StateError(f"{state_dir}: only root and the agent's own user may ask for its status") from error
        except OSError:
            return None
    try:
        report: dict[str, Any] = json.loads(data)
    except ValueError:  # it ended while it answered
        return None
    return report


def _listen(state_dir: Path) -> trio.socket.SocketType:
    # The state directory is ours alone (`Litter`): a socket that is there was left by an agent that was killed.
    with suppress(FileNotFoundError):
        (state_dir / _NAME).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(_PRIVATE)
        try:
            with _short_name(state_dir) as name:
                listener.bind(name)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return trio.socket.from_stdlib_socket(listener)


@contextlib.contextmanager
def _short_name(state_dir: Path) -> Iterator[str]:
    """Name the socket in a way that fits into an address, which takes 107 bytes however deep the directory is."""
    descriptor = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)


def _peer_user(connection: trio.socket.SocketType) -> int:
    """Return the user id of who connected (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", credentials)[1]
    return user
