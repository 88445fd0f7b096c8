"""A client for one agent: run commands, move files, ask what is there.  For greenlets.

    trust = AgentTrust(agent_home(), "web1", 7963, "strict", None)
    client = AgentClient("web1", 7963, identity=load_or_create(agent_home()), check_key=trust.check)
    client.connect()
    finished = client.run(["uname", "-a"], on_output=lambda stream, data: ...)
    client.close()

Every method raises OSErrors only (`_errors`), each with a line that names the agent and says what to do.
"""

from __future__ import annotations

import os
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, cast

import gevent

from pyinfra_agent_protocol import (
    LABEL_MAX_CHARACTERS,
    Digest,
    Exec,
    ExecResult,
    Get,
    GetResult,
    Info,
    InfoResult,
    Put,
    PutResult,
    Stat,
    StatResult,
)

from ._connection import Connection
from ._errors import AgentError, CommandTimeout, Refused
from ._feeder import Feeder
from ._interrupt import interrupts
from ._opening import Endpoint
from ._settings import CONNECT_SECONDS, RESUME_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from pyinfra_agent_protocol import PtySize

    from ._call import Call
    from ._identity import Identity

__all__ = ["AgentClient"]

#: As the protocol has it, and Linux's PATH_MAX.
_PATH_MAX_BYTES: Final = 4096
#: Of a path that is refused.
_SHOWN_CHARACTERS: Final = 120

#: Arguments longer than this travel as data: a frame holds 64 KiB in all.
_LONG_ARGUMENT_BYTES: Final = 32 * 1024

#: Behind a command's deadline: for the agent to end it, with 5 s between SIGTERM and SIGKILL, and to say so.
_LATE_SECONDS: Final = 10.0

_STREAMS: Final = ("stdout", "stderr")


class AgentClient:
    """One agent, reached by one session.

    Args:
        host, port: where it listens.
        identity: this controller's key.
        check_key: gets the agent's key and certificate (b"" for none) before anything of ours is sent; raises to
            refuse it.
        learn_key: gets the agent's key, and the one that it will have after its rotation (b"" for none), when it has
            let this controller in.
        connect_seconds: for a connection to be welcomed.
        resume_seconds: how long a lost connection is tried to be resumed.
        alias: name or fingerprint by which multicast DNS finds the agent when it is not at *host* any more.
        notify: gets a line for the user when the connection is lost and when it is back.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        identity: Identity,
        check_key: Callable[[bytes, bytes], None],
        learn_key: Callable[[bytes, bytes], None] = lambda key, next_key: None,
        connect_seconds: float = CONNECT_SECONDS,
        resume_seconds: float = RESUME_SECONDS,
        alias: str = "",
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.endpoint = Endpoint(host, port, alias)
        self._connection = Connection(
            self.endpoint,
            identity,
            check_key,
            learn_key=learn_key,
            connect_seconds=connect_seconds,
            resume_seconds=resume_seconds,
            notify=notify,
        )
        # The link's greenlets keep the connection alive, and nothing keeps the client: once nobody has it, they end.
        # At exit connections are closed with a word to their agents, so this is not wanted there.
        weakref.finalize(self, self._connection.drop).atexit = False

    @property
    def is_connected(self) -> bool:
        """True while a link carries the session."""
        return self._connection.is_connected

    @property
    def user(self) -> str:
        """Name of the user that the agent runs as; "" before the first connection."""
        welcome = self._connection.welcome
        return welcome.user if welcome is not None else ""

    @interrupts.interruptible()
    def connect(self) -> None:
        """Connect; returns when the agent has let this controller in."""
        interrupts.chain(self)
        self._connection.connect()

    def close(self) -> None:
        """End the session; takes a second at most.

        Commands that still run are not killed: they run on, and what they print is thrown away.
        """
        self._connection.close()
        interrupts.release(self)

    @interrupts.interruptible()
    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes | Iterable[bytes] | None = None,
        pty: PtySize | None = None,
        timeout_seconds: float | None = None,
        on_start: Callable[[Call], object] = lambda call: None,
        on_output: Callable[[str, bytes], None] = lambda stream, data: None,
        expects_loss: bool = False,
        what: str = "the command",
        label: str = "",
    ) -> ExecResult:
        """Run a command and wait for its end.

        Args:
            argv: the program and its arguments.
            env: variables on top of the agent's own.
            cwd: where it starts; None is the home directory.
            stdin: bytes, or an iterable of them that is read while the command runs.
            pty: run it in a terminal of this size.
            timeout_seconds: after which the agent ends the command and all that it started.  An agent that does not
                say so within 10 s more is waited for no longer.
            on_start: gets the request, whose `signal` and `resize` reach the command.
            on_output: gets "stdout" or "stderr" and bytes, as they arrive.
            expects_loss: the command ends the connection, as `reboot` does: if it is lost, raise at once, without
                trying to resume it.
            what: the command in a person's words, for errors.
            label: the command with its secrets masked, for the agent's log; nothing else of it is kept there.

        Raises:
            CommandTimeout: the time was over, and the agent did not say that it has ended the command.
        """
        words = [os.fsencode(word) for word in argv]
        index, script = _take_long_argument(words)
        request = Exec(
            argv=tuple(words),
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()} if env else None,
            cwd=os.fsencode(cwd) if cwd is not None else None,
            stdin=stdin is not None,
            script_index=index,
            script_size=len(script),
            pty=pty,
            timeout_ms=max(1, round(timeout_seconds * 1000)) if timeout_seconds else None,
            # What is no UTF-8 stands in it as surrogates, which no message takes.
            label=label[:LABEL_MAX_CHARACTERS].encode("utf-8", "replace").decode(),
        )
        with _deadline(self.endpoint, what, timeout_seconds), self._connection.call(request, what) as call:
            call.expects_loss = expects_loss
            on_start(call)
            feeder = Feeder.start(call, script, stdin)
            try:
                while events := call.receive():
                    for event in events:
                        on_output(_STREAMS[event.stream], bytes(event.data))
                result = cast("ExecResult", call.result())
            except Refused:
                feeder.check()  # it cancels the request, and says why better than the refusal does
                raise
            finally:
                feeder.stop()
            feeder.check()
            return result

    @interrupts.interruptible()
    def put(
        self,
        chunks: Iterable[bytes],
        path: str,
        *,
        mode: int | None = None,
        in_place: bool = False,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> PutResult:
        """Write *chunks* to *path* on the agent, whole or not at all; with *argv*, through that command."""
        request = Put(
            path=_path_bytes(path),
            mode=mode,
            in_place=in_place,
            argv=tuple(map(os.fsencode, argv)) if argv is not None else None,
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()} if env else None,
        )
        digest = Digest()
        size = 0
        with self._connection.call(request, f"writing {path}") as call:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                if not call.send(chunk):
                    break
            call.end(size=size, digest=digest.digest())
            return cast("PutResult", call.result())

    @interrupts.interruptible()
    def get(
        self,
        path: str,
        write: Callable[[bytes | bytearray], object],
        *,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        nonce: bytes = b"",
    ) -> GetResult:
        """Read *path* on the agent and *write* it; with *argv*, what that command prints after *nonce*.

        Raises:
            AgentError: also when what arrived is not what was sent; then what was written must not be used.
        """
        request = Get(
            path=_path_bytes(path),
            argv=tuple(map(os.fsencode, argv)) if argv is not None else None,
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()} if env else None,
            nonce=nonce,
        )
        digest = Digest()
        size = 0
        with self._connection.call(request, f"reading {path}") as call:
            while events := call.receive():
                for event in events:
                    digest.update(event.data)
                    size += len(event.data)
                    write(event.data)
            result = cast("GetResult", call.result())
        if (result.size, result.digest) != (size, digest.digest()):
            raise AgentError(f"{self.endpoint}: {path} did not arrive as it was sent: try again")
        return result

    @interrupts.interruptible()
    def stat(self, path: str, *, follow: bool = True) -> dict[str, object] | None:
        """Look at *path*: its type, mode, owner, size and so on, or None if nothing is there."""
        with self._connection.call(Stat(_path_bytes(path), follow), f"looking at {path}") as call:
            return cast("StatResult", call.result()).stat

    @interrupts.interruptible()
    def info(self, *, expects_loss: bool = False) -> dict[str, object]:
        """Ask the agent who it is; *expects_loss* is as for `run`."""
        with self._connection.call(Info(), "asking who the agent is") as call:
            call.expects_loss = expects_loss
            return cast("InfoResult", call.result()).info


def _path_bytes(path: str) -> bytes:
    """Return *path* as the target has it; bytes that are no UTF-8 stand in it as surrogates (PEP 383)."""
    name = os.fsencode(path)
    if not 0 < len(name) <= _PATH_MAX_BYTES or b"\0" in name:
        shown = repr(path if len(path) <= _SHOWN_CHARACTERS else f"{path[:_SHOWN_CHARACTERS]}[...]")
        raise AgentError(
            f"{shown} is no path: it has {len(name)} bytes, and 1 to {_PATH_MAX_BYTES} without a NUL are possible"
        )
    return name


def _deadline(endpoint: Endpoint, what: str, seconds: float | None) -> AbstractContextManager[object]:
    """Return what raises a while after the agent should have ended a command."""
    if not seconds:
        return nullcontext()
    text = f"{endpoint}: {what} did not end within {seconds:g} s, and the agent did not say that it was killed"
    return cast("AbstractContextManager[object]", gevent.Timeout(seconds + _LATE_SECONDS, CommandTimeout(text)))


def _take_long_argument(words: list[bytes]) -> tuple[int | None, bytes]:
    """Take the longest argument out of *words* if it is too long for the request's own frame."""
    index = max(range(len(words)), key=lambda number: len(words[number]), default=0)
    if not words or len(words[index]) <= _LONG_ARGUMENT_BYTES:
        return None, b""
    script, words[index] = words[index], b""
    return index, script
